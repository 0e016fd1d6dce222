package cluster

import (
	"context"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

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
	seen map[place]asked
}

// asked is the annotation of a pod.
type asked struct {
	uid     types.UID
	refresh string
}

// NewPods returns Pods of a node, which call refresh from one goroutine at a time.
func NewPods(api *kube.API, node string, refresh func(uid string)) (*Pods, error) {
	client, err := api.Client(corev1.SchemeGroupVersion, kube.AddMetadata)
	if err != nil {
		return nil, err
	}
	return &Pods{client: client, node: node, refresh: refresh, seen: map[place]asked{}}, nil
}

// Run follows the pods until ctx ends. It is called once.
func (p *Pods) Run(ctx context.Context) {
	kube.Watched{
		Client: p.client, Resource: "pods", Fields: "spec.nodeName=" + p.node, Metadata: true,
		Object: &metav1.PartialObjectMetadata{}, List: func() runtime.Object { return &metav1.PartialObjectMetadataList{} },
	}.Follow(ctx, p.store())
}

// store is what the watch writes to.
func (p *Pods) store() kube.Mirror[*metav1.PartialObjectMetadata] {
	return kube.Mirror[*metav1.PartialObjectMetadata]{Lock: &p.mu, Set: p.see, Known: func() []place { return slices.Collect(maps.Keys(p.seen)) }}
}

// see tells of an annotation that is another than before. Callers hold p.mu.
func (p *Pods) see(at place, m *metav1.PartialObjectMetadata) {
	if m == nil {
		delete(p.seen, at)
		return
	}
	before, known := p.seen[at]
	now := asked{m.UID, m.Annotations[class.RefreshAnnotation]}
	p.seen[at] = now
	if known && before.uid == now.uid && now.refresh != before.refresh && now.refresh != "" {
		p.refresh(string(m.UID))
	}
}
