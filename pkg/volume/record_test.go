package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func openTestRecords(t *testing.T, dir string) (*records, []record, error) {
	t.Helper()
	r, err := openRecords(dir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := r.load()
	slices.SortFunc(all, func(a, b record) int { return strings.Compare(a.key(), b.key()) })
	return r, all, err
}

func volumeRecord(n int, version string) record {
	return record{VolumeID: fmt.Sprint("v", n), TargetPath: fmt.Sprint("/t/", n), Provider: version}
}

func TestTheLastRecordOfAVolumeCounts(t *testing.T) {
	dir := t.TempDir()
	r, _, _ := openTestRecords(t, dir)
	for _, version := range []string{"1", "2", "3"} {
		for n := range 3 {
			if err := r.save(volumeRecord(n, version)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 {
		if err := r.remove("v1", "/t/1"); err != nil {
			t.Fatal(err)
		}
	}
	r.close()
	r, all, err := openTestRecords(t, dir)
	if err != nil || len(all) != 2 || all[0].VolumeID != "v0" || all[1].Provider != "3" {
		t.Errorf("got %+v, %v", all, err)
	}
	for n := range 3 {
		if err := r.remove(fmt.Sprint("v", n), fmt.Sprint("/t/", n)); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, recordsFile)); err != nil || info.Size() != 0 {
		t.Errorf("without volumes the file has %d bytes, %v", info.Size(), err)
	}
	r.close()
}

func TestALineCutShortIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	r, _, _ := openTestRecords(t, dir)
	for n := range 3 {
		if err := r.save(volumeRecord(n, "1")); err != nil {
			t.Fatal(err)
		}
	}
	r.close()
	file := filepath.Join(dir, recordsFile)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) {
		if err := os.WriteFile(file, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		r, all, _ := openTestRecords(t, dir)
		if want := strings.Count(string(whole[:cut]), "\n"); len(all) < want || len(all) > want+1 {
			t.Fatalf("of %d bytes it read %d records, want %d", cut, len(all), want)
		}
		if err := r.save(volumeRecord(7, "2")); err != nil {
			t.Fatal(err)
		}
		r.close()
		r, all, err := openTestRecords(t, dir)
		if err != nil || all[len(all)-1].VolumeID != "v7" {
			t.Fatalf("after a cut at %d the next record is lost: %v, %v", cut, all, err)
		}
		r.close()
	}
}

// As on a full disk: what is there stays in use, and the next record follows it.
func TestRecordsThatCannotBeRewrittenStay(t *testing.T) {
	dir := t.TempDir()
	r, _, _ := openTestRecords(t, dir)
	for n := range 2 {
		if err := r.save(volumeRecord(n, "1")); err != nil {
			t.Fatal(err)
		}
	}
	r.close()
	inTheWay := filepath.Join(dir, recordsFile+".new")
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	r, all, err := openTestRecords(t, dir)
	if err == nil || len(all) != 2 {
		t.Errorf("got %v, %v, want both records and an error", all, err)
	}
	if err := r.save(volumeRecord(0, "2")); err != nil {
		t.Fatal(err)
	}
	if err := r.remove("v1", "/t/1"); err != nil {
		t.Fatal(err)
	}
	r.close()
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	r, all, err = openTestRecords(t, dir)
	defer r.close()
	if err != nil || len(all) != 1 || all[0].VolumeID != "v0" || all[0].Provider != "2" {
		t.Errorf("got %v, %v, want v0 as it was saved last", all, err)
	}
}

func TestTheFileOfRecordsStaysShort(t *testing.T) {
	dir := t.TempDir()
	r, _, _ := openTestRecords(t, dir)
	defer r.close()
	padding := strings.Repeat("x", 8<<10)
	var group sync.WaitGroup
	for n := range 8 {
		group.Go(func() {
			for i := range 1000 {
				rec := volumeRecord(n, padding)
				rec.Class.Name = fmt.Sprint(i)
				if err := r.save(rec); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if info, err := os.Stat(filepath.Join(dir, recordsFile)); err != nil || info.Size() > 2*maxIdleBytes {
		t.Errorf("eight volumes take %d bytes, %v", info.Size(), err)
	}
	r.close()
	r, all, err := openTestRecords(t, dir)
	defer r.close()
	if err != nil || len(all) != 8 {
		t.Fatalf("got %d records, %v", len(all), err)
	}
	for _, rec := range all {
		if rec.Class.Name != "999" {
			t.Errorf("%s is at %s", rec.VolumeID, rec.Class.Name)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"format":1,"volumeID":"v","targetPath":"/t","class":{"namespace":"n","name":"c"}}`))
	f.Add([]byte(`{"format":99}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, line []byte) {
		rec, err := decodeRecord(line)
		if err == nil && rec.Format <= recordFormat && (rec.VolumeID == "" || !filepath.IsAbs(rec.TargetPath)) {
			t.Errorf("a record without a volume was read: %+v", rec)
		}
	})
}
