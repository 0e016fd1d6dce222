package azuretest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// refusal is an error of Entra ID.
type refusal struct {
	status int
	code   int
	kind   string
	text   string
}

func (r *refusal) answer(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(r.status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"error": r.kind, "error_description": fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s", r.code, r.text, uuid(), uuid(), time.Now().UTC().Format("2006-01-02 15:04:05Z")),
		"error_codes": []int{r.code}, "timestamp": time.Now().UTC().Format("2006-01-02 15:04:05Z"), "trace_id": uuid(), "correlation_id": uuid(),
		"error_uri": fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", r.code),
	})
}

// serveLogin is the endpoint of tokens, for assertions of an audience
// (https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow).
func (a *Azure) serveLogin(w http.ResponseWriter, r *http.Request, audience string) {
	tenant, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case r.Method == http.MethodGet && rest == "v2.0/.well-known/openid-configuration":
		_, _ = a.begin(Discovery, &[]fault{})
		root := "https://" + a.login + "/" + tenant
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": root + "/v2.0", "token_endpoint": root + "/oauth2/v2.0/token", "authorization_endpoint": root + "/oauth2/v2.0/authorize"})
		return
	case r.Method != http.MethodPost || rest != "oauth2/v2.0/token":
		http.NotFound(w, r)
		return
	}
	if f, failing := a.begin(Login, &a.entra); failing {
		f.answer(w, `{"error":"temporarily_unavailable","error_description":"AADSTS90033: A transient error has occurred. Please try again.","error_codes":[90033]}`)
		return
	}
	if err := r.ParseForm(); err != nil {
		http.Error(w, "no form", http.StatusBadRequest)
		return
	}
	client, refused := a.authenticate(r, tenant, audience)
	resource, scoped := strings.CutSuffix(r.PostForm.Get("scope"), "/.default")
	for scope := range strings.FieldsSeq(r.PostForm.Get("scope")) { // MSAL adds those of OpenID
		if of, ok := strings.CutSuffix(scope, "/.default"); ok {
			resource, scoped = of, true
		}
	}
	switch {
	case refused != nil:
	case r.PostForm.Get("grant_type") != "client_credentials":
		refused = &refusal{http.StatusBadRequest, 70003, "unsupported_grant_type", "The app requested an unsupported grant type."}
	case !scoped:
		refused = &refusal{http.StatusBadRequest, 1002012, "invalid_scope", "The provided value for scope is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier."}
	case resource != "https://"+a.suffix && resource != Storage:
		refused = &refusal{http.StatusBadRequest, 500011, "invalid_resource", "The resource principal was not found in the tenant."}
	}
	if refused != nil {
		refused.answer(w)
		return
	}
	text, life := a.give(client, tenant, resource, r.PostForm.Get("claims"))
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(map[string]any{"token_type": "Bearer", "expires_in": int(life.Seconds()), "ext_expires_in": int(life.Seconds()), "access_token": text})
}

// authenticate returns the client that proves itself.
func (a *Azure) authenticate(r *http.Request, tenant, audience string) (*Client, *refusal) {
	form := r.PostForm
	id := form.Get("client_id")
	a.mu.Lock()
	client := a.clients[id]
	a.mu.Unlock()
	switch {
	case tenant != Tenant && tenant != Elsewhere:
		return nil, &refusal{http.StatusBadRequest, 90002, "invalid_request", fmt.Sprintf("Tenant '%s' not found.", tenant)}
	case client == nil:
		return nil, &refusal{http.StatusBadRequest, 700016, "unauthorized_client", fmt.Sprintf("Application with identifier '%s' was not found in the directory 'Contoso'.", id)}
	case form.Get("client_secret") != "":
		if audience != Audience || client.Secret == "" || form.Get("client_secret") != client.Secret {
			return nil, &refusal{http.StatusUnauthorized, 7000215, "invalid_client", "Invalid client secret provided."}
		}
		return client, nil
	case form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer":
		return nil, &refusal{http.StatusUnauthorized, 7000216, "invalid_client", "'client_assertion', 'client_secret' or 'request' is required for the 'client_credentials' grant type."}
	}
	claims, err := a.verifier.Claims(r.Context(), form.Get("client_assertion"), audience)
	if err != nil {
		code, text := 700212, "No matching federated identity record found for presented assertion audience."
		if strings.Contains(err.Error(), "expired") {
			code, text = 700024, "Client assertion is not within its valid time range."
		} else if strings.Contains(err.Error(), "signature") {
			code, text = 50013, "Assertion failed signature validation."
		}
		return nil, &refusal{http.StatusUnauthorized, code, "invalid_client", text}
	}
	allowed := client.Subjects
	if audience == ProxyAudience {
		allowed = client.Bound
	}
	if !slices.Contains(allowed, claims.Subject) {
		return nil, &refusal{http.StatusUnauthorized, 700213, "invalid_client", fmt.Sprintf("No matching federated identity record found for presented assertion subject '%s'.", claims.Subject)}
	}
	return client, nil
}

// give makes a token.
func (a *Azure) give(client *Client, tenant, resource, claims string) (text string, life time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	text = "access." + random(40)
	a.tokens[text] = &token{client, tenant, resource, time.Now().Add(a.expiring), claims}
	return text, a.expiring
}

// serveMetadata is the machine's metadata service
// (https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#get-a-token-using-http).
func (a *Azure) serveMetadata(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if r.URL.Path != "/metadata/identity/oauth2/token" {
		http.NotFound(w, r)
		return
	}
	if f, failing := a.begin(Metadata, &a.entra); failing {
		f.answer(w, `{"error":"unknown","error_description":"Failed to retrieve token"}`)
		return
	}
	a.mu.Lock()
	client := a.clients[a.managed[query.Get("client_id")]]
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	refuse := func(text string) {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": "invalid_request", "error_description": text})
	}
	switch {
	case r.Header.Get("Metadata") != "true" || r.Header.Get("X-Forwarded-For") != "":
		refuse("Required metadata header not specified")
	case query.Get("api-version") == "" || query.Get("resource") != "https://"+a.suffix && query.Get("resource") != Storage:
		refuse("Required query variable is missing or wrong")
	case client == nil:
		refuse("Identity not found")
	default:
		text, life := a.give(client, Tenant, query.Get("resource"), "")
		_ = json.NewEncoder(w).Encode(map[string]string{
			"access_token": text, "client_id": client.ID, "expires_in": strconv.Itoa(int(life.Seconds())), "expires_on": strconv.FormatInt(time.Now().Add(life).Unix(), 10),
			"ext_expires_in": strconv.Itoa(int(life.Seconds())), "not_before": strconv.FormatInt(time.Now().Unix(), 10), "resource": query.Get("resource"), "token_type": "Bearer",
		})
	}
}
