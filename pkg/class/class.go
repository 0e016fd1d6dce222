// Package class holds SecretProviderClass: its API type, where classes come
// from, and the checks that tell a person what is wrong with one.
package class

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The API group and versions of SecretProviderClass. The versions differ in
// their names only, so that one type serves both.
const (
	Group           = "secrets-store.csi.x-k8s.io"
	Version         = "v1"
	VersionV1alpha1 = "v1alpha1"
	Kind            = "SecretProviderClass"
)

// SecretProviderClass names a store and the objects that a volume takes from
// it. See https://secrets-store-csi-driver.sigs.k8s.io/concepts.
type SecretProviderClass struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec Spec `json:"spec,omitempty"`
}

// Spec is what a SecretProviderClass asks for.
type Spec struct {
	// Provider is the store's name: an embedded provider, or the base name of an
	// external provider's socket.
	Provider string `json:"provider,omitempty"`
	// Parameters are the provider's own.
	Parameters map[string]string `json:"parameters,omitempty"`
	// SecretObjects are the Kubernetes Secrets to be made of the mounted files.
	SecretObjects []SecretObject `json:"secretObjects,omitempty"`
}

// SecretObject is a Kubernetes Secret made of mounted files.
type SecretObject struct {
	SecretName  string             `json:"secretName,omitempty"`
	Type        string             `json:"type,omitempty"`
	Labels      map[string]string  `json:"labels,omitempty"`
	Annotations map[string]string  `json:"annotations,omitempty"`
	Data        []SecretObjectData `json:"data,omitempty"`
}

// SecretObjectData fills one key of a Secret from one mounted file.
type SecretObjectData struct {
	// ObjectName is the file's path in the volume.
	ObjectName string `json:"objectName,omitempty"`
	Key        string `json:"key,omitempty"`
}

// Ref is the namespace and name of a class.
type Ref struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// String returns "namespace/name".
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Ref returns the class's own reference.
func (c *SecretProviderClass) Ref() Ref { return Ref{c.Namespace, c.Name} }

// Source is where classes come from. Implementations are safe for concurrent
// use; what Get returns is shared and must not be changed.
type Source interface {
	// Get returns the class of that name. Where there is none, or where it
	// cannot be read, the error is a *provider.Error of kind NotFound or Invalid.
	Get(ctx context.Context, ref Ref) (*SecretProviderClass, error)
	// Watch calls changed, from one goroutine at a time, after a class appeared,
	// changed or went, until ctx ends.
	Watch(ctx context.Context, changed func(Ref)) error
}
