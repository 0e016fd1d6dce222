package volume

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// recordFormat is the format of a record; a driver leaves records of a later
// format alone.
const recordFormat = 1

// record is what a driver must know of a volume to find it again after a
// restart. It holds no value and no token.
type record struct {
	Format     int                      `json:"format"`
	VolumeID   string                   `json:"volumeID"`
	TargetPath string                   `json:"targetPath"`
	Class      class.Ref                `json:"class"`
	Provider   string                   `json:"provider"`
	Pod        provider.Pod             `json:"pod"`
	Attributes map[string]string        `json:"attributes,omitempty"`
	FSGroup    *int64                   `json:"fsGroup,omitempty"`
	Objects    []provider.ObjectVersion `json:"objects,omitempty"`
	// Made is a MAC of what the class said when the files were made.
	Made string `json:"made,omitempty"`
	// Set is the folder of the files, see writer.go.
	Set string `json:"set,omitempty"`
	// Credentials says that the volume was published with tokens or secrets: a
	// refresh needs them again.
	Credentials bool      `json:"credentials,omitempty"`
	Published   time.Time `json:"published,omitzero"`
	Changed     time.Time `json:"changed,omitzero"`
	Refreshed   time.Time `json:"refreshed,omitzero"`
	ValidUntil  time.Time `json:"validUntil,omitzero"`
	RefreshAt   time.Time `json:"refreshAt,omitzero"`
	SealedAt    time.Time `json:"sealedAt,omitzero"`
	// Interval is the class's, see class.RotationInterval.
	Interval class.Interval `json:"interval,omitzero"`
}

func (r record) key() string { return r.VolumeID + "\x00" + r.TargetPath }

const (
	// recordsFile is the file of all records, in the state folder: a line of JSON
	// for each volume. Of two for one volume, as a kill may leave them, the last
	// counts; blank lines do not.
	recordsFile = "volumes.jsonl"
	// maxIdleBytes is how much of the file may be lines that no longer count,
	// beside as much again as those that do.
	maxIdleBytes = 8 << 20
)

// records keeps the records of a state folder in one file. A record is appended
// as a line, and its line is blanked when the volume goes, which takes no space
// of a disk that is full. (A file for each volume would make the publish rate
// that of the disk's file system.) Records outlive the driver and need not outlive the
// machine, as the mounts do not either: nothing is synced to the disk. It is
// safe for concurrent use.
type records struct {
	lock *os.File

	mu    sync.Mutex
	path  string
	file  *os.File
	size  int64           // of the file, in bytes
	live  map[string]span // where the lines are that count, by key
	bytes int64           // of these lines
	later [][]byte        // lines of a later format
}

// span is the place of a line in the file, its line break included.
type span struct{ offset, length int64 }

// openRecords opens the records of a state folder, which it makes if need be,
// and keeps every other driver out of it.
func openRecords(stateDir string) (*records, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state folder: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(stateDir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the state folder: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another driver uses the state folder %s: %w", stateDir, err)
	}
	r := &records{lock: lock, path: filepath.Join(stateDir, recordsFile), live: map[string]span{}}
	if r.file, err = os.OpenFile(r.path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open the records of the state folder: %w", err)
	}
	return r, nil
}

func (r *records) close() error { return errors.Join(r.file.Close(), r.lock.Close()) }

// load returns the records that count, and rewrites the file with these only,
// if the disk lets it. It is called once, before all else. What cannot be read
// is told and left out; records of a later format are told and stay in the file.
func (r *records) load() ([]record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]record{}
	var problems []error
	lines := bufio.NewReader(r.file)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if text := bytes.TrimSpace(line); len(text) > 0 {
			rec, err := decodeRecord(text)
			switch {
			case err != nil:
				problems = append(problems, fmt.Errorf("%s:%d: the record is left out: %w", r.path, n, err))
			case rec.Format > recordFormat:
				problems = append(problems, fmt.Errorf("%s:%d: the record is left alone: its format is %d, and this driver knows up to %d", r.path, n, rec.Format, recordFormat))
				r.later = append(r.later, text)
			case bytes.HasSuffix(line, []byte("\n")):
				all[rec.key()] = rec
				r.bytes += int64(len(line)) - r.live[rec.key()].length
				r.live[rec.key()] = span{r.size, int64(len(line))}
			}
		}
		if err == nil {
			r.size += int64(len(line))
			continue
		}
		if err != io.EOF {
			return nil, fmt.Errorf("read the records: %w", err)
		}
		break
	}
	// A line without its end was never finished.
	problems = append(problems, r.file.Truncate(r.size), r.rewrite())
	list := make([]record, 0, len(all))
	for _, rec := range all {
		list = append(list, rec)
	}
	return list, errors.Join(problems...)
}

// save makes rec the record of its volume. When it returns, a driver that is
// started later knows it.
func (r *records) save(rec record) error {
	line, err := encodeRecord(rec)
	if err != nil {
		return fmt.Errorf("encode the volume's record: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	offset := r.size
	if err := r.append(line); err != nil {
		return fmt.Errorf("write the volume's record: %w", err)
	}
	key := rec.key()
	old := r.live[key]
	r.live[key] = span{offset, int64(len(line))}
	r.bytes += int64(len(line)) - old.length
	if err := r.blank(old); err != nil {
		return fmt.Errorf("remove the volume's older record: %w", err)
	}
	return r.compact()
}

// remove forgets the record of a volume, if there is one.
func (r *records) remove(volumeID, target string) error {
	key := record{VolumeID: volumeID, TargetPath: target}.key()
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.live[key]
	if !ok {
		return nil
	}
	delete(r.live, key)
	r.bytes -= at.length
	if err := r.blank(at); err != nil {
		return fmt.Errorf("remove the volume's record: %w", err)
	}
	return r.compact()
}

// blank overwrites a line with spaces. Killed half-way, it leaves a line that is
// broken, or the line: that of a volume without a mount then.
func (r *records) blank(at span) error {
	if at.length == 0 {
		return nil
	}
	spaces := bytes.Repeat([]byte(" "), int(at.length))
	spaces[at.length-1] = '\n'
	_, err := r.file.WriteAt(spaces, at.offset)
	return bare(err)
}

// append adds a line, or nothing.
func (r *records) append(line []byte) error {
	if _, err := r.file.WriteAt(line, r.size); err != nil {
		return errors.Join(bare(err), r.file.Truncate(r.size))
	}
	r.size += int64(len(line))
	return nil
}

// compact rewrites the file when most of it no longer counts. Where that fails,
// the file stays as it is.
func (r *records) compact() error {
	idle := r.size - r.bytes
	switch {
	case len(r.live)+len(r.later) == 0:
		// Nothing counts: the file need not be written again to be empty.
		if err := r.file.Truncate(0); err != nil {
			return fmt.Errorf("empty the file of records: %w", err)
		}
		r.size = 0
		return nil
	case idle <= maxIdleBytes+r.bytes:
		return nil
	}
	return r.rewrite()
}

// rewrite puts a new file in the place of the old one, with the lines that count
// only. Where that fails, the old one stays in use.
func (r *records) rewrite() error {
	next := &records{live: map[string]span{}}
	file, err := os.OpenFile(r.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("shorten the file of records: %w", err)
	}
	out := bufio.NewWriter(file)
	for key, at := range r.live {
		line := make([]byte, at.length)
		if _, err = r.file.ReadAt(line, at.offset); err != nil {
			break
		}
		next.live[key] = span{next.size, at.length}
		next.size += at.length
		next.bytes += at.length
		if _, err = out.Write(line); err != nil {
			break
		}
	}
	for _, line := range r.later {
		next.size += int64(len(line)) + 1
		if err == nil {
			_, err = out.Write(append(bytes.Clone(line), '\n'))
		}
	}
	if err = errors.Join(err, out.Flush()); err == nil {
		err = os.Rename(r.path+".new", r.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("shorten the file of records: %w", bare(err)), file.Close(), ignoreAbsent(os.Remove(r.path+".new")))
	}
	old := r.file
	r.file, r.size, r.live, r.bytes = file, next.size, next.live, next.bytes
	return old.Close()
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func encodeRecord(rec record) ([]byte, error) {
	rec.Format = recordFormat
	line, err := json.Marshal(rec)
	return append(line, '\n'), err
}

// decodeRecord reads a line. A record of a later format has no more than its
// Format.
func decodeRecord(line []byte) (record, error) {
	var format struct {
		Format int `json:"format"`
	}
	var rec record
	switch err := json.Unmarshal(line, &format); {
	case err != nil:
		return record{}, errors.New("it is broken") // the parser's error may quote it
	case format.Format > recordFormat:
		return record{Format: format.Format}, nil
	}
	if err := json.Unmarshal(line, &rec); err != nil || rec.VolumeID == "" || CheckTarget(rec.TargetPath) != nil {
		return record{}, errors.New("it is broken")
	}
	return rec, nil
}
