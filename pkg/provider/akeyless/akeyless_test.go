package akeyless

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

func TestStaticSecretsTakeOneRequest(t *testing.T) {
	g := newGateway(t)
	objects := ""
	for n := range 40 {
		g.statics[fmt.Sprint("/many/", n)] = fmt.Sprint("value ", n)
		objects += fmt.Sprintf("- {secretPath: /many/%d, secretType: static}\n", n)
	}
	v := shop(t, g, objects)
	if r := v.mount(); len(r.Files) != 40 || string(r.Files[39].Contents.Reveal()) != "value 39" {
		t.Errorf("got %d files", len(r.Files))
	}
	if got := strings.Join(g.asked, " "); got != "/auth /get-secret-value" {
		t.Errorf("the requests are %s", got)
	}
}

func TestItemsAreReadAtTheSameTime(t *testing.T) {
	g := newGateway(t)
	const n = 8
	var arrived sync.WaitGroup
	arrived.Add(n)
	g.before = func(op string, body map[string]any, _ http.ResponseWriter) bool {
		if op == opRotated {
			arrived.Done()
			arrived.Wait() // for all others
		}
		return false
	}
	objects := ""
	for i := range n {
		g.rotated[fmt.Sprint("/r/", i)] = map[string]any{"n": i}
		objects += fmt.Sprintf("- {secretPath: /r/%d}\n", i)
	}
	if r := shop(t, g, objects).mount(); len(r.Files) != n {
		t.Errorf("got %d files", len(r.Files))
	}
}

func TestAHintSavesTheQuestionOfWhatAnItemIs(t *testing.T) {
	g := newGateway(t)
	v := shop(t, g, `
- {secretPath: /db/password, secretType: static}
- {secretPath: db/user, secretType: static}
- {secretPath: /db/rotated, secretType: rotated}
- {secretPath: /tls/web, secretType: certificate}
- {secretPath: /db/dynamic, secretType: dynamic}
`)
	first := v.mount()
	if g.count(opDescribe) != 0 {
		t.Error("it was asked all the same")
	}
	// The version follows the value, and tells nothing of it.
	same := v.mount()
	g.statics["/db/password"] = "another"
	changed := v.mount()
	if a, b, c := first.Versions[0].Version, same.Versions[0].Version, changed.Versions[0].Version; a != b || b == c || len(a) < 16 {
		t.Errorf("the versions are %q, %q, %q", a, b, c)
	}
	// A wrong one is told.
	_, err := shop(t, g, "- {secretPath: /db/password, secretType: rotated}").fetch()
	wantError(t, err, provider.NotFound, `object "/db/password": /get-rotated-secret-value`)
}

func TestTwoFilesOfOneItemTakeOneQuestion(t *testing.T) {
	g := newGateway(t)
	v := shop(t, g, `
- {secretPath: /db/rotated, fileName: all.json}
- {secretPath: /db/rotated, fileName: user, extractJSONKey: username}
- {secretPath: /db/rotated, fileName: none, extractJSONKey: nothing, optional: true}
- {secretPath: /db/dynamic, fileName: a, extractJSONKey: user}
- {secretPath: /db/dynamic, fileName: b, extractJSONKey: password}
`)
	got := shown(v.mount())
	for _, want := range []string{"user 0644 \"app\"\n", "a 0644 \"tmp.p-1\"\n", "b 0644 \"" + canary, "user:/db/rotated = 3\n", "b:/db/dynamic = "} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\ndoes not have %q", got, want)
		}
	}
	if strings.Contains(got, "none") || g.count(opRotated) != 1 || g.count(opDynamic) != 1 || g.count(opDescribe) != 2 {
		t.Errorf("got %s by the requests %v", got, g.asked)
	}
}

func TestTheGatewaysNameOfAnItemCounts(t *testing.T) {
	g := newGateway(t)
	g.aliases = map[string]string{"/short": "/db/password"}
	if got, want := shown(shop(t, g, "- {secretPath: /short}").mount()), "short 0644 \""+canary+"\"\nshort:/short = 7\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestEveryObjectHasTheOptionsOfEveryProvider(t *testing.T) {
	g := newGateway(t)
	g.statics["/packed"], g.statics["/number"] = base64.StdEncoding.EncodeToString([]byte("\x00\xff")), map[string]any{"a": 1, "b": []any{"x"}}
	v := shop(t, g, `
- {secretPath: /packed, encoding: base64}
- {secretPath: /number}
- {secretPath: /nowhere, optional: true}
- {secretPath: /nowhere/hinted, optional: true, secretType: static}
- {secretPath: /db/user, secretType: static}
`)
	want := "packed 0644 \"\\x00\\xff\"\nnumber 0644 \"{\\\"a\\\":1,\\\"b\\\":[\\\"x\\\"]}\"\nuser 0644 \"app\"\n"
	if got := shown(v.mount()); !strings.HasPrefix(got, want) || strings.Contains(got, "nowhere") {
		t.Errorf("got %s", got)
	}
	// Denied is not missing.
	g.denied["/nowhere"] = true
	_, err := v.fetch()
	wantError(t, err, provider.Denied, `object "/nowhere"`)
	_, err = shop(t, g, "- {secretPath: /db/rotated, extractJSONKey: nothing}").fetch()
	wantError(t, err, provider.NotFound, `object "/db/rotated"`, `"nothing"`)
}

func TestARefusedBatchNamesItsObject(t *testing.T) {
	g := newGateway(t)
	objects := "- {secretPath: /db/user, secretType: static}\n- {secretPath: /nowhere, secretType: static}\n"
	_, err := shop(t, g, objects).fetch()
	wantError(t, err, provider.NotFound, `object "/nowhere": /get-secret-value`)
	g.before = func(op string, _ map[string]any, w http.ResponseWriter) bool {
		if op == opStatic {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return op == opStatic
	}
	v := shop(t, g, objects)
	_, err = v.fetch()
	wantError(t, err, provider.Unavailable, `object "/db/user" and 1 others: /get-secret-value`)
	for _, status := range []int{400, 401, 403, 404} {
		g.before = func(_ string, _ map[string]any, w http.ResponseWriter) bool {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(`{"error":"no such method"}`))
			return true
		}
		asked := len(g.asked)
		_, err = shop(t, g, objects).fetch()
		wantError(t, err, provider.Denied, `access id "p-123456": log in to https://gateway.example:8080/v2 by k8s`, fmt.Sprint(status), "no such method",
			`the pod's token has issuer "https://issuer.example", subject "system:serviceaccount:shop:web", audience "akeyless"`, `auth config "cluster"`)
		if len(g.asked) != asked+1 {
			t.Errorf("a refused login took the requests %v", g.asked[asked:])
		}
	}
}

func TestWhichTokenOfThePodIsUsed(t *testing.T) {
	for name, tc := range map[string]struct {
		parameters []string
		audiences  []string
		want       string // "" for none
	}{
		"its own":                             {nil, []string{"", "akeyless"}, "akeyless"},
		"the API server's":                    {nil, []string{"vault", "https://kubernetes.default.svc"}, "https://kubernetes.default.svc"},
		"the one that the class names":        {[]string{"audience", "vault"}, []string{"", "akeyless", "vault"}, "vault"},
		"no other, where the class names one": {[]string{"audience", "vault"}, []string{"", "akeyless"}, ""},
		"none of another store":               {nil, []string{"vault"}, ""},
		// Akeyless' own servers could go to the API server with it.
		"none of the API server's for the vendor":         {[]string{"akeylessGatewayURL", ""}, []string{""}, ""},
		"nor for the vendor's other hosts":                {[]string{"akeylessGatewayURL", "https://API.eu.Akeyless.io."}, []string{""}, ""},
		"nor for an auth method that sees the token":      {[]string{"akeylessAccessType", "jwt"}, []string{""}, ""},
		"but its own, for the vendor":                     {[]string{"akeylessGatewayURL", ""}, []string{"", "akeyless"}, "akeyless"},
		"that of a host that only ends like the vendor's": {[]string{"akeylessGatewayURL", "https://notakeyless.io"}, []string{""}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			v := shop(t, g, "- {secretPath: /db/user}").with(tc.parameters...)
			v.req.Tokens = map[string]provider.Token{}
			for _, audience := range tc.audiences {
				v.req.Tokens[audience] = provider.Token{Value: secret.FromString(jwt("web-1", audience))}
			}
			_, err := v.fetch()
			if name == "that of a host that only ends like the vendor's" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if tc.want == "" {
				wanted := "akeyless"
				if len(tc.parameters) > 0 && tc.parameters[0] == "audience" {
					wanted = "vault"
				}
				wantError(t, err, provider.Denied, fmt.Sprintf("list the audience %q in the CSIDriver's tokenRequests", wanted), "those that there are have the audiences")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sent, _ := base64.StdEncoding.DecodeString(fmt.Sprint(g.bodies[0]["k8s-service-account-token"]))
			if string(sent) != jwt("web-1", tc.want) {
				t.Errorf("%s was sent", sent)
			}
		})
	}
	v := shop(t, newGateway(t), "- {secretPath: /db/user}")
	v.req.Tokens = nil
	if _, err := v.fetch(); !errors.Is(err, provider.ErrNoCredentials) {
		t.Errorf("without any token: %v", err)
	}
	v = shop(t, newGateway(t), "- {secretPath: /db/user}").with("akeylessAccessType", "")
	_, err := v.fetch()
	wantError(t, err, provider.Denied, "neither the class nor the volume's Secret has akeylessAccessKey", "nodePublishSecretRef")
	if !errors.Is(err, provider.ErrNoCredentials) {
		t.Error("the volume's Secret comes with kubelet's call, as the tokens do")
	}
}

func TestVolumesOfOneIdentityShareOneLogin(t *testing.T) {
	g := newGateway(t)
	first := shop(t, g, "- {secretPath: /db/user}")
	var all sync.WaitGroup
	for range 20 {
		v := podOf(t, first.p, "web-1", "- {secretPath: /db/password}")
		all.Go(func() {
			if _, err := v.fetch(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	first.mount()
	if g.logins != 1 {
		t.Errorf("one pod logged in %d times", g.logins)
	}
	// Another pod, another audience, another way to log in: each proves its own right.
	for n, v := range []*volume{
		podOf(t, first.p, "web-2", first.req.Parameters["objects"]),
		podOf(t, first.p, "web-1", first.req.Parameters["objects"]).with("akeylessAccessType", "jwt"),
		podOf(t, first.p, "web-1", first.req.Parameters["objects"]).with("akeylessAccessType", "access_key", "akeylessAccessKey", accessKey),
	} {
		v.mount()
		if g.logins != n+2 {
			t.Errorf("identity %d: %d logins", n, g.logins)
		}
	}
	for n, op := range g.asked {
		if token, _ := g.bodies[n]["token"].(string); op != opAuth && g.tokens[token] == "" {
			t.Errorf("%s came with %q", op, token)
		}
	}
	wrong := podOf(t, first.p, "web-1", first.req.Parameters["objects"]).with("akeylessAccessType", "access_key", "akeylessAccessKey", "another-key")
	_, err := wrong.fetch()
	wantError(t, err, provider.Denied, "log in to", "correct akeylessAccessID and the access key")
}

func TestATokenThatIsOverIsReplacedOnce(t *testing.T) {
	g := newGateway(t)
	v := shop(t, g, allTypes)
	v.mount()
	g.set(func() { clear(g.tokens) })
	v.mount()
	if g.logins != 2 {
		t.Errorf("there were %d logins", g.logins)
	}
	// One that is refused although it is new ends the fetch.
	for _, refusal := range []struct {
		status int
		text   string
	}{{401, `{"error":"unauthenticated"}`}, {403, `{"error":"Token is invalid"}`}, {400, `{"error":"token has expired"}`}} {
		g.before = func(op string, _ map[string]any, w http.ResponseWriter) bool {
			if op != opAuth {
				w.WriteHeader(refusal.status)
				_, _ = w.Write([]byte(refusal.text))
			}
			return op != opAuth
		}
		logins := g.logins
		_, err := shop(t, g, "- {secretPath: /db/user, secretType: static}\n- {secretPath: /db/password, secretType: static}").fetch()
		wantError(t, err, provider.Denied, fmt.Sprint(refusal.status))
		if g.logins != logins+2 {
			t.Errorf("%d: %d logins", refusal.status, g.logins-logins)
		}
	}
	// A universal identity has no login to repeat.
	v = shop(t, g, "- {secretPath: /db/user}").with("akeylessAccessType", "universal_identity", "akeylessUIDInitToken", uidToken)
	asked := len(g.asked)
	_, err := v.fetch()
	wantError(t, err, provider.Denied, "put one that is valid into akeylessUIDInitToken")
	if len(g.asked) != asked+1 {
		t.Errorf("the requests are %v", g.asked[asked:])
	}
}

func TestEveryAnswerHasItsError(t *testing.T) {
	text := func(status int, body string, headers ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		kind   provider.Kind
		says   []string
	}{
		"denied":                       {text(403, `{"error":"no"}`), provider.Denied, []string{"403 Forbidden", `"no"`}},
		"denied, in words":             {text(500, `{"error":"Unauthorized"}`), provider.Denied, []string{"500"}},
		"absent":                       {text(404, `{"error":"item not found"}`), provider.NotFound, nil},
		"absent, in words":             {text(400, `{"error":"the secret does not exist"}`), provider.NotFound, nil},
		"a gateway's fault, in words":  {text(500, `{"error":"target host not found"}`), provider.Unavailable, nil},
		"another 400":                  {text(400, `{"error":"Client could not be found in cache"}`), provider.Internal, []string{"Client could not be found"}},
		"not the API":                  {text(404, "404 page not found"), provider.Invalid, []string{"does akeylessGatewayURL lead to the API"}},
		"a page":                       {text(200, "<html>"+canary), provider.Internal, []string{"not JSON", "does akeylessGatewayURL lead to the API"}},
		"half of an answer":            {text(200, `{"/db/user":"`+canary), provider.Internal, []string{"not JSON"}},
		"another answer":               {text(200, `["`+canary+`"]`), provider.Internal, []string{"not what the API promises"}},
		"no value":                     {text(200, `{"/db/user":null}`), provider.NotFound, []string{"no value for it"}},
		"throttled":                    {text(429, `{"error":"slow down"}`, "Retry-After", "3"), provider.Throttled, nil},
		"throttled for ever":           {text(429, ``, "Retry-After", "99999999"), provider.Throttled, nil},
		"down":                         {text(503, "<html>", "Retry-After", "3"), provider.Unavailable, []string{"503"}},
		"down, in whatever words":      {text(502, `{"error":"item not found: permission denied"}`), provider.Unavailable, nil},
		"slow":                         {text(408, `{"error":"forbidden"}`), provider.Unavailable, nil},
		"a fault":                      {text(500, `{"error":"oops"}`), provider.Unavailable, nil},
		"strange":                      {text(418, ``), provider.Internal, []string{"418"}},
		"elsewhere":                    {text(307, ``, "Location", "https://evil.example/?t="+canary), provider.Invalid, []string{"redirects are not followed"}},
		"too much asked":               {text(413, ``), provider.TooLarge, nil},
		"too much answered":            {text(200, `{"a":"`+strings.Repeat("A", maxAnswerBytes)+`"}`), provider.TooLarge, nil},
		"an error that is no text":     {text(400, `{"error":{"a":"`+canary+`"}}`), provider.Internal, nil},
		"an error of many words":       {text(400, `{"error":"`+strings.Repeat("many words ", 1000)+`"}`), provider.Internal, []string{"many words", "..."}},
		"an error of several lines":    {text(400, `{"error":"a\nb\u0000\ufffdc"}`), provider.Internal, []string{`a b`}},
		"an error that is no encoding": {text(400, "{\"error\":\"a\xffb\"}"), provider.Internal, nil},
		"ended early": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"/db/user":"` + canary))
		}, provider.Unavailable, []string{"ended early"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			visited := false
			v, _ := overTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case opAuth:
					g.ServeHTTP(w, r)
				case opStatic:
					tc.answer(w, r)
				default:
					visited = true
				}
			}), "- {secretPath: /db/user, secretType: static}")
			_, err := v.fetch()
			wantError(t, err, tc.kind, append(tc.says, `object "/db/user": /get-secret-value`)...)
			if visited {
				t.Error("it went elsewhere")
			}
			var known *provider.Error
			if want := map[string]time.Duration{"throttled": 3 * time.Second, "throttled for ever": time.Hour, "down": 3 * time.Second}[name]; errors.As(err, &known) && known.RetryAfter != want {
				t.Errorf("the wait is %v, want %v", known.RetryAfter, want)
			}
			if len(err.Error()) > 1200 {
				t.Errorf("it has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestAGatewayThatIsNotReached(t *testing.T) {
	g := newGateway(t)
	v, server := overTLS(t, g, "- {secretPath: /db/user}")
	if _, err := v.fetch(); err != nil {
		t.Fatal(err)
	}
	_, err := podOf(t, New(), "web-1", "- {secretPath: /db/user}").with("akeylessGatewayURL", server.URL).fetch()
	wantError(t, err, provider.Unavailable, `access id "p-123456": log in to`, "unknown authority", "put the certificate of the gateway's CA into akeylessCACert")
	_, err = v.with("akeylessGatewayURL", strings.Replace(server.URL, "127.0.0.1", "localhost", 1)).fetch()
	wantError(t, err, provider.Unavailable, "certificate", "correct akeylessGatewayURL")
	plain := httptest.NewServer(g)
	defer plain.Close()
	_, err = v.with("akeylessGatewayURL", strings.Replace(plain.URL, "http:", "https:", 1)).fetch()
	wantError(t, err, provider.Unavailable, "enable TLS at the gateway")
	plain.Close()
	_, err = v.fetch()
	wantError(t, err, provider.Unavailable, "does not answer", "connection refused", "it is asked again")
	// One that hangs ends with the deadline.
	block := make(chan struct{})
	v, _ = overTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == opAuth {
			g.ServeHTTP(w, r)
			return
		}
		<-block
	}), "- {secretPath: /db/user}")
	defer close(block)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // enough for the login
	defer cancel()
	_, err = v.p.Fetch(ctx, v.req)
	wantError(t, err, provider.Unavailable, `object "/db/user": /describe-item`, "does not answer", "deadline")
}

func TestErrorsRepeatNothingThatWasSentOrReceived(t *testing.T) {
	pods := jwt("web-1", "akeyless")
	packed := base64.StdEncoding.EncodeToString([]byte(pods))
	for name, echo := range map[string]string{
		"whole": `%s`, "quoted": `value=%q;`, "a part": `it begins with %.20s...`, "in a sentence": "cannot read '%s' today",
	} {
		for what, value := range map[string]string{"the pod's token": pods, "its encoding": packed, "the session's token": "t-canary-token-1", "a value": canary, "the access key": accessKey, "a short value": "app1"} {
			t.Run(name+", "+what, func(t *testing.T) {
				g := newGateway(t)
				g.statics["/db/user"] = "app1"
				fail := func(op string, _ map[string]any, w http.ResponseWriter) bool {
					if op != opDynamic && (op != opAuth || what == "the session's token" || strings.HasSuffix(what, "value")) {
						return false
					}
					w.WriteHeader(http.StatusBadRequest)
					_, _ = fmt.Fprintf(w, `{"error":%q}`, fmt.Sprintf("no good: "+echo, value))
					return true
				}
				g.before = fail
				v := shop(t, g, "- {secretPath: /db/password}\n- {secretPath: /db/user}\n- {secretPath: /db/dynamic}")
				if what == "the access key" {
					v.with("akeylessAccessType", "access_key", "akeylessAccessKey", accessKey)
				}
				_, err := v.fetch()
				if err == nil {
					t.Fatal("there is no error")
				}
				for _, part := range []string{value, value[:min(len(value), 20)], value[max(0, len(value)-12):]} {
					if strings.Contains(strings.ReplaceAll(err.Error(), `\`, ""), part) {
						t.Errorf("%v\nshows %s", err, part)
					}
				}
				if !strings.Contains(err.Error(), "no good: ") || !strings.Contains(err.Error(), secret.Redacted) {
					t.Errorf("%v\nshows nothing of the reason", err)
				}
				hidesSecrets(t, err)
			})
		}
	}
	// Names of items are no secrets.
	g := newGateway(t)
	_, err := shop(t, g, "- {secretPath: /nowhere/to/be/found}").fetch()
	wantError(t, err, provider.NotFound, "item /nowhere/to/be/found was not found")
}

func TestMistakesOfAClass(t *testing.T) {
	good := map[string]string{"akeylessAccessType": "k8s", "akeylessAccessID": "p-1", "akeylessK8sAuthConfigName": "c", "objects": "- {secretPath: /a, fileName: f, filePermission: \"0400\"}"}
	for _, tc := range []struct{ key, value, want string }{
		{"akeylessGatewayURL", "http://gateway:8080/v2", "http is not encrypted"},
		{"akeylessGatewayURL", "gateway:8081", "it is not the URL of a gateway"},
		{"akeylessGatewayURL", "https://<Your GW URL>:8081", "it is not the URL of a gateway"},
		{"akeylessGatewayURL", "https://user:canary@gateway", "it is not the URL of a gateway"},
		{"akeylessGatewayURL", "ftp://gateway", "it is not the URL of a gateway"},
		{"akeylessGatewayURL", "https://gateway/?a=b", "it is not the URL of a gateway"},
		{"akeylessAccessType", "aws_iam", "aws_iam proves who the node is, and not the pod"},
		{"akeylessAccessType", "azure_ad", "use k8s, or jwt"},
		{"akeylessAccessType", "gcp", "use k8s, or jwt"},
		{"akeylessAccessType", "saml", `"saml" is none of access_key, k8s, jwt and universal_identity`},
		{"akeylessAccessID", "", `"akeylessAccessID": it is missing`},
		{"akeylessK8sAuthConfigName", "", `"akeylessK8sAuthConfigName": it is missing`},
		{"akeylessCACert", "no PEM", "there is no PEM certificate in it"},
		{"objects", "", `"objects": it is missing`},
		{"objects", "- fileName: a", `"secretPath": it is missing`},
		{"objects", "- {secretPath: /a, fileName: ../b}", `"../b"`},
		{"objects", "- {secretPath: /}", "absolute"},
		{"objects", "- {secretPath: /a, filePermission: 9}", "filePermission"},
		{"objects", "- {secretPath: /a, colour: red}", `"colour": this provider does not know it`},
		{"objects", "- {secretPath: /a/k}\n- {secretPath: /b/k}", `entry 1 has the file path "k" too`},
		{"objects", "- {secretPath: /a, extractJSONKey: a, extractYAMLKey: b}", "it excludes extractJSONKey"},
		{"objects", strings.Repeat("- {secretPath: /a}\n", maxObjects+1), "more than 256"},
		{"colour", "red", `"colour": this provider does not know it`},
	} {
		parameters := map[string]string{}
		for key, value := range good {
			parameters[key] = value
		}
		parameters[tc.key] = tc.value
		found := ""
		for _, problem := range New().Validate(parameters) {
			found += problem.Error() + "\n"
		}
		if !strings.Contains(found, tc.want) || strings.Contains(found, "canary") {
			t.Errorf("%s %.60q: found %q, want %q", tc.key, tc.value, found, tc.want)
		}
	}
	for _, key := range []string{"akeylessAzureObjectID", "akeylessGCPAudience", "akeylessUIDInitToken", "akeylessAccessKey", "vaultKubernetesMountPath", "audience"} {
		good[key] = "x"
	}
	if problems := New().Validate(good); len(problems) > 0 {
		t.Errorf("a good class has %v", problems)
	}
	// It is told, and no reason for a pod not to start.
	g := newGateway(t)
	plain := httptest.NewServer(g)
	defer plain.Close()
	if _, err := podOf(t, New(), "web-1", "- {secretPath: /db/user}").with("akeylessGatewayURL", plain.URL).fetch(); err != nil {
		t.Error(err)
	}
}

func TestThePodsTokenMustBeOne(t *testing.T) {
	v := shop(t, newGateway(t), "- {secretPath: /db/user}")
	v.req.Tokens["akeyless"] = provider.Token{Value: secret.FromString(canary)}
	_, err := v.fetch()
	wantError(t, err, provider.Internal, "read the pod's token")
	v.req.Tokens["akeyless"] = provider.Token{Value: secret.FromString(jwt("web-1", "akeyless")), Expires: time.Now().Add(-time.Hour)}
	_, err = v.fetch()
	wantError(t, err, provider.Unavailable, "ended at")
}

func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		`{"item_name":"/a","item_type":"STATIC_SECRET","last_version":1}`, `{"/a":"b"}`, `{"/a":{"b":[1,null]}}`, `{"value":{"a":"b"}}`,
		`{"certificate_pem":"x"}`, `{"id":"tmp.1","ttl_in_minutes":"60"}`, `{"ttl_in_minutes":1e400}`, `{"ttl_in_minutes":-1}`, `{"token":"t-1","expiration":5}`, `null`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		body = slices.Clip(body)
		for _, read := range []func(*item) error{
			func(i *item) error { return i.describe(body) },
			func(i *item) error { return i.readStatic(body) },
			func(i *item) error { return i.readRotated(body) },
			func(i *item) error { return i.readCertificate(body) },
		} {
			i := &item{path: "/a", name: "/a"}
			if err := read(i); err != nil && strings.Contains(err.Error(), canary) {
				t.Error(err)
			}
		}
	})
}

func FuzzShown(f *testing.F) {
	f.Add("the token t-canary-token-1 is over", "t-canary-token-1")
	f.Add(strings.Repeat("a", 1000), strings.Repeat("a", 100))
	f.Add("\xff\"'", "\"\\\xff")
	f.Fuzz(func(t *testing.T, text, hidden string) {
		var s seen
		s.add([]byte(`"` + hidden + `"`))
		got := s.shown(text)
		if len(hidden) >= window && !strings.Contains(secret.Redacted, hidden) && strings.Contains(got, hidden) {
			t.Errorf("%q shows %q of %q", got, hidden, text)
		}
		if len(got) > maxShownBytes*len(secret.Redacted) {
			t.Errorf("%d bytes", len(got))
		}
	})
}

func FuzzParameters(f *testing.F) {
	f.Add("https://gateway:8081", "k8s", "- {secretPath: /a, secretArgs: {b: c}}")
	f.Add("http://[::1", "gcp", "array: ['{}']")
	f.Fuzz(func(t *testing.T, url, kind, objects string) {
		p := provider.NewParams(map[string]string{"akeylessGatewayURL": url, "akeylessAccessType": kind, "objects": objects})
		d := decode(p)
		if p.Err() == nil && (len(d.objects) == 0 || !strings.HasPrefix(strings.ToLower(d.access.Gateway), "https://")) {
			t.Errorf("taken: %+v", d)
		}
	})
}
