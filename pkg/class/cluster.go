package class

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// How long Get waits for what the API server may be about to tell. A class that
// was created just before its pod is there within milliseconds.
const (
	newcomer = time.Second
	firstAll = 30 * time.Second
	// stale is how long it waits for the API server before it takes what an
	// earlier driver knew.
	stale = 2 * time.Second
)

// Cluster is a Source of the classes of a Kubernetes cluster. It follows all of
// them by one watch and keeps them in memory, so that a publish asks nothing of
// the API server and goes on while that is away; a file keeps them for a driver
// that starts while it is away. A Cluster is safe for concurrent use.
type Cluster struct {
	client   rest.Interface
	snapshot *snapshot

	mu       sync.RWMutex
	earlier  map[Ref]*SecretProviderClass // of the snapshot; nil once synced
	classes  map[Ref]*SecretProviderClass
	synced   bool          // classes are those of the API server, or were
	failure  error         // why they could not be had last
	news     chan struct{} // closed when a class, synced or failure changed
	listener func(Ref)     // of Watch
	unkept   bool          // the snapshot has others
}

var _ Source = (*Cluster)(nil)

// NewCluster returns a Cluster that hears of no class before Run. It keeps what
// it knows in the file of that name, in a folder that may not be there yet;
// nowhere where it is empty.
func NewCluster(api *kube.API, file string) (*Cluster, error) {
	client, err := api.Client(GroupVersion, AddTypes)
	if err != nil {
		return nil, err
	}
	c := &Cluster{client: client, snapshot: &snapshot{path: file}, classes: map[Ref]*SecretProviderClass{}, news: make(chan struct{})}
	if c.earlier, err = c.snapshot.read(); err != nil {
		klog.Background().Error(err, "What an earlier driver knew of classes is lost")
	}
	return c, nil
}

// Run follows the classes until ctx ends. It is called once.
func (c *Cluster) Run(ctx context.Context) {
	var keeping sync.WaitGroup
	defer keeping.Wait()
	if c.snapshot.path != "" {
		keeping.Go(func() { c.keep(ctx) })
	}
	kube.Watched{
		Client: c.client, Resource: "secretproviderclasses",
		Object: &SecretProviderClass{}, List: func() runtime.Object { return &SecretProviderClassList{} },
		Failed: func(err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.failure = err
			c.tell()
		},
	}.Follow(ctx, c.store())
}

// Answered returns once the API server has answered, be it with an error, or ctx
// has ended.
func (c *Cluster) Answered(ctx context.Context) {
	for ctx.Err() == nil {
		c.mu.RLock()
		failure, synced, news := c.failure, c.synced, c.news
		c.mu.RUnlock()
		var status apierrors.APIStatus
		if synced || errors.As(failure, &status) {
			return
		}
		select {
		case <-ctx.Done():
		case <-news:
		}
	}
}

// Get returns a class from memory. It waits a little for one that is not there
// yet, and longer for the first answer of the API server.
func (c *Cluster) Get(ctx context.Context, ref Ref) (*SecretProviderClass, error) {
	began := time.Now()
	for {
		c.mu.RLock()
		found, synced, failure, news := c.classes[ref], c.synced, c.failure, c.news
		known := c.earlier[ref]
		c.mu.RUnlock()
		if known != nil && time.Since(began) >= stale {
			found = known
		}
		if found != nil {
			if err := found.Mountable(); err != nil {
				return nil, err
			}
			return found, nil
		}
		patience := newcomer
		if !synced {
			patience = firstAll
		}
		if known != nil {
			patience = stale
		}
		timer := time.NewTimer(patience - time.Since(began))
		select {
		case <-news:
			timer.Stop()
			continue
		case <-timer.C:
			if known != nil {
				continue
			}
		case <-ctx.Done():
			timer.Stop()
		}
		if !synced {
			return nil, unknown(ref, failure)
		}
		return nil, &provider.Error{Kind: provider.NotFound,
			Err:    fmt.Errorf("failed to get secretproviderclass %s, error: secretproviderclasses.%s %q not found", ref, Group, ref.Name),
			Remedy: fmt.Sprintf("create the %s %q in the namespace %q of the pod, or correct secretProviderClass in the pod's volume", Kind, ref.Name, ref.Namespace)}
	}
}

// List returns all classes, also those that cannot be mounted. It waits for the
// first answer of the API server as long as ctx lasts.
func (c *Cluster) List(ctx context.Context) ([]*SecretProviderClass, error) {
	for {
		c.mu.RLock()
		synced, failure, news := c.synced, c.failure, c.news
		all := slices.Collect(maps.Values(c.classes))
		c.mu.RUnlock()
		if synced {
			return all, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, unknown(Ref{}, failure)
		}
	}
}

func unknown(ref Ref, failure error) error {
	if failure == nil {
		failure = fmt.Errorf("it does not answer")
	}
	what := "secretproviderclass " + ref.String()
	if ref == (Ref{}) {
		what = "secretproviderclasses"
	}
	return &provider.Error{Kind: provider.Unavailable,
		Err:    fmt.Errorf("failed to get %s, error: this driver has had no classes from the API server since it started: %w", what, failure),
		Remedy: "kubelet tries again; if this lasts, look at the driver's access to the API server and at the installed CustomResourceDefinitions"}
}

// Watch calls changed for each class that appears, changes or goes, until ctx
// ends. It is called once, and returns nil.
func (c *Cluster) Watch(ctx context.Context, changed func(Ref)) error {
	refs := make(chan struct{}, 1)
	var mu sync.Mutex
	pending := map[Ref]bool{}
	c.mu.Lock()
	c.listener = func(ref Ref) {
		mu.Lock()
		pending[ref] = true
		mu.Unlock()
		select {
		case refs <- struct{}{}:
		default:
		}
	}
	c.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-refs:
		}
		mu.Lock()
		due := pending
		pending = map[Ref]bool{}
		mu.Unlock()
		for ref := range due {
			changed(ref)
		}
	}
}

// set makes next the class of that name, nil for none. Callers hold c.mu.
func (c *Cluster) set(ref Ref, next *SecretProviderClass) {
	before := c.classes[ref]
	if before == nil {
		before = c.earlier[ref] // else a restart would have every volume refreshed
	}
	if next == nil {
		delete(c.classes, ref)
	} else {
		c.classes[ref] = next
	}
	switch {
	case before == nil && next == nil:
		return
	case before != nil && next != nil && reflect.DeepEqual(before.Spec, next.Spec) && before.Annotations[RefreshAnnotation] == next.Annotations[RefreshAnnotation]:
		return
	}
	c.unkept = true
	c.tell()
	if c.listener != nil {
		c.listener(ref)
	}
}

// tell wakes those who wait for news. Callers hold c.mu.
func (c *Cluster) tell() {
	close(c.news)
	c.news = make(chan struct{})
}

// RefreshAnnotation is one of a class that has its volumes refreshed whenever it
// changes.
const RefreshAnnotation = Group + "/refresh"

// store is what the watch writes to.
func (c *Cluster) store() kube.Mirror[*SecretProviderClass] {
	return kube.Mirror[*SecretProviderClass]{
		Lock: &c.mu,
		Set: func(at types.NamespacedName, next *SecretProviderClass) {
			if next != nil {
				next = lean(next)
			}
			c.set(Ref(at), next)
		},
		Known: func() (all []types.NamespacedName) {
			for ref := range c.classes {
				all = append(all, types.NamespacedName(ref))
			}
			return all
		},
		Listed: func() {
			if !c.synced {
				c.synced, c.earlier, c.unkept = true, nil, true
				c.tell()
			}
			c.failure = nil
		},
	}
}

// lean keeps of a class what the driver needs.
func lean(c *SecretProviderClass) *SecretProviderClass {
	kept := &SecretProviderClass{Spec: c.Spec}
	if refresh, ok := c.Annotations[RefreshAnnotation]; ok {
		kept.Annotations = map[string]string{RefreshAnnotation: refresh}
	}
	kept.Namespace, kept.Name, kept.UID, kept.ResourceVersion, kept.Generation = c.Namespace, c.Name, c.UID, c.ResourceVersion, c.Generation
	return kept
}
