package fetch

import (
	"context"
	"errors"
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

func TestNotModifiedNeedsSomethingMounted(t *testing.T) {
	f := fetcher(func(context.Context) (provider.Result, error) { return provider.Result{NotModified: true}, nil }, 0)
	if _, err := f.Fetch(t.Context(), "store", provider.Request{}); err == nil {
		t.Error("a first fetch was answered without files")
	}
	if r, err := f.Fetch(t.Context(), "store", provider.Request{Mounted: []provider.ObjectVersion{{ID: "a"}}}); err != nil || !r.NotModified {
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
