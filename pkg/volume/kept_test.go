package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// lessor is a store whose provider keeps a lease of each volume. It is guarded
// by mu.
type lessor struct {
	mu       sync.Mutex
	made     int
	states   []string // that fetches saw
	released []string
	down     error // what a release answers
	fails    error // what a fetch answers, after it made a lease
}

func (l *lessor) fetch(req provider.Request) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.states = append(l.states, string(req.State.Reveal()))
	if req.State.IsEmpty() {
		l.made++
		if err := req.Keep(secret.FromString(fmt.Sprint("lease ", l.made))); err != nil {
			return err
		}
	}
	return l.fails
}

func (l *lessor) release(_, state string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down != nil {
		return l.down
	}
	l.released = append(l.released, state)
	return nil
}

func (l *lessor) gone() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(slices.Values(l.released))
}

func newLessor(t *testing.T) (*fixture, *lessor) {
	t.Helper()
	f, l := newFixture(t), &lessor{}
	f.fetched, f.store.release = l.fetch, l.release
	return f, l
}

// run runs the manager's queue until stop.
func (f *fixture) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	m := f.Manager
	go func() { m.Run(ctx); close(done) }()
	return sync.OnceFunc(func() { cancel(); <-done })
}

func (f *fixture) wantReleased(t *testing.T, l *lessor, want ...string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if slices.Equal(l.gone(), want) && f.Releasing() == 0 {
			return
		}
	}
	t.Fatalf("released is %q with %d to go, want %q", l.gone(), f.Releasing(), want)
}

func TestWhatAProviderKeepsIsGivenBackWithTheVolume(t *testing.T) {
	f, l := newLessor(t)
	stop := f.run(t)
	defer stop()
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(l.states, []string{"", "lease 1"}) {
		t.Errorf("fetches saw %q", l.states)
	}
	var st unix.Statfs_t
	dir := filepath.Join(f.dir, "state", "leases")
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Errorf("it is kept on %#x, %v", st.Type, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its folder is %v, %v", info.Mode(), err)
	}
	if len(l.gone()) > 0 {
		t.Error("it was given back early")
	}
	if err := f.Unpublish(t.Context(), r.VolumeID, r.TargetPath); err != nil {
		t.Fatal(err)
	}
	f.wantReleased(t, l, "lease 1")
	stop()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty tmpfs is left: %v", err)
	}
}

func TestAPublishThatFailsGivesBackWhatWasMade(t *testing.T) {
	f, l := newLessor(t)
	defer f.run(t)()
	l.fails = errors.New("the second object is missing")
	for range 2 {
		if err := f.Publish(t.Context(), f.request("web")); !errors.Is(err, l.fails) {
			t.Fatalf("got %v", err)
		}
	}
	f.wantReleased(t, l, "lease 1", "lease 2")
}

func TestWhatCouldNotBeGivenBackIsTriedAgain(t *testing.T) {
	f, l := newLessor(t)
	defer f.run(t)()
	tried := 0
	f.store.release = func(name, state string) error {
		if tried++; tried == 1 {
			return errors.New("the store is away")
		}
		return l.release(name, state)
	}
	r := f.request("web")
	if err := errors.Join(f.Publish(t.Context(), r), f.Unpublish(t.Context(), r.VolumeID, r.TargetPath)); err != nil {
		t.Fatal(err)
	}
	f.wantReleased(t, l, "lease 1")
}

func TestAnUnpublishDoesNotWaitForTheStore(t *testing.T) {
	f, l := newLessor(t)
	stop := f.run(t)
	l.down = errors.New("the store is away")
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := f.Unpublish(t.Context(), r.VolumeID, r.TargetPath); err != nil {
		t.Fatal(err)
	}
	if f.Releasing() != 1 {
		t.Error("nothing waits to be given back")
	}
	// A pod of the same name and path begins anew.
	if err := f.Publish(t.Context(), r); err != nil || l.states[1] != "" {
		t.Errorf("the second volume saw %q, %v", l.states, err)
	}
	// The next driver goes on where this one ended.
	stop()
	f.restart(t)
	l.mu.Lock()
	l.down = nil
	l.mu.Unlock()
	defer f.run(t)()
	f.wantReleased(t, l, "lease 1")
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil || l.states[2] != "lease 2" {
		t.Errorf("after the restart it saw %q, %v", l.states, err)
	}
}

func TestARestartedDriverGivesBackWhatLostItsVolume(t *testing.T) {
	f, l := newLessor(t)
	for _, pod := range []string{"gone", "stays"} {
		if err := f.Publish(t.Context(), f.request(pod)); err != nil {
			t.Fatal(err)
		}
	}
	// Killed between unmount and all that follows, or while the pod was deleted.
	if err := unix.Unmount(f.request("gone").TargetPath, 0); err != nil {
		t.Fatal(err)
	}
	f.restart(t)
	defer f.run(t)()
	f.wantReleased(t, l, "lease 1")
}

func TestAVolumeWithLeasesIsRefreshedWithoutCredentials(t *testing.T) {
	f, l := newLessor(t)
	r := f.request("web")
	r.Credentials.Tokens = map[string]provider.Token{"vault": {Value: secret.FromString("token")}}
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	f.restart(t)
	if info, _ := f.Manager.Get(r.TargetPath); info.Blocked {
		t.Error("it waits for kubelet")
	}
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil || len(l.states) != 2 || l.states[1] != "lease 1" {
		t.Errorf("fetches saw %q, %v", l.states, err)
	}
	// What needs a token after all waits for it, and does not count as a failure.
	l.fails = &provider.Error{Kind: provider.Denied, Err: provider.ErrNoCredentials}
	_, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil)
	if info, _ := f.Manager.Get(r.TargetPath); err != nil || info.LastError != nil || !info.Waiting {
		t.Errorf("got %v, and the volume tells %v, waiting %v", err, info.LastError, info.Waiting)
	}
	l.fails = nil
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if info, _ := f.Manager.Get(r.TargetPath); !info.Waiting {
		t.Error("nobody hears that it waited")
	}
	_, err = f.Refresh(t.Context(), r.TargetPath, time.Now(), nil)
	if info, _ := f.Manager.Get(r.TargetPath); err != nil || info.Waiting {
		t.Errorf("it waits on, %v", err)
	}
}

// changing is a class that changes its provider.
type changing struct {
	*store
	provider string
}

func (c *changing) Get(ctx context.Context, ref class.Ref) (*class.SecretProviderClass, error) {
	got, err := c.store.Get(ctx, ref)
	got.Spec.Provider = c.provider
	return got, err
}

func TestAClassThatChangesItsProviderGivesBackWhatTheFirstKept(t *testing.T) {
	f, l := newLessor(t)
	c := &changing{f.store, "one"}
	f.Manager.classes = c
	defer f.run(t)()
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	c.provider = "two"
	l.fails = errors.New("not yet")
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err == nil || len(l.gone()) > 0 {
		t.Fatalf("a refresh that failed gave back %q, %v", l.gone(), err)
	}
	l.fails = nil
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	f.wantReleased(t, l, "lease 1")
	if !slices.Equal(l.states, []string{"", "", "lease 2"}) {
		t.Errorf("fetches saw %q", l.states)
	}
}

func TestAKeptStateIsWholeOrAbsent(t *testing.T) {
	f, _ := newLessor(t)
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(f.dir, "state", "leases")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
	// What a kill in the middle of a write leaves, and what nobody knows.
	for name, text := range map[string]string{entries[0].Name() + ".new": `{"volumeID":"csi-web"`, "gone-x": "", "stray": "{}\nx"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.restart(t)
	if state, err := f.Manager.kept.get(keptKey{r.VolumeID, r.TargetPath, "store"}); err != nil || string(state.Reveal()) != "lease 1" {
		t.Errorf("got %q, %v", state.Reveal(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 || f.Releasing() != 0 {
		t.Errorf("left are %v, and %d to give back", entries, f.Releasing())
	}
}

func TestNothingIsMadeWhereNothingCanBeKept(t *testing.T) {
	f, l := newLessor(t)
	if err := f.Publish(t.Context(), f.request("first")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(f.dir, "state", "leases")
	if err := os.WriteFile(filepath.Join(dir, "fills"), []byte(strings.Repeat("x", keptBytes)), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v", err)
	}
	defer f.run(t)()
	if err := f.Publish(t.Context(), f.request("second")); provider.KindOf(err) != provider.TooLarge || strings.Contains(err.Error(), "lease 2") || strings.Contains(err.Error(), "volumeSize") {
		t.Errorf("got %v", err)
	}
	if _, err := f.Refresh(t.Context(), f.request("first").TargetPath, time.Now(), nil); err != nil || len(l.gone()) > 0 {
		t.Errorf("the first volume: %v, released %q", err, l.gone())
	}
}
