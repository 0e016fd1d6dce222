package class

import (
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the version of the API group that the driver speaks.
var GroupVersion = schema.GroupVersion{Group: Group, Version: Version}

// SecretProviderClassList is what an API server answers to a list.
type SecretProviderClassList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []SecretProviderClass `json:"items"`
}

// AddTypes registers the kind of this package.
func AddTypes(scheme *runtime.Scheme) {
	scheme.AddKnownTypes(GroupVersion, &SecretProviderClass{}, &SecretProviderClassList{})
}

var _, _ runtime.Object = (*SecretProviderClass)(nil), (*SecretProviderClassList)(nil)

// DeepCopyObject implements runtime.Object.
func (c *SecretProviderClass) DeepCopyObject() runtime.Object {
	copied := c.deepCopy()
	return &copied
}

func (c *SecretProviderClass) deepCopy() SecretProviderClass {
	copied := SecretProviderClass{TypeMeta: c.TypeMeta, ObjectMeta: *c.ObjectMeta.DeepCopy(), Spec: c.Spec}
	copied.Spec.Parameters = maps.Clone(c.Spec.Parameters)
	copied.Spec.SecretObjects = slices.Clone(c.Spec.SecretObjects)
	for i, o := range copied.Spec.SecretObjects {
		o.Labels, o.Annotations, o.Data = maps.Clone(o.Labels), maps.Clone(o.Annotations), slices.Clone(o.Data)
		copied.Spec.SecretObjects[i] = o
	}
	return copied
}

// DeepCopyObject implements runtime.Object.
func (l *SecretProviderClassList) DeepCopyObject() runtime.Object {
	copied := &SecretProviderClassList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	for i := range l.Items {
		copied.Items = append(copied.Items, l.Items[i].deepCopy())
	}
	return copied
}
