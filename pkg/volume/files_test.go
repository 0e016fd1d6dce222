package volume

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func contents(files []provider.File) map[string]string {
	all := map[string]string{}
	for _, f := range files {
		all[f.Path] = string(f.Contents.Reveal())
	}
	return all
}

func TestTheFilesOfAVolumeAreOfOneSetWhileItIsRefreshed(t *testing.T) {
	f := newFixture(t)
	generation := func(n int) map[string]string {
		return map[string]string{"tls.crt": fmt.Sprint(n), "tls.key": fmt.Sprint(n), "deep/in/it": fmt.Sprint(n)}
	}
	f.set(generation(0), nil)
	req := f.request("pod")
	if err := f.Publish(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	var refreshing sync.WaitGroup
	done := make(chan struct{})
	refreshing.Go(func() {
		defer close(done)
		for n := 1; n <= 300; n++ {
			f.set(generation(n), nil)
			if _, err := f.Refresh(t.Context(), req.TargetPath, time.Time{}, nil); err != nil {
				t.Error(err)
			}
		}
	})
	seen := map[string]time.Time{}
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		files, since, err := f.Files(req.TargetPath)
		if err != nil {
			t.Fatal(err)
		}
		got := contents(files)
		if len(got) != 3 || got["tls.crt"] != got["tls.key"] || got["tls.crt"] != got["deep/in/it"] {
			t.Fatalf("read %v", got)
		}
		if before, ok := seen[got["tls.crt"]]; ok && !before.Equal(since) {
			t.Errorf("set %s is of %s, and of %s", got["tls.crt"], before, since)
		}
		seen[got["tls.crt"]] = since
	}
	refreshing.Wait()
	if len(seen) < 2 {
		t.Errorf("read %d sets only", len(seen))
	}
}

func TestFilesHaveTheirTimeFromTheSwitchThatBroughtThem(t *testing.T) {
	f := newFixture(t)
	req := f.request("pod")
	if err := f.Publish(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	since := func() time.Time {
		t.Helper()
		_, since, err := f.Files(req.TargetPath)
		if err != nil {
			t.Fatal(err)
		}
		return since
	}
	first := since()
	if _, err := f.Refresh(t.Context(), req.TargetPath, time.Time{}, nil); err != nil {
		t.Fatal(err)
	}
	f.restart(t)
	if err := f.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := since(); !again.Equal(first) {
		t.Errorf("the same files are of %s, and of %s", first, again)
	}
	f.set(map[string]string{"a": "2"}, nil)
	if _, err := f.Refresh(t.Context(), req.TargetPath, time.Time{}, nil); err != nil {
		t.Fatal(err)
	}
	if other := since(); other.Before(first) {
		t.Errorf("new files are of %s, old ones of %s", other, first)
	}
	if _, _, err := f.Files(f.request("other").TargetPath); !errors.Is(err, ErrNotPublished) {
		t.Errorf("of no volume: %v", err)
	}
}

func TestFilesOfASealedAnswerAreAsOldAsThat(t *testing.T) {
	f := newFixture(t)
	req := f.request("pod")
	f.parameters = map[string]string{provider.SealedCacheKey: "4h"}
	f.sealedAt = time.Now().Add(-time.Hour)
	if err := f.Publish(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if _, since, err := f.Files(req.TargetPath); err != nil || !since.Equal(f.sealedAt) {
		t.Errorf("they are of %s, %v; want %s", since, err, f.sealedAt)
	}
}
