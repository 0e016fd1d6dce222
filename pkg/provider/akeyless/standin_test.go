package akeyless

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// schema is one of testdata/openapi.yaml.
type schema struct {
	Any        bool
	Ref        string
	Type       string
	Items      *schema
	Required   []string
	Properties map[string]*schema
}

// contract is testdata/openapi.yaml.
type contract struct {
	Paths map[string]struct {
		Request string
		Status  int
		Answer  string
	}
	Error   string
	Schemas map[string]*schema
}

var vendors = sync.OnceValue(func() *contract {
	data, err := os.ReadFile("testdata/openapi.yaml")
	if err != nil {
		panic(err)
	}
	var c contract
	if err := yaml.Unmarshal(data, &c); err != nil {
		panic(err)
	}
	return &c
})

// check tells why a value does not fit a schema: of a wrong type, with a field that
// the schema does not know, or without one that it requires.
func (c *contract) check(at string, s *schema, value any) error {
	for s.Ref != "" {
		s = c.Schemas[s.Ref]
	}
	if s.Any {
		return nil
	}
	fits := false
	switch v := value.(type) {
	case string:
		fits = s.Type == "string"
	case bool:
		fits = s.Type == "boolean"
	case float64:
		fits = s.Type == "integer" && v == math.Trunc(v)
	case []any:
		fits = s.Type == "array"
		for n, inner := range v {
			if fits && s.Items != nil {
				if err := c.check(fmt.Sprintf("%s[%d]", at, n), s.Items, inner); err != nil {
					return err
				}
			}
		}
	case map[string]any:
		fits = s.Type == "object"
		for _, name := range s.Required {
			if _, ok := v[name]; fits && !ok {
				return fmt.Errorf("%s: the field %q is missing", at, name)
			}
		}
		for name, inner := range v {
			property := s.Properties[name]
			if !fits || s.Properties == nil {
				continue
			}
			if property == nil {
				return fmt.Errorf("%s: the document has no field %q", at, name)
			}
			if err := c.check(at+"."+name, property, inner); err != nil {
				return err
			}
		}
	}
	if !fits {
		return fmt.Errorf("%s: it is %T, and not %s", at, value, s.Type)
	}
	return nil
}

// lease is what the stand-in has made of a dynamic secret.
type lease struct {
	item, id string
	deleted  bool
}

// gateway stands in for Akeyless: no real one was met. It refuses each request, and
// gives no answer, that does not fit the vendor's document.
type gateway struct {
	t testing.TB

	mu       sync.Mutex
	asked    []string          // operations, in order
	bodies   []map[string]any  // of the requests
	tokens   map[string]string // for whom they are
	logins   int
	leases   []*lease
	statics  map[string]any
	rotated  map[string]any
	certs    map[string]map[string]any
	dynamics map[string]map[string]any // without id
	versions map[string]int
	expires  string // that /auth says
	denied   map[string]bool
	aliases  map[string]string
	// before answers a request by itself, if it returns true.
	before func(op string, body map[string]any, w http.ResponseWriter) bool
}

const (
	canary    = "canary-value-of-a-secret"
	accessKey = "canary-access-key-d2VsbA=="
	uidToken  = "u-canary-universal-identity"
)

func newGateway(t testing.TB) *gateway {
	return &gateway{
		t: t, tokens: map[string]string{}, denied: map[string]bool{}, versions: map[string]int{"/db/password": 7, "/db/rotated": 3, "/tls/web": 2, "/db/user": 1},
		statics: map[string]any{"/db/password": canary, "/db/user": "app"},
		rotated: map[string]any{"/db/rotated": map[string]any{"username": "app", "password": canary + "<1>", "pin": json.Number("12345678901234567890")}},
		certs:   map[string]map[string]any{"/tls/web": {"certificate_pem": "-----BEGIN CERTIFICATE-----\nAA+/==\n-----END CERTIFICATE-----\n", "private_key_pem": canary + "\n"}},
		dynamics: map[string]map[string]any{
			"/db/dynamic":  {"user": "tmp.p-1", "password": canary, "ttl_in_minutes": "60"},
			"/db/dynamic2": {"user": "tmp.p-2", "password": canary, "ttl_in_minutes": "60"},
		},
	}
}

// count tells how often an operation was called.
func (g *gateway) count(op string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(g.asked), func(asked string) bool { return asked != op }))
}

// alive lists the credentials that are.
func (g *gateway) alive() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var ids []string
	for _, l := range g.leases {
		if !l.deleted {
			ids = append(ids, l.id)
		}
	}
	return strings.Join(ids, " ")
}

// set changes the stand-in while it may be in use.
func (g *gateway) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, _ := io.ReadAll(r.Body)
	op, known := strings.TrimPrefix(r.URL.Path, "/v2"), false
	promise := vendors().Paths[op]
	if known = promise.Request != ""; !known || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		g.t.Errorf("%s %s is no operation of the vendor's document", r.Method, r.URL.Path)
		http.Error(w, "", http.StatusNotFound)
		return
	}
	var body map[string]any
	err := json.Unmarshal(text, &body)
	if err == nil {
		err = vendors().check(op, vendors().Schemas[promise.Request], body)
	}
	if err != nil {
		g.t.Errorf("a request does not fit the vendor's document: %v", err)
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	g.mu.Lock()
	g.asked, g.bodies = append(g.asked, op), append(g.bodies, body)
	before := g.before
	g.mu.Unlock()
	if before != nil && before(op, body, w) {
		return
	}
	status, answer := g.answer(op, body)
	s := vendors().Schemas[promise.Answer]
	if status != promise.Status {
		s = vendors().Schemas[vendors().Error]
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if answer == nil && s == nil {
		return
	}
	reply, _ := json.Marshal(answer)
	var generic any
	_ = json.Unmarshal(reply, &generic)
	if err := vendors().check("the answer of "+op, s, generic); err != nil {
		g.t.Errorf("the stand-in does not fit the vendor's document: %v", err)
	}
	_, _ = w.Write(reply)
}

func says(text string, args ...any) map[string]any {
	return map[string]any{"error": fmt.Sprintf(text, args...)}
}

func (g *gateway) answer(op string, body map[string]any) (int, any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if op == opAuth {
		return g.login(body)
	}
	token, _ := body["token"].(string)
	if g.tokens[token] == "" && body["uid-token"] != uidToken {
		return http.StatusUnauthorized, says("the token is expired or invalid")
	}
	name, _ := body["name"].(string)
	if names, ok := body["names"].(string); ok {
		name = names
	}
	if g.denied[name] || g.denied[op] {
		return http.StatusForbidden, says("access denied: %s", name)
	}
	missing := says("failed to get item: item %s was not found", name)
	switch op {
	case opDescribe:
		if alias := g.aliases[name]; alias != "" {
			name = alias
		}
		item := map[string]any{"item_name": name, "last_version": g.versions[name], "item_general_info": map[string]any{}}
		switch {
		case g.statics[name] != nil:
			item["item_type"] = static
		case g.rotated[name] != nil:
			item["item_type"] = rotated
		case g.certs[name] != nil:
			item["item_type"] = certificate
		case g.dynamics[name] != nil:
			item["item_type"] = dynamic
			item["item_general_info"] = map[string]any{"dynamic_secret_producer_details": map[string]any{"user_ttl": "30m"}}
		case strings.HasPrefix(name, "/key/"):
			item["item_type"] = "CLASSIC_KEY"
		default:
			return http.StatusNotFound, missing
		}
		return http.StatusOK, item
	case opStatic:
		values := map[string]any{}
		for _, one := range body["names"].([]any) {
			one := "/" + strings.TrimPrefix(one.(string), "/")
			value, ok := g.statics[one]
			if !ok {
				return http.StatusNotFound, says("item %s was not found", one)
			}
			if g.denied[one] {
				return http.StatusForbidden, says("access denied: %s", one)
			}
			values[one] = value
		}
		return http.StatusOK, values
	case opRotated:
		if g.rotated[name] == nil {
			return http.StatusNotFound, missing
		}
		return http.StatusOK, map[string]any{"value": g.rotated[name]}
	case opCertificate:
		if g.certs[name] == nil {
			return http.StatusNotFound, missing
		}
		return http.StatusOK, g.certs[name]
	case opDynamic:
		if g.dynamics[name] == nil {
			return http.StatusNotFound, missing
		}
		made := maps.Clone(g.dynamics[name])
		l := &lease{item: name, id: fmt.Sprintf("tmp.%d", len(g.leases)+1)}
		g.leases = append(g.leases, l)
		if made["id"] == nil {
			made["id"] = l.id
		}
		return http.StatusOK, made
	case opRevoke:
		for _, l := range g.leases {
			if l.item == name && l.id == body["tmp-creds-id"] && !l.deleted {
				l.deleted = true
				return http.StatusCreated, nil
			}
		}
		return http.StatusNotFound, says("temporary credentials were not found")
	}
	return http.StatusInternalServerError, says("?")
}

// login answers /auth. Callers hold g.mu.
func (g *gateway) login(body map[string]any) (int, any) {
	var who string
	switch body["access-type"] {
	case "access_key":
		if body["access-key"] == accessKey {
			who = "key"
		}
	case "k8s":
		jwt, _ := base64.StdEncoding.DecodeString(fmt.Sprint(body["k8s-service-account-token"]))
		if body["k8s-auth-config-name"] == "cluster" && strings.Count(string(jwt), ".") == 2 {
			who = string(jwt)
		}
	case "jwt":
		if jwt, _ := body["jwt"].(string); strings.Count(jwt, ".") == 2 {
			who = jwt
		}
	}
	if who == "" || body["access-id"] != "p-123456" || g.denied[opAuth] {
		return http.StatusUnauthorized, says("authentication failed: %v", body["access-key"])
	}
	g.logins++
	token := fmt.Sprintf("t-canary-token-%d", g.logins)
	g.tokens[token] = who
	answer := map[string]any{"token": token, "creds": map[string]any{"expiry": 1}}
	if g.expires != "" {
		answer["expiration"] = g.expires
	}
	return http.StatusOK, answer
}

// jwt returns a pod's token.
func jwt(pod, audience string) string {
	claims := fmt.Sprintf(`{"iss":"https://issuer.example","sub":"system:serviceaccount:shop:web","aud":[%q],"exp":4000000000,
		"kubernetes.io":{"namespace":"shop","pod":{"name":%q,"uid":"uid-of-%s"},"serviceaccount":{"name":"web","uid":"s1"}}}`, audience, pod, pod)
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".Y2FuYXJ5LXNpZ25hdHVyZQ"
}

// volume is a volume of a pod, and keeps what a driver would.
type volume struct {
	t     testing.TB
	p     *Provider
	req   provider.Request
	kept  []string // each state that was kept
	keeps func() error
}

// shop returns the provider and a volume of its class, whose gateway is g, in
// memory.
func shop(t testing.TB, g *gateway, objects string) *volume {
	t.Helper()
	p := New()
	p.clients.Dial = func(*tls.Config) http.RoundTripper { return inMemory{g} }
	return podOf(t, p, "web-1", objects)
}

func podOf(t testing.TB, p *Provider, pod, objects string) *volume {
	v := &volume{t: t, p: p}
	v.req = provider.Request{
		Parameters: map[string]string{
			"akeylessGatewayURL": "https://gateway.example:8080/v2/", "akeylessAccessType": "k8s", "akeylessAccessID": "p-123456",
			"akeylessK8sAuthConfigName": "cluster", "objects": objects,
		},
		Mode: provider.DefaultMode, Pod: provider.Pod{Namespace: "shop", Name: pod, UID: "uid-of-" + pod, ServiceAccount: "web"},
		Tokens: map[string]provider.Token{"akeyless": {Value: secret.FromString(jwt(pod, "akeyless"))}},
		Keep: func(state secret.Value) error {
			if v.keeps != nil {
				if err := v.keeps(); err != nil {
					return err
				}
			}
			v.req.State = state
			v.kept = append(v.kept, string(state.Reveal()))
			return nil
		},
	}
	return v
}

// with sets parameters, two by two; an empty value removes one.
func (v *volume) with(parameters ...string) *volume {
	for i := 0; i < len(parameters); i += 2 {
		v.req.Parameters[parameters[i]] = parameters[i+1]
		if parameters[i+1] == "" {
			delete(v.req.Parameters, parameters[i])
		}
	}
	return v
}

func (v *volume) fetch() (provider.Result, error) { return v.p.Fetch(v.t.Context(), v.req) }

// mount fetches and mounts.
func (v *volume) mount() provider.Result {
	v.t.Helper()
	result, err := v.fetch()
	if err != nil {
		v.t.Fatal(err)
	}
	v.req.Mounted = result.Versions
	return result
}

// inMemory is a network that a test with a clock of its own can have.
type inMemory struct{ http.Handler }

func (m inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	recorder := httptest.NewRecorder()
	m.ServeHTTP(recorder, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return recorder.Result(), nil
}

// overTLS returns a volume whose gateway is one behind TLS, with a CA of its own.
func overTLS(t *testing.T, h http.Handler, objects string) (*volume, *httptest.Server) {
	t.Helper()
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return podOf(t, New(), "web-1", objects).with("akeylessGatewayURL", server.URL, "akeylessCACert", string(ca)), server
}

// shown is a result as a test compares it.
func shown(r provider.Result) string {
	var b strings.Builder
	for _, f := range r.Files {
		fmt.Fprintf(&b, "%s %04o %q\n", f.Path, f.Mode, f.Contents.Reveal())
	}
	for _, v := range r.Versions {
		fmt.Fprintf(&b, "%s = %s\n", v.ID, v.Version)
	}
	return b.String()
}

// wantError fails the test unless err is of a kind, says words and shows no secret.
func wantError(t testing.TB, err error, kind provider.Kind, words ...string) {
	t.Helper()
	if err == nil || provider.KindOf(err) != kind {
		t.Fatalf("got %v of kind %v, want %v", err, provider.KindOf(err), kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\ndoes not say %q", err, w)
		}
	}
	hidesSecrets(t, err)
}

func hidesSecrets(t testing.TB, err error) {
	t.Helper()
	pods := jwt("web-1", "akeyless")
	for _, hidden := range []string{canary, accessKey, uidToken, pods, base64.StdEncoding.EncodeToString([]byte(pods)), "t-canary-token", "canary"} {
		if strings.Contains(err.Error(), hidden) {
			t.Errorf("%v\nshows a secret", err)
		}
	}
}

const minute = time.Minute

func checkText(s *schema, text string) error {
	var value any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		return err
	}
	return vendors().check("it", s, value)
}
