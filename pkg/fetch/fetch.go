// Package fetch stands between a volume and the secret stores: it decides how
// much is asked of a store, lets nothing pass that no volume could hold, and
// derives of what passes the files that the class asks for beside it.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/derive"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/sealed"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// DefaultTimeout bounds one fetch. It ends before kubelet's own two minutes for
// a publish, so that kubelet gets to hear which store did not answer.
const DefaultTimeout = 110 * time.Second

// Recorder counts answers of providers, volumes that shared one, and volumes that
// got one which was kept sealed. An errorType is empty for an answer that brought
// files.
type Recorder interface {
	Fetched(provider, errorType string, took time.Duration)
	Shared(provider string)
	StartedSealed(provider string)
}

// Fetcher fetches sets of files from providers. It is safe for concurrent use.
type Fetcher struct {
	// Recorder may be nil; it is set before use.
	Recorder Recorder
	// Sealed keeps answers for pods that start while their store is away. It may be
	// nil; it is set before use.
	Sealed *sealed.Cache

	providers *provider.Registry
	timeout   time.Duration
	shares    shares
	lessons   lessons
	governor  governor
}

// New returns a Fetcher that finds providers in registry and gives each fetch
// at most timeout, DefaultTimeout where it is zero.
func New(registry *provider.Registry, timeout time.Duration) *Fetcher {
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	return &Fetcher{providers: registry, timeout: timeout}
}

// Provider returns the provider of that name.
func (f *Fetcher) Provider(name string) (provider.Provider, error) { return f.providers.Get(name) }

// Fetch asks the provider of that name for req and checks its answer: paths,
// modes, duplicates, and that no two files exclude each other. Then it makes the
// class's derived files. A panic of the provider is an error of kind Internal,
// and ends nothing but this call. The caller clears the result.
func (f *Fetcher) Fetch(ctx context.Context, name string, req provider.Request) (provider.Result, error) {
	p, err := f.providers.Get(name)
	if err != nil {
		return provider.Result{}, err
	}
	result, err := f.inTime(ctx, func(ctx context.Context) (provider.Result, error) { return f.sealing(ctx, name, p, req) })
	if err != nil {
		return provider.Result{}, named(name, err)
	}
	if result.NotModified {
		if req.Current == nil {
			return provider.Result{}, answer(name, errors.New("it says \"not modified\" where nothing of this class is mounted"))
		}
		return result, nil
	}
	if result.InScratch {
		result.Clear() // it says that it has written them
		if result.Files, err = req.Scratch.Files(); err != nil {
			return provider.Result{}, named(name, err)
		}
	}
	if err := check(result); err != nil {
		result.Clear()
		return provider.Result{}, answer(name, err)
	}
	var files []provider.File
	err = provider.Guarded(func() (err error) {
		files, err = derive.Apply(req.Parameters, result.Files, req.Mode)
		return err
	})
	if err != nil {
		result.Clear()
		return provider.Result{}, err
	}
	result.Files = files
	return result, nil
}

// classAttribute is the volume's attribute that names its class.
const classAttribute = "secretProviderClass"

// answer asks the provider, or shares the answer to another volume.
func (f *Fetcher) answer(ctx context.Context, name string, p provider.Provider, req provider.Request) (provider.Result, error) {
	ask := func(ctx context.Context) (result provider.Result, err error) {
		req, forget := remembering(req)
		defer forget()
		once := func(ctx context.Context) error {
			began := time.Now()
			err := provider.Guarded(func() (err error) {
				result, err = p.Fetch(ctx, *req)
				return err
			})
			f.record(name, err, time.Since(began))
			return err
		}
		store, governed := storeOf(p, name, *req)
		if !governed {
			err = once(ctx)
			return result, err
		}
		class := req.Pod.Namespace + "/" + req.Attributes[classAttribute]
		err = f.governor.do(ctx, work{store: store, class: class, urgent: req.Urgent}, once)
		return result, err
	}
	sharer, ok := p.(provider.Sharer)
	if !ok {
		return ask(ctx)
	}
	identity, ok := identify(ctx, sharer, req)
	if !ok {
		finish, waited := f.lessons.begin(ctx, login.Key(append(asked(name, "", req), req.Pod.Namespace, req.Pod.ServiceAccount)...))
		if waited {
			identity, ok = identify(ctx, sharer, req)
		}
		if !ok { // it is the volume's own, or a mistake that the provider tells of
			result, err := ask(ctx)
			finish(err == nil)
			return result, err
		}
	}
	result, joined, err := f.shares.get(ctx, shareKey(name, identity, req), req.Since, func(ctx context.Context) (provider.Result, error) {
		ctx, cancel := context.WithTimeout(ctx, f.timeout)
		defer cancel()
		return ask(ctx)
	})
	if joined && err == nil && f.Recorder != nil {
		f.Recorder.Shared(name)
	}
	return result, err
}

// storeOf names the store that req asks, false for one that is not governed.
func storeOf(p provider.Provider, name string, req provider.Request) (store string, governed bool) {
	if located, ok := p.(provider.Located); ok {
		store, governed = located.Store(req.Parameters)
	}
	return name + storeSeparator + store, governed
}

// remembering returns req such that an attempt which follows another has the state
// that this one kept: else what was made by then would be lost.
func remembering(req provider.Request) (_ *provider.Request, forget func()) {
	var kept secret.Value
	if keep := req.Keep; keep != nil {
		state := &req.State
		req.Keep = func(next secret.Value) error {
			if err := keep(next); err != nil {
				return err
			}
			kept.Clear()
			kept = secret.New(slices.Clone(next.Reveal()))
			*state = kept
			return nil
		}
	}
	return &req, func() { kept.Clear() }
}

// storeSeparator stands between a provider's name and that of its store.
const storeSeparator = " "

// Store is a store that makes fetches wait.
type Store struct {
	Provider, Name string
	Waiting        int           // fetches
	Paused         time.Duration // that it is left alone still, as it throttles
	Silent         time.Duration // that it has not answered
}

// Stores returns those that make fetches wait.
func (f *Fetcher) Stores() []Store { return f.governor.waiting(time.Now()) }

// named says of which provider err speaks, where it does not.
func named(name string, err error) error {
	whose := fmt.Sprintf("provider %q", name)
	if err == nil || strings.HasPrefix(err.Error(), whose) {
		return err
	}
	return fmt.Errorf("%s: %w", whose, err)
}

// Release has the provider of that name give back what it kept of a volume that
// is gone. One that is not there any more, or keeps nothing, has nothing to give. It
// does not hurry: a store that throttles, or is known not to answer, is not asked.
func (f *Fetcher) Release(ctx context.Context, name string, state secret.Value) error {
	p, err := f.providers.Get(name)
	if err != nil {
		return nil
	}
	releaser, ok := p.(provider.Releaser)
	if !ok {
		return nil
	}
	release := func(ctx context.Context) error {
		return provider.Guarded(func() error { return releaser.Release(ctx, state) })
	}
	var store string
	governed := false
	if err := provider.Guarded(func() error { store, governed = releaser.StoreOf(state); return nil }); err != nil || !governed {
		return named(name, release(ctx))
	}
	return named(name, f.governor.do(ctx, work{store: name + storeSeparator + store}, release))
}

func (f *Fetcher) record(name string, err error, took time.Duration) {
	if f.Recorder == nil {
		return
	}
	errorType := ""
	if err != nil {
		errorType = provider.KindOf(err).String()
	}
	f.Recorder.Fetched(name, errorType, took)
}

// inTime asks for at most as long as a fetch may take, and says of an answer that
// does not come that it did not.
func (f *Fetcher) inTime(ctx context.Context, ask func(ctx context.Context) (provider.Result, error)) (provider.Result, error) {
	limited, cancel := f.limit(ctx)
	defer cancel()
	result, err := ask(limited)
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer in time: %w", err)
	}
	return result, err
}

// limit ends a fetch a little before its caller gives up, so that the caller
// hears the reason.
func (f *Fetcher) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	timeout := f.timeout
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		timeout = min(timeout, left-min(left/20, 2*time.Second))
	}
	return context.WithTimeout(ctx, timeout)
}

func check(result provider.Result) error {
	paths := make([]string, 0, len(result.Files))
	for _, f := range result.Files {
		if err := provider.CheckPath(f.Path); err != nil {
			return err
		}
		if f.Mode&^0o777 != 0 {
			return fmt.Errorf("the mode %#o of file %q is not from 0 to 0777", uint32(f.Mode), f.Path)
		}
		paths = append(paths, f.Path)
	}
	return provider.CheckPaths(paths)
}

func answer(name string, err error) error {
	return &provider.Error{Kind: provider.Internal, Object: fmt.Sprintf("provider %q", name), Op: "its answer cannot be mounted", Err: err}
}
