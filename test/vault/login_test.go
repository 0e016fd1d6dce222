package vaulttest

import (
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/test/issuer"
)

func TestLogins(t *testing.T) {
	signer, stranger := issuer.New(t), issuer.New(t)
	api := httptest.NewTLSServer(signer.TokenReviews())
	defer api.Close()
	s := New(t, Options{})
	role := Role{Namespace: "shop", ServiceAccount: "app", Audience: "vault", Policies: []string{"app"}, Token: map[string]any{"token_ttl": "60s"}}
	anyone := Role{Audience: "vault"}
	anything := Role{Namespace: "shop", ServiceAccount: "app"}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	if err := errors.Join(
		s.AuthJWT("jwt", signer), s.JWTRole("jwt", "app", role), s.JWTRole("jwt", "anyone", anyone), s.JWTRole("jwt", "anything", anything),
		s.AuthKubernetes("kubernetes", api.URL, ca, "reviewer"), s.KubernetesRole("kubernetes", "app", role),
		s.KubernetesRole("kubernetes", "anyone", anyone), s.KubernetesRole("kubernetes", "anything", anything),
	); err != nil {
		t.Fatal(err)
	}

	pod := issuer.Account{Namespace: "shop", Name: "app", Pod: "app-0"}
	other := issuer.Account{Namespace: "shop", Name: "other", Pod: "other-0"}
	elsewhere := issuer.Account{Namespace: "bank", Name: "app", Pod: "app-0"}
	for _, c := range []struct {
		name, role, token string
		jwt, kubernetes   int // statuses
	}{
		{"the pod", "app", signer.Token(pod, "vault"), 200, 200},
		{"several audiences", "app", signer.Token(pod, "conjur", "vault"), 200, 200},
		{"another pod, where all may", "anyone", signer.Token(other, "vault"), 200, 200},
		{"another audience", "app", signer.Token(pod, "conjur"), 400, 403},
		{"another audience, where all may", "anyone", signer.Token(other, "conjur"), 400, 403},
		{"another audience, where the role has none", "anything", signer.Token(pod, "conjur"), 400, 200},
		{"another issuer", "app", signer.As("https://elsewhere.example").Token(pod, "vault"), 400, 200},
		{"another ServiceAccount", "app", signer.Token(other, "vault"), 400, 403},
		{"another namespace", "app", signer.Token(elsewhere, "vault"), 400, 403},
		{"a token that has expired", "app", signer.TokenAt(time.Now().Add(-2*issuer.Lifetime), pod, "vault"), 400, 403},
		{"a token of another cluster", "app", stranger.Token(pod, "vault"), 400, 403},
		{"a role that is not there", "none", signer.Token(pod, "vault"), 400, 400},
	} {
		for mount, want := range map[string]int{"jwt": c.jwt, "kubernetes": c.kubernetes} {
			t.Run(c.name+"/"+mount, func(t *testing.T) {
				user, err := s.Login(mount, c.role, c.token)
				if want != http.StatusOK {
					if !IsStatus(err, want) {
						t.Errorf("it is not refused with %d: %v", want, err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				self := user.Must(t, http.MethodGet, "auth/token/lookup-self", nil)
				if got := self.Text("data", "accessor"); got != user.Accessor || got == "" {
					t.Errorf("the accessor is %q, not %q", got, user.Accessor)
				}
				if ttl := self.Seconds("data", "creation_ttl"); c.role == "app" && ttl != time.Minute {
					t.Errorf("the token has %v", ttl)
				}
			})
		}
	}
}

func TestRequestsTellWhoAskedForWhat(t *testing.T) {
	s := New(t, Options{})
	if err := s.EnableKV1("kv"); err != nil {
		t.Fatal(err)
	}
	s.Must(t, http.MethodPut, "kv/app", map[string]any{"password": "secret"})
	before := time.Now()
	user := newUser(t, s, `path "kv/app" { capabilities = ["read"] }`)
	user.Must(t, http.MethodGet, "kv/app", nil)
	user.Must(t, http.MethodGet, "kv/app", nil)
	for _, path := range []string{"kv/other", "sys/mounts"} {
		if _, err := user.Do(http.MethodGet, path, nil); !IsStatus(err, http.StatusForbidden) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := user.Do(http.MethodPut, "sys/leases/renew", map[string]any{"lease_id": "kv/none"}); !IsStatus(err, http.StatusBadRequest) {
		t.Error(err)
	}
	if _, err := user.As("hvs.unknown").Do(http.MethodGet, "kv/app", nil); !IsStatus(err, http.StatusForbidden) {
		t.Error(err)
	}

	requests := mustRequests(t, s)
	for i, r := range requests {
		if i > 0 && r.Root && r.Accessor != requests[0].Accessor {
			t.Errorf("root is %q and %q", requests[0].Accessor, r.Accessor)
		}
	}
	requests = slices.DeleteFunc(requests, func(r Request) bool { return r.Root })
	const denied = "1 error occurred:\n\t* permission denied\n\n"
	want := []Request{
		{Operation: "update", Path: "auth/jwt/login"},
		{Operation: "read", Path: "kv/app"},
		{Operation: "read", Path: "kv/app"},
		{Operation: "read", Path: "kv/other", Error: denied},
		{Operation: "read", Path: "sys/mounts", Error: denied},
		{Operation: "update", Path: "sys/leases/renew", Error: "lease not found"},
		{Operation: "read", Path: "kv/app", Error: "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"},
	}
	if len(requests) != len(want) {
		t.Fatalf("there are %d requests: %+v", len(requests), requests)
	}
	for i, r := range requests {
		if r.Operation != want[i].Operation || r.Path != want[i].Path || r.Error != want[i].Error {
			t.Errorf("request %d is %+v, not %+v", i, r, want[i])
		}
		if r.Time.Before(before) || r.Time.After(time.Now()) {
			t.Errorf("%s came at %v", r.Path, r.Time)
		}
		if known := i < len(requests)-1; known != (r.Accessor == user.Accessor) || known != (r.Entity != "") {
			t.Errorf("%s: the accessor is %q, the entity %q", r.Path, r.Accessor, r.Entity)
		}
	}
	if got := requests[5].Body["lease_id"]; got != "kv/none" {
		t.Errorf("the body of the renewal has %q", got)
	}

	accessors, err := s.Accessors()
	if err != nil || len(accessors) != 2 || !slices.Contains(accessors, user.Accessor) {
		t.Errorf("the tokens are %q, %v", accessors, err)
	}
	user.Must(t, http.MethodPut, "auth/token/revoke-self", nil)
	if accessors, err = s.Accessors(); err != nil || len(accessors) != 1 {
		t.Errorf("the tokens are %q, %v", accessors, err)
	}
}
