package provider

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckPathRefuses(t *testing.T) {
	for name, p := range map[string]string{
		"nothing": "", "an absolute path": "/a", "a parent": "../a", "a parent inside": "a/../b", "a parent at the end": "a/..",
		"a dot": ".", "a dot inside": "a/./b", "two slashes": "a//b", "a slash at the end": "a/", "a NUL byte": "a\x00b",
		"the volume's own names": "..data", "a 300-byte name": strings.Repeat("n", 300), "a 5000-byte path": strings.Repeat("n/", 2500) + "n",
		"broken UTF-8": "a\xff",
	} {
		if CheckPath(p) == nil {
			t.Errorf("%s: %.60q was accepted", name, p)
		}
	}
	for _, p := range []string{"a", "a/b", ".hidden", "a/..b", "a b", "ünïcode", strings.Repeat("n", 255)} {
		if err := CheckPath(p); err != nil {
			t.Errorf("%.40q: %v", p, err)
		}
	}
}

func TestCheckPathsRefusesWhatCannotStandTogether(t *testing.T) {
	for _, paths := range [][]string{{"a", "a"}, {"a", "a/b"}, {"a/b/c", "x", "a"}} {
		if CheckPaths(paths) == nil {
			t.Errorf("%v was accepted", paths)
		}
	}
	if err := CheckPaths([]string{"a/b", "a/c", "ab"}); err != nil {
		t.Error(err)
	}
}

func TestParseMode(t *testing.T) {
	for text, want := range map[string]uint32{"0644": 0o644, "644": 0o644, "0o600": 0o600, "0": 0, "0777": 0o777} {
		if got, err := ParseMode(text); err != nil || uint32(got) != want {
			t.Errorf("%q: got %o, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "9", "1777", "-1", "rw", "0x1ff", "1000"} {
		if got, err := ParseMode(text); err == nil {
			t.Errorf("%q was read as %o", text, got)
		}
	}
}

// Whatever passes CheckPath stays below the folder it is joined to.
func FuzzCheckPath(f *testing.F) {
	for _, p := range []string{"a/b", "../a", "a/../../b", "..data", "\x00", "/"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if CheckPath(p) != nil {
			return
		}
		if joined := filepath.Join("/root", p); !strings.HasPrefix(joined, "/root/") || joined != "/root/"+p {
			t.Errorf("%q joins to %q", p, joined)
		}
	})
}
