package volume

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// files makes a set out of paths and contents; a mode may stand before the
// content, as in "0400:value".
func files(set map[string]string) []provider.File {
	var out []provider.File
	for path, content := range set {
		f := provider.File{Path: path, Mode: provider.DefaultMode, Contents: secret.FromString(content)}
		if mode, rest, ok := strings.Cut(content, ":"); ok {
			f.Mode, _ = provider.ParseMode(mode)
			f.Contents = secret.FromString(rest)
		}
		out = append(out, f)
	}
	return out
}

// openDir takes a plain folder for a tmpfs.
func openDir(t *testing.T, dir string) *tree {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := openRoot(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.close)
	return tr
}

// mountAt attaches a tree to a folder until the test ends.
func mountAt(t *testing.T, tr *tree, dir string) {
	t.Helper()
	target, err := makeTarget(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := tr.attach(target, false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
	})
}

// visible returns what a pod sees below dir: contents by path.
func visible(t *testing.T, dir string) map[string]string {
	t.Helper()
	seen := map[string]string{}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		// WalkDir does not follow the link that it starts from.
		top, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatalf("entry %s leads nowhere: %v", e.Name(), err)
		}
		err = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, _ := filepath.Rel(top, path)
			content, err := os.ReadFile(path)
			seen[filepath.Join(e.Name(), rel)] = string(content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return seen
}

// own returns the entries of the root that are the volume's own.
func own(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), "..") {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestWriteSetShowsJustTheSetThatItWasGiven(t *testing.T) {
	dir := t.TempDir()
	tr := openDir(t, dir)
	for i, set := range []map[string]string{
		{"a": "1", "b": "1"},
		{"a": "2", "b": "2"},
		{"a": "2", "b": "2", "c/d": "2", "c/e/f": "2"},
		{"c/d": "2"},
		{"c": "a file where a folder was"},
		{"c/d": "and a folder again"},
		{},
		{"a": ""},
	} {
		changed, err := writeSet(tr, files(set), false)
		if err != nil || !changed {
			t.Fatalf("set %d: changed %v, %v", i, changed, err)
		}
		if got := visible(t, dir); !maps.Equal(got, set) {
			t.Errorf("set %d: got %v, want %v", i, got, set)
		}
		if _, _, err := tidy(tr); err != nil {
			t.Fatal(err)
		}
		if names := own(t, dir); len(names) != 2 {
			t.Errorf("set %d: the root holds %v, want ..data and one folder", i, names)
		}
	}
}

// A file that is in the old set and in the new one is never missing, however fast sets
// follow each other, and who holds on to a set has it for a while.
func TestNoFileIsMissingWhileSetsChange(t *testing.T) {
	dir := t.TempDir()
	tr := openDir(t, dir)
	write := func(text string) {
		if changed, err := writeSet(tr, files(map[string]string{"a/b": text, "c": text}), false); !changed || err != nil {
			t.Error(changed, err)
		}
	}
	write("first")
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for reads := 0; ; reads++ {
				select {
				case <-done:
					return
				default:
				}
				for _, name := range []string{"a/b", "c"} {
					if _, err := os.ReadFile(filepath.Join(dir, name)); err != nil {
						t.Errorf("read %d: %v", reads, err)
						return
					}
				}
			}
		})
	}
	for i := range 30 {
		held, err := filepath.EvalSymlinks(filepath.Join(dir, dataLink))
		if err != nil {
			t.Fatal(err)
		}
		write(fmt.Sprint(i))
		if _, err := os.ReadFile(filepath.Join(held, "c")); err != nil {
			t.Errorf("right after a change: %v", err)
		}
	}
	close(done)
	readers.Wait()
}

func TestAnUnchangedSetIsNotWrittenAgain(t *testing.T) {
	dir := t.TempDir()
	tr := openDir(t, dir)
	set := map[string]string{"a": "1", "b/c": "0400:2"}
	if _, err := writeSet(tr, files(set), false); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Readlink(filepath.Join(dir, dataLink))
	if changed, err := writeSet(tr, files(set), false); changed || err != nil {
		t.Errorf("changed %v, %v", changed, err)
	}
	if after, _ := os.Readlink(filepath.Join(dir, dataLink)); after != before {
		t.Error("the set got another folder")
	}
}

func TestAChangedModeAloneIsApplied(t *testing.T) {
	dir := t.TempDir()
	tr := openDir(t, dir)
	for _, mode := range []string{"0644", "0400", "0777", "0000"} {
		if changed, err := writeSet(tr, files(map[string]string{"a": mode + ":x"}), false); !changed || err != nil {
			t.Fatalf("%s: changed %v, %v", mode, changed, err)
		}
		info, err := os.Stat(filepath.Join(dir, "a"))
		if want, _ := provider.ParseMode(mode); err != nil || info.Mode() != want {
			t.Errorf("got %v, %v, want %v", info.Mode(), err, want)
		}
	}
}

func TestModesDoNotDependOnTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	if _, err := writeSet(openDir(t, dir), files(map[string]string{"a": "0666:x"}), false); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "a")); err != nil || info.Mode() != 0o666 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
}

func TestTheGroupCanReadEveryFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := writeSet(openDir(t, dir), files(map[string]string{"a": "0400:x", "b": "0600:x"}), true); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"a": 0o440, "b": 0o640} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: got %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
}

// Whatever a crash left, the next write removes it and is not held up by it.
func TestWhatACrashLeftIsRemoved(t *testing.T) {
	dir := t.TempDir()
	tr := openDir(t, dir)
	old := map[string]string{"a": "1", "gone": "1"}
	if _, err := writeSet(tr, files(old), false); err != nil {
		t.Fatal(err)
	}
	half := "..2020_01_01_00_00_00.1"
	if err := os.MkdirAll(filepath.Join(dir, half, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, half, "a"), []byte("half-wri"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(half, filepath.Join(dir, dataNewLink)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dataLink+"/nowhere", filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tidy(tr); err != nil {
		t.Fatal(err)
	}
	if got := visible(t, dir); !maps.Equal(got, old) || len(own(t, dir)) != 2 {
		t.Errorf("tidy left %v and %v", got, own(t, dir))
	}
	next := map[string]string{"a": "2"}
	if _, err := writeSet(tr, files(next), false); err != nil {
		t.Fatal(err)
	}
	if got := visible(t, dir); !maps.Equal(got, next) {
		t.Errorf("got %v", got)
	}
}

// A provider of old wrote plain files into the volume's root.
func TestPlainFilesOfAnotherWriterGiveWayToLinks(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "folder/x", "stale"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	set := map[string]string{"a": "new", "folder/x": "new"}
	if _, err := writeSet(openDir(t, dir), files(set), false); err != nil {
		t.Fatal(err)
	}
	if got := visible(t, dir); !maps.Equal(got, set) {
		t.Errorf("got %v", got)
	}
	if target, err := os.Readlink(filepath.Join(dir, "a")); target != "..data/a" {
		t.Errorf("a is no link into the set: %q, %v", target, err)
	}
}

// A write that fails leaves the old set and no value of the new one.
func TestAFailedWriteLeavesTheOldSet(t *testing.T) {
	tr, err := newTree(tmpfsOptions{size: class.MinVolumeSize})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	mountAt(t, tr, dir)
	if tr, err = openTree(dir); err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	old := map[string]string{"a": "1"}
	if _, err := writeSet(tr, files(old), false); err != nil {
		t.Fatal(err)
	}
	for range 5 { // what each attempt left would add up
		_, err := writeSet(tr, files(map[string]string{"a": "2", "b": strings.Repeat("x", class.MinVolumeSize)}), false)
		if err == nil || !strings.Contains(err.Error(), `write "b": no space left on device`) {
			t.Fatalf("got %v", err)
		}
		if got := visible(t, dir); !maps.Equal(got, old) || len(own(t, dir)) != 2 {
			t.Fatalf("it left %v and %v", got, own(t, dir))
		}
	}
	if _, err := writeSet(tr, files(map[string]string{"a": "3"}), false); err != nil {
		t.Errorf("the next write fails: %v", err)
	}
}

// At no moment does an entry that a reader can list lead nowhere because its
// set is still to come.
func TestNewEntriesNeverDangle(t *testing.T) {
	dir := t.TempDir()
	tr := openDir(t, dir)
	if _, err := writeSet(tr, files(map[string]string{"first": "x"}), false); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	result := make(chan string)
	go func() {
		for {
			select {
			case <-done:
				result <- ""
				return
			default:
			}
			list, _ := os.ReadDir(dir)
			for _, e := range list {
				// A reader that the switch overtakes on its way through ..data may find
				// the old set gone, as in kubelet's own volumes.
				before, _ := os.Readlink(filepath.Join(dir, dataLink))
				_, err := os.Stat(filepath.Join(dir, e.Name()))
				after, _ := os.Readlink(filepath.Join(dir, dataLink))
				if err != nil && before == after && !strings.HasPrefix(e.Name(), "..") {
					<-done
					result <- e.Name()
					return
				}
			}
		}
	}()
	set := map[string]string{"first": "x"}
	for i := range 60 {
		set[fmt.Sprint("f", i)] = "x" // only ever more entries
		if _, err := writeSet(tr, files(set), false); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	if name := <-result; name != "" {
		t.Errorf("the entry %q led nowhere", name)
	}
}

func TestSetBytesIsNeverLessThanTheTmpfsTakes(t *testing.T) {
	for _, set := range []map[string]string{
		{"a": ""}, {"a": "x"}, {"a": strings.Repeat("x", 4096)}, {"a": strings.Repeat("x", 4097), "b/c": "y"}, {strings.Repeat("n", 200): "x"},
	} {
		tr, err := newTree(tmpfsOptions{size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := writeSet(tr, files(set), false); err != nil {
			t.Fatal(err)
		}
		var st syscall.Statfs_t
		if err := syscall.Fstatfs(tr.fd, &st); err != nil {
			t.Fatal(err)
		}
		tr.close()
		if used := int64(st.Blocks-st.Bfree) * st.Bsize; used > setBytes(files(set)) {
			t.Errorf("%d files take %d bytes, more than the %d expected", len(set), used, setBytes(files(set)))
		}
	}
}

// Another driver may have made the tmpfs, with pages that may be swapped.
func TestATmpfsOfAnotherDriverGetsItsSizeToo(t *testing.T) {
	noswap, err := probeTmpfs()
	if err != nil {
		t.Fatal(err)
	}
	for _, made := range []bool{false, noswap} {
		tr, err := newTree(tmpfsOptions{size: 1 << 20, noswap: made})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.close()
		if err := tr.resize(tmpfsOptions{size: 2 << 20, noswap: noswap}); err != nil {
			t.Errorf("made with noswap %v: %v", made, err)
		}
		if size, err := tr.size(); err != nil || size != 2<<20 {
			t.Errorf("made with noswap %v it has %d bytes, %v", made, size, err)
		}
	}
}
