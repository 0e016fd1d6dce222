package azure

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	azuretest "github.com/csi-secrets/csi-secrets/test/azure"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

const oneSecret = "- {objectName: a, objectType: secret}"

// principal is the secret of nodePublishSecretRef.
func principal(id, password string) map[string]secret.Value {
	return map[string]secret.Value{"ClientID": secret.FromString(id), "clientsecret": secret.FromString(password)}
}

func TestEveryWayToLogIn(t *testing.T) {
	w := newWorld(t)
	w.TokenProxy(w.net, "proxy.example.com", "/aks", "sni.ests.aks")
	system, assigned := w.Assign(true), w.Assign(false)
	service := w.Add(azuretest.Client{Secret: canary})
	bound := w.Add(azuretest.Client{Bound: []string{webAccount.Subject()}})
	for _, id := range []string{system, assigned, service, bound} {
		w.vault.Grant(id, azuretest.Secrets, "get")
	}
	w.vault.SetSecret("a", "value")
	p := w.provider(Config{TokenProxy: TokenProxy{URL: "https://proxy.example.com/aks", SNIName: "sni.ests.aks", CAFile: w.net.CAFile()}})
	annotated := func(context.Context) (map[string]string, error) {
		return map[string]string{clientAnnotation: w.client}, nil
	}
	for name, tc := range map[string]struct {
		parameters []string
		secrets    map[string]secret.Value
		calls      string
	}{
		"the machine's own":                 {[]string{clientKey, "", managedKey, "true"}, nil, "get 1, metadata 1"},
		"one that is assigned to it":        {[]string{clientKey, "", managedKey, "true", assignedKey, assigned}, nil, "get 1, metadata 1"},
		"a service principal":               {[]string{clientKey, ""}, principal(service, canary), "get 1, login 1"},
		"an identity binding, by the proxy": {[]string{clientKey, bound, proxyKey, "true"}, nil, "get 1, login 1"},
	} {
		t.Run(name, func(t *testing.T) {
			req := w.request(webAccount, oneSecret, tc.parameters...)
			req.Secrets = tc.secrets
			r, err := p.Fetch(t.Context(), req)
			if must(t, r, err); shown(r) != "a 0644 \"value\"\n" {
				t.Errorf("got %s", shown(r))
			}
			w.wantCalls(tc.calls)
		})
	}
	// The client that a class names and that an account's annotation names are one.
	for i, parameters := range [][]string{nil, {clientKey, "", annotatedKey, "true"}} {
		req := w.request(webAccount, oneSecret, parameters...)
		req.AccountAnnotations = annotated
		r, err := p.Fetch(t.Context(), req)
		must(t, r, err)
		w.wantCalls([]string{"get 1, login 1", "get 1"}[i])
	}
	if refused := w.net.Refused(); len(refused) > 0 {
		t.Errorf("other hosts were asked for: %s", refused)
	}
}

func TestATokenIsSharedByThoseAloneWhoCanLogInAlike(t *testing.T) {
	w := newWorld(t)
	w.vault.SetSecret("a", canary)
	other := issuer.Account{Namespace: "shop", Name: "other", UID: "s2", Pod: "other-1", PodUID: "p2"}
	twin := webAccount
	twin.Pod, twin.PodUID = "web-2", "p2"
	again := webAccount
	again.UID = "s9" // deleted and made again
	second := w.Add(azuretest.Client{Subjects: []string{webAccount.Subject()}})
	w.vault.GrantAll(second)
	service := w.Add(azuretest.Client{Secret: canary})
	w.vault.GrantAll(service)
	p := w.provider(Config{})
	fetch := func(calls string, req provider.Request) error {
		t.Helper()
		_, err := p.Fetch(t.Context(), req)
		w.wantCalls(calls)
		return err
	}
	if err := errors.Join(
		fetch("get 1, login 1", w.request(webAccount, oneSecret)),
		fetch("get 1", w.request(webAccount, oneSecret)),
		fetch("get 1", w.request(twin, oneSecret)), // Entra ID looks at the account alone
		fetch("get 1, login 1", w.request(again, oneSecret)),
		fetch("get 1, login 1", w.request(webAccount, oneSecret, clientKey, second)),
	); err != nil {
		t.Fatal(err)
	}
	w.wantError(fetch("login 1", w.request(other, oneSecret)), provider.Denied, "AADSTS700213", "system:serviceaccount:shop:other")

	right, wrong := w.request(webAccount, oneSecret, clientKey, ""), w.request(webAccount, oneSecret, clientKey, "")
	right.Secrets, wrong.Secrets = principal(service, canary), principal(service, "another")
	if err := fetch("get 1, login 1", right); err != nil {
		t.Fatal(err)
	}
	w.wantError(fetch("login 1", wrong), provider.Denied, "AADSTS7000215", "correct clientsecret")

	// Behind the proxy nobody knows what is looked at: one token for each pod.
	w.TokenProxy(w.net, "proxy.example.com", "", "proxy.example.com")
	bound := w.Add(azuretest.Client{Bound: []string{webAccount.Subject()}})
	w.vault.GrantAll(bound)
	p = w.provider(Config{TokenProxy: TokenProxy{URL: "https://proxy.example.com"}})
	if err := errors.Join(
		fetch("get 1, login 1", w.request(webAccount, oneSecret, clientKey, bound, proxyKey, "true")),
		fetch("get 1, login 1", w.request(twin, oneSecret, clientKey, bound, proxyKey, "true")),
		fetch("get 1", w.request(twin, oneSecret, clientKey, bound, proxyKey, "true")),
	); err != nil {
		t.Fatal(err)
	}
}

func TestManyVolumesOfAnIdentityShareOneLogin(t *testing.T) {
	w := newWorld(t)
	w.vault.SetSecret("a", "value")
	p := w.provider(Config{})
	err := provider.Together(t.Context(), 50, func(ctx context.Context, _ int) error {
		_, err := p.Fetch(ctx, w.request(webAccount, oneSecret))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	w.wantCalls("get 50, login 1")
}

func TestLoginsThatFail(t *testing.T) {
	expired := func(w *world, req *provider.Request) {
		req.Tokens[audience] = provider.Token{Value: secret.FromString(w.issuer.TokenAt(time.Now().Add(-2*issuer.Lifetime), webAccount, audience))}
	}
	for name, tc := range map[string]struct {
		parameters []string
		change     func(*world, *provider.Request)
		kind       provider.Kind
		says       []string
	}{
		"kubelet sent no token": {nil, func(_ *world, r *provider.Request) { r.Tokens = nil }, provider.Denied, []string{"api://AzureADTokenExchange", "tokenRequests"}},
		"no token for the proxy": {[]string{proxyKey, "true"}, func(_ *world, r *provider.Request) { delete(r.Tokens, proxyAudience) },
			provider.Denied, []string{"api://AKSIdentityBinding", "tokenRequests"}},
		"no token proxy":          {[]string{proxyKey, "true"}, nil, provider.Invalid, []string{"knows no token proxy", "--azure-token-proxy"}},
		"no such client":          {[]string{clientKey, "nobody"}, nil, provider.Denied, []string{"AADSTS700016", "correct clientID or tenantID"}},
		"no such tenant":          {[]string{tenantKey, "elsewhere"}, nil, provider.Invalid, []string{"AADSTS90002", "correct tenantID"}},
		"no federated credential": {nil, func(w *world, r *provider.Request) { r.Parameters[clientKey] = w.Add(azuretest.Client{}) }, provider.Denied, []string{"AADSTS700213", "federated identity credential for that issuer", webAccount.Subject()}},
		"a token that has ended":  {nil, expired, provider.Denied, []string{"AADSTS700024", "clock"}},
		"another issuer's token": {nil, func(_ *world, r *provider.Request) {
			r.Tokens[audience] = provider.Token{Value: secret.FromString(issuer.New(t).Token(webAccount, audience))}
		}, provider.Denied, []string{"AADSTS50013"}},
		"no JSON Web Token": {nil, func(_ *world, r *provider.Request) {
			r.Tokens[audience] = provider.Token{Value: secret.FromString(canary)}
		}, provider.Denied, []string{"cannot be read"}},
		"neither identity":         {[]string{clientKey, ""}, nil, provider.Denied, []string{"nodePublishSecretRef", "write clientID for workload identity"}},
		"half a service principal": {[]string{clientKey, ""}, func(_ *world, r *provider.Request) { r.Secrets = principal("id", "") }, provider.Denied, []string{"clientid and clientsecret"}},
		"no right to accounts":     {[]string{clientKey, "", annotatedKey, "true"}, nil, provider.Denied, []string{"service account shop/web", "may not read"}},
		"no annotation": {[]string{clientKey, "", annotatedKey, "true"}, func(_ *world, r *provider.Request) {
			r.AccountAnnotations = func(context.Context) (map[string]string, error) { return nil, nil }
		}, provider.Invalid, []string{`annotation "azure.workload.identity/client-id"`, "it has none"}},
		"the API server is away": {[]string{clientKey, "", annotatedKey, "true"}, func(_ *world, r *provider.Request) {
			r.AccountAnnotations = func(context.Context) (map[string]string, error) {
				return nil, &provider.Error{Kind: provider.Unavailable, Err: errors.New("away")}
			}
		}, provider.Unavailable, []string{"away"}},
		"not assigned to the machine": {[]string{managedKey, "true", assignedKey, "nobody"}, nil, provider.Denied, []string{`the managed identity "nobody"`, "assign that identity", assignedKey}},
		"no identity of the machine":  {[]string{managedKey, "true"}, nil, provider.Denied, []string{"the node's system-assigned identity"}},
		"throttled":                   {nil, func(w *world, _ *provider.Request) { w.FailLogin(1, 429, "17") }, provider.Throttled, []string{"429", "AADSTS90033"}},
		"down":                        {nil, func(w *world, _ *provider.Request) { w.FailLogin(1, 503, "") }, provider.Unavailable, []string{"503"}},
		"nothing at its address":      {nil, func(w *world, _ *provider.Request) { w.FailLogin(1, 404, "") }, provider.Unavailable, []string{`key vault "kv1": log in`, "404"}},
		"an answer that ends early":   {nil, func(w *world, _ *provider.Request) { w.FailLogin(1, 0, "") }, provider.Unavailable, []string{"Microsoft Entra ID"}},
		"a broken connection":         {nil, func(w *world, _ *provider.Request) { w.net.Cut("login.microsoftonline.com", 9) }, provider.Unavailable, []string{"Microsoft Entra ID cannot be reached"}},
		"an odd answer":               {nil, func(w *world, _ *provider.Request) { w.FailLogin(1, 200, "") }, provider.Internal, []string{"cannot be read"}},
		"the machine is throttled":    {[]string{managedKey, "true"}, func(w *world, _ *provider.Request) { w.FailLogin(1, 429, "9") }, provider.Throttled, []string{"169.254.169.254"}},
		"the machine's is renewed":    {[]string{managedKey, "true"}, func(w *world, _ *provider.Request) { w.FailLogin(1, 410, "") }, provider.Unavailable, []string{"asked again"}},
		"no machine of Azure's":       {[]string{managedKey, "true"}, func(w *world, _ *provider.Request) { w.net.HandlePlain("169.254.169.254", nil) }, provider.Unavailable, []string{"run on an Azure machine"}},
		"a token that is over":        {nil, func(w *world, _ *provider.Request) { w.Expire(30 * time.Second) }, provider.Unavailable, []string{"clock"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.vault.SetSecret("a", canary)
			req := w.request(webAccount, oneSecret, tc.parameters...)
			if tc.change != nil {
				tc.change(w, &req)
			}
			_, err := w.provider(Config{}).Fetch(t.Context(), req)
			w.wantError(err, tc.kind, tc.says...)
			var known *provider.Error
			if tc.kind == provider.Throttled && (!errors.As(err, &known) || known.RetryAfter == 0) {
				t.Errorf("%v has no time to wait", err)
			}
			if calls := w.Calls(); calls[azuretest.Login]+calls[azuretest.Metadata] > 1 {
				t.Errorf("it logged in more than once: %v", calls)
			}
		})
	}
}

func TestTheProxysCAIsReadAtEachLogin(t *testing.T) {
	w := newWorld(t)
	w.TokenProxy(w.net, "proxy.example.com", "", "proxy.example.com")
	file := filepath.Join(t.TempDir(), "ca.crt")
	p := w.provider(Config{TokenProxy: TokenProxy{URL: "https://proxy.example.com", CAFile: file}})
	bound := w.Add(azuretest.Client{Bound: []string{webAccount.Subject()}})
	w.vault.GrantAll(bound)
	w.vault.SetSecret("a", "value")
	req := w.request(webAccount, oneSecret, clientKey, bound, proxyKey, "true")
	_, err := p.Fetch(t.Context(), req)
	w.wantError(err, provider.Unavailable, "the CA of the token proxy cannot be read")
	good, err := os.ReadFile(w.net.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	f := newFamily(t, newEC(t, curves["P-256"]))
	for contents, kind := range map[string]string{inPEM(f.root): "cannot be trusted", string(good): ""} {
		if err := os.WriteFile(file, []byte(contents), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := p.Fetch(t.Context(), req)
		if kind == "" && err != nil || kind != "" && !strings.Contains(fmt.Sprint(err), kind) {
			t.Errorf("got %v, want %q", err, kind)
		}
		p = w.provider(Config{TokenProxy: TokenProxy{URL: "https://proxy.example.com", CAFile: file}})
	}
}

func TestTokenProxiesThatAreNone(t *testing.T) {
	for _, proxy := range []TokenProxy{{URL: "http://a"}, {URL: "a"}, {URL: "https://u:p@a"}, {URL: "https://a?b"}, {SNIName: "a"}, {CAFile: "a"}} {
		if _, err := New(Config{TokenProxy: proxy}); err == nil {
			t.Errorf("%+v was taken", proxy)
		}
	}
}

func TestAllClouds(t *testing.T) {
	for name, hosts := range map[string][2]string{
		"AzurePublicCloud":       {"login.microsoftonline.com", "vault.azure.net"},
		"AzureUSGovernmentCloud": {"login.microsoftonline.us", "vault.usgovcloudapi.net"},
		"AzureChinaCloud":        {"login.chinacloudapi.cn", "vault.azure.cn"},
		"AzureGermanCloud":       {"login.microsoftonline.de", "vault.microsoftazure.de"},
		"AzureStackCloud":        {"login.stack.example.com", "vault.stack.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Azure = azuretest.In(t, w.net, w.issuer.Verifier(), hosts[0], hosts[1])
			w.client = w.Add(azuretest.Client{Subjects: []string{webAccount.Subject()}})
			w.Vault("kv1").GrantAll(w.client)
			w.Vault("kv1").SetSecret("a", "of "+name)
			file := filepath.Join(t.TempDir(), "environment.json")
			text := fmt.Sprintf(`{"name":"AzureStackCloud","activeDirectoryEndpoint":"https://%s/","keyVaultEndpoint":"https://%s/","keyVaultDNSSuffix":"%s"}`, hosts[0], hosts[1], hosts[1])
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := w.provider(Config{}).Fetch(t.Context(), w.request(webAccount, oneSecret, cloudKey, strings.ToUpper(name), cloudFileKey, file))
			if must(t, r, err); shown(r) != fmt.Sprintf("a 0644 %q\n", "of "+name) {
				t.Errorf("got %s", shown(r))
			}
			calls := "get 1, login 1"
			if name == "AzureStackCloud" {
				calls = "discovery 1, " + calls // nobody here knows its endpoints
			}
			w.wantCalls(calls)
		})
	}
}

func TestTokensAreRenewedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		brings := func(life, refresh time.Duration) *identity {
			return &identity{login: func(context.Context, string) (confidential.AuthResult, error) {
				found := confidential.AuthResult{AccessToken: "t", ExpiresOn: time.Now().Add(life)}
				if refresh > 0 {
					found.Metadata.RefreshOn = time.Now().Add(refresh)
				}
				return found, nil
			}}
		}
		for name, tc := range map[string]struct{ life, refresh, renew, ends time.Duration }{
			"after four fifths":          {61 * time.Minute, 0, 48 * time.Minute, time.Hour},
			"when it is hinted":          {24 * time.Hour, 12 * time.Hour, 12 * time.Hour, 24*time.Hour - skew},
			"not later than four fifths": {61 * time.Minute, time.Hour, 48 * time.Minute, time.Hour},
		} {
			s, err := brings(tc.life, tc.refresh).newSession(t.Context(), "")
			if err != nil || s.Renew.Sub(began) != tc.renew || s.Ends.Sub(began) != tc.ends {
				t.Errorf("%s: got %s, %s, %v", name, s.Renew.Sub(began), s.Ends.Sub(began), err)
			}
		}
	})
}

func TestTheNodesIdentityIsNotAskedForByAProxy(t *testing.T) {
	p, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if p.metadata.Transport.(link).RoundTripper.(*http.Transport).Proxy != nil {
		t.Error("the metadata service would be asked for by the environment's proxy")
	}
}
