package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// The reasons of events. Those of a refresh are what secrets-store-csi-driver
// had up to 1.5. (A publish that fails is kubelet's own event, FailedMount.)
const (
	reasonMounted        = "Mounted"
	reasonRotated        = "MountRotationComplete"
	reasonRotationFailed = "MountRotationFailed"
)

const (
	// remind is how often the event of a lasting failure is sent again: events
	// live for an hour.
	remind = 30 * time.Minute
	// maxEvent bounds the text of an event in bytes, as the API server does.
	maxEvent = 1024
	// eventTimeout bounds one request.
	eventTimeout = 30 * time.Second
)

// Events is a volume.Observer that sends events about a pod's volumes: that a
// refresh brought other files, that one failed, once for a lasting failure, and
// that it succeeded again. It is safe for concurrent use.
type Events struct {
	// Mounts sends one for every publish too.
	Mounts bool

	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder

	mu       sync.Mutex
	mounted  map[string]struct{} // targets of which a publish was told
	failures map[string]failing  // by target
}

// failing is a failure that was told.
type failing struct {
	reason string
	since  time.Time
	told   time.Time
}

var _ volume.Observer = (*Events)(nil)

// NewEvents returns Events of the driver of that name on a node.
func NewEvents(api *kube.API, driver, node string) (*Events, error) {
	client, err := api.Client(corev1.SchemeGroupVersion, func(s *runtime.Scheme) { s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Event{}) })
	if err != nil {
		return nil, err
	}
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(eventSink{client}) // what is sent before that would be lost
	return &Events{
		broadcaster: broadcaster,
		recorder:    broadcaster.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: driver, Host: node}),
		mounted:     map[string]struct{}{}, failures: map[string]failing{},
	}, nil
}

// Run returns when ctx ends, after which nothing is sent.
func (e *Events) Run(ctx context.Context) {
	<-ctx.Done()
	e.broadcaster.Shutdown()
}

// Published implements volume.Observer.
func (e *Events) Published(v volume.Info) {
	e.mu.Lock()
	_, again := e.mounted[v.TargetPath]
	e.mounted[v.TargetPath] = struct{}{}
	e.mu.Unlock()
	if e.Mounts && !again && time.Since(v.Published) < time.Minute { // it is not one that was found again
		e.send(v, corev1.EventTypeNormal, reasonMounted, fmt.Sprintf("mounted %d objects of SecretProviderClass %s from provider %s", len(v.Objects), v.Class, v.Provider))
	}
}

// Refreshed implements volume.Observer.
func (e *Events) Refreshed(v volume.Info, changed bool) {
	now := time.Now()
	e.mu.Lock()
	before, failed := e.failures[v.TargetPath]
	tell := false
	if v.LastError == nil {
		delete(e.failures, v.TargetPath)
	} else {
		next := failing{reason: reason(v.LastError), since: now, told: now}
		if failed {
			next.since = before.since
		}
		tell = !failed || before.reason != next.reason || now.Sub(before.told) >= remind
		if !tell {
			next.told = before.told
		}
		e.failures[v.TargetPath] = next
	}
	e.mu.Unlock()
	switch {
	case tell:
		e.send(v, corev1.EventTypeWarning, reasonRotationFailed, "the pod keeps the files that it has: "+v.LastError.Error())
	case v.LastError != nil:
	case changed:
		e.send(v, corev1.EventTypeNormal, reasonRotated, fmt.Sprintf("switched the files of SecretProviderClass %s to those that provider %s has now", v.Class, v.Provider))
	case failed:
		e.send(v, corev1.EventTypeNormal, reasonRotated, fmt.Sprintf("provider %s answers again for SecretProviderClass %s, after %s; the files are unchanged", v.Provider, v.Class, now.Sub(before.since).Round(time.Second)))
	}
}

// Unpublished implements volume.Observer.
func (e *Events) Unpublished(v volume.Info) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.mounted, v.TargetPath)
	delete(e.failures, v.TargetPath)
}

// send hands an event to the broadcaster, which sends it, or drops it where it
// has too many.
func (e *Events) send(v volume.Info, kind, reason, message string) {
	if v.Pod.Name == "" || v.Pod.Namespace == "" {
		return // published by hand
	}
	e.recorder.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: v.Pod.Namespace, Name: v.Pod.Name, UID: types.UID(v.Pod.UID),
	}, kind, reason, cut(message, maxEvent))
}

// eventSink writes events by REST.
type eventSink struct{ client rest.Interface }

var _ record.EventSink = eventSink{}

func (s eventSink) do(r *rest.Request) (*corev1.Event, error) {
	ctx, cancel := context.WithTimeout(context.Background(), eventTimeout)
	defer cancel()
	written := &corev1.Event{}
	err := r.Do(ctx).Into(written)
	if err != nil {
		klog.Background().V(4).Info("Cannot send an event", "reason", err.Error())
	}
	return written, err
}

func (s eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	return s.do(s.client.Post().Namespace(e.Namespace).Resource("events").Body(e))
}

func (s eventSink) Update(e *corev1.Event) (*corev1.Event, error) {
	return s.do(s.client.Put().Namespace(e.Namespace).Resource("events").Name(e.Name).Body(e))
}

func (s eventSink) Patch(e *corev1.Event, data []byte) (*corev1.Event, error) {
	return s.do(s.client.Patch(types.StrategicMergePatchType).Namespace(e.Namespace).Resource("events").Name(e.Name).Body(data))
}
