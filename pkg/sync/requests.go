package sync

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

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
