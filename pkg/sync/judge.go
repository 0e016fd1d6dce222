package sync

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// predecessors are the field managers of those who wrote Secrets before, and do no
// more: what they own too would stay when we let it go.
var predecessors = []string{"csi-secrets-store", "secrets-store-csi-driver", "secrets-store-sync-controller"}

// verdict is what is to be done about a Secret.
type verdict struct {
	write      bool // the type, the data, or labels and annotations
	retype     bool // the type is another
	leftover   []string
	changed    time.Time // for the mark
	generation int64
	newer      *NewerError
	owners     []metav1.OwnerReference // that it lacks
}

// judge compares a Secret with what it is to be. Of two that want different things,
// the one with the higher generation and then the later change prevails, so that
// all that look end up with the same.
func (w *Writer) judge(has *corev1.Secret, want Wanted) (verdict, error) {
	switch {
	case !managed(has), controlled(has, want.Owners):
		return verdict{}, foreign(has)
	case has.DeletionTimestamp != nil:
		return verdict{}, &provider.Error{Kind: provider.Unavailable, Err: errors.New("it is about to be deleted"), Remedy: "it is made again when its finalizers are done"}
	}
	v := verdict{retype: has.Type != corev1.SecretType(want.Type), changed: want.Changed, generation: want.Generation}
	for _, o := range want.Owners {
		if !slices.ContainsFunc(has.OwnerReferences, func(other metav1.OwnerReference) bool { return other.UID == o.UID }) {
			v.owners = append(v.owners, o)
		}
	}
	ours := w.owned(has)
	differs := v.retype
	for key, value := range want.Data {
		if held, ok := has.Data[key]; !ok || !bytes.Equal(held, value.Reveal()) {
			differs = true
		}
	}
	edited := false // by somebody else
	for key := range has.Data {
		if _, ok := want.Data[key]; !ok {
			differs, v.leftover = true, append(v.leftover, key)
		}
		edited = edited || !ours.Has(fieldpath.MakePathOrDie("data", key))
	}

	changed, marked := changedAt(has)
	same := has.Annotations[SourceAnnotation] == want.Source
	generation, _ := strconv.ParseInt(has.Annotations[GenerationAnnotation], 10, 64)
	later := !marked || want.Changed.After(changed) || same && want.Generation > generation
	switch {
	case differs && (later || edited || same && want.Generation == generation && want.Changed.Equal(changed)):
		v.write = true
	case differs:
		v.newer = &NewerError{changed}
	case (inherited(has) || w.relabelled(has, want, ours)) && (later || same && want.Generation == generation):
		v.write = true
		if changed.After(want.Changed) {
			v.changed = changed
		}
	}
	if v.write && has.Immutable != nil && *has.Immutable {
		return verdict{}, &provider.Error{Kind: provider.Invalid, Err: errors.New("it is immutable, and the files have changed"), Remedy: "delete it, so that it is made again"}
	}
	return v, nil
}

// inherited tells whether predecessors own fields of the Secret.
func inherited(has *corev1.Secret) bool {
	return slices.ContainsFunc(has.ManagedFields, func(e metav1.ManagedFieldsEntry) bool { return slices.Contains(predecessors, e.Manager) })
}

// relabelled tells whether labels or annotations differ from what is wanted, or are
// ours and not wanted any more.
func (w *Writer) relabelled(has *corev1.Secret, want Wanted, ours *fieldpath.Set) bool {
	differ := func(field string, has, want map[string]string, but ...string) bool {
		for key, value := range want {
			if held, ok := has[key]; (!ok || held != value) && !slices.Contains(but, key) {
				return true
			}
		}
		for key := range has {
			if _, ok := want[key]; !ok && ours.Has(fieldpath.MakePathOrDie("metadata", field, key)) {
				return true
			}
		}
		return false
	}
	return differ("labels", has.Labels, want.labels()) ||
		differ("annotations", has.Annotations, want.annotations(), ChangedAnnotation, GenerationAnnotation)
}

// owned returns the fields that were applied by this field manager.
func (w *Writer) owned(has *corev1.Secret) *fieldpath.Set {
	ours := &fieldpath.Set{}
	if entry := w.entry(has.ManagedFields); entry.FieldsV1 != nil {
		if err := ours.FromJSON(entry.FieldsV1.GetRawReader()); err != nil {
			return &fieldpath.Set{}
		}
	}
	return ours
}

// writtenAt is when this field manager applied last, see Written.At.
func (w *Writer) writtenAt(fields []metav1.ManagedFieldsEntry) time.Time {
	if entry := w.entry(fields); entry.Time != nil {
		return entry.Time.Time
	}
	return time.Time{}
}

// entry returns that of what this field manager applies, an empty one where it has
// not.
func (w *Writer) entry(fields []metav1.ManagedFieldsEntry) metav1.ManagedFieldsEntry {
	for _, entry := range fields {
		if entry.Manager == w.manager && entry.Operation == metav1.ManagedFieldsOperationApply && entry.Subresource == "" {
			return entry
		}
	}
	return metav1.ManagedFieldsEntry{}
}

// changedAt returns what the mark says, false where there is none.
func changedAt(has *corev1.Secret) (time.Time, bool) {
	at, err := time.Parse(time.RFC3339Nano, has.Annotations[ChangedAnnotation])
	return at, err == nil
}

func managed(has *corev1.Secret) bool { return has.Labels[ManagedLabel] == "true" }

func foreign(has *corev1.Secret) error {
	e := &provider.Error{Kind: provider.Invalid, Err: ErrForeign, Remedy: fmt.Sprintf("choose another name, delete the Secret, or give it the label %s=true to have its contents replaced", ManagedLabel)}
	controller := metav1.GetControllerOfNoCopy(has)
	switch {
	case controller != nil:
		e.Err, e.Remedy = fmt.Errorf("%w: it belongs to %s %q", ErrForeign, controller.Kind, controller.Name), "choose another name"
	case managed(has):
		e.Err, e.Remedy = fmt.Errorf("%w for this class, but for %q", ErrForeign, has.Annotations[SourceAnnotation]), "delete it if nobody needs it"
	}
	return e
}

// controlled tells whether something controls the Secret that is none of the owners,
// such as a SecretSync.
func controlled(has *corev1.Secret, owners []metav1.OwnerReference) bool {
	controller := metav1.GetControllerOfNoCopy(has)
	return controller != nil && !slices.ContainsFunc(owners, func(o metav1.OwnerReference) bool { return o.UID == controller.UID })
}
