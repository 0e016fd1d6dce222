// Package azuretest is a stand-in for those parts of Azure that a mount needs:
// Key Vault, Microsoft Entra ID's token endpoint, the metadata service of a virtual
// machine, and the token proxy of AKS. Key Vault's protocol is Microsoft's own: the
// packages fake of its SDK read the requests and write the answers. Challenges,
// paging, permissions and errors are as the service's documentation has them.
//
// What it does not do: writing over HTTP, soft-deleted objects (they are gone),
// certificates under way, Managed HSM, signatures of access tokens (they are
// random texts which it remembers), AD FS, and limits of its own.
package azuretest

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/test/cloud"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

// The kinds of calls that are counted.
const (
	Discovery = "discovery" // of Entra ID's endpoints
	Login     = "login"
	Metadata  = "metadata" // a login of a managed identity
	Challenge = "challenge"
	Get       = "get"
	List      = "list"     // a page of objects
	Versions  = "versions" // a page of versions
)

// Tenant is that of all vaults. Elsewhere is another, which has the same clients.
const (
	Tenant    = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	Elsewhere = "b4f1d3d8-5f3e-4d0c-9f0a-1f2e3d4c5b6a"
)

// The audiences of tokens of pods.
const (
	Audience      = "api://AzureADTokenExchange"
	ProxyAudience = "api://AKSIdentityBinding"
)

// Storage is what tokens for Azure Storage are for.
const Storage = "https://storage.azure.com"

// Life is that of a token.
const Life = time.Hour

// Azure is one cloud. It is safe for concurrent use.
type Azure struct {
	t        testing.TB
	verifier *issuer.Verifier
	login    string // host names
	suffix   string

	mu       sync.Mutex
	clients  map[string]*Client
	managed  map[string]string // clients of the machine, by the id that is asked for
	tokens   map[string]*token
	vaults   map[string]*Vault
	calls    map[string]int
	delay    time.Duration
	faults   []fault
	entra    []fault
	claims   string // that a token must have been asked for with
	expiring time.Duration
}

// Client is an application or a managed identity.
type Client struct {
	ID, Object string
	// Secret may be empty.
	Secret string
	// Subjects are of its federated credentials, all of the one issuer; Bound those
	// which an identity binding of AKS lets use it.
	Subjects, Bound []string
}

type token struct {
	client   *Client
	tenant   string
	resource string
	ends     time.Time
	claims   string
}

// fault is an answer in place of the real one.
type fault struct {
	status     int // 0 for one that ends early
	retryAfter string
}

// New returns the public cloud, which n leads to.
func New(t testing.TB, n *cloud.Net, verifier *issuer.Verifier) *Azure {
	return In(t, n, verifier, "login.microsoftonline.com", "vault.azure.net")
}

// In returns a cloud with these host names: of the login, and what those of vaults
// end with.
func In(t testing.TB, n *cloud.Net, verifier *issuer.Verifier, login, suffix string) *Azure {
	a := &Azure{
		t: t, verifier: verifier, login: login, suffix: suffix, expiring: Life,
		clients: map[string]*Client{}, managed: map[string]string{}, tokens: map[string]*token{}, vaults: map[string]*Vault{}, calls: map[string]int{},
	}
	n.Handle(login, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.serveLogin(w, r, Audience) }))
	n.Handle("*."+suffix, http.HandlerFunc(a.serveVault))
	n.HandlePlain("169.254.169.254", http.HandlerFunc(a.serveMetadata))
	return a
}

// TokenProxy serves AKS's token proxy on a host of n below the path, for those who
// name the server sni.
func (a *Azure) TokenProxy(n *cloud.Net, host, path, sni string) {
	proxy := http.StripPrefix(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || r.TLS.ServerName != sni {
			http.Error(w, "misdirected", http.StatusMisdirectedRequest)
			return
		}
		a.serveLogin(w, r, ProxyAudience)
	}))
	n.Handle(host, proxy)
	n.Handle(sni, proxy)
}

// Add makes a client known; one of its id is replaced. It returns its id.
func (a *Azure) Add(c Client) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.ID == "" {
		c.ID = uuid()
	}
	c.Object = uuid()
	a.clients[c.ID] = &c
	return c.ID
}

// Assign gives the machine a managed identity, or, with system, makes it its
// own. It returns its id.
func (a *Azure) Assign(system bool) string {
	id := a.Add(Client{})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.managed[id] = id
	if system {
		a.managed[""] = id
	}
	return id
}

// Vault returns the vault of that name, which is made where there is none.
func (a *Azure) Vault(name string) *Vault {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.vaults[strings.ToLower(name)]
	if v == nil {
		v = &Vault{azure: a, name: name, clock: time.Now().Add(-24 * time.Hour).Truncate(time.Second), objects: map[string]map[string]*object{}, rights: map[string]bool{}}
		a.vaults[strings.ToLower(name)] = v
	}
	return v
}

// Calls returns how many calls of each kind there were since the last time.
func (a *Azure) Calls() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	calls := a.calls
	a.calls = map[string]int{}
	return calls
}

// Tokens returns all tokens that were given.
func (a *Azure) Tokens() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []string
	for text := range maps.Keys(a.tokens) {
		all = append(all, text)
	}
	return all
}

// Delay has every call take that long.
func (a *Azure) Delay(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.delay = d
}

// Fail has the next count calls of vaults fail with a status, and a Retry-After
// where that is not empty. Status 0 ends the answer in the middle.
func (a *Azure) Fail(count, status int, retryAfter string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range count {
		a.faults = append(a.faults, fault{status, retryAfter})
	}
}

// FailLogin is Fail for logins, those of the machine included.
func (a *Azure) FailLogin(count, status int, retryAfter string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range count {
		a.entra = append(a.entra, fault{status, retryAfter})
	}
}

// Revoke ends all tokens.
func (a *Azure) Revoke() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.tokens {
		t.ends = time.Time{}
	}
}

// Expect has vaults take only tokens that were asked for with these claims, and ask
// for them by a challenge.
func (a *Azure) Expect(claims string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.claims = claims
}

// Expire has the tokens of the next logins end after that time.
func (a *Azure) Expire(after time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expiring = after
}

// begin counts a call, waits as long as calls take, and takes the next fault of
// faults, if there is one.
func (a *Azure) begin(kind string, faults *[]fault) (fault, bool) {
	a.mu.Lock()
	delay := a.delay
	a.calls[kind]++
	var next fault
	failing := len(*faults) > 0
	if failing {
		next, *faults = (*faults)[0], (*faults)[1:]
	}
	a.mu.Unlock()
	time.Sleep(delay)
	return next, failing
}

func (f fault) answer(w http.ResponseWriter, body string) {
	if f.status == 0 {
		w.Header().Set("Content-Length", "1000")
		_, _ = fmt.Fprint(w, `{"value":"`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	if f.retryAfter != "" {
		w.Header().Set("Retry-After", f.retryAfter)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	_, _ = fmt.Fprint(w, body)
}

func random(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // it does not fail
	return hex.EncodeToString(b)
}

func uuid() string {
	s := random(16)
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}
