package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
	// Credentials says that the volume was published with tokens or secrets: a
	// refresh needs them again.
	Credentials bool      `json:"credentials,omitempty"`
	Published   time.Time `json:"published"`
	Refreshed   time.Time `json:"refreshed"`
}

// records is the folder of records, one file a volume. A record outlives the
// driver and need not outlive the machine, as its mount does not either:
// nothing is synced to a disk.
type records struct {
	folder string
	lock   *os.File
}

// openRecords makes the folder and keeps every other driver out of it.
func openRecords(stateDir string) (*records, error) {
	r := &records{folder: filepath.Join(stateDir, "volumes")}
	if err := os.MkdirAll(r.folder, 0o700); err != nil {
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
	r.lock = lock
	return r, nil
}

func (r *records) close() error { return r.lock.Close() }

func (r *records) file(volumeID, target string) string {
	sum := sha256.Sum256([]byte(volumeID + "\x00" + target))
	return filepath.Join(r.folder, hex.EncodeToString(sum[:16])+".json")
}

// save writes the record of a volume, in one step.
func (r *records) save(rec record) error {
	rec.Format = recordFormat
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode the volume's record: %w", err)
	}
	name := r.file(rec.VolumeID, rec.TargetPath)
	if err := os.WriteFile(name+".tmp", data, 0o600); err != nil {
		return errors.Join(fmt.Errorf("write the volume's record: %w", err), ignoreAbsent(os.Remove(name+".tmp")))
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		return fmt.Errorf("write the volume's record: %w", err)
	}
	return nil
}

func (r *records) remove(volumeID, target string) error {
	if err := ignoreAbsent(os.Remove(r.file(volumeID, target))); err != nil {
		return fmt.Errorf("remove the volume's record: %w", err)
	}
	return nil
}

// load returns every record there is. A file that is none is reported and
// removed; a record of a later format is reported and left.
func (r *records) load() (all []record, err error) {
	files, err := os.ReadDir(r.folder)
	if err != nil {
		return nil, fmt.Errorf("list the state folder: %w", err)
	}
	var problems []error
	for _, f := range files {
		name := filepath.Join(r.folder, f.Name())
		if strings.HasSuffix(name, ".tmp") {
			problems = append(problems, ignoreAbsent(os.Remove(name)))
			continue
		}
		rec, err := readRecord(name)
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("record %s is left out: %w", name, err))
		case rec.VolumeID == "" || !filepath.IsAbs(rec.TargetPath) || name != r.file(rec.VolumeID, rec.TargetPath):
			problems = append(problems, fmt.Errorf("record %s is broken and is removed", name), os.Remove(name))
		default:
			all = append(all, rec)
		}
	}
	return all, errors.Join(problems...)
}

func readRecord(name string) (record, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return record{}, err
	}
	return decodeRecord(data)
}

func decodeRecord(data []byte) (record, error) {
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return record{}, nil // an empty record is a broken one
	}
	if rec.Format > recordFormat {
		return record{}, fmt.Errorf("its format is %d and this driver knows up to %d", rec.Format, recordFormat)
	}
	return rec, nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
