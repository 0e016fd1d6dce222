// Package derive makes files of files. A class lists in its parameter
// "derivedFiles" what its pods are to find beside, or in place of, what the
// provider brings: a template that joins several secrets into one file, a value
// out of a JSON document, a certificate bundle as PEM files or as a key store.
// docs/objects.md is the manual.
//
// It works on the files of a volume, by their paths, after the provider has
// answered: so the same keys mean the same for every provider, those that run in
// processes of their own included, and none of them needs to know.
//
// What is made depends on the files and the class alone, down to the last byte:
// a refresh that brings the same files writes nothing.
package derive

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// Bounds of what one class derives.
const (
	maxEntries = 100
	// maxDerivedBytes bounds all derived files together.
	maxDerivedBytes = 64 << 20
)

// Problems tells what is wrong with the parameter "derivedFiles". Of other
// parameters it says nothing.
func Problems(parameters map[string]string) []provider.Problem {
	text, ok := parameters[provider.DerivedFilesKey]
	if !ok {
		return nil
	}
	reader := provider.NewParams(map[string]string{provider.DerivedFilesKey: text})
	decode(reader)
	return reader.Problems()
}

// Apply returns the files of a volume: those that are given, less the ones that a
// derived file replaces, whose contents are cleared, and the derived files after
// them. mode is that of a derived file to which the class gives none. Without the
// parameter "derivedFiles" it returns files.
//
// An error is of kind Invalid, NotFound or TooLarge, names the derived file, and
// quotes no contents. Nothing that was given is cleared then.
func Apply(parameters map[string]string, files []provider.File, mode fs.FileMode) ([]provider.File, error) {
	text, ok := parameters[provider.DerivedFilesKey]
	if !ok || strings.TrimSpace(text) == "" {
		return files, nil
	}
	reader := provider.NewParams(map[string]string{provider.DerivedFilesKey: text})
	entries := decode(reader)
	if err := reader.Err(); err != nil {
		return nil, err
	}
	s := newSet(files)
	for _, e := range entries {
		if err := s.derive(e, mode); err != nil {
			s.clearDerived()
			return nil, err
		}
	}
	return s.finish(), nil
}

// set is what a volume holds while derived files are made.
type set struct {
	members    []*member          // in their order
	byPath     map[string]*member // the latest of each path, replaced ones included
	left       int                // of maxDerivedBytes
	signatures int                // that may be checked for all entries together
}

// member is one file of a set.
type member struct {
	provider.File
	derived, replaced bool
}

func newSet(files []provider.File) *set {
	s := &set{byPath: make(map[string]*member, len(files)), left: maxDerivedBytes, signatures: maxSignatures}
	for _, f := range files {
		s.add(&member{File: f})
	}
	return s
}

func (s *set) add(m *member) {
	s.members = append(s.members, m)
	s.byPath[m.Path] = m
}

// get returns the file of that path: of one that the provider brought and that a
// derived one took the place of, the derived one.
func (s *set) get(path string) (*member, error) {
	if m := s.byPath[path]; m != nil {
		return m, nil
	}
	return nil, &provider.Error{Kind: provider.NotFound, Err: fmt.Errorf("there is no file %q", path), Remedy: "the volume has " + s.paths() + "; correct the name, or have the class fetch it"}
}

// maxShownPaths bounds how many files an error names.
const maxShownPaths = 20

func (s *set) paths() string {
	var paths []string
	for _, m := range s.members {
		if !slices.Contains(paths, m.Path) {
			paths = append(paths, m.Path)
		}
	}
	switch n := len(paths); {
	case n == 0:
		return "none"
	case n > maxShownPaths:
		return strings.Join(paths[:maxShownPaths], ", ") + fmt.Sprintf(" and %d more", n-maxShownPaths)
	}
	return strings.Join(paths, ", ")
}

// derive makes the file of one entry and puts it into the set.
func (s *set) derive(e *entry, mode fs.FileMode) error {
	o := provider.Object{Name: e.name(), Options: provider.Options{Optional: e.optional}}
	contents, used, err := e.make(s)
	if err != nil {
		return o.Failure(err)
	}
	if e.mode != provider.UnsetMode {
		mode = e.mode
	}
	m := &member{File: provider.File{Path: e.path, Mode: mode, Contents: secret.New(contents)}, derived: true}
	if s.left -= len(contents); s.left < 0 {
		m.Contents.Clear()
		return o.Failure(&provider.Error{Kind: provider.TooLarge, Err: fmt.Errorf("with it, derived files have more than %d bytes", maxDerivedBytes), Remedy: "derive fewer files, or smaller ones"})
	}
	for _, u := range used {
		u.replaced = u.replaced || e.replace
	}
	if err := s.fits(e.path); err != nil {
		m.Contents.Clear()
		return o.Failure(err)
	}
	s.add(m)
	return nil
}

// fits tells why a file cannot stand beside those that are mounted.
func (s *set) fits(path string) error {
	for _, m := range s.members {
		if what := excludes(m.Path, path); what != "" && !m.replaced {
			return &provider.Error{Kind: provider.Invalid, Err: errors.New(what), Remedy: `give it another path, or write "replace: true" where it is made of that file`}
		}
	}
	return nil
}

// excludes says why there cannot be two files of these paths, or returns "".
func excludes(other, path string) string {
	switch {
	case other == path:
		return "the volume has a file of that path already"
	case strings.HasPrefix(path, other+"/"):
		return fmt.Sprintf("it needs a folder %q, but the volume has a file of that path", other)
	case strings.HasPrefix(other, path+"/"):
		return fmt.Sprintf("the volume has a folder of that path, for the file %q", other)
	}
	return ""
}

// finish returns the files that are mounted, and clears the others.
func (s *set) finish() []provider.File {
	var files []provider.File
	for _, m := range s.members {
		if !m.replaced {
			files = append(files, m.File)
		}
	}
	for _, m := range s.members {
		// Two files may share one value.
		shared := func(f provider.File) bool { return sameValue(f.Contents, m.Contents) }
		if m.replaced && !slices.ContainsFunc(files, shared) {
			m.Contents.Clear()
		}
	}
	return files
}

func sameValue(a, b secret.Value) bool {
	x, y := a.Reveal(), b.Reveal()
	return len(x) > 0 && len(y) > 0 && &x[0] == &y[0]
}

func (s *set) clearDerived() {
	for _, m := range s.members {
		if m.derived {
			m.Contents.Clear()
		}
	}
}
