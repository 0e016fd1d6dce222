package vaulttest

import (
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	authentication "k8s.io/api/authentication/v1"
)

const issuer = "https://kubernetes.default.svc"

func TestLogins(t *testing.T) {
	signer, err := NewSigner(issuer)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := NewSigner(issuer)
	if err != nil {
		t.Fatal(err)
	}
	api := httptest.NewTLSServer(signer.TokenReviews())
	defer api.Close()
	s := New(t, Options{})
	role := Role{Namespace: "shop", ServiceAccount: "app", Audience: "vault", Policies: []string{"app"}, Token: map[string]any{"token_ttl": "60s"}}
	anyone := Role{Audience: "vault"}
	anything := Role{Namespace: "shop", ServiceAccount: "app"}
	elsewhereSigner := &Signer{Issuer: "https://elsewhere.example", key: signer.key}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	if err := errors.Join(
		s.AuthJWT("jwt", signer), s.JWTRole("jwt", "app", role), s.JWTRole("jwt", "anyone", anyone), s.JWTRole("jwt", "anything", anything),
		s.AuthKubernetes("kubernetes", api.URL, ca, "reviewer"), s.KubernetesRole("kubernetes", "app", role),
		s.KubernetesRole("kubernetes", "anyone", anyone), s.KubernetesRole("kubernetes", "anything", anything),
	); err != nil {
		t.Fatal(err)
	}

	pod := Pod{Namespace: "shop", ServiceAccount: "app", Name: "app-0"}
	other := Pod{Namespace: "shop", ServiceAccount: "other", Name: "other-0"}
	elsewhere := Pod{Namespace: "bank", ServiceAccount: "app", Name: "app-0"}
	for _, c := range []struct {
		name, role, token string
		jwt, kubernetes   int // statuses
	}{
		{"the pod", "app", mint(t, signer, pod, time.Hour, "vault"), 200, 200},
		{"several audiences", "app", mint(t, signer, pod, time.Hour, "conjur", "vault"), 200, 200},
		{"another pod, where all may", "anyone", mint(t, signer, other, time.Hour, "vault"), 200, 200},
		{"another audience", "app", mint(t, signer, pod, time.Hour, "conjur"), 400, 403},
		{"another audience, where all may", "anyone", mint(t, signer, other, time.Hour, "conjur"), 400, 403},
		{"another audience, where the role has none", "anything", mint(t, signer, pod, time.Hour, "conjur"), 400, 200},
		{"another issuer", "app", mint(t, elsewhereSigner, pod, time.Hour, "vault"), 400, 200},
		{"another ServiceAccount", "app", mint(t, signer, other, time.Hour, "vault"), 400, 403},
		{"another namespace", "app", mint(t, signer, elsewhere, time.Hour, "vault"), 400, 403},
		{"a token that has expired", "app", mint(t, signer, pod, -time.Hour, "vault"), 400, 403},
		{"a token of another cluster", "app", mint(t, stranger, pod, time.Hour, "vault"), 400, 403},
		{"a role that is not there", "none", mint(t, signer, pod, time.Hour, "vault"), 400, 400},
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

func TestTokenReviews(t *testing.T) {
	signer, err := NewSigner(issuer)
	if err != nil {
		t.Fatal(err)
	}
	pod := Pod{Namespace: "shop", ServiceAccount: "app", Name: "app-0"}
	for _, c := range []struct {
		name, token   string
		wanted, found []string
	}{
		{"the audience", mint(t, signer, pod, time.Hour, "vault"), []string{"vault"}, []string{"vault"}},
		{"one audience of several", mint(t, signer, pod, time.Hour, "conjur", "vault"), []string{"vault", "other"}, []string{"vault"}},
		{"another audience", mint(t, signer, pod, time.Hour, "conjur"), []string{"vault"}, nil},
		{"no audience, for the API server", mint(t, signer, pod, time.Hour, issuer), nil, []string{issuer}},
		{"no audience, for another", mint(t, signer, pod, time.Hour, "vault"), nil, nil},
		{"a token that has expired", mint(t, signer, pod, -time.Hour, "vault"), []string{"vault"}, nil},
		{"no token", "a.b.c", []string{"vault"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			status := signer.review(authentication.TokenReviewSpec{Token: c.token, Audiences: c.wanted})
			known := c.found != nil
			user := map[bool]string{true: "system:serviceaccount:shop:app"}[known]
			if status.Authenticated != known || !slices.Equal(status.Audiences, c.found) || status.User.Username != user || known != (status.Error == "") {
				t.Errorf("the review is %+v", status)
			}
		})
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
