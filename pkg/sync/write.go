package sync

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
)

const (
	// ManagedLabel, with the value "true", marks the Secrets that may be written. It
	// is that of secrets-store-csi-driver, whose Secrets so are taken over.
	ManagedLabel = "secrets-store.csi.k8s.io/managed"
	// SourceAnnotation is Wanted.Source of the last write, GenerationAnnotation its
	// Generation, and ChangedAnnotation its Changed, as RFC 3339 has times.
	SourceAnnotation     = class.Group + "/class"
	GenerationAnnotation = class.Group + "/class-generation"
	ChangedAnnotation    = class.Group + "/changed-at"
)

// ErrForeign says that a Secret of the name exists that is not ours to write.
var ErrForeign = errors.New("it exists, and csi-secrets does not manage it")

// NewerError says that the Secret has other contents, which are newer than those
// wanted.
type NewerError struct {
	// Changed is since when they are, by the clock of whoever wrote them.
	Changed time.Time
}

func (e *NewerError) Error() string {
	return "the Secret has newer contents, of " + e.Changed.Format(time.RFC3339)
}

const (
	// Writes of others between a read and a write are taken in good part so often.
	attempts = 6
	// firstPause and lastPause are the bounds of the time between attempts.
	firstPause, lastPause = 20 * time.Millisecond, time.Second
)

// Writer writes Secrets. It needs the rights to get, create, patch and delete
// secrets in the namespaces where it is used, and is safe for concurrent use.
type Writer struct {
	client  rest.Interface
	manager string
}

// NewWriter returns a Writer that owns its fields as fieldManager: all writers of the
// same Secrets have the same.
func NewWriter(api *kube.API, fieldManager string) (*Writer, error) {
	return newWriter(api.Client, fieldManager)
}

// clients makes those of API groups, see kube.API.Client.
type clients func(schema.GroupVersion, func(*runtime.Scheme)) (rest.Interface, error)

func newWriter(of clients, fieldManager string) (*Writer, error) {
	client, err := of(corev1.SchemeGroupVersion, func(s *runtime.Scheme) {
		s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Secret{})
		kube.AddMetadata(s)
	})
	if err != nil {
		return nil, err
	}
	return &Writer{client, fieldManager}, nil
}

// Written is what Ensure has come to.
type Written struct {
	// Wrote tells whether anything was written.
	Wrote bool
	// At is when the Secret became what it is, but for what others wrote, by the clock
	// of the API server and in whole seconds; zero where that is not known.
	At time.Time
}

// Ensure makes the Secret as it is wanted, and writes nothing if nothing differs.
// Labels, annotations and owners of others stay. Data
// is all that is wanted, or what newer Data somebody else has written: then the
// error is a *NewerError, and the owners are right nevertheless.
//
// Other errors are *provider.Error and quote no value. They wrap ErrForeign where a
// Secret of the name does not have ManagedLabel, or has a controller that is none of
// the owners; it is left alone.
//
// Two that create one Secret at the same time may leave the older Data: after a
// write, callers look again a few seconds later.
func (w *Writer) Ensure(ctx context.Context, want Wanted) (done Written, err error) {
	err = w.repeat(ctx, want.Namespace, want.Name, func(ctx context.Context) error {
		return w.ensure(ctx, want, &done)
	})
	return done, err
}

// Standing is how a Secret compares with what it is to be.
type Standing struct {
	// Holds says that Ensure would do nothing and return no error.
	Holds bool
	// Owned says that the Secret is there and has all its owners.
	Owned bool
	// Since is when the Data became what it is, by the clock of whoever wrote it; zero
	// where that is not known.
	Since time.Time
	// WrittenAt is Written.At.
	WrittenAt time.Time
}

// Look reads the Secret and tells how it stands. Errors are those of Ensure.
func (w *Writer) Look(ctx context.Context, want Wanted) (st Standing, err error) {
	err = w.repeat(ctx, want.Namespace, want.Name, func(ctx context.Context) error {
		has, err := w.get(ctx, want.Namespace, want.Name)
		if err != nil || has == nil {
			return err
		}
		defer wipe(has)
		v, err := w.judge(has, want)
		if err != nil {
			return err
		}
		st.Owned = len(v.owners) == 0
		st.Holds = st.Owned && !v.write && v.newer == nil
		st.Since, _ = changedAt(has)
		st.WrittenAt = w.writtenAt(has.ManagedFields)
		return nil
	})
	return st, err
}

// Remove deletes the Secret that source wanted last. It returns nil where there is
// none, and errors as Ensure does: ErrForeign too where another source has written it
// since.
func (w *Writer) Remove(ctx context.Context, namespace, name, source string) error {
	return w.repeat(ctx, namespace, name, func(ctx context.Context) error {
		has, err := w.get(ctx, namespace, name)
		switch {
		case err != nil || has == nil:
			return err
		case !managed(has) || has.Annotations[SourceAnnotation] != source:
			return foreign(has)
		}
		return w.delete(ctx, has)
	})
}

// repeat calls do until there is no conflict with the writes of others. (Neither what
// is sent nor what is answered is logged, at whatever level: it has values.)
func (w *Writer) repeat(ctx context.Context, namespace, name string, do func(context.Context) error) error {
	quiet := klog.NewContext(ctx, klog.Logger{})
	for n, pause := 1, firstPause; ; n, pause = n+1, min(2*pause, lastPause) {
		err := do(quiet)
		if n == attempts || !apierrors.IsConflict(err) && !errors.Is(err, errVanished) {
			return w.explain(namespace, name, err)
		}
		select {
		case <-ctx.Done():
			return w.explain(namespace, name, ctx.Err())
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// errVanished says that the Secret was deleted after it had been read.
var errVanished = errors.New("the Secret was deleted meanwhile")

func (w *Writer) ensure(ctx context.Context, want Wanted, done *Written) error {
	has, err := w.get(ctx, want.Namespace, want.Name)
	if err != nil {
		return err
	}
	if has == nil {
		return w.create(ctx, want, done)
	}
	defer wipe(has)
	v, err := w.judge(has, want)
	if err != nil {
		return err
	}
	done.At = w.writtenAt(has.ManagedFields)
	if v.write && v.retype {
		// The type of a Secret cannot change.
		if err := w.try(ctx, want); err != nil {
			return err
		}
		if err := w.delete(ctx, has); err != nil {
			return err
		}
		done.Wrote = true
		want.Owners = append(slices.Clone(has.OwnerReferences), v.owners...)
		return w.create(ctx, want, done)
	}
	if v.write {
		want.Changed, want.Generation = v.changed, v.generation
		version, err := w.apply(ctx, want, has.ResourceVersion)
		if err != nil {
			return err
		}
		done.Wrote, done.At = true, w.writtenAt(version.ManagedFields)
		if err := w.drop(ctx, has, version, v.leftover); err != nil {
			return err
		}
	}
	if len(v.owners) > 0 {
		if err := w.own(ctx, want, has.UID, v.owners); err != nil {
			return err
		}
		done.Wrote = true
	}
	if v.newer != nil {
		return v.newer
	}
	return nil
}

func (w *Writer) create(ctx context.Context, want Wanted, done *Written) error {
	made, err := w.apply(ctx, want, "")
	if err != nil {
		return err
	}
	done.Wrote, done.At = true, w.writtenAt(made.ManagedFields)
	if len(want.Owners) == 0 {
		return nil
	}
	return w.own(ctx, want, made.UID, want.Owners)
}
