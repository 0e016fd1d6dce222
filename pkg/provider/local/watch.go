package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// A change is reported when nothing has happened for quiet, and at most
// patience after its first sign.
const (
	quiet    = 50 * time.Millisecond
	patience = 500 * time.Millisecond
)

// maxLinks is how many links Linux follows on one path.
const maxLinks = 40

// Watch calls changed at once, and after something happened to the folder and what lies
// below it, or to the age file or its identity file. It sees links swapped and
// folders replaced anywhere on the way there, and waits for what does not exist
// yet. It uses one inotify instance, and one watch for each folder.
func (p *Provider) Watch(ctx context.Context, parameters map[string]string, changed func()) error {
	d, err := p.decode(parameters)
	if err == nil {
		err = p.check(d)
	}
	if err != nil {
		return err
	}
	w, err := newWatch(d)
	if err != nil {
		return err
	}
	changed()
	return w.run(ctx, changed)
}

// watch sees what happens to the files that params name. It belongs to one
// goroutine.
type watch struct {
	params *params
	notify *fsnotify.Watcher
	// names are the files and folders that matter; below the folders every
	// entry does.
	names, folders map[string]bool
	watched        map[string]bool
}

// newWatch returns a watch that sees all that happens from now on. It must be
// run, or closed.
func newWatch(d *params) (*watch, error) {
	w := &watch{params: d}
	if err := w.start(); err != nil {
		_ = w.close()
		return nil, err
	}
	return w, nil
}

func (w *watch) close() error {
	if w.notify == nil {
		return nil
	}
	return w.notify.Close() // waits for its goroutine
}

// run calls changed until ctx ends.
func (w *watch) run(ctx context.Context, changed func()) error {
	defer func() { _ = w.close() }()
	for {
		if w.wait(ctx); ctx.Err() != nil {
			return nil
		}
		// What happens from here on, the new watches see; what happened before,
		// those whom changed tells see for themselves. So no state of the old
		// watches has to be kept right. What cannot be read just now may get its
		// permissions next, which its parent's watch sees.
		if err := w.start(); err != nil && provider.KindOf(err) != provider.Denied {
			return err
		}
		changed()
	}
}

// wait returns after a change, or when ctx has ended.
func (w *watch) wait(ctx context.Context) {
	var settled, late <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-settled:
			return
		case <-late:
			return
		case event := <-w.notify.Events:
			if !w.matters(filepath.Clean(event.Name)) { // below "/" it comes with two slashes
				continue
			}
		case <-w.notify.Errors: // such as an overflow: anything may have happened
		}
		settled = time.After(quiet)
		if late == nil {
			late = time.After(patience)
		}
	}
}

func (w *watch) matters(name string) bool {
	return w.names[name] || w.folders[name] || w.folders[filepath.Dir(name)]
}

// start sets up all watches anew.
func (w *watch) start() error {
	_ = w.close()
	var err error
	if w.notify, err = fsnotify.NewWatcher(); err != nil {
		return w.failure(w.params.path, err)
	}
	w.names, w.folders, w.watched = map[string]bool{}, map[string]bool{}, map[string]bool{}
	end, err := w.follow(w.params.path)
	if info, statErr := os.Lstat(end); statErr == nil && info.IsDir() {
		err = w.below(end)
	}
	if w.params.identityFile == "" || err != nil && provider.KindOf(err) != provider.Denied {
		return err
	}
	if _, identityErr := w.follow(w.params.identityFile); identityErr != nil {
		return identityErr
	}
	return err
}

// follow watches, from the root on, each folder in which the system looks a
// name up on the way along path, links included, before it looks there itself.
// It returns where the way ends, "" where that does not exist. Folders that may
// not be read are no error, but the last.
func (w *watch) follow(path string) (end string, err error) {
	at, rest, links := "/", strings.Split(path, "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		if err = w.add(at); err != nil && provider.KindOf(err) != provider.Denied {
			return "", err
		}
		here := filepath.Join(at, name)
		w.names[here] = true
		target, linkErr := os.Readlink(here)
		switch {
		case linkErr == nil:
			if links++; links > maxLinks {
				return "", err
			}
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case errors.Is(linkErr, syscall.EINVAL): // not a link
			at = here
		default:
			return "", err
		}
	}
	return at, err
}

// below watches folder and all folders below it. Only folder itself must be
// readable.
func (w *watch) below(folder string) error {
	return filepath.WalkDir(folder, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // reading it again is Fetch's business
		}
		if len(w.folders) == maxFolders {
			return &provider.Error{Kind: provider.TooLarge, Object: `parameter "path"`, Op: fmt.Sprintf("watch folder %q", folder),
				Err: fmt.Errorf("there are more than %d folders below it", maxFolders), Remedy: "keep the secrets in a folder of their own"}
		}
		w.folders[name] = true
		if err := w.add(name); err != nil && (name == folder || provider.KindOf(err) != provider.Denied) {
			return err
		}
		return nil
	})
}

// add watches one folder. That it does not exist any more is no error: the
// watch of the folder above sees it come back.
func (w *watch) add(folder string) error {
	if w.watched[folder] {
		return nil
	}
	err := w.notify.Add(folder)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil
	case err != nil:
		return w.failure(folder, err)
	}
	w.watched[folder] = true
	return nil
}

func (w *watch) failure(folder string, err error) error {
	e := &provider.Error{Kind: provider.Unavailable, Object: `parameter "path"`, Op: fmt.Sprintf("watch folder %q for changes", folder), Err: err,
		Remedy: "changes are found when the volume is refreshed"}
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Kind, e.Remedy = provider.Denied, fmt.Sprintf("let user %d, as whom csi-secrets runs, list it", os.Geteuid())
	case errors.Is(err, syscall.ENOSPC):
		e.Remedy = "raise fs.inotify.max_user_watches with sysctl"
	case errors.Is(err, syscall.EMFILE):
		e.Remedy = "raise fs.inotify.max_user_instances with sysctl, or the limit of open files"
	}
	return e
}
