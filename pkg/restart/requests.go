package restart

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/csi-secrets/csi-secrets/internal/kube"
)

const (
	// fieldManager owns what a restart writes.
	fieldManager = "csi-secrets-restart"
	// pageSize is how many pods one answer has.
	pageSize = 200
)

func metadata(ctx context.Context, client rest.Interface, resource, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return kube.Metadata(ctx, client, resource, namespace, name)
}

// podPage is a part of a list of pods.
type podPage struct {
	Metadata metav1.ListMeta `json:"metadata"`
	Items    []podObject     `json:"items"`
}

// readPods reads the part of a list that another one says to follow it.
func (r *Restarter) readPods(ctx context.Context, namespace, more string) (*podPage, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	request := r.core.Get().Namespace(namespace).Resource("pods").Param("limit", fmt.Sprint(pageSize))
	if more != "" {
		request.Param("continue", more)
	}
	body, err := request.Do(ctx).Raw()
	if err != nil {
		return nil, err
	}
	var page podPage
	if err := json.Unmarshal(body, &page); err != nil {
		return nil, err
	}
	return &page, nil
}

func (r *Restarter) readPod(ctx context.Context, namespace, name string) (*podObject, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	body, err := r.core.Get().Namespace(namespace).Resource("pods").Name(name).Do(ctx).Raw()
	if err != nil {
		return nil, err
	}
	var its podObject
	if err := json.Unmarshal(body, &its); err != nil {
		return nil, fmt.Errorf("read pod %s/%s: %w", namespace, name, err)
	}
	return &its, nil
}

func (r *Restarter) clientOf(w workload) rest.Interface {
	if w.Group == argo.Group {
		return r.argo
	}
	return r.apps
}

func (r *Restarter) read(ctx context.Context, w workload) (*object, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	body, err := r.clientOf(w).Get().Namespace(w.namespace).Resource(w.resource()).Name(w.name).Do(ctx).Raw()
	if err != nil {
		return nil, err
	}
	var read object
	if err := json.Unmarshal(body, &read); err != nil {
		return nil, fmt.Errorf("read %s: %w", w, err)
	}
	return &read, nil
}

func (r *Restarter) write(ctx context.Context, w workload, patch []byte) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return r.clientOf(w).Patch(types.MergePatchType).Namespace(w.namespace).Resource(w.resource()).Name(w.name).
		Param("fieldManager", fieldManager).Body(patch).Do(ctx).Error()
}

// event sends an event, unless another leader has sent the same.
func (r *Restarter) event(ctx context.Context, about corev1.ObjectReference, kind, reason, message string) {
	kube.Event{Component: fieldManager, About: about, Type: kind, Reason: reason, Message: message, Once: true}.Send(ctx, r.core)
}
