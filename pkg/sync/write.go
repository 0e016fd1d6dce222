package sync

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
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

// try returns why the API server would not make such a Secret. It makes none.
func (w *Writer) try(ctx context.Context, want Wanted) error {
	config := want.config("")
	config.Metadata.Name, config.Metadata.GenerateName = "", want.Name+"-"
	defer config.clear()
	body, err := json.Marshal(config)
	if err != nil {
		return err
	}
	err = w.client.Post().Namespace(want.Namespace).Resource("secrets").Param("dryRun", metav1.DryRunAll).
		SetHeader("Accept", kube.OnlyMetadata).Body(body).Do(ctx).Error()
	if !lacksRights(err) {
		return err
	}
	// A right to create Secrets of some names allows none whose name is to be made. Then
	// the type must be all that keeps the Secret of that name from becoming the other.
	named := want.config("")
	defer named.clear()
	if body, err = json.Marshal(named); err != nil {
		return err
	}
	err = w.client.Patch(types.ApplyPatchType).Namespace(want.Namespace).Resource("secrets").Name(want.Name).
		Param("dryRun", metav1.DryRunAll).Param("fieldManager", w.manager).Param("force", "true").
		SetHeader("Accept", kube.OnlyMetadata).Body(body).Do(ctx).Error()
	if causes := causesOf(err); len(causes) == 1 && causes[0].Field == "type" {
		return nil
	}
	return err
}

// lacksRights tells whether an error is that of RBAC.
func lacksRights(err error) bool {
	var status apierrors.APIStatus
	return apierrors.IsForbidden(err) && errors.As(err, &status) && strings.Contains(status.Status().Message, "is forbidden: User ")
}

// causesOf returns which fields are not accepted, and why.
func causesOf(err error) []metav1.StatusCause {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return nil
	}
	return status.Status().Details.Causes
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

func (w Wanted) labels() map[string]string {
	return with(w.Labels, map[string]string{ManagedLabel: "true"})
}

func (w Wanted) annotations() map[string]string {
	return with(w.Annotations, map[string]string{
		SourceAnnotation: w.Source, GenerationAnnotation: strconv.FormatInt(w.Generation, 10), ChangedAnnotation: w.Changed.UTC().Format(time.RFC3339Nano),
	})
}

func with(m, more map[string]string) map[string]string {
	all := make(map[string]string, len(m)+len(more))
	maps.Copy(all, m)
	maps.Copy(all, more)
	return all
}

// get returns a Secret, nil where there is none.
func (w *Writer) get(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	var has corev1.Secret
	err := w.client.Get().Namespace(namespace).Resource("secrets").Name(name).Do(ctx).Into(&has)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return &has, err
}

// wipe overwrites what was read of a Secret.
func wipe(has *corev1.Secret) {
	for _, value := range has.Data {
		clear(value)
	}
}

// applied is what is sent of a Secret.
type applied struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        appliedMetadata   `json:"metadata"`
	Type            string            `json:"type"`
	Data            map[string][]byte `json:"data"`
}

type appliedMetadata struct {
	Namespace       string            `json:"namespace"`
	Name            string            `json:"name,omitempty"`
	GenerateName    string            `json:"generateName,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels"`
	Annotations     map[string]string `json:"annotations"`
}

// config returns what is sent of the Secret, all but its owners.
func (w Wanted) config(version string) applied {
	c := applied{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		Metadata: appliedMetadata{Namespace: w.Namespace, Name: w.Name, ResourceVersion: version, Labels: w.labels(), Annotations: w.annotations()},
		Type:     w.Type, Data: make(map[string][]byte, len(w.Data)),
	}
	for key, value := range w.Data {
		c.Data[key] = append([]byte{}, value.Reveal()...) // nil would be no data
	}
	return c
}

func (c applied) clear() {
	for _, value := range c.Data {
		clear(value)
	}
}

// apply writes all of a Secret but its owners, if it is of that version still.
func (w *Writer) apply(ctx context.Context, want Wanted, version string) (*metav1.PartialObjectMetadata, error) {
	config := want.config(version)
	defer config.clear()
	return w.patch(ctx, types.ApplyPatchType, want.Namespace, want.Name, config)
}

// predecessors are the field managers of those who wrote Secrets before, and do no
// more: what they own too would stay when we let it go.
var predecessors = []string{"secrets-store-csi-driver", "secrets-store-sync-controller"}

// drop takes keys out of a Secret that was applied: an apply leaves those that somebody
// else has put there, or has too. What predecessors own is theirs no longer then.
func (w *Writer) drop(ctx context.Context, has *corev1.Secret, applied *metav1.PartialObjectMetadata, keys []string) error {
	metadata, gone := map[string]any{"resourceVersion": applied.ResourceVersion}, map[string]any{}
	ours, theirs, left := w.owned(has), &fieldpath.Set{}, []metav1.ManagedFieldsEntry{}
	for _, entry := range applied.ManagedFields {
		if slices.Contains(predecessors, entry.Manager) {
			metadata["managedFields"] = &left
		} else {
			left = append(left, entry)
		}
		if entry.FieldsV1 != nil && (entry.Manager != w.manager || entry.Operation != metav1.ManagedFieldsOperationApply) {
			var fields fieldpath.Set
			if err := fields.FromJSON(entry.FieldsV1.GetRawReader()); err == nil {
				theirs = theirs.Union(&fields)
			}
		}
	}
	for _, key := range keys {
		if path := fieldpath.MakePathOrDie("data", key); !ours.Has(path) || theirs.Has(path) {
			gone[key] = nil
		}
	}
	if len(gone) == 0 && len(metadata) == 1 {
		return nil
	}
	_, err := w.patch(ctx, types.MergePatchType, has.Namespace, has.Name, map[string]any{"metadata": metadata, "data": gone})
	return err
}

// own adds owners to the Secret of that UID. They are merged by their UIDs, so that
// writers need not know of each other's; an apply would replace its own list.
func (w *Writer) own(ctx context.Context, want Wanted, uid types.UID, owners []metav1.OwnerReference) error {
	_, err := w.patch(ctx, types.StrategicMergePatchType, want.Namespace, want.Name, map[string]any{"metadata": map[string]any{"uid": uid, "ownerReferences": owners}})
	if apierrors.IsNotFound(err) {
		return errVanished
	}
	return err
}

func (w *Writer) patch(ctx context.Context, kind types.PatchType, namespace, name string, patch any) (*metav1.PartialObjectMetadata, error) {
	body, err := json.Marshal(patch)
	if err != nil {
		return nil, err
	}
	request := w.client.Patch(kind).Namespace(namespace).Resource("secrets").Name(name).Param("fieldManager", w.manager)
	if kind == types.ApplyPatchType {
		request.Param("force", "true")
	}
	var written metav1.PartialObjectMetadata
	err = request.SetHeader("Accept", kube.OnlyMetadata).Body(body).Do(ctx).Into(&written)
	return &written, err
}

// delete deletes a Secret if nobody has written it since it was read.
func (w *Writer) delete(ctx context.Context, has *corev1.Secret) error {
	err := w.client.Delete().Namespace(has.Namespace).Resource("secrets").Name(has.Name).
		Body(&metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &has.UID, ResourceVersion: &has.ResourceVersion}}).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// explain makes an error that a person can use of what a request has come to. What
// the API server says may quote a value: its words are not passed on.
func (w *Writer) explain(namespace, name string, err error) error {
	var known *provider.Error
	var newer *NewerError
	var status apierrors.APIStatus
	var transport *url.Error
	e := &provider.Error{Kind: provider.Unavailable, Remedy: "it is tried again"}
	switch {
	case err == nil, errors.As(err, &newer):
		return err
	case errors.As(err, &known):
		*e = *known
	case errors.As(err, &status):
		e = refused(namespace, status.Status(), err)
	case errors.As(err, &transport):
		e.Err = transport
	case errors.Is(err, errVanished), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e.Err = err
	default:
		e.Err = errors.New("the answer of the API server cannot be read")
	}
	e.Object = fmt.Sprintf("Secret %s/%s", namespace, name)
	return e
}

// refused tells what an error status means.
func refused(namespace string, status metav1.Status, err error) *provider.Error {
	e := &provider.Error{Kind: provider.Unavailable, Remedy: "it is tried again"}
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err):
		e.Kind, e.Err, e.Remedy = provider.NotFound, errors.New("the namespace is gone, or about to be"), ""
	case apierrors.IsForbidden(err) && strings.Contains(status.Message, "exceeded quota"):
		e.Kind, e.Err = provider.Denied, errors.New("the namespace's quota does not allow it")
		e.Remedy = "raise the ResourceQuota, or delete what nobody needs"
	case lacksRights(err):
		e.Kind, e.Err = provider.Denied, errors.New("this program may not read and write it")
		e.Remedy = fmt.Sprintf("let it get, create, patch and delete secrets in the namespace %q (chart: syncSecret.enabled and syncSecret.namespaces; for a SecretSync controller.secretSyncs.namespaces)", namespace)
	case apierrors.IsForbidden(err):
		e.Kind, e.Err = provider.Denied, errors.New("an admission policy of the cluster refuses it")
		e.Remedy = "have the policy allow it, or ask for a Secret that it allows"
	case apierrors.IsInvalid(err):
		var fields []string
		for _, cause := range causesOf(err) {
			fields = append(fields, fmt.Sprintf("%s (%s)", cause.Field, cause.Type))
		}
		e.Kind, e.Err = provider.Invalid, fmt.Errorf("the API server does not accept it: %s", strings.Join(fields, ", "))
		e.Remedy = "correct the type, the data, the labels or the annotations where they are asked for"
	case apierrors.IsConflict(err):
		e.Err = errors.New("others write it all the time")
	case apierrors.IsTooManyRequests(err):
		e.Kind, e.Err = provider.Throttled, errors.New("the API server is busy")
	default:
		e.Err = fmt.Errorf("the API server refuses it: %s (code %d)", status.Reason, status.Code)
	}
	return e
}
