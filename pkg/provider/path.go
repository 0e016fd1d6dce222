package provider

import (
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of a file's path in a volume, those of Linux and of Kubernetes' own
// secret volumes.
const (
	MaxPathBytes      = 4096
	MaxComponentBytes = 255
)

// CheckPath tells why p cannot be the path of a file in a volume, or returns
// nil. A path is relative, clean, in UTF-8 without NUL, has no ".." component,
// and its first component does not begin with "..", which names the volume's
// own entries.
func CheckPath(p string) error {
	switch {
	case p == "":
		return fmt.Errorf("a file path must not be empty")
	case len(p) > MaxPathBytes:
		return fmt.Errorf("a file path has %d bytes, more than %d", len(p), MaxPathBytes)
	case !utf8.ValidString(p):
		return fmt.Errorf("the file path %q is not UTF-8", short(p))
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("the file path %q contains a NUL byte", short(p))
	case path.IsAbs(p):
		return fmt.Errorf("the file path %q is absolute; it must be relative to the volume", short(p))
	}
	first := true
	for part := range strings.SplitSeq(p, "/") {
		switch {
		case part == "..":
			return fmt.Errorf("the file path %q contains \"..\"", short(p))
		case len(part) > MaxComponentBytes:
			return fmt.Errorf("the file path %q has a component of %d bytes, more than %d", short(p), len(part), MaxComponentBytes)
		case first && strings.HasPrefix(part, ".."):
			return fmt.Errorf("the file path %q begins with \"..\", which is kept for the volume's own entries", short(p))
		}
		first = false
	}
	if path.Clean(p) != p || p == "." {
		return fmt.Errorf("the file path %q is not in its shortest form, which is %q", short(p), short(path.Clean(p)))
	}
	return nil
}

// short returns the beginning of a long path, for an error.
func short(p string) string {
	if len(p) > 80 {
		return p[:77] + "..."
	}
	return p
}

// CheckPaths tells which two of paths cannot stand in one volume: the same
// path twice, or one that is a file and a folder at once. Each path must pass
// CheckPath by itself.
func CheckPaths(paths []string) error {
	seen := make(map[string]bool, len(paths))
	for _, p := range paths {
		if seen[p] {
			return fmt.Errorf("two objects have the same file path %q", p)
		}
		seen[p] = true
	}
	for _, p := range paths {
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			if seen[dir] {
				return fmt.Errorf("the file path %q needs a folder %q, but an object has that file path", p, dir)
			}
		}
	}
	return nil
}

// ParseMode reads a file mode in octal digits, as in "0640", "640" or "0o640",
// from 0 to 0777.
func ParseMode(s string) (fs.FileMode, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0o"), 8, 32)
	if err != nil || n > 0o777 {
		return 0, fmt.Errorf("%q is not a file mode: it must be octal, from 0000 to 0777", s)
	}
	return fs.FileMode(n), nil
}
