package class

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// How Watch listens to the folder.
const (
	// quiet is how long the folder must be still before it is read, and restless
	// how long that may put the reading off.
	quiet    = 50 * time.Millisecond
	restless = 500 * time.Millisecond
	// beat is how often the folder is read without an event, for changes that
	// none tells: behind a link, on a network, of a folder made anew.
	beat = 5 * time.Second
)

// Folder is a Source of the classes in the files *.yaml, *.yml and *.json of
// one folder, not of those below it. Links are followed, so that the folder may
// be a mounted ConfigMap; hidden files are left out. Classes stay in memory, so
// that Get reads no file unless it would fail.
//
// A file is taken whole or not at all: as long as something in it cannot be
// read, the classes stay that it held when last whole. So they do when the
// folder itself goes. A Folder is safe for concurrent use.
type Folder struct {
	dir  string
	beat time.Duration

	opened  *contents     // what OpenFolder found
	reading sync.Mutex    // held while the folder is read
	begun   atomic.Uint64 // readings that have begun
	current atomic.Pointer[contents]
}

var _ Source = (*Folder)(nil)

// contents is what a reading of the folder found. It is not changed afterwards.
type contents struct {
	files   map[string]*file
	classes map[Ref]found
	gone    error // why the folder itself cannot be read
}

// found is a class, or why it cannot be served.
type found struct {
	class *SecretProviderClass
	err   error
}

// file is one file of the folder.
type file struct {
	sum      [sha256.Size]byte // of its bytes; zero where they could not be read
	whole    []*definition     // its classes when it was last whole
	broken   []Ref             // those it has now, where it is not whole
	problems []Problem         // why it is not whole
}

// definition is a class and its place.
type definition struct {
	class *SecretProviderClass
	file  string
	line  int
}

// OpenFolder reads the classes of a folder. Files that cannot be read are
// logged and told by Get; that dir is a folder is required.
func OpenFolder(dir string) (*Folder, error) {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: dir, Err: errors.New("it is not a folder")}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read classes: %w", err)
	}
	f := &Folder{dir: filepath.Clean(dir), beat: beat}
	f.current.Store(&contents{})
	f.refresh(context.Background())
	if f.opened = f.current.Load(); f.opened.gone != nil {
		return nil, fmt.Errorf("cannot read classes: %w", f.opened.gone)
	}
	return f, nil
}

// Get returns a class from memory. Where that fails the folder is read anew
// first, so that a class is found as soon as its file is written. The error
// names the files that cannot be read, for the class may be in one of them.
func (f *Folder) Get(ctx context.Context, ref Ref) (*SecretProviderClass, error) {
	if c := f.current.Load().classes[ref]; c.class != nil {
		return c.class, nil
	}
	f.refresh(ctx)
	now := f.current.Load()
	c, ok := now.classes[ref]
	if !ok {
		return nil, f.notFound(now, ref)
	}
	return c.class, c.err
}

// List returns the classes of the folder.
func (f *Folder) List(ctx context.Context) ([]*SecretProviderClass, error) {
	f.refresh(ctx)
	var all []*SecretProviderClass
	for _, c := range f.current.Load().classes {
		if c.class != nil {
			all = append(all, c.class)
		}
	}
	return all, nil
}

func (f *Folder) notFound(now *contents, ref Ref) error {
	err := &provider.Error{Kind: provider.NotFound,
		Err:    fmt.Errorf("failed to get secretproviderclass %s, error: secretproviderclasses.%s %q not found in the folder %s", ref, Group, ref.Name, f.dir),
		Remedy: fmt.Sprintf("put a file with a %s %q of the namespace %q there", Kind, ref.Name, ref.Namespace)}
	var unread []string
	if now.gone != nil {
		unread = append(unread, now.gone.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(now.files)) {
		if problems := now.files[name].problems; len(problems) > 0 {
			unread = append(unread, describe(problems))
		}
	}
	if len(unread) > 0 {
		err.Remedy = "it may be in what cannot be read: " + strings.Join(unread, "; ")
	}
	return err
}

// describe returns the first of a file's problems, and how many there are more.
func describe(problems []Problem) string {
	text := problems[0].Error()
	if more := len(problems) - 1; more > 0 {
		text += fmt.Sprintf(" (and %d more)", more)
	}
	return text
}

// Watch calls changed, from the calling goroutine, for each class that
// appeared, changed or went since OpenFolder, until ctx ends. A class that can
// no longer be served, or can again, has changed too. It returns nil.
func (f *Folder) Watch(ctx context.Context, changed func(Ref)) error {
	logger := klog.FromContext(ctx)
	var events chan fsnotify.Event
	var failures chan error
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = watcher.Close() }()
		events, failures = watcher.Events, watcher.Errors
	} else {
		logger.Error(err, "Cannot watch the folder of classes; it is read periodically", "folder", f.dir, "period", f.beat)
	}
	beat := time.NewTicker(f.beat)
	defer beat.Stop()

	last := f.opened
	look := func() {
		if watcher != nil {
			// Renewed each time, for the folder may be another one by now.
			if err := watcher.Add(f.dir); err != nil {
				logger.V(4).Info("Cannot watch the folder of classes", "folder", f.dir, "reason", err.Error())
			}
		}
		f.refresh(ctx)
		now := f.current.Load()
		for _, ref := range changes(last, now) {
			changed(ref)
		}
		last = now
	}

	var still <-chan time.Time // fires when the folder has been quiet
	var since time.Time        // the first event that was not looked at
	note := func() {
		if still == nil {
			since = time.Now()
		}
		still = time.After(min(quiet, restless-time.Since(since)))
	}
	look()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			note()
		case err := <-failures: // events were lost
			logger.V(4).Info("Missed events of the folder of classes", "folder", f.dir, "reason", err.Error())
			note()
		case <-still:
			still = nil
			look()
		case <-beat.C:
			look()
		}
	}
}

// changes returns the classes that differ between two readings.
func changes(before, after *contents) []Ref {
	refs := map[Ref]bool{}
	for ref, was := range before.classes {
		is, ok := after.classes[ref]
		if !ok || fmt.Sprint(was.err) != fmt.Sprint(is.err) || was.class != is.class && !reflect.DeepEqual(was.class, is.class) {
			refs[ref] = true
		}
	}
	for ref := range after.classes {
		if _, ok := before.classes[ref]; !ok {
			refs[ref] = true
		}
	}
	return slices.SortedFunc(maps.Keys(refs), func(a, b Ref) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
}

// refresh returns when the folder has been read by a reading that began after
// the call. Calls that wait for one another share it.
func (f *Folder) refresh(ctx context.Context) {
	begun := f.begun.Load()
	f.reading.Lock()
	defer f.reading.Unlock()
	if f.begun.Load() > begun {
		return
	}
	f.begun.Add(1)
	f.current.Store(f.read(klog.FromContext(ctx), f.current.Load()))
}

// read reads the folder, and keeps of old what is unchanged or unreadable now.
func (f *Folder) read(logger klog.Logger, old *contents) *contents {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		if old.gone == nil {
			logger.Error(err, "Cannot read the folder of classes; those last read stay in use", "folder", f.dir)
		}
		return &contents{files: old.files, classes: old.classes, gone: err}
	}
	now := &contents{files: map[string]*file{}}
	same := old.gone == nil
	for _, entry := range entries {
		path := filepath.Join(f.dir, entry.Name())
		if !IsFile(entry.Name()) {
			continue
		}
		before := old.files[entry.Name()]
		after := readFile(path, before)
		if after == nil {
			continue
		}
		if after != before {
			same = false
			if len(after.problems) > 0 {
				logger.Error(invalid(after.problems), "Cannot read a file of classes whole; those last read of it stay in use", "file", path, "classes", len(after.whole))
			}
		}
		now.files[entry.Name()] = after
	}
	if same && len(now.files) == len(old.files) {
		return old
	}
	now.index()
	return now
}

// IsFile reports whether a file of that name is read for classes where a folder
// of them is given.
func IsFile(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name))
}

// readFile reads a file, and returns before where nothing has changed, nil for
// a folder.
func readFile(path string, before *file) *file {
	now := &file{}
	if before != nil {
		now.whole = before.whole
	}
	data, err := Read(path)
	switch {
	case errors.Is(err, errFolder):
		return nil
	case err != nil:
		now.problems = []Problem{{File: path, What: "it cannot be read: " + cause(err).Error()}}
		if before != nil && slices.Equal(before.problems, now.problems) {
			return before
		}
		return now
	}
	now.sum = sha256.Sum256(data)
	if before != nil && before.sum == now.sum {
		return before
	}
	documents, problems := Decode(path, data)
	if len(data) == 0 && len(now.whole) > 0 {
		// An editor that is about to write it.
		problems = append(problems, Problem{File: path, What: "it is empty", Remedy: "remove the file if its classes are to go"})
	}
	var whole []*definition
	for _, d := range documents {
		problems = append(problems, d.unreadable...)
		whole = append(whole, &definition{d.Class, path, d.Line})
	}
	if len(problems) == 0 {
		now.whole = whole
		return now
	}
	now.problems = problems
	for _, d := range documents {
		now.broken = append(now.broken, d.Class.Ref())
	}
	return now
}

// cause leaves the path out of an error that stands beside it.
func cause(err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

var errFolder = errors.New("it is a folder")

// Read returns the bytes of a file of classes. It fails on what is no regular
// file, and reads no more than Decode would refuse.
func Read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, errFolder
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
}

// index fills classes from files.
func (c *contents) index() {
	c.classes = map[Ref]found{}
	places := map[Ref][]string{}
	names := slices.Sorted(maps.Keys(c.files))
	for _, name := range names {
		for _, d := range c.files[name].whole {
			ref := d.class.Ref()
			places[ref] = append(places[ref], fmt.Sprintf("%s:%d", d.file, d.line))
			entry := found{class: d.class}
			if err := d.class.Mountable(); err != nil {
				entry = found{err: err}
			}
			if n := len(places[ref]); n > 1 {
				entry = found{err: &provider.Error{Kind: provider.Invalid,
					Err:    fmt.Errorf("failed to get secretproviderclass %s, error: it is defined %d times, in %s", ref, n, strings.Join(places[ref], " and ")),
					Remedy: "keep one of them"}}
			}
			c.classes[ref] = entry
		}
	}
	for _, name := range names {
		for _, ref := range c.files[name].broken {
			if _, ok := c.classes[ref]; !ok {
				c.classes[ref] = found{err: &provider.Error{Kind: provider.Invalid,
					Err:    fmt.Errorf("failed to get secretproviderclass %s, error: its file is not read as long as there are mistakes in it: %s", ref, describe(c.files[name].problems)),
					Remedy: "csi-secrets validate tells them all"}}
			}
		}
	}
}
