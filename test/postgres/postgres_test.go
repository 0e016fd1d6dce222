package postgres

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// TestServer takes a server through its life.
func TestServer(t *testing.T) {
	s := New(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	if err := s.Login(ctx, Superuser, s.Password); err != nil {
		t.Error(err)
	}
	if err := s.Login(ctx, Superuser, "wrong"); !errors.Is(err, ErrRefused) {
		t.Errorf("a wrong password: %v", err)
	}
	if err := s.Login(ctx, "v-nobody", s.Password); !errors.Is(err, ErrRefused) {
		t.Errorf("a user that is not there: %v", err)
	}

	for _, statement := range []string{
		`CREATE ROLE "v-app-1" LOGIN PASSWORD 'one'`,
		`CREATE ROLE "v-group" NOLOGIN`,
		`CREATE ROLE "other" LOGIN`,
		`CREATE ROLE "v-app-0" LOGIN PASSWORD 'late' VALID UNTIL '2001-01-01'`,
	} {
		if err := s.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	roles, err := s.Roles(ctx)
	if want := []string{"v-app-0", "v-app-1"}; err != nil || !slices.Equal(roles, want) {
		t.Errorf("the roles are %q, %v, not %q", roles, err, want)
	}
	if err := s.Login(ctx, "v-app-0", "late"); !errors.Is(err, ErrRefused) {
		t.Errorf("a password that is no longer valid: %v", err)
	}

	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Login(ctx, "v-app-1", "one"); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("a login while the server is stopped: %v", err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Login(ctx, "v-app-1", "one"); err != nil {
		t.Errorf("after the restart: %v", err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	s := New(t, Options{}) // which closes it once more
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", s.folder, err)
	}
	if conn, err := net.Dial("tcp", net.JoinHostPort(s.Host, strconv.Itoa(s.Port))); err == nil {
		conn.Close()
		t.Error("somebody still listens")
	}
}

func TestStartFailsWhereItCannotListen(t *testing.T) {
	if s, err := Start(t.Context(), Options{Host: "192.0.2.1"}); err == nil {
		t.Errorf("it listens on an address of another machine: %v", s.Close())
	}
}
