package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	csicluster "github.com/csi-secrets/csi-secrets/pkg/cluster"
)

const (
	// nodeName is a node that is an object and no machine: no kubelet touches
	// the pods that are bound to it.
	nodeName  = "peer"
	namespace = "peer"
	className = "db"
	// providerName is the external provider of both drivers.
	providerName = "peer"
	// statusTimeout bounds the wait for the last status object of a batch.
	statusTimeout = 2 * time.Minute
)

// files is what every volume holds.
var files = map[string]string{
	"username": "app",
	"password": "hunter2-hunter2-hunter2-hunter2-",
}

// objects are what the drivers find in the API.
type objects struct {
	core, statuses rest.Interface
	made           int // pods so far
}

// makeObjects makes the node, the namespace and the class.
func makeObjects(ctx context.Context, kubeconfig string) (*objects, error) {
	api, err := kube.Connect(kubeconfig, harnessVersion)
	if err != nil {
		return nil, err
	}
	core, err := api.Client(corev1.SchemeGroupVersion, func(s *runtime.Scheme) { _ = corev1.AddToScheme(s) })
	if err != nil {
		return nil, err
	}
	statuses, err := api.Client(class.GroupVersion, csicluster.AddTypes)
	if err != nil {
		return nil, err
	}
	o := &objects{core: core, statuses: statuses}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	if err := core.Post().Resource("nodes").Body(node).Do(ctx).Error(); err != nil {
		return nil, fmt.Errorf("make a node: %w", err)
	}
	if err := core.Post().Resource("namespaces").Body(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}).Do(ctx).Error(); err != nil {
		return nil, fmt.Errorf("make a namespace: %w", err)
	}
	body := fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,"metadata":{"name":%q},"spec":{"provider":%q,"parameters":{"key":"value"}}}`,
		class.GroupVersion.String(), class.Kind, className, providerName)
	err = statuses.Post().Namespace(namespace).Resource("secretproviderclasses").SetHeader("Content-Type", "application/json").Body(body).Do(ctx).Error()
	if err != nil {
		return nil, fmt.Errorf("make a class: %w", err)
	}
	return o, o.until(ctx, "the namespace's service account", func(ctx context.Context) (bool, error) {
		err := core.Get().Namespace(namespace).Resource("serviceaccounts").Name("default").Do(ctx).Error()
		return err == nil, nil
	})
}

// until waits until done says so.
func (o *objects) until(ctx context.Context, what string, done func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	for {
		ok, err := done(ctx)
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// batch is a number of volumes of as many new pods.
type batch struct {
	requests []*csi.NodePublishVolumeRequest
	statuses map[string]bool // names of the status objects that they will have
}

// newBatch makes n pods in the API, and on the node the folders that kubelet
// makes for their volumes.
func (o *objects) newBatch(ctx context.Context, l standalone.Layout, n int) (*batch, error) {
	b := &batch{requests: make([]*csi.NodePublishVolumeRequest, n), statuses: map[string]bool{}}
	var group errgroup.Group
	group.SetLimit(32)
	for i := range n {
		o.made++
		name := fmt.Sprintf("pod-%d", o.made)
		b.statuses[name+"-"+namespace+"-"+className] = true
		group.Go(func() error {
			var pod corev1.Pod
			if err := o.core.Post().Namespace(namespace).Resource("pods").Body(podFor(name)).Do(ctx).Into(&pod); err != nil {
				return fmt.Errorf("make a pod: %w", err)
			}
			volume := standalone.Volume{Pod: name, Namespace: namespace, Class: className}
			request := volume.PublishRequest(l)
			request.VolumeContext["csi.storage.k8s.io/pod.uid"] = string(pod.UID)
			b.requests[i] = request
			return os.MkdirAll(filepath.Dir(request.TargetPath), 0o750)
		})
	}
	return b, group.Wait()
}

func podFor(name string) *corev1.Pod {
	no, readOnly := false, true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: corev1.PodSpec{
			NodeName: nodeName, AutomountServiceAccountToken: &no,
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers:  []corev1.Container{{Name: "main", Image: "none", VolumeMounts: []corev1.VolumeMount{{Name: "secrets", MountPath: "/mnt", ReadOnly: true}}}},
			Volumes: []corev1.Volume{{Name: "secrets", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
				Driver: "secrets-store.csi.k8s.io", ReadOnly: &readOnly, VolumeAttributes: map[string]string{"secretProviderClass": className},
			}}}},
		},
	}
}

// haveStatuses waits until every pod of a batch has its status object.
func (o *objects) haveStatuses(ctx context.Context, b *batch) error {
	return o.until(ctx, "status objects", func(ctx context.Context) (bool, error) {
		var list csicluster.PodStatusList
		if err := o.statuses.Get().Namespace(namespace).Resource("secretproviderclasspodstatuses").Do(ctx).Into(&list); err != nil {
			return false, err
		}
		found := 0
		for i := range list.Items {
			if b.statuses[list.Items[i].Name] {
				found++
			}
		}
		return found == len(b.statuses), nil
	})
}

// removeAll removes the pods and their status objects, so that the next driver
// does not see them.
func (o *objects) removeAll(ctx context.Context) error {
	var none int64
	return errors.Join(
		o.core.Delete().Namespace(namespace).Resource("pods").Body(&metav1.DeleteOptions{GracePeriodSeconds: &none}).Do(ctx).Error(),
		o.statuses.Delete().Namespace(namespace).Resource("secretproviderclasspodstatuses").Do(ctx).Error(),
	)
}
