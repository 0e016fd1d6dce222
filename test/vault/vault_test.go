package vaulttest

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/test/issuer"
)

func TestServer(t *testing.T) {
	s := New(t, Options{Names: []string{"192.0.2.7", "vault.example"}})

	health := s.As("").Must(t, http.MethodGet, "sys/health", nil)
	if health["sealed"] != false || health["initialized"] != true {
		t.Errorf("its health is %v", health)
	}
	for _, name := range []string{"127.0.0.1", "localhost", "192.0.2.7", "vault.example"} {
		if err := handshake(s, name); err != nil {
			t.Errorf("as %s: %v", name, err)
		}
	}
	if err := handshake(s, "other.example"); err == nil {
		t.Error("it has a certificate for a name that nobody gave it")
	}
	if answer, err := http.Get(s.Address + "/v1/sys/health"); err == nil {
		answer.Body.Close()
		t.Error("a client that does not know the CA trusts it")
	}
}

// handshake makes a TLS connection to the server by one of its names.
func handshake(s *Server, name string) error {
	configuration := s.authority.transport().TLSClientConfig
	configuration.ServerName = name
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.Address, "https://"), configuration)
	if err != nil {
		return err
	}
	return conn.Close()
}

func TestLeaseTimesOfTheServer(t *testing.T) {
	s := New(t, Options{DefaultLeaseTTL: 5 * time.Minute, MaxLeaseTTL: 10 * time.Minute})
	token := s.Must(t, http.MethodPost, "auth/token/create", map[string]any{"ttl": "1h", "policies": []string{"default"}})
	if got := token.Seconds("auth", "lease_duration"); got != 10*time.Minute {
		t.Errorf("a token for an hour has %v", got)
	}
	token = s.Must(t, http.MethodPost, "auth/token/create", map[string]any{"policies": []string{"default"}})
	if got := token.Seconds("auth", "lease_duration"); got != 5*time.Minute {
		t.Errorf("a token has %v", got)
	}
}

func TestRestartKeepsDataAndLeases(t *testing.T) {
	s := New(t, Options{})
	user := newUser(t, s, `path "auth/token/create" { capabilities = ["update"] }`)
	if err := s.EnableKV1("kv"); err != nil {
		t.Fatal(err)
	}
	s.Must(t, http.MethodPut, "kv/app", map[string]any{"password": "secret"})
	leases := mustLeases(t, s, "auth/jwt")
	if len(leases) != 1 {
		t.Fatalf("a login has the leases %q", leases)
	}

	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Do(http.MethodGet, "kv/app", nil); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("while it is stopped: %v", err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	if got := s.Must(t, http.MethodGet, "kv/app", nil).Text("data", "password"); got != "secret" {
		t.Errorf("the value is %q", got)
	}
	if after := mustLeases(t, s, "auth/jwt"); len(after) != 1 || after[0] != leases[0] {
		t.Errorf("the leases were %q, and are %q", leases, after)
	}
	user.Must(t, http.MethodPut, "auth/token/renew-self", nil)
	logins := 0
	for _, r := range mustRequests(t, s) {
		if r.Path == "auth/jwt/login" {
			logins++
		}
	}
	if logins != 1 {
		t.Errorf("the audit log has %d logins", logins)
	}
}

func TestSealedServerRefusesAll(t *testing.T) {
	s := New(t, Options{})
	if err := s.EnableKV1("kv"); err != nil {
		t.Fatal(err)
	}
	s.Must(t, http.MethodPut, "kv/app", map[string]any{"password": "secret"})
	if err := s.Seal(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"kv/app", "auth/token/lookup-self", "nothing/here"} {
		if _, err := s.Do(http.MethodGet, path, nil); !IsStatus(err, http.StatusServiceUnavailable) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := s.Unseal(); err != nil {
		t.Fatal(err)
	}
	if got := s.Must(t, http.MethodGet, "kv/app", nil).Text("data", "password"); got != "secret" {
		t.Errorf("the value is %q", got)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	s := start(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", s.folder, err)
	}
	if conn, err := net.Dial("tcp", strings.TrimPrefix(s.Address, "https://")); err == nil {
		conn.Close()
		t.Error("somebody still listens")
	}
}

func TestCloseTellsOfAServerThatEndedByItself(t *testing.T) {
	s := start(t)
	s.process.Kill()
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the error is %v", err)
	}
}

func TestStartFailsWhereItCannotListen(t *testing.T) {
	if s, err := Start(t.Context(), Options{Host: "192.0.2.1"}); err == nil {
		t.Errorf("it listens on an address of another machine: %v", s.Close())
	}
}

// start starts a server that the test closes itself.
func start(t *testing.T) *Server {
	t.Helper()
	s, err := Start(t.Context(), Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newUser is a client that logged in, at the mount jwt, with this policy.
func newUser(t *testing.T, s *Server, policy string) *Client {
	t.Helper()
	signer := issuer.New(t)
	pod := issuer.Account{Namespace: "shop", Name: "app", Pod: "app-0"}
	if err := errors.Join(
		s.Policy("app", policy),
		s.AuthJWT("jwt", signer),
		s.JWTRole("jwt", "app", Role{Namespace: pod.Namespace, ServiceAccount: pod.Name, Audience: "vault", Policies: []string{"app"}}),
	); err != nil {
		t.Fatal(err)
	}
	user, err := s.Login("jwt", "app", signer.Token(pod, "vault"))
	if err != nil {
		t.Fatal(err)
	}
	return user
}

func mustLeases(t *testing.T, s *Server, prefix string) []string {
	t.Helper()
	leases, err := s.Leases(prefix)
	if err != nil {
		t.Fatal(err)
	}
	return leases
}

func mustRequests(t *testing.T, s *Server) []Request {
	t.Helper()
	requests, err := s.Requests()
	if err != nil {
		t.Fatal(err)
	}
	return requests
}

// timeout is a context for what must not take long.
func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until done, which must be within half a minute.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for ctx := timeout(t); !done(); {
		select {
		case <-ctx.Done():
			t.Fatalf("it does not happen: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
