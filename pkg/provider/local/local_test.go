package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

const canary = "canary-3f1c9b"

// write makes files, with the folders that they need, below folder.
func write(t testing.TB, folder string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(folder, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(content), 0o600))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// class returns parameters of pairs of key and value.
func class(pairs ...string) map[string]string {
	parameters := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		parameters[pairs[i]] = pairs[i+1]
	}
	return parameters
}

func fetch(parameters map[string]string) (provider.Result, error) {
	return New().Fetch(context.Background(), provider.Request{Parameters: parameters})
}

// shown writes a result as `PATH MODE CONTENTS`, one file a line.
func shown(r provider.Result) string {
	var b strings.Builder
	for _, f := range r.Files {
		fmt.Fprintf(&b, "%s %04o %s\n", f.Path, f.Mode, f.Contents.Reveal())
	}
	return b.String()
}

func wantFiles(t *testing.T, parameters map[string]string, want string) provider.Result {
	t.Helper()
	r, err := fetch(parameters)
	if err != nil {
		t.Fatal(err)
	}
	if got := shown(r); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	return r
}

// wantError checks the kind of an error, that it contains every text, tells
// what to do, and does not show the canary.
func wantError(t *testing.T, parameters map[string]string, kind provider.Kind, texts ...string) {
	t.Helper()
	r, err := fetch(parameters)
	if err == nil {
		t.Fatalf("no error, but\n%.200s", shown(r))
	}
	if len(r.Files) > 0 {
		t.Errorf("%d files beside the error", len(r.Files))
	}
	if got := provider.KindOf(err); got != kind {
		t.Errorf("the kind is %v, not %v: %v", got, kind, err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("got  %v\nwant it to contain %q", err, text)
		}
	}
	if !strings.Contains(err.Error(), "; ") {
		t.Errorf("no remedy: %v", err)
	}
	wantNoCanary(t, err)
}

func wantNoCanary(t *testing.T, err error) {
	t.Helper()
	for ; err != nil; err = errors.Unwrap(err) {
		for _, form := range []string{"%v", "%+v", "%#v", "%s"} {
			if text := fmt.Sprintf(form, err); strings.Contains(text, "canary") || strings.Contains(text, "3f1c9b") {
				t.Errorf("an error shows a value: %s", text)
			}
		}
	}
}

func TestAFolderBringsItsFilesSorted(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"user": "u", "password": "p", "tls/key": "k", "tls/ca/crt": "c", ".hidden": "x", ".git/config": "x", "empty": ""})
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	r := wantFiles(t, class("path", dir), "empty 0644 \npassword 0644 p\ntls/ca/crt 0644 c\ntls/key 0644 k\nuser 0644 u\n")
	if len(r.Versions) != 5 || r.Versions[1].ID != "password" || r.NotModified {
		t.Errorf("got the versions %v", r.Versions)
	}
}

func TestObjectsAreMountedAsTheClassSays(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"user": "u", "db/password": "p", ".hidden": "h"})
	r := wantFiles(t, class("path", dir, "volumeSize", "1Mi", "objects", `
- objectName: db/password
  objectAlias: pw
  filePermission: "0400"
- objectName: user
- objectName: .hidden
- objectName: user
  objectAlias: again
  filePermission: "0"
`), "pw 0400 p\nuser 0644 u\n.hidden 0644 h\nagain 0000 u\n")
	var ids []string
	for _, v := range r.Versions {
		ids = append(ids, v.ID)
	}
	if got := strings.Join(ids, " "); got != "db/password user .hidden" {
		t.Errorf("the versions are of %s", got)
	}
	asked, err := New().Fetch(t.Context(), provider.Request{Parameters: class("path", dir), Mode: 0o440})
	if err != nil || asked.Files[0].Mode != 0o440 {
		t.Errorf("the volume's mode is not used: %v, %v", shown(asked), err)
	}
}

func TestAnObjectIsMadeAsItsOptionsSay(t *testing.T) {
	dir := t.TempDir()
	json := `{"a": "` + canary + `", "b": {"c": "aGk="}}`
	write(t, dir, map[string]string{"json": json, "yaml": "a: [x, y]\n", "hex": "68 69\n"})
	path, key := seal(t, t.TempDir(), "json: '"+json+"'\nyaml: \"a: [x, y]\"\nhex: \"6869\"\n", false)
	const objects = `
- {objectName: json, objectAlias: a, extractJSONKey: a}
- {objectName: json, objectAlias: b, extractJSONKey: /b/c, encoding: base64, filePermission: "0400"}
- {objectName: yaml, extractYAMLKey: /a/1}
- {objectName: hex, encoding: hex}
`
	for name, source := range map[string]map[string]string{"of a folder": class("path", dir), "of an age file": class("path", path, "identityFile", key)} {
		t.Run(name, func(t *testing.T) {
			with := func(objects string) map[string]string {
				parameters := maps.Clone(source)
				parameters["objects"] = objects
				return parameters
			}
			r := wantFiles(t, with(objects), "a 0644 "+canary+"\nb 0400 hi\nyaml 0644 y\nhex 0644 hi\n")
			if len(r.Versions) != 3 {
				t.Errorf("got the versions %v", r.Versions)
			}
			wantError(t, with("- {objectName: json, extractJSONKey: c}"), provider.NotFound, `object "json": it has no key "c"`)
			wantError(t, with("- {objectName: json, encoding: hex, optional: true}"), provider.Invalid, `object "json": it is not hex`)
			wantError(t, with("- {objectName: json}\n- {objectName: hex, extractJSONKey: c}"), provider.Invalid, `object "hex": it is not`, "JSON")
			wantError(t, with("- {objectName: json, extractYAMLKey: a, extractJSONKey: a}"), provider.Invalid, `entry 1 ("json"), "extractYAMLKey": it excludes`)
			// What is optional may be missing, or the key in it.
			wantFiles(t, with("- {objectName: gone, optional: true}\n- {objectName: hex}\n- {objectName: json, extractJSONKey: c, optional: true}\n- {objectName: hex/below, objectAlias: x, optional: true}"),
				"hex 0644 "+map[string]string{"of a folder": "68 69\n", "of an age file": "6869"}[name]+"\n")
			wantFiles(t, with("- {objectName: gone, optional: true}"), "")
			wantError(t, with("- {objectName: gone, optional: true}\n- {objectName: lost}"), provider.NotFound, `object "lost"`)
		})
	}
}

// A set is whole: an optional file that comes while it is read is not left out.
func TestAnOptionalFileThatComesMeanwhileIsAChange(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": "1"})
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	d, err := New().decode(class("path", dir, "objects", "- {objectName: late, optional: true}\n- objectName: a"))
	must(t, err)
	late := d.objects[0]
	if d.stampNow(root, late) != (stamp{}) {
		t.Error("a missing file has a stamp")
	}
	write(t, dir, map[string]string{"late": "1"})
	if d.stampNow(root, late) == (stamp{}) {
		t.Error("a file that came has no stamp")
	}
	must(t, os.Remove(dir+"/late"))
	must(t, os.Symlink("/etc/passwd", dir+"/late"))
	if d.stampNow(root, late) == (stamp{}) {
		t.Error("a link that leads out counts as missing")
	}
	wantError(t, class("path", dir, "objects", "- {objectName: late, optional: true}"), provider.Invalid, "leads out of the folder")
}

// As kubelet lays ConfigMaps and Secrets out: the user's names lead through
// ..data into a hidden folder.
func TestLinksInsideTheFolderAreFollowed(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"..2026/key": "k", "..2026/sub/inner": "i"})
	for name, target := range map[string]string{"..data": "..2026", "key": "..data/key", "sub": "..data/sub", "old": "..data/gone", "loop": "."} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	wantFiles(t, class("path", dir), "key 0644 k\nsub/inner 0644 i\n")
	wantFiles(t, class("path", dir, "objects", "- objectName: sub/inner\n  objectAlias: x\n"), "x 0644 i\n")
}

func TestNothingLeadsOutOfTheFolder(t *testing.T) {
	outside := t.TempDir()
	dir := filepath.Join(outside, "dir")
	write(t, outside, map[string]string{"secret": canary, "dir/ok": "ok"})
	must(t, os.Symlink("../secret", filepath.Join(dir, ".hidden")))
	for name, target := range map[string]string{"absolute": "/etc/passwd", "relative": "../secret", "folder": "..", "indirect": ".hidden"} {
		t.Run(name, func(t *testing.T) {
			link := filepath.Join(dir, name)
			must(t, os.Symlink(target, link))
			defer os.Remove(link)
			object := name
			if name == "folder" {
				object = "folder/secret"
			}
			wantError(t, class("path", dir, "objects", "- objectName: "+object), provider.Invalid, fmt.Sprintf("object %q", object), filepath.Join(dir, object), "leads out of the folder")
			wantError(t, class("path", dir), provider.Invalid, "leads out of the folder")
		})
	}
	for _, name := range []string{"../secret", "dir/../../secret", filepath.Join(outside, "secret")} {
		wantError(t, class("path", dir, "objects", "- objectName: "+name+"\n  objectAlias: x"), provider.Invalid, "objectName", fmt.Sprintf("%q", name))
		// A needless identityFile must not take the check away.
		wantError(t, class("path", dir, "identityFile", "/x", "objects", "- objectName: "+name+"\n  objectAlias: x"), provider.Invalid, "objectName", fmt.Sprintf("%q", name))
	}
}

// In a cluster a class may be anybody's: it must not lead to the files of the
// node, the driver's token, or the volumes of other pods.
func TestAConfinedProviderReadsItsFoldersOnly(t *testing.T) {
	allowed, other := t.TempDir(), t.TempDir()
	write(t, allowed, map[string]string{"team/a": "1"})
	write(t, other, map[string]string{"a": canary, "identity": canary})
	sealed, identity := seal(t, allowed, "a: 1", false)
	must(t, os.Symlink(other, filepath.Join(allowed, "out")))
	must(t, os.Symlink(filepath.Join(allowed, "team"), filepath.Join(allowed, "in")))
	ask := func(p *Provider, parameters map[string]string) error {
		r, err := p.Fetch(t.Context(), provider.Request{Parameters: parameters})
		r.Clear()
		return err
	}
	p := NewConfined([]string{"/nowhere", allowed})
	for _, parameters := range []map[string]string{
		class("path", allowed+"/team"), class("path", allowed+"/in"), class("path", allowed+"/../"+filepath.Base(allowed)+"/team"),
		class("path", sealed, "identityFile", identity),
	} {
		if err := ask(p, parameters); err != nil {
			t.Errorf("%v: %v", parameters, err)
		}
	}
	for _, parameters := range []map[string]string{
		class("path", other), class("path", allowed+"/../"+filepath.Base(other)), class("path", allowed+"/out"), class("path", allowed+"/out/a", "identityFile", identity),
		class("path", "/"), class("path", "/proc/self"), class("path", allowed+"x"), class("path", filepath.Dir(allowed)),
		class("path", sealed, "identityFile", filepath.Join(other, "identity")), class("path", sealed, "identityFile", allowed+"/out/identity"),
	} {
		err := ask(p, parameters)
		wantNoCanary(t, err)
		if provider.KindOf(err) != provider.Denied || !strings.Contains(fmt.Sprint(err), "is in none of the folders that this provider may read") {
			t.Errorf("%v: %v", parameters, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := p.Watch(ctx, parameters, func() {}); provider.KindOf(err) != provider.Denied {
			t.Errorf("watch %v: %v", parameters, err)
		}
		cancel()
	}
	if err := ask(NewConfined(nil), class("path", allowed)); provider.KindOf(err) != provider.Denied || !strings.Contains(err.Error(), "the provider is off on this node; let the driver have folders by --local-folders") {
		t.Errorf("without folders: %v", err)
	}
}

func TestWhatIsNoRegularFileDoesNotBlock(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	write(t, dir, map[string]string{"folder/file": "f"})
	must(t, unix.Mknod(filepath.Join(dir, "socket"), unix.S_IFSOCK|0o600, 0))
	wantError(t, class("path", dir, "objects", "- objectName: fifo"), provider.Invalid, `object "fifo"`, "not a regular file")
	wantError(t, class("path", dir, "objects", "- objectName: socket"), provider.Invalid, `object "socket"`, "not a regular file")
	wantError(t, class("path", dir, "objects", "- objectName: folder"), provider.Invalid, `object "folder"`, "it is a folder")
	wantError(t, class("path", fifo), provider.Invalid, fifo, "not a regular file")
	wantError(t, class("path", fifo, "identityFile", fifo), provider.Invalid, fifo, "not a regular file")
}

func TestWhatIsMissingIsNotFound(t *testing.T) {
	dir := t.TempDir()
	wantError(t, class("path", dir), provider.NotFound, dir, "no file")
	write(t, dir, map[string]string{"file": "f"})
	gone := filepath.Join(dir, "gone")
	wantError(t, class("path", gone), provider.NotFound, `parameter "path"`, gone)
	wantError(t, class("path", filepath.Join(dir, "file", "below")), provider.NotFound, dir)
	for _, object := range []string{"db", "file/db", "folder/db"} {
		wantError(t, class("path", dir, "objects", "- objectName: "+object), provider.NotFound, fmt.Sprintf("object %q", object), filepath.Join(dir, object))
	}
}

func TestWhatTheSystemRefusesIsDenied(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"open/db": canary, "open/ok": "ok", "closed/db": canary})
	must(t, os.Chmod(filepath.Join(dir, "open/db"), 0))
	must(t, os.Chmod(filepath.Join(dir, "closed"), 0))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "closed"), 0o700) })
	asNobody(t, dir)
	wantError(t, class("path", dir+"/open"), provider.Denied, `object "db"`, dir+"/open/db", "permission denied")
	wantError(t, class("path", dir+"/closed"), provider.Denied, `parameter "path"`, dir+"/closed")
	wantError(t, class("path", dir+"/closed/db", "identityFile", "/x"), provider.Denied, dir+"/closed/db")
	if err := New().Watch(t.Context(), class("path", dir+"/closed"), func() {}); provider.KindOf(err) != provider.Denied || !strings.Contains(err.Error(), dir+"/closed") {
		t.Errorf("watching: %v", err)
	}
}

// asNobody takes root's right to open everything from the rest of the test.
func asNobody(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	runtime.LockOSThread()
	if _, err := unix.SetfsuidRetUid(65534); err != nil {
		t.Skipf("cannot become another user: %v", err)
	}
	t.Cleanup(func() {
		_, _ = unix.SetfsuidRetUid(0)
		runtime.UnlockOSThread()
	})
}

func TestSizesAreBounded(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"fits": strings.Repeat("x", maxObjectBytes), "large": strings.Repeat(canary, 5<<20/len(canary))})
	r, err := fetch(class("path", dir, "objects", "- objectName: fits"))
	if err != nil || r.Files[0].Contents.Len() != maxObjectBytes {
		t.Errorf("what just fits: %v", err)
	}
	wantError(t, class("path", dir, "objects", "- objectName: large"), provider.TooLarge, `object "large"`, "4194304", "52428")

	many := t.TempDir()
	for i := range maxTotalBytes/maxObjectBytes + 1 {
		f, err := os.Create(filepath.Join(many, fmt.Sprintf("f%02d", i)))
		must(t, err)
		must(t, f.Truncate(maxObjectBytes))
		must(t, f.Close())
	}
	wantError(t, class("path", many), provider.TooLarge, `object "f16"`, "67108864", `"objects"`)
}

func TestTheNumberOfFilesIsBounded(t *testing.T) {
	dir := t.TempDir()
	for i := range maxObjects {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("x"), 0o600))
	}
	if _, err := fetch(class("path", dir)); err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"one-more": canary})
	wantError(t, class("path", dir), provider.TooLarge, dir, "1024 files", `"objects"`)
}

func TestTheNumberOfFoldersIsBounded(t *testing.T) {
	dir := t.TempDir()
	// Five links a level, each to the next level: 3906 folders by name, 6 on disk.
	for i := range 5 {
		level := filepath.Join(dir, fmt.Sprintf(".%02d", i))
		must(t, os.Mkdir(level, 0o755))
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			must(t, os.Symlink(fmt.Sprintf("../.%02d", i+1), filepath.Join(level, name)))
		}
	}
	must(t, os.Mkdir(filepath.Join(dir, ".05"), 0o755))
	must(t, os.Symlink(".00", filepath.Join(dir, "start")))
	wantError(t, class("path", dir), provider.TooLarge, "1024 folders")
}

func TestNamesThatNoVolumeCanHoldAreRefused(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("n", 300)
	wantError(t, class("path", dir, "objects", "- objectName: "+long), provider.Invalid, "300 bytes", "entry 1")
	write(t, dir, map[string]string{"bad\xff": canary})
	wantError(t, class("path", dir), provider.Invalid, `bad\xff`, "UTF-8")
}

func TestValidateFindsEveryMistake(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"file": "f"})
	for name, tc := range map[string]struct {
		parameters map[string]string
		want       []string
		unknown    bool
	}{
		"nothing at all":          {class(), []string{`parameter "path": it is missing; write the absolute path`}, false},
		"paths that are relative": {class("path", "secrets", "identityFile", "key.txt"), []string{`parameter "identityFile": the path "key.txt" is not absolute`, `parameter "path": the path "secrets" is not absolute; begin it with /`}, false},
		"a file and no identity":  {class("path", dir+"/file"), []string{`parameter "identityFile": it is missing, and`}, false},
		"a needless identity":     {class("path", dir, "identityFile", "/key"), []string{`parameter "identityFile": it is ignored, because`}, true},
		"a key it does not know":  {class("path", dir, "pth", "x", "volumeSize", "1Mi"), []string{`parameter "pth": this provider does not know it`}, true},
		"a field it does not know": {class("path", dir, "objects", "- objectName: a\n  alias: b"),
			[]string{`parameter "objects", line 2, entry 1 ("a"), "alias": this provider does not know it`}, true},
		"an empty list": {class("path", dir, "objects", "[]"), []string{`parameter "objects": it lists nothing; list an object, or remove`}, false},
		"an object named twice": {class("path", dir, "objects", "- objectName: a\n- objectName: b\n- objectName: a\n"),
			[]string{`line 3, entry 3 ("a"), "objectName": entry 1 ("a") has the file path "a" too; give one of them another objectAlias`}, false},
		"an alias that is another's name": {class("path", dir, "objects", "- objectName: b\n- objectName: a\n  objectAlias: b\n"),
			[]string{`entry 2 ("a"), "objectName": entry 1 ("b") has the file path "b" too`}, false},
		"a file that is another's folder": {class("path", dir, "objects", "- objectName: a/b\n- objectName: c\n  objectAlias: a\n"),
			[]string{`entry 2 ("c"), "objectName": the file path "a" and that of entry 1 ("a/b"), "a/b", exclude each other`}, false},
		"several mistakes in one entry": {class("path", dir, "objects", "- objectAlias: /x\n  filePermission: 9\n"),
			[]string{`"objectAlias": the file path "/x" is absolute`, `"objectName": it is missing`, `"filePermission": "9" is not a file mode`}, false},
		"a name out of the folder": {class("path", dir, "objects", "- objectName: ../a\n  objectAlias: b\n"), []string{`entry 1 ("../a"), "objectName": the file path "../a" contains ".."; name a file below the folder`}, false},
		"too many objects":         {class("path", dir, "objects", lines(1025, "- objectName: n%d\n")), []string{"it lists 1025 objects, more than 1024; split them"}, false},
		"broken YAML":              {class("path", dir, "objects", "- ["), []string{`parameter "objects", line 1: it is not YAML`}, false},
	} {
		t.Run(name, func(t *testing.T) {
			problems := New().Validate(tc.parameters)
			if len(problems) != len(tc.want) {
				t.Fatalf("got %v", problems)
			}
			for _, want := range tc.want {
				if !slices.ContainsFunc(problems, func(p provider.Problem) bool { return strings.Contains(p.Error(), want) }) {
					t.Errorf("got %v\nwant %s", problems, want)
				}
			}
			for _, p := range problems {
				if p.Unknown != tc.unknown {
					t.Errorf("unknown is %v: %v", p.Unknown, p)
				}
			}
			if _, err := fetch(tc.parameters); !tc.unknown && provider.KindOf(err) != provider.Invalid {
				t.Errorf("a fetch answers %v", err)
			}
		})
	}
}

func lines(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func TestAValidClassHasNoProblems(t *testing.T) {
	for _, parameters := range []map[string]string{
		class("path", "/nowhere", "volumeSize", "1Mi"),
		class("path", "/nowhere.age", "identityFile", "/key", "objects", "- objectName: ../any key\n  objectAlias: a\n"),
	} {
		if problems := New().Validate(parameters); len(problems) > 0 {
			t.Errorf("%v: %v", parameters, problems)
		}
	}
}

func TestDecodedParametersAreRememberedWithinBounds(t *testing.T) {
	p := New()
	parameters := class("path", "/x", "objects", "- objectName: a", "other", "x")
	before := maps.Clone(parameters)
	first, err := p.decode(parameters)
	must(t, err)
	if again, _ := p.decode(maps.Clone(parameters)); again != first {
		t.Error("the same text was decoded twice")
	}
	if other, _ := p.decode(class("path", "/x", "objects", "- objectName: b")); other == first || other.objects[0].name != "b" {
		t.Error("another text has the same decoding")
	}
	if !maps.Equal(parameters, before) {
		t.Errorf("the parameters were changed: %v", parameters)
	}
	for i := range 3 * maxCached {
		_, _ = p.decode(class("path", fmt.Sprintf("/%d", i)))
		_, _ = p.decode(class("path", fmt.Sprintf("relative/%d", i)))
	}
	_, _ = p.decode(class("path", "/x", "objects", "- objectName: a #"+strings.Repeat("x", maxCachedBytes)))
	if len(p.decoded) != maxCached {
		t.Errorf("%d decodings are held", len(p.decoded))
	}
	for text := range p.decoded {
		if len(text.path)+len(text.objects) > maxCachedBytes || !strings.HasPrefix(text.path, "/") {
			t.Errorf("held: %.40q %.40q", text.path, text.objects)
		}
	}
}

func TestAVersionChangesWithTheFileAndHidesItsSize(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": "one", "b": "one"})
	version := func() string {
		r, err := fetch(class("path", dir, "objects", "- objectName: a"))
		must(t, err)
		return r.Versions[0].Version
	}
	first := version()
	if first != version() {
		t.Error("the version of an unchanged file changes")
	}
	must(t, os.Rename(filepath.Join(dir, "b"), filepath.Join(dir, "a")))
	if first == version() {
		t.Error("the version of a replaced file does not change")
	}
	if (stamp{size: 1}).version() != (stamp{size: 2}).version() {
		t.Error("the version tells the size")
	}
}

// A writer that swaps all files with one rename, as kubelet does, is never
// seen in between; the set is old or new.
func TestASetIsNeverMixed(t *testing.T) {
	dir := t.TempDir()
	tmp, data := filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")
	// Every set is of new files, and the old ones stay, so that no inode is used
	// twice.
	swap := func(set int) error {
		folder := fmt.Sprintf("..%d", set)
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			return err
		}
		for i := range 20 {
			if err := os.WriteFile(filepath.Join(dir, folder, fmt.Sprintf("f%02d", i)), fmt.Append(nil, set), 0o600); err != nil {
				return err
			}
		}
		return errors.Join(os.Symlink(folder, tmp), os.Rename(tmp, data))
	}
	for i := range 20 {
		must(t, os.Symlink(fmt.Sprintf("..data/f%02d", i), filepath.Join(dir, fmt.Sprintf("f%02d", i))))
	}
	must(t, swap(0))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for set := 1; ctx.Err() == nil; set++ {
			if err := swap(set); err != nil {
				t.Error(err)
				return
			}
			runtime.Gosched()
		}
	}()
	whole := 0
	for range 300 {
		r, err := fetchOnce(class("path", dir))
		if errors.Is(err, errChanged) {
			continue
		}
		if err != nil {
			t.Error(err)
			break
		}
		whole++
		for _, f := range r.Files {
			if len(r.Files) != 20 || !f.Contents.Equal(r.Files[0].Contents) {
				t.Fatalf("a mixed set:\n%s", shown(r))
			}
		}
	}
	stop()
	<-done
	t.Logf("%d of 300 attempts held", whole)
}

func fetchOnce(parameters map[string]string) (provider.Result, error) {
	d, err := New().decode(parameters)
	if err != nil {
		return provider.Result{}, err
	}
	return d.read(context.Background(), provider.DefaultMode)
}

func TestASetThatDoesNotHoldStillIsUnavailable(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": canary})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			_ = os.Chmod(filepath.Join(dir, "a"), fs.FileMode(0o600+i%2))
			_ = os.WriteFile(filepath.Join(dir, "a"), []byte(strings.Repeat(canary, 1+i%2*100000)), 0o600)
		}
	}()
	var err error
	for range 1000 { // until it is caught once
		if _, err = fetchOnce(class("path", dir)); err != nil {
			break
		}
	}
	stop()
	<-done
	if !errors.Is(err, errChanged) || provider.KindOf(err) != provider.Unavailable {
		t.Fatalf("got %v", err)
	}
	for _, text := range []string{`object "a"`, filepath.Join(dir, "a"), "rename it"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want it to contain %q", err, text)
		}
	}
	wantNoCanary(t, err)
}

func TestASetThatChangedIsReadAgain(t *testing.T) {
	changes := failure("object", "read it", errChanged, "")
	for name, tc := range map[string]struct {
		changes  int // before it holds still
		limit    time.Duration
		attempts int
		took     time.Duration
		want     error
	}{
		"it holds still":                    {0, time.Hour, 1, 0, nil},
		"it changes three times":            {3, time.Hour, 4, 35 * time.Millisecond, nil},
		"it changes all the time":           {100, time.Hour, 6, 155 * time.Millisecond, errChanged},
		"the caller gives up in the middle": {100, 20 * time.Millisecond, 3, 20 * time.Millisecond, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tc.limit)
				defer cancel()
				attempts, began := 0, time.Now()
				_, err := (&params{path: "/x"}).untilStill(ctx, func() (provider.Result, error) {
					if attempts++; attempts <= tc.changes {
						return provider.Result{}, changes
					}
					return provider.Result{}, nil
				})
				if !errors.Is(err, tc.want) || attempts != tc.attempts || time.Since(began) != tc.took {
					t.Errorf("%d attempts in %v: %v", attempts, time.Since(began), err)
				}
				if err != nil && provider.KindOf(err) != provider.Unavailable {
					t.Errorf("the kind is %v", provider.KindOf(err))
				}
			})
		})
	}
}

func TestAnEndedContextEndsAFetch(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": canary, "key": "k"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, parameters := range []map[string]string{class("path", dir), class("path", dir, "objects", "- objectName: a"), class("path", dir+"/a", "identityFile", dir+"/key")} {
		_, err := New().Fetch(ctx, provider.Request{Parameters: parameters})
		if !errors.Is(err, context.Canceled) || provider.KindOf(err) != provider.Unavailable || !strings.Contains(err.Error(), dir) {
			t.Errorf("got %v", err)
		}
	}
}

// readAll hands over or clears each buffer that it filled.
func TestReadAllClearsWhatItDoesNotReturn(t *testing.T) {
	for name, tc := range map[string]struct {
		size, limit int64
		content     string
		broken      bool
		want        error
		buffers     int
	}{
		"as large as told":   {13, 100, canary, false, nil, 1},
		"smaller than told":  {50, 100, canary, false, nil, 1},
		"larger than told":   {3, 100000, strings.Repeat(canary, 100), false, nil, 3},
		"at the limit":       {0, 13, canary, false, nil, 2},
		"beyond the limit":   {3, 12, canary, false, errTooLarge, 2},
		"broken in between":  {100, 1000, canary, true, fs.ErrInvalid, 1},
		"a lie about a size": {1 << 40, 13, canary, false, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := &recorder{content: tc.content, broken: tc.broken}
			b, err := readAll(r, tc.size, tc.limit)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			if err == nil && string(b) != tc.content {
				t.Errorf("got %q", b)
			}
			if r.read > tc.limit+1 {
				t.Errorf("%d bytes were read, more than %d", r.read, tc.limit+1)
			}
			if len(r.buffers) != tc.buffers {
				t.Errorf("%d buffers were used, not %d", len(r.buffers), tc.buffers)
			}
			if err == nil {
				r.buffers = r.buffers[:len(r.buffers)-1]
			}
			for i, b := range r.buffers {
				if strings.Trim(string(b), "\x00") != "" {
					t.Errorf("buffer %d still holds %q", i, b)
				}
			}
		})
	}
}

// recorder is a reader that keeps the buffers it was given.
type recorder struct {
	content string
	broken  bool
	read    int64
	buffers [][]byte
	end     *byte
}

func (r *recorder) Read(b []byte) (int, error) {
	if last := &b[len(b)-1]; last != r.end {
		r.end, r.buffers = last, append(r.buffers, b)
	}
	if r.content == "" {
		if r.broken {
			return 0, fs.ErrInvalid
		}
		return 0, io.EOF
	}
	n := copy(b, r.content)
	r.content, r.read = r.content[n:], r.read+int64(n)
	return n, nil
}

func TestAFailedFetchClearsWhatItHasRead(t *testing.T) {
	raw := []byte(canary)
	s := newSet(2, 0o644)
	must(t, s.add(object{name: "a", file: "a", mode: provider.UnsetMode}, "a", raw, "1"))
	value := s.Files[0].Contents.Reveal()
	if string(value) != canary || s.left != maxTotalBytes-int64(len(raw)) {
		t.Errorf("%q was added, %d bytes are left", value, s.left)
	}
	again := []byte(canary)
	if err := s.add(object{Options: provider.Options{JSONKey: "a"}}, "b", again, "1"); err == nil {
		t.Error("no error")
	}
	s.Clear()
	if left := string(raw) + string(value) + string(again); strings.Trim(left, "\x00") != "" {
		t.Errorf("%q is left", left)
	}
}

// clashes and provider.CheckPaths agree.
func FuzzClashes(f *testing.F) {
	f.Add("a\na/b\nc")
	f.Add("a/b/c\na/b\na")
	f.Add("a\nb\nb/a\na")
	f.Fuzz(func(t *testing.T, text string) {
		paths := strings.Split(text, "\n")
		for _, p := range paths {
			if provider.CheckPath(p) != nil {
				return
			}
		}
		found := clashes(paths)
		if err := provider.CheckPaths(paths); (err != nil) != (len(found) > 0) {
			t.Fatalf("clashes %v, CheckPaths %v", found, err)
		}
		for _, c := range found {
			if c.first >= c.second || provider.CheckPaths([]string{paths[c.first], paths[c.second]}) == nil {
				t.Errorf("%q and %q do not clash", paths[c.first], paths[c.second])
			}
		}
	})
}

func FuzzParams(f *testing.F) {
	f.Add("/a", "", "- objectName: a\n  objectAlias: b\n  filePermission: '0600'\n")
	f.Add("/a.age", "/key", "array:\n  - |\n    objectName: a\n  - |\n    objectName: a/b\n")
	f.Add("a", "b", "[]")
	f.Add("/a", "", "- objectName: &x a\n- {objectName: *x, objectAlias: a/b}")
	f.Fuzz(func(t *testing.T, path, identityFile, objects string) {
		reader := provider.NewParams(class("path", path, "identityFile", identityFile, "objects", objects))
		d := decode(reader)
		_ = reader.Problems()
		if reader.Err() != nil {
			return
		}
		var files []string
		for _, o := range d.objects {
			files = append(files, o.file)
			if err := provider.CheckPath(o.file); err != nil || o.name == "" || o.mode != provider.UnsetMode && o.mode > 0o777 {
				t.Errorf("accepted: %+v, %v", o, err)
			}
		}
		if err := provider.CheckPaths(files); err != nil || !filepath.IsAbs(d.path) || len(files) == 0 && strings.TrimSpace(objects) != "" {
			t.Errorf("accepted: %+v, %v", d, err)
		}
	})
}

func BenchmarkFetch(b *testing.B) {
	dir := b.TempDir()
	write(b, dir, map[string]string{"a": strings.Repeat("x", 64), "b": strings.Repeat("x", 4096)})
	age := b.TempDir()
	path, key := seal(b, age, "a: "+canary+"\nb: "+strings.Repeat("x", 4096)+"\n", false)
	two := "- objectName: a\n- objectName: b\n"
	for _, bb := range []struct {
		name       string
		parameters map[string]string
	}{
		{"two files named", class("path", dir, "objects", two)},
		{"two files listed", class("path", dir)},
		{"two keys of an age file", class("path", path, "identityFile", key, "objects", two)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			p := New()
			req := provider.Request{Parameters: bb.parameters}
			b.ReportAllocs()
			for b.Loop() {
				r, err := p.Fetch(b.Context(), req)
				if err != nil {
					b.Fatal(err)
				}
				r.Clear()
			}
		})
	}
	b.Run("decoding the parameters of two files", func(b *testing.B) {
		for b.Loop() {
			decode(provider.NewParams(class("path", dir, "objects", two)))
		}
	})
}
