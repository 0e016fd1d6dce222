package kubernetes

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	token  = "eyJhbGciOi.the-pods-token.signature"
	canary = "canary-value-of-a-secret"
)

// api stands in for an API server, with the answers that a real one gives; the
// whole-system tests in test/e2e ask a real one.
type api struct {
	mu       sync.Mutex
	requests []string
	answer   func(w http.ResponseWriter, r *http.Request)
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.requests = append(a.requests, r.Method+" "+r.URL.Path)
	a.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer "+token {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	a.answer(w, r)
}

func encoded(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func objects(w http.ResponseWriter, r *http.Request) {
	object := map[string]any{"metadata": map[string]string{"uid": "u", "resourceVersion": "7"}}
	switch r.URL.Path {
	case "/api/v1/namespaces/shop/secrets/db":
		object["data"] = map[string]string{"user": encoded("app"), "password": encoded(canary), "empty": ""}
	case "/api/v1/namespaces/shop/configmaps/settings":
		object["data"], object["binaryData"] = map[string]string{"level": "info"}, map[string]string{"raw": encoded("\x00\xff")}
	case "/api/v1/namespaces/shop/secrets/none":
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"kind":"Status","message":"not found"}`))
		return
	}
	_ = json.NewEncoder(w).Encode(object)
}

func serve(t *testing.T, answer func(http.ResponseWriter, *http.Request)) (*Provider, *api) {
	t.Helper()
	a := &api{answer: answer}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	return New(server.URL+"/", server.Client()), a
}

func request(parameters ...string) provider.Request {
	req := provider.Request{
		Parameters: map[string]string{}, Mode: provider.DefaultMode,
		Pod:    provider.Pod{Namespace: "shop", Name: "web", ServiceAccount: "shopper"},
		Tokens: map[string]provider.Token{"": {Value: secret.FromString(token)}},
	}
	for i := 0; i < len(parameters); i += 2 {
		req.Parameters[parameters[i]] = parameters[i+1]
	}
	return req
}

func shown(r provider.Result) string {
	var b strings.Builder
	for _, f := range r.Files {
		fmt.Fprintf(&b, "%s %04o %q\n", f.Path, f.Mode, f.Contents.Reveal())
	}
	for _, v := range r.Versions {
		fmt.Fprintf(&b, "%s=%s\n", v.ID, v.Version)
	}
	return b.String()
}

func TestKeysOfSecretsAndConfigMaps(t *testing.T) {
	p, a := serve(t, objects)
	r, err := p.Fetch(t.Context(), request("objects", `
- objectName: db
  key: password
  objectAlias: db/pass
  filePermission: "0400"
- {objectName: db, key: user}
- {objectName: settings, objectType: configMap, objectAlias: conf}
- {objectName: db, objectAlias: all}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := `db/pass 0400 "canary-value-of-a-secret"
user 0644 "app"
conf/level 0644 "info"
conf/raw 0644 "\x00\xff"
all/empty 0644 ""
all/password 0644 "canary-value-of-a-secret"
all/user 0644 "app"
secret/db=u/7
configmap/settings=u/7
`
	if got := shown(r); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(a.requests) != 2 {
		t.Errorf("two objects took the requests %q", a.requests)
	}
}

func TestTheTokenIsThePods(t *testing.T) {
	p, _ := serve(t, objects)
	req := request("objects", "- objectName: db", "audience", "cluster")
	req.Tokens = map[string]provider.Token{"": {Value: secret.FromString("another")}, "cluster": {Value: secret.FromString(token)}}
	if _, err := p.Fetch(t.Context(), req); err != nil {
		t.Error(err)
	}
	for _, tokens := range []map[string]provider.Token{nil, {"vault": {Value: secret.FromString(token)}}} {
		req := request("objects", "- objectName: db")
		req.Tokens = tokens
		_, err := p.Fetch(t.Context(), req)
		wantError(t, err, provider.Denied, "no token of the pod for the API server", `list the audience ""`)
	}
}

func wantError(t *testing.T, err error, kind provider.Kind, words ...string) {
	t.Helper()
	if err == nil || provider.KindOf(err) != kind {
		t.Fatalf("got %v of kind %v, want %v", err, provider.KindOf(err), kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v does not say %q", err, w)
		}
	}
	for _, hidden := range []string{token, canary, encoded(canary)} {
		if strings.Contains(err.Error(), hidden) {
			t.Errorf("%v shows a secret", err)
		}
	}
}

func TestEveryAnswerHasItsError(t *testing.T) {
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3")
			w.WriteHeader(code)
			_, _ = w.Write([]byte(`{"kind":"Status","message":"` + canary + `"}`))
		}
	}
	text := func(body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
	}
	for name, tc := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		kind   provider.Kind
		says   []string
	}{
		"not authenticated": {status(401), provider.Denied, []string{"does not accept the pod's token"}},
		"not allowed":       {status(403), provider.Denied, []string{"Secret shop/db", "service account shop/shopper may not", `give it a Role with the verb get on secrets "db"`}},
		"absent":            {status(404), provider.NotFound, []string{"it does not exist"}},
		"throttled":         {status(429), provider.Throttled, nil},
		"down":              {status(503), provider.Unavailable, []string{"503"}},
		"strange":           {status(418), provider.Internal, []string{"418"}},
		"not JSON":          {text("<html>" + canary), provider.Internal, []string{"not JSON"}},
		"not base64":        {text(`{"data":{"a":"` + canary + `!"}}`), provider.Internal, []string{`key "a" cannot be decoded`}},
		"too large":         {text(`{"data":{"a":"` + strings.Repeat("A", maxAnswerBytes) + `"}}`), provider.TooLarge, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := serve(t, tc.answer)
			_, err := p.Fetch(t.Context(), request("objects", "- objectName: db"))
			wantError(t, err, tc.kind, tc.says...)
			var known *provider.Error
			if errors.As(err, &known) && tc.kind == provider.Throttled && known.RetryAfter != 3*time.Second {
				t.Errorf("the wait is %v", known.RetryAfter)
			}
		})
	}
	p, _ := serve(t, objects)
	_, err := p.Fetch(t.Context(), request("objects", "- {objectName: db, key: pasword}"))
	wantError(t, err, provider.NotFound, `Secret shop/db: it has no key "pasword"; it has empty, password, user`)
	_, err = p.Fetch(t.Context(), request("objects", "- objectName: none"))
	wantError(t, err, provider.NotFound, "it has no keys")
	// A server that hangs ends with the deadline.
	block := make(chan struct{})
	p, _ = serve(t, func(http.ResponseWriter, *http.Request) { <-block })
	defer close(block)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = p.Fetch(ctx, request("objects", "- objectName: db"))
	wantError(t, err, provider.Unavailable, "does not answer")
}

func TestMistakesOfAClass(t *testing.T) {
	p := New("http://unused", http.DefaultClient)
	for objects, want := range map[string]string{
		"":                                     `parameter "objects": it is missing`,
		"- key: a":                             `"objectName": it is missing`,
		"- objectName: A_B":                    "cannot be the name of a Secret or ConfigMap",
		"- {objectName: a, objectType: pod}":   `"pod" is neither secret nor configmap`,
		"- {objectName: a, key: a/b}":          `"a/b" cannot be a key`,
		"- {objectName: a, objectAlias: ../b}": `"../b"`,
		"- {objectName: a, filePermission: 9}": "filePermission",
		"- {objectName: a, colour: red}":       `"colour": this provider does not know it`,
		"- {objectName: a, key: k}\n- {objectName: b, key: k}": `entry 1 has the file path "k" too`,
	} {
		found := ""
		for _, problem := range p.Validate(map[string]string{"objects": objects}) {
			found += problem.Error() + "\n"
		}
		if !strings.Contains(found, want) {
			t.Errorf("%q: found %q, want %q", objects, found, want)
		}
	}
	if problems := p.Validate(map[string]string{"objects": "- {objectName: a, key: k, objectAlias: f, filePermission: \"0400\"}", "audience": "x"}); len(problems) > 0 {
		t.Errorf("a good class has %v", problems)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"metadata":{"uid":"u"},"data":{"a":"YQ=="},"binaryData":{"b":"YQ=="}}`), true)
	f.Add([]byte(`{"data":{"a":1}}`), false)
	f.Fuzz(func(t *testing.T, body []byte, ofSecret bool) {
		s := source{configMaps, "a"}
		if ofSecret {
			s.resource = secrets
		}
		var a answer
		if json.Unmarshal(body, &a) != nil {
			return
		}
		c, err := a.contents(s)
		if err == nil && len(c.data) > len(a.Data)+len(a.BinaryData) {
			t.Errorf("%d keys make %d files", len(a.Data), len(c.data))
		}
	})
}
