// Package vaulttest runs a real Vault for tests: a server with TLS, data that
// outlives a restart, and an audit log of what was asked.
package vaulttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/test/child"
	"github.com/csi-secrets/csi-secrets/test/cluster"
)

const (
	startTimeout = 2 * time.Minute
	endTimeout   = 20 * time.Second
)

// Options are how a server is started.
type Options struct {
	// Host is the address of this machine that it listens on, 127.0.0.1 by default.
	Host string
	// Names are IP addresses and DNS names that its certificate has besides Host,
	// 127.0.0.1 and localhost.
	Names []string
	// DefaultLeaseTTL and MaxLeaseTTL are those of mounts and tokens that have none
	// of their own: Vault's 768h by default.
	DefaultLeaseTTL, MaxLeaseTTL time.Duration
	// Log gets a line for each step that takes minutes, such as building the
	// server the first time.
	Log io.Writer
}

// Server is a Vault, and a client of it with the root token. Its methods are safe
// for concurrent use, but for Start, Stop and Close.
type Server struct {
	*Client

	folder    string
	remove    func() error
	program   string
	key       string // unseals it
	authority *authority
	process   *child.Process // nil while it is stopped
}

// New starts a server that ends with the test.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Log == nil {
		o.Log = t.Output()
	}
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Start starts a server that is initialized, unsealed and empty. It is built where
// that has not been done. It ends with this process, if Close did not end it
// before.
func Start(ctx context.Context, o Options) (*Server, error) {
	program, err := cluster.BuildProgram(ctx, cluster.Options{Log: o.Log}, "vault")
	if err != nil {
		return nil, err
	}
	s := &Server{program: program}
	if s.folder, s.remove, err = child.Folder("vault"); err != nil {
		return nil, err
	}
	err = s.configure(o)
	if err == nil {
		err = s.Start(ctx)
	}
	if err == nil {
		err = s.audit()
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// CA is the certificate that the server's is signed with, as PEM.
func (s *Server) CA() []byte { return s.authority.pem }

// CAFile is the path of a file with CA.
func (s *Server) CAFile() string { return filepath.Join(s.folder, "ca.crt") }

// LogFile is the path of what the server writes, at level debug: it tells why a
// login was refused where the answer does not.
func (s *Server) LogFile() string { return filepath.Join(s.folder, "log") }

// AuditFile is the path of the audit log, which Requests reads. It has tokens and
// values in clear.
func (s *Server) AuditFile() string { return filepath.Join(s.folder, "audit") }

func (s *Server) configFile() string { return filepath.Join(s.folder, "config.json") }

// configure writes the server's configuration and certificate. The one node needs
// no raft: files keep its data as well.
func (s *Server) configure(o Options) error {
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	port, err := child.FreePort(o.Host)
	if err != nil {
		return err
	}
	address := net.JoinHostPort(o.Host, strconv.Itoa(port))
	if s.authority, err = newAuthority(); err != nil {
		return err
	}
	certificate, key, err := s.authority.issue(append([]string{o.Host, "127.0.0.1", "localhost"}, o.Names...))
	if err != nil {
		return err
	}
	s.Client = newClient("https://"+address, s.authority)
	listener := map[string]any{
		"address":       address,
		"tls_cert_file": filepath.Join(s.folder, "server.crt"),
		"tls_key_file":  filepath.Join(s.folder, "server.key"),
	}
	configuration := map[string]any{
		"storage":            map[string]any{"file": map[string]any{"path": filepath.Join(s.folder, "data")}},
		"listener":           []any{map[string]any{"tcp": listener}},
		"api_addr":           s.Address,
		"disable_clustering": true,
		"disable_mlock":      true,
		"log_level":          "debug",
	}
	for name, ttl := range map[string]time.Duration{"default_lease_ttl": o.DefaultLeaseTTL, "max_lease_ttl": o.MaxLeaseTTL} {
		if ttl != 0 {
			configuration[name] = ttl.String()
		}
	}
	text, err := json.MarshalIndent(configuration, "", "\t")
	if err != nil {
		return err
	}
	for path, content := range map[string][]byte{
		s.configFile(): text, s.CAFile(): s.CA(), listener["tls_cert_file"].(string): certificate, listener["tls_key_file"].(string): key,
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the server again after Stop, with its data and its leases and on
// its port, unsealed.
func (s *Server) Start(ctx context.Context) error {
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	server := exec.Command(s.program, "server", "-config", s.configFile())
	server.Env = []string{"HOME=" + s.folder, "PATH=/usr/bin:/bin"} // without any VAULT_… of who runs the test
	server.Stdout, server.Stderr = log, log
	if s.process, err = child.Start(server); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.becomeReady(ctx); err != nil {
		s.process.Kill()
		s.process = nil
		return fmt.Errorf("start Vault at %s: %w\n%s", s.Address, err, child.Tail(s.LogFile()))
	}
	return nil
}

func (s *Server) becomeReady(ctx context.Context) error {
	if err := s.process.Await(ctx, func(ctx context.Context) error {
		_, err := s.do(ctx, http.MethodGet, "sys/seal-status", nil)
		return err
	}); err != nil {
		return err
	}
	if s.key == "" {
		if err := s.initialize(ctx); err != nil {
			return err
		}
	}
	return s.unseal(ctx)
}

// initialize makes the root token, and the one key that unseals the server.
func (s *Server) initialize(ctx context.Context) error {
	answer, err := s.do(ctx, http.MethodPut, "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1})
	if err != nil {
		return err
	}
	keys, ok := answer["keys_base64"].([]any)
	if !ok || len(keys) != 1 {
		return errors.New("sys/init answered without a key")
	}
	s.key, _ = keys[0].(string)
	s.Token = answer.Text("root_token")
	return nil
}

// Unseal unseals the server after Seal, and waits until it serves.
func (s *Server) Unseal() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return s.unseal(ctx)
}

func (s *Server) unseal(ctx context.Context) error {
	if _, err := s.do(ctx, http.MethodPut, "sys/unseal", map[string]any{"key": s.key}); err != nil {
		return err
	}
	return s.process.Await(ctx, func(ctx context.Context) error {
		_, err := s.do(ctx, http.MethodGet, "sys/health", nil)
		return err
	})
}

// Seal seals the server: it answers every request with 503, and forgets nothing.
func (s *Server) Seal() error {
	_, err := s.Do(http.MethodPut, "sys/seal", nil)
	return err
}

// Stop ends the server. Its data, its leases among them, stays.
func (s *Server) Stop() error {
	if s.process == nil {
		return nil
	}
	err := s.process.End(syscall.SIGTERM, endTimeout)
	s.process = nil
	s.http.CloseIdleConnections()
	if err != nil {
		return fmt.Errorf("stop Vault: %w\n%s", err, child.Tail(s.LogFile()))
	}
	return nil
}

// Close ends the server, and removes its data. It fails where the server had ended
// by itself.
func (s *Server) Close() error {
	return errors.Join(s.Stop(), s.remove())
}
