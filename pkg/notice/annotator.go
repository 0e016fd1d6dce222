package notice

import (
	"context"
	"encoding/json"
	"maps"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

const (
	// fieldManager owns the annotation that the Annotator writes.
	fieldManager = "csi-secrets-notices"
	// settle is how long a class waits for more hints.
	settle = 100 * time.Millisecond
	// echo is when a class is written once more: a notice may be ahead of what the
	// store answers.
	echo = 15 * time.Second
	// spacing is the least time from one write of a class to the next.
	spacing = 2 * time.Second
	// writers is how many classes are written at the same time.
	writers = 4
	// writeTimeout bounds one request, and all of those that the end of Run leaves.
	writeTimeout = 10 * time.Second
)

// Annotator refreshes the volumes of classes in a cluster: it writes the time
// into their class.RefreshAnnotation by server-side apply. It is safe for
// concurrent use.
type Annotator struct {
	client rest.Interface
	finder Finder
	queue  workqueue.TypedRateLimitingInterface[target]

	mu      sync.Mutex
	pending map[target]bool
	echoes  map[target]bool
	written map[target]time.Time // of the last spacing
}

// target is a class. Its UID keeps a class that was deleted meanwhile from being
// made anew.
type target struct {
	class.Ref
	uid types.UID
}

// NewAnnotator returns an Annotator that writes nothing before Run. It needs the
// right to patch secretproviderclasses.
func NewAnnotator(api *kube.API, finder Finder) (*Annotator, error) {
	client, err := api.Client(class.GroupVersion, class.AddTypes)
	if err != nil {
		return nil, err
	}
	return newAnnotator(client, finder), nil
}

func newAnnotator(client rest.Interface, finder Finder) *Annotator {
	return &Annotator{
		client: client, finder: finder, pending: map[target]bool{}, echoes: map[target]bool{}, written: map[target]time.Time{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[target](firstRetry, lastRetry)),
	}
}

// Take is a Sink. It returns when it knows which classes are concerned: they are
// written a moment later, all hints for a class together, and a class every two
// seconds at most; and once more after some seconds. A write that fails is
// repeated.
func (a *Annotator) Take(ctx context.Context, hints []provider.Hint) error {
	classes, err := a.finder.Find(ctx, hints)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range classes {
		t := target{c.Ref(), c.UID}
		if !a.pending[t] {
			a.pending[t] = true
			a.queue.AddAfter(t, settle)
		}
	}
	return nil
}

// Run writes until ctx ends, and then what is left. It is called once.
func (a *Annotator) Run(ctx context.Context) {
	var running sync.WaitGroup
	for range writers {
		running.Go(func() {
			for a.writeNext(ctx) {
			}
		})
	}
	<-ctx.Done()
	a.queue.ShutDown()
	running.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	a.mu.Lock()
	left := maps.Clone(a.pending)
	a.mu.Unlock()
	for t := range left {
		if err := a.write(ctx, t); err != nil {
			klog.FromContext(ctx).Error(err, "Volumes are refreshed only after their interval", "class", t.Ref)
		}
	}
}

func (a *Annotator) writeNext(ctx context.Context) bool {
	t, stopped := a.queue.Get()
	if stopped {
		return false
	}
	defer a.queue.Done(t)
	if ctx.Err() != nil {
		return true
	}
	a.mu.Lock()
	hinted, due := a.pending[t], a.pending[t] || a.echoes[t]
	wait := time.Until(a.written[t].Add(spacing))
	if wait <= 0 {
		delete(a.pending, t) // a hint from now on is for another write
		delete(a.echoes, t)
	}
	a.mu.Unlock()
	switch {
	case !due:
		return true
	case wait > 0:
		a.queue.AddAfter(t, wait)
		return true
	}
	err := a.write(ctx, t)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Cannot have the volumes of a class refreshed; it is tried again", "class", t.Ref)
		}
		a.pending[t] = true
		a.queue.AddRateLimited(t)
		return true
	}
	a.queue.Forget(t)
	now := time.Now()
	maps.DeleteFunc(a.written, func(_ target, at time.Time) bool { return now.Sub(at) >= spacing })
	a.written[t] = now
	if hinted {
		a.echoes[t] = true
		a.queue.AddAfter(t, echo)
	}
	return true
}

// write sets the annotation. A class that has gone is no error.
func (a *Annotator) write(ctx context.Context, t target) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	body, err := json.Marshal(map[string]any{
		"apiVersion": class.GroupVersion.String(), "kind": class.Kind,
		"metadata": map[string]any{
			"namespace": t.Namespace, "name": t.Name, "uid": t.uid,
			"annotations": map[string]string{class.RefreshAnnotation: time.Now().UTC().Format(time.RFC3339Nano)},
		},
	})
	if err != nil {
		return err
	}
	err = a.client.Patch(types.ApplyPatchType).Namespace(t.Namespace).Resource("secretproviderclasses").Name(t.Name).
		Param("fieldManager", fieldManager).Param("force", "true").Body(body).Do(ctx).Error()
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.HasStatusCause(err, "NamespaceTerminating") {
		klog.FromContext(ctx).V(4).Info("A class that a notice is about has gone", "class", t.Ref, "reason", err.Error())
		return nil
	}
	return err
}
