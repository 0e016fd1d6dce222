package faults

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
)

// mount mounts a tmpfs, and takes it away at the end of the test.
func (n *node) mount(at, options string) {
	n.t.Helper()
	n.must(unix.Mount("tmpfs", at, "tmpfs", 0, options))
	n.t.Cleanup(func() { n.kill(); _ = unix.Unmount(at, unix.UMOUNT_NOFOLLOW) })
}

// readOnly lets nobody write to a folder, until it is made writable again.
func (n *node) readOnly(dir string) (writable func()) {
	n.t.Helper()
	n.must(unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	n.must(unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	return func() { n.t.Helper(); n.must(unix.Unmount(dir, 0)) }
}

// fill takes all the space of a file system, and returns the file that does.
func (n *node) fill(dir string) (hog string) {
	n.t.Helper()
	hog = filepath.Join(dir, "hog")
	f, err := os.Create(hog)
	n.must(err)
	defer f.Close()
	for page := make([]byte, 4096); err == nil; {
		_, err = f.Write(page)
	}
	return hog
}

// writable makes a writable mount of the volume, outside of the node.
func (n *node) writable() (path string) {
	n.t.Helper()
	path = n.layout.Root + ".volume"
	n.must(os.Mkdir(path, 0o755))
	n.must(unix.Mount(n.target(), path, "", unix.MS_BIND, ""))
	n.t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH); _ = os.Remove(path) })
	n.must(unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	return path
}

func TestAFullStateFolder(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.serve(oldSet)
	n.mount(n.layout.State(), "size=64k")
	n.start(noInterval)

	hog := n.fill(n.layout.State())
	n.refused(codes.Internal, "record", "no space left on device")
	n.must(os.Remove(hog))
	n.gone()
	n.must(n.publish())
	n.must(n.holds(oldSet))

	hog = n.fill(n.layout.State())
	n.serve(newSet)
	n.awaitSet(newSet) // files matter more than a record
	n.must(n.unpublish())
	n.must(os.Remove(hog))
	n.must(n.stateMatches())
}

// A restart on a full disk must not cost other volumes their records.
func TestARestartWithAFullStateFolder(t *testing.T) {
	t.Parallel()
	other := standalone.Volume{Pod: "other", Class: "app"}
	n := newNode(t, other)
	n.serve(oldSet)
	n.mount(n.layout.State(), "size=64k")
	n.start(noInterval)
	n.must(n.publish())
	n.kill()
	hog := n.fill(n.layout.State())
	n.start(noInterval)
	n.must(n.holds(oldSet))
	if err := n.driver.Publish(n.ctx, other); err != nil {
		t.Logf("the publish of another volume: %v", err) // it may find room or not
	}
	n.kill()
	n.must(os.Remove(hog))
	records, err := n.layout.Records()
	n.must(err)
	if _, ok := records[n.target()]; !ok {
		t.Errorf("the volume is mounted and its record is lost; there are those of %q", slices.Collect(maps.Keys(records)))
	}
	n.start(noInterval)
	n.must(n.driver.Publish(n.ctx, other))
	n.must(n.publish())
	n.must(n.stateMatches())
	n.must(n.driver.Unpublish(n.ctx, other))
	n.must(n.unpublish())
	n.gone()
}

func TestAReadOnlyStateFolder(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.serve(oldSet)
	n.start(noInterval)
	n.must(n.publish())
	n.kill()
	writable := n.readOnly(n.layout.State())
	driver, err := standalone.Start(n.ctx, n.layout, n.log, binary, n.layout.Arguments()...)
	if err == nil {
		driver.Kill()
		t.Error("the driver starts with a state folder that it cannot write to")
	}
	n.awaitLog("state folder")
	n.awaitLog("read-only file system")
	n.must(n.holds(oldSet))
	writable()
	n.start(noInterval)
	n.must(n.holds(oldSet))
	n.must(n.unpublish())
	n.gone()
}

func TestATargetThatCannotBeMade(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.serve(oldSet)
	n.start(noInterval)
	writable := n.readOnly(filepath.Dir(n.target()))
	n.refused(codes.Internal, "target path", "read-only file system")
	writable()
	n.gone()
	n.must(n.publish())
	n.must(n.holds(oldSet))
	n.must(n.unpublish())
	n.gone()
}

func TestAVolumeThatIsTooSmall(t *testing.T) {
	t.Parallel()
	large := set{"large": {canary + strings.Repeat("x", 40<<10), 0o644}}
	small := func(n *node, s set) {
		n.t.Helper()
		n.writeClass("local", fmt.Sprintf("path: %s\n    volumeSize: 64Ki", n.source(s)))
	}
	n := newNode(t)
	small(n, large)
	n.start(noInterval)
	n.refused(codes.ResourceExhausted, "volumeSize", "88Ki")
	n.gone()
	small(n, oldSet)
	n.awaitPublish()
	n.must(n.holds(oldSet))
	small(n, large)
	n.awaitLog("volumeSize")
	n.must(n.holds(oldSet))
	n.must(n.unpublish())
}

// A refresh that fails half-way leaves the old set and no part of the new one.
func TestR10AFailedWriteLeavesNoPlaintext(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.serve(oldSet)
	n.start(noInterval)
	n.must(n.publish())
	// What is in the folder of the current set stays as long as that does.
	volume := n.writable()
	current, err := os.Readlink(filepath.Join(volume, "..data"))
	n.must(err)
	hog := n.fill(filepath.Join(volume, current))
	n.serve(newSet)
	n.awaitLog("no space left on device")
	n.must(eventually(func() error { // the refresh may be repeated
		own, err := filepath.Glob(filepath.Join(volume, "..*"))
		if err == nil && len(own) != 2 {
			err = fmt.Errorf("the volume has other sets or links than its current ones: %q", own)
		}
		return err
	}))
	n.must(os.Remove(hog))
	if _, s, err := readSet(n.target()); !s.equal(oldSet) {
		t.Errorf("after a refresh that failed: %v, %v", s, err)
	}
	n.kill()
	n.start(noInterval) // without the back-off
	n.awaitSet(newSet)
	n.must(n.unpublish())
}
