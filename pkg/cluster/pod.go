package cluster

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// onlyMetadata has the API server leave out all that a pod runs.
const onlyMetadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

// Annotations reads those of pods. It is safe for concurrent use.
type Annotations struct{ client rest.Interface }

// NewAnnotations returns a reader that asks with the driver's own rights: get on
// pods.
func NewAnnotations(api *kube.API) (*Annotations, error) {
	client, err := api.Client(corev1.SchemeGroupVersion, func(s *runtime.Scheme) {
		s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Pod{})
		s.AddKnownTypes(metav1.SchemeGroupVersion, &metav1.PartialObjectMetadata{})
	})
	if err != nil {
		return nil, err
	}
	return &Annotations{client}, nil
}

// Of returns the annotations of a pod. Errors carry a kind.
func (a *Annotations) Of(ctx context.Context, pod provider.Pod) (map[string]string, error) {
	failure := &provider.Error{Kind: provider.Unavailable, Op: fmt.Sprintf("read the annotations of pod %s/%s", pod.Namespace, pod.Name)}
	var found metav1.PartialObjectMetadata
	err := a.client.Get().Namespace(pod.Namespace).Resource("pods").Name(pod.Name).SetHeader("Accept", onlyMetadata).Do(ctx).Into(&found)
	switch {
	case apierrors.IsForbidden(err):
		failure.Kind, failure.Err, failure.Remedy = provider.Denied, errors.New("the driver may not read pods"), "let it (chart: conjur.podAnnotations=true)"
	case apierrors.IsNotFound(err), err == nil && pod.UID != "" && string(found.UID) != pod.UID:
		failure.Kind, failure.Err = provider.NotFound, errors.New("the pod is gone")
	case err != nil:
		failure.Err, failure.Remedy = err, "it is asked again"
	default:
		return found.Annotations, nil
	}
	return nil, failure
}
