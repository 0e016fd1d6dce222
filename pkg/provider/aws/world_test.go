package aws

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	awstest "github.com/csi-secrets/csi-secrets/test/aws"
	"github.com/csi-secrets/csi-secrets/test/cloud"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

const (
	west, east = "us-west-2", "us-east-1"
	canary     = "canary-value-of-a-secret"
	appRole    = "arn:aws:iam::123456789012:role/app"
)

// frontend is the pod of most tests.
var frontend = issuer.Account{Namespace: "shop", Name: "web", UID: "s1", Pod: "web-1", PodUID: "p1"}

// world is AWS, the pods that mount, and the provider between them.
type world struct {
	*awstest.Cloud
	t      testing.TB
	net    *cloud.Net
	issuer *issuer.Issuer
	*Provider
	roles map[string]string // annotation by service account

	mu     sync.Mutex
	tokens []string
}

func newWorld(t testing.TB, changes ...func(*Config)) *world {
	t.Helper()
	n, i := cloud.New(t), issuer.New(t)
	w := &world{Cloud: awstest.New(t, n, i.Verifier(), west, east), t: t, net: n, issuer: i, roles: map[string]string{"web": appRole}}
	w.AddRole(awstest.Role{ARN: appRole, Subjects: []string{frontend.Subject()}, Allow: awstest.Everything})
	w.Associate(frontend.Subject(), appRole)
	w.Provider = w.provider(changes...)
	return w
}

// provider returns one that knows nothing yet.
func (w *world) provider(changes ...func(*Config)) *Provider {
	w.t.Helper()
	config := Config{Region: west, CAs: w.net.Pool(), Dial: w.net.DialContext}
	for _, change := range changes {
		change(&config)
	}
	p, err := New(config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.regions.http.CloseIdleConnections)
	w.t.Cleanup(p.agent.CloseIdleConnections)
	return p
}

// volume is one of a pod.
type volume struct {
	*world
	request provider.Request
	files   map[string]provider.File
}

// mount returns a volume of a pod that is empty yet. parameters alternate between key and value.
func (w *world) mount(account issuer.Account, parameters ...string) *volume {
	w.t.Helper()
	v := &volume{world: w, request: provider.Request{
		Parameters: map[string]string{}, Mode: provider.DefaultMode, Tokens: map[string]provider.Token{},
		Pod: provider.Pod{Namespace: account.Namespace, Name: account.Pod, UID: account.PodUID, ServiceAccount: account.Name},
		AccountAnnotations: func(context.Context) (map[string]string, error) {
			return map[string]string{roleAnnotation: w.roles[account.Name], "other": "x"}, nil
		},
	}}
	for i := 0; i < len(parameters); i += 2 {
		v.request.Parameters[parameters[i]] = parameters[i+1]
	}
	for _, audience := range []string{irsaAudience, podIdentityAudience} {
		v.setToken(audience, w.issuer.Token(account, audience))
	}
	return v
}

func (v *volume) setToken(audience, token string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tokens = append(v.tokens, token)
	v.request.Tokens[audience] = provider.Token{Value: secret.FromString(token)}
}

// fetch does what the driver does: the first is a publish, others are refreshes.
func (v *volume) fetch() (provider.Result, error) {
	v.t.Helper()
	r, err := v.Fetch(v.t.Context(), v.request)
	if err != nil {
		v.wantNothingTold(err)
		return r, err
	}
	if r.NotModified {
		return r, nil
	}
	v.files = map[string]provider.File{}
	for _, f := range r.Files {
		v.files[f.Path] = f
	}
	v.request.Mounted = r.Versions
	v.request.Current = func(path string) (secret.Value, bool) {
		f, ok := v.files[path]
		return secret.New(slices.Clone(f.Contents.Reveal())), ok
	}
	return r, nil
}

// wantNothingTold checks that an error shows no value and no token.
func (w *world) wantNothingTold(err error) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	text := fmt.Sprintf("%v %+v %#v", err, err, err)
	for _, hidden := range append([]string{canary, "session-token-", "Canonical String"}, w.tokens...) {
		if hidden != "" && strings.Contains(text, hidden) {
			w.t.Errorf("%v\nshows a secret: %q", err, hidden)
		}
	}
}

// fetched is fetch, which must succeed, with the files as shown.
func (v *volume) fetched() string {
	v.t.Helper()
	r, err := v.fetch()
	if err != nil {
		v.t.Fatal(err)
	}
	if r.NotModified {
		return "not modified"
	}
	return shown(r)
}

// shown is what a result holds.
func shown(r provider.Result) string {
	var b strings.Builder
	for i, f := range r.Files {
		fmt.Fprintf(&b, "%s %04o %q\n", f.Path, f.Mode, f.Contents.Reveal())
		if r.Versions[i].ID != f.Path || r.Versions[i].Version == "" {
			fmt.Fprintf(&b, "version %+v\n", r.Versions[i])
		}
	}
	return b.String()
}

// calls are those since the last time, in order of their names.
func (w *world) calls() string {
	calls := w.Calls()
	var all []string
	for _, operation := range slices.Sorted(maps.Keys(calls)) {
		all = append(all, fmt.Sprintf("%d %s", calls[operation], operation))
	}
	return strings.Join(all, ", ")
}

func (w *world) wantCalls(when, want string) {
	w.t.Helper()
	if got := w.calls(); got != want {
		w.t.Errorf("%s: the calls are %q, want %q", when, got, want)
	}
}

func wantError(t testing.TB, err error, kind provider.Kind, words ...string) {
	t.Helper()
	if err == nil || provider.KindOf(err) != kind {
		t.Fatalf("got %v of kind %v, want %v", err, provider.KindOf(err), kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v\ndoes not say %q", err, word)
		}
	}
}

// list is a class's objects: n of a type, by names that begin with prefix.
func list(kind, prefix string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "- {objectName: %s%d, objectType: %s}\n", prefix, i, kind)
	}
	return b.String()
}
