package controller

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync"
)

// Kind is the kind of the objects that ask for a Secret.
const Kind = "SecretSync"

// GroupVersion is the version of the API group of SecretSync.
var GroupVersion = schema.GroupVersion{Group: "secret-sync.x-k8s.io", Version: "v1alpha1"}

// SecretSync asks for a Secret of its own name. See
// https://secrets-store-sync-controller.sigs.k8s.io.
type SecretSync struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   Spec   `json:"spec"`
	Status Status `json:"status,omitzero"`
}

// Spec is what a SecretSync asks for. Names are of objects in its namespace.
type Spec struct {
	SecretProviderClassName string `json:"secretProviderClassName"`
	// ServiceAccountName is that as which the store is asked.
	ServiceAccountName string       `json:"serviceAccountName"`
	SecretObject       SecretObject `json:"secretObject"`
	// ForceSynchronization is any text: another has the store asked at once.
	ForceSynchronization string `json:"forceSynchronization,omitempty"`
}

// SecretObject is the Secret.
type SecretObject struct {
	Type        string             `json:"type,omitempty"`
	Labels      map[string]string  `json:"labels,omitempty"`
	Annotations map[string]string  `json:"annotations,omitempty"`
	Data        []SecretObjectData `json:"data"`
}

// SecretObjectData fills one key of the Secret with what would be a file of a
// volume of the class.
type SecretObjectData struct {
	SourcePath string `json:"sourcePath"`
	TargetKey  string `json:"targetKey"`
}

// Status is what became of a SecretSync.
type Status struct {
	// SyncHash is another text after each write of the Secret. It is random, so that
	// nobody can guess at the values.
	SyncHash string `json:"syncHash,omitempty"`
	// LastSuccessfulSyncTime is when the Secret became what it is.
	LastSuccessfulSyncTime *metav1.Time       `json:"lastSuccessfulSyncTime,omitempty"`
	Conditions             []metav1.Condition `json:"conditions,omitempty"`
}

// SecretSyncList is what an API server answers to a list.
type SecretSyncList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []SecretSync `json:"items"`
}

// AddTypes registers the kind of this package.
func AddTypes(scheme *runtime.Scheme) {
	scheme.AddKnownTypes(GroupVersion, &SecretSync{}, &SecretSyncList{})
}

var _, _ runtime.Object = (*SecretSync)(nil), (*SecretSyncList)(nil)

// class is the class that the Secret is filled from.
func (s *SecretSync) class() class.Ref {
	return class.Ref{Namespace: s.Namespace, Name: s.Spec.SecretProviderClassName}
}

// secretObject returns the Secret as a class would ask for it.
func (s *SecretSync) secretObject() class.SecretObject {
	wanted := s.Spec.SecretObject
	o := class.SecretObject{SecretName: s.Name, Type: cmp.Or(wanted.Type, string(corev1.SecretTypeOpaque)), Labels: maps.Clone(wanted.Labels), Annotations: wanted.Annotations}
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	o.Labels[madeLabel] = ""
	for _, d := range wanted.Data {
		o.Data = append(o.Data, class.SecretObjectData{ObjectName: d.SourcePath, Key: d.TargetKey})
	}
	return o
}

// terms are the words of a SecretSync.
func (s *SecretSync) terms() secretsync.Terms {
	return secretsync.Terms{Asker: "secretObject of " + Kind + " " + s.target(), Path: "sourcePath", Where: "what class " + s.class().String() + " brings"}
}

// madeLabel is on every Secret that is made for a SecretSync.
const madeLabel = "secrets-store.sync.x-k8s.io"

// DeepCopyObject implements runtime.Object.
func (s *SecretSync) DeepCopyObject() runtime.Object {
	copied := s.deepCopy()
	return &copied
}

func (s *SecretSync) deepCopy() SecretSync {
	copied := SecretSync{TypeMeta: s.TypeMeta, ObjectMeta: *s.ObjectMeta.DeepCopy(), Spec: s.Spec, Status: s.Status.deepCopy()}
	o := &copied.Spec.SecretObject
	o.Labels, o.Annotations, o.Data = maps.Clone(o.Labels), maps.Clone(o.Annotations), slices.Clone(o.Data)
	return copied
}

func (s Status) deepCopy() Status {
	s.LastSuccessfulSyncTime, s.Conditions = s.LastSuccessfulSyncTime.DeepCopy(), slices.Clone(s.Conditions)
	return s
}

// DeepCopyObject implements runtime.Object.
func (l *SecretSyncList) DeepCopyObject() runtime.Object {
	copied := &SecretSyncList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	for i := range l.Items {
		copied.Items = append(copied.Items, l.Items[i].deepCopy())
	}
	return copied
}
