package restart

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/cluster"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync/controller"
)

// A pod that uses a Secret need not mount the class that it is made of, and no
// status tells what it has read. So the pods of a namespace are listed after a
// Secret has changed there: those have read what it was before that name it, and
// began earlier.

// written is a Secret that was made of classes.
type written struct {
	at time.Time         // when it became what it is
	by map[teller]string // the classes, by what tells of it
}

// teller is an object whose status tells of Secrets of its namespace.
type teller struct {
	kind string
	place
}

// of tells whether a Secret is made of a class.
func (w *written) of(class string) bool {
	for _, its := range w.by {
		if its == class {
			return true
		}
	}
	return false
}

// tell notes what an object tells: when Secrets, by name, that are made of a class
// became what they are. Callers hold mu.
func (v *view) tell(by teller, class string, secrets map[string]time.Time) {
	for _, name := range v.told[by] {
		at := place{Namespace: by.Namespace, Name: name}
		if _, still := secrets[name]; still {
			continue
		}
		if w := v.secrets[at]; w != nil {
			if delete(w.by, by); len(w.by) == 0 {
				delete(v.secrets, at)
			}
		}
	}
	if len(secrets) == 0 {
		delete(v.told, by)
		return
	}
	v.told[by] = slices.Collect(maps.Keys(secrets))
	for name, changed := range secrets {
		at := place{Namespace: by.Namespace, Name: name}
		w := v.secrets[at]
		if w == nil {
			w = &written{by: map[teller]string{}}
			v.secrets[at] = w
		}
		w.by[by] = class
		if w.at.Before(changed) {
			w.at = changed
			v.reread[by.Namespace] = struct{}{}
		}
	}
}

// setSecrets notes what the status of a pod tells of Secrets, nil for one that is
// gone. Callers hold mu.
func (v *view) setSecrets(at place, p *cluster.PodStatus) {
	secrets, of := map[string]time.Time{}, ""
	if p != nil {
		of = p.Status.SecretProviderClassName
		for _, s := range p.Status.Secrets {
			if s.WrittenAt != nil {
				secrets[s.Name] = s.WrittenAt.Time
			}
		}
	}
	v.tell(teller{cluster.PodStatusKind, at}, of, secrets)
}

// setSync notes what a SecretSync tells of its Secret, nil for one that is gone.
// Callers hold mu.
func (v *view) setSync(at place, s *secretsync.SecretSync) {
	secrets, of := map[string]time.Time{}, ""
	if s != nil && s.Status.LastSuccessfulSyncTime != nil {
		secrets[s.Name], of = s.Status.LastSuccessfulSyncTime.Time, s.Spec.SecretProviderClassName
	}
	v.tell(teller{secretsync.Kind, at}, of, secrets)
}

// syncStore is what the watch of SecretSyncs writes to.
func (v *view) syncStore() kube.Mirror[*secretsync.SecretSync] {
	return kube.Mirror[*secretsync.SecretSync]{Lock: &v.mu, Set: v.setSync, Known: func() []place { return v.tellers(secretsync.Kind) }}
}

// tellers returns where the objects of a kind are that tell of Secrets. Callers hold
// mu.
func (v *view) tellers(kind string) (all []place) {
	for by := range v.told {
		if by.kind == kind {
			all = append(all, by.place)
		}
	}
	return all
}

// wantedFor tells whether a class of which a Secret is made wants restarts. Callers
// hold mu.
func (v *view) wantedFor(at place) bool {
	if w := v.secrets[at]; w != nil {
		for _, class := range w.by {
			if v.classes[place{Namespace: at.Namespace, Name: class}] {
				return true
			}
		}
	}
	return false
}

// written returns when the Secrets of a namespace became what they are, by name.
func (v *view) written(namespace string) map[string]time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := map[string]time.Time{}
	for at, w := range v.secrets {
		if at.Namespace == namespace {
			all[at.Name] = w.at
		}
	}
	return all
}

// wished returns pods with those changes that are a reason to restart their
// workload, see get.
func (v *view) wished(pods []pod, wished bool) []pod {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, p := range pods {
		pods[i] = v.wishedOf(p, wished)
	}
	return pods
}

// podObject is what is read of a pod. What its variables are is not.
type podObject struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		InitContainers []container `json:"initContainers"`
		Containers     []container `json:"containers"`
		Volumes        []struct {
			Name   string `json:"name"`
			Secret *struct {
				SecretName string `json:"secretName"`
			} `json:"secret"`
			Projected *struct {
				Sources []struct {
					Secret *named `json:"secret"`
				} `json:"sources"`
			} `json:"projected"`
		} `json:"volumes"`
	} `json:"spec"`
	Status struct {
		Phase                 string            `json:"phase"`
		InitContainerStatuses []containerStatus `json:"initContainerStatuses"`
		ContainerStatuses     []containerStatus `json:"containerStatuses"`
	} `json:"status"`
}

type container struct {
	Name    string `json:"name"`
	EnvFrom []struct {
		SecretRef *named `json:"secretRef"`
	} `json:"envFrom"`
	Env []struct {
		ValueFrom struct {
			SecretKeyRef *named `json:"secretKeyRef"`
		} `json:"valueFrom"`
	} `json:"env"`
	VolumeMounts []named `json:"volumeMounts"`
}

type named struct {
	Name string `json:"name"`
}

type containerStatus struct {
	Name  string `json:"name"`
	State struct {
		Running    *began `json:"running"`
		Terminated *began `json:"terminated"`
	} `json:"state"`
}

type began struct {
	StartedAt *metav1.Time `json:"startedAt"`
}

// readers tells which of the Secrets, of which is given when they became what they
// are, the pod has read before. Variables are read when a container starts. So are
// files, as far as this concerns: what reads them again needs no restart.
func (p *podObject) readers(secrets map[string]time.Time) (before []change) {
	if p.Metadata.DeletionTimestamp != nil || p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed" {
		return nil
	}
	volumes := map[string][]string{} // the Secrets of each
	for _, v := range p.Spec.Volumes {
		if v.Secret != nil {
			volumes[v.Name] = append(volumes[v.Name], v.Secret.SecretName)
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.Secret != nil {
					volumes[v.Name] = append(volumes[v.Name], s.Secret.Name)
				}
			}
		}
	}
	seen := map[string]bool{}
	look := func(containers []container, statuses []containerStatus, ended bool) {
		for _, c := range containers {
			started, ok := startOf(c.Name, statuses, ended)
			if !ok {
				continue
			}
			for _, name := range c.secrets(volumes) {
				if changed, known := secrets[name]; known && !seen[name] && started.Before(changed) {
					seen[name] = true
					before = append(before, change{secretKind, name, changed})
				}
			}
		}
	}
	// What an init container has read may be in what it has made for the others.
	look(p.Spec.InitContainers, p.Status.InitContainerStatuses, true)
	look(p.Spec.Containers, p.Status.ContainerStatuses, false)
	return before
}

// startOf returns when a container began that runs, or has ended if that counts too,
// in whole seconds of its node. One that is yet to begin reads what there is then.
func startOf(name string, statuses []containerStatus, ended bool) (time.Time, bool) {
	for _, s := range statuses {
		if s.Name != name {
			continue
		}
		its := s.State.Running
		if its == nil && ended {
			its = s.State.Terminated
		}
		if its != nil && its.StartedAt != nil {
			return its.StartedAt.Time, true
		}
	}
	return time.Time{}, false
}

// secrets returns the names of the Secrets that a container reads.
func (c *container) secrets(volumes map[string][]string) (names []string) {
	for _, from := range c.EnvFrom {
		if from.SecretRef != nil {
			names = append(names, from.SecretRef.Name)
		}
	}
	for _, variable := range c.Env {
		if ref := variable.ValueFrom.SecretKeyRef; ref != nil {
			names = append(names, ref.Name)
		}
	}
	for _, mount := range c.VolumeMounts {
		names = append(names, volumes[mount.Name]...)
	}
	return names
}

// outdated tells whether one of the changes concerns the pod still: those of files
// do as long as it is there.
func (p *podObject) outdated(changes []change) bool {
	secrets := map[string]time.Time{}
	for _, c := range changes {
		if c.kind != secretKind {
			return true
		}
		secrets[c.name] = c.at
	}
	return len(p.readers(secrets)) > 0
}

// reread lists the pods of namespaces with Secrets of which there is news, once no
// more may follow.
func (r *Restarter) reread(ctx context.Context, namespaces []string) {
	now := time.Now()
	for _, namespace := range namespaces {
		if _, waits := r.lists[namespace]; !waits {
			r.lists[namespace] = now.Add(r.config.Settle)
		}
	}
	for namespace, due := range r.lists {
		if due.After(now) || ctx.Err() != nil {
			continue
		}
		switch err := r.list(ctx, namespace); {
		case err == nil:
			delete(r.lists, namespace)
			r.unread = false
		default:
			r.lists[namespace] = now.Add(lookAgain)
			if !r.unread && ctx.Err() == nil {
				r.unread = true
				klog.FromContext(ctx).Error(err, "Cannot find the pods that use a Secret; it is tried again", "namespace", namespace)
			}
		}
	}
}

// list finds the pods of a namespace that have read a Secret before it became what
// it is.
func (r *Restarter) list(ctx context.Context, namespace string) error {
	secrets := r.view.written(namespace)
	type reader struct {
		pod
		of *job
	}
	var all []reader
	defer func() { // where an error came between
		for _, p := range all {
			r.drop(p.of)
		}
	}()
	for more, first := "", true; first || more != ""; first = false {
		page, err := r.readPods(ctx, namespace, more)
		if err != nil {
			return fmt.Errorf("list the pods of %s: %w", namespace, err)
		}
		more = page.Metadata.Continue
		for i := range page.Items {
			its := &page.Items[i]
			changes := its.readers(secrets)
			if len(changes) == 0 {
				continue
			}
			j, err := r.jobOf(ctx, &its.Metadata)
			if apierrors.IsNotFound(err) {
				continue // it is about to go
			}
			if err != nil {
				return fmt.Errorf("find the workload of pod %s/%s: %w", namespace, its.Metadata.Name, err)
			}
			all = append(all, reader{pod{namespace, its.Metadata.Name, its.Metadata.UID, changes}, j})
		}
	}
	for _, p := range all {
		if p.of.unable == "" {
			p.of.readers[p.uid] = p.pod
		} else {
			p.pod = r.view.wished([]pod{p.pod}, false)[0]
		}
		r.changed(ctx, p.of, p.pod, 0)
	}
	return nil
}
