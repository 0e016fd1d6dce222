// Package postgres runs a real PostgreSQL for tests, such as those of credentials
// that a vault makes in it. It is this system's, installed where it is missing,
// which needs root; its data is in a folder that goes with the test.
package postgres

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"

	"github.com/csi-secrets/csi-secrets/test/child"
)

const (
	// Superuser is the name of the user that may do everything.
	Superuser = "admin"
	// Database is the one that there is.
	Database = "postgres"

	startTimeout   = time.Minute
	endTimeout     = 20 * time.Second
	connectTimeout = 10 * time.Second
)

// Options are how a server is started.
type Options struct {
	// Host is the address of this machine that it listens on, 127.0.0.1 by default.
	Host string
	// Log gets a line for each step that takes time.
	Log io.Writer
}

// Server is a PostgreSQL, which clients reach by TCP and a password, without TLS.
// Its methods are safe for concurrent use, but for Start, Stop and Close.
type Server struct {
	Host     string
	Port     int
	Password string // of Superuser

	programs string // the folder of its programs
	user     user   // who runs them
	folder   string
	remove   func() error
	process  *child.Process // nil while it is stopped
	admin    *sql.DB
}

// ErrMissing is returned where PostgreSQL is not installed and cannot be.
var ErrMissing = errors.New("PostgreSQL is missing, and only root can install it")

// New starts a server that ends with the test. The test is skipped where there can
// be none, and fails in CI.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Log == nil {
		o.Log = t.Output()
	}
	s, err := Start(t.Context(), o)
	if errors.Is(err, ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
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

// Start starts a server with an empty database. It ends with this process, if
// Close did not end it before.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{Host: o.Host, Password: rand.Text()}
	if s.Host == "" {
		s.Host = "127.0.0.1"
	}
	var err error
	if s.programs, err = programs(ctx, o.Log); err != nil {
		return nil, err
	}
	if s.user, err = unprivileged(); err != nil {
		return nil, err
	}
	if s.folder, s.remove, err = child.Folder("postgres"); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) start(ctx context.Context) error {
	if err := s.initialize(ctx); err != nil {
		return err
	}
	connector, err := s.connector(Superuser, s.Password)
	if err != nil {
		return err
	}
	s.admin = sql.OpenDB(connector)
	return s.Start(ctx)
}

func (s *Server) data() string { return filepath.Join(s.folder, "data") }

// LogFile is the path of what the server writes, with every statement.
func (s *Server) LogFile() string { return filepath.Join(s.folder, "log") }

// initialize makes the server's data and configuration. Nothing is synced to disk:
// what a crash of this machine leaves is of no use to anybody.
func (s *Server) initialize(ctx context.Context) error {
	port, err := child.FreePort(s.Host)
	if err != nil {
		return err
	}
	s.Port = port
	password := filepath.Join(s.folder, "password")
	if err := os.WriteFile(password, []byte(s.Password), 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(s.data(), 0o700); err != nil {
		return err
	}
	if err := s.user.own(s.data(), password); err != nil {
		return err
	}
	initdb := s.command("initdb", "--pgdata", s.data(), "--username", Superuser, "--pwfile", password,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions")
	if output, err := runOutput(ctx, initdb); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, output)
	}
	return os.WriteFile(filepath.Join(s.data(), "pg_hba.conf"), []byte("host all all all scram-sha-256\n"), 0o644)
}

// command is one of the server's programs, as the server's user and without this
// process's environment.
func (s *Server) command(name string, arguments ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(s.programs, name), arguments...)
	c.Dir = s.data()
	c.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	c.SysProcAttr = s.user.attributes()
	return c
}

func runOutput(ctx context.Context, command *exec.Cmd) (output string, err error) {
	var text strings.Builder
	command.Stdout, command.Stderr = &text, &text
	p, err := child.Start(command)
	if err != nil {
		return "", err
	}
	err = p.Wait(ctx)
	return strings.TrimSpace(text.String()), err
}

// Start starts the server again after Stop, with its data and on its port, and
// waits until it can be used.
func (s *Server) Start(ctx context.Context) error {
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	postgres := s.command("postgres", "-D", s.data(), "-h", s.Host, "-p", strconv.Itoa(s.Port),
		"-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "log_statement=all", "-c", "log_timezone=UTC")
	postgres.Stdout, postgres.Stderr = log, log
	if s.process, err = child.Start(postgres); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.process.Await(ctx, s.admin.PingContext); err != nil {
		s.process.Kill()
		s.process = nil
		return fmt.Errorf("start PostgreSQL on %s:%d: %w\n%s", s.Host, s.Port, err, child.Tail(s.LogFile()))
	}
	return nil
}

// Stop ends the server, and with it all connections. Its data stays.
func (s *Server) Stop() error {
	if s.process == nil {
		return nil
	}
	// SIGINT ends sessions; SIGTERM would wait for them.
	err := s.process.End(syscall.SIGINT, endTimeout)
	s.process = nil
	if err != nil {
		return fmt.Errorf("stop PostgreSQL: %w\n%s", err, child.Tail(s.LogFile()))
	}
	return nil
}

// Close ends the server, and removes its data. It fails where the server had ended
// by itself.
func (s *Server) Close() error {
	var err error
	if s.admin != nil {
		err = s.admin.Close()
	}
	return errors.Join(err, s.Stop(), s.remove())
}

// URL is the address of the database for a user, whose name and password may be
// templates of a vault.
func (s *Server) URL(user, password string) string {
	return fmt.Sprintf("postgresql://%s:%s@%s/%s?sslmode=disable", user, password, net.JoinHostPort(s.Host, strconv.Itoa(s.Port)), Database)
}

// Exec executes a statement as the superuser.
func (s *Server) Exec(ctx context.Context, statement string) error {
	_, err := s.admin.ExecContext(ctx, statement)
	return err
}

// Roles are the names of the users that a vault made and that may log in, sorted:
// those that begin with "v-".
func (s *Server) Roles(ctx context.Context) ([]string, error) {
	rows, err := s.admin.QueryContext(ctx, "SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname LIKE 'v-%' ORDER BY rolname")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var roles []string
	for rows.Next() {
		var role string
		if err := rows.Scan(&role); err != nil {
			return nil, err
		}
		roles = append(roles, role)
	}
	return roles, rows.Err()
}

// Login logs in, and out. The error is ErrRefused where the server does not know
// this user with this password, or no longer lets it in.
func (s *Server) Login(ctx context.Context, user, password string) error {
	connector, err := s.connector(user, password)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	err = db.PingContext(ctx)
	if refusal := pq.As(err, pqerror.InvalidPassword); refusal != nil {
		return fmt.Errorf("%w: %w", ErrRefused, refusal)
	}
	return err
}

// ErrRefused is what Login returns for a login that the server refused.
var ErrRefused = errors.New("the login was refused")

func (s *Server) connector(user, password string) (*pq.Connector, error) {
	return pq.NewConnectorConfig(pq.Config{
		Host: s.Host, Port: uint16(s.Port), Database: Database, User: user, Password: password,
		SSLMode: pq.SSLModeDisable, ConnectTimeout: connectTimeout,
	})
}
