package main

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// set is the name of the folder that holds the floor's files.
const set = "..2026_01_01_00_00_00.1234567890"

// floorPublish does what no driver can do without to bring files to a pod, and
// nothing else: a folder, a tmpfs mounted on it, and files in the layout that
// kubelet's atomic writer gives them.
func floorPublish(target string, files map[string]string) error {
	if err := os.Mkdir(target, 0o750); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=8m,mode=0755"); err != nil {
		return &os.PathError{Op: "mount", Path: target, Err: err}
	}
	if err := os.Mkdir(filepath.Join(target, set), 0o755); err != nil {
		return err
	}
	for name, contents := range files {
		if err := os.WriteFile(filepath.Join(target, set, name), []byte(contents), 0o644); err != nil {
			return err
		}
	}
	if err := os.Symlink(set, filepath.Join(target, "..data_tmp")); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(target, "..data_tmp"), filepath.Join(target, "..data")); err != nil {
		return err
	}
	for name := range files {
		if err := os.Symlink("..data/"+name, filepath.Join(target, name)); err != nil {
			return err
		}
	}
	return nil
}

// floorUnpublish takes away what floorPublish made.
func floorUnpublish(target string) error {
	if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "unmount", Path: target, Err: err}
	}
	return os.Remove(target)
}
