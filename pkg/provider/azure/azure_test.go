package azure

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	azuretest "github.com/csi-secrets/csi-secrets/test/azure"
	"github.com/csi-secrets/csi-secrets/test/cloud"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

const canary = "canary-value-of-a-secret"

var webAccount = issuer.Account{Namespace: "shop", Name: "web", UID: "s1", Pod: "web-1", PodUID: "p1"}

// world is a cloud with a vault "kv", whose secrets the client of the account web
// may read and list.
type world struct {
	*azuretest.Azure
	t      testing.TB
	net    *cloud.Net
	issuer *issuer.Issuer
	vault  *azuretest.Vault
	client string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, net: cloud.New(t), issuer: issuer.New(t)}
	w.Azure = azuretest.New(t, w.net, w.issuer.Verifier())
	w.client = w.Add(azuretest.Client{Subjects: []string{webAccount.Subject()}})
	w.vault = w.Vault("kv1")
	w.vault.GrantAll(w.client)
	return w
}

// transport reaches the world's hosts alone.
func (w *world) transport(config *tls.Config) *http.Transport {
	if config != nil && config.RootCAs == nil {
		config.RootCAs = w.net.Pool()
	}
	made := web.Transport(config)
	made.Proxy, made.DialContext = nil, w.net.DialContext
	w.t.Cleanup(made.CloseIdleConnections)
	return made
}

func (w *world) provider(config Config) *Provider {
	w.t.Helper()
	config.Transport = w.transport
	p, err := New(config)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// request is that of a pod of an account, for a class with these objects and
// further parameters.
func (w *world) request(account issuer.Account, objects string, parameters ...string) provider.Request {
	req := provider.Request{
		Parameters: map[string]string{vaultKey: "kv1", tenantKey: azuretest.Tenant, clientKey: w.client, objectsKey: objects},
		Mode:       provider.DefaultMode, Tokens: map[string]provider.Token{},
		Pod: provider.Pod{Namespace: account.Namespace, Name: account.Pod, UID: account.PodUID, ServiceAccount: account.Name},
	}
	for _, audience := range []string{audience, proxyAudience} {
		req.Tokens[audience] = provider.Token{Value: secret.FromString(w.issuer.Token(account, audience)), Expires: time.Now().Add(issuer.Lifetime)}
	}
	for i := 0; i < len(parameters); i += 2 {
		req.Parameters[parameters[i]] = parameters[i+1]
	}
	return req
}

// volume is what a driver keeps of a volume.
type volume struct {
	mu      sync.Mutex
	files   map[string]string
	mounted []provider.ObjectVersion
}

// mount fetches as a driver does: a refresh where the volume holds something.
func (v *volume) mount(p *Provider, req provider.Request) (provider.Result, error) {
	if req.Mounted = v.mounted; v.files != nil {
		req.Current = func(path string) (secret.Value, bool) {
			v.mu.Lock()
			defer v.mu.Unlock()
			text, ok := v.files[path]
			return secret.FromString(text), ok
		}
	}
	r, err := p.Fetch(context.Background(), req)
	if err != nil || r.NotModified {
		return r, err
	}
	v.files = map[string]string{}
	for _, f := range r.Files {
		v.files[f.Path] = string(f.Contents.Reveal())
	}
	v.mounted = r.Versions
	return r, nil
}

// shown is what a result holds, in the order of paths.
func shown(r provider.Result) string {
	var lines []string
	for _, f := range r.Files {
		lines = append(lines, fmt.Sprintf("%s %04o %q\n", f.Path, f.Mode, f.Contents.Reveal()))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func versionsOf(r provider.Result) string {
	var b strings.Builder
	for _, v := range r.Versions {
		fmt.Fprintf(&b, "%s=%s\n", v.ID, v.Version)
	}
	return b.String()
}

// wantCalls checks what was asked since the last time, such as "get 3, login 1".
func (w *world) wantCalls(want string) {
	w.t.Helper()
	var got []string
	calls := w.Calls()
	for _, kind := range slices.Sorted(maps.Keys(calls)) {
		got = append(got, fmt.Sprintf("%s %d", kind, calls[kind]))
	}
	if text := strings.Join(got, ", "); text != want {
		w.t.Errorf("the calls were %q, want %q", text, want)
	}
}

// wantError checks an error's kind and words, and that nothing secret is in it.
func (w *world) wantError(err error, kind provider.Kind, words ...string) {
	w.t.Helper()
	if err == nil || provider.KindOf(err) != kind {
		w.t.Fatalf("got %v of kind %v, want %v", err, provider.KindOf(err), kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			w.t.Errorf("%v\ndoes not say %q", err, word)
		}
	}
	for _, hidden := range append(w.Tokens(), canary, "eyJ", "Bearer ", "client_assertion") {
		if strings.Contains(fmt.Sprintf("%v %+v", err, err), hidden) {
			w.t.Errorf("%v\nshows a secret: %q", err, hidden)
		}
	}
}

func must(t testing.TB, r provider.Result, err error) provider.Result {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSecretsBecomeFiles(t *testing.T) {
	w := newWorld(t)
	first := w.vault.SetSecret("db", "old")
	second := w.vault.SetSecret("db", "new")
	w.vault.SetSecret("doc", `{"user":"app","port":5432}`)
	w.vault.SetSecret("packed", "AAEC")
	w.vault.SetSecret("hex", "00ff")
	other := w.Vault("other-vault")
	other.Grant(w.client, azuretest.Secrets, "get")
	other.SetSecret("db", "of another vault")
	r, err := w.provider(Config{}).Fetch(t.Context(), w.request(webAccount, `
array:
  - |
    objectName: db
    objectType: secret
  - |
    objectName: " db "
    objectType: secret
    objectAlias: ./old/db
    objectVersion: `+first+`
    filePermission: "0400"
  - {objectName: doc, objectType: secret, objectAlias: user, extractJSONKey: user}
  - {objectName: doc, objectType: secret, objectAlias: port, extractJSONKey: port, objectVersion: latest}
  - {objectName: packed, objectType: secret, objectEncoding: Base64}
  - {objectName: hex, objectType: secret, encoding: hex, filePermission: 0640}
  - {objectName: absent, objectType: secret, optional: true}
  - {objectName: doc, objectType: secret, objectAlias: none, extractJSONKey: none, optional: true}
  - {objectName: db, objectType: secret, objectAlias: other, keyvaultName: other-vault}
`))
	must(t, r, err)
	if got, want := shown(r), `db 0644 "new"
hex 0640 "\x00\xff"
old/db 0400 "old"
other 0644 "of another vault"
packed 0644 "\x00\x01\x02"
port 0644 "5432"
user 0644 "app"
`; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := versionsOf(r); !strings.HasPrefix(got, "secret/db="+second+"\nsecret/db="+first+"\nsecret/doc=") || !strings.Contains(got, "other-vault/secret/db=") {
		t.Errorf("got\n%s", got)
	}
	// One login, no challenge, and what two files need once.
	w.wantCalls("get 7, login 1")
}
