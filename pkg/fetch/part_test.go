package fetch

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// listing is sharing whose objects are a list.
type listing struct{ *sharing }

func (listing) Validate(map[string]string) []provider.Problem { return nil }

const often = 10 * time.Second

// twoObjects asks for one of two objects, the file of which is a.
func twoObjects() provider.Request {
	return provider.Request{
		Parameters: map[string]string{"objects": "- {objectName: a, rotationInterval: 10s}\n- objectName: b", "derivedFiles": "- {path: c, from: [a, b], bundle: pem}"},
		Current:    func(path string) (secret.Value, bool) { return secret.FromString("held"), path == "a" },
		Key:        secret.FromString("key"),
	}
}

func TestVolumesShareTheAnswerToAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sharing{}
		f := New(provider.NewRegistry(map[string]provider.Provider{"store": listing{s}}, nil), 0)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if mark, err := f.Part(t.Context(), "store", twoObjects(), provider.Due{often}); mark != "" || err != nil {
					t.Errorf("another value than that which is mounted: got %q, %v", mark, err)
				}
			})
		}
		all.Wait()
		if asked, _ := s.counts(); asked != 1 {
			t.Errorf("the store was asked %d times", asked)
		}
	})
}

// parted is a provider of one file, with contents and a version.
type parted struct {
	contents, version, path string
	err                     error
	asked                   *int
}

func (p parted) Validate(map[string]string) []provider.Problem { return nil }

func (p parted) Fetch(_ context.Context, req provider.Request) (provider.Result, error) {
	*p.asked++
	if req.Keep != nil || req.Parameters[provider.DerivedFilesKey] != "" {
		return provider.Result{}, errors.New("a part keeps nothing, and nothing is derived of it")
	}
	return provider.Result{
		Files:    []provider.File{{Path: p.path, Mode: 0o600, Contents: secret.FromString(p.contents)}},
		Versions: []provider.ObjectVersion{{ID: "a", Version: p.version}},
	}, p.err
}

func TestTheMarkOfAPart(t *testing.T) {
	asked := 0
	mark := func(p provider.Provider, change func(*provider.Request), due provider.Due) (string, error) {
		asked = 0
		req := twoObjects()
		req.Keep = func(secret.Value) error { return nil }
		change(&req)
		return New(provider.NewRegistry(map[string]provider.Provider{"store": p}, nil), 0).Part(t.Context(), "store", req, due)
	}
	same, due := func(*provider.Request) {}, provider.Due{often}
	held := parted{contents: "held", version: "1", path: "a", asked: &asked}
	first, err := mark(held, same, due)
	if first == "" || err != nil || asked != 1 {
		t.Fatalf("got %q, %v", first, err)
	}
	if again, err := mark(held, same, due); again != first || err != nil {
		t.Errorf("got %q and %q, %v", first, again, err)
	}
	newer := held
	newer.version = "2"
	if other, err := mark(newer, same, due); other == "" || other == first || err != nil {
		t.Errorf("another version: got %q, %v", other, err)
	}
	for name, change := range map[string]func(p *parted){
		"other contents": func(p *parted) { p.contents = "other" }, "another file": func(p *parted) { p.path = "b" },
	} {
		p := held
		change(&p)
		if other, err := mark(p, same, due); other != "" || err != nil {
			t.Errorf("%s: got %q, %v", name, other, err)
		}
	}
	for name, change := range map[string]func(req *provider.Request){
		"nothing mounted": func(req *provider.Request) { req.Current = nil },
		"a lease":         func(req *provider.Request) { req.State = secret.FromString("x") },
		"a sealed answer": func(req *provider.Request) { req.Sealable = time.Hour },
	} {
		if got, err := mark(held, change, due); got != "" || err != nil || asked > 0 {
			t.Errorf("%s: got %q, %v, asked %d times", name, got, err, asked)
		}
	}
	if got, err := mark(held, same, nil); got != "" || err != nil || asked > 0 {
		t.Errorf("all: got %q, %v", got, err)
	}
	external := answering(func(context.Context) (provider.Result, error) { panic("asked") })
	if got, err := mark(external, same, due); got != "" || err != nil {
		t.Errorf("a provider whose classes nobody can read: got %q, %v", got, err)
	}
	away := held
	away.err = &provider.Error{Kind: provider.Unavailable, Err: errors.New("away")}
	if got, err := mark(away, same, due); got != "" || provider.KindOf(err) != provider.Unavailable {
		t.Errorf("a store that is away: got %q, %v", got, err)
	}
}
