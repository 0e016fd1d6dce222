package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"

	"github.com/openbao/openbao/api/v2"
)

// secretPath is where the secret of a store is, in KV version 2, and metadataPath
// where that is told of it which is no value.
const secretPath, metadataPath = "secret/data/app", "secret/metadata/app"

// standIn answers as Vault does to logins and to reads of one secret
// (https://developer.hashicorp.com/vault/api-docs), from a store. It checks no
// token: test/stores has a real Vault.
type standIn struct{ *store }

// serve serves it until the server is closed.
func (s standIn) serve() *httptest.Server { return httptest.NewTLSServer(s) }

// ServeHTTP implements http.Handler.
func (s standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := other
	mount, isLogin := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/v1/auth/"), "/login")
	switch {
	case isLogin:
		kind = login
	case r.URL.Path == "/v1/"+secretPath, r.URL.Path == "/v1/"+metadataPath:
		kind = read
	}
	a := s.ask(r.Context(), kind)
	var body api.Secret
	switch {
	case a.outcome == cut, a.outcome == hanging:
		panic(http.ErrAbortHandler) // net/http closes the connection
	case a.outcome == failed:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case a.outcome == throttled:
		if seconds := int(a.retryAfter / time.Second); seconds > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(seconds))
		}
		w.WriteHeader(http.StatusTooManyRequests)
		return
	case kind == login:
		body.Auth = &api.SecretAuth{ClientToken: "bench", Accessor: "bench", LeaseDuration: 3600, Renewable: true, Metadata: map[string]string{"role": "app"}}
		if mount == "kubernetes" { // it looks at the service account only, and says so
			for _, key := range []string{"service_account_name", "service_account_namespace", "service_account_secret_name", "service_account_uid"} {
				body.Auth.Metadata[key] = "default"
			}
		}
	case r.URL.Path == "/v1/"+secretPath:
		metadata := about(a.secret)
		metadata["version"] = a.secret.number
		body.Data = map[string]any{"data": map[string]any{"username": files["username"], "password": a.secret.value}, "metadata": metadata}
	case r.URL.Path == "/v1/"+metadataPath:
		body.Data = map[string]any{"current_version": a.secret.number, "versions": map[string]any{strconv.Itoa(a.secret.number): about(a.secret)}}
	default: // a token is given back
		w.WriteHeader(http.StatusNoContent)
		return
	}
	_ = json.NewEncoder(w).Encode(body)
}

func about(v version) map[string]any {
	return map[string]any{"created_time": v.created.UTC().Format(time.RFC3339Nano), "deletion_time": "", "destroyed": false}
}

// tokens are what kubelet sends of a pod's tokens, for the audience of Vault. What
// stands for the signature makes them as long as real ones.
func tokens(pod string) string {
	claims := fmt.Sprintf(`{"iss":"https://kubernetes.default.svc","sub":"system:serviceaccount:default:default","aud":["vault"],`+
		`"kubernetes.io":{"namespace":"default","pod":{"name":%q,"uid":%[1]q},"serviceaccount":{"name":"default","uid":"default"}}}`, pod)
	token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + "." + strings.Repeat("x", 700)
	return fmt.Sprintf(`{"vault":{"token":%q,"expirationTimestamp":"2036-01-01T00:00:00Z"}}`, token)
}
