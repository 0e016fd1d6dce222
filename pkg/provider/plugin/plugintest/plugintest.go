// Package plugintest serves external providers to tests: a real gRPC server of
// the v1alpha1 protocol on a real Unix socket.
package plugintest

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

// What the provider says of itself when asked for its version.
const (
	RuntimeName    = "plugintest"
	RuntimeVersion = "1.2.3"
)

// Dir returns a new folder for sockets that goes with the test. Its path is
// short, unlike that of t.TempDir: a socket's path has at most 107 bytes.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "plugin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Serve starts a provider on NAME.sock in dir, in place of what has that name,
// and lets mount answer, which may run many times at once and must return soon
// after its context ends. It serves when
// Serve returns.
//
// stop ends it as a crash would: calls under way are cut off, and it waits for
// mount to return; the socket is removed unless another provider took its
// place. The end of the test stops it too. Stopping again does nothing.
func Serve(t testing.TB, dir, name string, mount func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error)) (stop func()) {
	t.Helper()
	path := filepath.Join(dir, name+".sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false) // by then the path may be another's
	mine, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	v1alpha1.RegisterCSIDriverProviderServer(server, &fake{mount: mount})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	stop = sync.OnceFunc(func() {
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve %s: %v", path, err)
		}
		if now, err := os.Lstat(path); err == nil && os.SameFile(mine, now) {
			_ = os.Remove(path)
		}
	})
	t.Cleanup(stop)
	return stop
}

type fake struct {
	v1alpha1.UnimplementedCSIDriverProviderServer
	mount func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error)
}

func (*fake) Version(context.Context, *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return &v1alpha1.VersionResponse{Version: "v1alpha1", RuntimeName: RuntimeName, RuntimeVersion: RuntimeVersion}, nil
}

func (f *fake) Mount(ctx context.Context, req *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	return f.mount(ctx, req)
}

// Files returns an answer that holds files by path, each of mode 0644, with one
// object version for each.
func Files(contents map[string]string) *v1alpha1.MountResponse {
	answer := &v1alpha1.MountResponse{}
	for path, text := range contents {
		answer.Files = append(answer.Files, &v1alpha1.File{Path: path, Mode: 0o644, Contents: []byte(text)})
		answer.ObjectVersion = append(answer.ObjectVersion, &v1alpha1.ObjectVersion{Id: path, Version: "1"})
	}
	return answer
}
