package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// maxFolders bounds the folders that are listed or watched for one class. A
// link may show the same folder under several names.
const maxFolders = 1024

// readFolder makes one attempt to read the objects below root:
//
//  1. List the files, unless the class names them.
//  2. Read each, and keep the stamp that it had before.
//  3. Compare each name's stamp with the one kept. If all are the same, all
//     that was read was there together when step 3 began; this also holds
//     where a link such as kubelet's "..data" is swapped between two files.
//     It takes for granted that a file that goes does not come back: a link
//     that is swapped there and back within one attempt is not noticed.
func (d *params) readFolder(ctx context.Context, root *os.Root, mode fs.FileMode) (provider.Result, error) {
	objects := d.objects
	if objects == nil {
		var err error
		if objects, err = d.list(ctx, root); err != nil {
			return provider.Result{}, err
		}
	}
	s := newSet(len(objects), mode)
	stamps := make([]stamp, len(objects))
	for i, o := range objects {
		if ctx.Err() != nil {
			s.Clear()
			return provider.Result{}, d.stopped(ctx)
		}
		contents, stamp, err := d.readObject(root, o, s)
		if err == nil {
			stamps[i] = stamp
			what, _ := d.describe(o)
			err = s.add(o, what, contents, stamp.version())
		} else if o.Optional && provider.KindOf(err) == provider.NotFound {
			err = nil
		}
		if err != nil {
			s.Clear()
			return provider.Result{}, err
		}
	}
	for i, o := range objects {
		if d.stampNow(root, o) != stamps[i] {
			s.Clear()
			return provider.Result{}, d.failure(o, errChanged)
		}
	}
	return s.Result, nil
}

// stampNow returns the object's stamp as it is now; that of a missing one is the
// zero stamp, as in a set that does without it.
func (d *params) stampNow(root *os.Root, o object) stamp {
	info, err := root.Stat(o.name)
	switch {
	case err == nil:
		return stampOf(info)
	case provider.KindOf(d.failure(o, err)) == provider.NotFound:
		return stamp{}
	}
	return stamp{size: -1} // that of no file
}

func (d *params) readObject(root *os.Root, o object, s *set) ([]byte, stamp, error) {
	if err := provider.CheckPath(o.name); err != nil {
		return nil, stamp{}, &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("object %q", o.name),
			Op: fmt.Sprintf("find it in folder %q", d.path), Err: err, Remedy: "correct objectName"}
	}
	f, err := root.OpenFile(o.name, openFlags, 0)
	if d.objects == nil && errors.Is(err, fs.ErrNotExist) {
		err = errChanged // it was there when it was listed
	}
	if err != nil {
		return nil, stamp{}, d.failure(o, err)
	}
	defer f.Close()
	contents, stamp, err := readRegular(f, s.limit())
	if errors.Is(err, errTooLarge) {
		what, op := d.describe(o)
		return nil, stamp, s.tooLarge(what, op, stamp.size)
	}
	if err != nil {
		return nil, stamp, d.failure(o, err)
	}
	return contents, stamp, nil
}

// describe says what o is, and what is attempted with it.
func (d *params) describe(o object) (what, op string) {
	return fmt.Sprintf("object %q", o.name), fmt.Sprintf("read file %q", filepath.Join(d.path, o.name))
}

func (d *params) failure(o object, err error) error {
	what, op := d.describe(o)
	return failure(what, op, err, "create the file, or correct objectName")
}

// list returns the files below root, sorted: regular ones and links to them,
// without those whose name, or a folder's on the way, begins with a dot.
func (d *params) list(ctx context.Context, root *os.Root) ([]object, error) {
	l := lister{d: d, ctx: ctx, root: root}
	if err := l.folder(".", nil); err != nil {
		return nil, err
	}
	if len(l.objects) == 0 {
		// More likely half of a change than what somebody wants: a volume that
		// follows it would lose all its files.
		return nil, &provider.Error{Kind: provider.NotFound, Object: `parameter "path"`, Op: fmt.Sprintf("list folder %q", d.path),
			Err: errors.New("it holds no file that can be mounted"), Remedy: "put a file there whose name does not begin with a dot"}
	}
	slices.SortFunc(l.objects, func(a, b object) int { return strings.Compare(a.name, b.name) })
	return l.objects, nil
}

type lister struct {
	d       *params
	ctx     context.Context
	root    *os.Root
	objects []object
	folders int
}

// folder lists the folder of that name. Above are the folders that it lies in,
// by their names in this listing, so that a link to one of them ends there.
func (l *lister) folder(name string, above []stamp) error {
	if l.folders++; l.folders > maxFolders {
		return l.tooMany("folders", maxFolders)
	}
	f, err := l.root.OpenFile(name, openFlags|syscall.O_DIRECTORY, 0)
	if err != nil {
		return l.failure(name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return l.failure(name, err)
	}
	here := stampOf(info)
	if slices.ContainsFunc(above, func(a stamp) bool { return a.device == here.device && a.inode == here.inode }) {
		return nil
	}
	above = append(slices.Clip(above), here)
	for {
		if l.ctx.Err() != nil {
			return l.d.stopped(l.ctx)
		}
		entries, err := f.ReadDir(256)
		for _, entry := range entries {
			if err := l.entry(path.Join(name, entry.Name()), entry, above); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return l.failure(name, err)
		}
	}
}

func (l *lister) entry(name string, entry fs.DirEntry, above []stamp) error {
	if strings.HasPrefix(entry.Name(), ".") {
		return nil
	}
	kind := entry.Type()
	if kind&fs.ModeSymlink != 0 {
		info, err := l.root.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // kubelet removes such a link after the file
		}
		if err != nil {
			return l.failure(name, err)
		}
		kind = info.Mode().Type()
	}
	switch {
	case kind.IsDir():
		return l.folder(name, above)
	case !kind.IsRegular():
		return nil
	case len(l.objects) == maxObjects:
		return l.tooMany("files", maxObjects)
	}
	if err := provider.CheckPath(name); err != nil {
		return &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("object %q", name), Op: fmt.Sprintf("list folder %q", l.d.path),
			Err: err, Remedy: `rename it, or name the files that the pod needs in "objects"`}
	}
	l.objects = append(l.objects, object{name: name, file: name, mode: provider.UnsetMode})
	return nil
}

func (l *lister) failure(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		err = errChanged // it was there when its folder was listed
	}
	return failure(fmt.Sprintf("object %q", name), fmt.Sprintf("list %q", filepath.Join(l.d.path, name)), err, "")
}

func (l *lister) tooMany(noun string, limit int) error {
	return &provider.Error{Kind: provider.TooLarge, Object: `parameter "path"`, Op: fmt.Sprintf("list folder %q", l.d.path),
		Err: fmt.Errorf("it holds more than %d %s", limit, noun), Remedy: `name the files that the pod needs in "objects"`}
}
