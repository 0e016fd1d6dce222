package vaulttest

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/test/postgres"
)

func TestKeyValues(t *testing.T) {
	s := New(t, Options{})
	if err := errors.Join(s.EnableKV1("kv"), s.EnableKV2("secret")); err != nil {
		t.Fatal(err)
	}
	s.Must(t, http.MethodPut, "kv/app", map[string]any{"password": "one"})
	s.Must(t, http.MethodPut, "secret/data/app", map[string]any{"data": map[string]any{"password": "two"}})
	s.Must(t, http.MethodPut, "secret/data/app", map[string]any{"data": map[string]any{"password": "three"}})

	for _, c := range []struct {
		path, want string
		keys       []string
	}{
		{"kv/app", "one", []string{"data", "password"}},
		{"secret/data/app", "three", []string{"data", "data", "password"}},
		{"secret/data/app?version=1", "two", []string{"data", "data", "password"}},
	} {
		if got := s.Must(t, http.MethodGet, c.path, nil).Text(c.keys...); got != c.want {
			t.Errorf("%s has %q, not %q", c.path, got, c.want)
		}
	}

	s.Must(t, http.MethodDelete, "secret/data/app", nil)
	_, err := s.Do(http.MethodGet, "secret/data/app", nil)
	if deleted, ok := errors.AsType[*Error](err); !ok || deleted.Status != http.StatusNotFound || !strings.Contains(deleted.Body, `"deletion_time":"2`) {
		t.Errorf("a deleted version: %v", err)
	}
}

func TestTransit(t *testing.T) {
	s := New(t, Options{})
	if err := s.EnableTransit("transit", "app"); err != nil {
		t.Fatal(err)
	}
	const text = "c2VjcmV0"
	sealed := s.Must(t, http.MethodPut, "transit/encrypt/app", map[string]any{"plaintext": text}).Text("data", "ciphertext")
	if got := s.Must(t, http.MethodPut, "transit/decrypt/app", map[string]any{"ciphertext": sealed}).Text("data", "plaintext"); got != text {
		t.Errorf("%q comes back as %q", text, got)
	}
}

func TestPKIIssues(t *testing.T) {
	s := New(t, Options{})
	if err := s.EnablePKI("pki", "app"); err != nil {
		t.Fatal(err)
	}
	issued := s.Must(t, http.MethodPut, "pki/issue/app", map[string]any{"common_name": "app.shop.svc", "ip_sans": "192.0.2.7", "ttl": "1h"})
	block, _ := pem.Decode([]byte(issued.Text("data", "certificate")))
	if block == nil {
		t.Fatalf("it issued no certificate: %v", issued)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(s.Must(t, http.MethodGet, "pki/cert/ca", nil).Text("data", "certificate"))) {
		t.Fatal("there is no root")
	}
	for _, name := range []string{"app.shop.svc", "192.0.2.7"} {
		if _, err := certificate.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Error(err)
		}
	}
	if left := time.Until(certificate.NotAfter); left > time.Hour || left < 59*time.Minute {
		t.Errorf("it is valid for %v", left)
	}
}

func TestDatabaseCredentials(t *testing.T) {
	pg := postgres.New(t, postgres.Options{})
	s := New(t, Options{})
	if err := errors.Join(
		s.EnableDatabase("database", pg),
		s.DatabaseRole("database", "app", time.Hour, 2*time.Hour),
		s.DatabaseRole("database", "short", time.Second, 2*time.Second),
	); err != nil {
		t.Fatal(err)
	}
	roles := func() []string {
		roles, err := pg.Roles(timeout(t))
		if err != nil {
			t.Fatal(err)
		}
		return roles
	}

	t.Run("one that is revoked is gone at once", func(t *testing.T) {
		made := s.Must(t, http.MethodGet, "database/creds/app", nil)
		user, password, lease := made.Text("data", "username"), made.Text("data", "password"), made.Text("lease_id")
		if err := pg.Login(timeout(t), user, password); err != nil {
			t.Error(err)
		}
		if got := roles(); !slices.Equal(got, []string{user}) {
			t.Errorf("the roles are %q, not %q", got, user)
		}
		if got := mustLeases(t, s, "database"); !slices.Equal(got, []string{lease}) {
			t.Errorf("the leases are %q, not %q", got, lease)
		}
		if got := made.Seconds("lease_duration"); got != time.Hour {
			t.Errorf("it has %v", got)
		}

		s.Must(t, http.MethodPut, "sys/leases/revoke", map[string]any{"lease_id": lease, "sync": true})
		if got := roles(); len(got) != 0 {
			t.Errorf("the roles are %q", got)
		}
		if err := pg.Login(timeout(t), user, password); !errors.Is(err, postgres.ErrRefused) {
			t.Errorf("it logs in: %v", err)
		}
		if got := mustLeases(t, s, "database"); len(got) != 0 {
			t.Errorf("the leases are %q", got)
		}
	})

	t.Run("one that is not renewed ends", func(t *testing.T) {
		s.Must(t, http.MethodGet, "database/creds/short", nil)
		if got := roles(); len(got) != 1 {
			t.Fatalf("the roles are %q", got)
		}
		eventually(t, "the role is gone", func() bool { return len(roles()) == 0 })
		eventually(t, "the lease is gone", func() bool { return len(mustLeases(t, s, "database")) == 0 })
	})

	t.Run("one outlives a restart, with its lease", func(t *testing.T) {
		made := s.Must(t, http.MethodGet, "database/creds/app", nil)
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := pg.Login(timeout(t), made.Text("data", "username"), made.Text("data", "password")); err != nil {
			t.Error(err)
		}
		renewed := s.Must(t, http.MethodPut, "sys/leases/renew", map[string]any{"lease_id": made.Text("lease_id"), "increment": 7000})
		if got := renewed.Seconds("lease_duration"); got < 6900*time.Second || got > 7000*time.Second {
			t.Errorf("the renewed lease has %v", got)
		}
	})
}
