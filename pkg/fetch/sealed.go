package fetch

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/sealed"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// sealedPatience is how long a pod that starts waits for its store where a sealed
	// answer is kept.
	sealedPatience = 10 * time.Second
	// sealedRefresh is after what time a volume that has a sealed answer is refreshed.
	sealedRefresh = 30 * time.Second
)

// sealing is answer, for classes whose answers may be kept sealed. It keeps what the
// store gives to an identity that can be named, it forgets what the store refuses,
// and it returns what is kept to a pod that starts where the store is away.
func (f *Fetcher) sealing(ctx context.Context, name string, p provider.Provider, req provider.Request) (provider.Result, error) {
	sharer, ok := p.(provider.Sharer)
	if f.Sealed == nil || req.Sealable <= 0 || !ok {
		return f.answer(ctx, name, p, req)
	}
	entry, known := sealedName(ctx, name, sharer, req)
	if known && req.Current != nil && f.Sealed.Due(entry, req.Sealable) {
		req.Current = nil // so that the answer is whole
	}
	var keeps atomic.Bool // something that is this volume's own
	if keep := req.Keep; keep != nil {
		req.Keep = func(state secret.Value) error {
			if !state.IsEmpty() {
				keeps.Store(true)
			}
			return keep(state)
		}
	}
	earliest := time.Now().Add(-f.timeout - sharedFor) // an answer may be another volume's
	if req.Since.After(earliest) {
		earliest = req.Since
	}
	asking, cancel := ctx, func() {}
	kept := f.keptFor(name, p, req, entry, known)
	patient := req
	if req.Starting && kept != nil {
		asking, cancel = context.WithTimeout(ctx, sealedPatience)
		// Of those that start while the store is known not to answer, only the one waits
		// that finds out whether it does again.
		req.Urgent = req.Urgent && !f.silent(p, name, req)
	}
	defer cancel()
	result, err := f.answer(asking, name, p, req)
	logger := klog.FromContext(ctx).WithValues("provider", name)
	if refuses(err) {
		if err := f.Sealed.Remove(entry); err != nil {
			logger.Error(err, "A sealed answer that the store refuses now is left on the disk; it is not used")
		}
	}
	// What the provider learned by asking may have changed whom it takes the pod for.
	after, still := sealedName(ctx, name, sharer, req)
	switch {
	case keeps.Load(): // the answer is this volume's own
	case err == nil:
		if !still || after != entry {
			break // as it was
		}
		if result.NotModified || result.InScratch || check(result) != nil {
			break
		}
		if req.Current != nil {
			// A part of it may be what the volume had: whoever may see versions may be
			// denied values. That proves nothing anew.
			earliest = time.Time{}
		}
		if err := f.Sealed.Seal(entry, result, earliest, req.Sealable); err != nil {
			logger.Error(err, "An answer is not kept sealed")
		}
	case req.Starting && kept != nil && away(err, false):
		if again := f.keptFor(name, p, req, after, still); again == nil || *again != *kept {
			break
		}
		found, openErr := f.Sealed.Open(*kept)
		if openErr == nil {
			logger.Info("A pod starts with a sealed answer, as its store gives none", "age", time.Since(found.SealedAt).Round(time.Second).String(), "sealedAt", stamp(found.SealedAt), "reason", err.Error())
			if f.Recorder != nil {
				f.Recorder.StartedSealed(name)
			}
			found.RefreshAt = time.Now().Add(sealedRefresh)
			return found, nil
		}
		if !errors.Is(openErr, sealed.ErrNone) {
			logger.Error(openErr, "A sealed answer cannot be used")
		}
		if patient.Urgent && !req.Urgent {
			return f.answer(ctx, name, p, patient) // the store is worth the wait after all
		}
	}
	if errors.Is(err, context.DeadlineExceeded) && asking.Err() != nil && ctx.Err() == nil {
		return f.sealing(ctx, name, p, patient) // nothing is kept after all: the store is worth the wait
	}
	return result, err
}

// silent reports whether the store of req is known not to answer.
func (f *Fetcher) silent(p provider.Provider, name string, req provider.Request) bool {
	store, governed := storeOf(p, name, req)
	return governed && f.governor.silent(store)
}

// keptFor returns the name of an answer that is kept and may be given to who asks,
// nil where there is none.
func (f *Fetcher) keptFor(name string, p provider.Provider, req provider.Request, entry sealed.Name, known bool) *sealed.Name {
	if known && f.Sealed.Has(entry) {
		return &entry
	}
	recognizer, ok := p.(provider.Recognizer)
	if !ok || !req.State.IsEmpty() {
		return nil
	}
	var keys []string
	err := provider.Guarded(func() error {
		keys = recognizer.Recognize(req)
		return nil
	})
	if err != nil {
		return nil
	}
	for _, key := range keys {
		entry.Answer = login.Key(asked(name, key, req)...)
		if f.Sealed.Has(entry) {
			return &entry
		}
	}
	return nil
}

// sealedName names the answer to req; false where it is the volume's own.
func sealedName(ctx context.Context, name string, sharer provider.Sharer, req provider.Request) (n sealed.Name, known bool) {
	n.Owner = login.Key(name, req.Pod.Namespace, req.Attributes[classAttribute], req.Pod.ServiceAccount)
	if !req.State.IsEmpty() {
		return n, false
	}
	var identity string
	err := provider.Guarded(func() error {
		identity, known = sharer.Identity(ctx, req)
		return nil
	})
	if err != nil || !known {
		return n, false
	}
	n.Answer = login.Key(asked(name, identity, req)...)
	return n, true
}

// refuses reports whether err says, of whatever object, that it is not there or that
// the identity may not have it.
func refuses(err error) bool {
	switch e := err.(type) {
	case *provider.Error:
		return e.Kind == provider.Denied || e.Kind == provider.NotFound || refuses(e.Err)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), refuses)
	case interface{ Unwrap() error }:
		return refuses(e.Unwrap())
	}
	return false
}

// away reports whether err says nothing but that the store throttles or does not
// answer, in each of its parts. known says that what wraps err has said so.
func away(err error, known bool) bool {
	switch e := err.(type) {
	case *provider.Error:
		return (e.Kind == provider.Throttled || e.Kind == provider.Unavailable) && away(e.Err, true)
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(e.Unwrap(), func(err error) bool { return !away(err, known) })
	case interface{ Unwrap() error }:
		return away(e.Unwrap(), known)
	}
	return known || err == context.DeadlineExceeded
}
