package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/csi-secrets/csi-secrets/pkg/class"
)

// classFiles are the files of classes that the command line names.
type classFiles struct{ paths []string }

func (c *classFiles) addFlags(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&c.paths, "filename", "f", nil, "file of classes in YAML or JSON, folder of such files, or - for standard input; may be repeated")
}

// classSet is what a number of files holds.
type classSet struct {
	files     int
	documents []*class.Document
	problems  []class.Problem // those of files, not of single classes
}

// read reads and decodes all files, each once.
func (c *classFiles) read(stdin io.Reader) (classSet, error) {
	var set classSet
	if len(c.paths) == 0 {
		return set, usageError{errors.New("no file of classes is given; name one with -f")}
	}
	done := map[string]bool{}
	add := func(path string) error {
		if path != "-" {
			path = filepath.Clean(path)
		}
		if done[path] {
			return nil
		}
		done[path] = true
		name, data, err := path, []byte(nil), error(nil)
		if path == "-" {
			name = "standard input"
			data, err = io.ReadAll(io.LimitReader(stdin, class.MaxFileBytes+1))
		} else {
			data, err = class.Read(path)
		}
		if err != nil {
			return usageError{fmt.Errorf("cannot read %s: %w", name, err)}
		}
		documents, problems := class.Decode(name, data)
		set.files++
		set.documents, set.problems = append(set.documents, documents...), append(set.problems, problems...)
		return nil
	}
	for _, path := range c.paths {
		paths, err := expand(path)
		if err != nil {
			return set, usageError{fmt.Errorf("cannot read %s: %w", path, err)}
		}
		for _, path := range paths {
			if err := add(path); err != nil {
				return set, err
			}
		}
	}
	return set, nil
}

// expand returns the files of classes in path, where that is a folder, and
// path itself otherwise.
func expand(path string) ([]string, error) {
	if info, err := os.Stat(path); path == "-" || err != nil || !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, entry := range entries {
		file := filepath.Join(path, entry.Name())
		if info, err := os.Stat(file); class.IsFile(entry.Name()) && (err != nil || !info.IsDir()) {
			paths = append(paths, file)
		}
	}
	return paths, nil
}

// The forms of output.
const (
	formText = "text"
	formJSON = "json"
)

// outputForm is the flag -o.
type outputForm string

func (o *outputForm) addFlags(flags *pflag.FlagSet) {
	*o = formText
	flags.VarP(o, "output", "o", "form of the output: text or json")
}

// String returns the form.
func (o *outputForm) String() string { return string(*o) }

// Type is what help shows for a value.
func (*outputForm) Type() string { return "form" }

// Set takes one of the forms.
func (o *outputForm) Set(s string) error {
	if !slices.Contains([]string{formText, formJSON}, s) {
		return fmt.Errorf("there is no such form; write %s or %s", formText, formJSON)
	}
	*o = outputForm(s)
	return nil
}

// paint colours text for a terminal, or leaves it as it is.
type paint bool

// paintFor returns what suits w: colour on a terminal, unless NO_COLOR is set.
func paintFor(w io.Writer) paint {
	f, ok := w.(*os.File)
	return paint(ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd())))
}

func (p paint) bold(s string) string  { return p.with("1", s) }
func (p paint) red(s string) string   { return p.with("31", s) }
func (p paint) green(s string) string { return p.with("32", s) }

func (p paint) with(code, s string) string {
	if !p {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// count returns the number with its noun, in the plural where there is need.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// refs returns the names of classes, for an error.
func refs(documents []*class.Document) string {
	var names []string
	for _, d := range documents {
		names = append(names, d.Class.Ref().String())
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
