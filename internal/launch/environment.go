package launch

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// maxEnvFileBytes is more than the kernel takes of a whole environment: execve(2),
// "Limits on size of arguments and environment".
const maxEnvFileBytes = 6 << 20

// maxString is the size of the largest variable that the kernel takes, with its
// name, = and a zero byte: 32 pages, see execve(2).
func maxString() int { return 32 * os.Getpagesize() }

// pollInterval is how often --wait looks.
const pollInterval = 100 * time.Millisecond

// variable is one that a file brings.
type variable struct {
	name   string
	value  string
	origin string // its file, and the place in it
}

// missing is an error that --optional and --wait are for.
type missing string

func (m missing) Error() string { return string(m) }

// read returns the variables of all files by name. For up to c.wait it tries
// again while some are missing.
func (c *config) read() (map[string]variable, error) {
	deadline := time.Now().Add(c.wait)
	for {
		last := !time.Now().Before(deadline)
		brought, err := c.readSets(last && c.optional)
		if last || !errors.As(err, new(missing)) {
			return brought, err
		}
		time.Sleep(pollInterval)
	}
}

// readSets reads all files, and again if a volume was switched to another set
// meanwhile. Nobody writes to a set or removes one while ..data leads to it; so
// what was read is whole, and of one version, if ..data leads there still.
func (c *config) readSets(skipMissing bool) (map[string]variable, error) {
	for range 1000 {
		sets := sets{}
		brought, err := c.readSources(sets, skipMissing)
		if switched := sets.close(); !switched {
			return brought, err
		}
	}
	return nil, errors.New("the volumes change faster than they can be read")
}

func (c *config) readSources(sets sets, skipMissing bool) (map[string]variable, error) {
	brought := map[string]variable{}
	for _, s := range c.sources {
		variables, err := c.readSource(sets, s)
		if skipMissing && errors.As(err, new(missing)) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, v := range variables {
			if err := v.check(); err != nil {
				return nil, err
			}
			if other, ok := brought[v.name]; ok && other.origin != v.origin {
				return nil, fmt.Errorf("%s and %s both make the variable %s; leave one out, or give it another name with --env", other.origin, v.origin, v.name)
			}
			brought[v.name] = v
		}
	}
	return brought, nil
}

func (c *config) readSource(sets sets, s source) ([]variable, error) {
	at, err := sets.find(s.path)
	if err != nil {
		return nil, err
	}
	switch s.kind {
	case folder:
		return c.readFolder(at, s.path)
	case envFile:
		return c.readEnvFile(at, s.path)
	}
	v, err := c.readFile(at, s.name, s.path)
	return []variable{v}, err
}

// check tells whether the kernel can hand the variable over.
func (v variable) check() error {
	if strings.ContainsRune(v.value, 0) {
		return fmt.Errorf("%s has a NUL byte, which no environment variable can hold; let the program read the file", v.origin)
	}
	if n := len(v.name) + len(v.value) + len("=\x00"); n > maxString() {
		return tooLong(v.origin, int64(n), maxString())
	}
	return nil
}

func tooLong(origin string, n int64, limit int) error {
	return fmt.Errorf("%s makes %d bytes of environment, and the kernel takes %d at most; let the program read the file", origin, n, limit)
}

// merge returns environ with the variables that files brought.
func (c *config) merge(environ []string, brought map[string]variable) ([]string, error) {
	env := make([]string, 0, len(environ)+len(brought))
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		v, ok := brought[name]
		switch {
		case !ok:
			env = append(env, entry)
		case v.value != value && !c.override:
			return nil, fmt.Errorf("the container has the variable %s already, with another value than %s; remove it from the container, or say --override to let files win", name, v.origin)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(brought)) {
		env = append(env, name+"="+brought[name].value)
	}
	return env, nil
}
