package restart

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/cluster"
)

// place is the namespace and name of an object.
type place = types.NamespacedName

// pod is one that has read what has become something else since.
type pod struct {
	namespace, name string
	uid             types.UID
	changes         []change // one for each name at most
}

// change is when the files of a class became others, or the data of a Secret that is
// made of them.
type change struct {
	kind, name string // of the class, or of the Secret
	at         time.Time
}

func (c change) String() string { return c.kind + " " + c.name }

// secretKind is the kind of a change of a Secret.
const secretKind = "Secret"

// view is what is known of a cluster's pods, classes and Secrets that are made of
// them. Its fields are locked by mu.
type view struct {
	mu       sync.Mutex
	statuses map[place]source // of pods
	pods     map[types.UID]*pod
	classes  map[place]bool // that want restarts
	// news are pods of which something has changed, or which are gone.
	news    map[types.UID]struct{}
	secrets map[place]*written
	told    map[teller][]string // the Secrets of which it tells
	// reread are the namespaces with Secrets of which there is news.
	reread map[string]struct{}
	// listed says that the first lists have come.
	listed struct{ statuses, classes, syncs bool }
}

// source is the status that told of a change of a pod.
type source struct {
	uid types.UID
	change
}

func newView() *view {
	return &view{statuses: map[place]source{}, pods: map[types.UID]*pod{}, classes: map[place]bool{}, news: map[types.UID]struct{}{},
		secrets: map[place]*written{}, told: map[teller][]string{}, reread: map[string]struct{}{}}
}

// setStatus notes what a status tells, nil for one that is gone. Times are whole
// seconds of the pod's node. Callers hold mu.
func (v *view) setStatus(at place, p *cluster.PodStatus) {
	v.setSecrets(at, p)
	var next source
	if p != nil && p.Status.MountedAt != nil && p.Status.LastRotationTime != nil && p.Status.LastRotationTime.After(p.Status.MountedAt.Time) {
		for _, owner := range p.OwnerReferences {
			if owner.Kind == "Pod" && owner.Name == p.Status.PodName {
				next = source{owner.UID, change{class.Kind, p.Status.SecretProviderClassName, p.Status.LastRotationTime.Time}}
			}
		}
	}
	before := v.statuses[at]
	if before.uid == next.uid && before.name == next.name && before.at.Equal(next.at) {
		return
	}
	if before.uid != "" {
		delete(v.statuses, at)
		v.news[before.uid] = struct{}{}
		if was := v.pods[before.uid]; was != nil {
			was.changes = slices.DeleteFunc(was.changes, func(c change) bool { return c.name == before.name })
			if len(was.changes) == 0 {
				delete(v.pods, before.uid)
			}
		}
	}
	if next.uid != "" {
		v.statuses[at] = next
		v.news[next.uid] = struct{}{}
		is := v.pods[next.uid]
		if is == nil {
			is = &pod{namespace: at.Namespace, name: p.Status.PodName, uid: next.uid}
			v.pods[next.uid] = is
		}
		is.changes = append(is.changes, next.change)
	}
}

// setClass notes whether a class wants restarts, nil for one that is gone. Callers
// hold mu.
func (v *view) setClass(at place, c *class.SecretProviderClass) {
	wants := false
	if c != nil {
		onChange, err := c.OnChange()
		wants = err == nil && onChange.Restart
	}
	if wants == v.classes[at] {
		return
	}
	if !wants {
		delete(v.classes, at)
		return
	}
	v.classes[at] = true
	for uid, p := range v.pods {
		if p.namespace == at.Namespace && slices.ContainsFunc(p.changes, func(c change) bool { return c.name == at.Name }) {
			v.news[uid] = struct{}{}
		}
	}
	for s, w := range v.secrets {
		if s.Namespace == at.Namespace && w.of(at.Name) {
			v.reread[s.Namespace] = struct{}{}
		}
	}
}

// take returns the pods of which there is news since the last call, and the
// namespaces of Secrets of which there is, false as long as not everything was
// listed.
func (v *view) take() (pods []types.UID, namespaces []string, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.listed.statuses || !v.listed.classes {
		return nil, nil, false
	}
	pods, namespaces = slices.Collect(maps.Keys(v.news)), slices.Collect(maps.Keys(v.reread))
	clear(v.news)
	clear(v.reread)
	return pods, namespaces, true
}

// get returns a copy of a pod with those changes that are a reason to restart its
// workload: all if wished is true, else those of classes that want it. It returns
// false where there is no such pod any more.
func (v *view) get(uid types.UID, wished bool) (pod, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	found := v.pods[uid]
	if found == nil {
		return pod{}, false
	}
	return v.wishedOf(*found, wished), true
}

// wishedOf returns a pod with those changes that are a reason to restart its
// workload, see get. Callers hold mu.
func (v *view) wishedOf(p pod, wished bool) pod {
	p.changes = slices.DeleteFunc(slices.Clone(p.changes), func(c change) bool {
		at := place{Namespace: p.namespace, Name: c.name}
		if c.kind == secretKind {
			return !wished && !v.wantedFor(at)
		}
		return !wished && !v.classes[at]
	})
	return p
}

// store is what the watch of a kind writes to.
type store[T metav1.Object] struct {
	view   *view
	set    func(at place, object T) // the zero value for one that is gone
	known  func() []place
	listed *bool
}

var _ cache.ReflectorStore = store[*cluster.PodStatus]{}

func (v *view) statusStore() store[*cluster.PodStatus] {
	known := func() []place {
		return append(v.tellers(cluster.PodStatusKind), slices.Collect(maps.Keys(v.statuses))...)
	}
	return store[*cluster.PodStatus]{v, v.setStatus, known, &v.listed.statuses}
}

func (v *view) classStore() store[*class.SecretProviderClass] {
	return store[*class.SecretProviderClass]{v, v.setClass, func() []place { return slices.Collect(maps.Keys(v.classes)) }, &v.listed.classes}
}

func (s store[T]) key(obj any) (place, T, error) {
	object, ok := obj.(T)
	if !ok {
		return place{}, object, fmt.Errorf("the API server sent a %T for a %T", obj, object)
	}
	return place{Namespace: object.GetNamespace(), Name: object.GetName()}, object, nil
}

func (s store[T]) Add(obj any) error { return s.Update(obj) }

func (s store[T]) Update(obj any) error {
	at, object, err := s.key(obj)
	if err != nil {
		return err
	}
	s.view.mu.Lock()
	defer s.view.mu.Unlock()
	s.set(at, object)
	return nil
}

func (s store[T]) Delete(obj any) error {
	at, _, err := s.key(obj)
	if err != nil {
		return err
	}
	s.view.mu.Lock()
	defer s.view.mu.Unlock()
	var gone T
	s.set(at, gone)
	return nil
}

// Replace takes over what a list has brought.
func (s store[T]) Replace(list []any, _ string) error {
	now := make(map[place]T, len(list))
	for _, obj := range list {
		at, object, err := s.key(obj)
		if err != nil {
			return err
		}
		now[at] = object
	}
	s.view.mu.Lock()
	defer s.view.mu.Unlock()
	for _, at := range s.known() {
		s.set(at, now[at])
	}
	for at, object := range now {
		s.set(at, object)
	}
	*s.listed = true
	return nil
}

func (store[T]) Resync() error { return nil }
