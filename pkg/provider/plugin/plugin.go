// Package plugin reaches external providers: programs that speak the v1alpha1
// gRPC protocol of secrets-store-csi-driver over a Unix socket, such as the
// providers of the cloud vendors.
//
// A provider called "vault" is whoever listens on vault.sock in one of the
// provider folders. The folders are looked at anew for every request, so a
// provider may come, go, move and restart at any time. The protocol is that of
// provider/v1alpha1/service.proto in secrets-store-csi-driver 1.6.0.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// ProtocolVersion is the version of the protocol, as Version sends it.
const ProtocolVersion = "v1alpha1"

// DefaultMaxMessageBytes bounds one answer of a provider where Config gives no
// other bound: 4 MiB, as in gRPC and secrets-store-csi-driver.
const DefaultMaxMessageBytes = 4 << 20

const (
	// maxAttempts bounds how often one request is sent while the answer is UNAVAILABLE.
	maxAttempts = 3
	// firstPause is the wait before the second attempt; it doubles with each.
	firstPause = 250 * time.Millisecond
	// defaultConnectTimeout bounds the wait for a provider that does not listen.
	defaultConnectTimeout = 5 * time.Second
)

// Config says where providers are and how much one may answer.
type Config struct {
	// Folders hold the sockets, in order of preference; absolute paths. A folder
	// need not exist yet.
	Folders []string
	// MaxMessageBytes bounds one answer; zero means DefaultMaxMessageBytes.
	MaxMessageBytes int
	// Writers names the providers that write their files into the target path
	// and answer without them, as all once did. They get a folder of their own
	// to write to, Request.Scratch, in place of the target path.
	Writers []string
}

// Finder finds external providers by name and keeps one connection to each. It
// is safe for concurrent use. Close it after use.
type Finder struct {
	folders         []string
	maxMessageBytes int
	connectTimeout  time.Duration
	writers         []string

	mu     sync.Mutex
	closed bool
	links  map[string]*link   // by name of the provider: where new calls go
	open   map[*link]struct{} // those, and replaced ones that still carry calls
}

// New returns a Finder for the folders of c, or an error that names what is
// wrong with c. It opens nothing yet.
func New(c Config) (*Finder, error) {
	if len(c.Folders) == 0 {
		return nil, errors.New("there is no provider folder; give at least one")
	}
	for _, folder := range c.Folders {
		if !filepath.IsAbs(folder) {
			return nil, fmt.Errorf("the provider folder %q is not an absolute path", folder)
		}
	}
	if c.MaxMessageBytes < 0 {
		return nil, fmt.Errorf("the largest provider answer is %d bytes; it must be positive, or 0 for %d", c.MaxMessageBytes, DefaultMaxMessageBytes)
	}
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = DefaultMaxMessageBytes
	}
	return &Finder{
		folders:         slices.Clone(c.Folders),
		maxMessageBytes: c.MaxMessageBytes,
		connectTimeout:  defaultConnectTimeout,
		writers:         slices.Clone(c.Writers),
		links:           map[string]*link{},
		open:            map[*link]struct{}{},
	}, nil
}

// Get returns the external provider of that name. It looks for its socket and
// does not connect. Its errors are *provider.Error: Invalid for a name that
// cannot be one, Unavailable where there is no socket (it may appear later),
// Internal where there is something else in its place.
func (f *Finder) Get(name string) (provider.Provider, error) {
	if err := provider.CheckName(name); err != nil {
		return nil, err
	}
	if _, err := f.find(name); err != nil {
		return nil, err
	}
	return &external{finder: f, name: name}, nil
}

// Version asks the provider of that name which program it is, and of which
// version, as it calls itself. It is meant for health checks: a provider
// without a socket is an error at once. Errors are as those of Get and Fetch.
func (f *Finder) Version(ctx context.Context, name string) (runtimeName, runtimeVersion string, err error) {
	if _, err := f.Get(name); err != nil {
		return "", "", err
	}
	var answer *v1alpha1.VersionResponse
	_, err = f.call(ctx, name, asItIs, func(client v1alpha1.CSIDriverProviderClient) (err error) {
		answer, err = client.Version(ctx, &v1alpha1.VersionRequest{Version: ProtocolVersion})
		return err
	})
	return answer.GetRuntimeName(), answer.GetRuntimeVersion(), err
}

// external is a provider that is found anew for each request.
type external struct {
	finder *Finder
	name   string
}

var _ provider.Provider = (*external)(nil)

// Fetch sends req as one Mount request and returns what the provider answers,
// whose paths are not checked here. A provider whose socket or listener is
// missing is waited for, within ctx and for at most five seconds, so that one
// that just restarts is not missed. An answer UNAVAILABLE is asked for again,
// three times in all.
//
// Errors are *provider.Error and wrap the provider's own gRPC status where
// there is one, without the tokens and secrets of req.
func (e *external) Fetch(ctx context.Context, req provider.Request) (provider.Result, error) {
	writes := req.Scratch != nil && slices.Contains(e.finder.writers, e.name)
	if writes {
		dir, err := req.Scratch.Open()
		if err != nil {
			return provider.Result{}, fmt.Errorf("make a folder for the provider to write to: %w", err)
		}
		// It has no versions there: a provider that reads what it finds to be
		// current from the target path would find nothing.
		req.TargetPath, req.Mounted = dir, nil
	}
	message, err := encode(req)
	if err != nil {
		return provider.Result{}, err
	}
	hide := func(text string) string { return redact(text, req) }
	var answer *v1alpha1.MountResponse
	socket, err := e.finder.call(ctx, e.name, hide, func(client v1alpha1.CSIDriverProviderClient) (err error) {
		answer, err = client.Mount(ctx, message)
		return err
	})
	if err != nil {
		return provider.Result{}, err
	}
	result, err := decode(answer, writes, hide)
	if err != nil {
		var known *provider.Error
		if errors.As(err, &known) && known.Object == "" {
			known.Object = at(e.name, socket)
		}
		return provider.Result{}, err
	}
	return result, nil
}

// call makes one RPC to the provider of that name, and makes it again while the
// answer is UNAVAILABLE. It returns the path of the socket that answered. hide
// is applied to the provider's own words before they become an error.
func (f *Finder) call(ctx context.Context, name string, hide func(string) string, rpc func(v1alpha1.CSIDriverProviderClient) error) (string, error) {
	start := time.Now()
	wait := firstPause
	for attempt := 1; ; attempt++ {
		l, err := f.connect(ctx, name)
		if err != nil {
			return "", err
		}
		err = rpc(v1alpha1.NewCSIDriverProviderClient(l.conn))
		f.release(l)
		if err == nil {
			return l.socket.path, nil
		}
		if status.Code(err) != codes.Unavailable || attempt == maxAttempts || !pause(ctx, wait) {
			return "", f.failure(ctx, at(name, l.socket.path), time.Since(start), hide, err)
		}
		wait *= 2
	}
}

// pause waits about as long as d, a fifth more or less so that volumes do not
// ask in step. It reports false at once if ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	d += time.Duration((rand.Float64() - 0.5) * 0.4 * float64(d))
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func asItIs(text string) string { return text }

// at names a provider and its socket in errors.
func at(name, path string) string { return fmt.Sprintf("provider %q at %s", name, path) }
