package volume

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onHost returns a fixture, and a request for a volume below a mount that is
// shared, as kubelet's folder is.
func onHost(t *testing.T) (*fixture, Request) {
	t.Helper()
	host := t.TempDir()
	if err := unix.Mount("tmpfs", host, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(host, unix.MNT_DETACH) })
	if err := unix.Mount("", host, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	r := f.request("web")
	r.TargetPath = filepath.Join(host, "web", "mount")
	return f, r
}

// The driver's container has a mount namespace of its own, whose view of
// kubelet's folder is a peer of the host's (mountPropagation: Bidirectional).
func TestAVolumeShowsInPeerNamespaces(t *testing.T) {
	f, r := onHost(t)

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
	inDriver(func() error { _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); return err })
	if got := visible(t, r.TargetPath)["a"]; got != "2" {
		t.Errorf("the host reads %q", got)
	}
	inDriver(func() error { return f.Unpublish(t.Context(), r.VolumeID, r.TargetPath) })
	f.assertNothing(t, r)
}

// Another driver writes to the mount at the target, in its own way. Pods have
// mounts of their own of the same tmpfs, and see no difference.
func TestAVolumeIsHandedBack(t *testing.T) {
	f, r := onHost(t)
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	pod := filepath.Join(t.TempDir(), "pod")
	if err := os.Mkdir(pod, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(r.TargetPath, pod, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(pod, unix.MNT_DETACH)
	theirs := filepath.Join(r.TargetPath, "theirs")
	if err := os.Mkdir(theirs, 0o755); err == nil {
		t.Fatal("the mount on the host is writable")
	}

	// The driver's mount namespace is another than the host's.
	f.writable = true
	restarted := make(chan struct{})
	go func() {
		defer close(restarted)
		runtime.LockOSThread() // for good
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			t.Error(err)
			return
		}
		f.restart(t)
	}()
	<-restarted
	if err := os.Mkdir(theirs, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(pod, "theirs")); err != nil {
		t.Errorf("the pod has another tmpfs: %v", err)
	}
	if err := os.Mkdir(filepath.Join(pod, "own"), 0o755); err == nil {
		t.Error("the pod can write")
	}
	if got := visible(t, pod)["a"]; got != "1" {
		t.Errorf("the pod reads %q", got)
	}
	if err := os.Remove(theirs); err != nil {
		t.Fatal(err)
	}
	f.set(map[string]string{"a": "2"}, nil)
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil || visible(t, pod)["a"] != "2" {
		t.Errorf("after a refresh the pod reads %v, %v", visible(t, pod), err)
	}
	// There is one mount only.
	if err := unix.Unmount(r.TargetPath, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil || f.isMounted(t, r.TargetPath) {
		t.Errorf("after an unmount it is mounted: %v", err)
	}
	next := f.request("next")
	if err := f.Publish(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(next.TargetPath, "theirs"), 0o755); err != nil {
		t.Error(err)
	}
}
