package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// controlGroup is the group, below that of the host, of all pods of a cluster.
func controlGroup(cluster string) string { return "/csi-secrets-cluster/" + cluster }

// controlGroupRoots are the mounted hierarchies: one for each controller, or one
// for all in version 2.
func controlGroupRoots() ([]string, error) {
	mounts, err := mounts()
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, m := range mounts {
		if m.kind == "cgroup" || m.kind == "cgroup2" {
			roots = append(roots, m.path)
		}
	}
	if roots == nil {
		return nil, errors.New("this machine has no control groups mounted")
	}
	return roots, nil
}

// makeControlGroup makes a group in every hierarchy, and in version 2 hands the
// controllers down to it.
func makeControlGroup(group string) error {
	roots, err := controlGroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := root
		for _, part := range strings.Split(strings.Trim(group, "/"), "/") {
			handDownControllers(dir)
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make a control group: %w", err)
			}
		}
	}
	return nil
}

// handDownControllers gives children of a group the controllers that it can.
// What is missing in the end, kubelet names.
func handDownControllers(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return // version 1
	}
	for _, controller := range strings.Fields(string(data)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
	}
}

// removeControlGroups removes all groups of a cluster, whose processes are gone
// or about to go. The parent goes with the last cluster.
func removeControlGroups(ctx context.Context, cluster string) error {
	roots, err := controlGroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		top := filepath.Join(root, controlGroup(cluster))
		err := poll(ctx, 10*time.Second, "remove control group "+top, func(context.Context) error { return removeTree(top) })
		if err != nil {
			return err
		}
		_ = os.Remove(filepath.Dir(top))
	}
	return nil
}

// removeTree removes a folder of folders, whose files are the kernel's.
func removeTree(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
