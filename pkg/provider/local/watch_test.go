package local

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// deadline is generous: only a test that fails waits for it.
const deadline = 20 * time.Second

// watching runs a watch for the rest of the test. The channel gets what look
// returns, once for each change that is reported.
func watching(t *testing.T, parameters map[string]string, look func() string) <-chan string {
	t.Helper()
	d, err := New().decode(parameters)
	must(t, err)
	w, err := newWatch(d)
	must(t, err)
	seen := make(chan string, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- w.run(ctx, func() { seen <- look() }) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the watch ended with %v", err)
			}
		case <-time.After(deadline):
			t.Error("the watch did not end")
		}
	})
	return seen
}

// wantSeen waits until somebody who looks after each report has seen want.
func wantSeen(t *testing.T, seen <-chan string, want, what string) {
	t.Helper()
	late := time.After(deadline)
	last := "nothing"
	for {
		select {
		case last = <-seen:
			if last == want {
				return
			}
		case <-late:
			t.Fatalf("%s: %q was not seen, but last %q", what, want, last)
		}
	}
}

// content returns what is in a file, or "none".
func content(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "none"
	}
	return string(b)
}

// swap lets the link name lead to target, in one step.
func swap(t *testing.T, name, target string) {
	t.Helper()
	must(t, os.Symlink(target, name+".tmp"))
	must(t, os.Rename(name+".tmp", name))
}

func TestAWatchSeesEveryChangeOfAFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "above", "folder")
	write(t, dir, map[string]string{"file": "1", "sub/file": "1"})
	seen := watching(t, class("path", dir), func() string {
		r, err := fetch(class("path", dir))
		if err != nil {
			return provider.KindOf(err).String()
		}
		state := ""
		for _, f := range r.Files {
			state += f.Path + "=" + string(f.Contents.Reveal()) + " "
		}
		if info, err := os.Stat(dir + "/file"); err == nil && info.Mode() != 0o600 {
			state += info.Mode().String()
		}
		return state
	})
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"a file is written in place", func() { write(t, dir, map[string]string{"file": "2"}) }, "file=2 sub/file=1 "},
		{"a file appears", func() { write(t, dir, map[string]string{"new": "3"}) }, "file=2 new=3 sub/file=1 "},
		{"a file is renamed over another", func() { must(t, os.Rename(dir+"/new", dir+"/file")) }, "file=3 sub/file=1 "},
		{"a file gets other permissions", func() { must(t, os.Chmod(dir+"/file", 0o640)) }, "file=3 sub/file=1 -rw-r-----"},
		{"a file goes", func() { must(t, os.Remove(dir+"/file")) }, "sub/file=1 "},
		{"a file below changes", func() { write(t, dir, map[string]string{"sub/file": "2"}) }, "sub/file=2 "},
		{"folders appear", func() { write(t, dir, map[string]string{"a/b/c": "1"}) }, "a/b/c=1 sub/file=2 "},
		{"a file in a new folder changes", func() { write(t, dir, map[string]string{"a/b/c": "2"}) }, "a/b/c=2 sub/file=2 "},
		{"a folder is moved", func() { must(t, os.Rename(dir+"/a", dir+"/z")) }, "sub/file=2 z/b/c=2 "},
		{"a file in a moved folder changes", func() { write(t, dir, map[string]string{"z/b/c": "3"}) }, "sub/file=2 z/b/c=3 "},
		{"a folder goes", func() { must(t, os.RemoveAll(dir+"/z")) }, "sub/file=2 "},
		{"the folder goes", func() { must(t, os.RemoveAll(dir)) }, "not_found"},
		{"the folder comes back", func() { write(t, dir, map[string]string{"file": "1"}) }, "file=1 "},
		{"a file in it changes", func() { write(t, dir, map[string]string{"file": "2"}) }, "file=2 "},
		{"the folder is replaced", func() {
			write(t, dir+".new", map[string]string{"file": "3"})
			must(t, os.Rename(dir, dir+".old"))
			must(t, os.Rename(dir+".new", dir))
		}, "file=3 "},
		{"a file in the replacement changes", func() { write(t, dir, map[string]string{"file": "4"}) }, "file=4 "},
		{"the folder above goes", func() { must(t, os.RemoveAll(filepath.Dir(dir))) }, "not_found"},
		{"the folder above comes back", func() { write(t, dir, map[string]string{"file": "1"}) }, "file=1 "},
		{"a file in it changes again", func() { write(t, dir, map[string]string{"file": "2"}) }, "file=2 "},
	} {
		step.do()
		wantSeen(t, seen, step.want, step.what)
	}
}

func TestAWatchSeesLinksSwapped(t *testing.T) {
	top := t.TempDir()
	write(t, top, map[string]string{"v1/..1/key": "1", "v1/..2/key": "2", "v2/..1/key": "3"})
	for name, target := range map[string]string{"v1/..data": "..1", "v1/key": "..data/key", "v2/..data": "..1", "v2/key": "..data/key", "current": "v1"} {
		must(t, os.Symlink(target, filepath.Join(top, name)))
	}
	for name, parameters := range map[string]map[string]string{
		"to a folder":         class("path", top+"/current"),
		"to an age file":      class("path", top+"/current/key", "identityFile", "/dev/null"),
		"to an identity file": class("path", top, "identityFile", top+"/current/key"),
	} {
		t.Run(name, func(t *testing.T) {
			if name == "to an identity file" {
				parameters["path"] = filepath.Join(t.TempDir(), "none.age")
			}
			swap(t, top+"/current", "v1")
			swap(t, top+"/v1/..data", "..1")
			write(t, top, map[string]string{"v1/..2/key": "2", "v2/..1/key": "3"})
			seen := watching(t, parameters, func() string { return content(top + "/current/key") })
			swap(t, top+"/v1/..data", "..2")
			wantSeen(t, seen, "2", "..data is swapped")
			write(t, top, map[string]string{"v1/..2/key": "4"})
			wantSeen(t, seen, "4", "the new file changes")
			swap(t, top+"/current", "v2")
			wantSeen(t, seen, "3", "a link on the way is swapped")
			write(t, top, map[string]string{"v2/..1/key": "5"})
			wantSeen(t, seen, "5", "the file behind it changes")
		})
	}
}

func TestAWatchOfAnAgeFileMindsItsOwnNamesOnly(t *testing.T) {
	dir, keys := t.TempDir(), t.TempDir()
	seen := watching(t, class("path", dir+"/secrets.age", "identityFile", keys+"/key"), func() string {
		return content(dir+"/secrets.age") + content(keys+"/key")
	})
	write(t, dir, map[string]string{"secrets.age": "1"})
	wantSeen(t, seen, "1none", "the age file appears")
	write(t, keys, map[string]string{"key": "1"})
	wantSeen(t, seen, "11", "the identity file appears")
	write(t, dir, map[string]string{"secrets.age": "2"})
	wantSeen(t, seen, "21", "the age file changes")

	d, err := New().decode(class("path", dir+"/secrets.age"))
	must(t, err)
	w, err := newWatch(d)
	must(t, err)
	defer w.close()
	for name, want := range map[string]bool{"/secrets.age": true, "/other": false, "": true, ".x": false} {
		if w.matters(dir+name) != want {
			t.Errorf("%q matters: %v", name, !want)
		}
	}
}

func TestChangesAreReportedTogetherButNotTooLate(t *testing.T) {
	dir := t.TempDir()
	began := time.Now()
	seen := watching(t, class("path", dir), func() string { return time.Since(began).String() })
	// A writer that never rests for as long as quiet is.
	late := time.After(deadline)
	for writes := 1; ; writes++ {
		write(t, dir, map[string]string{"file": time.Now().String()})
		select {
		case text := <-seen:
			if after, _ := time.ParseDuration(text); after < quiet {
				t.Errorf("reported after %v and %d writes, before it was quiet", after, writes)
			}
			return
		case <-late:
			t.Fatal("a busy folder is never reported")
		case <-time.After(quiet / 10):
		}
	}
}

func TestAWatchEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	before := goroutines()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	for range 10 {
		begun := make(chan struct{}, 10)
		go func() { ended <- New().Watch(ctx, class("path", dir), func() { begun <- struct{}{} }) }()
		<-begun
	}
	write(t, dir, map[string]string{"file": "1"})
	cancel()
	for range 10 {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(deadline):
			t.Fatal("a watch did not end")
		}
	}
	if after := goroutines(); after > before {
		t.Errorf("%d goroutines are left", after-before)
	}
}

// goroutines counts those that a watch starts: its caller's has ended by then.
func goroutines() int {
	b := make([]byte, 1<<20)
	return strings.Count(string(b[:runtime.Stack(b, true)]), "fsnotify.(*inotify).readEvents")
}

func TestAWatchThatCannotBeginSaysWhy(t *testing.T) {
	if err := New().Watch(t.Context(), class("path", "relative"), func() {}); provider.KindOf(err) != provider.Invalid {
		t.Errorf("got %v", err)
	}
	dir := t.TempDir()
	for i := range maxFolders {
		must(t, os.Mkdir(filepath.Join(dir, "d"+time.Duration(i).String()), 0o755))
	}
	err := New().Watch(t.Context(), class("path", dir), func() {})
	if provider.KindOf(err) != provider.TooLarge || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "; ") {
		t.Errorf("got %v", err)
	}
}
