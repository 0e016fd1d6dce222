package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// The reasons of events. Those of a refresh are what secrets-store-csi-driver
// had up to 1.5. (A publish that fails is kubelet's own event, FailedMount.)
const (
	reasonMounted        = "Mounted"
	reasonMountedSealed  = "MountedSealed"
	reasonRotated        = "MountRotationComplete"
	reasonRotationFailed = "MountRotationFailed"
	reasonSignalFailed   = "ChangeSignalFailed"
	reasonSyncFailed     = "SecretSyncFailed"
)

const (
	// remind is how often the event of a lasting failure is sent again: events
	// live for an hour.
	remind = 30 * time.Minute
	// eventTimeout bounds one request.
	eventTimeout = 30 * time.Second
)

// Events is a volume.Observer that sends events about a pod's volumes: that a
// refresh brought other files, that one failed, once for a lasting failure, and
// that it succeeded again; and that a pod started with a sealed answer. It is safe
// for concurrent use.
type Events struct {
	// Mounts sends one for every publish too.
	Mounts bool

	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder

	mu       sync.Mutex
	mounted  map[string]struct{} // targets of which a publish was told
	failures map[string]failing  // of refreshes, by target
	unsynced map[string]failing  // of Secrets, by target
}

// failing is a volume for which something fails again and again.
type failing struct {
	since time.Time
	told  map[string]time.Time // by reason, which may go back and forth
}

// note notes how it went with the volume at a target, and returns what was known
// of its failures, false for none, and whether to tell of err.
func note(failures map[string]failing, target string, err error) (before failing, failed, tell bool) {
	before, failed = failures[target]
	if err == nil {
		delete(failures, target)
		return before, failed, false
	}
	now := time.Now()
	if !failed {
		before = failing{since: now, told: map[string]time.Time{}}
		failures[target] = before
	}
	told, known := before.told[reason(err)]
	if tell = !known || now.Sub(told) >= remind; tell {
		before.told[reason(err)] = now
	}
	return before, failed, tell
}

var _ volume.Observer = (*Events)(nil)

// NewEvents returns Events of the driver of that name on a node.
func NewEvents(api *kube.API, driver, node string) (*Events, error) {
	client, err := api.Client(corev1.SchemeGroupVersion, kube.AddEvents)
	if err != nil {
		return nil, err
	}
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(eventSink{client}) // what is sent before that would be lost
	return &Events{
		broadcaster: broadcaster,
		recorder:    broadcaster.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: driver, Host: node}),
		mounted:     map[string]struct{}{}, failures: map[string]failing{}, unsynced: map[string]failing{},
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
	switch {
	case again, time.Since(v.Published) >= time.Minute: // it was found again
	case !v.SealedAt.IsZero():
		e.send(v, corev1.EventTypeWarning, reasonMountedSealed, fmt.Sprintf("mounted %d objects of SecretProviderClass %s as provider %s gave them %s ago, since it gives no answer now; it is asked again until it does", len(v.Objects), v.Class, v.Provider, time.Since(v.SealedAt).Round(time.Second)))
	case e.Mounts:
		e.send(v, corev1.EventTypeNormal, reasonMounted, fmt.Sprintf("mounted %d objects of SecretProviderClass %s from provider %s", len(v.Objects), v.Class, v.Provider))
	}
}

// Refreshed implements volume.Observer.
func (e *Events) Refreshed(v volume.Info, changed bool) {
	e.mu.Lock()
	before, failed, tell := note(e.failures, v.TargetPath, v.LastError)
	e.mu.Unlock()
	switch {
	case tell:
		e.send(v, corev1.EventTypeWarning, reasonRotationFailed, "the pod keeps the files that it has: "+v.LastError.Error())
	case v.LastError != nil:
	case changed:
		e.send(v, corev1.EventTypeNormal, reasonRotated, fmt.Sprintf("switched the files of SecretProviderClass %s to those that provider %s has now", v.Class, v.Provider))
	case failed:
		e.send(v, corev1.EventTypeNormal, reasonRotated, fmt.Sprintf("provider %s answers again for SecretProviderClass %s, after %s; the files are unchanged", v.Provider, v.Class, time.Since(before.since).Round(time.Second)))
	}
}

// Signalled sends an event about a signal that did not reach its process after a
// change. It implements process.Teller.
func (e *Events) Signalled(v volume.Info, s class.Signal, _ int, err error) {
	if err != nil {
		e.send(v, corev1.EventTypeWarning, reasonSignalFailed, fmt.Sprintf("the files of SecretProviderClass %s have changed, but %s was not sent to %q: %v", v.Class, unix.SignalName(s.Number), s.Process, err))
	}
}

// Synced sends an event about Secrets that cannot be made of a volume. It implements
// sync.Teller.
func (e *Events) Synced(v volume.Info, _ []secretsync.Told, err error) {
	tell := false
	e.mu.Lock()
	if _, mounted := e.mounted[v.TargetPath]; mounted {
		_, _, tell = note(e.unsynced, v.TargetPath, err)
	}
	e.mu.Unlock()
	if tell {
		e.send(v, corev1.EventTypeWarning, reasonSyncFailed, err.Error())
	}
}

// Unpublished implements volume.Observer.
func (e *Events) Unpublished(v volume.Info) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.mounted, v.TargetPath)
	delete(e.failures, v.TargetPath)
	delete(e.unsynced, v.TargetPath)
}

// send hands an event to the broadcaster, which sends it, or drops it where it
// has too many.
func (e *Events) send(v volume.Info, kind, reason, message string) {
	if v.Pod.Name == "" || v.Pod.Namespace == "" {
		return // published by hand
	}
	e.recorder.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: v.Pod.Namespace, Name: v.Pod.Name, UID: types.UID(v.Pod.UID),
	}, kind, reason, kube.Cut(message))
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
