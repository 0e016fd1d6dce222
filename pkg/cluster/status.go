package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

const (
	podStatuses = "secretproviderclasspodstatuses"
	// writers is how many statuses are written at the same time.
	writers = 4
	// settle is how long a status waits for more to say.
	settle = 200 * time.Millisecond
	// reword is how long it waits where only the words of a failure differ.
	reword = time.Minute
	// writeTimeout bounds one request.
	writeTimeout = 30 * time.Second
	// A status that cannot be written is tried again after firstRetry, and then
	// after twice as long each time, up to lastRetry.
	firstRetry, lastRetry = time.Second, 5 * time.Minute
)

// Statuses is a volume.Observer that keeps a PodStatus for every pod and class
// of the node: one server-side apply for a change, however many volumes and
// publishes bring it. What others change or delete is put right. The garbage
// collector removes a PodStatus with its pod. It is safe for concurrent use.
type Statuses struct {
	client rest.Interface
	node   string
	queue  workqueue.TypedRateLimitingInterface[place]

	mu sync.Mutex
	// plain says that the cluster's CustomResourceDefinition is that of
	// secrets-store-csi-driver, whose status has fewer fields.
	plain   bool
	volumes map[string]volume.Info        // by target
	synced  map[string]synced             // by target, as far as is known
	places  map[string]place              // where a volume's status is, by target
	holders map[place]map[string]struct{} // the targets of the volumes of a place
	owners  map[place]owner               // whose place it is
	seen    map[place]applied             // what the API server has for this node, as far as is known
	heard   map[place]int                 // counts what the watch tells of a place
	started chan struct{}                 // closed by start
	start   func()                        // called when seen is that of a list
}

// place is the namespace and name of a PodStatus.
type place = types.NamespacedName

// owner is the pod and the class whose status it is.
type owner struct {
	pod   string // its UID
	class string
}

// applied is the part of a PodStatus that the driver writes.
type applied struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        appliedMetadata `json:"metadata"`
	Status          Status          `json:"status"`
}

type appliedMetadata struct {
	Namespace       string                  `json:"namespace"`
	Name            string                  `json:"name"`
	Labels          map[string]string       `json:"labels"`
	OwnerReferences []metav1.OwnerReference `json:"ownerReferences"`
}

var _ volume.Observer = (*Statuses)(nil)

// NewStatuses returns Statuses of a node that write nothing before Run.
func NewStatuses(api *kube.API, node string) (*Statuses, error) {
	client, err := api.Client(class.GroupVersion, AddTypes)
	if err != nil {
		return nil, err
	}
	started := make(chan struct{})
	return &Statuses{
		client: client, node: node, started: started, start: sync.OnceFunc(func() { close(started) }),
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[place](firstRetry, lastRetry)),
		volumes: map[string]volume.Info{}, synced: map[string]synced{}, places: map[string]place{}, holders: map[place]map[string]struct{}{},
		owners: map[place]owner{}, seen: map[place]applied{}, heard: map[place]int{},
	}, nil
}

// Run writes until ctx ends. It is called once.
func (s *Statuses) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		<-ctx.Done()
		s.queue.ShutDown()
	})
	running.Go(func() {
		kube.Watched{
			Client: s.client, Resource: podStatuses, Labels: NodeLabel + "=" + nodeLabel(s.node),
			Object: &PodStatus{}, List: func() runtime.Object { return &PodStatusList{} },
		}.Follow(ctx, s.store())
	})
	// What is there after a restart need not be written again.
	select {
	case <-s.started:
	case <-ctx.Done():
		return
	}
	for range writers {
		running.Go(func() {
			for s.writeNext(ctx) {
			}
		})
	}
}

// Published implements volume.Observer.
func (s *Statuses) Published(v volume.Info) { s.note(v) }

// Refreshed implements volume.Observer.
func (s *Statuses) Refreshed(v volume.Info, _ bool) { s.note(v) }

func (s *Statuses) note(v volume.Info) {
	if v.Pod.Name == "" || v.Pod.Namespace == "" || v.Pod.UID == "" {
		return // published by hand
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at, known := s.places[v.TargetPath]
	if !known {
		at = s.placeOf(v)
		s.places[v.TargetPath] = at
		if s.holders[at] == nil {
			s.holders[at] = map[string]struct{}{}
		}
		s.holders[at][v.TargetPath] = struct{}{}
		s.owners[at] = owner{v.Pod.UID, v.Class.Name}
	}
	before := s.volumes[v.TargetPath]
	s.volumes[v.TargetPath] = v
	switch {
	case !known, before.Provider != v.Provider, !before.Changed.Equal(v.Changed), !slices.Equal(before.Objects, v.Objects),
		(before.LastError == nil) != (v.LastError == nil), v.LastError != nil && reason(before.LastError) != reason(v.LastError):
		s.queue.AddAfter(at, settle)
	case v.LastError != nil && before.LastError.Error() != v.LastError.Error():
		// The same failure in other words, perhaps with the number of a request.
		s.queue.AddAfter(at, reword)
	}
}

// Unpublished implements volume.Observer. The status goes with the pod.
func (s *Statuses) Unpublished(v volume.Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.places[v.TargetPath]
	if !ok {
		return
	}
	delete(s.places, v.TargetPath)
	delete(s.volumes, v.TargetPath)
	delete(s.synced, v.TargetPath)
	delete(s.holders[at], v.TargetPath)
	if len(s.holders[at]) == 0 {
		delete(s.holders, at)
		delete(s.owners, at)
		delete(s.heard, at)
	}
}

// placeOf returns where the status of a volume is: the name that
// secrets-store-csi-driver gives it, unless that is too long or is that of
// another pod and class. Callers hold s.mu.
func (s *Statuses) placeOf(v volume.Info) place {
	name := v.Pod.Name + "-" + v.Pod.Namespace + "-" + v.Class.Name
	at := place{Namespace: v.Pod.Namespace, Name: name}
	mine := owner{v.Pod.UID, v.Class.Name}
	if taken, ok := s.owners[at]; len(name) > validation.DNS1123SubdomainMaxLength || ok && taken != mine {
		sum := sha256.Sum256([]byte(v.Pod.Name + "\x00" + v.Class.Name))
		suffix := "-" + hex.EncodeToString(sum[:5])
		at.Name = strings.TrimRight(name[:min(len(name), validation.DNS1123SubdomainMaxLength-len(suffix))], "-.") + suffix
	}
	return at
}

// nodeLabel returns a node's name as a label's value, which may be shorter.
func nodeLabel(node string) string {
	if len(validation.IsValidLabelValue(node)) == 0 {
		return node
	}
	sum := sha256.Sum256([]byte(node))
	return "sha256-" + hex.EncodeToString(sum[:16])
}

// wanted returns what the status at a place should say, false where there is no
// volume for it any more. Callers hold s.mu.
func (s *Statuses) wanted(at place) (applied, bool) {
	targets := slices.Sorted(maps.Keys(s.holders[at]))
	if len(targets) == 0 {
		return applied{}, false
	}
	first := s.volumes[targets[0]]
	status := Status{
		PodName: first.Pod.Name, SecretProviderClassName: first.Class.Name, Mounted: true, TargetPath: first.TargetPath,
		Objects: objects(first.Objects),
	}
	if !s.plain {
		mounted, rotated := metav1.NewTime(first.Published.Truncate(time.Second)), metav1.NewTime(first.Changed.Truncate(time.Second))
		status.Provider, status.MountedAt, status.LastRotationTime = first.Provider, &mounted, &rotated
		status.Conditions = []metav1.Condition{s.ready(at, targets)}
		if secrets, c, ok := s.secrets(at, targets); ok {
			status.Secrets, status.Conditions = secrets, append(status.Conditions, c)
		}
	}
	return applied{
		TypeMeta: metav1.TypeMeta{APIVersion: class.GroupVersion.String(), Kind: PodStatusKind},
		Metadata: appliedMetadata{
			Namespace: at.Namespace, Name: at.Name, Labels: map[string]string{NodeLabel: nodeLabel(s.node)},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: first.Pod.Name, UID: types.UID(first.Pod.UID)}},
		},
		Status: status,
	}, true
}

// objects returns versions as the status has them: sorted, none twice.
func objects(versions []provider.ObjectVersion) []provider.ObjectVersion {
	sorted := slices.SortedFunc(slices.Values(versions), func(a, b provider.ObjectVersion) int {
		return cmp.Or(strings.Compare(a.ID, b.ID), strings.Compare(a.Version, b.Version))
	})
	return slices.CompactFunc(sorted, func(a, b provider.ObjectVersion) bool { return a.ID == b.ID })
}

// ready returns the condition of the volumes at a place: the first failure, or
// that there is none. Its time stays as long as its status.
func (s *Statuses) ready(at place, targets []string) metav1.Condition {
	c := metav1.Condition{Type: "Ready", Status: metav1.ConditionTrue, Reason: "Mounted", Message: "the files are those of the last refresh"}
	since := time.Time{}
	for _, target := range targets {
		v := s.volumes[target]
		since = latest(since, v.Published)
		if v.LastError != nil && c.Status == metav1.ConditionTrue {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, reason(v.LastError), kube.Cut(v.LastError.Error())
			since = time.Now()
		}
	}
	return s.since(at, c, since)
}

// syncedType is the type of the condition of Secrets.
const syncedType = "Synced"

// synced is how the Secrets stand that are made of a volume.
type synced struct {
	secrets []secretsync.Told
	since   time.Time
	err     error
}

// Synced notes which Secrets a volume's class wants, and why not all of them are as
// wanted. It implements sync.Teller.
func (s *Statuses) Synced(v volume.Info, secrets []secretsync.Told, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, known := s.places[v.TargetPath]
	if !known {
		return
	}
	before, has := s.synced[v.TargetPath]
	now := synced{secrets, time.Now(), err}
	if has && (before.err == nil) == (err == nil) {
		now.since = before.since
	}
	s.synced[v.TargetPath] = now
	switch {
	case !has, !slices.Equal(before.secrets, secrets), (before.err == nil) != (err == nil), err != nil && reason(before.err) != reason(err):
		s.queue.AddAfter(at, settle)
	case err != nil && before.err.Error() != err.Error():
		s.queue.AddAfter(at, reword)
	}
}

// secrets returns the Secrets that are made of the volumes at a place, and their
// condition, false where their class wants none. Of what is not known since a restart
// nothing changes.
func (s *Statuses) secrets(at place, targets []string) ([]Secret, metav1.Condition, bool) {
	for _, target := range targets {
		if now, ok := s.synced[target]; ok {
			c := metav1.Condition{Type: syncedType, Status: metav1.ConditionTrue, Reason: "Synced", Message: fmt.Sprintf("Secrets are as secretObjects wants them: %d", len(now.secrets))}
			if now.err != nil {
				c.Status, c.Reason, c.Message = metav1.ConditionFalse, reason(now.err), kube.Cut(now.err.Error())
			}
			return told(now.secrets), s.since(at, c, now.since), len(now.secrets) > 0
		}
	}
	for _, c := range s.seen[at].Status.Conditions {
		if c.Type == syncedType {
			return s.seen[at].Status.Secrets, c, true
		}
	}
	return nil, metav1.Condition{}, false
}

// told returns Secrets as the status has them.
func told(secrets []secretsync.Told) []Secret {
	as := make([]Secret, len(secrets))
	for i, t := range secrets {
		as[i].Name = t.Name
		if !t.WrittenAt.IsZero() {
			at := metav1.NewTime(t.WrittenAt)
			as[i].WrittenAt = &at
		}
	}
	return as
}

// since gives a condition the time since when it is what it is: that of the API
// server where nothing has changed.
func (s *Statuses) since(at place, c metav1.Condition, since time.Time) metav1.Condition {
	c.LastTransitionTime = metav1.NewTime(since.Truncate(time.Second))
	for _, before := range s.seen[at].Status.Conditions {
		switch {
		case before.Type != c.Type:
		case before.Status == c.Status:
			c.LastTransitionTime = before.LastTransitionTime
		case c.Status == metav1.ConditionTrue:
			c.LastTransitionTime = metav1.NewTime(time.Now().Truncate(time.Second))
		}
	}
	return c
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// reason names the kind of a failure as conditions and events do, such as
// "NotFound".
func reason(err error) string {
	var name strings.Builder
	for word := range strings.SplitSeq(provider.KindOf(err).String(), "_") {
		name.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return name.String()
}

func (s *Statuses) writeNext(ctx context.Context) bool {
	at, stopped := s.queue.Get()
	if stopped {
		return false
	}
	defer s.queue.Done(at)
	s.mu.Lock()
	want, ok := s.wanted(at)
	seen, heard := s.seen[at], s.heard[at]
	s.mu.Unlock()
	body, err := json.Marshal(want)
	has, otherErr := json.Marshal(seen) // times differ in what JSON does not show
	if err = errors.Join(err, otherErr); err != nil {
		klog.FromContext(ctx).Error(err, "Cannot encode the status of a volume", "status", at)
		ok = false
	}
	if !ok || bytes.Equal(body, has) {
		s.queue.Forget(at)
		return true
	}
	switch err := s.apply(ctx, at, body); {
	case err == nil:
		s.queue.Forget(at)
		s.mu.Lock()
		if s.heard[at] == heard { // else the watch knows better: it may be gone again
			s.seen[at] = want
		}
		s.mu.Unlock()
	case errors.Is(err, errSmallSchema):
		s.queue.Add(at)
	case gone(err):
		klog.FromContext(ctx).V(4).Info("The status of a volume has nowhere to be", "status", at, "reason", err.Error())
		s.queue.Forget(at)
	case ctx.Err() == nil:
		klog.FromContext(ctx).Error(err, "Cannot write the status of a volume; it is tried again", "status", at)
		s.queue.AddRateLimited(at)
	}
	return true
}

// gone tells that a namespace is not there any more, or is about to go.
func gone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, "NamespaceTerminating")
}

// errSmallSchema tells that the cluster's CustomResourceDefinition lacks fields.
var errSmallSchema = errors.New("the CustomResourceDefinition is that of secrets-store-csi-driver")

func (s *Statuses) apply(ctx context.Context, at place, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := s.client.Patch(types.ApplyPatchType).Namespace(at.Namespace).Resource(podStatuses).Name(at.Name).
		Param("fieldManager", "csi-secrets").Param("force", "true").Body(body).Do(ctx).Error()
	if err == nil || !strings.Contains(err.Error(), "not declared in schema") {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plain {
		return err
	}
	s.plain = true
	klog.FromContext(ctx).Info("The CustomResourceDefinition of SecretProviderClassPodStatus lacks fields: statuses go without times and conditions", "reason", err.Error())
	return errSmallSchema
}

// store is what the watch writes to.
func (s *Statuses) store() kube.Mirror[*PodStatus] {
	return kube.Mirror[*PodStatus]{Lock: &s.mu, Set: s.found, Known: s.known, Listed: s.start}
}

// known returns the places of volumes and of statuses. Callers hold s.mu.
func (s *Statuses) known() []place {
	return slices.AppendSeq(slices.Collect(maps.Keys(s.holders)), maps.Keys(s.seen))
}

// found notes what the API server has at a place, nil for nothing: also where there
// is no volume yet, for that may be found later. Callers hold s.mu.
func (s *Statuses) found(at place, p *PodStatus) {
	if p == nil {
		delete(s.seen, at)
	} else {
		s.seen[at] = own(p)
	}
	if s.holders[at] != nil {
		s.heard[at]++
		s.queue.AddAfter(at, settle) // it may be what somebody else made of it
	}
}

// own returns the part of a PodStatus that the driver writes.
func own(p *PodStatus) applied {
	return applied{
		TypeMeta: metav1.TypeMeta{APIVersion: class.GroupVersion.String(), Kind: PodStatusKind},
		Metadata: appliedMetadata{
			Namespace: p.Namespace, Name: p.Name, Labels: map[string]string{NodeLabel: p.Labels[NodeLabel]}, OwnerReferences: p.OwnerReferences,
		},
		Status: p.Status,
	}
}
