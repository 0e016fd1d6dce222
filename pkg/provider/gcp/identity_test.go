package gcp

import (
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	"github.com/csi-secrets/csi-secrets/test/gcp"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

func TestWhoMayShareAnAnswer(t *testing.T) {
	w := newWorld(t)
	replica, other := web1, web1
	replica.Pod, replica.PodUID = "web-2", "p2"
	other.Name, other.UID = "other", "s2"
	key := func(req provider.Request) string {
		t.Helper()
		key, ok := w.Identity(t.Context(), req)
		if !ok {
			t.Error("it is not known who asks")
		}
		return key
	}
	if key(w.request(web1, latest("a"))) != key(w.request(replica, latest("a"))) {
		t.Error("replicas are two identities")
	}
	acting := w.request(web1, latest("a"))
	acting.AccountAnnotations = annotations(map[string]string{accountAnnotation: "app@shop.iam.gserviceaccount.com"})
	through := w.request(web1, latest("a"))
	through.AccountAnnotations = annotations(map[string]string{accountAnnotation: "app@shop.iam.gserviceaccount.com", delegatesAnnotation: `["x@shop.iam.gserviceaccount.com"]`})
	withKey, otherKey := w.request(web1, latest("a")), w.request(web1, latest("a"))
	w.google.AddAccount("app@shop.iam.gserviceaccount.com")
	withKey.Secrets = map[string]secret.Value{keyFile: secret.New(w.google.Key(gcptest.NodeAccount))}
	otherKey.Secrets = map[string]secret.Value{keyFile: secret.New(w.google.Key("app@shop.iam.gserviceaccount.com"))}
	foreign := func(of issuer.Account) provider.Request {
		audience := "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k"
		req := w.request(of, latest("a"), providerKey, audience)
		req.Tokens[audience] = provider.Token{Value: secret.FromString(w.issuer.Token(of, audience))}
		return req
	}
	different := map[string]string{}
	for name, req := range map[string]provider.Request{
		"a pod": w.request(web1, latest("a")), "another service account": w.request(other, latest("a")), "the node": w.request(web1, latest("a"), authKey, authNode),
		"one that acts as another": acting, "and through a third": through, "a key": withKey, "another key": otherKey,
		"a foreign pool": foreign(web1), "a foreign pool, of another replica": foreign(replica),
	} {
		k := key(req)
		if same, taken := different[k]; taken {
			t.Errorf("%s and %s are one identity", name, same)
		}
		different[k] = name
	}
	without := w.request(web1, latest("a"))
	without.Tokens = nil
	for _, req := range []provider.Request{without, w.request(web1, "- {}")} {
		if _, ok := w.Identity(t.Context(), req); ok {
			t.Error("nobody can say who that is")
		}
	}
}
