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
	"github.com/csi-secrets/csi-secrets/test/issuer"
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
	case "/api/v1/namespaces/shop/secrets/odd":
		object["data"] = map[string]string{"json": encoded(`{"a": "` + canary + `", "b": "aGk="}`), "hex": encoded("6869\n"), "yaml": encoded("list: [x, " + canary + "]\n")}
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

func TestAnObjectIsMadeAsItsOptionsSay(t *testing.T) {
	p, a := serve(t, objects)
	r, err := p.Fetch(t.Context(), request("objects", `
- {objectName: odd, key: json, objectAlias: a, extractJSONKey: a}
- {objectName: odd, key: json, objectAlias: b, extractJSONKey: b, encoding: base64}
- {objectName: odd, key: yaml, objectAlias: c, extractYAMLKey: /list/1, filePermission: "0400"}
- {objectName: odd, key: hex, objectAlias: d, encoding: hex}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := "a 0644 \"canary-value-of-a-secret\"\nb 0644 \"hi\"\nc 0400 \"canary-value-of-a-secret\"\nd 0644 \"hi\"\nsecret/odd=u/7\n"
	if got := shown(r); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(a.requests) != 1 {
		t.Errorf("one Secret took the requests %q", a.requests)
	}
	for object, want := range map[string]string{
		"{objectName: odd, key: json, extractJSONKey: c}": `Secret shop/odd: key "json": it has no key "c"`,
		"{objectName: odd, key: json, encoding: hex}":     `Secret shop/odd: key "json": it is not hex`,
		"{objectName: odd, key: hex, extractJSONKey: c}":  `Secret shop/odd: key "hex": it is not a JSON object`,
	} {
		_, err := p.Fetch(t.Context(), request("objects", "- "+object))
		wantError(t, err, provider.KindOf(err), want)
	}
}

func TestAnOptionalObjectMayBeMissing(t *testing.T) {
	p, _ := serve(t, objects)
	r, err := p.Fetch(t.Context(), request("objects", `
- {objectName: gone, optional: true}
- {objectName: gone, key: k, optional: true}
- {objectName: gone, objectType: configMap, optional: true}
- {objectName: none, optional: true, objectAlias: dir}
- {objectName: db, key: gone, optional: true}
- {objectName: odd, key: json, objectAlias: a, extractJSONKey: gone, optional: true}
- {objectName: db, key: user, optional: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := shown(r), "user 0644 \"app\"\nsecret/none=u/7\nsecret/db=u/7\nsecret/odd=u/7\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if r, err := p.Fetch(t.Context(), request("objects", "- {objectName: gone, optional: true}")); err != nil || len(r.Files)+len(r.Versions) > 0 {
		t.Errorf("with nothing but what is missing: %s, %v", shown(r), err)
	}
	// What one object may lack, another may not.
	_, err = p.Fetch(t.Context(), request("objects", "- {objectName: gone, key: a, optional: true}\n- {objectName: gone, key: b}"))
	wantError(t, err, provider.NotFound, "Secret shop/gone: read it as the pod: it does not exist")
	// What is there and cannot be had is an error for every object.
	_, err = p.Fetch(t.Context(), request("objects", "- {objectName: odd, key: json, encoding: hex, optional: true}"))
	wantError(t, err, provider.Invalid, "it is not hex")
	p, _ = serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	_, err = p.Fetch(t.Context(), request("objects", "- {objectName: db, optional: true}"))
	wantError(t, err, provider.Denied)
}

func TestWhoMayShareAnAnswer(t *testing.T) {
	p, _ := serve(t, nil)
	pods := issuer.New(t)
	ask := func(account issuer.Account) (string, bool) {
		req := request("objects", "- objectName: db")
		req.Tokens = map[string]provider.Token{"": {Value: secret.FromString(pods.Token(account, "https://kubernetes.default.svc"))}}
		return p.Identity(t.Context(), req)
	}
	first, ok := ask(issuer.Account{Namespace: "shop", Name: "web", Pod: "web-1"})
	replica, _ := ask(issuer.Account{Namespace: "shop", Name: "web", Pod: "web-2"})
	other, _ := ask(issuer.Account{Namespace: "shop", Name: "other", Pod: "web-3"})
	if !ok || first != replica || first == other {
		t.Errorf("got %q, %v, %q, %q", first, ok, replica, other)
	}
	for _, req := range []provider.Request{request("objects", "- {}"), request("objects", "- objectName: db")} { // the second has a token that says nothing
		if _, ok := p.Identity(t.Context(), req); ok {
			t.Error("nobody can say who that is")
		}
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
		"":                                                     `parameter "objects": it is missing`,
		"- key: a":                                             `"objectName": it is missing`,
		"- objectName: A_B":                                    "cannot be the name of a Secret or ConfigMap",
		"- {objectName: a, objectType: pod}":                   `"pod" is neither secret nor configmap`,
		"- {objectName: a, key: a/b}":                          `"a/b" cannot be a key`,
		"- {objectName: a, objectAlias: ../b}":                 `"../b"`,
		"- {objectName: a, filePermission: 9}":                 "filePermission",
		"- {objectName: a, colour: red}":                       `"colour": this provider does not know it`,
		"- {objectName: a, encoding: hex}":                     `"encoding": it is for one key, and the entry names none; name it with "key"`,
		"- {objectName: a, extractJSONKey: b}":                 `"extractJSONKey": it is for one key`,
		"- {objectName: a, extractYAMLKey: b}":                 `"extractYAMLKey": it is for one key`,
		"- {objectName: a, key: b, encoding: x}":               `"encoding": "x" is none of utf-8, base64 and hex`,
		"- {objectName: a, optional: perhaps}":                 `"optional": "perhaps" is not a boolean`,
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
	if problems := p.Validate(map[string]string{"objects": "- {objectName: a, key: k, objectAlias: f, filePermission: \"0400\", encoding: base64, extractJSONKey: b, optional: true}", "audience": "x", "derivedFiles": "[]"}); len(problems) > 0 {
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
