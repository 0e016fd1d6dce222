package local

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// openFlags open a file to read without waiting for the writer of a FIFO.
const openFlags = os.O_RDONLY | syscall.O_NONBLOCK

var (
	errNotRegular = errors.New("it is not a regular file")
	errFolder     = errors.New("it is a folder")
	errTooLarge   = errors.New("it is too large")
)

// stamp changes whenever a file is written or replaced, as far as the clock of
// its file system is fine enough.
type stamp struct {
	device, inode          uint64
	size, modified, change int64
}

func stampOf(info fs.FileInfo) stamp {
	s := info.Sys().(*syscall.Stat_t)
	return stamp{uint64(s.Dev), s.Ino, s.Size, s.Mtim.Nano(), s.Ctim.Nano()}
}

// version is the stamp as a version that people see. It has no part in the
// file's contents; the size is left out, for it tells about them.
func (s stamp) version() string {
	b := strconv.AppendInt(make([]byte, 0, 40), s.modified, 36)
	b = strconv.AppendInt(append(b, '-'), s.change, 36)
	return string(strconv.AppendUint(append(b, '-'), s.inode, 36))
}

// readRegular reads the whole of an opened file, at most limit bytes. It fails
// with errFolder, errNotRegular, errTooLarge (and a stamp that tells the size),
// or an error of the operating system. Whether the file changed meanwhile is
// the caller's to see, by its stamp.
func readRegular(f *os.File, limit int64) ([]byte, stamp, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	s := stampOf(info)
	switch {
	case info.IsDir():
		return nil, s, errFolder
	case !info.Mode().IsRegular():
		return nil, s, errNotRegular
	case s.size > limit:
		return nil, s, errTooLarge
	}
	b, err := readAll(f, s.size, limit)
	return b, s, err
}

// readAll reads r to its end into one buffer made for size bytes. Where more
// comes it moves to a larger one, and fails with errTooLarge beyond limit. It
// reads at most limit+1 bytes and clears every buffer that it does not return.
func readAll(r io.Reader, size, limit int64) ([]byte, error) {
	b := make([]byte, 0, min(max(size, 0), limit)+1) // one more, to meet the end
	for {
		if int64(len(b)) > limit {
			clear(b)
			return nil, errTooLarge
		}
		if len(b) == cap(b) {
			larger := make([]byte, len(b), min(int64(2*cap(b)+511), limit)+1)
			copy(larger, b)
			clear(b)
			b = larger
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case err == io.EOF && int64(len(b)) <= limit:
			return b, nil
		case err != nil && err != io.EOF:
			clear(b)
			return nil, err
		}
	}
}

// failure turns an error about a file into an *Error: what is its noun and
// name, op what was attempted on which path, missing the remedy where the file
// does not exist. An *Error, and errChanged within one, stay as they are.
func failure(what, op string, err error, missing string) error {
	var known *provider.Error
	if errors.As(err, &known) {
		return err
	}
	e := &provider.Error{Object: what, Op: op, Err: err}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		e.Err = pathErr.Err // op names the path
	}
	var errno syscall.Errno
	switch isErrno := errors.As(err, &errno); {
	case errors.Is(err, errChanged):
		e.Kind, e.Remedy = provider.Unavailable, "write a new file and rename it over the old one"
	case errors.Is(err, errFolder):
		e.Kind, e.Remedy = provider.Invalid, "name a file"
	case errors.Is(err, errNotRegular):
		e.Kind, e.Remedy = provider.Invalid, "put a regular file in its place"
	case errors.Is(err, fs.ErrNotExist), errno == syscall.ENOTDIR:
		e.Kind, e.Remedy = provider.NotFound, missing
	case errors.Is(err, fs.ErrPermission):
		e.Kind, e.Remedy = provider.Denied, fmt.Sprintf("let user %d, as whom csi-secrets runs, read it", os.Geteuid())
	case errno == syscall.ELOOP, errno == syscall.ENAMETOOLONG, errno == syscall.EINVAL:
		e.Kind, e.Remedy = provider.Invalid, "correct its path, and the links on it"
	case errno == syscall.ENXIO: // what opening a socket answers
		e.Kind, e.Err, e.Remedy = provider.Invalid, errNotRegular, "put a regular file in its place"
	case isErrno && (errno == syscall.EMFILE || errno == syscall.ENFILE):
		e.Kind, e.Remedy = provider.Unavailable, "raise the limit of open files"
	case !isErrno && pathErr != nil:
		// os.Root has one error of its own, and does not export it.
		e.Kind, e.Err, e.Remedy = provider.Invalid, errors.New("a link leads out of the folder"), "put the file itself there, or a link that stays in the folder"
	default:
		e.Kind, e.Remedy = provider.Unavailable, "check the file system that holds it"
	}
	return e
}
