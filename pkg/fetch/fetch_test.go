package fetch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

type answering func(ctx context.Context) (provider.Result, error)

func (a answering) Fetch(ctx context.Context, _ provider.Request) (provider.Result, error) {
	return a(ctx)
}

func fetcher(a answering, timeout time.Duration) *Fetcher {
	return New(provider.NewRegistry(map[string]provider.Provider{"store": a}, nil), timeout)
}

func TestAnAnswerThatNoVolumeCanHoldIsRefusedAndCleared(t *testing.T) {
	for name, paths := range map[string][]string{
		"a parent folder": {"../a"}, "an absolute path": {"/a"}, "the same path twice": {"a", "a"}, "a file that is a folder": {"a", "a/b"},
	} {
		value := secret.FromString("x")
		f := fetcher(func(context.Context) (r provider.Result, err error) {
			for _, p := range paths {
				r.Files = append(r.Files, provider.File{Path: p, Mode: 0o644, Contents: value})
			}
			return r, nil
		}, 0)
		_, err := f.Fetch(t.Context(), "store", provider.Request{})
		if err == nil || provider.KindOf(err) != provider.Internal || !strings.Contains(err.Error(), `provider "store"`) {
			t.Errorf("%s: got %v", name, err)
		}
		if !value.IsEmpty() {
			t.Errorf("%s: the value was kept", name)
		}
	}
	f := fetcher(func(context.Context) (provider.Result, error) {
		return provider.Result{Files: []provider.File{{Path: "a", Mode: 0o4755}}}, nil
	}, 0)
	if _, err := f.Fetch(t.Context(), "store", provider.Request{}); err == nil {
		t.Error("a setuid file passed")
	}
}

func nothing(string) (secret.Value, bool) { return secret.Value{}, false }

func TestNotModifiedNeedsSomethingMounted(t *testing.T) {
	f := fetcher(func(context.Context) (provider.Result, error) { return provider.Result{NotModified: true}, nil }, 0)
	if _, err := f.Fetch(t.Context(), "store", provider.Request{Mounted: []provider.ObjectVersion{{ID: "a"}}}); err == nil {
		t.Error("a fetch of another class was answered without files")
	}
	if r, err := f.Fetch(t.Context(), "store", provider.Request{Current: nothing}); err != nil || !r.NotModified {
		t.Errorf("got %v, %v", r, err)
	}
}

func TestAStoreThatHangsIsNamedBeforeTheCallerGivesUp(t *testing.T) {
	hang := answering(func(ctx context.Context) (provider.Result, error) {
		<-ctx.Done()
		return provider.Result{}, ctx.Err()
	})
	for name, tc := range map[string]struct{ timeout, caller, want time.Duration }{
		"its own bound":          {time.Minute, 0, time.Minute},
		"kubelet's two minutes":  {0, 2 * time.Minute, DefaultTimeout},
		"a caller in a hurry":    {0, 20 * time.Second, 19 * time.Second},
		"a caller in some hurry": {0, 100 * time.Second, 98 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if tc.caller > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.caller)
					defer cancel()
				}
				began := time.Now()
				_, err := fetcher(hang, tc.timeout).Fetch(ctx, "store", provider.Request{})
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `provider "store": no answer in time`) {
					t.Errorf("got %v", err)
				}
				if took := time.Since(began); took != tc.want {
					t.Errorf("it took %v, want %v", took, tc.want)
				}
			})
		})
	}
}

func TestAnUnknownProviderIsNamed(t *testing.T) {
	f := fetcher(nil, 0)
	for name, want := range map[string]string{"vault": `provider "vault": provider not found; embedded here: store`, "../x": "invalid provider", "": "invalid provider"} {
		if _, err := f.Fetch(t.Context(), name, provider.Request{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestAProviderThatPanicsEndsItsOwnCallOnly(t *testing.T) {
	const canary = "canary-value"
	for name, fault := range map[string]func(){
		"with a text":       func() { panic(canary) },
		"with an error":     func() { panic(errors.New(canary)) },
		"of the Go runtime": func() { var p *provider.Provider; _ = *p },
		"in a fetch of many": func() {
			_ = provider.Together(context.Background(), 2, func(context.Context, int) error { panic(canary) })
		},
	} {
		kinds := &recorded{}
		f := fetcher(func(context.Context) (provider.Result, error) {
			fault()
			return provider.Result{}, &provider.Error{Err: errors.New("it went on")}
		}, 0)
		f.Recorder = kinds
		_, err := f.Fetch(t.Context(), "store", provider.Request{})
		if err == nil || provider.KindOf(err) != provider.Internal || !strings.HasPrefix(err.Error(), `provider "store": `) || strings.Contains(fmt.Sprintf("%v %+v", err, err), "canary") {
			t.Errorf("%s: got %v", name, err)
		}
		if name != "in a fetch of many" && !strings.Contains(err.Error(), "fetch_test.go:") {
			t.Errorf("%s: it does not tell the place: %v", name, err)
		}
		if len(kinds.types) != 1 || kinds.types[0] != "internal" {
			t.Errorf("%s: recorded as %q", name, kinds.types)
		}
	}
}

type recorded struct {
	types  []string
	shared int
}

func (r *recorded) Shared(string) { r.shared++ }

func (r *recorded) StartedSealed(string) {}

func (r *recorded) Fetched(_, errorType string, _ time.Duration) {
	r.types = append(r.types, errorType)
}

func TestDerivedFilesAreMadeOfWhatEveryProviderBrings(t *testing.T) {
	brought := func() []provider.File {
		return []provider.File{{Path: "db", Mode: 0o600, Contents: secret.FromString(`{"user": "app"}`)}}
	}
	req := provider.Request{Mode: 0o640, Parameters: map[string]string{provider.DerivedFilesKey: "- {path: user, from: db, extractJSONKey: user, replace: true}"}}
	direct := fetcher(func(context.Context) (provider.Result, error) {
		return provider.Result{Files: brought(), Versions: []provider.ObjectVersion{{ID: "db", Version: "1"}}}, nil
	}, 0)
	scratch := fetcher(func(context.Context) (provider.Result, error) { return provider.Result{InScratch: true}, nil }, 0)
	for name, f := range map[string]*Fetcher{"in its answer": direct, "by writing itself": scratch} {
		req.Scratch = written{files: brought()}
		r, err := f.Fetch(t.Context(), "store", req)
		if err != nil || len(r.Files) != 1 || r.Files[0].Path != "user" || r.Files[0].Mode != 0o640 || string(r.Files[0].Contents.Reveal()) != "app" {
			t.Errorf("%s: got %v, %v", name, r.Files, err)
		}
	}
	unchanged := fetcher(func(context.Context) (provider.Result, error) { return provider.Result{NotModified: true}, nil }, 0)
	req.Current = nothing
	if r, err := unchanged.Fetch(t.Context(), "store", req); err != nil || !r.NotModified || r.Files != nil {
		t.Errorf("of nothing new: got %v, %v", r, err)
	}
}

func TestAnErrorOfADerivedFileIsNotTheProviders(t *testing.T) {
	value := secret.FromString("canary")
	f := fetcher(func(context.Context) (provider.Result, error) {
		return provider.Result{Files: []provider.File{{Path: "db", Contents: value}}}, nil
	}, 0)
	derive := func(entry string) error {
		r, err := f.Fetch(t.Context(), "store", provider.Request{Parameters: map[string]string{provider.DerivedFilesKey: "- " + entry}})
		if r.Files != nil {
			t.Error("files beside an error")
		}
		return err
	}
	if err := derive("{path: db, from: db}"); provider.KindOf(err) != provider.Invalid || !strings.HasPrefix(fmt.Sprint(err), `derived file "db": the volume has a file of that path already`) {
		t.Errorf("got %v", err)
	}
	if !value.IsEmpty() {
		t.Error("after the error the value was kept")
	}
	if err := derive("{path: x, from: none}"); provider.KindOf(err) != provider.NotFound || !strings.HasPrefix(fmt.Sprint(err), `derived file "x": there is no file "none"`) {
		t.Errorf("got %v", err)
	}
	// What the provider itself does wrong stays the provider's.
	f = fetcher(func(context.Context) (provider.Result, error) {
		return provider.Result{Files: []provider.File{{Path: "../db"}}}, nil
	}, 0)
	if err := derive("{path: x, from: ../db, replace: true}"); provider.KindOf(err) != provider.Internal || !strings.Contains(fmt.Sprint(err), `provider "store": its answer cannot be mounted`) {
		t.Errorf("got %v", err)
	}
}

// written is what a provider has written by itself.
type written struct {
	files []provider.File
	err   error
}

func (written) Open() (string, error)             { return "", nil }
func (w written) Files() ([]provider.File, error) { return w.files, w.err }

func TestWhatAProviderWroteByItselfIsItsAnswer(t *testing.T) {
	f := fetcher(func(context.Context) (provider.Result, error) { return provider.Result{InScratch: true}, nil }, 0)
	r, err := f.Fetch(t.Context(), "store", provider.Request{Scratch: written{files: []provider.File{{Path: "a", Contents: secret.FromString("x")}}}})
	if err != nil || len(r.Files) != 1 || r.Files[0].Path != "a" {
		t.Errorf("got %v, %v", r, err)
	}
	for name, s := range map[string]written{"a path outside": {files: []provider.File{{Path: "../a"}}}, "a folder that cannot be read": {err: errors.New("broken")}} {
		if _, err := f.Fetch(t.Context(), "store", provider.Request{Scratch: s}); err == nil || !strings.Contains(err.Error(), `provider "store"`) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// remote is a provider whose store is somewhere else.
type remote struct{ answering }

func (remote) Store(parameters map[string]string) (string, bool) {
	return "there", parameters["objects"] != "wrong"
}

func TestAStoreThatThrottlesIsAskedAgainForAPodThatStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		f := New(provider.NewRegistry(map[string]provider.Provider{"store": remote{func(context.Context) (provider.Result, error) {
			if asked++; asked < 3 {
				return provider.Result{}, &provider.Error{Kind: provider.Throttled, Object: "object \"of another\"", Err: errors.New("too many requests"), RetryAfter: 10 * time.Second}
			}
			return provider.Result{}, nil
		}}}, nil), 0)
		calm, urgent := provider.Request{}, provider.Request{Urgent: true}
		_, err := f.Fetch(t.Context(), "store", calm)
		if provider.KindOf(err) != provider.Throttled || asked != 1 {
			t.Errorf("got %v after %d asks", err, asked)
		}
		_, err = f.Fetch(t.Context(), "store", calm)
		if provider.KindOf(err) != provider.Throttled || asked != 1 || strings.Contains(err.Error(), "of another") || !strings.Contains(err.Error(), `store "store there"`) {
			t.Errorf("while it is to be left alone: got %v after %d asks", err, asked)
		}
		if got := fmt.Sprint(f.Stores()); got != "[{store there 0 10s 0s}]" {
			t.Errorf("told is %s", got)
		}
		began := time.Now()
		if _, err := f.Fetch(t.Context(), "store", urgent); err != nil || asked != 3 || time.Since(began) < 20*time.Second {
			t.Errorf("a pod that starts: got %v after %d asks and %v", err, asked, time.Since(began))
		}
	})
}

// releasing is a provider that has something to give back to the same store.
type releasing struct {
	remote
	released *int
}

func (releasing) StoreOf(state secret.Value) (string, bool) { return "there", !state.IsEmpty() }

func (r releasing) Release(ctx context.Context, _ secret.Value) error {
	return provider.Call(ctx, func() error { *r.released++; return nil })
}

// Nor is it asked to take something back while it wants to be left alone.
func TestNothingIsGivenBackInAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		released := 0
		throttles := answering(func(context.Context) (provider.Result, error) {
			return provider.Result{}, &provider.Error{Kind: provider.Throttled, Err: errors.New("slow down"), RetryAfter: time.Minute}
		})
		f := New(provider.NewRegistry(map[string]provider.Provider{"store": releasing{remote{throttles}, &released}}, nil), 0)
		kept := secret.FromString("lease")
		if err := f.Release(t.Context(), "store", kept); err != nil || released != 1 {
			t.Errorf("released %d times: %v", released, err)
		}
		if _, err := f.Fetch(t.Context(), "store", provider.Request{}); provider.KindOf(err) != provider.Throttled {
			t.Fatal(err)
		}
		if err := f.Release(t.Context(), "store", kept); provider.KindOf(err) != provider.Throttled || released != 1 {
			t.Errorf("in the pause it was released %d times: %v", released, err)
		}
		time.Sleep(2 * time.Minute)
		if err := f.Release(t.Context(), "store", kept); err != nil || released != 2 {
			t.Errorf("after it it was released %d times: %v", released, err)
		}
		if err := f.Release(t.Context(), "store", secret.Value{}); err != nil || released != 3 {
			t.Errorf("of no store it was released %d times: %v", released, err)
		}
	})
}

func TestAMistakeInAClassAsksNoStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := &provider.Error{Kind: provider.Unavailable, Err: errors.New("connection refused")}
		f := New(provider.NewRegistry(map[string]provider.Provider{"store": remote{func(context.Context) (provider.Result, error) { return provider.Result{}, away }}}, nil), 0)
		for range 20 {
			if _, err := f.Fetch(t.Context(), "store", provider.Request{Parameters: map[string]string{"objects": "wrong"}}); strings.Contains(fmt.Sprint(err), "probed") {
				t.Errorf("a class that asks nobody has %v", err)
			}
		}
		var err error
		for range 20 {
			_, err = f.Fetch(t.Context(), "store", provider.Request{})
		}
		time.Sleep(time.Second)
		if told := f.Stores(); len(told) != 1 || told[0].Silent != time.Second || told[0].Name != "there" {
			t.Errorf("told is %v", told)
		}
		if provider.KindOf(err) != provider.Unavailable || !strings.Contains(err.Error(), "has not answered since") || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAnAttemptHasTheStateThatTheLastOneKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		f := New(provider.NewRegistry(map[string]provider.Provider{"store": keeping{&seen}}, nil), 0)
		stored := ""
		req := provider.Request{Urgent: true, State: secret.FromString("0"), Keep: func(state secret.Value) error {
			stored = string(state.Reveal())
			return nil
		}}
		if _, err := f.Fetch(t.Context(), "store", req); err != nil || fmt.Sprint(seen) != "[0 01 012]" || stored != "0123" {
			t.Errorf("the attempts had %q, stored is %q, %v", seen, stored, err)
		}
	})
}

// keeping is a provider that adds to its state at each attempt, and is throttled
// twice.
type keeping struct{ seen *[]string }

func (keeping) Store(map[string]string) (string, bool) { return "there", true }

func (k keeping) Fetch(_ context.Context, req provider.Request) (provider.Result, error) {
	state := string(req.State.Reveal())
	*k.seen = append(*k.seen, state)
	next := secret.FromString(fmt.Sprint(state, len(*k.seen)))
	defer next.Clear()
	if err := req.Keep(next); err != nil {
		return provider.Result{}, err
	}
	if len(*k.seen) < 3 {
		return provider.Result{}, &provider.Error{Kind: provider.Throttled, Err: errors.New("patience")}
	}
	return provider.Result{}, nil
}
