package sync

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// owners finds what a Secret belongs to that a pod uses: the workload that is there
// for as long as pods may come and go. That is the controller of the pod's ReplicaSet
// or Job, such as a Deployment, a Rollout or a CronJob; else the pod's controller;
// else the pod itself.
type owners struct {
	core, apps, batch rest.Interface

	mu    sync.Mutex
	known map[types.UID]metav1.OwnerReference // by pod
}

func newOwners(of clients) (*owners, error) {
	o := &owners{known: map[types.UID]metav1.OwnerReference{}}
	var errs [3]error
	o.core, errs[0] = of(corev1.SchemeGroupVersion, kube.AddMetadata)
	o.apps, errs[1] = of(appsv1.SchemeGroupVersion, kube.AddMetadata)
	o.batch, errs[2] = of(batchv1.SchemeGroupVersion, kube.AddMetadata)
	return o, errors.Join(errs[:]...)
}

// remembered returns the owners of pods as they were found before, each once; false
// where one is missing.
func (o *owners) remembered(pods []provider.Pod) ([]metav1.OwnerReference, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []metav1.OwnerReference
	for _, pod := range pods {
		owner, ok := o.known[types.UID(pod.UID)]
		if !ok {
			return nil, false
		}
		all = addOwner(all, owner)
	}
	return all, true
}

// find asks the API server for the owners of those pods that are there, and are not
// about to go. The error has a kind.
func (o *owners) find(ctx context.Context, pods []provider.Pod) ([]metav1.OwnerReference, error) {
	var all []metav1.OwnerReference
	above := map[types.UID]metav1.OwnerReference{} // of ReplicaSets and Jobs
	for _, pod := range pods {
		owner, err := o.of(ctx, pod, above)
		if errors.Is(err, errGone) {
			o.forget(pod)
			continue
		}
		if err != nil {
			return nil, err
		}
		o.mu.Lock()
		o.known[types.UID(pod.UID)] = owner
		o.mu.Unlock()
		all = addOwner(all, owner)
	}
	return all, nil
}

func (o *owners) forget(pod provider.Pod) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.known, types.UID(pod.UID))
}

func addOwner(all []metav1.OwnerReference, owner metav1.OwnerReference) []metav1.OwnerReference {
	if slices.Contains(all, owner) {
		return all
	}
	return append(all, owner)
}

// errGone says that an object is not there any more, or is about to go.
var errGone = errors.New("it is gone")

func (o *owners) of(ctx context.Context, pod provider.Pod, above map[types.UID]metav1.OwnerReference) (metav1.OwnerReference, error) {
	found, err := metadata(ctx, o.core, "pods", pod.Namespace, pod.Name, types.UID(pod.UID))
	if err != nil {
		return metav1.OwnerReference{}, err
	}
	controller := metav1.GetControllerOfNoCopy(found)
	if controller == nil || mirrors(found) != "" { // whose controller is the node
		return metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: found.Name, UID: found.UID}, nil
	}
	owner := reference(controller)
	if top, ok := above[owner.UID]; ok {
		return top, nil
	}
	client, resource := rest.Interface(nil), ""
	switch {
	case owner.APIVersion == appsv1.SchemeGroupVersion.String() && owner.Kind == "ReplicaSet":
		client, resource = o.apps, "replicasets"
	case owner.APIVersion == batchv1.SchemeGroupVersion.String() && owner.Kind == "Job":
		client, resource = o.batch, "jobs"
	default:
		return owner, nil
	}
	between, err := metadata(ctx, client, resource, pod.Namespace, owner.Name, owner.UID)
	if err != nil {
		return metav1.OwnerReference{}, err
	}
	if controller := metav1.GetControllerOfNoCopy(between); controller != nil {
		owner = reference(controller)
	}
	above[between.UID] = owner
	return owner, nil
}

// mirrors returns the UID that the node gave to a static pod which this one stands
// for in the API server, else "".
func mirrors(pod *metav1.PartialObjectMetadata) types.UID {
	return types.UID(pod.Annotations[corev1.MirrorPodAnnotationKey])
}

// reference is an owner that neither controls the Secret nor has to wait for it.
func reference(controller *metav1.OwnerReference) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: controller.APIVersion, Kind: controller.Kind, Name: controller.Name, UID: controller.UID}
}

// metadata returns that of an object, or errGone.
func metadata(ctx context.Context, client rest.Interface, resource, namespace, name string, uid types.UID) (*metav1.PartialObjectMetadata, error) {
	found, err := kube.Metadata(ctx, client, resource, namespace, name)
	e := &provider.Error{Kind: provider.Unavailable, Op: fmt.Sprintf("look at %s %s/%s for the owner of its Secrets", resource, namespace, name), Remedy: "it is tried again"}
	switch {
	case apierrors.IsNotFound(err), err == nil && (found.UID != uid && mirrors(found) != uid || found.DeletionTimestamp != nil):
		return nil, errGone
	case apierrors.IsForbidden(err):
		e.Kind, e.Err, e.Remedy = provider.Denied, fmt.Errorf("the driver may not read %s", resource), "let it (chart: syncSecret.enabled=true)"
		return nil, e
	case err != nil:
		e.Err = err
		return nil, e
	}
	return found, nil
}
