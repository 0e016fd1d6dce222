package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// canary is part of every secret value of these tests.
const canary = "canary-5fd1c4a9"

// file is one file of a set.
type file struct {
	text string
	mode fs.FileMode
}

// set is a set of files by their paths. An empty set stands for none.
type set map[string]file

func (s set) equal(other set) bool { return maps.Equal(s, other) }

// partOf reports whether all files of s are in whole, as they are there.
func (s set) partOf(whole set) bool {
	for path, f := range s {
		if whole[path] != f {
			return false
		}
	}
	return true
}

// entries are the names that the set has in the root of its volume.
func (s set) entries() map[string]bool {
	names := map[string]bool{}
	for path := range s {
		first, _, _ := strings.Cut(path, "/")
		names[first] = true
	}
	return names
}

// generation makes a set of files with these paths, whose contents tell which
// generation they are of.
func generation(g int, paths ...string) set {
	s := set{}
	for _, path := range paths {
		s[path] = file{fmt.Sprintf("%s generation %d of %s", canary, g, path), 0o644}
	}
	return s
}

// The sets between which the kills happen: another content of every file, one
// file added and one removed, in the root and in a folder, and another mode.
var (
	oldSet = generation(1, "a", "b", "gone", "nested/kept", "nested/gone")
	newSet = func() set {
		s := generation(2, "a", "b", "added", "nested/kept", "nested/deep/added")
		s["b"] = file{s["b"].text, 0o600}
		return s
	}()
)

// view is what a reader sees at a target.
type view struct {
	mounts int
	// link is where ..data leads to, set what is there, by one resolution.
	link string
	set  set
	// through has the texts that the entries of the root lead to, by path, for
	// the paths that were asked for; a path that leads nowhere is left out.
	through map[string]string
	// entries are the names in the root.
	entries []string
}

// look reads the volume at target through its set and through the links in the
// root for all the paths of these sets. The volume must hold still.
func look(target string, sets ...set) (view, error) {
	mounts, err := mountsBelow(target)
	if err != nil {
		return view{}, err
	}
	v := view{mounts: len(mounts), through: map[string]string{}}
	list, err := os.ReadDir(target)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	} else if err != nil {
		return v, err
	}
	for _, e := range list {
		v.entries = append(v.entries, e.Name())
	}
	if v.link, v.set, err = readSet(target); err != nil {
		return v, err
	}
	for _, s := range sets {
		for path := range s {
			text, err := os.ReadFile(filepath.Join(target, path))
			if err == nil {
				v.through[path] = string(text)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return v, err
			}
		}
	}
	return v, nil
}

// readSet opens the folder that ..data leads to once, and reads all of it.
func readSet(target string) (link string, s set, err error) {
	link, err = os.Readlink(filepath.Join(target, "..data"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, nil
	} else if err != nil {
		return "", nil, err
	}
	root, err := os.OpenRoot(filepath.Join(target, link))
	if err != nil {
		return link, nil, fmt.Errorf("..data leads to %s: %w", link, err)
	}
	defer root.Close()
	s = set{}
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := root.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			s[path] = file{string(text), info.Mode()}
		}
		return err
	})
	return link, s, err
}

// whole returns which of these sets the view shows, and why none where it is
// torn. A reader that opens NAME must get NAME of that set; only a name that
// not all sets have may lead nowhere.
func (v view) whole(sets ...set) (set, error) {
	which := slices.IndexFunc(sets, v.set.equal)
	if which < 0 {
		return nil, fmt.Errorf("the set behind ..data is none of those that it may be: %s", v)
	}
	shown := sets[which]
	inAll := func(path string) bool {
		return !slices.ContainsFunc(sets, func(s set) bool { _, ok := s[path]; return !ok })
	}
	for path, f := range shown {
		text, ok := v.through[path]
		if ok && text != f.text || !ok && inAll(path) {
			return nil, fmt.Errorf("the entry of %s leads to %q, and its set has %q: %s", path, text, f.text, v)
		}
	}
	for path, text := range v.through {
		if _, ok := shown[path]; !ok {
			return nil, fmt.Errorf("%s is not of the set and leads to %q: %s", path, text, v)
		}
	}
	return shown, nil
}

// tidy tells what there is in the root beyond the shown set, or is missing.
func (v view) tidy(shown set) error {
	want := shown.entries()
	want["..data"], want[v.link] = true, true
	for _, name := range v.entries {
		if !want[name] {
			return fmt.Errorf("the root holds %q, which does not belong to its set: %s", name, v)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		return fmt.Errorf("the root lacks %q: %s", slices.Sorted(maps.Keys(want)), v)
	}
	for path := range shown {
		if _, ok := v.through[path]; !ok {
			return fmt.Errorf("the entry of %s leads nowhere: %s", path, v)
		}
	}
	return nil
}

// withdrawn reports whether no reader gets anything.
func (v view) withdrawn() bool { return len(v.set) == 0 && len(v.through) == 0 }

func (v view) String() string {
	return fmt.Sprintf("%d mounts; entries %q; ..data -> %q; set %v; through the entries %q",
		v.mounts, v.entries, v.link, v.set, v.through)
}

// noValues tells of a regular file below root that holds a value and lies on
// the file system of root itself, which stands for the disk.
func noValues(root string) error {
	var disk, here unix.Stat_t
	if err := unix.Lstat(root, &disk); err != nil {
		return err
	}
	return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another test's
		} else if err != nil {
			return err
		}
		switch err := unix.Lstat(name, &here); {
		case err != nil:
			return nil
		case here.Dev != disk.Dev && d.IsDir():
			return fs.SkipDir
		case here.Dev != disk.Dev || !d.Type().IsRegular() || here.Size > 16<<20:
			return nil
		}
		text, err := os.ReadFile(name)
		if err == nil && bytes.Contains(text, []byte(canary)) {
			return fmt.Errorf("%s lies on a disk and holds a secret value", name)
		}
		return nil
	})
}

// mountsBelow lists the mounts at path and below it, as "PATH TYPE".
func mountsBelow(path string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []string
	for line := range strings.Lines(string(info)) {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
		before, after, _ := strings.Cut(line, " - ")
		at, fields := strings.Fields(before), strings.Fields(after)
		if len(at) < 5 || len(fields) < 1 {
			return nil, fmt.Errorf("cannot read mountinfo: %q", line)
		}
		if path == "/" || at[4] == path || strings.HasPrefix(at[4], path+"/") {
			mounts = append(mounts, at[4]+" "+fields[0])
		}
	}
	return mounts, nil
}

// eventually waits until check succeeds.
func eventually(check func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}
