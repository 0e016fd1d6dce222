package volume

import (
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The driver's container has a mount namespace of its own, whose view of
// kubelet's folder is a peer of the host's (mountPropagation: Bidirectional).
func TestAVolumeShowsInPeerNamespaces(t *testing.T) {
	host := t.TempDir()
	if err := unix.Mount("tmpfs", host, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(host, unix.MNT_DETACH)
	if err := unix.Mount("", host, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	r := f.request("web")
	r.TargetPath = filepath.Join(host, "web", "mount")

	inDriver := func(call func() error) {
		t.Helper()
		result := make(chan error)
		go func() {
			runtime.LockOSThread() // for good: the thread ends in its namespace
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				result <- err
				return
			}
			result <- call()
		}()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
	}
	inDriver(func() error { return f.Publish(t.Context(), r) })
	if !f.isMounted(t, r.TargetPath) || visible(t, r.TargetPath)["a"] != "1" {
		t.Fatal("the host does not see the volume")
	}
	f.set(map[string]string{"a": "2"}, nil)
	inDriver(func() error { _, err := f.Refresh(t.Context(), r.TargetPath); return err })
	if got := visible(t, r.TargetPath)["a"]; got != "2" {
		t.Errorf("the host reads %q", got)
	}
	inDriver(func() error { return f.Unpublish(t.Context(), r.VolumeID, r.TargetPath) })
	f.assertNothing(t, r)
}
