package badinput

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/csi-secrets/csi-secrets/pkg/provider/plugin/plugintest"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

// shortly is the deadline of a call to a provider that does not answer: the
// driver answers a little before it.
const shortly = 2 * time.Second

func TestPluginAnswers(t *testing.T) {
	b := newBed(t)
	var mistakes []mistake
	add := func(name string, answer *v1alpha1.MountResponse, err error, code codes.Code, says ...string) {
		plugin := fmt.Sprint("plugin-", len(mistakes))
		plugintest.Serve(t, b.Layout.Providers(), plugin, func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
			return answer, err
		})
		b.AddClass(t, plugin, plugin, map[string]string{"objects": "any"})
		mistakes = append(mistakes, mistake{name: name, class: plugin, code: code,
			says: append(says, "class default/"+plugin)})
	}
	files := func(files ...*v1alpha1.File) *v1alpha1.MountResponse {
		return &v1alpha1.MountResponse{Files: files, ObjectVersion: []*v1alpha1.ObjectVersion{{Id: "a", Version: "1"}}}
	}
	file := func(path string, mode int32) *v1alpha1.File {
		return &v1alpha1.File{Path: path, Mode: mode, Contents: []byte("x")}
	}
	const cannot = "its answer cannot be mounted"

	add("no versions", &v1alpha1.MountResponse{Files: []*v1alpha1.File{file("a", 0o644)}}, nil, codes.Internal, "missing object versions")
	add("no files", files(), nil, codes.Internal, "it answered without files", "--driver-writes-secrets=true")
	add("nothing at all", &v1alpha1.MountResponse{}, nil, codes.Internal, "missing object versions")
	add("an error code", &v1alpha1.MountResponse{Error: &v1alpha1.Error{Code: "KeyVaultGone"}}, nil, codes.Internal, "mount request failed with provider error code KeyVaultGone", "log")
	add("an error code beside files", &v1alpha1.MountResponse{Error: &v1alpha1.Error{Code: "Half"}, Files: files(file("a", 0)).Files}, nil, codes.Internal, "provider error code Half")
	add("a mode of 512", files(file("a", 512)), nil, codes.Internal, `it gives file "a" the mode 512, which is not from 0 to 511`)
	add("a negative mode", files(file("a", -1)), nil, codes.Internal, "the mode -1")
	add("a path above the volume", files(file("../x", 0o644)), nil, codes.Internal, cannot, `"../x" contains ".."`)
	add("an absolute path", files(file("/etc/passwd", 0o644)), nil, codes.Internal, cannot, `"/etc/passwd" is absolute`)
	add("a path of the volume's own", files(file("..data/x", 0o644)), nil, codes.Internal, cannot, "kept for the volume's own entries")
	add("no path", files(file("", 0o644)), nil, codes.Internal, cannot, "must not be empty")
	add("a NUL in a path", files(file("a\x00b", 0o644)), nil, codes.Internal, cannot, `"a\x00b" contains a NUL byte`)
	add("300 bytes in a path", files(file(strings.Repeat("n", 300), 0o644)), nil, codes.Internal, cannot, "component of 300 bytes")
	add("5000 bytes in a path", files(file(strings.Repeat("component/", 500)+"x", 0o644)), nil, codes.Internal, cannot, "has 5001 bytes, more than 4096")
	add("a path twice", files(file("a", 0o644), file("a", 0o600)), nil, codes.Internal, cannot, `two objects have the same file path "a"`)
	add("a file that is a folder too", files(file("a", 0o644), file("a/b", 0o644)), nil, codes.Internal, cannot, `"a/b" needs a folder "a"`)
	add("5 MiB", files(&v1alpha1.File{Path: "a", Mode: 0o644, Contents: make([]byte, 5<<20)}), nil,
		codes.ResourceExhausted, "its answer is larger than 4194304 bytes", "--max-call-recv-msg-size")
	half := make([]byte, 1<<20)
	add("many files that do not fit", files(&v1alpha1.File{Path: "a", Contents: half}, &v1alpha1.File{Path: "b", Contents: half},
		&v1alpha1.File{Path: "c", Contents: half}, &v1alpha1.File{Path: "d", Contents: half[:1<<20-100]}, file("e", 0)), nil,
		codes.ResourceExhausted, "its 5 files take", "volumeSize to at least")

	for code, text := range map[codes.Code]string{
		codes.InvalidArgument: "no such parameter", codes.NotFound: "no such secret", codes.PermissionDenied: "not yours",
		codes.Unauthenticated: "who are you", codes.ResourceExhausted: "come back later", codes.FailedPrecondition: "not ready",
		codes.Unavailable: "store is down", codes.Internal: "oops", codes.Unknown: "what", codes.DeadlineExceeded: "store is slow", codes.Canceled: "store gave up",
	} {
		add(fmt.Sprintf("the status %v", code), nil, status.Error(code, text), code, text)
	}
	b.try(t, mistakes)
}

// A legacy provider is sent a folder to write its files to.
func TestLegacyPlugins(t *testing.T) {
	b := newBed(t, "--legacy-providers", "writer-0,writer-1,writer-2,writer-3,writer-4")
	var mistakes []mistake
	add := func(name string, write func(dir string) error, code codes.Code, says ...string) {
		plugin := fmt.Sprint("writer-", len(mistakes))
		plugintest.Serve(t, b.Layout.Providers(), plugin, func(_ context.Context, r *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
			return &v1alpha1.MountResponse{ObjectVersion: []*v1alpha1.ObjectVersion{{Id: "a", Version: "1"}}}, write(r.GetTargetPath())
		})
		b.AddClass(t, plugin, plugin, map[string]string{"objects": "any"})
		mistakes = append(mistakes, mistake{name: name, class: plugin, code: code,
			says: append(says, "class default/"+plugin, fmt.Sprintf("provider %q", plugin))})
	}
	add("writes nothing", func(string) error { return nil }, codes.Internal, "wrote none", "HostToContainer")
	add("makes a link", func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "a")) }, codes.Internal, `made "a", which is neither a file nor a folder`)
	add("makes a hidden folder of the volume's own", func(dir string) error {
		return errors.Join(os.Mkdir(filepath.Join(dir, "..data"), 0o755), os.WriteFile(filepath.Join(dir, "..data/a"), nil, 0o600))
	}, codes.Internal, "kept for the volume's own entries")
	add("writes, and fails", func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "a"), []byte("half"), 0o600), status.Error(codes.NotFound, "no such secret"))
	}, codes.NotFound, "no such secret")
	add("writes too much", func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "a"), make([]byte, 5<<20), 0o600)
	}, codes.ResourceExhausted, "volumeSize to at least")
	// Its size is found out by us, and named with the class alone.
	mistakes[len(mistakes)-1].says = mistakes[len(mistakes)-1].says[:2]
	b.try(t, mistakes)
}

func TestPluginSockets(t *testing.T) {
	b := newBed(t)
	var mistakes []mistake
	add := func(name string, deadline time.Duration, code codes.Code, says ...string) (socket string) {
		plugin := fmt.Sprint("plugin-", len(mistakes))
		b.AddClass(t, plugin, plugin, map[string]string{"objects": "any"})
		mistakes = append(mistakes, mistake{name: name, class: plugin, deadline: deadline, code: code,
			says: append(says, "class default/"+plugin, fmt.Sprintf("provider %q", plugin))})
		return filepath.Join(b.Layout.Providers(), plugin+".sock")
	}
	listen := func(socket string) *net.UnixListener {
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		return listener
	}

	add("no socket", 0, codes.Unavailable, "provider not found", b.Layout.Providers(), "DaemonSet")
	harness.WriteFile(t, add("a file in the socket's place", 0, codes.Internal, "it is a regular file, not a Unix socket"), "")
	dead := listen(add("a socket that nobody listens on", shortly, codes.DeadlineExceeded, "could not be reached within", "connection refused", "leaves a dead socket behind"))
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	listen(add("a listener that never accepts", shortly, codes.DeadlineExceeded, "could not be reached within", "does not answer as a gRPC server does"))
	garbage := listen(add("a listener that talks garbage", shortly, codes.DeadlineExceeded, "could not be reached within"))
	go func() {
		for {
			conn, err := garbage.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("HTTP/1.0 418 I am a teapot\r\n\r\n"))
			_ = conn.Close()
		}
	}()
	add("a provider that hangs", shortly, codes.DeadlineExceeded, "did not answer within", "the provider's log")
	plugintest.Serve(t, b.Layout.Providers(), mistakes[len(mistakes)-1].class, func(ctx context.Context, _ *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	b.try(t, mistakes)
}
