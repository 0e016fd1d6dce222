package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

const (
	// maxSocketPath is the longest path of a socket in bytes: sun_path of
	// unix(7), less the NUL at its end.
	maxSocketPath = 107
	// lookAgain is how often the folders are looked at while a connection is
	// waited for: the provider may come back in another folder.
	lookAgain = 200 * time.Millisecond
	// maxBackoff bounds the wait between two attempts to connect, so that a
	// provider that returns is found soon.
	maxBackoff = time.Second
)

var (
	// errNoSocket and errClosed decide whether to go on looking for a socket.
	errNoSocket = errors.New("provider not found")
	errClosed   = errors.New("csi-secrets is stopping")
)

// socket is one Unix socket as it was found.
type socket struct {
	path string
	info fs.FileInfo
}

// same tells whether other is that very socket, and not one that a restarted
// provider made in its place. The time counts since inodes are used again.
func (s socket) same(other socket) bool {
	return s.path == other.path && os.SameFile(s.info, other.info) && s.info.ModTime().Equal(other.info.ModTime())
}

// find looks for NAME.sock in the folders; the first that has it decides. name
// must have passed provider.CheckName.
func (f *Finder) find(name string) (socket, error) {
	for _, folder := range f.folders {
		path := filepath.Join(folder, name+".sock")
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return socket{}, &provider.Error{Kind: provider.Internal, Object: fmt.Sprintf("provider %q", name), Op: "look for its socket", Err: err,
				Remedy: "check the path and the permissions of the provider folder"}
		case info.Mode().Type() != fs.ModeSocket:
			return socket{}, &provider.Error{Kind: provider.Internal, Object: at(name, path), Err: fmt.Errorf("it is %s, not a Unix socket", what(info.Mode())),
				Remedy: "remove it, and restart the provider"}
		case len(path) > maxSocketPath:
			return socket{}, &provider.Error{Kind: provider.Internal, Object: at(name, path), Err: fmt.Errorf("its path has %d bytes, and a Unix socket's path at most %d", len(path), maxSocketPath),
				Remedy: "choose a provider folder with a shorter path"}
		}
		return socket{path, info}, nil
	}
	return socket{}, &provider.Error{Kind: provider.Unavailable,
		Err:    fmt.Errorf("%w: provider %q has no socket %s.sock in %s", errNoSocket, name, name, strings.Join(f.folders, ", ")),
		Remedy: "is the provider's DaemonSet running on this node, with this folder mounted?"}
}

// what names the type of a file that is no socket.
func what(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return "a regular file"
	case mode.IsDir():
		return "a folder"
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	}
	return "a file of type " + mode.Type().String()
}

// link is a connection to one socket.
type link struct {
	socket socket
	conn   *grpc.ClientConn
	// dialed holds what came of the last attempt to dial the socket: an error,
	// or a nil one; it is empty before the first.
	dialed atomic.Pointer[error]

	// Guarded by Finder.mu.
	users   int
	retired bool // no new users; closed when the last one leaves
}

// newLink returns a link to s, without connecting it yet.
func (f *Finder) newLink(s socket) (*link, error) {
	l := &link{socket: s}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", s.path)
		l.dialed.Store(&err)
		return conn, err
	}
	// The target is only a name: the dialer knows the path, which as part of a
	// target would be read as a URL.
	conn, err := grpc.NewClient("passthrough:///provider",
		grpc.WithContextDialer(dial),
		grpc.WithAuthority("localhost"), // as secrets-store-csi-driver has it: some providers check it
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(f.maxMessageBytes)),
		grpc.WithDisableRetry(), // call repeats requests, on a new socket if there is one
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: f.connectTimeout,
		}))
	if err != nil {
		return nil, &provider.Error{Kind: provider.Internal, Object: "socket " + s.path, Op: "prepare a connection", Err: err}
	}
	l.conn = conn
	return l, nil
}

// connect returns a connected link to the provider of that name. It waits for
// socket, listener and handshake within ctx and for at most f.connectTimeout;
// what was missing at the end is the error. The caller must release the link.
func (f *Finder) connect(ctx context.Context, name string) (*link, error) {
	start := time.Now()
	window, cancel := context.WithTimeout(ctx, f.connectTimeout)
	defer cancel()
	for {
		l, err := f.take(name)
		switch {
		case err == nil:
			if l.ready(window) {
				return l, nil
			}
			ended := window.Err() != nil
			if ended {
				f.retire(name, l)
			}
			trouble := l.trouble()
			f.release(l)
			if ended {
				return nil, unreachable(ctx, at(name, l.socket.path), time.Since(start), trouble)
			}
		case !errors.Is(err, errNoSocket):
			return nil, err
		case !pause(window, lookAgain):
			if ctx.Err() != nil {
				return nil, unreachable(ctx, fmt.Sprintf("provider %q", name), time.Since(start), err)
			}
			return nil, err
		}
	}
}

// take finds the provider's socket and returns the link to it with one more
// user, a new link where there is none to that very socket.
func (f *Finder) take(name string) (*link, error) {
	s, err := f.find(name)
	if err != nil {
		f.retire(name, nil)
		return nil, err
	}
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil, &provider.Error{Kind: provider.Unavailable, Object: fmt.Sprintf("provider %q", name), Err: errClosed}
	}
	var unused *link
	l := f.links[name]
	if l != nil && !l.socket.same(s) {
		unused = f.detach(name, l)
		l = nil
	}
	if l == nil {
		if l, err = f.newLink(s); err == nil {
			f.links[name] = l
			f.open[l] = struct{}{}
		}
	}
	if err == nil {
		l.users++
	}
	f.mu.Unlock()
	unused.close()
	return l, err
}

// release ends one use of l.
func (f *Finder) release(l *link) {
	f.mu.Lock()
	var unused *link
	if l.users--; l.users == 0 && l.retired {
		delete(f.open, l)
		unused = l
	}
	f.mu.Unlock()
	unused.close()
}

// retire lets no new call use l, or whatever link the provider of that name
// has if l is nil. Calls on it go on; a connection that fails is not tried on.
func (f *Finder) retire(name string, l *link) {
	f.mu.Lock()
	var unused *link
	if now := f.links[name]; now != nil && (l == nil || l == now) {
		unused = f.detach(name, now)
	}
	f.mu.Unlock()
	unused.close()
}

// detach retires l and returns it if it has no user and is to be closed, once
// f.mu, which the caller holds, is free again.
func (f *Finder) detach(name string, l *link) *link {
	l.retired = true
	delete(f.links, name)
	if l.users > 0 {
		return nil
	}
	delete(f.open, l)
	return l
}

// Close ends every connection and, with an error, every request under way and
// to come. Closing again does nothing.
func (f *Finder) Close() error {
	f.mu.Lock()
	f.closed = true
	open := f.open
	f.open, f.links = map[*link]struct{}{}, map[string]*link{}
	f.mu.Unlock()
	var errs []error
	for l := range open {
		if err := l.conn.Close(); err != nil {
			errs = append(errs, fmt.Errorf("socket %s: close the connection: %w", l.socket.path, err))
		}
	}
	return errors.Join(errs...)
}

// close closes a link without users; nil is none.
func (l *link) close() {
	if l != nil {
		_ = l.conn.Close() // it fails only where it is closed already
	}
}

// ready waits until l is connected, for as long as ctx lasts and it is not yet
// time to look at the folders again.
func (l *link) ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, lookAgain)
	defer cancel()
	for {
		state := l.conn.GetState()
		switch state {
		case connectivity.Ready:
			return true
		case connectivity.Shutdown:
			return false
		case connectivity.Idle:
			l.conn.Connect()
		}
		if !l.conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
}

// trouble says why l is not connected.
func (l *link) trouble() error {
	if dialed := l.dialed.Load(); dialed != nil && *dialed != nil {
		var op *net.OpError
		if errors.As(*dialed, &op) {
			return op.Err // without the path, which the caller names
		}
		return *dialed
	}
	return errors.New("it takes connections, but does not answer as a gRPC server does")
}

// unreachable is the error for a provider to which there is no connection.
func unreachable(ctx context.Context, object string, after time.Duration, trouble error) error {
	op := fmt.Sprintf("%s could not be reached within %v", object, after.Round(roughly))
	if errors.Is(ctx.Err(), context.Canceled) {
		op = fmt.Sprintf("%s was not reached before the request was cancelled", object)
	}
	if ctx.Err() != nil {
		trouble = fmt.Errorf("%w (%w)", trouble, ctx.Err())
	}
	return &provider.Error{Kind: provider.Unavailable, Op: op, Err: trouble,
		Remedy: "is the provider's DaemonSet running and ready on this node? A provider that died leaves a dead socket behind"}
}
