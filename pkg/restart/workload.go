package restart

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var (
	apps = schema.GroupVersion{Group: "apps", Version: "v1"}
	argo = schema.GroupVersion{Group: "argoproj.io", Version: "v1alpha1"}

	replicaSet = schema.GroupKind{Group: apps.Group, Kind: "ReplicaSet"}
	// restartable are the kinds of workloads that can be restarted, with their
	// versions.
	restartable = map[schema.GroupKind]schema.GroupVersion{
		{Group: apps.Group, Kind: deployment}:  apps,
		{Group: apps.Group, Kind: statefulSet}: apps,
		{Group: apps.Group, Kind: daemonSet}:   apps,
		{Group: argo.Group, Kind: rollout}:     argo,
	}
)

const (
	deployment  = "Deployment"
	statefulSet = "StatefulSet"
	daemonSet   = "DaemonSet"
	rollout     = "Rollout"
)

// workload names what owns pods.
type workload struct {
	schema.GroupKind
	namespace, name string
	uid             types.UID
}

// controllerOf returns the workload that controls an object, the zero one where
// none does.
func controllerOf(o *metav1.ObjectMeta) workload {
	owner := metav1.GetControllerOf(o)
	if owner == nil {
		return workload{}
	}
	return workload{schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind).GroupKind(), o.Namespace, owner.Name, owner.UID}
}

// resource returns the kind's plural, as in URLs.
func (w workload) resource() string { return strings.ToLower(w.Kind) + "s" }

func (w workload) String() string { return w.Kind + " " + w.namespace + "/" + w.name }

func (w workload) reference() corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: restartable[w.GroupKind].String(), Kind: w.Kind, Namespace: w.namespace, Name: w.name, UID: w.uid}
}

// object is what is read of a workload of any kind: of apps/v1, and of Argo's
// Rollout (https://argo-rollouts.readthedocs.io/en/stable/features/specification).
type object struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		Replicas  int32        `json:"replicas"`
		Paused    bool         `json:"paused"`
		RestartAt *metav1.Time `json:"restartAt"` // of a Rollout
		Template  struct {
			Metadata struct {
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
		} `json:"template"`
		// UpdateStrategy is that of a StatefulSet or a DaemonSet.
		UpdateStrategy struct {
			Type          string `json:"type"`
			RollingUpdate struct {
				Partition int32 `json:"partition"`
			} `json:"rollingUpdate"`
		} `json:"updateStrategy"`
	} `json:"spec"`
	Status struct {
		ObservedGeneration intstr.IntOrString `json:"observedGeneration"` // a Rollout's is a text
		Replicas           int32              `json:"replicas"`
		UpdatedReplicas    int32              `json:"updatedReplicas"`
		AvailableReplicas  int32              `json:"availableReplicas"`
		Conditions         []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
			Reason string `json:"reason"`
		} `json:"conditions"`
		// Those of a StatefulSet.
		CurrentRevision string `json:"currentRevision"`
		UpdateRevision  string `json:"updateRevision"`
		// Those of a DaemonSet.
		DesiredNumberScheduled int32 `json:"desiredNumberScheduled"`
		UpdatedNumberScheduled int32 `json:"updatedNumberScheduled"`
		// Those of a Rollout.
		Phase          string       `json:"phase"`
		RestartedAt    *metav1.Time `json:"restartedAt"`
		CurrentPodHash string       `json:"currentPodHash"`
		StableRS       string       `json:"stableRS"`
	} `json:"status"`
}

// wish returns what annotations ask for; there is nothing where set is false.
// Whatever is not "true" keeps the workload as it is.
func wish(places ...map[string]string) (restart, set bool) {
	for _, annotations := range places {
		if text, ok := annotations[Annotation]; ok {
			restart, set = text == "true" && (restart || !set), true
		}
	}
	return restart, set
}

// manual says that the workload's pods are replaced by a person only.
func (o *object) manual() bool { return o.Spec.UpdateStrategy.Type == "OnDelete" }

// held says that somebody holds rollouts up. (A pause in a canary's steps is none
// of spec.paused: a Rollout restarts its pods in place meanwhile.)
func (o *object) held() bool {
	return o.Spec.Paused || o.Spec.UpdateStrategy.RollingUpdate.Partition > 0
}

// finished says that the last rollout is over, so that every pod that is not about
// to end is of the newest revision. Pods that have failed since do not matter:
// they may need the restart.
func (o *object) finished(kind string) bool {
	s := &o.Status
	if !o.observed() {
		return false
	}
	switch kind {
	case deployment:
		return s.UpdatedReplicas == s.Replicas && (o.progressing("NewReplicaSetAvailable") ||
			s.UpdatedReplicas >= o.Spec.Replicas && s.AvailableReplicas >= o.Spec.Replicas)
	case statefulSet:
		return s.CurrentRevision == s.UpdateRevision && s.UpdatedReplicas == s.Replicas
	case daemonSet:
		return s.UpdatedNumberScheduled >= s.DesiredNumberScheduled
	default:
		return (s.Phase == "Healthy" || s.Phase == "Paused") && (o.Spec.RestartAt == nil || o.Spec.RestartAt.Equal(s.RestartedAt))
	}
}

// observed says that the status is about what the workload asks for now.
func (o *object) observed() bool {
	return o.Status.ObservedGeneration.String() == strconv.FormatInt(o.Metadata.Generation, 10)
}

// failed says that the cluster has given the rollout up.
func (o *object) failed() bool {
	return o.progressing("ProgressDeadlineExceeded") || o.Status.Phase == "Degraded"
}

func (o *object) progressing(reason string) bool {
	for _, c := range o.Status.Conditions {
		if c.Type == "Progressing" && c.Reason == reason {
			return true
		}
	}
	return false
}

// replaced is how many pods are of the newest revision.
func (o *object) replaced() int32 { return o.Status.UpdatedReplicas + o.Status.UpdatedNumberScheduled }

// stays says that a pod is not about to end.
func (o *object) stays(kind string, pod *metav1.ObjectMeta) bool {
	if pod.DeletionTimestamp != nil {
		return false
	}
	// The pods of an older ReplicaSet of a Rollout may live on for a while.
	return kind != rollout || slices.Contains([]string{o.Status.CurrentPodHash, o.Status.StableRS}, pod.Labels["rollouts-pod-template-hash"])
}

// restartedAt is when the workload was restarted last, zero where it never was.
func (o *object) restartedAt(kind string) time.Time {
	if kind == rollout {
		if o.Spec.RestartAt == nil {
			return time.Time{}
		}
		return o.Spec.RestartAt.Time
	}
	at, _ := time.Parse(time.RFC3339, o.Spec.Template.Metadata.Annotations[RestartedAtAnnotation])
	return at
}

// patch returns the JSON merge patch (RFC 7386) that restarts the workload, unless
// anything of it has changed since it was read.
func (o *object) patch(kind string, now time.Time, why string) ([]byte, error) {
	at := now.UTC().Format(time.RFC3339)
	metadata := map[string]any{"uid": o.Metadata.UID, "resourceVersion": o.Metadata.ResourceVersion}
	annotations := map[string]string{RestartedAtAnnotation: at, RestartedForAnnotation: why}
	spec := map[string]any{}
	if kind == rollout {
		metadata["annotations"], spec["restartAt"] = annotations, at
	} else {
		spec["template"] = map[string]any{"metadata": map[string]any{"annotations": annotations}}
	}
	body, err := json.Marshal(map[string]any{"metadata": metadata, "spec": spec})
	if err != nil {
		return nil, fmt.Errorf("encode the patch: %w", err)
	}
	return body, nil
}
