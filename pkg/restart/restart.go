// Package restart restarts the workloads whose pods have read a secret that has
// changed since, for applications that cannot read it again.
//
// It is level-triggered: that a pod has seen a change is in its
// SecretProviderClassPodStatus for as long as the pod lives, and a pod that came
// after a restart has seen none. So nothing is lost or done twice with a leader
// that ends, and no change is counted.
package restart

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/cluster"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync/controller"
)

const (
	// Annotation of a workload or of its pod template: "true" restarts it whatever
	// its classes say, and anything else never.
	Annotation = class.Group + "/restart"
	// RestartedAtAnnotation is the time of the last restart. It is on the pod
	// template, and on a Rollout itself.
	RestartedAtAnnotation = class.Group + "/restartedAt"
	// RestartedForAnnotation says beside it what had changed.
	RestartedForAnnotation = class.Group + "/restartedFor"
)

// What Config has where it is zero.
const (
	DefaultSettle    = 10 * time.Second
	DefaultSpacing   = 5 * time.Minute
	DefaultParallel  = 5
	DefaultPerMinute = 10
)

const (
	// tick is how often it is looked for what is due.
	tick = time.Second
	// watchRollout is how often a workload is read that this restarts, and
	// lookAgain one that has to wait for something else.
	watchRollout = 5 * time.Second
	lookAgain    = time.Minute
	// overdue is how long a restart may take to replace one pod more. It then is no
	// longer one of those that are under way.
	overdue = 10 * time.Minute
	// requestTimeout bounds one request.
	requestTimeout = 10 * time.Second
	// maxOwners bounds the ReplicaSets whose owners are kept in memory.
	maxOwners = 10_000
)

// Config is how restarts are spread. What is zero has its default.
type Config struct {
	// Settle is how long a workload waits, after the first sign of a change, for
	// more to change.
	Settle time.Duration
	// Spacing is the least time from one restart of a workload to its next.
	Spacing time.Duration
	// Parallel is how many workloads may be under restart at the same time.
	Parallel int
	// PerMinute is how many restarts may begin in a minute.
	PerMinute int
	// SecretSyncs says that the Secrets of SecretSyncs are followed too.
	SecretSyncs bool
	// Recorder counts restarts; it may be nil.
	Recorder Recorder
}

// Recorder counts restarts by result: "started", and then "finished" or
// "unfinished"; "failed" for one that the API server refused. It is safe for
// concurrent use.
type Recorder interface {
	Restart(result string)
}

const (
	resultStarted    = "started"
	resultFinished   = "finished"
	resultUnfinished = "unfinished"
	resultFailed     = "failed"
)

type noRecorder struct{}

func (noRecorder) Restart(string) {}

// Restarter restarts workloads. It needs the rights to list and watch
// secretproviderclasses and secretproviderclasspodstatuses, and secretsyncs where it
// follows them; to get and list pods, and to get replicasets; to get and patch
// deployments, statefulsets, daemonsets and rollouts; and to create events. It reads
// no Secret.
type Restarter struct {
	config                        Config
	core, apps, argo, ours, syncs rest.Interface
	view                          *view

	// The others are those of Run's own goroutine.
	jobs    map[workload]*job
	of      map[types.UID]*job      // by pod
	owners  map[types.UID]workload  // of ReplicaSets
	begun   map[types.UID]time.Time // restarts of the last Spacing, by workload
	next    time.Time               // before which no other restart is tried
	heard   bool                    // of the pods that were there at the start
	lost    []types.UID             // pods whose workload could not be found
	search  time.Time               // when that is tried again
	failing bool                    // that was told
	lists   map[string]time.Time    // when the pods of namespaces are to be listed
	unread  bool                    // that they cannot be was told
}

// New returns a Restarter that does nothing before Run. Its error tells what is
// wrong with config.
func New(api *kube.API, config Config) (*Restarter, error) { return build(api.Client, config) }

func build(client func(schema.GroupVersion, func(*runtime.Scheme)) (rest.Interface, error), config Config) (*Restarter, error) {
	if config.Settle < 0 || config.Spacing < 0 || config.Parallel < 0 || config.PerMinute < 0 {
		return nil, errors.New("restart: times and numbers must not be negative")
	}
	config.Settle, config.Spacing = cmp.Or(config.Settle, DefaultSettle), cmp.Or(config.Spacing, DefaultSpacing)
	config.Parallel, config.PerMinute = cmp.Or(config.Parallel, DefaultParallel), cmp.Or(config.PerMinute, DefaultPerMinute)
	if config.Recorder == nil {
		config.Recorder = noRecorder{}
	}
	r := &Restarter{
		config: config, view: newView(), jobs: map[workload]*job{}, of: map[types.UID]*job{},
		owners: map[types.UID]workload{}, begun: map[types.UID]time.Time{}, lists: map[string]time.Time{},
	}
	none := func(*runtime.Scheme) {}
	var errs [5]error
	r.core, errs[0] = client(corev1.SchemeGroupVersion, func(s *runtime.Scheme) {
		kube.AddMetadata(s)
		kube.AddEvents(s)
	})
	r.apps, errs[1] = client(apps, kube.AddMetadata)
	r.argo, errs[2] = client(argo, none)
	r.ours, errs[3] = client(class.GroupVersion, func(s *runtime.Scheme) { class.AddTypes(s); cluster.AddTypes(s) })
	r.syncs, errs[4] = client(secretsync.GroupVersion, secretsync.AddTypes)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return r, nil
}

// Run restarts until ctx ends. It is called once, by one process of a cluster at a
// time.
func (r *Restarter) Run(ctx context.Context) {
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() {
		kube.Watched{
			Client: r.ours, Resource: "secretproviderclasspodstatuses",
			Object: &cluster.PodStatus{}, List: func() runtime.Object { return &cluster.PodStatusList{} },
		}.Follow(ctx, r.view.statusStore())
	})
	following.Go(func() {
		kube.Watched{
			Client: r.ours, Resource: "secretproviderclasses",
			Object: &class.SecretProviderClass{}, List: func() runtime.Object { return &class.SecretProviderClassList{} },
		}.Follow(ctx, r.view.classStore())
	})
	if r.config.SecretSyncs {
		following.Go(func() {
			kube.Watched{
				Client: r.syncs, Resource: "secretsyncs",
				Object: &secretsync.SecretSync{}, List: func() runtime.Object { return &secretsync.SecretSyncList{} },
			}.Follow(ctx, r.view.syncStore())
		})
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(tick):
		}
		if news, namespaces, ok := r.view.take(); ok {
			r.pass(ctx, news, namespaces)
		}
	}
}

// pass does what is due.
func (r *Restarter) pass(ctx context.Context, news []types.UID, namespaces []string) {
	if began := time.Now(); !began.Before(r.search) {
		news, r.lost, r.search = append(news, r.lost...), nil, began.Add(lookAgain)
	}
	for _, uid := range news {
		r.hear(ctx, uid)
	}
	r.reread(ctx, namespaces)
	now := time.Now()
	if !r.heard {
		// What was there already is looked at in one pass, before anything is
		// restarted: restarts of an earlier leader may be under way.
		r.heard = true
		for _, j := range r.jobs {
			j.due = now.Add(r.config.Settle)
		}
	}
	for _, j := range r.sorted(func(j *job) bool { return !j.due.IsZero() && !j.due.After(now) }) {
		r.look(ctx, j)
	}
	for _, j := range r.sorted(func(j *job) bool { return j.ready }) {
		rolling := r.sorted(func(j *job) bool { return !j.rolling.IsZero() })
		if ctx.Err() != nil || len(rolling) >= r.config.Parallel || time.Now().Before(r.next) {
			return
		}
		if read, why := r.look(ctx, j); read != nil {
			r.restart(ctx, j, read, why)
		}
	}
}

// sorted returns some of the jobs, those first that have waited for longest.
func (r *Restarter) sorted(which func(*job) bool) []*job {
	var some []*job
	for _, j := range r.jobs {
		if which(j) {
			some = append(some, j)
		}
	}
	slices.SortFunc(some, func(a, b *job) int {
		return cmp.Or(a.since.Compare(b.since), strings.Compare(a.String(), b.String()))
	})
	return some
}

// hear takes in the news of a pod.
func (r *Restarter) hear(ctx context.Context, uid types.UID) {
	p, ok := r.view.get(uid, true)
	if !ok {
		r.leave(uid)
		return
	}
	j := r.of[uid]
	if j == nil {
		var err error
		switch j, err = r.find(ctx, p); {
		case err != nil:
			r.lost = append(r.lost, uid)
			if !r.failing && ctx.Err() == nil {
				r.failing = true
				klog.FromContext(ctx).Error(err, "Cannot find the workload of a pod; it is tried again", "pod", klog.KRef(p.namespace, p.name))
			}
			return
		case j == nil:
			return
		}
		r.failing = r.failing && len(r.lost) > 0
	}
	if j.unable != "" {
		p, _ = r.view.get(uid, false)
	}
	r.changed(ctx, j, p, r.config.Settle)
}

// changed notes that a secret has changed which a pod of a workload has read, and has
// the workload looked at after a while. It is where whatever tells of changes ends.
func (r *Restarter) changed(ctx context.Context, j *job, p pod, settle time.Duration) {
	if j.unable != "" {
		r.refuse(ctx, j, corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.namespace, Name: p.name, UID: p.uid}, p.changes,
			j.unable+", and not a Deployment, StatefulSet, DaemonSet or Rollout")
		return
	}
	now := time.Now()
	if j.since.IsZero() {
		j.since = now
	}
	if due := now.Add(settle); j.due.IsZero() || due.Before(j.due) {
		j.due = due
	}
}

// restart restarts a workload that look has found ready.
func (r *Restarter) restart(ctx context.Context, j *job, read *object, changes []change) {
	now := time.Now()
	j.ready, r.next = false, now.Add(time.Minute/time.Duration(r.config.PerMinute))
	var names, sentences []string
	for _, c := range changes {
		names = append(names, c.String())
		sentences = append(sentences, fmt.Sprintf("%s changed at %s", c, c.at.UTC().Format(time.RFC3339)))
	}
	body, err := read.patch(j.Kind, now, strings.Join(names, ", "))
	if err == nil {
		err = r.write(ctx, j.workload, body)
	}
	if err != nil {
		j.since = now // others are not to wait for it
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			j.due = now.Add(tick)
			return
		}
		r.config.Recorder.Restart(resultFailed)
		r.fail(ctx, j, err)
		return
	}
	maps.DeleteFunc(r.begun, func(_ types.UID, at time.Time) bool { return now.Sub(at) >= r.config.Spacing })
	r.begun[j.uid] = now
	j.rolling, j.replaced, j.since, j.due, j.failing = now, 0, time.Time{}, now.Add(watchRollout), false
	r.config.Recorder.Restart(resultStarted)
	klog.FromContext(ctx).Info("Restarted a workload", "workload", j.String(), "for", names)
	r.event(ctx, j.reference(), corev1.EventTypeNormal, "Restarted", "restarted the pods: "+strings.Join(sentences, "; "))
}

// refuse tells once that something cannot be restarted although it should be.
func (r *Restarter) refuse(ctx context.Context, j *job, about corev1.ObjectReference, changes []change, why string) {
	if j.told || len(changes) == 0 {
		return
	}
	j.told = true
	r.event(ctx, about, corev1.EventTypeWarning, "CannotRestart", fmt.Sprintf("%s has changed, and this cannot be restarted: %s; delete the pod yourself, or set the annotation %s: \"false\"",
		changes[0], why, Annotation))
}

// fail tells that something could not be done for a job, and has it looked at
// again.
func (r *Restarter) fail(ctx context.Context, j *job, err error) {
	j.due = time.Now().Add(lookAgain)
	if !j.failing && ctx.Err() == nil {
		j.failing = true
		klog.FromContext(ctx).Error(err, "Cannot restart a workload; it is tried again", "workload", j.String())
	}
}
