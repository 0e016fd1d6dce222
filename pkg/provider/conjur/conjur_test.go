package conjur

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const canary = "canary-value-of-a-secret"

// podToken returns a token as kubelet brings it, with claims in place of its own.
func podToken(claims map[string]any) string {
	payload := map[string]any{
		"iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:shop:web", "aud": []string{"conjur"}, "exp": time.Now().Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": "shop", "pod": map[string]string{"name": "web-1", "uid": "p1"}, "serviceaccount": map[string]string{"name": "web", "uid": "s1"}},
	}
	maps.Copy(payload, claims)
	encoded, err := json.Marshal(payload)
	if err != nil {
		panic(err)
	}
	return "e30." + base64.RawURLEncoding.EncodeToString(encoded) + ".c2lnbmF0dXJl"
}

func tokens(token string) map[string]provider.Token {
	return map[string]provider.Token{"conjur": {Value: secret.FromString(token)}}
}

// mount returns a Provider and the request of a volume whose class leads to s.
func mount(t *testing.T, s *standIn, parameters ...string) (*Provider, provider.Request) {
	t.Helper()
	address, certificate := s.serve(t)
	s.hosts["system:serviceaccount:shop:web"] = "host/web"
	req := provider.Request{
		Parameters: map[string]string{urlKey: address, certificateKey: certificate, accountKey: s.account, authnKey: "authn-jwt/" + s.service, versionKey: "0.1.0"},
		Mode:       provider.DefaultMode, Tokens: tokens(podToken(nil)),
		Pod: provider.Pod{Namespace: "shop", Name: "web-1", UID: "p1", ServiceAccount: "web"},
	}
	for i := 0; i < len(parameters); i += 2 {
		req.Parameters[parameters[i]] = parameters[i+1]
	}
	return New(), req
}

// shown is what a result holds, versions as their number only.
func shown(r provider.Result) string {
	var b strings.Builder
	for _, f := range r.Files {
		fmt.Fprintf(&b, "%s %04o %q\n", f.Path, f.Mode, f.Contents.Reveal())
	}
	for _, v := range r.Versions {
		fmt.Fprintf(&b, "%s=%d\n", v.ID, len(v.Version))
	}
	return b.String()
}

func wantError(t *testing.T, err error, kind provider.Kind, words ...string) {
	t.Helper()
	if err == nil || provider.KindOf(err) != kind {
		t.Fatalf("got %v of kind %v, want %v", err, provider.KindOf(err), kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\ndoes not say %q", err, w)
		}
	}
	for _, hidden := range []string{canary, base64.StdEncoding.EncodeToString([]byte(canary))[:24], "c2lnbmF0dXJl", "e30.", "Token token", `"payload"`, "variable_ids="} {
		if strings.Contains(fmt.Sprintf("%v %+v", err, err), hidden) {
			t.Errorf("%v\nshows a secret: %q", err, hidden)
		}
	}
}

func TestFilesInTheOrderOfTheClass(t *testing.T) {
	s := newStandIn()
	s.variables = map[string]string{
		"db/password": strings.Repeat("long enough for two lines of base64, ", 3), "db/url": "postgres://db", "bytes": "\x00\xff",
		"doc": `{"user":"app","port":5432}`, "packed": "AAEC", "a": "1",
	}
	p, req := mount(t, s, secretsKey, `
- "relative/path/fileB.txt": "db/password"
- relative/path/fileA.txt: db/url
- ./z//raw: bytes
- {objectName: doc, objectAlias: user, extractJSONKey: user, filePermission: "0400"}
- {objectName: packed, encoding: base64, optional: true}
- again: db/url
- {objectName: absent, objectAlias: absent, optional: true}
- {objectName: doc, objectAlias: absent2, extractJSONKey: none, optional: true}
- objectName: a
`)
	r, err := p.Fetch(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`relative/path/fileB.txt 0644 %q
relative/path/fileA.txt 0644 "postgres://db"
z/raw 0644 "\x00\xff"
user 0400 "app"
packed 0644 "\x00\x01\x02"
again 0644 "postgres://db"
objectName 0644 "1"
db/password=22
db/url=22
bytes=22
doc=22
packed=22
a=22
`, s.variables["db/password"])
	if got := shown(r); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// One login; the required in one batch, the optional in another, which is
	// refused for the absent one and asked for one by one.
	if got := s.served(); len(got) != 1+2+2 {
		t.Errorf("the requests are\n%s", strings.Join(got, "\n"))
	}
}

func TestTheMappingIsTheAnnotationsBeforeTheClasss(t *testing.T) {
	const ofClass = `- "of-class": "a"`
	annotations := func(text string, err error) func(context.Context) (map[string]string, error) {
		return func(context.Context) (map[string]string, error) {
			return map[string]string{"conjur.org/secrets": text, "other": "- x: y"}, err
		}
	}
	unavailable := &provider.Error{Kind: provider.Unavailable, Err: errors.New("the API server is away")}
	for name, tc := range map[string]struct {
		version, secrets string
		annotations      func(context.Context) (map[string]string, error)
		mounted          bool
		file             string
		kind             provider.Kind
		says             []string
	}{
		"0.1.0 knows the class alone":          {"0.1.0", ofClass, annotations(`- "of-pod": "a"`, nil), false, "of-class", 0, nil},
		"0.2.0 prefers the pod":                {"0.2.0", ofClass, annotations(`- "of-pod": "a"`, nil), false, "of-pod", 0, nil},
		"0.2.0 is the default":                 {"", ofClass, annotations(`- "of-pod": "a"`, nil), false, "of-pod", 0, nil},
		"0.2.0 needs no list in the class":     {"0.2.0", "", annotations(`- "of-pod": "a"`, nil), false, "of-pod", 0, nil},
		"an empty annotation is none":          {"0.2.0", ofClass, annotations(" \n", nil), false, "of-class", 0, nil},
		"the class stands in for a right":      {"0.2.0", ofClass, nil, false, "of-class", 0, nil},
		"the class stands in for a failure":    {"0.2.0", ofClass, annotations("", unavailable), false, "of-class", 0, nil},
		"but not while the pod's are mounted":  {"0.2.0", ofClass, annotations("", unavailable), true, "", provider.Unavailable, []string{"shop/web-1", `annotation "conjur.org/secrets" cannot be read`}},
		"nor while the pod is gone":            {"0.2.0", ofClass, annotations("", &provider.Error{Kind: provider.NotFound}), true, "", provider.NotFound, nil},
		"a lack of rights is no mount's end":   {"0.2.0", ofClass, annotations("", &provider.Error{Kind: provider.Denied}), true, "of-class", 0, nil},
		"neither right nor class":              {"0.2.0", "", nil, false, "", provider.Denied, []string{"pod shop/web-1", "conjur.podAnnotations=true", `parameter "secrets"`}},
		"neither answer nor class":             {"0.2.0", "", annotations("", unavailable), false, "", provider.Unavailable, []string{"the API server is away", "conjur.podAnnotations=true", `parameter "secrets"`}},
		"neither annotation nor class":         {"0.2.0", "", annotations("", nil), false, "", provider.Invalid, []string{`no annotation "conjur.org/secrets"`, `no parameter "secrets"`}},
		"a broken annotation has no stand-in":  {"0.2.0", ofClass, annotations("- a: b\n - c", nil), false, "", provider.Invalid, []string{`pod shop/web-1: annotation "conjur.org/secrets", line `, "not YAML"}},
		"a mistake in the annotation":          {"0.2.0", ofClass, annotations("- ../a: b", nil), false, "", provider.Invalid, []string{`annotation "conjur.org/secrets", line 1`, "../a"}},
		"an annotation that is not a list":     {"0.2.0", ofClass, annotations("a: b", nil), false, "", provider.Invalid, []string{`annotation "conjur.org/secrets"`}},
		"an annotation that lists nothing":     {"0.2.0", ofClass, annotations("[]", nil), false, "", provider.Invalid, []string{`annotation "conjur.org/secrets"`, "lists nothing"}},
		"an odd annotation is no mistake":      {"0.2.0", "", annotations("- objectName: a", nil), false, "objectName", 0, nil},
		"an annotation may use our own fields": {"0.2.0", "", annotations("- {objectName: a, objectAlias: own}", nil), false, "own", 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn()
			s.variables["a"] = canary
			p, req := mount(t, s, versionKey, tc.version, secretsKey, tc.secrets)
			req.Annotations = tc.annotations
			if tc.mounted {
				req.Mounted = []provider.ObjectVersion{{ID: "a", Version: "v"}}
			}
			r, err := p.Fetch(t.Context(), req)
			if tc.file == "" {
				wantError(t, err, tc.kind, tc.says...)
				return
			}
			if err != nil || len(r.Files) != 1 || r.Files[0].Path != tc.file {
				t.Errorf("got %v, %v", r.Files, err)
			}
		})
	}
}

func TestNoPodLogsInForAnother(t *testing.T) {
	s := newStandIn()
	s.variables["a"] = "1"
	p, req := mount(t, s, secretsKey, "- a: a")
	logins := func() int {
		n := 0
		for _, r := range s.served() {
			if strings.HasPrefix(r, "POST") {
				n++
			}
		}
		return n
	}
	fetch := func(change func(*provider.Request)) {
		t.Helper()
		other := req
		other.Parameters = maps.Clone(req.Parameters)
		if change != nil {
			change(&other)
		}
		if _, err := p.Fetch(t.Context(), other); err != nil {
			t.Fatal(err)
		}
	}
	fetch(nil)
	fetch(nil)
	fetch(func(r *provider.Request) { r.Parameters[secretsKey] = "- b: a" })
	fetch(func(r *provider.Request) { // a token of the same pod, renewed
		r.Tokens = tokens(podToken(map[string]any{"exp": time.Now().Add(2 * time.Hour).Unix(), "jti": "2"}))
	})
	if n := logins(); n != 1 {
		t.Errorf("volumes of one pod took %d logins", n)
	}
	for name, change := range map[string]func(*provider.Request){
		"another pod": func(r *provider.Request) {
			r.Tokens = tokens(podToken(map[string]any{"kubernetes.io": map[string]any{"namespace": "shop", "pod": map[string]string{"name": "web-1", "uid": "p2"}, "serviceaccount": map[string]string{"name": "web", "uid": "s1"}}}))
		},
		"another issuer":   func(r *provider.Request) { r.Tokens = tokens(podToken(map[string]any{"iss": "other"})) },
		"another identity": func(r *provider.Request) { r.Parameters[identityKey] = "host/web" },
		"another CA":       func(r *provider.Request) { r.Parameters[certificateKey] += r.Parameters[certificateKey] },
	} {
		fetch(change)
		if n := logins(); n != 1 {
			t.Errorf("%s took %d logins", name, n)
		}
	}
	// What is in the cache helps nobody whom Conjur does not know.
	req.Tokens = tokens(podToken(map[string]any{"sub": "system:serviceaccount:shop:stranger"}))
	_, err := p.Fetch(t.Context(), req)
	wantError(t, err, provider.Denied, "system:serviceaccount:shop:stranger")
}

func TestFirstRequestsShareOneLogin(t *testing.T) {
	s := newStandIn()
	s.variables["a"] = "1"
	p, req := mount(t, s, secretsKey, "- a: a")
	arrived, goOn := make(chan struct{}), make(chan struct{})
	s.instead = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			close(arrived) // a second login would close it again
			<-goOn
		}
		return false
	}
	first, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := p.Fetch(first, req)
		done <- err
	}()
	<-arrived
	cancel() // of the first, whose login others wait for
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the first has %v", err)
	}
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() {
			if _, err := p.Fetch(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
	}
	close(goOn)
	wait.Wait()
}

// inMemory answers requests without a network, so that synctest has its clock.
type inMemory struct{ http.Handler }

func (h inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result(), nil
}

func TestAccessTokensAreReplacedInTime(t *testing.T) {
	for name, tc := range map[string]struct {
		life   time.Duration
		silent bool
		renew  time.Duration
	}{
		"which say nothing":        {0, true, 5 * time.Minute},
		"of the usual life":        {0, false, 408 * time.Second},
		"of a life of their own":   {time.Hour, false, 51 * time.Minute},
		"of a life of ten seconds": {10 * time.Second, false, 8500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn()
			s.variables["a"], s.life, s.silent = "1", tc.life, tc.silent
			_, certificate := s.serve(t)
			synctest.Test(t, func(t *testing.T) {
				s.hosts["system:serviceaccount:shop:web"] = "host/web"
				p := New()
				p.clients.Dial = func(*tls.Config) http.RoundTripper { return inMemory{s} }
				fetch := func(want int) {
					t.Helper()
					_, err := p.Fetch(t.Context(), provider.Request{Mode: provider.DefaultMode, Tokens: tokens(podToken(nil)), Parameters: map[string]string{
						urlKey: "https://conjur", certificateKey: certificate, accountKey: "myorg", authnKey: "authn-jwt/kube", versionKey: "0.1.0", secretsKey: "- a: a",
					}})
					if err != nil || s.issued != want {
						t.Errorf("%d logins, want %d; %v", s.issued, want, err)
					}
				}
				fetch(1)
				time.Sleep(tc.renew - time.Second/4)
				fetch(1)
				time.Sleep(time.Second / 2)
				fetch(2)
			})
		})
	}
}

func TestAnAccessTokenThatIsNotAcceptedIsReplacedOnce(t *testing.T) {
	s := newStandIn()
	s.variables["a"] = "1"
	p, req := mount(t, s, secretsKey, "- a: a")
	for range 2 {
		if _, err := p.Fetch(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		s.revoke()
	}
	if s.issued != 2 {
		t.Errorf("%d logins", s.issued)
	}
	s.instead = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, canary)
		}
		return r.Method == http.MethodGet
	}
	s.served()
	_, err := p.Fetch(t.Context(), req)
	wantError(t, err, provider.Denied, "conjur at https://127.0.0.1", "the access token is not accepted", "401")
	if got := s.served(); len(got) != 3 {
		t.Errorf("the requests are\n%s", strings.Join(got, "\n"))
	}
}

func TestTheCulpritIsNamed(t *testing.T) {
	s := newStandIn()
	s.variables = map[string]string{"a": canary, "b": canary, "hidden": canary}
	s.hidden = []string{"hidden"}
	fetch := func(list string) error {
		p, req := mount(t, s, secretsKey, list)
		_, err := p.Fetch(t.Context(), req)
		return err
	}
	wantError(t, fetch("- a: a\n- x: no/such\n- b: b"), provider.NotFound, `variable "no/such"`, "CONJ00076E", "has no value, or the host may not see it")
	wantError(t, fetch("- a: a\n- x: hidden\n- b: b"), provider.Denied, `variable "hidden"`, "permit the host to execute")
	wantError(t, fetch("- {objectName: hidden, objectAlias: x, optional: true}"), provider.Denied, `variable "hidden"`)
	err := fetch("- a: n1\n- b: n2\n- c: a\n- d: hidden\n- e: n1")
	wantError(t, err, provider.NotFound, `"n1"`, `"n2"`, `"hidden"`)
	if strings.Count(err.Error(), `"n1"`) != 1 || strings.Contains(err.Error(), `"a"`) {
		t.Errorf("got %v", err)
	}
	var many strings.Builder
	for i := range 30 {
		fmt.Fprintf(&many, "- f%d: none/%d\n", i, i)
	}
	wantError(t, fetch(many.String()), provider.NotFound, "none/0", "none/7", "and 22 more")
	// An object that may be missing does not make its variable so for another.
	wantError(t, fetch("- {objectName: n1, objectAlias: x, optional: true}\n- a: n1"), provider.NotFound, `"n1"`)
	// A whole batch that is refused for its size is served one by one.
	s.perBatch = 1
	if err := fetch("- a: a\n- b: b"); err != nil {
		t.Error(err)
	}
	var known *provider.Error
	if err := fetch("- x: no/such"); !errors.As(err, &known) || known.Code != "CONJ00076E" {
		t.Errorf("the code is %q", known.Code)
	}
}

func TestManyVariablesAreAskedForInBatches(t *testing.T) {
	for name, tc := range map[string]struct {
		n, length, batches int
	}{"by their number": {250, 8, 3}, "by their length": {40, 400, 3}, "too long for any": {2, 6500, 2}} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn()
			var list strings.Builder
			for i := range tc.n {
				id := fmt.Sprintf("%0*d", tc.length, i)
				s.variables[id] = fmt.Sprint("value ", i)
				fmt.Fprintf(&list, "- \"%d\": \"%s\"\n- \"again%d\": \"%s\"\n", i, id, i, id)
			}
			p, req := mount(t, s, secretsKey, list.String())
			r, err := p.Fetch(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for i, f := range r.Files {
				if want := fmt.Sprint("value ", i/2); string(f.Contents.Reveal()) != want {
					t.Errorf("file %s holds %q, want %q", f.Path, f.Contents.Reveal(), want)
				}
			}
			if got := len(s.served()) - 1; got != tc.batches || len(r.Files) != 2*tc.n || len(r.Versions) != tc.n {
				t.Errorf("%d batches, %d files, %d versions", got, len(r.Files), len(r.Versions))
			}
		})
	}
}

func TestNamesOfAnyCharacters(t *testing.T) {
	for _, name := range []string{"a b", "a/b", "a%2Fb", "100%", "a,b", "a:b", "a+b", "a&b=c", "a?b#c", "Größe/密码", `a"b`, "..", "a;b", "host/prod/"} {
		s := newStandIn()
		s.account, s.service = name, strings.ReplaceAll(name, "%", "!")
		s.variables[name], s.variables["x"] = "value", "x"
		p, req := mount(t, s)
		s.hosts["system:serviceaccount:shop:web"] = name
		req.Parameters[identityKey] = name
		list, _ := json.Marshal([]map[string]string{{"f": name}, {"x": "x"}})
		req.Parameters[secretsKey] = string(list)
		r, err := p.Fetch(t.Context(), req)
		if err != nil || string(r.Files[0].Contents.Reveal()) != "value" || r.Versions[0].ID != name {
			t.Errorf("%q: %v, %v", name, r, err)
		}
	}
	s := newStandIn() // a service with a slash, which the other provider sends as it is
	s.service, s.variables["a"] = "prod/gke", "1"
	p, req := mount(t, s, authnKey, "authn-jwt/prod%2Fgke", secretsKey, "- a: a")
	if _, err := p.Fetch(t.Context(), req); err != nil {
		t.Error(err)
	}
}

func TestEveryAnswerHasItsError(t *testing.T) {
	status := func(code int, headers ...string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			for i := 0; i < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, `{"error":{"message":"CONJ00099E `+canary+`"}}`)
		}
	}
	text := func(encoding, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Encoding", encoding)
			_, _ = io.WriteString(w, body)
		}
	}
	short := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "1000")
		w.Header().Set("Content-Encoding", "base64")
		_, _ = io.WriteString(w, `{"myorg:variable:a":"`+canary)
	}
	encoded := base64.StdEncoding.EncodeToString([]byte(canary))
	access := func(payload string) string {
		return `{"protected":"` + canary + `","payload":"` + base64.StdEncoding.EncodeToString([]byte(payload)) + `","signature":"` + canary + `"}`
	}
	for name, tc := range map[string]struct {
		method string
		answer func(http.ResponseWriter)
		kind   provider.Kind
		says   []string
	}{
		"login 401": {"POST", status(401), provider.Denied, []string{"log in: the answer is 401 Unauthorized (CONJ00099E)", `issuer "https://kubernetes.default.svc"`, `subject "system:serviceaccount:shop:web"`,
			`audience "conjur"`, "valid until 2", "authn-jwt/kube", `account "myorg"`, `identity "host/web"`, "Conjur's log"}},
		"login 403":                  {"POST", status(403), provider.Denied, []string{`identity "host/web"`, "permit the host to authenticate"}},
		"login 404":                  {"POST", status(404), provider.NotFound, []string{"authn-jwt/kube", `"myorg"`, "correct authnId, account or applianceUrl"}},
		"login 400":                  {"POST", status(400), provider.Invalid, []string{"400"}},
		"login 429":                  {"POST", status(429, "Retry-After", "3"), provider.Throttled, nil},
		"login 503":                  {"POST", status(503, "Retry-After", "3"), provider.Unavailable, []string{"503"}},
		"login 301":                  {"POST", status(301, "Location", "https://elsewhere"), provider.Invalid, []string{"redirects are not followed"}},
		"login not JSON":             {"POST", text("", "<html>"+canary), provider.Internal, []string{"not an access token", "is applianceUrl that of Conjur?"}},
		"login without payload":      {"POST", text("", `{"protected":"`+canary+`"}`), provider.Internal, []string{"not an access token"}},
		"login with broken payload":  {"POST", text("", access(canary)), provider.Internal, []string{"payload of the access token cannot be read"}},
		"login with a dead token":    {"POST", text("", access(`{"iat":100,"exp":100}`)), provider.Internal, []string{"over already"}},
		"login in gzip":              {"POST", text("gzip", canary), provider.Internal, []string{`Content-Encoding "gzip" in place of "identity"`}},
		"login cut off":              {"POST", short, provider.Internal, []string{"Content-Encoding"}},
		"batch 400":                  {"GET", status(400), provider.Invalid, []string{"read variables: the answer is 400"}},
		"batch 429":                  {"GET", status(429, "Retry-After", "3"), provider.Throttled, nil},
		"batch 500":                  {"GET", status(500), provider.Unavailable, []string{"500"}},
		"batch 302":                  {"GET", status(302, "Location", "/elsewhere"), provider.Invalid, []string{"redirects are not followed"}},
		"batch 418":                  {"GET", status(418), provider.Internal, []string{"418"}},
		"batch 403":                  {"GET", status(403), provider.Denied, []string{`variable "a": read it: the answer is 403`}},
		"batch 404":                  {"GET", status(404), provider.NotFound, []string{`variable "a"`}},
		"batch 406":                  {"GET", status(406), provider.Invalid, []string{`variable "a"`}},
		"batch 422":                  {"GET", status(422), provider.Invalid, []string{`variable "a"`, "correct the variable's id"}},
		"batch not in base64":        {"GET", text("", `{"myorg:variable:a":"`+canary+`"}`), provider.Internal, []string{`Content-Encoding "" in place of "base64"`}},
		"batch not JSON":             {"GET", text("base64", canary), provider.Internal, []string{"not a JSON object"}},
		"batch null":                 {"GET", text("base64", "null"), provider.Internal, []string{"not a JSON object"}},
		"batch with a broken value":  {"GET", text("base64", `{"myorg:variable:a":"`+canary+`!"}`), provider.Internal, []string{"not a JSON object with values in base64"}},
		"batch with a null":          {"GET", text("base64", `{"myorg:variable:a":null}`), provider.Internal, []string{`variable "a"`, "leaves it out"}},
		"batch that leaves one out":  {"GET", text("base64", `{"myorg:variable:z":"`+encoded+`"}`), provider.Internal, []string{`variable "a"`, "leaves it out"}},
		"batch cut off":              {"GET", short, provider.Unavailable, []string{"ended early"}},
		"batch without end":          {"GET", text("base64", strings.Repeat(canary, maxAnswerBytes/len(canary)+1)), provider.TooLarge, []string{"more than 16777216 bytes"}},
		"connection that breaks off": {"GET", func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, provider.Unavailable, []string{"there is no answer"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn()
			p, req := mount(t, s, identityKey, "host/web", secretsKey, "- a: a")
			s.instead = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == tc.method {
					tc.answer(w)
				}
				return r.Method == tc.method
			}
			r, err := p.Fetch(t.Context(), req)
			wantError(t, err, tc.kind, append(tc.says, "conjur at https://127.0.0.1")...)
			var known *provider.Error
			if errors.As(err, &known) && strings.Contains(name, "429") && known.RetryAfter != 3*time.Second {
				t.Errorf("the wait is %v", known.RetryAfter)
			}
			if len(r.Files)+len(r.Versions) > 0 {
				t.Error("there are files beside the error")
			}
		})
	}
}

func TestAnErrorOfOneOfManyEndsAll(t *testing.T) {
	s := newStandIn()
	s.variables["a"] = canary
	p, req := mount(t, s, secretsKey, "- a: a\n- b: with,comma")
	s.instead = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/secrets/") {
			w.WriteHeader(http.StatusBadGateway)
		}
		return strings.HasPrefix(r.URL.Path, "/secrets/")
	}
	_, err := p.Fetch(t.Context(), req)
	wantError(t, err, provider.Unavailable, `variable "with,comma": read it: the answer is 502`)
}

func TestACallerDoesNotWaitLongerThanItWants(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodGet} {
		s := newStandIn()
		p, req := mount(t, s, secretsKey, "- a: a")
		block := make(chan struct{})
		t.Cleanup(func() { close(block) })
		s.instead = func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == method {
				<-block
			}
			return false
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := p.Fetch(ctx, req)
		op := map[string]string{http.MethodPost: "log in", http.MethodGet: "read variables"}[method]
		wantError(t, err, provider.Unavailable, "conjur at https://127.0.0.1", op, "deadline exceeded")
	}
}

func TestThePodsTokenMustBeOfUse(t *testing.T) {
	s := newStandIn()
	s.variables["a"] = canary
	p, req := mount(t, s, secretsKey, "- a: a")
	for name, tc := range map[string]struct {
		tokens map[string]provider.Token
		kind   provider.Kind
		says   []string
	}{
		"none":                 {nil, provider.Denied, []string{`audience "conjur"`, "tokenRequests"}},
		"for another audience": {map[string]provider.Token{"vault": {Value: secret.FromString(podToken(nil))}}, provider.Denied, []string{`audience "conjur"`, "tokenRequests", `"vault"`}},
		"over, says kubelet":   {map[string]provider.Token{"conjur": {Value: secret.FromString(podToken(nil)), Expires: time.Now().Add(-time.Second)}}, provider.Unavailable, []string{"ended at"}},
		"over, says the token": {tokens(podToken(map[string]any{"exp": time.Now().Add(-time.Minute).Unix()})), provider.Unavailable, []string{"is over", "valid until"}},
		"not a JWT":            {tokens(canary), provider.Denied, []string{"cannot be read"}},
	} {
		t.Run(name, func(t *testing.T) {
			req := req
			req.Tokens = tc.tokens
			_, err := p.Fetch(t.Context(), req)
			wantError(t, err, tc.kind, tc.says...)
		})
	}
	if got := s.served(); len(got) > 0 {
		t.Errorf("Conjur was asked: %q", got)
	}
}

// certificate makes a certificate for names, valid until then, which signs itself.
func certificate(t *testing.T, until time.Time, names ...string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Some Company CA"}, DNSNames: names, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until, IPAddresses: []net.IP{},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestOnlyTheCertificateOfTheClassIsTrusted(t *testing.T) {
	later := time.Now().Add(time.Hour)
	good, goodPEM := certificate(t, later, "127.0.0.1")
	_, otherPEM := certificate(t, later, "127.0.0.1")
	strange, strangePEM := certificate(t, later, "conjur.example.com")
	old, oldPEM := certificate(t, time.Now().Add(-time.Hour), "127.0.0.1")
	for name, tc := range map[string]struct {
		server tls.Certificate
		class  string
		system string
		kind   provider.Kind
		says   []string
	}{
		"that of the class":        {good, goodPEM, "", 0, nil},
		"one of several":           {good, otherPEM + goodPEM, "", 0, nil},
		"a public one":             {good, "", goodPEM, 0, nil},
		"another":                  {good, otherPEM, "", provider.Invalid, []string{"Some Company CA", "does not match sslCertificate"}},
		"a public one beside it":   {good, otherPEM, goodPEM, provider.Invalid, []string{"does not match sslCertificate"}},
		"none":                     {good, "", otherPEM, provider.Invalid, []string{"Some Company CA", "of no public CA", "into sslCertificate"}},
		"for another name":         {strange, strangePEM, "", provider.Invalid, []string{"for another name", "applianceUrl"}},
		"one that is over already": {old, oldPEM, "", provider.Unavailable, []string{"not valid now"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn()
			s.variables["a"] = "1"
			p, req := mount(t, s, secretsKey, "- a: a")
			server := httptest.NewUnstartedServer(s)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{tc.server}}
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.StartTLS()
			t.Cleanup(server.Close)
			req.Parameters[urlKey], req.Parameters[certificateKey] = server.URL, tc.class
			if tc.system != "" {
				p.clients.System = x509.NewCertPool()
				p.clients.System.AppendCertsFromPEM([]byte(tc.system))
			}
			_, err := p.Fetch(t.Context(), req)
			if tc.says != nil {
				wantError(t, err, tc.kind, tc.says...)
				if got := s.served(); len(got) > 0 {
					t.Errorf("it was asked: %q", got)
				}
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNothingIsSentElsewhere(t *testing.T) {
	elsewhere := newStandIn()
	address, _ := elsewhere.serve(t)
	s := newStandIn()
	p, req := mount(t, s, secretsKey, "- a: a")
	for _, code := range []int{301, 302, 303, 307, 308} {
		s.instead = func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, address+r.URL.RequestURI(), code)
			return true
		}
		_, err := p.Fetch(t.Context(), req)
		wantError(t, err, provider.Invalid, fmt.Sprint(code), "redirects are not followed")
	}
	if got := elsewhere.served(); len(got) > 0 {
		t.Errorf("the other server was asked: %q", got)
	}
}

func TestVersionsTellNothingOfValues(t *testing.T) {
	s := newStandIn()
	s.variables["a"], s.variables["b"] = canary, canary
	p, req := mount(t, s, secretsKey, "- a: a\n- b: b")
	versions := func(p *Provider, key string) []string {
		t.Helper()
		req := req
		req.Key = secret.FromString(key)
		r, err := p.Fetch(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return []string{r.Versions[0].Version, r.Versions[1].Version}
	}
	first := versions(p, "key of the node")
	if !slices.Equal(first, versions(New(), "key of the node")) {
		t.Error("versions change without a change, at a restart")
	}
	if first[0] == first[1] {
		t.Error("two variables show that they have one value")
	}
	if other := versions(p, "key of another node"); first[0] == other[0] || first[1] == other[1] {
		t.Error("two nodes have the same versions: no key is in them")
	}
	s.variables["a"] = "another"
	if second := versions(p, "key of the node"); second[0] == first[0] || second[1] != first[1] {
		t.Errorf("after a change of a: %q, %q", first, second)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"myorg:variable:a":"YQ==\n"}`))
	f.Add([]byte(`{"a":null,"b":1}`))
	f.Add([]byte(`{"protected":"e30=","payload":"eyJpYXQiOjEsImV4cCI6NDgxfQ==","signature":"s"}`))
	f.Add([]byte(`{"protected":"e30=","payload":"eyJpYXQiOjFlOTksImV4cCI6MWUzMDB9","signature":"s"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if values, err := decodeBatch(slices.Clone(body)); (values == nil) == (err == nil) {
			t.Errorf("%d values and %v", len(values), err)
		}
		life, renew, err := accessTimes(body)
		if err == nil && (renew <= 0 || renew >= life || life > 24*time.Hour) {
			t.Errorf("a token of %v is replaced after %v", life, renew)
		}
	})
}
