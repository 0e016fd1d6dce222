package postgres

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/csi-secrets/csi-secrets/test/cluster"
)

// programs is the folder of PostgreSQL's programs, which are installed if need be.
func programs(ctx context.Context, log io.Writer) (string, error) {
	if folder, ok := installed(); ok {
		return folder, nil
	}
	if os.Geteuid() != 0 {
		return "", ErrMissing
	}
	if err := cluster.InstallPackages(ctx, cluster.Options{Log: log}, "postgresql"); err != nil {
		return "", err
	}
	folder, ok := installed()
	if !ok {
		return "", fmt.Errorf("the package postgresql is installed, but there is no initdb in %s or PATH", debian)
	}
	return folder, nil
}

// debian has the programs of each version that is installed, outside PATH.
const debian = "/usr/lib/postgresql/*/bin"

func installed() (folder string, ok bool) {
	if found, _ := filepath.Glob(filepath.Join(debian, "initdb")); found != nil {
		return filepath.Dir(slices.MaxFunc(found, byVersion)), true
	}
	path, err := exec.LookPath("initdb")
	return filepath.Dir(path), err == nil
}

// byVersion compares paths of different versions of the same program.
func byVersion(a, b string) int {
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	return version(a) - version(b)
}

// user is who PostgreSQL runs as, which refuses to run as root: for root another
// user, for others they themselves.
type user struct {
	isOther  bool
	uid, gid int
	// hidden is for a root that no other user is known to, as in a user
	// namespace of one user: a namespace within it gives that user another
	// number.
	hidden bool
}

func unprivileged() (user, error) {
	if os.Geteuid() != 0 {
		return user{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		account, err := osuser.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(account.Uid)
		if err != nil {
			return user{}, err
		}
		gid, err := strconv.Atoi(account.Gid)
		if err != nil {
			return user{}, err
		}
		if known, err := mapped(uid); err != nil || !known {
			return user{hidden: true}, err
		}
		return user{isOther: true, uid: uid, gid: gid}, nil
	}
	return user{}, fmt.Errorf("PostgreSQL does not run as root, and there is no user postgres or nobody")
}

// mapped reports whether this process's user namespace knows a user.
func mapped(uid int) (bool, error) {
	f, err := os.Open("/proc/self/uid_map")
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var first, outside, count int
		if _, err := fmt.Sscan(lines.Text(), &first, &outside, &count); err != nil {
			return false, fmt.Errorf("read %s: %w", f.Name(), err)
		}
		if first <= uid && uid-first < count {
			return true, nil
		}
	}
	return false, lines.Err()
}

// own gives files to the user.
func (u user) own(paths ...string) error {
	if !u.isOther {
		return nil
	}
	for _, path := range paths {
		if err := os.Chown(path, u.uid, u.gid); err != nil {
			return err
		}
	}
	return nil
}

// attributes make a process the user's.
func (u user) attributes() *syscall.SysProcAttr {
	switch {
	case u.isOther:
		return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u.uid), Gid: uint32(u.gid)}}
	case u.hidden:
		const anyone = 1000
		return &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: anyone, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: anyone, HostID: os.Getegid(), Size: 1}},
		}
	default:
		return &syscall.SysProcAttr{}
	}
}
