package conjur

// No real Conjur was met: what is checked here is Conjur's published REST
// contract, from the side of a client and from the side of a server. The stand-in
// keeps the rules of
//
//   - cyberark/conjur-openapi-spec, spec/authentication.yml ("JWTAuthenticate",
//     "JWTAuthenticateWithId", "AccessToken"), spec/secrets.yml ("BatchSecrets",
//     "Secret", "ResourceIDs") and spec/openapi.yml ("conjurAuth", "ServiceID",
//     "ResourceID", "responses");
//   - cyberark/conjur, config/routes.rb (one segment for the service, the account
//     and the host), app/controllers/authenticate_controller.rb (the statuses of a
//     login that fails), secrets_controller.rb (a batch is all or nothing, its
//     list is divided by commas after it was unescaped, base64 for exactly
//     "Accept-Encoding: base64", in lines of 60 characters) and
//     application_controller.rb (bodies of errors).

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// standIn is a Conjur as its documents describe it.
type standIn struct {
	account, service string
	hosts            map[string]string // by sub of the pod's token, what the token alone names
	variables        map[string]string // an empty value is none
	hidden           []string          // the host may read, but not execute
	life             time.Duration     // of an access token; 0 for 480 s, with no exp
	silent           bool              // tokens have no exp
	perBatch         int               // more in a batch are 422; 0 for any number

	// instead answers in place of Conjur where it returns true.
	instead func(w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	requests []string
	issued   int
	revoked  int // tokens up to this number are not accepted
}

func newStandIn() *standIn {
	return &standIn{account: "myorg", service: "kube", hosts: map[string]string{}, variables: map[string]string{}}
}

// served returns the requests so far, as METHOD path?query, and forgets them.
func (s *standIn) served() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.requests
	s.requests = nil
	return all
}

// revoke makes all access tokens so far unacceptable.
func (s *standIn) revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = s.issued
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	instead := s.instead
	s.mu.Unlock()
	if instead != nil && instead(w, r) {
		return
	}
	// As Rails does, segments are divided first and unescaped then.
	var segments []string
	for segment := range strings.SplitSeq(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/") {
		plain, err := url.PathUnescape(segment)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		segments = append(segments, plain)
	}
	n := len(segments)
	switch {
	case r.Method == http.MethodPost && segments[0] == "authn-jwt" && (n == 4 || n == 5) && segments[n-1] == "authenticate":
		host := ""
		if n == 5 {
			host = segments[3]
		}
		s.authenticate(w, r, segments[1], segments[2], host)
	case r.Method == http.MethodGet && segments[0] == "secrets" && n == 1:
		s.batch(w, r)
	case r.Method == http.MethodGet && segments[0] == "secrets" && n >= 4 && segments[2] == "variable":
		s.show(w, r, segments[1]+":variable:"+strings.Join(segments[3:], "/"))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s *standIn) authenticate(w http.ResponseWriter, r *http.Request, service, account, host string) {
	body, _ := io.ReadAll(r.Body)
	form, err := url.ParseQuery(string(body))
	if r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || err != nil || form.Get("jwt") == "" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var claims struct {
		Subject string   `json:"sub"`
		Expires int64    `json:"exp"`
		For     []string `json:"aud"`
	}
	parts := strings.Split(form.Get("jwt"), ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[min(1, len(parts)-1)])
	switch {
	case len(parts) != 3, err != nil, json.Unmarshal(payload, &claims) != nil,
		service != s.service, account != s.account, !slices.Contains(claims.For, "conjur"), time.Now().Unix() >= claims.Expires:
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	named, known := s.hosts[claims.Subject]
	if host == "" {
		host = named
	}
	switch {
	case !known || host != named:
		w.WriteHeader(http.StatusUnauthorized)
		return
	case host == "host/not-permitted":
		w.WriteHeader(http.StatusForbidden)
		return
	}
	life := s.life
	if life == 0 {
		life = 480 * time.Second
	}
	s.mu.Lock()
	s.issued++
	now := time.Now()
	said := map[string]any{"sub": host, "iat": now.Unix(), "n": s.issued}
	if !s.silent {
		said["exp"] = now.Add(life).Unix()
	}
	s.mu.Unlock()
	encoded, _ := json.Marshal(said)
	token, _ := json.Marshal(map[string]string{
		"protected": base64.URLEncoding.EncodeToString([]byte(`{"alg":"conjur.org/slosilo/v2","kid":"` + canary + `"}`)),
		"payload":   base64.URLEncoding.EncodeToString(encoded), "signature": "s",
	})
	for encoding := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		if strings.EqualFold(strings.TrimSpace(encoding), "base64") {
			w.Header().Set("Content-Encoding", "base64")
			token = []byte(base64.StdEncoding.EncodeToString(token))
		}
	}
	_, _ = w.Write(token)
}

// known checks the access token of a request.
func (s *standIn) known(w http.ResponseWriter, r *http.Request) bool {
	text, found := strings.CutPrefix(r.Header.Get("Authorization"), `Token token="`)
	text, closed := strings.CutSuffix(text, `"`)
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	var token struct{ Payload string }
	var payload struct {
		Issued int64 `json:"iat"`
		N      int   `json:"n"`
	}
	life := s.life
	if life == 0 {
		life = 480 * time.Second
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !found || !closed || err != nil || json.Unmarshal(raw, &token) != nil || !decodes(token.Payload, &payload) ||
		time.Since(time.Unix(payload.Issued, 0)) >= life || payload.N <= s.revoked {
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
	return true
}

// decodes reads the payload of an access token.
func decodes(payload string, into any) bool {
	raw, err := base64.URLEncoding.DecodeString(payload)
	return err == nil && json.Unmarshal(raw, into) == nil
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": code, "message": message}})
}

func (s *standIn) batch(w http.ResponseWriter, r *http.Request) {
	if !s.known(w, r) {
		return
	}
	ids := strings.Split(r.URL.Query().Get("variable_ids"), ",")
	if len(r.URL.RequestURI()) > 8<<10 {
		w.WriteHeader(http.StatusRequestURITooLong)
		return
	}
	if slices.Contains(ids, "") || s.perBatch > 0 && len(ids) > s.perBatch {
		refuse(w, http.StatusUnprocessableEntity, "argument_error", "variable_ids")
		return
	}
	answer, seen := map[string]string{}, map[string]bool{}
	for _, id := range ids {
		variable, ours := strings.CutPrefix(id, s.account+":variable:")
		value := s.variables[variable]
		switch {
		case !ours || value == "" || seen[id]: // twice makes the counts differ
			refuse(w, http.StatusNotFound, "not_found", "CONJ00076E Variable "+id+" is empty or not found.")
			return
		case slices.Contains(s.hidden, variable):
			w.WriteHeader(http.StatusForbidden)
			return
		}
		seen[id] = true
		if strings.EqualFold(r.Header.Get("Accept-Encoding"), "base64") {
			value = lines(base64.StdEncoding.EncodeToString([]byte(value)))
			w.Header().Set("Content-Encoding", "base64")
		} else if strings.ToValidUTF8(value, "") != value {
			refuse(w, http.StatusNotAcceptable, "bad_secret_encoding", "CONJ00074E")
			return
		}
		answer[id] = value
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// lines breaks base64 as Ruby's Base64.encode64 does.
func lines(text string) string {
	var b strings.Builder
	for len(text) > 60 {
		b.WriteString(text[:60] + "\n")
		text = text[60:]
	}
	return b.String() + text + "\n"
}

func (s *standIn) show(w http.ResponseWriter, r *http.Request, id string) {
	if !s.known(w, r) {
		return
	}
	variable, ours := strings.CutPrefix(id, s.account+":variable:")
	switch {
	case !ours || s.variables[variable] == "":
		refuse(w, http.StatusNotFound, "not_found", "CONJ00076E Variable "+id+" is empty or not found.")
	case slices.Contains(s.hidden, variable):
		w.WriteHeader(http.StatusForbidden)
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.WriteString(w, s.variables[variable])
	}
}

// serve starts the stand-in and returns its address and its certificate in PEM.
func (s *standIn) serve(t *testing.T) (address, certificate string) {
	t.Helper()
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
}

// TestContractOfTheServer checks the stand-in itself, with requests that a client
// must not make.
func TestContractOfTheServer(t *testing.T) {
	s := newStandIn()
	s.hosts["system:serviceaccount:shop:web"] = "host/web"
	s.variables["a"], s.variables["bin"] = "value of a", "\xff"
	s.hidden = []string{"hidden"}
	s.variables["hidden"] = "x"
	ask := func(method, target, body string, headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w
	}
	const form = "application/x-www-form-urlencoded"
	good := "jwt=" + podToken(nil)
	login := ask("POST", "/authn-jwt/kube/myorg/host%2Fweb/authenticate", good, "Content-Type", form)
	if login.Code != http.StatusOK {
		t.Fatalf("a login by the contract has status %d", login.Code)
	}
	access := `Token token="` + base64.StdEncoding.EncodeToString(login.Body.Bytes()) + `"`
	inBase64 := ask("POST", "/authn-jwt/kube/myorg/authenticate", good, "Content-Type", form, "Accept-Encoding", "gzip, base64")
	if inBase64.Header().Get("Content-Encoding") != "base64" || strings.HasPrefix(inBase64.Body.String(), "{") {
		t.Error("an access token is not in base64 where that was asked for")
	}
	for name, tc := range map[string]struct {
		w    *httptest.ResponseRecorder
		want int
	}{
		"a login without a form":             {ask("POST", "/authn-jwt/kube/myorg/authenticate", good, "Content-Type", "text/plain"), 400},
		"a login without jwt":                {ask("POST", "/authn-jwt/kube/myorg/authenticate", "token=x", "Content-Type", form), 400},
		"a login with a slash in the host":   {ask("POST", "/authn-jwt/kube/myorg/host/web/authenticate", good, "Content-Type", form), 404},
		"a login by GET":                     {ask("GET", "/authn-jwt/kube/myorg/authenticate", ""), 404},
		"a login for another host":           {ask("POST", "/authn-jwt/kube/myorg/host%2Fother/authenticate", good, "Content-Type", form), 401},
		"a login at another service":         {ask("POST", "/authn-jwt/other/myorg/authenticate", good, "Content-Type", form), 401},
		"a login with another audience":      {ask("POST", "/authn-jwt/kube/myorg/authenticate", "jwt="+podToken(map[string]any{"aud": []string{"vault"}}), "Content-Type", form), 401},
		"a login with a token that is over":  {ask("POST", "/authn-jwt/kube/myorg/authenticate", "jwt="+podToken(map[string]any{"exp": time.Now().Unix() - 1}), "Content-Type", form), 401},
		"a batch":                            {ask("GET", "/secrets?variable_ids=myorg%3Avariable%3Aa", "", "Authorization", access), 200},
		"a batch without token":              {ask("GET", "/secrets?variable_ids=myorg:variable:a", ""), 401},
		"a batch with a Bearer":              {ask("GET", "/secrets?variable_ids=myorg:variable:a", "", "Authorization", strings.Replace(access, "Token token=", "Bearer ", 1)), 401},
		"a batch with a token without marks": {ask("GET", "/secrets?variable_ids=myorg:variable:a", "", "Authorization", strings.ReplaceAll(access, `"`, "")), 401},
		"a batch of one twice":               {ask("GET", "/secrets?variable_ids=myorg:variable:a,myorg:variable:a", "", "Authorization", access), 404},
		"a batch with one that is not":       {ask("GET", "/secrets?variable_ids=myorg:variable:a,myorg:variable:b", "", "Authorization", access), 404},
		"a batch without the account":        {ask("GET", "/secrets?variable_ids=a", "", "Authorization", access), 404},
		"a batch of none":                    {ask("GET", "/secrets?variable_ids=", "", "Authorization", access), 422},
		"a batch with a hidden one":          {ask("GET", "/secrets?variable_ids=myorg:variable:a,myorg:variable:hidden", "", "Authorization", access), 403},
		"bytes without base64":               {ask("GET", "/secrets?variable_ids=myorg:variable:bin", "", "Authorization", access), 406},
		"bytes among other encodings":        {ask("GET", "/secrets?variable_ids=myorg:variable:bin", "", "Authorization", access, "Accept-Encoding", "gzip, base64"), 406},
		"bytes in base64":                    {ask("GET", "/secrets?variable_ids=myorg:variable:bin", "", "Authorization", access, "Accept-Encoding", "base64"), 200},
		"one":                                {ask("GET", "/secrets/myorg/variable/a", "", "Authorization", access), 200},
		"one without value":                  {ask("GET", "/secrets/myorg/variable/none", "", "Authorization", access), 404},
		"one that is hidden":                 {ask("GET", "/secrets/myorg/variable/hidden", "", "Authorization", access), 403},
	} {
		if tc.w.Code != tc.want {
			t.Errorf("%s: status %d, want %d", name, tc.w.Code, tc.want)
		}
	}
}

// TestContractOfTheClient checks each request that a volume takes, to the letter.
func TestContractOfTheClient(t *testing.T) {
	s := newStandIn()
	s.hosts["system:serviceaccount:shop:web"] = "host/web"
	s.variables["db/password"], s.variables["a b+c@d"] = canary, "second"
	p, req := mount(t, s, identityKey, "host/web", secretsKey, `
- "one": "db/password"
- "two": "a b+c@d"
- "three": "with,comma"
`)
	s.variables["with,comma"] = "third"
	var problems []error
	s.instead = func(_ http.ResponseWriter, r *http.Request) bool {
		check := func(header, want string) {
			if got := r.Header.Get(header); got != want {
				problems = append(problems, fmt.Errorf("%s %s has %s %q, want %q", r.Method, r.URL.Path, header, got, want))
			}
		}
		if r.Method == http.MethodPost {
			check("Content-Type", "application/x-www-form-urlencoded")
			check("Accept-Encoding", "identity")
			check("Authorization", "")
			body, _ := io.ReadAll(r.Body)
			if want := "jwt=" + string(req.Tokens[audience].Value.Reveal()); string(body) != want {
				problems = append(problems, errors.New("the body is not jwt= and the token as it is"))
			}
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			return false
		}
		check("Content-Type", "")
		encoding := "identity"
		if r.URL.Path == "/secrets" {
			encoding = "base64"
		}
		check("Accept-Encoding", encoding)
		return false
	}
	if _, err := p.Fetch(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(problems...); err != nil {
		t.Error(err)
	}
	want := []string{
		"POST /authn-jwt/kube/myorg/host%2Fweb/authenticate",
		"GET /secrets?variable_ids=myorg%3Avariable%3Adb%2Fpassword%2Cmyorg%3Avariable%3Aa%20b%2Bc%40d",
		"GET /secrets/myorg/variable/with%2Ccomma",
	}
	if got := s.served(); !slices.Equal(got, want) {
		t.Errorf("the requests are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
