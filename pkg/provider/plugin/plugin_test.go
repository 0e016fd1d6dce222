package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/plugin/plugintest"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// newFinder returns a Finder for folders that is closed with the test.
func newFinder(t testing.TB, folders ...string) *Finder {
	t.Helper()
	f, err := New(Config{Folders: folders})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// get returns the provider of that name, which must be there.
func get(t testing.TB, f *Finder, name string) provider.Provider {
	t.Helper()
	p, err := f.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// answering returns a mount function that always answers one file with text.
func answering(text string) func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	return func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		return plugintest.Files(map[string]string{"file": text}), nil
	}
}

// fetchText fetches from a provider that answers one file, and returns its text.
func fetchText(t testing.TB, p provider.Provider) string {
	t.Helper()
	result, err := p.Fetch(t.Context(), provider.Request{})
	if err != nil {
		t.Fatal(err)
	}
	return string(result.Files[0].Contents.Reveal())
}

// wantError checks the kind of err and that its text has every one of parts.
func wantError(t testing.TB, err error, kind provider.Kind, parts ...string) {
	t.Helper()
	var known *provider.Error
	if !errors.As(err, &known) {
		t.Fatalf("got %v, want a *provider.Error", err)
	}
	if known.Kind != kind {
		t.Errorf("kind is %v, want %v: %v", known.Kind, kind, err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got %q\nwant it to contain %q", err, part)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"no folders":          {},
		"a relative folder":   {Folders: []string{"/a", "b"}},
		"an empty folder":     {Folders: []string{""}},
		"a negative max size": {Folders: []string{"/a"}, MaxMessageBytes: -1},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRequestIsWhatTheProtocolSays(t *testing.T) {
	dir := plugintest.Dir(t)
	var got *v1alpha1.MountRequest
	var authority []string
	plugintest.Serve(t, dir, "p", func(ctx context.Context, req *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		got = req
		md, _ := metadata.FromIncomingContext(ctx)
		authority = md.Get(":authority")
		return plugintest.Files(map[string]string{"a": "1"}), nil
	})
	tokens := `{"vault":{"token":"eyJ.a.b","expirationTimestamp":"2026-01-01T00:00:00Z"}}`
	attributes := map[string]string{"secretProviderClass": "c", "csi.storage.k8s.io/pod.name": "pod", "same": "x"}
	for name, tc := range map[string]struct {
		req        provider.Request
		attributes map[string]string
		secrets    string
		permission string
	}{
		"everything": {
			req: provider.Request{
				Parameters: map[string]string{"objects": "- a: \"b\"\n\t\u2028<é>\n", "same": "x"}, Attributes: attributes,
				RawTokens:  secret.FromString(tokens),
				Secrets:    map[string]secret.Value{"z": secret.FromString("1\n"), "a": secret.FromString(`"\`)},
				TargetPath: "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount",
				Mode:       0o600,
				Mounted:    []provider.ObjectVersion{{ID: "a", Version: "7"}, {ID: "b", Version: "8"}},
			},
			attributes: map[string]string{
				"objects": "- a: \"b\"\n\t\u2028<é>\n", "secretProviderClass": "c", "csi.storage.k8s.io/pod.name": "pod", "same": "x",
				"csi.storage.k8s.io/serviceAccount.tokens": tokens,
			},
			secrets: `{"a":"\"\\","z":"1\n"}`, permission: "384",
		},
		"nothing":        {req: provider.Request{}, attributes: map[string]string{}, secrets: "null", permission: "420"},
		"empty secrets":  {req: provider.Request{Secrets: map[string]secret.Value{}}, attributes: map[string]string{}, secrets: "null", permission: "420"},
		"mode 0644":      {req: provider.Request{Mode: 0o644}, attributes: map[string]string{}, secrets: "null", permission: "420"},
		"an empty value": {req: provider.Request{Secrets: map[string]secret.Value{"a": {}}}, attributes: map[string]string{}, secrets: `{"a":""}`, permission: "420"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := get(t, newFinder(t, dir), "p").Fetch(t.Context(), tc.req); err != nil {
				t.Fatal(err)
			}
			var sent map[string]string
			if err := json.Unmarshal([]byte(got.GetAttributes()), &sent); err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(sent, tc.attributes) {
				t.Errorf("attributes are %v, want %v", sent, tc.attributes)
			}
			if got.GetSecrets() != tc.secrets {
				t.Errorf("secrets are %s, want %s", got.GetSecrets(), tc.secrets)
			}
			if got.GetPermission() != tc.permission {
				t.Errorf("permission is %s, want %s", got.GetPermission(), tc.permission)
			}
			if got.GetTargetPath() != tc.req.TargetPath {
				t.Errorf("target path is %s", got.GetTargetPath())
			}
			var versions []provider.ObjectVersion
			for _, v := range got.GetCurrentObjectVersion() {
				versions = append(versions, provider.ObjectVersion{ID: v.GetId(), Version: v.GetVersion()})
			}
			if !slices.Equal(versions, tc.req.Mounted) {
				t.Errorf("current versions are %v, want %v", versions, tc.req.Mounted)
			}
			if !slices.Equal(authority, []string{"localhost"}) {
				t.Errorf("authority is %v, want localhost", authority)
			}
		})
	}
}

func TestAnswerBecomesTheResult(t *testing.T) {
	dir := plugintest.Dir(t)
	plugintest.Serve(t, dir, "p", func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		return &v1alpha1.MountResponse{
			ObjectVersion: []*v1alpha1.ObjectVersion{{Id: "b", Version: "2"}, {Id: "a", Version: "1"}, {Id: "a", Version: "1"}},
			Error:         &v1alpha1.Error{},
			Files: []*v1alpha1.File{
				{Path: "top", Mode: 0o640, Contents: []byte("one")},
				{Path: "a/b/nested", Mode: 0, Contents: []byte{0, 0xff}},
				{Path: "../kept-for-fetch-to-refuse", Mode: 0o777},
			},
		}, nil
	})
	result, err := get(t, newFinder(t, dir), "p").Fetch(t.Context(), provider.Request{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range result.Files {
		got = append(got, fmt.Sprintf("%s %o %q", f.Path, f.Mode, string(f.Contents.Reveal())))
	}
	if want := []string{`top 640 "one"`, `a/b/nested 0 "\x00\xff"`, `../kept-for-fetch-to-refuse 777 ""`}; !slices.Equal(got, want) {
		t.Errorf("files are %q, want %q", got, want)
	}
	if want := []provider.ObjectVersion{{ID: "b", Version: "2"}, {ID: "a", Version: "1"}, {ID: "a", Version: "1"}}; !slices.Equal(result.Versions, want) {
		t.Errorf("versions are %v, want %v", result.Versions, want)
	}
	if result.NotModified || !result.ValidUntil.IsZero() {
		t.Error("the result says what no provider can say")
	}
}

func TestProviderIsFoundWhenItAppears(t *testing.T) {
	first, second := plugintest.Dir(t), plugintest.Dir(t)
	f := newFinder(t, first, second, filepath.Join(first, "missing"))
	_, err := f.Get("p")
	wantError(t, err, provider.Unavailable, `provider not found: provider "p"`, first, second, "DaemonSet")

	plugintest.Serve(t, second, "p", answering("from the second folder"))
	p := get(t, f, "p")
	if got := fetchText(t, p); got != "from the second folder" {
		t.Errorf("got the answer %s", got)
	}
	stop := plugintest.Serve(t, first, "p", answering("from the first folder"))
	if got := fetchText(t, p); got != "from the first folder" {
		t.Errorf("the first folder does not win: got the answer %s", got)
	}
	stop()
	if got := fetchText(t, p); got != "from the second folder" {
		t.Errorf("a provider that is gone still answers: %s", got)
	}
	if len(f.open) != 1 {
		t.Errorf("%d connections are open, want 1", len(f.open))
	}
}

func TestWhatIsInPlaceOfASocketIsNamed(t *testing.T) {
	dir := plugintest.Dir(t)
	if err := os.WriteFile(filepath.Join(dir, "file.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.sock"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop.sock", filepath.Join(dir, "loop.sock")); err != nil {
		t.Fatal(err)
	}
	plugintest.Serve(t, dir, "p", answering("x"))
	if err := os.Symlink("p.sock", filepath.Join(dir, "link.sock")); err != nil {
		t.Fatal(err)
	}
	f := newFinder(t, dir)
	for name, want := range map[string]string{"file": "a regular file", "folder": "a folder", "loop": "too many levels of symbolic links"} {
		_, err := f.Get(name)
		wantError(t, err, provider.Internal, want, name+".sock")
	}
	if got := fetchText(t, get(t, f, "link")); got != "x" {
		t.Errorf("a link to a socket answers %s", got)
	}
}

func TestNamesThatCannotBeAProviderAreRefused(t *testing.T) {
	f := newFinder(t, plugintest.Dir(t))
	for _, name := range []string{"", "../x", "a/b", ".", "x.sock", strings.Repeat("a", 31), "a\x00"} {
		_, err := f.Get(name)
		wantError(t, err, provider.Invalid, "invalid provider")
		_, _, err = f.Version(t.Context(), name)
		wantError(t, err, provider.Invalid, "invalid provider")
	}
}

func TestRestartedProviderAnswersAtOnce(t *testing.T) {
	for name, restart := range map[string]func(stop func(), serve func()){
		"after the old one ended":        func(stop, serve func()) { stop(); serve() },
		"while the old one still serves": func(_, serve func()) { serve() },
	} {
		t.Run(name, func(t *testing.T) {
			dir := plugintest.Dir(t)
			f := newFinder(t, dir)
			stop := plugintest.Serve(t, dir, "p", answering("old"))
			p := get(t, f, "p")
			if got := fetchText(t, p); got != "old" {
				t.Fatalf("got %s", got)
			}
			restart(stop, func() { plugintest.Serve(t, dir, "p", answering("new")) })
			if got := fetchText(t, p); got != "new" {
				t.Errorf("got %s, want new", got)
			}
			if len(f.open) != 1 {
				t.Errorf("%d connections are open, want 1", len(f.open))
			}
		})
	}
}

func TestCallUnderWayEndsOnTheSocketItBeganOn(t *testing.T) {
	dir := plugintest.Dir(t)
	f := newFinder(t, dir)
	began, goOn := make(chan struct{}), make(chan struct{})
	plugintest.Serve(t, dir, "p", func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		close(began)
		<-goOn
		return plugintest.Files(map[string]string{"file": "old"}), nil
	})
	p := get(t, f, "p")
	answer := make(chan string)
	go func() {
		result, err := p.Fetch(t.Context(), provider.Request{})
		if err != nil {
			answer <- err.Error()
			return
		}
		answer <- string(result.Files[0].Contents.Reveal())
	}()
	<-began
	plugintest.Serve(t, dir, "p", answering("new"))
	if got := fetchText(t, p); got != "new" {
		t.Errorf("a new call got %s", got)
	}
	close(goOn)
	if got := <-answer; got != "old" {
		t.Errorf("the call under way got %s", got)
	}
	if len(f.open) != 1 {
		t.Errorf("%d connections are open, want 1", len(f.open))
	}
}

func TestUnreachableProviderIsReportedAsSuch(t *testing.T) {
	// accepting serves connections with handle until the test ends.
	accepting := func(t *testing.T, path string, handle func(net.Conn)) {
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		var handlers sync.WaitGroup
		var held sync.Map
		handlers.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				held.Store(conn, nil)
				handle(conn)
			}
		})
		t.Cleanup(func() {
			_ = listener.Close()
			handlers.Wait()
			for conn := range held.Range {
				_ = conn.(net.Conn).Close()
			}
		})
	}
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, path string)
		want    string
	}{
		"nothing listens": {func(t *testing.T, path string) {
			listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			listener.SetUnlinkOnClose(false)
			_ = listener.Close()
		}, "connection refused"},
		"it takes connections and is silent": {func(t *testing.T, path string) {
			accepting(t, path, func(net.Conn) {})
		}, "does not answer as a gRPC server"},
		"it sends garbage": {func(t *testing.T, path string) {
			accepting(t, path, func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n\xff\x00\xfe")) })
		}, "does not answer as a gRPC server"},
		"it hangs up": {func(t *testing.T, path string) {
			accepting(t, path, func(c net.Conn) { _ = c.Close() })
		}, "does not answer as a gRPC server"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := plugintest.Dir(t)
			path := filepath.Join(dir, "p.sock")
			tc.prepare(t, path)
			f := newFinder(t, dir)
			f.connectTimeout = 300 * time.Millisecond
			p := get(t, f, "p")

			_, err := p.Fetch(t.Context(), provider.Request{})
			wantError(t, err, provider.Unavailable, tc.want, `provider "p" at `+path, "could not be reached within ", "DaemonSet")
			if len(f.open) != 0 {
				t.Error("the connection is tried on in the background")
			}

			f.connectTimeout = time.Minute
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err = p.Fetch(ctx, provider.Request{})
			wantError(t, err, provider.Unavailable, tc.want, path)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v does not tell that the deadline passed", err)
			}

			ctx, cancel = context.WithCancel(t.Context())
			cancel()
			_, err = p.Fetch(ctx, provider.Request{})
			wantError(t, err, provider.Unavailable, path, "cancelled")

			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			plugintest.Serve(t, dir, "p", answering("back"))
			if got := fetchText(t, p); got != "back" {
				t.Errorf("after its return it answers %s", got)
			}
		})
	}
}

func TestProviderWithoutAnswerIsReportedAsSuch(t *testing.T) {
	dir := plugintest.Dir(t)
	began := make(chan struct{}, 1)
	plugintest.Serve(t, dir, "p", func(ctx context.Context, _ *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		began <- struct{}{}
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	})
	p := get(t, newFinder(t, dir), "p")

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := p.Fetch(ctx, provider.Request{})
	wantError(t, err, provider.Unavailable, `provider "p" at `+filepath.Join(dir, "p.sock")+" did not answer within ")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v does not tell that the deadline passed", err)
	}
	<-began

	ctx, cancel = context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	_, err = p.Fetch(ctx, provider.Request{})
	wantError(t, err, provider.Unavailable, "cancelled")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not tell that it was cancelled", err)
	}
}

func TestRequestIsRepeatedWhereTheProviderDiesUnderIt(t *testing.T) {
	dir := plugintest.Dir(t)
	began := make(chan struct{}, 1)
	stop := plugintest.Serve(t, dir, "p", func(ctx context.Context, _ *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		began <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	p := get(t, newFinder(t, dir), "p")
	go func() {
		<-began
		stop()
		plugintest.Serve(t, dir, "p", answering("after the crash"))
	}()
	if got := fetchText(t, p); got != "after the crash" {
		t.Errorf("got %s", got)
	}
}

func TestProviderThatDiesAndStaysAwayIsNotFound(t *testing.T) {
	dir := plugintest.Dir(t)
	began := make(chan struct{}, 1)
	stop := plugintest.Serve(t, dir, "p", func(ctx context.Context, _ *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		began <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	f := newFinder(t, dir)
	f.connectTimeout = 300 * time.Millisecond
	go func() { <-began; stop() }()
	_, err := get(t, f, "p").Fetch(t.Context(), provider.Request{})
	wantError(t, err, provider.Unavailable, `provider not found: provider "p"`)
}

func TestOnlyUnavailableIsAskedForAgain(t *testing.T) {
	for code, want := range map[codes.Code]int32{codes.Unavailable: 3, codes.Internal: 1, codes.ResourceExhausted: 1, codes.Aborted: 1, codes.DeadlineExceeded: 1} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			dir := plugintest.Dir(t)
			var calls atomic.Int32
			plugintest.Serve(t, dir, "p", func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
				calls.Add(1)
				return nil, status.Error(code, "no")
			})
			if _, err := get(t, newFinder(t, dir), "p").Fetch(t.Context(), provider.Request{}); err == nil {
				t.Error("no error")
			}
			if got := calls.Load(); got != want {
				t.Errorf("asked %d times, want %d", got, want)
			}
		})
	}
	t.Run("and its second answer counts", func(t *testing.T) {
		dir := plugintest.Dir(t)
		var calls atomic.Int32
		plugintest.Serve(t, dir, "p", func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
			if calls.Add(1) == 1 {
				return nil, status.Error(codes.Unavailable, "sealed")
			}
			return plugintest.Files(map[string]string{"file": "open"}), nil
		})
		if got := fetchText(t, get(t, newFinder(t, dir), "p")); got != "open" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("but not beyond the deadline", func(t *testing.T) {
		dir := plugintest.Dir(t)
		plugintest.Serve(t, dir, "p", func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
			return nil, status.Error(codes.Unavailable, "sealed")
		})
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		_, err := get(t, newFinder(t, dir), "p").Fetch(ctx, provider.Request{})
		wantError(t, err, provider.Unavailable, "sealed")
	})
}

func TestStatusKeepsItsCodeAndGivesTheKind(t *testing.T) {
	dir := plugintest.Dir(t)
	var code codes.Code
	plugintest.Serve(t, dir, "p", func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		return nil, status.Errorf(code, "the store says %d", code)
	})
	p := get(t, newFinder(t, dir), "p")
	for c, kind := range map[codes.Code]provider.Kind{
		codes.Canceled: provider.Internal, codes.Unknown: provider.Internal, codes.InvalidArgument: provider.Invalid,
		codes.DeadlineExceeded: provider.Unavailable, codes.NotFound: provider.NotFound, codes.AlreadyExists: provider.Internal,
		codes.PermissionDenied: provider.Denied, codes.ResourceExhausted: provider.Throttled, codes.FailedPrecondition: provider.Invalid,
		codes.Aborted: provider.Unavailable, codes.OutOfRange: provider.Invalid, codes.Unimplemented: provider.Internal,
		codes.Internal: provider.Internal, codes.Unavailable: provider.Unavailable, codes.DataLoss: provider.Internal, codes.Unauthenticated: provider.Denied,
	} {
		t.Run(c.String(), func(t *testing.T) {
			code = c
			_, err := p.Fetch(t.Context(), provider.Request{})
			wantError(t, err, kind, fmt.Sprintf("the store says %d", c), `provider "p" at `+dir, "rpc error: code = "+c.String())
			wrapped := fmt.Errorf("failed to mount: %w", err)
			if st, ok := status.FromError(wrapped); !ok || st.Code() != c {
				t.Errorf("its status has code %v, want %v", st.Code(), c)
			}
			var own interface{ GRPCStatus() *status.Status }
			if !errors.As(wrapped, &own) || own.GRPCStatus().Message() != fmt.Sprintf("the store says %d", c) {
				t.Errorf("the provider's own status is not in %v", wrapped)
			}
		})
	}
}

func TestAnswerThatCannotBeUsed(t *testing.T) {
	version := []*v1alpha1.ObjectVersion{{Id: "a", Version: "1"}}
	mode := func(m int32) *v1alpha1.MountResponse {
		return &v1alpha1.MountResponse{ObjectVersion: version, Files: []*v1alpha1.File{{Path: "a/b", Mode: m}}}
	}
	dir := plugintest.Dir(t)
	var answer *v1alpha1.MountResponse
	plugintest.Serve(t, dir, "p", func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) { return answer, nil })
	p := get(t, newFinder(t, dir), "p")
	for name, tc := range map[string]struct {
		answer *v1alpha1.MountResponse
		kind   provider.Kind
		want   string
	}{
		"nothing at all":       {&v1alpha1.MountResponse{}, provider.Internal, "missing object versions"},
		"no versions":          {&v1alpha1.MountResponse{Files: []*v1alpha1.File{{Path: "a"}}}, provider.Internal, "missing object versions"},
		"no files":             {&v1alpha1.MountResponse{ObjectVersion: version}, provider.Internal, "--driver-writes-secrets=true"},
		"an error code":        {&v1alpha1.MountResponse{ObjectVersion: version, Error: &v1alpha1.Error{Code: "AuthFailed"}}, provider.Internal, "mount request failed with provider error code AuthFailed"},
		"a negative mode":      {mode(-1), provider.Internal, `"a/b" the mode -1`},
		"a mode above 0777":    {mode(0o1000), provider.Internal, `"a/b" the mode 512`},
		"the largest mode":     {mode(1<<31 - 1), provider.Internal, "the mode 2147483647"},
		"more than its bounds": {plugintest.Files(map[string]string{"big": strings.Repeat("x", 5<<20)}), provider.TooLarge, "larger than 4194304 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			answer = tc.answer
			_, err := p.Fetch(t.Context(), provider.Request{})
			wantError(t, err, tc.kind, tc.want, `provider "p" at `+dir)
			var known *provider.Error
			if errors.As(err, &known); name == "an error code" && known.Code != "AuthFailed" {
				t.Errorf("code is %q", known.Code)
			}
			if tc.kind == provider.TooLarge && !strings.Contains(err.Error(), "--max-call-recv-msg-size") {
				t.Errorf("%v does not name the flag", err)
			}
		})
	}
}

// raw sends and takes messages as they are.
type raw struct{}

func (raw) Name() string { return "raw" }
func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (raw) Unmarshal(_ mem.BufferSlice, _ any) error { return nil }

func TestAnswerThatIsNoMessageIsReportedAsSuch(t *testing.T) {
	for name, answer := range map[string]string{
		"a path not in UTF-8": "\x1a\x03\x0a\x01\xff", // files { path: "\xff" }
		"a cut message":       "\x1a\x7f\x0a",
		"a text":              "not found",
	} {
		t.Run(name, func(t *testing.T) {
			dir := plugintest.Dir(t)
			listener, err := net.Listen("unix", filepath.Join(dir, "p.sock"))
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
				return stream.SendMsg([]byte(answer))
			}))
			var serving sync.WaitGroup
			serving.Go(func() { _ = server.Serve(listener) })
			t.Cleanup(func() { server.Stop(); serving.Wait() })
			_, err = get(t, newFinder(t, dir), "p").Fetch(t.Context(), provider.Request{})
			wantError(t, err, provider.Internal, "its answer could not be read", `provider "p" at `+dir)
		})
	}
}

func TestVersionNamesTheProgram(t *testing.T) {
	dir := plugintest.Dir(t)
	f := newFinder(t, dir)
	_, _, err := f.Version(t.Context(), "p")
	wantError(t, err, provider.Unavailable, `provider not found: provider "p"`)
	plugintest.Serve(t, dir, "p", answering("x"))
	name, version, err := f.Version(t.Context(), "p")
	if err != nil || name != plugintest.RuntimeName || version != plugintest.RuntimeVersion {
		t.Errorf("got %q, %q, %v", name, version, err)
	}
}

func TestFetchesSurviveRestarts(t *testing.T) {
	dir := plugintest.Dir(t)
	f := newFinder(t, dir)
	var calls atomic.Int32
	enough := make(chan struct{}, 1)
	mount := func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		if calls.Add(1)%100 == 0 {
			select {
			case enough <- struct{}{}:
			default:
			}
		}
		return plugintest.Files(map[string]string{"file": "x"}), nil
	}
	stop := plugintest.Serve(t, dir, "p", mount)
	p := get(t, f, "p")
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			for range 10 {
				if _, err := p.Fetch(t.Context(), provider.Request{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 2 { // a call is sent three times, so it outlives two
		<-enough
		stop()
		stop = plugintest.Serve(t, dir, "p", mount)
	}
	all.Wait()
	if len(f.open) != 1 || len(f.links) != 1 {
		t.Errorf("%d connections are open, want 1", len(f.open))
	}
}

func TestCloseEndsEverything(t *testing.T) {
	dir := plugintest.Dir(t)
	f, err := New(Config{Folders: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	began := make(chan struct{})
	stop := plugintest.Serve(t, dir, "p", func(ctx context.Context, _ *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		close(began)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	p := get(t, f, "p")
	ended := make(chan error)
	go func() {
		_, err := p.Fetch(t.Context(), provider.Request{})
		ended <- err
	}()
	<-began
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	wantError(t, <-ended, provider.Unavailable, "stopping")
	_, err = p.Fetch(t.Context(), provider.Request{})
	wantError(t, err, provider.Unavailable, "stopping")
	stop()

	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		left := 0
		for stack := range strings.SplitSeq(string(stacks), "\n\n") {
			if strings.Contains(stack, "google.golang.org/grpc") {
				left++
			}
		}
		if left == 0 {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%d goroutines of gRPC are left:\n%s", left, stacks)
		case <-tick.C:
		}
	}
}

func TestPathTooLongForASocketIsNamed(t *testing.T) {
	dir := filepath.Join(plugintest.Dir(t), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// A socket can get there by a rename only.
	short := plugintest.Dir(t)
	plugintest.Serve(t, short, "p", answering("x"))
	if err := os.Rename(filepath.Join(short, "p.sock"), filepath.Join(dir, "p.sock")); err != nil {
		t.Fatal(err)
	}
	_, err := newFinder(t, dir).Get("p")
	wantError(t, err, provider.Internal, "at most 107")
}

func BenchmarkFetch(b *testing.B) {
	dir := plugintest.Dir(b)
	plugintest.Serve(b, dir, "p", func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		return plugintest.Files(map[string]string{"user": "app", "password": strings.Repeat("x", 64)}), nil
	})
	p := get(b, newFinder(b, dir), "p")
	req := provider.Request{
		Parameters: map[string]string{"objects": strings.Repeat("- objectName: a\n", 20)},
		Attributes: map[string]string{"secretProviderClass": "c", "csi.storage.k8s.io/pod.name": "pod"},
		RawTokens:  secret.FromString(`{"vault":{"token":"` + strings.Repeat("x", 900) + `"}}`),
		Mode:       fs.FileMode(0o644),
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Fetch(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

// scratch is one that opens as it says.
type scratch struct {
	dir string
	err error
}

func (s scratch) Open() (string, error)         { return s.dir, s.err }
func (scratch) Files() ([]provider.File, error) { return nil, nil }

func TestProviderThatWritesByItselfGetsAFolderOfItsOwn(t *testing.T) {
	folder := plugintest.Dir(t)
	var asked *v1alpha1.MountRequest
	plugintest.Serve(t, folder, "aws", func(_ context.Context, m *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		asked = m
		return &v1alpha1.MountResponse{ObjectVersion: []*v1alpha1.ObjectVersion{{Id: "a", Version: "1"}}}, nil
	})
	f, err := New(Config{Folders: []string{folder}, Writers: []string{"aws"}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := f.Get("aws")
	if err != nil {
		t.Fatal(err)
	}
	request := provider.Request{
		TargetPath: "/target", Mounted: []provider.ObjectVersion{{ID: "a", Version: "0"}},
		Scratch: scratch{"/scratch", nil},
	}
	result, err := p.Fetch(t.Context(), request)
	if err != nil || !result.InScratch || len(result.Versions) != 1 {
		t.Fatalf("got %+v, %v", result, err)
	}
	if asked.GetTargetPath() != "/scratch" || len(asked.GetCurrentObjectVersion()) > 0 {
		t.Errorf("it was asked to write to %q, where it has %v", asked.GetTargetPath(), asked.GetCurrentObjectVersion())
	}
	request.Scratch = scratch{"", errors.New("no memory")}
	asked = nil
	if _, err := p.Fetch(t.Context(), request); err == nil || asked != nil {
		t.Errorf("without a folder it was asked %v, %v", asked, err)
	}
}
