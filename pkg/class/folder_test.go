package class

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// text returns a class that can be mounted.
func text(name, path string) string {
	return head + "metadata: {name: " + name + "}\nspec: {provider: local, parameters: {path: " + path + "}}\n"
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *Folder {
	t.Helper()
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// path returns the parameter "path" of a class, or the error of Get.
func (f *Folder) path(name string) string {
	c, err := f.Get(context.Background(), Ref{"default", name})
	if err != nil {
		return err.Error()
	}
	return c.Spec.Parameters["path"]
}

// want fails unless Get yields path, or an error of kind and with all of texts.
func want(t *testing.T, f *Folder, name, path string) {
	t.Helper()
	if got := f.path(name); got != path {
		t.Errorf("class %s: got %s, want %s", name, got, path)
	}
}

func wantError(t *testing.T, f *Folder, name string, kind provider.Kind, texts ...string) {
	t.Helper()
	c, err := f.Get(context.Background(), Ref{"default", name})
	if err == nil || c != nil || provider.KindOf(err) != kind {
		t.Fatalf("class %s: got class %v and error %v of kind %v, want kind %v", name, c, err, provider.KindOf(err), kind)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("class %s: got the error %s\nwant it to contain %s", name, err, text)
		}
	}
}

func TestFolderReadsItsYAMLAndJSONFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", text("a", "/a")+"---\nkind: Pod\n---\n"+text("a2", "/a2"))
	write(t, dir+"/b.yml", text("b", "/b"))
	write(t, dir+"/c.json", `{"apiVersion":"secrets-store.csi.x-k8s.io/v1","kind":"SecretProviderClass","metadata":{"name":"c"},"spec":{"provider":"p","parameters":{"path":"/c"}}}`)
	write(t, dir+"/d.txt", text("d", "/d"))
	write(t, dir+"/.e.yaml", text("e", "/e"))
	elsewhere := filepath.Join(t.TempDir(), "f")
	write(t, elsewhere, text("f", "/f"))
	if err := os.Symlink(elsewhere, dir+"/f.yaml"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/g.yaml", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/g.yaml/g.yaml", text("g", "/g"))

	f := open(t, dir)
	for _, name := range []string{"a", "a2", "b", "c", "f"} {
		want(t, f, name, "/"+name)
	}
	for _, name := range []string{"d", "e", "g"} {
		wantError(t, f, name, provider.NotFound)
	}
	if _, err := f.Get(t.Context(), Ref{"other", "a"}); provider.KindOf(err) != provider.NotFound {
		t.Errorf("another namespace: got %v", err)
	}
}

func TestFolderMustBeThere(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file", "")
	for path, want := range map[string]string{dir + "/none": "no such file", dir + "/file": "it is not a folder"} {
		if _, err := OpenFolder(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

func TestGetFindsAClassAsSoonAsItIsWritten(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir)
	wantError(t, f, "a", provider.NotFound, `failed to get secretproviderclass default/a, error: `, `"a" not found`, dir)
	write(t, dir+"/a.yaml", text("a", "/a"))
	want(t, f, "a", "/a")
	if readings := f.begun.Load(); readings != 3 {
		t.Errorf("%d readings, want one to open and one for each miss", readings)
	}
	want(t, f, "a", "/a")
	if readings := f.begun.Load(); readings != 3 {
		t.Error("a hit reads the folder")
	}
}

func TestABrokenFileHidesNothingElse(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", text("a", "/a"))
	write(t, dir+"/b.yaml", text("b", "/b"))
	f := open(t, dir)

	write(t, dir+"/b.yaml", text("b", "/b2")+"---\n"+text("new", "/new")+"---\nx: 'y\n")
	wantError(t, f, "other", provider.NotFound, "not found", dir+"/b.yaml:11: it is not YAML")
	want(t, f, "a", "/a")
	want(t, f, "b", "/b") // as it was when the file was last whole
	wantError(t, f, "new", provider.Invalid, "failed to get secretproviderclass default/new", dir+"/b.yaml:11: it is not YAML")

	write(t, dir+"/b.yaml", text("b", "/b2")+"---\n"+text("new", "/new"))
	want(t, f, "new", "/new")
	want(t, f, "b", "/b2")

	write(t, dir+"/b.yaml", "") // as some editors do first
	wantError(t, f, "other", provider.NotFound, dir+"/b.yaml: it is empty")
	want(t, f, "b", "/b2")

	remove(t, dir+"/b.yaml")
	wantError(t, f, "b2", provider.NotFound)
	wantError(t, f, "b", provider.NotFound)
}

func TestAFileThatWasNeverWholeSaysSo(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", text("a", "true")+"---\n"+text("b", "/b"))
	if err := os.Symlink(dir+"/none", dir+"/c.yaml"); err != nil {
		t.Fatal(err)
	}
	f := open(t, dir)
	wantError(t, f, "a", provider.Invalid, dir+"/a.yaml:4: class default/a: parameters.path: true is a boolean, not a string; put it in quotes")
	wantError(t, f, "b", provider.Invalid, "its file is not read as long as there are mistakes in it", dir+"/a.yaml:4: class default/a")
	wantError(t, f, "c", provider.NotFound, dir+"/a.yaml:4: class default/a", dir+"/c.yaml: it cannot be read: no such file")
}

func TestTwoFilesThatDefineAClassAreNamed(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", text("a", "/a"))
	write(t, dir+"/b.yaml", text("b", "/b")+"---\n"+text("a", "/a2"))
	f := open(t, dir)
	wantError(t, f, "a", provider.Invalid, "it is defined 2 times, in "+dir+"/a.yaml:1 and "+dir+"/b.yaml:6; keep one of them")
	want(t, f, "b", "/b")
	remove(t, dir+"/b.yaml")
	want(t, f, "a", "/a")
}

func TestClassesThatCannotBeMountedAreInvalid(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", head+"metadata: {name: a}\nspec: {parameters: {a: b}}\n---\n"+head+"metadata: {name: b}\nspec: {provider: p}\n")
	f := open(t, dir)
	wantError(t, f, "a", provider.Invalid, "provider not set in default/a")
	wantError(t, f, "b", provider.Invalid, "parameters not set in default/b")
	write(t, dir+"/a.yaml", text("a", "/a"))
	want(t, f, "a", "/a")
}

func TestAFolderThatGoesKeepsItsClasses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "classes")
	mkdir := func() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mkdir()
	write(t, dir+"/a.yaml", text("a", "/a"))
	f := open(t, dir)
	remove(t, dir)
	wantError(t, f, "b", provider.NotFound, "it may be in what cannot be read: open "+dir+": no such file or directory")
	want(t, f, "a", "/a")
	mkdir()
	write(t, dir+"/b.yaml", text("b", "/b"))
	want(t, f, "b", "/b")
	wantError(t, f, "a", provider.NotFound)

	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Fatal(err)
	}
	wantError(t, f, "c", provider.NotFound, "no such file or directory")
	if err := os.Rename(dir+"2", dir); err != nil {
		t.Fatal(err)
	}
	if err := f.path("c"); strings.Contains(err, "no such file") {
		t.Errorf("the folder is back, and the error says %s", err)
	}
}

// watch starts a Watch that ends with the test, and returns what it reports.
func watch(t *testing.T, f *Folder) <-chan Ref {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	changed := make(chan Ref)
	ended := make(chan error, 1)
	go func() {
		ended <- f.Watch(ctx, func(ref Ref) {
			select {
			case changed <- ref:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Watch returned %v", err)
		}
	})
	return changed
}

// expect waits for changes of exactly these classes of the namespace default,
// in any order.
func expect(t *testing.T, changed <-chan Ref, names ...string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for len(names) > 0 {
		select {
		case ref := <-changed:
			i := slices.Index(names, ref.Name)
			if i < 0 {
				t.Fatalf("a change of %s is reported, want %v", ref, names)
			}
			names = slices.Delete(names, i, i+1)
		case <-deadline:
			t.Fatalf("no change of %v is reported", names)
		}
	}
}

func TestWatchReportsWhatAppearsChangesAndGoes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", text("a", "/a"))
	write(t, dir+"/b.yaml", text("b", "/b"))
	f := open(t, dir)
	write(t, dir+"/a.yaml", text("a", "/a1")) // between OpenFolder and Watch
	f.beat = time.Hour
	changed := watch(t, f)
	expect(t, changed, "a")
	want(t, f, "a", "/a1")

	write(t, dir+"/b.yaml", "# the same class\n"+text("b", "/b"))
	write(t, dir+"/c.yaml", text("c", "/c"))
	expect(t, changed, "c")

	write(t, dir+"/a.yaml", text("a", "/a2"))
	want(t, f, "a2", f.path("a2")) // a miss reads the change before Watch does
	expect(t, changed, "a")
	want(t, f, "a", "/a2")

	write(t, dir+"/a.yaml", "x: 'y\n") // broken: the class stays as it was
	remove(t, dir+"/b.yaml")
	expect(t, changed, "b")
	want(t, f, "a", "/a2")

	write(t, dir+"/d.yaml", text("c", "/d")) // c is defined twice now
	expect(t, changed, "c")
	remove(t, dir+"/d.yaml")
	expect(t, changed, "c")
	remove(t, dir+"/a.yaml")
	expect(t, changed, "a")
}

func TestWatchFollowsAMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	version := func(name, path string) {
		if err := os.Mkdir(dir+"/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, dir+"/"+name+"/a.yaml", text("a", path))
		if err := os.Symlink(name, dir+"/..data_tmp"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir+"/..data_tmp", dir+"/..data"); err != nil {
			t.Fatal(err)
		}
	}
	version("..1", "/1")
	if err := os.Symlink("..data/a.yaml", dir+"/a.yaml"); err != nil {
		t.Fatal(err)
	}
	f := open(t, dir)
	f.beat = time.Hour
	want(t, f, "a", "/1")
	changed := watch(t, f)
	version("..2", "/2")
	expect(t, changed, "a")
	want(t, f, "a", "/2")
}

func TestWatchFindsWhatNoEventTells(t *testing.T) {
	parent := t.TempDir()
	dir, target := parent+"/classes", parent+"/target"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, target, text("a", "/1"))
	if err := os.Symlink(target, dir+"/a.yaml"); err != nil {
		t.Fatal(err)
	}
	f := open(t, dir)
	f.beat = 10 * time.Millisecond
	changed := watch(t, f)
	write(t, target+".new", text("a", "/2"))
	if err := os.Rename(target+".new", target); err != nil {
		t.Fatal(err)
	}
	expect(t, changed, "a") // behind the link

	remove(t, dir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/b.yaml", text("b", "/b"))
	expect(t, changed, "a", "b") // in a folder made anew
}

func TestMissesShareAReading(t *testing.T) {
	f := open(t, t.TempDir())
	const calls = 100
	var calling atomic.Int32
	var ended sync.WaitGroup
	f.reading.Lock()
	before := f.begun.Load()
	for range calls {
		ended.Go(func() {
			calling.Add(1)
			_, _ = f.Get(context.Background(), Ref{"default", "none"})
		})
	}
	for calling.Load() < calls {
		time.Sleep(time.Millisecond)
	}
	f.reading.Unlock()
	ended.Wait()
	if readings := f.begun.Load() - before; readings > calls/2 {
		t.Errorf("%d misses at once read the folder %d times", calls, readings)
	}
}

func TestGetAndWatchMayRunAtOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", text("a", "/a"))
	f := open(t, dir)
	changed := watch(t, f)
	stop := make(chan struct{})
	var ended sync.WaitGroup
	for range 4 {
		ended.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					want(t, f, "a", "/a")
					_ = f.path("none")
				}
			}
		})
	}
	write(t, dir+"/b.yaml", text("b", "/b"))
	expect(t, changed, "b")
	close(stop)
	ended.Wait()
}

func BenchmarkGet(b *testing.B) {
	dir := b.TempDir()
	if err := os.WriteFile(dir+"/a.yaml", []byte(text("a", "/a")), 0o644); err != nil {
		b.Fatal(err)
	}
	f, err := OpenFolder(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := f.Get(context.Background(), Ref{"default", "a"}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestAllClassesOfAFolderAreListed(t *testing.T) {
	dir := t.TempDir()
	f, err := OpenFolder(dir)
	must(t, err)
	const text = "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nmetadata: {name: db}\nspec: {provider: local, parameters: {path: /a}}\n"
	must(t, os.WriteFile(filepath.Join(dir, "db.yaml"), []byte(text), 0o600))
	if all, err := f.List(t.Context()); err != nil || len(all) != 1 || all[0].Name != "db" {
		t.Errorf("got %v, %v", all, err)
	}
}
