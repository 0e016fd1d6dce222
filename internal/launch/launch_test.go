package launch

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// canary is in every value that must not be seen in an error.
const canary = "canary-7d20"

// switchSet makes files the current set of a volume, in the layout and the order
// of steps of Kubernetes.
func switchSet(t testing.TB, volume string, files map[string]string) {
	t.Helper()
	set, err := os.MkdirTemp(volume, "..2026_")
	if err != nil {
		t.Error(err)
		return
	}
	for name, contents := range files {
		write(t, filepath.Join(set, name), contents)
	}
	old, _ := os.Readlink(filepath.Join(volume, dataLink))
	tmp := filepath.Join(volume, "..data_tmp")
	if err := os.Symlink(filepath.Base(set), tmp); err != nil {
		t.Error(err)
	}
	if err := os.Rename(tmp, filepath.Join(volume, dataLink)); err != nil {
		t.Error(err)
	}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		_ = os.Symlink(filepath.Join(dataLink, top), filepath.Join(volume, top))
	}
	if old != "" {
		if err := os.RemoveAll(filepath.Join(volume, old)); err != nil {
			t.Error(err)
		}
	}
}

func write(t testing.TB, path, contents string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte(contents), 0o644); err != nil {
		t.Error(err)
	}
}

func volume(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	switchSet(t, dir, files)
	return dir
}

// environment returns the environment that a command line makes of environ. DIR in
// the command line stands for dir.
func environment(t testing.TB, dir, line string, environ ...string) ([]string, error) {
	t.Helper()
	c, err := parse(append(strings.Fields(strings.ReplaceAll(line, "DIR", dir)), "--", "program"))
	if err != nil {
		t.Fatal(err)
	}
	brought, err := c.read()
	if err != nil {
		return nil, err
	}
	return c.merge(environ, brought)
}

func TestFilesBecomeVariables(t *testing.T) {
	dir := volume(t, map[string]string{
		"password":         "p&ss\n",
		"database/url":     "postgresql://db\n\n",
		"database/2nd-url": "",
		"1st.key":          "\xff\xfe=1 ",
		"settings.json":    `{"HOST": "db", "port": 5432, "ratio": 1.50, "tls": true, "none": null, "text": "a\n\"ü\""}`,
		"settings.env":     "\ufeff# settings\n\n  export A=1 # as it is\r\nB='x \"$y\" '\nC=\"x y\"\nD=\nE.f-g=a=b \\n $A\n",
	})
	write(t, filepath.Join(dir, "..changed"), "2026-11-21T19:00:00Z")
	settings := []string{"A=1 # as it is", `B=x "$y" `, "C=x y", "D=", `E.f-g=a=b \n $A`}
	object := []string{"HOST=db", "port=5432", "ratio=1.50", "text=a\n\"ü\"", "tls=true"}
	for _, test := range []struct {
		name, line string
		environ    []string
		want       []string
	}{
		{"below a folder, a path makes the name", "--from DIR/database", nil, []string{"URL=postgresql://db\n", "_2ND_URL="}},
		{"a prefix comes before the digit", "--from DIR/database --prefix DB_", nil, []string{"DB_2ND_URL=", "DB_URL=postgresql://db\n"}},
		{"a newline is kept if asked for", "--from DIR/database --keep-newline", nil, []string{"URL=postgresql://db\n\n", "_2ND_URL="}},
		{"a file has the name that it is given", "--env db.pass=DIR/password --prefix X_", nil, []string{"db.pass=p&ss"}},
		{"a value need not be text", "--env KEY=DIR/1st.key", nil, []string{"KEY=\xff\xfe=1 "}},
		{"a path may go through ..data", "--from DIR/..data/database --env P=DIR/..data/password", nil, []string{"P=p&ss", "URL=postgresql://db\n", "_2ND_URL="}},
		{"lines of a file", "--env-from DIR/settings.env", nil, settings},
		{"a JSON object", "--env-from DIR/settings.json", nil, object},
		{"a prefix goes before keys", "--env-from DIR/settings.json --prefix X_", nil, []string{"X_HOST=db", "X_port=5432", "X_ratio=1.50", "X_text=a\n\"ü\"", "X_tls=true"}},
		{"a file may be named twice", "--from DIR/database --env URL=DIR/database/url", nil, []string{"URL=postgresql://db\n", "_2ND_URL="}},
		{"other variables of the container stay", "--env P=DIR/password", []string{"PATH=/bin", "PASSWORD=", "odd"}, []string{"PATH=/bin", "PASSWORD=", "odd", "P=p&ss"}},
		{"the same value in the container is no clash", "--env P=DIR/password", []string{"P=p&ss", "A=b"}, []string{"A=b", "P=p&ss"}},
		{"files win if asked to", "--env P=DIR/password --override", []string{"P=1", "A=b", "P=2"}, []string{"A=b", "P=p&ss"}},
		{"what is missing may be left out", "--optional --env P=DIR/password --env Q=DIR/none --from DIR/nowhere --env-from DIR/none.env", nil, []string{"P=p&ss"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := environment(t, dir, test.line, test.environ...)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("%q, %v; want %q", got, err, test.want)
			}
		})
	}
	got, err := environment(t, dir, "--from DIR")
	names := "DATABASE_2ND_URL DATABASE_URL PASSWORD SETTINGS_ENV SETTINGS_JSON _1ST_KEY"
	for i, entry := range got {
		got[i], _, _ = strings.Cut(entry, "=")
	}
	if err != nil || strings.Join(got, " ") != names {
		t.Errorf("%q, %v; want %s", got, err, names)
	}
}

func TestAFolderWithoutTheLayoutOfAVolumeIsReadAsItIs(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "plain", "a"), "1")
	write(t, filepath.Join(dir, "plain", ".b", "c"), "2")
	write(t, filepath.Join(dir, "plain", "..2026", "password"), "not whole yet")
	write(t, filepath.Join(dir, "elsewhere"), "3")
	for link, to := range map[string]string{"plain/d": "../elsewhere", "plain/e": "..", "linked": "plain"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "plain", "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"A=1", "D=3", "_B_C=2"}
	for _, line := range []string{"--from DIR/plain", "--from DIR/linked"} {
		if got, err := environment(t, dir, line); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", line, got, err, want)
		}
	}
}

func TestAnErrorSaysWhatIsWrongAndNoValue(t *testing.T) {
	large := strings.Repeat("x", maxString())
	dir := volume(t, map[string]string{
		"db-password":     canary,
		"db_password":     canary,
		"nul":             "a\x00" + canary,
		"large":           large,
		"just-too-large":  large[:maxString()-len("V=\x00")+1],
		"multiline.env":   "A=1\n" + canary + "\n",
		"name.env":        "A=1\n" + canary + "/+==\n",
		"quote.env":       "A='" + canary + "\n",
		"expand.env":      "A=\"" + canary + "$x\"\n",
		"twice.env":       "A=1\nB=2\nA=" + canary,
		"nul.env":         "A=" + canary + "\x00",
		"nested.json":     `{"a": "` + canary + `", "b": {"c": "` + canary + `"}}`,
		"twice.json":      `{"a": "` + canary + `", "b": 1, "a": 2}`,
		"name.json":       `{"a b": "` + canary + `"}`,
		"broken.json":     `{"a": "` + canary + `" "b"}`,
		"cut.json":        `{"a": "` + canary,
		"more.json":       `{"a": "` + canary + `"} {}`,
		"surrogate.json":  `{"a": "` + canary + `\ud800"}`,
		"binary.json":     `{"a": "` + canary + "\xff\"}",
		"folder/file":     canary,
		"other/folder/fi": canary,
	})
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ line, want string }{
		{"--from DIR", "DIR/db-password and DIR/db_password both make the variable DB_PASSWORD; leave one out, or give it another name with --env"},
		{"--env A=DIR/db-password --env A=DIR/db_password", "DIR/db-password and DIR/db_password both make the variable A; leave one out, or give it another name with --env"},
		{"--env V=DIR/db-password", "the container has the variable V already, with another value than DIR/db-password; remove it from the container, or say --override to let files win"},
		{"--env N=DIR/nul", "DIR/nul has a NUL byte, which no environment variable can hold; let the program read the file"},
		{"--env V=DIR/just-too-large --override", fmt.Sprintf("DIR/just-too-large makes %d bytes of environment, and the kernel takes %d at most; let the program read the file", maxString()+1, maxString())},
		{"--env L=DIR/large", fmt.Sprintf("DIR/large makes %d bytes of environment, and the kernel takes %d at most; let the program read the file", maxString()+3, maxString())},
		{"--env-from DIR/multiline.env", "DIR/multiline.env: line 2 has no =; a value of several lines takes a JSON object, or a file of its own"},
		{"--env-from DIR/name.env", "DIR/name.env, line 2: no variable can be called so; write letters, digits and _ . - with no digit first"},
		{"--env-from DIR/quote.env", "DIR/quote.env: line 1: the value begins with a quote; end it with the same quote, which must not stand within, and no \\ $ ` between double quotes; or write a JSON object"},
		{"--env-from DIR/expand.env", "DIR/expand.env: line 1: the value begins with a quote; end it with the same quote, which must not stand within, and no \\ $ ` between double quotes; or write a JSON object"},
		{"--env-from DIR/twice.env", "DIR/twice.env, line 1 and DIR/twice.env, line 3 both make the variable A; leave one out, or give it another name with --env"},
		{"--env-from DIR/nul.env", "DIR/nul.env, line 1 has a NUL byte, which no environment variable can hold; let the program read the file"},
		{"--env-from DIR/nested.json", `DIR/nested.json: key "b" is no string, number or boolean; choose values of it in the class, as by extractJSONKey`},
		{"--env-from DIR/twice.json", `DIR/twice.json: key "a" is there twice`},
		{"--env-from DIR/name.json", `DIR/name.json, key "a b": no variable can be called so; write letters, digits and _ . - with no digit first`},
		{"--env-from DIR/broken.json", "DIR/broken.json: it is no JSON at byte 20"},
		{"--env-from DIR/cut.json", "DIR/cut.json: it is no JSON at byte 6"},
		{"--env-from DIR/more.json", "DIR/more.json: it is no JSON at byte 22"},
		{"--env-from DIR/surrogate.json", `DIR/surrogate.json: key "a" has a character that is no Unicode`},
		{"--env-from DIR/binary.json", `DIR/binary.json: key "a" has a character that is no Unicode`},
		{"--env A=DIR/none", "DIR/none does not exist"},
		{"--env A=DIR/folder", "DIR/folder is not a regular file"},
		{"--env A=DIR/folder/file/none", "cannot read DIR/folder/file/none: not a directory"},
		{"--env-from DIR/none", "DIR/none does not exist"},
		{"--from DIR/nowhere", "DIR/nowhere does not exist"},
		{"--from DIR/db-password", "DIR/db-password is not a folder; for one file say --env or --env-from"},
		{"--from DIR/empty", "DIR/empty does not exist"}, // in the volume's set, whose root alone has it
	} {
		t.Run(test.line, func(t *testing.T) {
			_, err := environment(t, dir, test.line, "V=container-"+canary)
			if err == nil {
				t.Fatal("there is no error")
			}
			got := strings.ReplaceAll(err.Error(), dir, "DIR")
			if got != test.want {
				t.Errorf("%s\nwant %s", got, test.want)
			}
			if strings.Contains(got, canary) {
				t.Error("the error has the value")
			}
		})
	}
	plain := t.TempDir()
	if _, err := environment(t, plain, "--from DIR"); err == nil || err.Error() != "there is no file below "+plain {
		t.Errorf("an empty folder: %v", err)
	}
}

func TestACommandLineThatCannotBeUnderstoodSaysWhy(t *testing.T) {
	for _, test := range []struct{ line, want string }{
		{"", "no files are named; say --from, --env or --env-from"},
		{"-- program", "no files are named; say --from, --env or --env-from"},
		{"--from /s", "no program is named; write it after --"},
		{"--from /s --", "no program is named; write it after --"},
		{"--from= -- program", `invalid value "" for flag -from: it names no file or folder`},
		{"--env NAME= -- program", `invalid value "NAME=" for flag -env: it names no file or folder`},
		{"--env /s/x -- program", `invalid value "/s/x" for flag -env: write NAME=FILE, with a name of letters, digits and _ . - that begins with no digit`},
		{"--env 1A=/s/x -- program", `invalid value "1A=/s/x" for flag -env: write NAME=FILE, with a name of letters, digits and _ . - that begins with no digit`},
		{"--from /s --prefix 1= -- program", `--prefix "1=": write letters, digits and _ . - with no digit first`},
		{"--from /s --wait -1s -- program", "--wait must not be negative"},
		{"--copy-to /d --from /s", "--copy-to goes with no other flag and no program"},
		{"--copy-to /d program", "--copy-to goes with no other flag and no program"},
		{"--verbose", "flag provided but not defined: -verbose"},
	} {
		var stderr bytes.Buffer
		status := Command("launcher", strings.Fields(test.line), nil, &stderr, &stderr)
		want := "launcher: " + test.want + "\nsee launcher --help\n"
		if status != statusFailed || stderr.String() != want {
			t.Errorf("%q: status %d, %s\nwant %s", test.line, status, stderr.String(), want)
		}
	}
}

// A reader beside a writer that never rests sees whole sets of one version only.
func TestAllVariablesAreOfOneVersion(t *testing.T) {
	dir := t.TempDir()
	version := 0
	next := func() {
		version++
		v := fmt.Sprint(version)
		switchSet(t, dir, map[string]string{
			"a": v, "b/c": v, "b/d": v, "x.env": "X=" + v, "y.json": `{"Y": ` + v + `}`, "only-" + v: v,
		})
	}
	next()
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				next()
			}
		}
	})
	defer writer.Wait()
	defer close(stop)
	c, err := parse(strings.Fields(strings.ReplaceAll("--from DIR --env-from DIR/x.env --env-from DIR/y.json --env Z=DIR/b/c -- program", "DIR", dir)))
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]bool{}
	for range 10_000 {
		brought, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		v := brought["A"].value
		names := strings.Fields("A B_C B_D ONLY_" + v + " X X_ENV Y Y_JSON Z")
		if got := slices.Sorted(maps.Keys(brought)); !slices.Equal(got, names) {
			t.Fatalf("the set is not whole: %q", got)
		}
		for name, b := range brought {
			if got := strings.Trim(b.value, `XY={" :}`); got != v {
				t.Fatalf("%s is of version %s, and A of version %s", name, got, v)
			}
		}
		versions[v] = true
	}
	t.Logf("10,000 reads saw %d versions", len(versions))
	if len(versions) < 2 {
		t.Error("the volume never changed while it was read")
	}
}

func TestAFolderThatBecomesAVolumeWhileItIsReadIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	sets := sets{}
	if at, err := sets.find(dir); err != nil || at.inSet {
		t.Fatalf("%v, %v", at, err)
	}
	switchSet(t, dir, map[string]string{"password": "1"})
	if !sets.close() {
		t.Error("the folder counts as read")
	}
}

func TestVolumesThatComeLateAreWaitedFor(t *testing.T) {
	for _, test := range []struct {
		name, line string
		want       []string
		err        string
	}{
		{"they come in time", "--wait 30s --from DIR/late --env P=DIR/late/password", []string{"P=2", "PASSWORD=2"}, ""},
		{"they do not", "--wait 5s --from DIR/late", nil, "DIR/late does not exist"},
		{"nobody waits unless asked to", "--from DIR/late", nil, "DIR/late does not exist"},
		{"what is optional is waited for too", "--wait 5s --optional --env A=DIR/here --from DIR/late", []string{"A=1"}, ""},
		{"a file that has come late", "--wait 30s --env P=DIR/plain", []string{"P=3"}, ""},
		{"a folder that does not tell when it is whole", "--wait 30s --from DIR/other", nil, "DIR/other has files but no ..data, so that --wait cannot tell when all are there; wait for single files with --env or --env-from"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				write(t, filepath.Join(dir, "here"), "1")
				go func() {
					time.Sleep(10 * time.Second)
					write(t, filepath.Join(dir, "late", "..2026_11", "password"), "not yet")
					time.Sleep(time.Second)
					switchSet(t, filepath.Join(dir, "late"), map[string]string{"password": "2"})
					write(t, filepath.Join(dir, "plain.new"), "3")
					if err := os.Rename(filepath.Join(dir, "plain.new"), filepath.Join(dir, "plain")); err != nil {
						t.Error(err)
					}
					write(t, filepath.Join(dir, "other", "a"), "4")
				}()
				got, err := environment(t, dir, test.line)
				if err == nil {
					err = fmt.Errorf("")
				}
				if text := strings.ReplaceAll(err.Error(), dir, "DIR"); text != test.err || !slices.Equal(got, test.want) {
					t.Errorf("%q, %q; want %q, %q", got, text, test.want, test.err)
				}
				time.Sleep(time.Minute) // the writer ends before its folder goes
			})
		})
	}
}

// The help and the page for users have every flag, and the help no other.
func TestFlagsAreExplained(t *testing.T) {
	page, err := os.ReadFile("../../docs/environment.md")
	if err != nil {
		t.Fatal(err)
	}
	explained := 0
	new(config).flags().VisitAll(func(f *flag.Flag) {
		if !strings.Contains(usage, "\n  --"+f.Name+" ") {
			t.Errorf("the help does not explain --%s", f.Name)
		}
		if !bytes.Contains(page, []byte("\n| `--"+f.Name)) {
			t.Errorf("docs/environment.md does not explain --%s", f.Name)
		}
		explained++
	})
	if n := strings.Count(usage, "\n  --"); n != explained {
		t.Errorf("the help has %d flags, and there are %d", n, explained)
	}
}
