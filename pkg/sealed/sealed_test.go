package sealed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const canary = "canary-5b1d"

func testKey(fill byte) secret.Value { return secret.New(bytes.Repeat([]byte{fill}, KeyBytes)) }

// opened returns a Cache of the folder, as a driver that has just started has it.
func opened(t *testing.T, dir string) *Cache {
	t.Helper()
	c, err := New(Config{Dir: dir, Key: testKey(1), Max: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var (
	web   = Name{"shop/db/web", "web asks for db"}
	other = Name{"shop/db/other", "other asks for db"}
)

func result(value string) provider.Result {
	return provider.Result{
		Files: []provider.File{
			{Path: "db/password", Mode: 0o440, Contents: secret.FromString(value)},
			{Path: "empty", Mode: 0o644},
			{Path: "end", Mode: 0o600, Contents: secret.FromString("\n{" + value + "}\n")},
		},
		Versions: []provider.ObjectVersion{{ID: "db", Version: "of " + value}},
	}
}

func seal(t *testing.T, c *Cache, n Name, value string) {
	t.Helper()
	if err := c.Seal(n, result(value), time.Now(), 4*time.Hour); err != nil {
		t.Fatal(err)
	}
}

// value returns what the cache has for a name, or why it has nothing.
func value(c *Cache, n Name) string {
	r, err := c.Open(n)
	if err != nil {
		return err.Error()
	}
	defer r.Clear()
	return string(r.Files[0].Contents.Reveal())
}

func want(t *testing.T, c *Cache, n Name, text string) {
	t.Helper()
	if got := value(c, n); !strings.Contains(got, text) {
		t.Errorf("got %q, want %q", got, text)
	}
}

// files returns the paths of what is in the folder.
func files(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (c *Cache) path(n Name) string { return filepath.Join(c.dir, c.file(n).name()) }

func TestWhatIsSealedComesBackAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "cache")
		sealed := result(canary)
		sealed.ValidUntil = time.Now().Add(5 * time.Hour).UTC()
		at := time.Now()
		if err := opened(t, dir).Seal(web, sealed, at, 4*time.Hour); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		c := opened(t, dir)
		got, err := c.Open(web)
		if err != nil || !got.SealedAt.Equal(at) || !got.ValidUntil.Equal(sealed.ValidUntil) || !slices.Equal(got.Versions, sealed.Versions) || len(got.Files) != len(sealed.Files) {
			t.Fatalf("got %+v, %v", got, err)
		}
		for i, f := range got.Files {
			if s := sealed.Files[i]; f.Path != s.Path || f.Mode != s.Mode || !f.Contents.Equal(s.Contents) {
				t.Errorf("file %d is %+v, want %+v", i, f, s)
			}
		}
		got.Clear()
		want(t, c, web, canary) // each has contents of its own
		want(t, c, other, ErrNone.Error())
		if c.Len() != 1 || !c.Has(web) || c.Has(other) {
			t.Errorf("%d are kept", c.Len())
		}
	})
}

func TestTheFolderTellsNothing(t *testing.T) {
	c := opened(t, t.TempDir())
	seal(t, c, Name{canary, canary}, canary)
	list := files(t, c.dir)
	if len(list) != 1 {
		t.Fatalf("it holds %q", list)
	}
	data, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, telling := range []string{canary, "password", "db"} {
		if strings.Contains(filepath.Base(list[0]), telling) || bytes.Contains(data, []byte(telling)) {
			t.Errorf("it has %q in it", telling)
		}
	}
	if info, err := os.Stat(list[0]); err != nil || info.Mode() != 0o600 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
	// The same answer does not make the same bytes.
	if err := c.Remove(Name{canary, canary}); err != nil {
		t.Fatal(err)
	}
	seal(t, c, Name{canary, canary}, canary)
	again, err := os.ReadFile(list[0])
	if err != nil || bytes.Equal(again[headerBytes:headerBytes+saltBytes], data[headerBytes:headerBytes+saltBytes]) || len(again) != len(data) {
		t.Errorf("two files have the same salt; %v", err)
	}
}

func TestNobodyGetsTheAnswerOfAnother(t *testing.T) {
	for name, to := range map[string]Name{
		"another identity":        {web.Owner, other.Answer},
		"another class":           {other.Owner, web.Answer},
		"both":                    other,
		"the parts the other way": {web.Answer, web.Owner},
	} {
		c := opened(t, t.TempDir())
		seal(t, c, web, canary)
		want(t, c, to, ErrNone.Error())
		// Nor if somebody gives its file the other's name.
		if err := os.Rename(c.path(web), c.path(to)); err != nil {
			t.Fatal(err)
		}
		if got := value(opened(t, c.dir), to); !strings.Contains(got, "changed, or sealed with another key") {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestAnotherKeyOpensNothing(t *testing.T) {
	c := opened(t, t.TempDir())
	seal(t, c, web, canary)
	stranger, err := New(Config{Dir: c.dir, Key: testKey(2), Max: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	want(t, stranger, web, ErrNone.Error())
	if err := os.Rename(c.path(web), stranger.path(web)); err != nil {
		t.Fatal(err)
	}
	stranger, err = New(Config{Dir: c.dir, Key: testKey(2), Max: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	want(t, stranger, web, "changed, or sealed with another key")
}

func TestAFileThatWasChangedIsRefusedAndRemoved(t *testing.T) {
	c := opened(t, t.TempDir())
	seal(t, c, web, canary)
	whole, err := os.ReadFile(c.path(web))
	if err != nil {
		t.Fatal(err)
	}
	changed := [][]byte{nil, append(bytes.Clone(whole), 0)}
	for i := range whole {
		flipped := bytes.Clone(whole)
		flipped[i] ^= 1 << (i % 8)
		changed = append(changed, flipped, whole[:i])
	}
	for _, data := range changed {
		if err := os.WriteFile(c.path(web), data, 0o600); err != nil {
			t.Fatal(err)
		}
		// A driver that has just started knows the file from its header alone.
		for _, c := range []*Cache{{dir: c.dir, max: c.max, names: c.names, seals: c.seals, entries: map[file]entry{c.file(web): c.entries[c.file(web)]}}, opened(t, c.dir)} {
			if r, err := c.Open(web); err == nil {
				t.Fatalf("%d bytes, of which %d are as before, were opened: %v", len(data), len(data), r)
			}
			if c.Has(web) {
				t.Error("it counts still")
			}
		}
		if len(files(t, c.dir)) > 0 {
			t.Fatal("it is left")
		}
	}
}

func TestAnAnswerEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		lasts, valid, max, want time.Duration
	}{
		"with the time that its class gives it": {4 * time.Hour, 0, 24 * time.Hour, 4 * time.Hour},
		"with the time that the node gives it":  {4 * time.Hour, 0, time.Hour, time.Hour},
		"when something in it does":             {4 * time.Hour, 2 * time.Hour, 24 * time.Hour, 2 * time.Hour},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprint(name, restarted), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					first := opened(t, t.TempDir())
					r := result(canary)
					if tc.valid > 0 {
						r.ValidUntil = time.Now().Add(tc.valid)
					}
					if err := first.Seal(web, r, time.Now(), tc.lasts); err != nil {
						t.Fatal(err)
					}
					c := first
					if c.max = tc.max; restarted {
						var err error
						if c, err = New(Config{Dir: first.dir, Key: testKey(1), Max: tc.max}); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(tc.want - time.Second)
					want(t, c, web, canary)
					time.Sleep(time.Second)
					want(t, c, web, ErrNone.Error())
					if c.Has(web) {
						t.Error("it counts still")
					}
				})
			})
		}
	}
}

func TestWhatHasEndedIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := opened(t, t.TempDir())
		seal(t, c, web, canary)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); c.Run(ctx) }()
		time.Sleep(4*time.Hour - time.Minute)
		if len(files(t, c.dir)) != 1 {
			t.Error("it went early")
		}
		time.Sleep(3 * time.Minute)
		if left := files(t, c.dir); len(left) > 0 || c.Len() > 0 || c.bytes != 0 {
			t.Errorf("%q are left, and %d bytes", left, c.bytes)
		}
		cancel()
		<-ended
	})
}

func TestAStartRemovesWhatHasEndedAndWhatIsHalfWrittenAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := opened(t, dir)
		seal(t, c, web, canary)
		if err := c.Seal(other, result(canary), time.Now(), 9*time.Hour); err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(c.path(web))
		if err != nil {
			t.Fatal(err)
		}
		// A driver that was killed before the rename.
		if err := os.WriteFile(c.path(web)+unfinished, whole[:len(whole)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		foreign := filepath.Join(dir, "notes.new")
		if err := os.WriteFile(foreign, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		c = opened(t, dir)
		want(t, c, web, canary)
		if got := files(t, dir); len(got) != 3 {
			t.Errorf("the folder holds %q", got)
		}
		time.Sleep(8 * time.Hour)
		c = opened(t, dir)
		if got := files(t, dir); len(got) != 2 || c.Len() != 1 || !slices.Contains(got, foreign) {
			t.Errorf("the folder holds %q", got)
		}
	})
}

// Each bubble of time begins at the same moment.
func TestAClockThatWasSetBackMakesNothingYounger(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
		seal(t, opened(t, dir), web, canary)
	})
	synctest.Test(t, func(t *testing.T) {
		aside := filepath.Join(t.TempDir(), "aside")
		whole, err := os.ReadFile(files(t, dir)[0])
		if err != nil {
			t.Fatal(err)
		}
		c := opened(t, dir)
		want(t, c, web, ErrNone.Error())
		if left := files(t, dir); len(left) > 0 {
			t.Errorf("an answer from the future is left: %q", left)
		}
		if err := os.WriteFile(aside, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour - time.Second)
		if err := os.Rename(aside, c.path(web)); err != nil {
			t.Fatal(err)
		}
		want(t, c, web, ErrNone.Error())
	})
	// While the driver runs, it counts by the clock that nobody sets.
	now := time.Now()
	c := &Cache{max: 24 * time.Hour}
	e := entry{at: now, until: now.Add(4 * time.Hour)}
	if !c.usable(e, now.Add(4*time.Hour-1)) || c.usable(e, now.Add(4*time.Hour)) {
		t.Error("it does not last four hours")
	}
	if c.usable(e, now.Round(0).Add(-1)) {
		t.Error("one from the future is used")
	}
}

func TestAnOlderFileThatIsPutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := opened(t, t.TempDir())
		seal(t, c, web, "old")
		old, err := os.ReadFile(c.path(web))
		if err != nil {
			t.Fatal(err)
		}
		putBack := func() {
			if err := os.WriteFile(c.path(web), old, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		seal(t, c, web, "new")
		putBack()
		want(t, c, web, "not the one that was written")
		putBack()
		want(t, c, web, ErrNone.Error())
		// The next driver knows no better, but it knows the time.
		c = opened(t, c.dir)
		want(t, c, web, "old")
		time.Sleep(3 * time.Hour)
		want(t, c, web, ErrNone.Error())
		putBack()
		want(t, opened(t, c.dir), web, ErrNone.Error())
	})
}

func TestARefusalRemoves(t *testing.T) {
	for name, tc := range map[string]struct {
		refused  Name
		web, own bool // what stays
	}{
		"its own":                                   {web, false, true},
		"an identity that could not be named":       {Name{web.Owner, ""}, false, true},
		"the same answer of another class":          {Name{"shop/other/web", web.Answer}, false, true},
		"neither its class nor what it is made for": {Name{"shop/other/web", ""}, true, true},
	} {
		c := opened(t, t.TempDir())
		began := time.Now()
		seal(t, c, web, canary)
		seal(t, c, other, canary)
		if err := c.Remove(tc.refused); err != nil {
			t.Fatal(err)
		}
		if c.Has(web) != tc.web || c.Has(other) != tc.own || len(files(t, c.dir)) != c.Len() {
			t.Errorf("%s: it has web: %v, other: %v, and %d files", name, c.Has(web), c.Has(other), len(files(t, c.dir)))
		}
		if tc.web {
			continue
		}
		// What was on its way then is not kept; what comes later is.
		if err := c.Seal(web, result(canary), began, 4*time.Hour); err != nil || c.Has(web) {
			t.Errorf("%s: an answer from before is kept, %v", name, err)
		}
		seal(t, c, web, "allowed again")
		want(t, c, web, "allowed again")
	}
}

func TestTheNewestIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := opened(t, t.TempDir())
		before := time.Now()
		time.Sleep(time.Minute)
		seal(t, c, web, "new")
		if err := c.Seal(web, result("late"), before, 4*time.Hour); err != nil {
			t.Fatal(err)
		}
		want(t, c, web, "new")
		if err := c.Seal(web, result("over"), before, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		want(t, c, web, "new")
		if err := c.Seal(other, result("over"), before, 30*time.Second); err != nil || c.Len() != 1 || len(files(t, c.dir)) != 1 {
			t.Errorf("one that is over is kept; %v", err)
		}
	})
}

func TestWhatIsReplacedKeepsItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := opened(t, t.TempDir())
		replace := func(value string) {
			if err := c.Seal(web, result(value), time.Time{}, 4*time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		replace("nothing to replace")
		want(t, c, web, ErrNone.Error())
		at := time.Now()
		seal(t, c, web, "old")
		time.Sleep(time.Hour)
		replace("new")
		for range 2 {
			if r, err := c.Open(web); err != nil || !r.SealedAt.Equal(at) || string(r.Files[0].Contents.Reveal()) != "new" {
				t.Errorf("got %+v, %v", r, err)
			}
			c = opened(t, c.dir)
		}
		time.Sleep(3 * time.Hour)
		replace("too late")
		want(t, c, web, ErrNone.Error())
		seal(t, c, web, "old")
		if err := c.Remove(web); err != nil {
			t.Fatal(err)
		}
		replace("removed")
		want(t, c, web, ErrNone.Error())
		if left := files(t, c.dir); len(left) > 0 {
			t.Errorf("%q are left", left)
		}
	})
}

func TestTheSameAnswerIsNotWrittenForEachPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := opened(t, t.TempDir())
		writes, last := 0, []byte(nil)
		count := func(value string) {
			seal(t, c, web, value)
			data, err := os.ReadFile(c.path(web))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(data, last) {
				writes++
			}
			last = data
		}
		for range 60 { // an hour, in which an answer that lasts four is new for twelve minutes
			count(canary)
			time.Sleep(time.Minute)
		}
		if writes != 5 {
			t.Errorf("it was written %d times", writes)
		}
		count("another")
		want(t, c, web, "another")
	})
}

func TestWhenTheWholeAnswerIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := opened(t, t.TempDir())
		due := func(lasts time.Duration, seals bool) (n int) {
			for range 240 { // two hours
				if c.Due(web, lasts) {
					if n++; seals {
						seal(t, c, web, canary)
					}
				}
				time.Sleep(30 * time.Second)
			}
			return n
		}
		if n := due(4*time.Hour, false); n != 12 {
			t.Errorf("one that cannot be kept is due %d times", n)
		}
		if n := due(8*time.Minute, false); n != 60 {
			t.Errorf("one that does not last long and cannot be kept is due %d times", n)
		}
		time.Sleep(time.Hour)
		if n := due(4*time.Hour, true); n != 2 {
			t.Errorf("one that is kept is due %d times", n)
		}
		ends := result(canary)
		ends.ValidUntil = time.Now().Add(time.Minute)
		if err := c.Seal(web, ends, time.Now(), 4*time.Hour); err != nil || c.Due(web, 4*time.Hour) {
			t.Errorf("it is due at once, %v", err)
		}
		if time.Sleep(time.Minute); !c.Due(web, 4*time.Hour) {
			t.Error("one that has ended is not due")
		}
		time.Sleep(time.Hour)
		if c.max = time.Hour; due(4*time.Hour, true) != 8 {
			t.Error("one that the node keeps for an hour is not due four times in it")
		}
	})
}

func TestAFullDiskLeavesTheOlderAnswer(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=16k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	c := opened(t, dir)
	seal(t, c, web, canary)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 20<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := c.Seal(web, result("new"), time.Now(), 4*time.Hour); !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), canary) {
		t.Errorf("got %v", err)
	}
	want(t, c, web, canary)
	if got := files(t, dir); len(got) != 2 {
		t.Errorf("the folder holds %q", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	seal(t, c, web, "new")
	want(t, c, web, "new")
	if info, err := os.Stat(c.path(web)); err != nil || c.bytes != info.Size() {
		t.Errorf("it counts %d bytes of %d, %v", c.bytes, info.Size(), err)
	}
}

func TestTheFolderIsBounded(t *testing.T) {
	c := opened(t, t.TempDir())
	began := time.Now()
	for i := range maxEntries + 3 {
		if err := c.Seal(Name{"o", fmt.Sprint(i)}, provider.Result{}, began.Add(-time.Hour+time.Duration(i)*time.Millisecond), 4*time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if len(files(t, c.dir)) != maxEntries || c.Has(Name{"o", "2"}) || !c.Has(Name{"o", "3"}) {
		t.Errorf("%d are kept, of which the oldest is not the fourth", c.Len())
	}

	c = opened(t, t.TempDir())
	seal(t, c, web, canary)
	for i := range 4 {
		c.put(c.file(Name{"big", fmt.Sprint(i)}), entry{at: began.Add(-time.Hour - time.Duration(i)), until: began.Add(time.Hour), bytes: maxBytes / 3})
	}
	seal(t, c, other, canary)
	if c.Len() != 4 || c.bytes > maxBytes || c.Has(Name{"big", "3"}) || !c.Has(Name{"big", "1"}) || !c.Has(web) || !c.Has(other) {
		t.Errorf("%d are kept, with %d bytes", c.Len(), c.bytes)
	}
	big := provider.Result{Files: []provider.File{{Path: "a", Contents: secret.New(make([]byte, maxEntryBytes))}}}
	if err := c.Seal(Name{"o", "big"}, big, time.Now(), time.Hour); err == nil || !strings.Contains(err.Error(), "are kept at most") {
		t.Errorf("got %v", err)
	}
}

func TestWhatNoCacheCanWorkWithIsRefused(t *testing.T) {
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for text, c := range map[string]Config{
		"needs a folder":        {Key: testKey(1), Max: time.Hour},
		"a longest age":         {Dir: t.TempDir(), Key: testKey(1)},
		"a key of 32 bytes":     {Dir: t.TempDir(), Key: secret.FromString(canary), Max: time.Hour},
		"others than its owner": {Dir: open, Key: testKey(1), Max: time.Hour},
		"not a directory":       {Dir: "/dev/null/x", Key: testKey(1), Max: time.Hour},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

// TestADriverThatIsKilled kills another process while it seals: whenever that is,
// each answer is an old or a new one as a whole.
func TestADriverThatIsKilled(t *testing.T) {
	const sealsInto = "SEALS_INTO"
	values := []string{strings.Repeat("a", 50<<10), strings.Repeat("b", 90<<10)}
	if dir := os.Getenv(sealsInto); dir != "" {
		c := opened(t, dir)
		for i := 0; ; i++ {
			seal(t, c, web, values[i%2])
			if i == 1 {
				fmt.Println("it seals")
			}
		}
	}
	dir := t.TempDir()
	for range 20 {
		driver := exec.Command("/proc/self/exe", "-test.run=^TestADriverThatIsKilled$")
		driver.Env = append(os.Environ(), sealsInto+"="+dir)
		out, err := driver.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := driver.Start(); err != nil {
			t.Fatal(err)
		}
		_, err = out.Read(make([]byte, 1))
		if err := errors.Join(err, driver.Process.Kill()); err != nil {
			t.Fatal(err)
		}
		_ = driver.Wait()
		c := opened(t, dir)
		if got := value(c, web); !slices.Contains(values, got) {
			t.Fatalf("%d bytes, %.60q", len(got), got)
		}
		if got := files(t, dir); len(got) != 1 {
			t.Fatalf("the folder holds %q", got)
		}
	}
}

// written is a file as the first format has it: of web, in the time of e.
func written(t testing.TB) (c *Cache, e entry, whole []byte) {
	t.Helper()
	whole, err := os.ReadFile(filepath.Join("testdata", "format1"))
	if err != nil {
		t.Fatal(err)
	}
	c, err = New(Config{Dir: t.TempDir(), Key: testKey(1), Max: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return c, entry{at: time.Unix(1000, 0), until: time.Unix(2000, 0)}, whole
}

func TestTheFormatStays(t *testing.T) {
	c, e, whole := written(t)
	if err := os.WriteFile(c.path(web), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := c.decrypt(c.file(web), e); err != nil || string(r.Files[0].Contents.Reveal()) != canary || r.Versions[0].ID != "db" {
		t.Errorf("got %+v, %v: another format needs another number", r, err)
	}
}

func FuzzFile(f *testing.F) {
	c, e, whole := written(f)
	f.Add(whole)
	f.Add(whole[:headerBytes+saltBytes])
	f.Add([]byte{format})
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(c.path(web), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if read, err := readHeader(c.path(web)); err == nil && read.bytes != int64(len(data)) {
			t.Errorf("it has %d bytes, not %d", len(data), read.bytes)
		}
		r, err := c.decrypt(c.file(web), e)
		if err == nil && !bytes.Equal(data, whole) {
			t.Errorf("another file was opened: %v", r)
		}
		if err != nil && (r.Files != nil || strings.Contains(err.Error(), canary)) {
			t.Errorf("got %v, %v", r, err)
		}
	})
}

func FuzzContents(f *testing.F) {
	plain, err := encode(result(canary))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Add(plain[:len(plain)-1])
	f.Add(append(bytes.Clone(plain), 0))
	f.Add([]byte(`{"files":[{"path":"a","bytes":-1}]}` + "\n"))
	f.Add([]byte(`{"files":[{"path":"a","bytes":9223372036854775807},{"path":"b","bytes":2}]}` + "\nxy"))
	f.Fuzz(func(t *testing.T, plain []byte) {
		r, err := decode(bytes.Clone(plain))
		if err != nil {
			return
		}
		total := 0
		for _, file := range r.Files {
			total += file.Contents.Len()
		}
		line, rest, _ := bytes.Cut(plain, []byte("\n"))
		if total != len(rest) {
			t.Errorf("%d bytes of %d were read, after %q", total, len(rest), line)
		}
		again, err := encode(r)
		if err != nil {
			t.Fatal(err)
		}
		same, err := decode(again)
		if err != nil || len(same.Files) != len(r.Files) || !slices.Equal(same.Versions, r.Versions) {
			t.Errorf("got %+v, %v; want %+v", same, err, r)
		}
	})
}
