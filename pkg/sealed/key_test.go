package sealed

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAKeyOfAFile(t *testing.T) {
	key := bytes.Repeat([]byte{0xfe}, KeyBytes)
	text := base64.StdEncoding.EncodeToString(key)
	for name, tc := range map[string]struct {
		data string
		mode fs.FileMode
		want string // of an error
	}{
		"as it is":                   {string(key), 0o400, ""},
		"in base64":                  {text, 0o600, ""},
		"in base64, with a new line": {text + "\n", 0o400, ""},
		"that others may read":       {text, 0o404, "chmod it to 0400"},
		"that a group may read":      {text, 0o440, "chmod it to 0400"},
		"that others may write":      {text, 0o602, "chmod it to 0400"},
		"that is short":              {canary, 0o400, "neither 32 bytes nor these in base64"},
		"that is long":               {strings.Repeat(canary, 100), 0o400, "neither 32 bytes"},
		"that is empty":              {"", 0o400, "neither 32 bytes"},
		"of 16 bytes in base64":      {"AAAAAAAAAAAAAAAAAAAAAA==", 0o400, "neither 32 bytes"},
		"of 33 bytes":                {string(key) + "\n", 0o400, "neither 32 bytes"},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := errors.Join(os.WriteFile(path, []byte(tc.data), 0o600), os.Chmod(path, tc.mode)); err != nil {
			t.Fatal(err)
		}
		got, err := ReadKey(path)
		switch {
		case tc.want == "" && (err != nil || !bytes.Equal(got.Reveal(), key)):
			t.Errorf("%s: got %x, %v", name, got.Reveal(), err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), canary) || !got.IsEmpty()):
			t.Errorf("%s: got %v", name, err)
		}
	}
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if _, err := ReadKey(path); err == nil {
			t.Errorf("%s is a key", path)
		}
	}
}

func TestAKeyInMemoryStaysTheSame(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	first, err := MemoryKey(filepath.Join(dir, "state"))
	if err != nil || first.Len() != KeyBytes {
		t.Fatalf("%d bytes, %v", first.Len(), err)
	}
	again, err := MemoryKey(filepath.Join(dir, "state"))
	if err != nil || !again.Equal(first) {
		t.Errorf("it is another after a restart, %v", err)
	}
	if fresh, err := MemoryKey(filepath.Join(dir, "another")); err != nil || fresh.Equal(first) {
		t.Errorf("another folder has the same, %v", err)
	}
	path := filepath.Join(dir, "state", memoryKeyFile)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := MemoryKey(filepath.Join(dir, "state")); err == nil {
		t.Error("a key is taken that others may read")
	}
}

func TestAKeyInMemoryIsNotWrittenToADisk(t *testing.T) {
	const dir = "/proc/self" // no tmpfs, wherever the test runs
	if _, err := MemoryKey(dir); err == nil || !strings.Contains(err.Error(), "is not in memory (tmpfs)") {
		t.Errorf("got %v", err)
	}
}
