package vault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const canary = "canary-of-a-value"

// standIn answers as a Vault does, for what a real one cannot be brought to:
// test/stores has the real one.
type standIn struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	logins   []string                                                // the JWTs
	requests []string                                                // METHOD PATH with token
	metadata map[string]string                                       // of logins
	valid    map[string]bool                                         // tokens
	answers  map[string]func(w http.ResponseWriter, r *http.Request) // by METHOD PATH
}

func newStandIn(t *testing.T) *standIn {
	t.Helper()
	s := &standIn{t: t, valid: map[string]bool{}, answers: map[string]func(http.ResponseWriter, *http.Request){}}
	s.metadata = map[string]string{"role": "app", "service_account_name": "web", "service_account_namespace": "shop", "service_account_secret_name": "", "service_account_uid": "u"}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	token := r.Header.Get("X-Vault-Token")
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+path+" "+token)
	answer := s.answers[r.Method+" "+path]
	known := s.valid[token]
	s.mu.Unlock()
	if r.Header.Get("X-Vault-Request") != "true" {
		s.t.Errorf("%s %s: without X-Vault-Request", r.Method, path)
	}
	switch {
	case answer != nil && (known || strings.HasPrefix(path, "auth/kubernetes/")):
		answer(w, r)
	case path == "auth/kubernetes/login":
		s.login(w, r)
	case !known:
		refuse(w, 403, "permission denied", "invalid token")
	case path == "auth/token/lookup-self":
		_, _ = io.WriteString(w, `{"data":{"ttl":3600}}`)
	case path == "auth/token/revoke-self":
		s.mu.Lock()
		delete(s.valid, token)
		s.mu.Unlock()
		w.WriteHeader(204)
	default:
		refuse(w, 404)
	}
}

func (s *standIn) login(w http.ResponseWriter, r *http.Request) {
	var body struct{ JWT, Role string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		s.t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins = append(s.logins, body.JWT)
	token := fmt.Sprint("hvs.token-", len(s.logins))
	s.valid[token] = true
	_ = json.NewEncoder(w).Encode(map[string]any{"auth": map[string]any{
		"client_token": token, "accessor": "a", "lease_duration": 3600, "renewable": true, "token_type": "service", "metadata": s.metadata,
	}})
}

func refuse(w http.ResponseWriter, status int, reasons ...string) {
	w.WriteHeader(status)
	if reasons == nil {
		reasons = []string{}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": reasons})
}

func (s *standIn) answer(request string, answer func(http.ResponseWriter, *http.Request)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[request] = answer
}

func (s *standIn) text(request, body string) {
	s.answer(request, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
}

// count counts the requests that begin so.
func (s *standIn) count(prefix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

func (s *standIn) defaults() Defaults {
	return Defaults{Address: s.URL}
}

func (s *standIn) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

// jwt is a token of a pod.
func jwt(account, pod string) secret.Value {
	claims := fmt.Sprintf(`{"iss":"https://kubernetes.default.svc","sub":"system:serviceaccount:shop:%s","aud":["vault"],
		"kubernetes.io":{"namespace":"shop","pod":{"name":%q,"uid":"uid-%s"},"serviceaccount":{"name":%q,"uid":"uid-%s"}}}`, account, pod, pod, account, account)
	return secret.FromString("e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".signature-of-" + pod)
}

// volume is the request of a pod's volume, with what its manager keeps.
type volume struct {
	provider.Request
	kept secret.Value
}

func (s *standIn) volume(account, pod, objects string, more ...string) *volume {
	v := &volume{Request: provider.Request{
		Parameters: map[string]string{"roleName": "app", "vaultCAPem": s.ca(), "objects": objects}, Mode: provider.DefaultMode,
		Pod:    provider.Pod{Namespace: "shop", Name: pod, UID: "uid-" + pod, ServiceAccount: account},
		Tokens: map[string]provider.Token{"vault": {Value: jwt(account, pod), Expires: time.Now().Add(time.Hour)}},
	}}
	for i := 0; i < len(more); i += 2 {
		v.Parameters[more[i]] = more[i+1]
	}
	v.Keep = func(state secret.Value) error {
		v.kept = secret.New(append([]byte(nil), state.Reveal()...))
		return nil
	}
	return v
}

// fetch fetches, and mounts what came.
func (v *volume) fetch(ctx context.Context, p *Provider) (map[string]string, provider.Result, error) {
	v.State = v.kept
	r, err := p.Fetch(ctx, v.Request)
	if err != nil {
		return nil, r, err
	}
	v.Mounted = r.Versions
	files := map[string]string{}
	for _, f := range r.Files {
		files[f.Path] = string(f.Contents.Reveal())
	}
	return files, r, nil
}

// change changes what the volume keeps.
func (v *volume) change(t *testing.T, change func(*state)) {
	t.Helper()
	kept, err := loadState(v.kept)
	if err != nil {
		t.Fatal(err)
	}
	change(kept)
	if err := kept.save(v.Keep); err != nil {
		t.Fatal(err)
	}
}

const oneSecret = "- {objectName: a, secretPath: secret/data/app, secretKey: a}"

func kv(value string, version int) string {
	return fmt.Sprintf(`{"request_id":"r","lease_id":"","renewable":false,"lease_duration":0,"data":{"data":{"a":%q},"metadata":{"version":%d}},"wrap_info":null,"warnings":null,"auth":null}`, value, version)
}
