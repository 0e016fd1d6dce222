package restart

import (
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/csi-secrets/csi-secrets/internal/kube"
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
	listed struct{ statuses, classes bool }
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

// statusStore is what the watch of pod statuses writes to.
func (v *view) statusStore() kube.Mirror[*cluster.PodStatus] {
	known := func() []place {
		return append(v.tellers(cluster.PodStatusKind), slices.Collect(maps.Keys(v.statuses))...)
	}
	return kube.Mirror[*cluster.PodStatus]{Lock: &v.mu, Set: v.setStatus, Known: known, Listed: func() { v.listed.statuses = true }}
}

// classStore is what the watch of classes writes to.
func (v *view) classStore() kube.Mirror[*class.SecretProviderClass] {
	known := func() []place { return slices.Collect(maps.Keys(v.classes)) }
	return kube.Mirror[*class.SecretProviderClass]{Lock: &v.mu, Set: v.setClass, Known: known, Listed: func() { v.listed.classes = true }}
}
