package volume

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"
)

// hardened are the attributes of every mount of a volume.
const hardened = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// moveMountBeneath is MOVE_MOUNT_BENEATH of linux/mount.h (Linux 6.5).
const moveMountBeneath = 0x200

// tmpfsOptions are those of one volume's tmpfs.
type tmpfsOptions struct {
	size    int64  // bytes
	noswap  bool   // keep the pages out of swap
	fsGroup *int64 // the group that owns every file and folder; nil for root's
}

// tree is a mount of a volume's tmpfs that no path leads to. It alone may be
// written: what a pod sees is mounted read-only. When the process ends, the
// kernel takes the tree away, and with it the tmpfs where that was not
// attached to a target.
type tree struct {
	fd   int
	root *os.Root
}

// newTree makes an empty tmpfs. The new mount API (Linux 5.2; 5.12 for the
// attributes that attach sets) lets it be filled before anybody can see it,
// and costs no fork, which mount(8) through mount-utils would.
func newTree(o tmpfsOptions) (*tree, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open a tmpfs (it takes Linux 5.12 and CAP_SYS_ADMIN): %w", err)
	}
	defer unix.Close(fs)
	mode := "0755"
	if o.fsGroup != nil {
		mode = "2755" // files and folders below take over the group
		if err := unix.FsconfigSetString(fs, "gid", strconv.FormatInt(*o.fsGroup, 10)); err != nil {
			return nil, fmt.Errorf("give the tmpfs to the pod's fsGroup %d: %w", *o.fsGroup, err)
		}
	}
	if err := configure(fs, o, "mode", mode, "source", "tmpfs"); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make a tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, hardened)
	if err != nil {
		return nil, fmt.Errorf("mount a tmpfs: %w", err)
	}
	return openRoot(fd)
}

func configure(fs int, o tmpfsOptions, more ...string) error {
	options := append([]string{"size", strconv.FormatInt(o.size, 10)}, more...)
	for i := 0; i < len(options); i += 2 {
		if err := unix.FsconfigSetString(fs, options[i], options[i+1]); err != nil {
			return fmt.Errorf("set the tmpfs option %s=%s: %w", options[i], options[i+1], err)
		}
	}
	if o.noswap {
		if err := unix.FsconfigSetFlag(fs, "noswap"); err != nil {
			return fmt.Errorf("set the tmpfs option noswap: %w", err)
		}
	}
	return nil
}

// openTree makes a writable mount of the tmpfs that is mounted at target.
func openTree(target string) (*tree, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("open the mount at %s: %w", target, err)
	}
	if err := requireTmpfs(fd, target); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: hardened, Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make a writable mount of %s: %w", target, err)
	}
	return openRoot(fd)
}

func openRoot(fd int) (*tree, error) {
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open the root of the tmpfs: %w", err)
	}
	return &tree{fd, root}, nil
}

// close gives the tree up. The tmpfs stays where it was attached.
func (t *tree) close() {
	_ = t.root.Close()
	_ = unix.Close(t.fd)
}

// attach closes the tree and mounts it on the folder that target has open, in
// one step, read-only unless writable is set.
func (t *tree) attach(target *os.File, writable bool) error {
	defer unix.Close(t.fd)
	_ = t.root.Close()
	if !writable {
		if err := unix.MountSetattr(t.fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make the mount read-only: %w", err)
		}
	}
	if err := unix.MoveMount(t.fd, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the mount to %s: %w", target.Name(), err)
	}
	return nil
}

// makeWritable replaces the read-only mount at target by a writable one of the
// same tmpfs, as secrets-store-csi-driver needs it. (The flags of a mount do not
// propagate from one mount namespace to others; a mount does.)
func makeWritable(target string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", target, err)
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		return nil
	}
	t, err := openTree(target)
	if err != nil {
		return err
	}
	top, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		t.close()
		return fmt.Errorf("open the target path %s: %w", target, err)
	}
	// Linux 6.5 puts the new mount below the old one, so that there always is one.
	err = unix.MoveMount(t.fd, "", top, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH|moveMountBeneath)
	_ = unix.Close(top)
	if err == nil {
		t.close()
		return unmount(target)
	}
	if err := unmount(target); err != nil {
		t.close()
		return err
	}
	folder, err := makeTarget(target)
	if err != nil {
		t.close()
		return err
	}
	defer folder.Close()
	return t.attach(folder, true)
}

// resize gives the tmpfs another size. Whether its pages may be swapped was decided
// when it was made, perhaps by another driver.
func (t *tree) resize(o tmpfsOptions) error {
	err := t.reconfigure(o)
	if o.noswap && errors.Is(err, unix.EINVAL) {
		o.noswap = false
		err = t.reconfigure(o)
	}
	return err
}

func (t *tree) reconfigure(o tmpfsOptions) error {
	fs, err := unix.Fspick(t.fd, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open the tmpfs to change its size: %w", err)
	}
	defer unix.Close(fs)
	if err := configure(fs, o); err != nil {
		return err
	}
	if err := unix.FsconfigReconfigure(fs); err != nil {
		return fmt.Errorf("change the size of the tmpfs to %d bytes: %w", o.size, err)
	}
	return nil
}

// size is the tmpfs's bound in bytes.
func (t *tree) size() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(t.fd, &st); err != nil {
		return 0, err
	}
	return int64(st.Blocks) * int64(st.Bsize), nil
}

// probeTmpfs tells whether this kernel lets us make a volume, and whether it
// can keep one out of swap (Linux 6.4, in the first user namespace only).
func probeTmpfs() (noswap bool, err error) {
	for _, noswap := range []bool{true, false} {
		var t *tree
		if t, err = newTree(tmpfsOptions{size: 1 << 20, noswap: noswap}); err == nil {
			t.close()
			return noswap, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return false, err
		}
	}
	return false, err
}

func requireTmpfs(fd int, target string) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", target, err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%w: %s is a mount of another file system (type %#x), not a volume of this driver; unmount it", ErrForeign, target, st.Type)
	}
	return nil
}

// isMounted reports whether something is mounted at target itself. A target
// that does not exist is not mounted.
func isMounted(mounter mount.Interface, target string) (bool, error) {
	not, err := mounter.IsLikelyNotMountPoint(target)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	case err != nil && mount.IsCorruptedMnt(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("look whether %s is mounted: %w", target, err)
	}
	return !not, nil
}

// unmount takes away what is mounted at target, the uppermost mount only. One
// that is in use goes out of sight at once and altogether when it no longer is.
func unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}
