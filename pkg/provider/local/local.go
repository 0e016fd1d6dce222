// Package local is the provider of secrets that lie on the node itself: in a
// folder, one file each, or in one file encrypted with age, one key each.
// README.md is its manual.
package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Bounds of what one class brings into a volume.
const (
	maxObjects     = 1024
	maxObjectBytes = 4 << 20
	maxTotalBytes  = 64 << 20
)

// A set that changes while it is read is read again after a pause of
// firstPause, and then twice as long each time, up to lastPause.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = 80 * time.Millisecond
)

// errChanged is the reason why an attempt at reading a set does not count.
var errChanged = errors.New("it changed while it was read")

// Provider reads secrets from a folder or an age file. It holds no secret
// between two calls and is safe for concurrent use.
type Provider struct {
	confined bool
	folders  []string // of a confined one

	mu      sync.Mutex
	decoded map[source]*params // under mu; at most maxCached
}

var (
	_ provider.Provider  = (*Provider)(nil)
	_ provider.Validator = (*Provider)(nil)
	_ provider.Watcher   = (*Provider)(nil)
)

// New returns a Provider that reads whatever this process may read: whoever
// writes the classes must be trusted with that.
func New() *Provider { return &Provider{decoded: map[source]*params{}} }

// NewConfined returns a Provider that reads nothing but what is below folders,
// for a cluster, where a class may be anybody's.
func NewConfined(folders []string) *Provider {
	p := New()
	p.confined, p.folders = true, folders
	return p
}

// check tells why a class may not have what it asks for, or returns nil.
func (p *Provider) check(d *params) error {
	for _, of := range []struct{ key, path string }{{"path", d.path}, {"identityFile", d.identityFile}} {
		if !p.confined || of.path == "" || slices.ContainsFunc(p.folders, func(folder string) bool { return below(of.path, folder) }) {
			continue
		}
		err := &provider.Error{Kind: provider.Denied, Object: fmt.Sprintf("parameter %q", of.key),
			Err:    fmt.Errorf("%q is in none of the folders that this provider may read", of.path),
			Remedy: "name one of " + strings.Join(p.folders, ", ") + ", or let the driver have another by --local-folders"}
		if len(p.folders) == 0 {
			err.Err, err.Remedy = errors.New("the provider is off on this node"), "let the driver have folders by --local-folders"
		}
		return err
	}
	return nil
}

// below tells whether path is in folder, wherever links lead.
func below(path, folder string) bool {
	inside := func(path, folder string) bool {
		rel, err := filepath.Rel(folder, path)
		return err == nil && filepath.IsLocal(rel)
	}
	if !inside(path, folder) {
		return false
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return true // it cannot be read either
	}
	folder, err = filepath.EvalSymlinks(folder)
	return err == nil && inside(target, folder)
}

// Fetch reads the objects of one class. The set is whole: all of its files were
// on disk at one moment, as far as the times of files tell. A set that does not
// hold still for about 150 ms is Unavailable.
//
// Fetch never answers Result.NotModified. It would have to trust the times of
// files, and two writes within one tick of the file system's clock look alike.
func (p *Provider) Fetch(ctx context.Context, req provider.Request) (provider.Result, error) {
	d, err := p.decode(req.Parameters)
	if err == nil {
		err = p.check(d)
	}
	if err != nil {
		return provider.Result{}, err
	}
	mode := req.Mode
	if mode == 0 {
		mode = provider.DefaultMode
	}
	return d.untilStill(ctx, func() (provider.Result, error) { return d.read(ctx, mode) })
}

// untilStill repeats an attempt that fails because of a change.
func (d *params) untilStill(ctx context.Context, attempt func() (provider.Result, error)) (provider.Result, error) {
	for pause := firstPause; ; pause *= 2 {
		result, err := attempt()
		if !errors.Is(err, errChanged) || pause > lastPause {
			return result, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return provider.Result{}, d.stopped(ctx)
		}
	}
}

// Validate tells what is wrong with a class's parameters. Whether path is a
// folder or an age file shows only on a machine that has it: elsewhere a
// missing or needless identityFile goes unnoticed.
func (p *Provider) Validate(parameters map[string]string) []provider.Problem {
	reader := provider.NewParams(parameters)
	d := decode(reader)
	if info, err := os.Stat(d.path); err == nil {
		switch {
		case info.IsDir() && d.identityFile != "":
			reader.Report(provider.Problem{Key: "identityFile", What: fmt.Sprintf("it is ignored, because %q is a folder", d.path), Remedy: "remove it", Unknown: true})
		case info.Mode().IsRegular() && d.identityFile == "":
			reader.Report(provider.Problem{Key: "identityFile", What: fmt.Sprintf("it is missing, and %q is a file", d.path), Remedy: identityRemedy})
		}
	}
	return reader.Problems()
}

// read makes one attempt. mode is that of files for which the class gives none.
func (d *params) read(ctx context.Context, mode fs.FileMode) (provider.Result, error) {
	// With the slash the kernel opens a folder only: a FIFO would block.
	root, err := os.OpenRoot(d.path + "/")
	if errors.Is(err, syscall.ENOTDIR) {
		return d.readAge(ctx, mode)
	}
	if err != nil {
		return provider.Result{}, failure(`parameter "path"`, fmt.Sprintf("open folder %q", d.path), err,
			`create it, or correct the parameter "path"`)
	}
	defer root.Close()
	return d.readFolder(ctx, root, mode)
}

func (d *params) stopped(ctx context.Context) error {
	return &provider.Error{Kind: provider.Unavailable, Object: `parameter "path"`, Op: fmt.Sprintf("read %q", d.path), Err: ctx.Err()}
}

// set collects a Result and keeps its bounds.
type set struct {
	provider.Result
	mode fs.FileMode // of files for which the class gives none
	left int64       // of maxTotalBytes
}

func newSet(size int, mode fs.FileMode) *set {
	return &set{mode: mode, left: maxTotalBytes, Result: provider.Result{
		Files:    make([]provider.File, 0, size),
		Versions: make([]provider.ObjectVersion, 0, size),
	}}
}

// limit is how many bytes the next object may have.
func (s *set) limit() int64 { return min(maxObjectBytes, s.left) }

// tooLarge is the error for an object that exceeds limit; size is its number
// of bytes when it was opened.
func (s *set) tooLarge(what, op string, size int64) error {
	err := &provider.Error{Kind: provider.TooLarge, Object: what, Op: op, Remedy: "make it smaller"}
	switch {
	case size > maxObjectBytes:
		err.Err = fmt.Errorf("it has %d bytes, more than %d", size, maxObjectBytes)
	case s.left < maxObjectBytes:
		err.Err = fmt.Errorf("with it the volume would have more than %d bytes", maxTotalBytes)
		err.Remedy = `name fewer objects in "objects", or split them over several classes`
	default:
		err.Err = fmt.Errorf("it has more than %d bytes", maxObjectBytes)
	}
	return err
}

// add makes the object's file of raw, which must be within limit and which it
// takes over. what names the object in an error.
func (s *set) add(o object, what string, raw []byte, version string) error {
	file, err := provider.Object{Name: what, Path: o.file, Mode: o.mode, Options: o.Options}.File(provider.Request{Mode: s.mode}, raw)
	s.left -= int64(len(raw))
	clear(raw)
	if err != nil {
		return err
	}
	if file != nil {
		s.Files = append(s.Files, *file)
	}
	if !o.repeated {
		s.Versions = append(s.Versions, provider.ObjectVersion{ID: o.name, Version: version})
	}
	return nil
}
