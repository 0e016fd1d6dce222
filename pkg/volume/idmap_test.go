package volume

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A pod with a user namespace (hostUsers: false) gets its volumes by an idmapped
// mount, which the container runtime makes of the mount at the target.
func TestAVolumeCanBeMappedToAUserNamespace(t *testing.T) {
	if os.Getuid() != 0 || sandboxed(t) {
		t.Skip("an idmapped mount takes root in the first user namespace")
	}
	const shift = 100000
	f := newFixture(t)
	r := f.request("web")
	group := int64(2000)
	r.FSGroup = &group
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	holder := exec.Command("sleep", "60")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: shift, Size: 65536}}
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	users, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer users.Close()

	mapped := func() string {
		t.Helper()
		fd, err := unix.OpenTree(unix.AT_FDCWD, r.TargetPath, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}); err != nil {
			t.Fatalf("the mount of a volume cannot be idmapped: %v", err)
		}
		path := filepath.Join(fmt.Sprintf("/proc/self/fd/%d", fd), "a")
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s %d %d", text, st.Uid, st.Gid)
	}
	if got, want := mapped(), fmt.Sprintf("1 %d %d", shift, shift+group); got != want {
		t.Errorf("the pod reads and sees %q, want %q", got, want)
	}
	f.set(map[string]string{"a": "2"}, nil)
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	if got, want := mapped(), fmt.Sprintf("2 %d %d", shift, shift+group); got != want {
		t.Errorf("after a refresh the pod reads and sees %q, want %q", got, want)
	}
}

// sandboxed tells whether this process is in a user namespace that it made.
func sandboxed(t *testing.T) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	var inside, outside, size int64
	if _, err := fmt.Sscan(string(text), &inside, &outside, &size); err != nil {
		t.Fatal(err)
	}
	return size != 1<<32-1
}
