package cluster

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
)

// Pods follows the metadata of a node's pods, and tells of each whose annotation
// class.RefreshAnnotation changes. It needs list and watch on pods.
type Pods struct {
	client  rest.Interface
	node    string
	refresh func(uid string)

	mu   sync.Mutex
	seen map[types.UID]string // the annotation
}

// NewPods returns Pods of a node, which call refresh from one goroutine at a time.
func NewPods(api *kube.API, node string, refresh func(uid string)) (*Pods, error) {
	client, err := api.Client(corev1.SchemeGroupVersion, kube.AddMetadata)
	if err != nil {
		return nil, err
	}
	return &Pods{client: client, node: node, refresh: refresh, seen: map[types.UID]string{}}, nil
}

// Run follows the pods until ctx ends. It is called once.
func (p *Pods) Run(ctx context.Context) {
	kube.Watched{
		Client: p.client, Resource: "pods", Fields: "spec.nodeName=" + p.node, Metadata: true,
		Object: &metav1.PartialObjectMetadata{}, List: func() runtime.Object { return &metav1.PartialObjectMetadataList{} },
	}.Follow(ctx, podStore{p})
}

// podStore is what the watch writes to.
type podStore struct{ *Pods }

var _ cache.ReflectorStore = podStore{}

func metadataOf(obj any) (*metav1.PartialObjectMetadata, error) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return nil, fmt.Errorf("the API server sent a %T for metadata", obj)
	}
	return m, nil
}

func (s podStore) Add(obj any) error { return s.Update(obj) }

func (s podStore) Update(obj any) error {
	m, err := metadataOf(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.see(m)
	return nil
}

// see tells of an annotation that is another than before. Callers hold s.mu.
func (s podStore) see(m *metav1.PartialObjectMetadata) {
	value := m.Annotations[class.RefreshAnnotation]
	before, known := s.seen[m.UID]
	s.seen[m.UID] = value
	if known && value != before && value != "" {
		s.refresh(string(m.UID))
	}
}

func (s podStore) Delete(obj any) error {
	m, err := metadataOf(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seen, m.UID)
	return nil
}

// Replace takes over what a list has brought.
func (s podStore) Replace(list []any, _ string) error {
	now := map[types.UID]bool{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, obj := range list {
		m, err := metadataOf(obj)
		if err != nil {
			return err
		}
		now[m.UID] = true
		s.see(m)
	}
	for uid := range s.seen {
		if !now[uid] {
			delete(s.seen, uid)
		}
	}
	return nil
}

func (podStore) Resync() error { return nil }
