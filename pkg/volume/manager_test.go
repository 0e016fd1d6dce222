package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// store is a source of classes and a fetcher: the classes ns/one, ns/two, …,
// with the files that a test sets.
type store struct {
	mu         sync.Mutex
	files      map[string]string
	parameters map[string]string
	err        error
	valid      time.Duration // how long what a fetch brings is valid; 0 for no bound
	unmodified bool          // a refresh is answered with "not modified"
	sealedAt   time.Time     // where not zero, what a fetch brings was kept sealed
	requests   []provider.Request
	fetched    func(req provider.Request) error   // where not nil, called by each fetch
	release    func(provider, state string) error // where not nil, called by Release
	writes     func(dir string) error             // where not nil, the provider writes its files by itself
	begun      func()                             // called when such a fetch waits
	hold       chan struct{}                      // where not nil, a fetch for the pod "held" waits for it or for ctx
}

func (s *store) set(files map[string]string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files, s.err = files, err
}

func (s *store) Get(_ context.Context, ref class.Ref) (*class.SecretProviderClass, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &class.SecretProviderClass{Spec: class.Spec{Provider: "store", Parameters: maps.Clone(s.parameters)}}
	c.Namespace, c.Name = ref.Namespace, ref.Name
	return c, nil
}

func (s *store) Watch(ctx context.Context, _ func(class.Ref)) error { <-ctx.Done(); return nil }

func (s *store) Fetch(ctx context.Context, _ string, req provider.Request) (provider.Result, error) {
	if s.hold != nil && req.Pod.Name == "held" {
		s.begun()
		select {
		case <-s.hold:
		case <-ctx.Done():
			return provider.Result{}, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, req)
	if s.fetched != nil {
		if err := s.fetched(req); err != nil {
			return provider.Result{}, err
		}
	}
	if s.writes != nil {
		dir, err := req.Scratch.Open()
		if err == nil {
			err = s.writes(dir)
		}
		if err != nil {
			return provider.Result{}, err
		}
		files, err := req.Scratch.Files()
		return provider.Result{Files: files, Versions: []provider.ObjectVersion{{ID: "o", Version: "1"}}}, err
	}
	if s.unmodified && req.Current != nil {
		return provider.Result{NotModified: true}, nil
	}
	result := provider.Result{Files: files(s.files), Versions: []provider.ObjectVersion{{ID: "o", Version: fmt.Sprint(len(s.requests))}}}
	result.SealedAt = s.sealedAt
	if s.valid > 0 {
		result.ValidUntil = time.Now().Add(s.valid)
	}
	return result, s.err
}

func (s *store) Part(context.Context, string, provider.Request, provider.Due) (string, error) {
	return "", errors.New("no test of this store asks for a part")
}

func (s *store) Release(_ context.Context, name string, state secret.Value) error {
	return s.release(name, string(state.Reveal()))
}

type fixture struct {
	*Manager
	*store
	dir      string
	writable bool
	fetches  Fetcher // where nil, the store does
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{store: &store{files: map[string]string{"a": "1"}}, dir: t.TempDir()}
	f.prepare(t)
	return f
}

// prepare starts the manager, and has all gone at the end of the test.
func (f *fixture) prepare(t *testing.T) {
	t.Helper()
	f.restart(t)
	t.Cleanup(func() {
		f.Manager.Close()
		targets, _ := filepath.Glob(filepath.Join(f.dir, "*", "mount"))
		for _, target := range append(targets, filepath.Join(f.dir, "state", "leases")) {
			_ = unix.Unmount(target, unix.MNT_DETACH)
		}
	})
}

// restart replaces the manager, as a new driver would.
func (f *fixture) restart(t *testing.T) {
	t.Helper()
	if f.Manager != nil {
		f.Manager.Close()
	}
	if f.fetches == nil {
		f.fetches = f.store
	}
	m, err := New(Config{StateDir: filepath.Join(f.dir, "state"), Classes: f.store, Fetcher: f.fetches, Writable: f.writable})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Manager = m
}

func (f *fixture) request(pod string) Request {
	return Request{
		VolumeID: "csi-" + pod, TargetPath: filepath.Join(f.dir, pod, "mount"), Class: class.Ref{Namespace: "ns", Name: "one"},
		Pod: provider.Pod{Namespace: "ns", Name: pod, UID: "uid-" + pod},
	}
}

func (f *fixture) isMounted(t *testing.T, target string) bool {
	t.Helper()
	mounted, err := f.mounted(target)
	if err != nil {
		t.Fatal(err)
	}
	return mounted
}

// assertNothing checks that no trace of a volume is left.
func (f *fixture) assertNothing(t *testing.T, r Request) {
	t.Helper()
	if _, err := os.Lstat(r.TargetPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target is left: %v", err)
	}
	if records, err := os.ReadFile(filepath.Join(f.dir, "state", recordsFile)); len(records) > 0 || err != nil {
		t.Errorf("records are left: %s, %v", records, err)
	}
	if len(f.List()) > 0 {
		t.Errorf("the manager knows %v", f.List())
	}
}

func TestAVolumeLivesAndLeavesNothing(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if got := visible(t, r.TargetPath); !maps.Equal(got, f.files) {
		t.Errorf("got %v", got)
	}
	if err := os.WriteFile(filepath.Join(r.TargetPath, "x"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("the volume can be written: %v", err)
	}
	next := map[string]string{"a": "2", "b/c": "0440:2"}
	f.set(next, nil)
	if got, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); !got.Changed || err != nil {
		t.Fatalf("changed %v, %v", got.Changed, err)
	}
	if got := visible(t, r.TargetPath); got["a"] != "2" || got["b/c"] != "2" {
		t.Errorf("got %v", got)
	}
	used := func(want int64) bool {
		u, err := f.Usage(r.VolumeID, r.TargetPath)
		if err != nil || u.TotalBytes != class.DefaultVolumeSize {
			t.Fatalf("usage is %+v, %v", u, err)
		}
		return u.UsedBytes == want
	}
	if !used(3 * pageBytes) {
		t.Error("the files of before are gone at once")
	}
	for deadline := time.Now().Add(time.Minute); !used(2 * pageBytes); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the files of before are still there")
		}
	}
	for range 2 { // the second time there is nothing left to do
		if err := f.Unpublish(t.Context(), r.VolumeID, r.TargetPath); err != nil {
			t.Fatal(err)
		}
	}
	f.assertNothing(t, r)
}

func TestAFailedFirstPublishLeavesNothingAndIsNotTakenForDone(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	failure := &provider.Error{Kind: provider.Unavailable, Err: errors.New("the store is away")}
	f.set(nil, failure)
	for range 3 { // kubelet tries again, while the folder is young
		if err := f.Publish(t.Context(), r); !errors.Is(err, failure) {
			t.Fatalf("got %v", err)
		}
		f.assertNothing(t, r)
	}
	f.set(map[string]string{"a": "1"}, nil)
	if err := f.Publish(t.Context(), r); err != nil || !f.isMounted(t, r.TargetPath) {
		t.Fatalf("mounted %v, %v", f.isMounted(t, r.TargetPath), err)
	}
}

func TestARepeatedPublishBringsCredentialsAndAsksNoStore(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	r.Credentials.Tokens = map[string]provider.Token{"vault": {Value: secret.FromString("old")}}
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	f.set(nil, errors.New("nobody may ask"))
	r.Credentials.Tokens = map[string]provider.Token{"vault": {Value: secret.FromString("new")}}
	if err := f.Publish(t.Context(), r); err != nil || len(f.requests) != 1 {
		t.Fatalf("%d requests, %v", len(f.requests), err)
	}
	f.set(map[string]string{"a": "2"}, nil)
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	last := f.requests[len(f.requests)-1]
	if string(last.Tokens["vault"].Value.Reveal()) != "new" {
		t.Error("the refresh used the old token")
	}
	if len(last.Mounted) != 1 || last.Mounted[0].Version != "1" {
		t.Errorf("the refresh told of the versions %v", last.Mounted)
	}
}

func TestAManagerThatEndsLeavesNothingOfBeforeAChange(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	f.set(map[string]string{"a": "2"}, nil)
	if done, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil || !done.Changed {
		t.Fatalf("got %v, %v", done, err)
	}
	if err := f.Manager.Close(); err != nil {
		t.Fatal(err)
	}
	copies, err := filepath.Glob(filepath.Join(r.TargetPath, "..*", "a"))
	if err != nil || len(copies) != 2 { // through ..data, and in its set
		t.Errorf("left are %q, %v", copies, err)
	}
	if got := visible(t, r.TargetPath); got["a"] != "2" {
		t.Errorf("got %v", got)
	}
}

func TestAFailedRefreshKeepsTheFilesAndSaysWhy(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	f.set(nil, errors.New("the store is away"))
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err == nil {
		t.Fatal("it did not fail")
	}
	if got := visible(t, r.TargetPath); got["a"] != "1" {
		t.Errorf("got %v", got)
	}
	if info := f.List()[0]; info.LastError == nil || !strings.Contains(info.LastError.Error(), "ns/web") {
		t.Errorf("the volume tells %v", info.LastError)
	}
	f.set(map[string]string{"a": "1"}, nil)
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil || f.List()[0].LastError != nil {
		t.Errorf("got %v, and the volume tells %v", err, f.List()[0].LastError)
	}
}

func TestAProviderSeesWhatTheClassHasMounted(t *testing.T) {
	f := newFixture(t)
	f.set(map[string]string{"a": "1", "b/c": "2"}, nil)
	f.unmodified = true
	saw := ""
	f.fetched = func(req provider.Request) error {
		saw = "nothing"
		if req.Current != nil {
			saw = ""
			for _, path := range []string{"a", "b/c", "x", "../a", "b"} {
				contents, ok := req.Current(path)
				saw += fmt.Sprintf("%s=%s,%v ", path, contents.Reveal(), ok)
			}
		}
		return nil
	}
	const all = "a=1,true b/c=2,true x=,false ../a=,false b=,false "
	r := f.request("web")
	refresh := func(step, want string, changed bool) {
		t.Helper()
		if got, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil || got.Changed != changed || saw != want {
			t.Errorf("%s: it saw %q, changed is %v, %v", step, saw, got.Changed, err)
		}
	}
	if err := f.Publish(t.Context(), r); err != nil || saw != "nothing" {
		t.Fatalf("a publish: it saw %q, %v", saw, err)
	}
	refresh("a refresh", all, false)
	f.parameters = map[string]string{"objects": "others"}
	f.set(map[string]string{"a": "1", "b/c": "2", "d": ""}, nil)
	refresh("another class", "nothing", true)
	refresh("after it", all, false)
	f.parameters = map[string]string{"objects": "of yet another class"}
	f.set(nil, errors.New("the store is away"))
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil && saw != "nothing" {
		t.Errorf("a class that fails: it saw %q", saw)
	}
	f.set(map[string]string{"a": "1", "b/c": "2"}, nil)
	refresh("the class that failed", "nothing", true)
	f.restart(t)
	refresh("after a restart", all, false)
}

func TestWhatIsUrgent(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	var urgent []bool
	f.fetched = func(req provider.Request) error {
		urgent = append(urgent, req.Urgent)
		return nil
	}
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for _, valid := range []time.Duration{time.Hour, time.Second, 0} {
		f.valid = valid
		if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(urgent); got != "[true false false true]" {
		t.Errorf("a start, a refresh, one of what is valid for long, one of what ends: urgent are %s", got)
	}
}

func TestARestartedDriverFindsItsVolumes(t *testing.T) {
	f := newFixture(t)
	kept, lost := f.request("kept"), f.request("lost")
	kept.Credentials.Secrets = map[string]secret.Value{"k": secret.FromString("v")}
	for _, r := range []Request{kept, lost} {
		if err := f.Publish(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := unmount(lost.TargetPath); err != nil {
		t.Fatal(err)
	}
	f.restart(t)
	list := f.List()
	if len(list) != 1 || list[0].VolumeID != kept.VolumeID || !list[0].Blocked {
		t.Fatalf("it found %+v", list)
	}
	if _, err := os.Stat(lost.TargetPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of the lost volume is left: %v", err)
	}
	f.set(map[string]string{"a": "2"}, nil)
	if got, err := f.Refresh(t.Context(), kept.TargetPath, time.Now(), nil); got.Changed || err != nil {
		t.Errorf("a refresh without credentials: changed %v, %v", got.Changed, err)
	}
	if err := f.Publish(t.Context(), kept); err != nil { // kubelet brings them
		t.Fatal(err)
	}
	if got, err := f.Refresh(t.Context(), kept.TargetPath, time.Now(), nil); !got.Changed || err != nil {
		t.Errorf("changed %v, %v", got.Changed, err)
	}
}

// In the order of the faults that drivers were seen to leave.
func TestAMountOfWhichNothingIsKnown(t *testing.T) {
	other := &provider.Error{Kind: provider.NotFound, Err: errors.New("no such object")}
	for name, tc := range map[string]struct {
		holds   map[string]string // nil for an empty tmpfs
		fails   error
		want    map[string]string
		wantErr error
	}{
		"an empty tmpfs is filled":                    {nil, nil, map[string]string{"a": "1"}, nil},
		"an empty tmpfs is no volume when that fails": {nil, other, nil, other},
		"another driver's set is replaced in place":   {map[string]string{"x": "0"}, nil, map[string]string{"a": "1"}, nil},
		"another driver's set stays where that fails": {map[string]string{"x": "0"}, other, map[string]string{"x": "0"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			r := f.request("web")
			tr, err := newTree(tmpfsOptions{size: class.DefaultVolumeSize})
			if err != nil {
				t.Fatal(err)
			}
			if tc.holds != nil {
				if _, err := writeSet(tr, files(tc.holds), false); err != nil {
					t.Fatal(err)
				}
			}
			target, err := makeTarget(r.TargetPath)
			if err != nil {
				t.Fatal(err)
			}
			if err := tr.attach(target, true); err != nil {
				t.Fatal(err)
			}
			target.Close()
			pod, err := os.OpenRoot(r.TargetPath) // what a running pod holds on to
			if err != nil {
				t.Fatal(err)
			}
			defer pod.Close()
			if tc.fails != nil {
				f.set(nil, tc.fails)
			}
			if err := f.Publish(t.Context(), r); !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if tc.want == nil {
				pod.Close()
				f.assertNothing(t, r)
				return
			}
			if got := visible(t, r.TargetPath); !maps.Equal(got, tc.want) {
				t.Errorf("got %v", got)
			}
			for name, content := range tc.want {
				if got, err := pod.ReadFile(name); string(got) != content {
					t.Errorf("the pod reads %q, %v", got, err)
				}
			}
		})
	}
}

func TestUnpublishSurvivesWhatItFinds(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, f *fixture, r Request){
		"a target that is in use": func(t *testing.T, f *fixture, r Request) {
			dir, err := os.Open(r.TargetPath)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { dir.Close() })
		},
		"two mounts on one another": func(t *testing.T, f *fixture, r Request) {
			if err := unix.Mount("tmpfs", r.TargetPath, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
		},
		"a mount that is gone": func(t *testing.T, f *fixture, r Request) {
			if err := unmount(r.TargetPath); err != nil {
				t.Fatal(err)
			}
		},
		"a folder with a value on the disk": func(t *testing.T, f *fixture, r Request) {
			if err := unmount(r.TargetPath); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(r.TargetPath, "plaintext"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"a target that is gone": func(t *testing.T, f *fixture, r Request) {
			if err := unmount(r.TargetPath); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(r.TargetPath); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			r := f.request("web")
			if err := f.Publish(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			prepare(t, f, r)
			if err := f.Unpublish(t.Context(), r.VolumeID, r.TargetPath); err != nil {
				t.Fatal(err)
			}
			f.assertNothing(t, r)
		})
	}
}

func TestUnpublishEmptiesCopiesOfTheMount(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	held, err := openTree(r.TargetPath) // as a mount namespace that leaked would
	if err != nil {
		t.Fatal(err)
	}
	defer held.close()
	if err := f.Unpublish(t.Context(), r.VolumeID, r.TargetPath); err != nil {
		t.Fatal(err)
	}
	if list, err := entries(held.root, "."); len(list) > 0 || err != nil {
		t.Errorf("the copy still holds %v, %v", list, err)
	}
}

func TestATargetThatCannotBeAVolumeIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		make func(target string) error
		want string
	}{
		"a file":          {func(p string) error { return os.WriteFile(p, nil, 0o600) }, "it is a file"},
		"a symbolic link": {func(p string) error { return os.Symlink("/tmp", p) }, "it is a symbolic link"},
		"below a file": {func(p string) error {
			return errors.Join(os.Remove(filepath.Dir(p)), os.WriteFile(filepath.Dir(p), nil, 0o600))
		}, "below something that is no folder"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			r := f.request("web")
			if err := errors.Join(os.MkdirAll(filepath.Dir(r.TargetPath), 0o755), tc.make(r.TargetPath)); err != nil {
				t.Fatal(err)
			}
			err := f.Publish(t.Context(), r)
			if err == nil || !strings.Contains(err.Error(), tc.want) || provider.KindOf(err) != provider.Invalid {
				t.Errorf("got %v", err)
			}
			if len(f.List()) > 0 || len(f.requests) > 0 {
				t.Error("it asked the store or kept a volume")
			}
		})
	}
}

func TestOneVolumeOneTarget(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	group := int64(7)
	for name, tc := range map[string]struct {
		change func(*Request)
		want   error
	}{
		"another class":       {func(r *Request) { r.Class.Name = "two" }, ErrIncompatible},
		"another pod":         {func(r *Request) { r.Pod.UID = "other" }, ErrIncompatible},
		"another group":       {func(r *Request) { r.FSGroup = &group }, ErrIncompatible},
		"another volume":      {func(r *Request) { r.VolumeID = "other" }, ErrIncompatible},
		"another attribute":   {func(r *Request) { r.Attributes = map[string]string{"mine": "x"} }, ErrIncompatible},
		"another target":      {func(r *Request) { r.TargetPath += "2" }, ErrElsewhere},
		"one target of many":  {func(r *Request) { r.TargetPath = filepath.Join(f.dir, "web2", "mount"); r.Shared = true }, nil},
		"a kubelet that adds": {func(r *Request) { r.Attributes = map[string]string{"csi.storage.k8s.io/new": "x"} }, nil},
	} {
		changed := r
		tc.change(&changed)
		if err := f.Publish(t.Context(), changed); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
}

func TestAPodCannotOverrideItsClass(t *testing.T) {
	f := newFixture(t)
	f.parameters = map[string]string{"path": "/secrets"}
	r := f.request("web")
	r.Attributes = map[string]string{"path": "/etc"}
	if err := f.Publish(t.Context(), r); provider.KindOf(err) != provider.Invalid || !strings.Contains(err.Error(), `"path"`) {
		t.Errorf("got %v", err)
	}
	f.assertNothing(t, r)
}

func TestTheClassSetsTheSize(t *testing.T) {
	f := newFixture(t)
	f.parameters = map[string]string{provider.VolumeSizeKey: "64Ki"}
	r := f.request("web")
	f.set(map[string]string{"a": strings.Repeat("x", 40<<10)}, nil)
	err := f.Publish(t.Context(), r)
	if provider.KindOf(err) != provider.TooLarge || !strings.Contains(err.Error(), "set the class parameter volumeSize to at least 80Ki") {
		t.Fatalf("got %v", err)
	}
	f.assertNothing(t, r)
	f.parameters[provider.VolumeSizeKey] = "80Ki"
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	// A class that asks for more gets it under the running pod.
	f.parameters[provider.VolumeSizeKey] = "1Mi"
	f.set(map[string]string{"a": strings.Repeat("y", 400<<10)}, nil)
	if got, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); !got.Changed || err != nil {
		t.Fatalf("changed %v, %v", got.Changed, err)
	}
}

func TestTheGroupOfThePodOwnsItsFiles(t *testing.T) {
	group := int64(0)
	if data, err := os.ReadFile("/proc/self/gid_map"); err == nil && strings.Contains(string(data), "4294967295") {
		group = 2000 // an ordinary user's namespace knows group 0 only
	}
	f := newFixture(t)
	f.set(map[string]string{"a": "0400:x", "b/c": "0600:x"}, nil)
	r := f.request("web")
	r.FSGroup = &group
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{".": 0o755 | os.ModeDir | os.ModeSetgid, "a": 0o440, "b/c": 0o640, "..data/b": 0o755 | os.ModeDir | os.ModeSetgid} {
		info, err := os.Stat(filepath.Join(r.TargetPath, name))
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); int64(st.Gid) != group || info.Mode() != mode {
			t.Errorf("%s: group %d, mode %v, want %d, %v", name, st.Gid, info.Mode(), group, mode)
		}
	}
}

func TestCallsForOneVolumeWaitForEachOther(t *testing.T) {
	f := newFixture(t)
	f.hold = make(chan struct{})
	r := f.request("held")
	first := make(chan error)
	started := make(chan struct{})
	f.begun = func() { close(started) }
	go func() { first <- f.Publish(t.Context(), r) }()
	<-started
	hurried, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for _, call := range []func() error{
		func() error { return f.Unpublish(hurried, r.VolumeID, r.TargetPath) },
		func() error { return f.Unpublish(hurried, "another", r.TargetPath) },
		func() error { return f.Unpublish(hurried, r.VolumeID, r.TargetPath+"2") },
	} {
		if err := call(); err != nil && !errors.Is(err, ErrPending) {
			t.Errorf("got %v", err)
		} else if err == nil {
			t.Error("it did not wait")
		}
	}
	if err := f.Publish(t.Context(), f.request("other")); err != nil {
		t.Error(err) // another volume need not wait
	}
	close(f.hold)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
}

func TestManyCallsAtOnceEndInOneState(t *testing.T) {
	f := newFixture(t)
	var group sync.WaitGroup
	for i := range 64 {
		group.Go(func() {
			r := f.request(fmt.Sprint("web", i%4))
			var err error
			switch i % 3 {
			case 0:
				err = f.Unpublish(t.Context(), r.VolumeID, r.TargetPath)
			case 1:
				if _, err = f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); errors.Is(err, ErrNotPublished) {
					err = nil
				}
			default:
				err = f.Publish(t.Context(), r)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for i := range 4 {
		r := f.request(fmt.Sprint("web", i))
		if known, mounted := f.get(r.TargetPath) != nil, f.isMounted(t, r.TargetPath); known != mounted {
			t.Errorf("%s: known %v, mounted %v", r.VolumeID, known, mounted)
		}
		if err := f.Unpublish(t.Context(), r.VolumeID, r.TargetPath); err != nil {
			t.Error(err)
		}
	}
	f.assertNothing(t, f.request("web0"))
}

func TestTwoManagersDoNotShareAStateFolder(t *testing.T) {
	f := newFixture(t)
	if m, err := New(Config{StateDir: filepath.Join(f.dir, "state"), Classes: f.store, Fetcher: f.store}); err == nil {
		m.Close()
		t.Error("a second manager got the folder")
	}
}

func TestBrokenRecordsHoldNothingUp(t *testing.T) {
	f := newFixture(t)
	if err := f.Publish(t.Context(), f.request("web")); err != nil {
		t.Fatal(err)
	}
	f.Manager.Close()
	file, err := os.OpenFile(filepath.Join(f.dir, "state", recordsFile), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	later := `{"format":99,"somethingNew":true}`
	fmt.Fprintf(file, "{\n\n[]\n%s\n{\"format\":1,\"volumeID\":\"v\",\"targetPath\":\"../etc\"}\n{\"format\":1", later)
	file.Close()
	m, err := New(Config{StateDir: filepath.Join(f.dir, "state"), Classes: f.store, Fetcher: f.store})
	if err != nil {
		t.Fatal(err)
	}
	f.Manager = m
	err = m.Recover(t.Context())
	if err == nil || strings.Count(err.Error(), "it is broken") != 4 || strings.Count(err.Error(), "its format is 99") != 1 {
		t.Errorf("it told %v", err)
	}
	if len(m.List()) != 1 {
		t.Errorf("it found %v", m.List())
	}
	left, _ := os.ReadFile(filepath.Join(f.dir, "state", recordsFile))
	if strings.Count(string(left), "\n") != 2 || !strings.Contains(string(left), later) {
		t.Errorf("the file holds %s", left) // want the good one and the one of a later format
	}
}

// Some external providers write their files by themselves. They write them to
// memory, beside the volume, and the pod gets them as from any other.
func TestFilesThatAProviderWroteTakeTheSameWay(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	var dirs []string
	f.writes = func(dir string) error {
		dirs = append(dirs, dir)
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
			t.Errorf("it writes to a file system of type %#x, %v", st.Type, err)
		}
		return errors.Join(os.Mkdir(filepath.Join(dir, "b"), 0o755),
			os.WriteFile(filepath.Join(dir, "a"), []byte(fmt.Sprint(len(dirs))), 0o644), os.WriteFile(filepath.Join(dir, "b", "c"), []byte("x"), 0o400))
	}
	gone := func() {
		t.Helper()
		if list, _ := os.ReadDir(filepath.Dir(r.TargetPath)); len(list) > 1 {
			t.Errorf("beside the target there is %v", list)
		}
	}
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	gone()
	if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	gone()
	if got := visible(t, r.TargetPath); got["a"] != "2" || got["b/c"] != "x" {
		t.Errorf("got %v", got)
	}
	for name, write := range map[string]func(dir string) error{
		"nothing":         func(string) error { return nil },
		"a link":          func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "a")) },
		"a reserved name": func(dir string) error { return os.WriteFile(filepath.Join(dir, "..data"), nil, 0o644) },
		"an error": func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "a"), nil, 0o644), errors.New("no"))
		},
	} {
		f.writes = write
		if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err == nil {
			t.Errorf("%s was accepted", name)
		}
		gone()
	}
	// What a kill left goes with the volume.
	if _, err := f.scratchFor(r.TargetPath, class.MinVolumeSize).Open(); err != nil {
		t.Fatal(err)
	}
	if err := f.Unpublish(t.Context(), r.VolumeID, r.TargetPath); err != nil {
		t.Fatal(err)
	}
	f.assertNothing(t, r)
	gone()
}

// changedAt returns what the file ..changed has, and its inode.
func changedAt(t *testing.T, r Request) (text string, inode uint64) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.TargetPath, changedFile))
	if err != nil {
		t.Fatal(err)
	}
	var stat unix.Stat_t
	if err := unix.Lstat(filepath.Join(r.TargetPath, changedFile), &stat); err != nil || stat.Mode != unix.S_IFREG|0o444 {
		t.Errorf("its mode is %o, %v", stat.Mode, err)
	}
	if _, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(string(b))); err != nil {
		t.Error(err)
	}
	return string(b), stat.Ino
}

func TestAChangeIsWrittenToAFileThatStays(t *testing.T) {
	f := newFixture(t)
	f.parameters = map[string]string{provider.OnChangeKey: "- action: touch"}
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	first, file := changedAt(t, r)
	refresh := func(want bool) {
		t.Helper()
		if got, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); got.Changed != want || err != nil {
			t.Fatalf("changed %v, %v", got.Changed, err)
		}
	}
	refresh(false)
	if again, same := changedAt(t, r); again != first || same != file {
		t.Errorf("nothing has changed, and it says %s after %s", again, first)
	}
	f.restart(t)
	f.set(map[string]string{"a": "2"}, nil)
	refresh(true)
	second, same := changedAt(t, r)
	if second <= first || same != file {
		t.Errorf("it says %s after %s, in file %d after %d", second, first, same, file)
	}
	f.parameters = nil
	f.set(map[string]string{"a": "3"}, nil)
	refresh(true)
	if third, _ := changedAt(t, r); third != second {
		t.Error("it is written though the class does not ask for it any more")
	}
	if got := visible(t, r.TargetPath); got["a"] != "3" {
		t.Errorf("got %v", got)
	}
}

// A driver that is killed after the switch has told nobody.
func TestAChangeThatNobodyHeardOfIsToldByTheNextDriver(t *testing.T) {
	for name, unmodified := range map[string]bool{"the store has the new files": false, "the store says not modified": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.parameters = map[string]string{provider.OnChangeKey: "- action: touch"}
			r := f.request("web")
			if err := f.Publish(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			first, _ := changedAt(t, r)
			before, _ := f.Manager.Get(r.TargetPath)
			tr, err := openTree(r.TargetPath)
			if err != nil {
				t.Fatal(err)
			}
			if changed, err := writeSet(tr, files(map[string]string{"a": "2"}), false); !changed || err != nil {
				t.Fatalf("changed %v, %v", changed, err)
			}
			tr.close()
			f.restart(t)
			f.set(map[string]string{"a": "2"}, nil)
			f.unmodified = unmodified
			for _, want := range []bool{true, false} {
				if got, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); got.Changed != want || err != nil {
					t.Fatalf("changed %v, %v", got.Changed, err)
				}
			}
			if second, _ := changedAt(t, r); second == first {
				t.Error("the pod was not told")
			}
			if after, _ := f.Manager.Get(r.TargetPath); !after.Changed.After(before.Changed) {
				t.Errorf("it changed at %v, after %v", after.Changed, before.Changed)
			}
		})
	}
}
