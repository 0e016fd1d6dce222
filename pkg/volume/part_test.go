package volume

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/fetch"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// shelf is a provider whose objects have any number of files each, by their names, and
// versions. A missing object has none.
type shelf struct {
	mu       sync.Mutex
	files    map[string]map[string]string // by object
	versions map[string]int
	asked    map[string]int // how often, by object
	valid    time.Duration  // how long an answer is valid; 0 for no bound
	state    string         // where not empty, kept by a fetch of all
}

func (s *shelf) Validate(map[string]string) []provider.Problem { return nil }

func (s *shelf) Fetch(_ context.Context, req provider.Request) (provider.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, r := provider.NewParams(req.Parameters), provider.Result{}
	for _, it := range p.Objects("objects") {
		name := it.Required("objectName", "")
		s.asked[name]++
		for path, value := range s.files[name] {
			r.Files = append(r.Files, provider.File{Path: name + "/" + path, Mode: 0o644, Contents: secret.FromString(value)})
		}
		r.Versions = append(r.Versions, provider.ObjectVersion{ID: name, Version: fmt.Sprint(s.versions[name])})
	}
	slices.SortFunc(r.Files, func(a, b provider.File) int { return strings.Compare(a.Path, b.Path) })
	if s.valid > 0 {
		r.ValidUntil = time.Now().Add(s.valid)
	}
	if s.state != "" && req.Keep != nil {
		if err := req.Keep(secret.FromString(s.state)); err != nil {
			return provider.Result{}, err
		}
	}
	return r, p.Err()
}

func (s *shelf) Release(context.Context, secret.Value) error { return nil }

func (s *shelf) StoreOf(secret.Value) (string, bool) { return "", false }

// change makes an object another than it was; it may lose files, or all.
func (s *shelf) change(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = map[string]string{}
	for i := range rand.N(3) {
		s.files[name][fmt.Sprint("f", i)] = fmt.Sprint(rand.N(2))
	}
	s.versions[name] = rand.N(3)
}

// has returns the files of some objects.
func (s *shelf) has(names ...string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]string{}
	for _, name := range names {
		for path, value := range s.files[name] {
			all[name+"/"+path] = value
		}
	}
	return all
}

// counts returns how often each object was asked for since the last call.
func (s *shelf) counts() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = map[string]int{}
	return strings.TrimPrefix(fmt.Sprint(asked), "map")
}

const (
	often  = 10 * time.Second
	seldom = time.Hour
)

// newShelf publishes a volume with objects of three intervals.
func newShelf(t *testing.T) (*fixture, *shelf, Request) {
	t.Helper()
	s := &shelf{files: map[string]map[string]string{}, versions: map[string]int{}, asked: map[string]int{}}
	for _, name := range []string{"often", "plain", "seldom"} {
		s.files[name] = map[string]string{"f": "1"}
	}
	f := &fixture{
		store: &store{parameters: map[string]string{"objects": "- {objectName: often, rotationInterval: 10s}\n- objectName: plain\n- {objectName: seldom, rotationInterval: 1h}"}},
		dir:   t.TempDir(), fetches: fetch.New(provider.NewRegistry(map[string]provider.Provider{"store": s}, nil), 0),
	}
	f.prepare(t)
	r := f.request("web")
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	s.counts()
	return f, s, r
}

func TestWhatIsNotDueIsAskedForOnlyWhenSomethingHasChanged(t *testing.T) {
	f, s, r := newShelf(t)
	refresh := func(step string, due provider.Due, changed bool, asked string) {
		t.Helper()
		got, err := f.Refresh(t.Context(), r.TargetPath, time.Time{}, due)
		if err != nil || got.Changed != changed {
			t.Errorf("%s: changed is %v, %v", step, got.Changed, err)
		}
		if counts := s.counts(); counts != asked {
			t.Errorf("%s: asked for was %s, want %s", step, counts, asked)
		}
		if got, want := visible(t, r.TargetPath), s.has("often", "plain", "seldom"); !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", step, got, want)
		}
	}
	const all, partAndAll = "[often:1 plain:1 seldom:1]", "[often:2 plain:1 seldom:1]"
	refresh("at first", provider.Due{often}, false, partAndAll)
	for range 5 {
		refresh("then", provider.Due{often}, false, "[often:1]")
	}
	refresh("with others", provider.Due{0, often}, false, "[often:2 plain:2 seldom:1]")
	refresh("with others again", provider.Due{0, often}, false, "[often:1 plain:1]")
	refresh("those alone again", provider.Due{often}, false, "[often:1]")
	refresh("all", nil, false, all)
	refresh("after all", provider.Due{often}, false, "[often:1]")
	s.files["often"]["f"] = "2"
	refresh("changed", provider.Due{often}, true, partAndAll)
	refresh("after a change", provider.Due{often}, false, partAndAll)
	refresh("some time after it", provider.Due{often}, false, "[often:1]")
	s.versions["often"] = 7
	refresh("another version", provider.Due{often}, false, partAndAll)
	if got := fmt.Sprint(f.List()[0].Objects); !strings.Contains(got, "{often 7}") {
		t.Errorf("the versions are %s", got)
	}
	s.files["seldom"]["f"], s.files["often"]["f"] = "2", "3"
	refresh("all files are of one time", provider.Due{often}, true, partAndAll)
	s.files["often"] = nil
	refresh("gone", provider.Due{often}, true, partAndAll)
	f.parameters["objects"] += "\n- objectName: more"
	refresh("another class", provider.Due{often}, false, "[more:1 often:1 plain:1 seldom:1]")
	f.restart(t)
	refresh("after a restart", provider.Due{often}, false, "[more:1 often:2 plain:1 seldom:1]")
	refresh("some time after that", provider.Due{often}, false, "[often:1]")
	s.valid = time.Hour
	refresh("what ends", nil, false, "[more:1 often:1 plain:1 seldom:1]")
	refresh("what ends is whole", provider.Due{often}, false, "[more:1 often:1 plain:1 seldom:1]")
}

func TestWhatKeepsStateOrMayBeSealedIsAskedForAsAWhole(t *testing.T) {
	for name, set := range map[string]func(f *fixture, s *shelf){
		"a lease":             func(_ *fixture, s *shelf) { s.state = "lease" },
		"a sealed answer":     func(f *fixture, _ *shelf) { f.parameters[provider.SealedCacheKey] = "1h" },
		"an interval unknown": func(f *fixture, _ *shelf) { f.parameters["objects"] = "- {objectName: seldom, rotationInterval: 1h}" },
		"one interval":        func(f *fixture, _ *shelf) { f.parameters["objects"] = "- {objectName: seldom, rotationInterval: 10s}" },
	} {
		t.Run(name, func(t *testing.T) {
			f, s, r := newShelf(t)
			set(f, s)
			for range 2 {
				if _, err := f.Refresh(t.Context(), r.TargetPath, time.Time{}, nil); err != nil {
					t.Fatal(err)
				}
			}
			s.counts()
			for range 3 {
				if _, err := f.Refresh(t.Context(), r.TargetPath, time.Time{}, provider.Due{often}); err != nil {
					t.Fatal(err)
				}
			}
			if got := s.counts(); got != "[often:3 plain:3 seldom:3]" && got != "[seldom:3]" {
				t.Errorf("asked for was %s", got)
			}
		})
	}
}

// Whatever happens at the store, a refresh leaves those objects as they are there that
// were due, and the others as they were at one of the refreshes before.
func TestWhatIsDueIsAsTheStoreHasIt(t *testing.T) {
	f, s, r := newShelf(t)
	names := map[time.Duration]string{often: "often", 0: "plain", seldom: "seldom"}
	seen := map[string][]map[string]string{}
	note := func() {
		for _, name := range names {
			seen[name] = append(seen[name], s.has(name))
		}
	}
	note()
	for step := range 300 {
		for _, name := range names {
			if rand.N(4) == 0 {
				s.change(name)
			}
		}
		note()
		var due provider.Due
		for kind := range names {
			if rand.N(2) == 0 {
				due = append(due, kind)
			}
		}
		slices.Sort(due)
		if _, err := f.Refresh(t.Context(), r.TargetPath, time.Time{}, due); err != nil {
			t.Fatal(err)
		}
		got := visible(t, r.TargetPath)
		for kind, name := range names {
			its := maps.Clone(got)
			maps.DeleteFunc(its, func(path, _ string) bool { return !strings.HasPrefix(path, name+"/") })
			if due == nil || slices.Contains(due, kind) {
				if want := s.has(name); !maps.Equal(its, want) {
					t.Fatalf("step %d: %s is %v, and %v at the store, as was due", step, name, its, want)
				}
			} else if !slices.ContainsFunc(seen[name], func(was map[string]string) bool { return maps.Equal(was, its) }) {
				t.Fatalf("step %d: %s is %v, as it never was", step, name, its)
			}
		}
	}
}
