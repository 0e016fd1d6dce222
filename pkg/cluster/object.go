// Package cluster tells a Kubernetes cluster what became of its pods' volumes:
// SecretProviderClassPodStatus objects and events. Both are written off the path
// of a publish, and no node ever reads either as input.
package cluster

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// PodStatusKind is the kind of the objects that tell what a pod has mounted.
const PodStatusKind = "SecretProviderClassPodStatus"

// NodeLabel holds the node of a pod whose status it is.
const NodeLabel = "internal.secrets-store.csi.k8s.io/node-name"

// PodStatus is a SecretProviderClassPodStatus: what one pod has mounted of one
// class. It has no field for a value. See
// https://secrets-store-csi-driver.sigs.k8s.io/concepts.
type PodStatus struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Status Status `json:"status,omitempty"`
}

// Status begins with the fields of secrets-store-csi-driver; the others are
// left out where the cluster has its CustomResourceDefinition.
type Status struct {
	PodName                 string                   `json:"podName,omitempty"`
	SecretProviderClassName string                   `json:"secretProviderClassName,omitempty"`
	Mounted                 bool                     `json:"mounted,omitempty"`
	TargetPath              string                   `json:"targetPath,omitempty"`
	Objects                 []provider.ObjectVersion `json:"objects,omitempty"`

	Provider  string       `json:"provider,omitempty"`
	MountedAt *metav1.Time `json:"mountedAt,omitempty"`
	// LastRotationTime is when the files became others than before.
	LastRotationTime *metav1.Time `json:"lastRotationTime,omitempty"`
	// Secrets are those that secretObjects made of the files, by name.
	Secrets []Secret `json:"secrets,omitempty"`
	// Conditions has one of type Ready, and one of type Synced where the class wants
	// Secrets.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Secret is one that the class wants.
type Secret struct {
	Name string `json:"name"`
	// WrittenAt is when the Secret became what it is; nil where that is not known.
	WrittenAt *metav1.Time `json:"writtenAt,omitempty"`
}

// PodStatusList is what an API server answers to a list.
type PodStatusList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []PodStatus `json:"items"`
}

// AddTypes registers the kind of this package.
func AddTypes(scheme *runtime.Scheme) {
	scheme.AddKnownTypeWithName(class.GroupVersion.WithKind(PodStatusKind), &PodStatus{})
	scheme.AddKnownTypeWithName(class.GroupVersion.WithKind(PodStatusKind+"List"), &PodStatusList{})
}

var _, _ runtime.Object = (*PodStatus)(nil), (*PodStatusList)(nil)

// DeepCopyObject implements runtime.Object.
func (s *PodStatus) DeepCopyObject() runtime.Object {
	copied := s.deepCopy()
	return &copied
}

func (s *PodStatus) deepCopy() PodStatus {
	copied := PodStatus{TypeMeta: s.TypeMeta, ObjectMeta: *s.ObjectMeta.DeepCopy(), Status: s.Status}
	copied.Status.Objects = slices.Clone(s.Status.Objects)
	copied.Status.MountedAt = s.Status.MountedAt.DeepCopy()
	copied.Status.LastRotationTime = s.Status.LastRotationTime.DeepCopy()
	copied.Status.Conditions = slices.Clone(s.Status.Conditions)
	copied.Status.Secrets = slices.Clone(s.Status.Secrets)
	for i := range copied.Status.Secrets {
		copied.Status.Secrets[i].WrittenAt = copied.Status.Secrets[i].WrittenAt.DeepCopy()
	}
	return copied
}

// DeepCopyObject implements runtime.Object.
func (l *PodStatusList) DeepCopyObject() runtime.Object {
	copied := &PodStatusList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	for i := range l.Items {
		copied.Items = append(copied.Items, l.Items[i].deepCopy())
	}
	return copied
}
