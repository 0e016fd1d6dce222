package faults

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// gone checks that there is no target any more.
func (n *node) gone() {
	n.t.Helper()
	if _, err := os.Lstat(n.target()); !errors.Is(err, fs.ErrNotExist) {
		n.t.Errorf("the target is still there: %v", err)
	}
	n.must(n.stateMatches())
}

// process runs a program that does nothing, in a folder and perhaps in a mount
// namespace of its own, until the test ends.
func (n *node) process(dir string, namespace uintptr) (pid int) {
	n.t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespace}
	n.must(cmd.Start())
	n.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// victim makes a folder outside of the node that nobody may touch.
func (n *node) victim() (path string) {
	n.t.Helper()
	path = filepath.Join(n.secrets, "victim")
	n.must(writeFiles(path, set{"precious": {"of somebody else", 0o600}, "folder/precious": {"too", 0o600}}))
	n.t.Cleanup(func() {
		for _, name := range []string{"precious", "folder/precious"} {
			if _, err := os.Stat(filepath.Join(path, name)); err != nil {
				n.t.Errorf("the driver has destroyed what is not its own: %v", err)
			}
		}
	})
	return path
}

func TestUnpublishOfAVolumeInUse(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.serve(oldSet)
	n.start(noInterval)
	n.must(n.publish())
	n.process(n.target(), 0)
	f, err := os.Open(filepath.Join(n.target(), "a"))
	n.must(err)
	defer f.Close()
	container := n.process("/", unix.CLONE_NEWNS)
	elsewhere := n.writable() // such a mount outlives the target
	n.must(n.unpublish())
	n.gone()
	for _, copied := range []string{elsewhere, filepath.Join("/proc", fmt.Sprint(container), "root", n.target())} {
		v, err := look(copied, oldSet)
		n.must(err)
		if !v.withdrawn() {
			t.Errorf("a copy of the mount still has the values: %s", v)
		}
	}
}

func TestUnpublishOfATargetThatIsMountedTwice(t *testing.T) {
	t.Parallel()
	for name, mount := range map[string]func(n *node) error{
		"an empty tmpfs over the volume": func(n *node) error { return unix.Mount("tmpfs", n.target(), "tmpfs", 0, "") },
		"the volume over itself":         func(n *node) error { return unix.Mount(n.target(), n.target(), "", unix.MS_BIND, "") },
		"a folder of somebody else":      func(n *node) error { return unix.Mount(n.victim(), n.target(), "", unix.MS_BIND, "") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.serve(oldSet)
			n.start(noInterval)
			n.must(n.publish())
			n.must(mount(n))
			n.must(n.unpublish())
			n.gone()
		})
	}
}

func TestATargetThatIsAMountOfSomebodyElse(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.serve(oldSet)
	n.start(noInterval)
	n.must(os.Mkdir(n.target(), 0o750))
	n.must(unix.Mount(n.victim(), n.target(), "", unix.MS_BIND, ""))
	// Where the victim lies on a tmpfs, the driver cannot tell it from a volume.
	var st unix.Statfs_t
	n.must(unix.Statfs(n.target(), &st))
	if st.Type == unix.TMPFS_MAGIC {
		t.Skip("the temporary folder is a tmpfs")
	}
	if err := n.publish(); err == nil {
		t.Error("a publish over a mount of somebody else is answered OK")
	}
	n.must(n.unpublish())
	n.gone()
}

// The driver is not there while its volume is unmounted and a link is put in
// the target's place.
func TestATargetThatBecameALink(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.serve(oldSet)
	n.start(noInterval)
	n.must(n.publish())
	n.kill()
	victim := n.victim()
	n.must(unix.Unmount(n.target(), unix.UMOUNT_NOFOLLOW))
	n.must(os.Remove(n.target()))
	n.must(os.Symlink(victim, n.target()))
	n.start(noInterval)

	for what, call := range map[string]func() error{"publish": n.publish, "unpublish": n.unpublish} {
		if err := call(); err == nil {
			t.Errorf("%s through a link is answered OK", what)
		}
	}
	list, err := os.ReadDir(victim)
	n.must(err)
	if len(list) != 2 {
		t.Errorf("the folder behind the link was changed: %v", list)
	}
	n.must(os.Remove(n.target()))
	n.must(n.publish())
	n.must(n.holds(oldSet))
	n.must(n.unpublish())
	n.gone()
}

// An older provider wrote plain files to the target's folder itself.
func TestATargetWithPlainFilesOfAnOlderProvider(t *testing.T) {
	t.Parallel()
	for name, life := range map[string]func(n *node){
		"that is only unpublished": func(n *node) { n.must(n.unpublish()) },
		"that is published first": func(n *node) {
			n.must(n.publish())
			n.must(n.holds(oldSet))
			n.must(n.unpublish())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.serve(oldSet)
			n.must(writeFiles(n.target(), generation(0, "a", "nested/b")))
			n.must(os.Symlink(n.victim(), filepath.Join(n.target(), "link")))
			n.start(noInterval)
			life(n)
			n.gone()
		})
	}
}

// foreign mounts a tmpfs at the target as secrets-store-csi-driver does, with
// this set in it and what its crashes left, or empty.
func (n *node) foreign(s set) {
	n.t.Helper()
	n.must(os.Mkdir(n.target(), 0o750))
	n.must(unix.Mount("tmpfs", n.target(), "tmpfs", 0, "mode=0644"))
	if len(s) == 0 {
		return
	}
	const current = "..2026_01_02_03_04_05.1234567890"
	n.must(writeFiles(filepath.Join(n.target(), current), s))
	n.must(writeFiles(filepath.Join(n.target(), "..2026_01_02_03_04_04.1"), generation(0, "a", "torn")))
	n.must(os.Symlink(current, filepath.Join(n.target(), "..data")))
	n.must(os.Symlink("..2026_01_02_03_04_04.1", filepath.Join(n.target(), "..data_tmp")))
	for name := range s.entries() {
		n.must(os.Symlink("..data/"+name, filepath.Join(n.target(), name)))
	}
}

// What a pod has open of the mount of another driver is filled, for a second
// mount would not reach it.
func TestTheTakeOverOfARunningPod(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.foreign(oldSet)
	n.serve(newSet)
	pod := filepath.Join("/proc", fmt.Sprint(n.process("/", unix.CLONE_NEWNS)), "root", n.target())
	open, err := os.OpenRoot(n.target())
	n.must(err)
	defer open.Close()

	n.start(noInterval)
	n.must(n.publish())
	n.awaitSet(newSet) // the old one stays for a while
	n.must(n.stateMatches())
	if text, err := open.ReadFile("a"); string(text) != newSet["a"].text {
		t.Errorf("through a folder that was open: %q, %v", text, err)
	}
	if _, s, err := readSet(pod); !s.equal(newSet) {
		t.Errorf("in the mount namespace of the pod: %v, %v", s, err)
	}
	n.must(n.unpublish())
	n.gone()
}

func TestTheTakeOverOfARunningPodWhoseClassIsBroken(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	old := generation(1, "a", "b", "nested/kept")
	n.foreign(old)
	for path, f := range old {
		old[path] = file{f.text, 0o600} // as foreign writes them
	}
	n.writeClass("local", "path: /does/not/exist")
	n.start(noInterval)
	n.must(n.publish())
	n.must(n.holds(old))
	n.must(n.publish())
	n.serve(newSet)
	n.awaitSet(newSet)
	n.must(n.unpublish())
	n.gone()
}

// R1: secrets-store-csi-driver answers OK without a mount where the folder of a
// failed first publish is younger than the rotation interval. kubelet leaves
// that folder after an answer that is not final.
func TestR1ARetryAfterAFailedFirstPublishIsNotAnsweredOKWithNothingMounted(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]struct {
		provider, parameters string
		code                 codes.Code
	}{
		"a provider that is away":        {"away", "key: value", codes.Unavailable},
		"a volume that is too small":     {"local", "path: SOURCE\n    volumeSize: 64Ki", codes.ResourceExhausted},
		"a source that is not yet there": {"local", "path: /does/not/exist", codes.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			large := n.source(set{"large": {canary + strings.Repeat("x", 40<<10), 0o644}})
			n.writeClass(failure.provider, strings.ReplaceAll(failure.parameters, "SOURCE", large))
			n.start("--rotation-poll-interval=1h")
			n.must(os.Mkdir(n.target(), 0o750))
			n.refused(failure.code)
			n.must(os.MkdirAll(n.target(), 0o750))
			n.refused(failure.code)
			n.kill()
			n.must(os.MkdirAll(n.target(), 0o750))
			n.start("--rotation-poll-interval=1h")
			n.refused(failure.code)
			n.serve(oldSet)
			n.awaitPublish()
			n.must(n.holds(oldSet))
			n.must(n.unpublish())
			n.gone()
		})
	}
}

// R2: secrets-store-csi-driver takes an empty tmpfs at the target, as a kill
// between its mount and its writes leaves, for a published volume.
func TestR2AnEmptyTmpfsAtTheTargetIsNotTakenForAVolume(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.foreign(nil)
	n.writeClass("local", "path: /does/not/exist")
	n.start(noInterval)
	n.refused(codes.NotFound)
	n.kill()

	n.foreign(nil)
	var before, after unix.Stat_t
	n.must(unix.Stat(n.target(), &before))
	n.serve(oldSet)
	n.start(noInterval)
	n.must(n.publish())
	n.must(n.holds(oldSet))
	n.must(unix.Stat(n.target(), &after))
	if before.Dev != after.Dev {
		t.Error("another tmpfs was mounted: a pod that has the first sees nothing")
	}
	n.must(n.unpublish())
	n.gone()
}

// R9: secrets-store-csi-driver lets calls for one target interleave.
func TestR9CallsForOneVolumeEndInOneState(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.serve(oldSet)
	n.start("--rotation-poll-interval=20ms")
	calls := map[string]func() error{"publish": n.publish, "unpublish": n.unpublish}
	for round := range 20 {
		var group sync.WaitGroup
		for range 64 {
			what := "publish"
			// Publishes alone meet where nothing is mounted yet.
			if round%2 == 1 && rand.IntN(2) == 0 {
				what = "unpublish"
			}
			group.Go(func() {
				if err := calls[what](); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		group.Wait()
		if v := n.look(); v.mounts > 0 {
			n.must(n.holds(oldSet))
		} else {
			n.gone()
		}
		n.must(n.stateMatches())
		n.must(n.unpublish())
		n.gone()
	}
}

// R10: secrets-store-csi-driver's writer fails for ever on a ..data_tmp that a
// kill left, and leaves sets of failed writes in plain text.
func TestR10ResidueDoesNotStopARefresh(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.serve(oldSet)
	n.start(noInterval)
	n.must(n.publish())
	volume := n.writable()
	n.must(os.Symlink("..2026_01_02_03_04_04.1", filepath.Join(volume, "..data_tmp")))
	n.must(writeFiles(filepath.Join(volume, "..2026_01_02_03_04_04.1"), generation(0, "a", "torn")))
	n.must(os.Symlink("..data/nowhere", filepath.Join(volume, "dangling")))
	n.serve(newSet)
	n.awaitSet(newSet)
	n.must(n.unpublish())
	n.gone()
}

// R10: secrets-store-csi-driver does not apply a changed mode alone.
func TestR10AChangedModeIsApplied(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.serve(oldSet)
	n.start(noInterval)
	n.must(n.publish())
	changed := set{}
	for path, f := range oldSet {
		changed[path] = file{f.text, 0o440}
	}
	n.serve(changed)
	n.awaitSet(changed)
	n.must(n.unpublish())
}

// R10: whether secrets-store-csi-driver can write a file "a" and a file "a/b"
// depends on the order of a map.
func TestR10AFileCannotBeAFolderToo(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	source := n.source(generation(1, "x", "y"))
	clash := fmt.Sprintf("path: %s\n    objects: |\n      - {objectName: x, objectAlias: a}\n      - {objectName: y, objectAlias: a/b}", source)
	n.writeClass("local", clash)
	n.start(noInterval)
	for range 8 {
		n.refused(codes.InvalidArgument, `"a/b"`)
	}
	n.serve(oldSet)
	n.awaitPublish()
	n.must(n.holds(oldSet))
	n.writeClass("local", clash)
	n.awaitLog("what was fetched before stays")
	n.must(n.holds(oldSet))
	n.must(n.unpublish())
	n.gone()
}
