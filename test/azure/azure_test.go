package azuretest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/csi-secrets/csi-secrets/test/cloud"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

var web = issuer.Account{Namespace: "shop", Name: "web", UID: "s1"}

func newAzure(t *testing.T) (*Azure, *issuer.Issuer, *http.Client) {
	t.Helper()
	n, i := cloud.New(t), issuer.New(t)
	transport := &http.Transport{DialContext: n.DialContext, TLSClientConfig: &tls.Config{RootCAs: n.Pool()}}
	t.Cleanup(transport.CloseIdleConnections)
	return New(t, n, i.Verifier()), i, &http.Client{Transport: transport}
}

// post asks for a token, and returns what is answered.
func post(t *testing.T, c *http.Client, tenant string, form map[string]string) (int, map[string]any) {
	t.Helper()
	values := url.Values{"grant_type": {"client_credentials"}, "scope": {"https://vault.azure.net/.default"}}
	for key, value := range form {
		values.Set(key, value)
	}
	response, err := c.PostForm("https://login.microsoftonline.com/"+tenant+"/oauth2/v2.0/token", values)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body map[string]any
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

func assertion(id, token string) map[string]string {
	return map[string]string{"client_id": id, "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion": token}
}

// The codes are those of
// https://learn.microsoft.com/entra/identity-platform/reference-error-codes.
func TestEntraChecksWhoAsks(t *testing.T) {
	a, i, c := newAzure(t)
	id, service := a.Add(Client{Subjects: []string{web.Subject()}}), a.Add(Client{Secret: "password"})
	other := web
	other.Name = "other"
	for name, tc := range map[string]struct {
		tenant string
		form   map[string]string
		code   float64 // 0 for a token
	}{
		"a pod":                    {Tenant, assertion(id, i.Token(web, Audience)), 0},
		"a service principal":      {Tenant, map[string]string{"client_id": service, "client_secret": "password"}, 0},
		"no such tenant":           {"nowhere", assertion(id, i.Token(web, Audience)), 90002},
		"no such client":           {Tenant, assertion("nobody", i.Token(web, Audience)), 700016},
		"another subject":          {Tenant, assertion(id, i.Token(other, Audience)), 700213},
		"another client's subject": {Tenant, assertion(service, i.Token(web, Audience)), 700213},
		"another audience":         {Tenant, assertion(id, i.Token(web, ProxyAudience)), 700212},
		"a token that has ended":   {Tenant, assertion(id, i.TokenAt(time.Now().Add(-2*issuer.Lifetime), web, Audience)), 700024},
		"another issuer":           {Tenant, assertion(id, issuer.New(t).Token(web, Audience)), 50013},
		"a wrong password":         {Tenant, map[string]string{"client_id": service, "client_secret": "another"}, 7000215},
		"a password of none":       {Tenant, map[string]string{"client_id": id, "client_secret": "x"}, 7000215},
		"no proof":                 {Tenant, map[string]string{"client_id": id}, 7000216},
		"another resource":         {Tenant, map[string]string{"client_id": service, "client_secret": "password", "scope": "https://graph.microsoft.com/.default"}, 500011},
		"no scope":                 {Tenant, map[string]string{"client_id": service, "client_secret": "password", "scope": "openid"}, 1002012},
		"another grant":            {Tenant, map[string]string{"client_id": service, "client_secret": "password", "grant_type": "password"}, 70003},
	} {
		status, body := post(t, c, tc.tenant, tc.form)
		if tc.code == 0 {
			if status != 200 || body["token_type"] != "Bearer" || body["access_token"] == "" || body["expires_in"] != Life.Seconds() {
				t.Errorf("%s: got %d, %v", name, status, body)
			}
			continue
		}
		codes, _ := body["error_codes"].([]any)
		if status != 400 && status != 401 || len(codes) != 1 || codes[0] != tc.code || !strings.HasPrefix(fmt.Sprint(body["error_description"]), fmt.Sprintf("AADSTS%.0f: ", tc.code)) {
			t.Errorf("%s: got %d, %v, want %.0f", name, status, body, tc.code)
		}
	}
}

// given is a credential of a token.
type given string

func (g given) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(g), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// The SDK itself, with its own challenge, is what the stand-in has to satisfy.
func TestTheSDKReadsAVault(t *testing.T) {
	a, _, c := newAzure(t)
	id := a.Add(Client{Secret: "password"})
	_, body := post(t, c, Tenant, map[string]string{"client_id": id, "client_secret": "password"})
	v := a.Vault("kv1")
	client := func(token string) *azsecrets.Client {
		made, err := azsecrets.NewClient("https://kv1.vault.azure.net", given(token), &azsecrets.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: c, Retry: policy.RetryOptions{MaxRetries: -1}}})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	secrets := client(fmt.Sprint(body["access_token"]))
	wantCode := func(err error, status int, code, inner string) {
		t.Helper()
		var answer *azcore.ResponseError
		if !errors.As(err, &answer) || answer.StatusCode != status || answer.ErrorCode != code || !strings.Contains(answer.Error(), inner) {
			t.Errorf("got %v, want %d %s %s", err, status, code, inner)
		}
	}
	_, err := secrets.GetSecret(t.Context(), "a", "", nil)
	wantCode(err, 403, "Forbidden", "ForbiddenByPolicy")
	v.GrantAll(id)
	_, err = secrets.GetSecret(t.Context(), "a", "", nil)
	wantCode(err, 404, "SecretNotFound", "")
	if calls := a.Calls(); calls[Challenge] != 1 || calls[Get] != 2 {
		t.Errorf("the calls were %v", calls)
	}
	var ids []string
	for i := range 2*PageSize + 1 {
		ids = append(ids, v.SetSecret("a", fmt.Sprint("value ", i)))
	}
	v.Tag(Secrets, "a", map[string]string{"team": "web"})
	newest, err := secrets.GetSecret(t.Context(), "a", "", nil)
	if err != nil || *newest.Value != "value 50" || newest.ID.Version() != ids[50] || newest.ID.Name() != "a" || *newest.Tags["team"] != "web" || newest.KID != nil {
		t.Errorf("got %+v, %v", newest, err)
	}
	third, err := secrets.GetSecret(t.Context(), "a", ids[3], nil)
	if err != nil || *third.Value != "value 3" {
		t.Errorf("got %v", err)
	}
	v.Disable(Secrets, "a", ids[3])
	_, err = secrets.GetSecret(t.Context(), "a", ids[3], nil)
	wantCode(err, 403, "Forbidden", "SecretDisabled")
	a.Calls()
	versions := map[string]time.Time{}
	disabled := 0
	for pager := secrets.NewListSecretPropertiesVersionsPager("a", nil); pager.More(); {
		page, err := pager.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, each := range page.Value {
			versions[each.ID.Version()] = *each.Attributes.Created
			if !*each.Attributes.Enabled {
				disabled++
			}
		}
	}
	if len(versions) != 51 || disabled != 1 || !versions[ids[0]].Before(versions[ids[1]]) {
		t.Errorf("got %d versions, %d disabled", len(versions), disabled)
	}
	if calls := a.Calls(); calls[Versions] != 3 {
		t.Errorf("the calls were %v", calls)
	}
	empty, err := secrets.NewListSecretPropertiesVersionsPager("none", nil).NextPage(t.Context())
	if err != nil || len(empty.Value) != 0 {
		t.Errorf("got %v, %v", empty, err)
	}
	a.Fail(1, http.StatusTooManyRequests, "7")
	_, err = secrets.GetSecret(t.Context(), "a", "", nil)
	wantCode(err, 429, "Throttled", "")
	_, err = client("forged").GetSecret(t.Context(), "a", "", nil)
	wantCode(err, 401, "Unauthorized", "AKV10022")
	v.Delete(Secrets, "a")
	_, err = secrets.GetSecret(t.Context(), "a", "", nil)
	wantCode(err, 404, "SecretNotFound", "")
	a.Fail(1, 0, "")
	if _, err = secrets.GetSecret(t.Context(), "a", "", nil); err == nil {
		t.Error("an answer that ends early was taken")
	}
}

func TestTheMetadataServiceKnowsItsIdentities(t *testing.T) {
	a, _, c := newAzure(t)
	assigned := a.Assign(false)
	ask := func(query string, metadata string) (int, string) {
		request, err := http.NewRequest(http.MethodGet, "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Metadata", metadata)
		response, err := c.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(text)
	}
	for query, want := range map[string]int{"&client_id=" + assigned: 200, "": 400, "&client_id=nobody": 400} {
		if status, text := ask(query, "true"); status != want {
			t.Errorf("%q: got %d, %s", query, status, text)
		}
	}
	if status, _ := ask("&client_id="+assigned, ""); status != 400 {
		t.Errorf("without the header it answers %d", status)
	}
	a.Assign(true)
	if status, _ := ask("", "true"); status != 200 {
		t.Errorf("the machine's own identity is refused with %d", status)
	}
}

func TestTheTokenProxyTakesItsOwnAudienceAndName(t *testing.T) {
	n, i := cloud.New(t), issuer.New(t)
	a := New(t, n, i.Verifier())
	a.TokenProxy(n, "proxy.example.com", "/aks", "sni.ests.aks")
	id := a.Add(Client{Bound: []string{web.Subject()}, Subjects: []string{web.Subject()}})
	for name, tc := range map[string]struct {
		sni, audience string
		status        int
	}{
		"bound":            {"sni.ests.aks", ProxyAudience, 200},
		"another audience": {"sni.ests.aks", Audience, 401},
		"another name":     {"proxy.example.com", ProxyAudience, 421},
	} {
		transport := &http.Transport{DialContext: n.DialContext, TLSClientConfig: &tls.Config{RootCAs: n.Pool(), ServerName: tc.sni}}
		form := url.Values{"grant_type": {"client_credentials"}, "scope": {"https://vault.azure.net/.default"}}
		for key, value := range assertion(id, i.Token(web, tc.audience)) {
			form.Set(key, value)
		}
		response, err := (&http.Client{Transport: transport}).PostForm("https://proxy.example.com/aks/"+Tenant+"/oauth2/v2.0/token", form)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		transport.CloseIdleConnections()
		if response.StatusCode != tc.status {
			t.Errorf("%s: got %d, want %d", name, response.StatusCode, tc.status)
		}
	}
}
