package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// dataLink leads to the current set of files in a volume in the layout of
// Kubernetes. Whatever else begins with ownPrefix in its root is of that layout.
const (
	dataLink  = "..data"
	ownPrefix = ".."
)

// sets are the sets of files that were current when they were first asked for, by
// the path of their volumes; nil for a folder that is no volume.
type sets map[string]*os.Root

// place is where a path is to be read.
type place struct {
	files  fs.FS
	within string
	inSet  bool // and not in the file system as it is
}

// find returns the place of a path: in the set of the volume that has it, if any.
func (s sets) find(name string) (place, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return place{}, err
	}
	for dir := name; ; dir = filepath.Dir(dir) {
		root, err := s.open(dir)
		switch {
		case err != nil:
			return place{}, err
		case root != nil:
			// A path that goes through the link is taken too.
			within := strings.TrimPrefix(strings.TrimPrefix(name, dir)+"/", "/"+dataLink+"/")
			return place{root.FS(), relative(within), true}, nil
		case dir == "/":
			return place{os.DirFS(dir), relative(name), false}, nil
		}
	}
}

func (s sets) open(dir string) (*os.Root, error) {
	if root, ok := s[dir]; ok {
		return root, nil
	}
	root, err := os.OpenRoot(filepath.Join(dir, dataLink))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		root, err = nil, nil
	}
	if err == nil {
		s[dir] = root
	}
	return root, err
}

// relative returns a path as package fs wants it.
func relative(name string) string { return path.Join(".", strings.Trim(name, "/")) }

// close reports whether a volume has another set by now, or its first.
func (s sets) close() (switched bool) {
	for dir, root := range s {
		now, err := os.Stat(filepath.Join(dir, dataLink))
		if root == nil {
			switched = switched || err == nil
			continue
		}
		then, errThen := root.Stat(".")
		switched = switched || err != nil || errThen != nil || !os.SameFile(then, now)
		_ = root.Close()
	}
	return switched
}

// readFolder makes a variable of each regular file below a folder, or of one that
// a link there leads to.
func (c *config) readFolder(at place, dir string) ([]variable, error) {
	if info, err := fs.Stat(at.files, at.within); err != nil {
		return nil, explain(dir, err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a folder; for one file say --env or --env-from", dir)
	}
	var variables []variable
	err := fs.WalkDir(at.files, at.within, func(within string, entry fs.DirEntry, err error) error {
		name := strings.TrimPrefix(within, at.within+"/")
		origin := filepath.Join(dir, name)
		layout := !at.inSet && strings.HasPrefix(name, ownPrefix)
		switch {
		case err != nil:
			return explain(origin, err)
		case layout && entry.IsDir():
			return fs.SkipDir
		case layout || entry.IsDir():
			return nil
		}
		info, err := fs.Stat(at.files, within)
		if err != nil {
			return explain(origin, err)
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		v, err := c.readFile(place{files: at.files, within: within}, variableName(c.prefix, name), origin)
		variables = append(variables, v)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case len(variables) == 0:
		return nil, missing(fmt.Sprintf("there is no file below %s", dir))
	case c.wait > 0 && !at.inSet:
		return nil, fmt.Errorf("%s has files but no %s, so that --wait cannot tell when all are there; wait for single files with --env or --env-from", dir, dataLink)
	}
	return variables, nil
}

// readFile makes a variable of a file.
func (c *config) readFile(at place, name, origin string) (variable, error) {
	data, err := readRegular(at, origin, maxString())
	value := string(data)
	if !c.keepNewline {
		value = strings.TrimSuffix(value, "\n")
	}
	return variable{name, value, origin}, err
}

// readEnvFile reads a file of variables.
func (c *config) readEnvFile(at place, origin string) ([]variable, error) {
	data, err := readRegular(at, origin, maxEnvFileBytes)
	if err != nil {
		return nil, err
	}
	variables, err := parseEnvFile(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", origin, err)
	}
	for i := range variables {
		v := &variables[i]
		v.name, v.origin = c.prefix+v.name, origin+", "+v.origin
		if !validName(v.name) {
			return nil, fmt.Errorf("%s: no variable can be called so; write letters, digits and _ . - with no digit first", v.origin)
		}
	}
	return variables, nil
}

// readRegular reads a regular file of at most limit bytes.
func readRegular(at place, origin string, limit int) ([]byte, error) {
	info, err := fs.Stat(at.files, at.within)
	switch {
	case err != nil:
		return nil, explain(origin, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", origin)
	case info.Size() > int64(limit):
		return nil, tooLong(origin, info.Size(), limit)
	}
	data, err := fs.ReadFile(at.files, at.within)
	if err != nil {
		return nil, explain(origin, err)
	}
	return data, nil
}

// explain makes an error of package fs one about the path that the user knows.
func explain(origin string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return missing(origin + " does not exist")
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err
	}
	return fmt.Errorf("cannot read %s: %w", origin, err)
}
