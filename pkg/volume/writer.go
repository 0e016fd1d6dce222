package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// The entries of a volume's root are those of Kubernetes' own secret volumes
// (k8s.io/kubernetes/pkg/volume/util, AtomicWriter):
//
//	..2026_11_21_07_30_00.1234567890/   one whole set of files
//	..data -> ..2026_11_21_07_30_00.1234567890
//	NAME -> ..data/NAME                 for each file or folder of the set
//	..changed                           when that was another set last, if the class asks for it
//
// A reader that opens NAME, or watches ..data, sees the whole old set or the
// whole new one. Unlike with Kubernetes' own volumes, the old set stays for a while: who
// has followed ..data to it, in one system call or by itself, still finds the files.
const (
	dataLink    = "..data"
	dataNewLink = "..data_tmp"
	ownPrefix   = ".."
	// changedFile has the time of the last change, where the class asks for that.
	changedFile = "..changed"
	// newEntryLink is a link on its way to replace an entry that is no link.
	newEntryLink = "..entry_tmp"
)

const (
	// linger is how long the old set stays, and leastLinger how long where the next
	// change comes before that: it waits, for a volume has room for two sets.
	linger      = time.Second
	leastLinger = 50 * time.Millisecond
)

// pageBytes is the unit in which a tmpfs hands out space.
const pageBytes = 4096

// A link as long as this takes a page of its own.
const shortLinkBytes = 128

// setBytes is the space that a set of files takes in a tmpfs.
func setBytes(files []provider.File) int64 {
	var n int64
	for _, f := range files {
		n += (int64(f.Contents.Len()) + pageBytes - 1) / pageBytes * pageBytes
		if len(f.Path) >= shortLinkBytes-len(dataLink)-1 {
			n += pageBytes
		}
	}
	return n
}

// writeSet makes files the set that t holds and reports whether it was another
// one before. groupRead opens every file to the group that owns the volume, as
// kubelet does for a pod's fsGroup. Callers keep writers of one tmpfs apart.
//
// Up to the rename of step 3, t holds the old set and an error leaves it as it
// was. After it, t holds the new one; whatever could not be tidied by then, or
// was cut short by a crash, the next writeSet or tidy completes.
//
//  1. The sets before this one are removed, with what a crash left. If the set is
//     the same, nothing is written.
//  2. The new set is written to a folder of its own.
//  3. ..data is renamed over to it: from here on it is the volume's set.
//  4. New entries get their links, entries that went lose theirs.
//
// The old set is left to a later tidy.
func writeSet(t *tree, files []provider.File, groupRead bool) (changed bool, err error) {
	// Step 1.
	current, present, err := tidy(t)
	if err != nil {
		return false, err
	}
	if current != "" {
		same, err := sameSet(t.root, current, files, groupRead)
		if err != nil || same {
			return false, err
		}
	}
	return replaceSet(t, present, files, groupRead)
}

// replaceSet does steps 2 to 4 of writeSet, for a root with these entries
// beside the volume's own.
func replaceSet(t *tree, present entrySet, files []provider.File, groupRead bool) (changed bool, err error) {
	root := t.root
	// Step 2.
	next, err := makeSetFolder(root)
	if err != nil {
		return false, fmt.Errorf("make a folder for the new files: %w", err)
	}
	defer func() {
		if err != nil && !changed {
			err = errors.Join(err, root.RemoveAll(next))
		}
	}()
	if err := writeFiles(t, next, files, groupRead); err != nil {
		return false, err
	}
	// Step 3.
	if err := root.Symlink(next, dataNewLink); err != nil {
		return false, fmt.Errorf("make the link to the new files: %w", err)
	}
	if err := root.Rename(dataNewLink, dataLink); err != nil {
		return false, errors.Join(fmt.Errorf("switch to the new files: %w", err), root.Remove(dataNewLink))
	}
	changed = true
	// Step 4.
	return changed, linkEntries(root, topNames(files), present)
}

// waitForReaders returns when the current set is old enough for that before it to be
// removed. A clock that was set back does not make it wait for longer.
func (t *tree) waitForReaders() {
	if link, err := t.root.Lstat(dataLink); err == nil {
		time.Sleep(min(leastLinger-time.Since(link.ModTime()), leastLinger))
	}
}

// tidy removes every set but the current one, whose name it returns, when that is
// old enough, and what a crash left, and makes the links of the current set right.
// Without a current set the name is "" and whatever else there is stays, which a
// provider of old may have written. It returns the entries that are not the volume's
// own.
func tidy(t *tree) (current string, present entrySet, err error) {
	root := t.root
	current, err = root.Readlink(dataLink)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", nil, fmt.Errorf("read the link to the current files: %w", err)
	}
	if current != "" {
		if info, err := root.Stat(current); err != nil || !info.IsDir() || strings.Contains(current, "/") {
			current = "" // a link to nowhere stands for no set
		}
	}
	all, err := entries(root, ".")
	if err != nil {
		return "", nil, err
	}
	present = entrySet{}
	for name, e := range all {
		switch {
		case !strings.HasPrefix(name, ownPrefix):
			present[name] = e
		case name != dataLink && name != current && name != changedFile:
			t.waitForReaders()
			if err := root.RemoveAll(name); err != nil {
				return "", nil, fmt.Errorf("remove the files of before: %w", err)
			}
		}
	}
	if current == "" {
		return "", present, nil
	}
	set, err := entries(root, current)
	if err != nil {
		return "", nil, err
	}
	wanted := slices.Collect(maps.Keys(set))
	if err := linkEntries(root, wanted, present); err != nil {
		return "", nil, err
	}
	present, err = entries(root, ".")
	maps.DeleteFunc(present, func(name string, _ fs.DirEntry) bool { return strings.HasPrefix(name, ownPrefix) })
	return current, present, err
}

// entrySet holds the entries of a folder by name.
type entrySet map[string]fs.DirEntry

// topNames returns the first components of the files' paths, each once.
func topNames(files []provider.File) (names []string) {
	for _, f := range files {
		name, _, _ := strings.Cut(f.Path, "/")
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// linkEntries gives each wanted name its link into the current set, and removes
// every other entry of those present.
func linkEntries(root *os.Root, wanted []string, present entrySet) error {
	gone := maps.Clone(present)
	for _, name := range wanted {
		link := dataLink + "/" + name
		old := present[name]
		delete(gone, name)
		if old == nil {
			if err := root.Symlink(link, name); err != nil {
				return fmt.Errorf("link the new entry %q: %w", name, err)
			}
			continue
		}
		if to, err := root.Readlink(name); err == nil && to == link {
			continue
		}
		if err := replaceEntry(root, old, link); err != nil {
			return fmt.Errorf("link the entry %q: %w", name, err)
		}
	}
	for name := range gone {
		if err := root.RemoveAll(name); err != nil {
			return fmt.Errorf("remove the old entry %q: %w", name, err)
		}
	}
	return nil
}

// replaceEntry puts a link in the place of an entry that something else made.
func replaceEntry(root *os.Root, old fs.DirEntry, link string) error {
	if old.IsDir() {
		if err := root.RemoveAll(old.Name()); err != nil {
			return err
		}
	}
	if err := root.Symlink(link, newEntryLink); err != nil {
		return err
	}
	return root.Rename(newEntryLink, old.Name())
}

// makeSetFolder makes an empty folder with a name that no earlier set had.
func makeSetFolder(root *os.Root) (string, error) {
	for {
		name := fmt.Sprintf("%s%s.%d", ownPrefix, time.Now().UTC().Format("2006_01_02_15_04_05"), rand.Uint32())
		if err := root.Mkdir(name, 0o755); !errors.Is(err, fs.ErrExist) {
			return name, err
		}
	}
}

func writeFiles(t *tree, folder string, files []provider.File, groupRead bool) error {
	for _, f := range files {
		if dir := path.Dir(f.Path); dir != "." {
			if err := t.root.MkdirAll(folder+"/"+dir, 0o755); err != nil {
				return fmt.Errorf("make the folder of %q: %w", f.Path, err)
			}
		}
		if err := writeFile(t, folder+"/"+f.Path, f, groupRead); err != nil {
			return fmt.Errorf("write %q: %w", f.Path, bare(err))
		}
	}
	return nil
}

// writeFile makes a new file. The kernel resolves its path beneath the tmpfs,
// through no link, as os.Root would with more system calls.
func writeFile(t *tree, name string, f provider.File, groupRead bool) error {
	fd, err := unix.Openat2(t.fd, name, &unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	w := os.NewFile(uintptr(fd), name)
	defer w.Close()
	if _, err := w.Write(f.Contents.Reveal()); err != nil {
		return err
	}
	if err := w.Chmod(fileMode(f, groupRead)); err != nil {
		return err
	}
	return w.Close()
}

func fileMode(f provider.File, groupRead bool) fs.FileMode {
	if groupRead {
		return f.Mode | 0o440
	}
	return f.Mode
}

// sameSet reports whether the folder holds just these files, with these modes
// and contents.
func sameSet(root *os.Root, folder string, files []provider.File, groupRead bool) (bool, error) {
	have := 0
	err := fs.WalkDir(root.FS(), folder, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			have++
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("list the current files: %w", err)
	}
	if have != len(files) {
		return false, nil
	}
	for _, f := range files {
		same, err := sameFile(root, folder+"/"+f.Path, f, groupRead)
		if err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

func sameFile(root *os.Root, name string, f provider.File, groupRead bool) (bool, error) {
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return false, nil
	case err != nil:
		return false, err
	case info.Mode() != fileMode(f, groupRead), info.Size() != int64(f.Contents.Len()):
		return false, nil
	}
	held, err := root.ReadFile(name)
	defer clear(held)
	if err != nil {
		return false, fmt.Errorf("read the current %q: %w", f.Path, bare(err))
	}
	return slices.Equal(held, f.Contents.Reveal()), nil
}

// current returns the folder of the current set, "" where there is none.
func (t *tree) current() string {
	name, err := t.root.Readlink(dataLink)
	if err != nil {
		return ""
	}
	return name
}

// touch writes a time to changedFile, in place: whoever watches that file sees it
// change, which is not so with the files of a set.
func (t *tree) touch(at time.Time) error {
	fd, err := unix.Openat2(t.fd, changedFile, &unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_CLOEXEC | unix.O_NOFOLLOW, Mode: 0o444, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", changedFile, err)
	}
	w := os.NewFile(uintptr(fd), changedFile)
	_, err = w.WriteAt([]byte(at.UTC().Format("2006-01-02T15:04:05.000000000Z07:00\n")), 0)
	return errors.Join(err, w.Close())
}

// file returns a copy of a file of the current set.
func (t *tree) file(name string) (secret.Value, bool) {
	if provider.CheckPath(name) != nil {
		return secret.Value{}, false
	}
	held, err := t.root.ReadFile(dataLink + "/" + name)
	if err != nil {
		return secret.Value{}, false
	}
	return secret.New(held), true
}

// maxReads bounds how often a set is read that another takes the place of meanwhile.
const maxReads = 10

// files returns the name of the current set, its files, and when it became the
// current one.
func (t *tree) files() (set string, files []provider.File, since time.Time, err error) {
	for range maxReads {
		link, err := t.root.Lstat(dataLink)
		if err != nil {
			return "", nil, time.Time{}, bare(err)
		}
		set = t.current()
		files, err = readSet(t.root, set)
		// Each set has a link of its own. Nobody begins to remove one before that.
		if after, linkErr := t.root.Lstat(dataLink); linkErr == nil && os.SameFile(link, after) {
			return set, files, link.ModTime(), err
		}
		provider.Result{Files: files}.Clear()
	}
	return "", nil, time.Time{}, errors.New("it changes all the time")
}

// readSet returns the files of a set.
func readSet(root *os.Root, folder string) (files []provider.File, err error) {
	err = fs.WalkDir(root.FS(), folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		contents, err := root.ReadFile(name)
		files = append(files, provider.File{Path: strings.TrimPrefix(name, folder+"/"), Mode: info.Mode(), Contents: secret.New(contents)})
		return err
	})
	if err != nil {
		provider.Result{Files: files}.Clear()
		return nil, bare(err)
	}
	return files, nil
}

// wipe removes everything that root holds.
func wipe(root *os.Root) error {
	all, err := entries(root, ".")
	for name := range all {
		err = errors.Join(err, root.RemoveAll(name))
	}
	return err
}

func entries(root *os.Root, folder string) (entrySet, error) {
	f, err := root.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("list the volume: %w", err)
	}
	defer f.Close()
	list, err := f.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("list the volume: %w", err)
	}
	all := make(entrySet, len(list))
	for _, e := range list {
		all[e.Name()] = e
	}
	return all, nil
}

// bare takes the path out of an error: it names a folder that is gone by the
// time a person reads it.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
