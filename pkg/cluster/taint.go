package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
)

// taintRetry is the wait before a taint that could not be removed is tried again.
const taintRetry = 5 * time.Second

// RemoveTaint removes every taint with that key from the node, so that pods
// that need secrets come to a new node only once its driver is registered. It
// tries until it has succeeded or ctx ends.
func RemoveTaint(ctx context.Context, api *kube.API, node, key string) error {
	client, err := api.Client(corev1.SchemeGroupVersion, func(s *runtime.Scheme) { s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Node{}) })
	if err != nil {
		return err
	}
	logger := klog.FromContext(ctx)
	attempt := func() error {
		var n corev1.Node
		if err := client.Get().Resource("nodes").Name(node).Do(ctx).Into(&n); err != nil {
			return err
		}
		rest := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == key })
		if len(rest) == len(n.Spec.Taints) {
			return nil
		}
		// The test makes the API server refuse where the taints have changed.
		patch, err := json.Marshal([]map[string]any{
			{"op": "test", "path": "/spec/taints", "value": n.Spec.Taints},
			{"op": "replace", "path": "/spec/taints", "value": rest},
		})
		if err != nil {
			return fmt.Errorf("encode the patch: %w", err)
		}
		if err := client.Patch(types.JSONPatchType).Resource("nodes").Name(node).Body(patch).Do(ctx).Error(); err != nil {
			return err
		}
		logger.Info("Removed the node's startup taint", "node", node, "taint", key)
		return nil
	}
	for {
		err := attempt()
		if err == nil || errors.Is(ctx.Err(), context.Canceled) {
			return nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsInvalid(err) {
			logger.Error(err, "Cannot remove the node's startup taint; it is tried again", "node", node, "taint", key)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(taintRetry):
		}
	}
}
