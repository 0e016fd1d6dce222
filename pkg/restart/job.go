package restart

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// job is a workload with pods that have seen a change.
type job struct {
	workload
	// unable says why it can never be restarted; empty for one that can.
	unable string
	told   bool // that it is unable

	pods map[types.UID]struct{}
	// readers are pods that had read a Secret before it became what it is, when the
	// pods of the namespace were listed.
	readers map[types.UID]pod
	since   time.Time // of the first sign of a change that no restart has answered
	due     time.Time // when it is looked at next; zero for not before another sign
	ready   bool      // it waits for its turn only
	// rolling is when the restart that is under way last replaced a pod more, zero
	// where none is, and replaced how many it has replaced.
	rolling  time.Time
	replaced int32
	failing  bool // that was told
}

// find returns the job of a pod's workload, nil where the pod is gone.
func (r *Restarter) find(ctx context.Context, p pod) (*job, error) {
	its, err := metadata(ctx, r.core, "pods", p.namespace, p.name)
	switch {
	case apierrors.IsNotFound(err), err == nil && its.UID != p.uid:
		return nil, nil
	case err != nil:
		return nil, err
	}
	j, err := r.jobOf(ctx, &its.ObjectMeta)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	r.of[p.uid] = j
	if j.unable == "" {
		j.pods[p.uid] = struct{}{}
	}
	return j, nil
}

// jobOf returns the job of the workload of a pod.
func (r *Restarter) jobOf(ctx context.Context, its *metav1.ObjectMeta) (*job, error) {
	owner, err := r.ownerOf(ctx, its)
	if err != nil {
		return nil, err
	}
	if _, can := restartable[owner.GroupKind]; !can {
		j := &job{unable: "nothing controls it"}
		if owner.Kind != "" {
			j.unable = fmt.Sprintf("%s %s controls it", owner.Kind, owner.name)
		}
		restart, set := wish(its.Annotations)
		j.told = set && !restart
		return j, nil
	}
	j := r.jobs[owner]
	if j == nil {
		j = &job{workload: owner, pods: map[types.UID]struct{}{}, readers: map[types.UID]pod{}}
		r.jobs[owner] = j
	}
	return j, nil
}

// ownerOf returns what controls a pod: what controls its ReplicaSet, where it has
// one. It returns the zero workload for a pod of its own.
func (r *Restarter) ownerOf(ctx context.Context, its *metav1.ObjectMeta) (workload, error) {
	owner := controllerOf(its)
	if owner.GroupKind != replicaSet {
		return owner, nil
	}
	if above, known := r.owners[owner.uid]; known {
		return above, nil
	}
	set, err := metadata(ctx, r.apps, "replicasets", owner.namespace, owner.name)
	if err != nil {
		return workload{}, err
	}
	above := controllerOf(&set.ObjectMeta)
	if above.Kind == "" {
		above = owner
	}
	if len(r.owners) >= maxOwners {
		clear(r.owners)
	}
	r.owners[owner.uid] = above
	return above, nil
}

// adopt notes a restart that is under way of which the workload alone tells: that
// of an earlier leader, or one of whose patch no answer came.
func (j *job) adopt(read *object) {
	if j.rolling.IsZero() && !read.finished(j.Kind) && !read.failed() && time.Since(read.restartedAt(j.Kind)) < overdue {
		j.rolling, j.replaced = time.Now(), 0
	}
}

// leave forgets a pod.
func (r *Restarter) leave(uid types.UID) {
	if j := r.of[uid]; j != nil {
		delete(r.of, uid)
		delete(j.pods, uid)
		r.drop(j)
	}
}

// drop forgets a workload of which nothing is left to do.
func (r *Restarter) drop(j *job) {
	if len(j.pods) == 0 && len(j.readers) == 0 && j.rolling.IsZero() {
		delete(r.jobs, j.workload)
	}
}

// look brings a job up to date with its workload. It returns the workload and what
// has changed if it could be restarted at once.
func (r *Restarter) look(ctx context.Context, j *job) (*object, []change) {
	j.ready, j.due = false, time.Time{}
	read, err := r.read(ctx, j.workload)
	now := time.Now()
	switch {
	case apierrors.IsNotFound(err), err == nil && (read.Metadata.UID != j.uid || read.Metadata.DeletionTimestamp != nil):
		for uid := range j.pods {
			delete(r.of, uid)
		}
		delete(r.jobs, j.workload)
		return nil, nil
	case err != nil:
		r.fail(ctx, j, err)
		return nil, nil
	}
	if j.adopt(read); !j.rolling.IsZero() {
		if r.rolls(ctx, j, read) {
			j.due = now.Add(watchRollout)
			return nil, nil
		}
		r.drop(j)
	}
	changes, pods := r.changes(j, read)
	switch {
	case len(changes) == 0:
		r.rest(j)
	case read.manual():
		r.refuse(ctx, j, j.reference(), changes, "its update strategy is OnDelete")
		r.rest(j)
	case read.held(), !read.finished(j.Kind):
		j.due = now.Add(lookAgain)
	case now.Before(r.last(j, read).Add(r.config.Spacing)):
		j.due = r.last(j, read).Add(r.config.Spacing)
	default:
		stays, err := r.anyStays(ctx, j, read, pods)
		switch {
		case err != nil:
			r.fail(ctx, j, err)
		case !stays:
			j.due = now.Add(lookAgain)
		default:
			if j.ready = true; j.since.IsZero() {
				j.since = now
			}
			return read, changes
		}
	}
	return nil, nil
}

// rest has nothing done for a workload before there is another sign of a change.
func (r *Restarter) rest(j *job) {
	j.since = time.Time{}
	clear(j.readers)
	r.drop(j)
}

// rolls returns whether the restart that was under way still is.
func (r *Restarter) rolls(ctx context.Context, j *job, read *object) bool {
	now := time.Now()
	if n := read.replaced(); read.observed() && n > j.replaced {
		j.replaced, j.rolling = n, now
	}
	switch {
	case read.finished(j.Kind):
		r.config.Recorder.Restart(resultFinished)
	case read.observed() && read.failed(), now.Sub(j.rolling) >= overdue:
		r.config.Recorder.Restart(resultUnfinished)
		klog.FromContext(ctx).Info("A workload that was restarted does not finish its rollout; it is not restarted again before it has", "workload", j.String())
	default:
		return true
	}
	j.rolling = time.Time{}
	return false
}

// changes returns those that a job's workload is to be restarted for, the last of
// each name, and the pods for which they are.
func (r *Restarter) changes(j *job, read *object) (last []change, pods []pod) {
	wished, set := wish(read.Metadata.Annotations, read.Spec.Template.Metadata.Annotations)
	if set && !wished {
		return nil, nil
	}
	all := r.view.wished(slices.Collect(maps.Values(j.readers)), wished)
	for uid := range j.pods {
		if p, ok := r.view.get(uid, wished); ok {
			all = append(all, p)
		}
	}
	for _, p := range all {
		if len(p.changes) == 0 {
			continue
		}
		pods = append(pods, p)
		for _, c := range p.changes {
			i := slices.IndexFunc(last, func(other change) bool { return other.String() == c.String() })
			if i < 0 {
				last = append(last, c)
			} else if c.at.After(last[i].at) {
				last[i] = c
			}
		}
	}
	slices.SortFunc(last, func(a, b change) int { return strings.Compare(a.String(), b.String()) })
	return last, pods
}

// last is when the workload was restarted last. What a GitOps controller has taken
// off the workload again is remembered for a while.
func (r *Restarter) last(j *job, read *object) time.Time {
	at := read.restartedAt(j.Kind)
	if begun := r.begun[j.uid]; begun.After(at) {
		return begun
	}
	return at
}

// anyStays returns whether one of the pods is there still, is not about to end, and
// has not begun anew since.
func (r *Restarter) anyStays(ctx context.Context, j *job, read *object, pods []pod) (bool, error) {
	for _, p := range pods {
		its, err := r.readPod(ctx, p.namespace, p.name)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return false, err
		case its.Metadata.UID == p.uid && read.stays(j.Kind, &its.Metadata) && its.outdated(p.changes):
			return true, nil
		}
		delete(j.readers, p.uid)
	}
	return false, nil
}
