package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

const (
	// accountFresh is how long the annotations of a service account count as read:
	// the pods of a deployment start at the same time.
	accountFresh = 10 * time.Second
	// accountStale is how long they do while the API server is away.
	accountStale = time.Hour
	// maxAccounts bounds those that are kept.
	maxAccounts = 4096
)

// Metadata reads labels and annotations with the driver's own rights. It is safe
// for concurrent use.
type Metadata struct {
	client rest.Interface

	mu       sync.Mutex
	accounts map[string]account   // by namespace and name
	labels   map[[2]string]string // by node and label
}

// account is what was read of a service account.
type account struct {
	annotations map[string]string
	read        time.Time
}

// NewMetadata returns a reader.
func NewMetadata(api *kube.API) (*Metadata, error) {
	client, err := api.Client(corev1.SchemeGroupVersion, kube.AddMetadata)
	if err != nil {
		return nil, err
	}
	return &Metadata{client: client, accounts: map[string]account{}, labels: map[[2]string]string{}}, nil
}

// PodAnnotations returns those of a pod, by get on pods. Errors carry a kind.
func (m *Metadata) PodAnnotations(ctx context.Context, pod provider.Pod) (map[string]string, error) {
	op := fmt.Sprintf("read the annotations of pod %s/%s", pod.Namespace, pod.Name)
	found, err := m.get(ctx, op, "pods", pod.Namespace, pod.Name, "conjur.podAnnotations=true")
	if err != nil {
		return nil, err
	}
	if pod.UID != "" && string(found.UID) != pod.UID {
		return nil, &provider.Error{Kind: provider.NotFound, Op: op, Err: errors.New("the pod is gone")}
	}
	return found.Annotations, nil
}

// AccountAnnotations returns those of a pod's service account, by get on
// serviceaccounts, as they are or were some seconds ago. Errors carry a kind.
func (m *Metadata) AccountAnnotations(ctx context.Context, pod provider.Pod) (map[string]string, error) {
	key := pod.Namespace + "/" + pod.ServiceAccount
	m.mu.Lock()
	known, ok := m.accounts[key]
	m.mu.Unlock()
	if ok && time.Since(known.read) < accountFresh {
		return known.annotations, nil
	}
	found, err := m.get(ctx, "read the annotations of service account "+key, "serviceaccounts", pod.Namespace, pod.ServiceAccount, "serviceAccountAnnotations=true")
	switch {
	case err == nil:
		m.keep(key, account{found.Annotations, time.Now()})
		return found.Annotations, nil
	case provider.KindOf(err) == provider.Unavailable && ok && time.Since(known.read) < accountStale:
		return known.annotations, nil
	}
	return nil, err
}

func (m *Metadata) keep(key string, a account) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.accounts) >= maxAccounts {
		maps.DeleteFunc(m.accounts, func(_ string, a account) bool { return time.Since(a.read) > accountFresh })
	}
	if len(m.accounts) >= maxAccounts {
		clear(m.accounts)
	}
	m.accounts[key] = a
}

// NodeLabel returns a label of a node that stays the same for the node's life, by
// get on nodes; empty where it has no such yet. Errors carry a kind.
func (m *Metadata) NodeLabel(ctx context.Context, node, label string) (string, error) {
	key := [2]string{node, label}
	m.mu.Lock()
	value := m.labels[key]
	m.mu.Unlock()
	if value != "" {
		return value, nil
	}
	found, err := m.get(ctx, "read the labels of node "+node, "nodes", "", node, "nodeLabels=true")
	if err != nil {
		return "", err
	}
	if value = found.Labels[label]; value != "" {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.labels[key] = value
	}
	return value, nil
}

// get reads the metadata of an object. value is that of the chart which gives the
// right to.
func (m *Metadata) get(ctx context.Context, op, resource, namespace, name, value string) (*metav1.PartialObjectMetadata, error) {
	failure := &provider.Error{Kind: provider.Unavailable, Op: op}
	found, err := kube.Metadata(ctx, m.client, resource, namespace, name)
	switch {
	case apierrors.IsForbidden(err):
		failure.Kind, failure.Err, failure.Remedy = provider.Denied, fmt.Errorf("the driver may not read %s", resource), fmt.Sprintf("let it (chart: %s)", value)
	case apierrors.IsNotFound(err):
		failure.Kind, failure.Err = provider.NotFound, errors.New("it is gone")
	case err != nil:
		failure.Err, failure.Remedy = err, "it is asked again"
	default:
		return found, nil
	}
	return nil, failure
}
