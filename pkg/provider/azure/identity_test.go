package azure

import (
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

func TestWhoMayShareAnAnswer(t *testing.T) {
	w := newWorld(t)
	p := w.provider(Config{TokenProxy: TokenProxy{URL: "https://proxy.example.com"}})
	replica, other := webAccount, webAccount
	replica.Pod, replica.PodUID = "web-2", "p2"
	other.Name, other.UID = "other", "s2"
	key := func(req provider.Request) string {
		t.Helper()
		key, ok := p.Identity(t.Context(), req)
		if !ok {
			t.Error("it is not known who asks")
		}
		return key
	}
	if key(w.request(webAccount, oneSecret)) != key(w.request(replica, oneSecret)) {
		t.Error("replicas are two identities")
	}
	principal := func(password string) provider.Request {
		req := w.request(webAccount, oneSecret, clientKey, "")
		req.Secrets = map[string]secret.Value{"clientid": secret.FromString("c"), "clientsecret": secret.FromString(password)}
		return req
	}
	different := map[string]string{}
	for name, req := range map[string]provider.Request{
		"a pod": w.request(webAccount, oneSecret), "another service account": w.request(other, oneSecret), "another client": w.request(webAccount, oneSecret, clientKey, "c2"),
		"another tenant": w.request(webAccount, oneSecret, tenantKey, "t2"), "another cloud": w.request(webAccount, oneSecret, cloudKey, "AzureChinaCloud"),
		"the node": w.request(webAccount, oneSecret, managedKey, "true"), "a principal": principal("a"), "another password": principal("b"),
		"a binding": w.request(webAccount, oneSecret, proxyKey, "true"), "a binding, of another replica": w.request(replica, oneSecret, proxyKey, "true"),
	} {
		k := key(req)
		if same, taken := different[k]; taken {
			t.Errorf("%s and %s are one identity", name, same)
		}
		different[k] = name
	}
	without := w.request(webAccount, oneSecret)
	without.Tokens = nil
	for _, req := range []provider.Request{without, w.request(webAccount, "- {}")} {
		if _, ok := p.Identity(t.Context(), req); ok {
			t.Error("nobody can say who that is")
		}
	}
}
