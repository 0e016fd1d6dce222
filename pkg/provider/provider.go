// Package provider defines what a secret store is to csi-secrets: the Provider
// contract, the request and result that pass through it, the kinds of errors,
// and the parsing that every provider shares (parameters, object lists, paths,
// modes). It knows no Kubernetes client, no mount and no file of a volume.
package provider

import (
	"context"
	"io/fs"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// DefaultMode is the mode of a file whose class gives none, as
// secrets-store-csi-driver has it.
const DefaultMode fs.FileMode = 0o644

// Provider fetches the objects that one SecretProviderClass names, as the pod
// that mounts them. Implementations are safe for concurrent use, honour ctx,
// and return an *Error wherever they know the kind of a failure.
type Provider interface {
	Fetch(ctx context.Context, req Request) (Result, error)
}

// Validator is a Provider that can judge a class's parameters without asking
// its store. Keys it does not know are reported too, marked as such.
type Validator interface {
	Validate(parameters map[string]string) []Problem
}

// Watcher is a Provider that can tell when objects may have changed at their
// source. Watch calls changed, from one goroutine at a time, after each change
// of what parameters name, until ctx ends; it then returns nil. It returns an
// error when it cannot watch. A change may be reported more than once.
type Watcher interface {
	Watch(ctx context.Context, parameters map[string]string, changed func()) error
}

// Pod is the pod that mounts a volume, as kubelet names it.
type Pod struct {
	Namespace      string
	Name           string
	UID            string
	ServiceAccount string
}

// Token is a service-account token of the pod for one audience.
type Token struct {
	Value   secret.Value
	Expires time.Time
}

// Request asks for the objects of one class on behalf of one pod.
type Request struct {
	// Parameters are the class's own. A pod cannot change them.
	Parameters map[string]string
	// Attributes are the pod's volume attributes and what kubelet adds to them
	// (csi.storage.k8s.io/...), without tokens. No key of Parameters is among them.
	Attributes map[string]string
	Pod        Pod
	// Tokens are the pod's tokens by audience; RawTokens is the JSON that they
	// came in, for stores that take it as it is.
	Tokens    map[string]Token
	RawTokens secret.Value
	// Secrets are those of the volume's nodePublishSecretRef.
	Secrets map[string]secret.Value
	// Mounted are the versions that the volume holds, none on a first publish.
	// A provider may answer Result.NotModified only if it proves them current.
	Mounted []ObjectVersion
	// TargetPath is where the pod's volume is published. It is passed on to
	// external providers; nothing may be written there.
	TargetPath string
	// Mode is the mode for files to which the class gives none.
	Mode fs.FileMode
	// Scratch makes an empty folder in memory, for an external provider that
	// writes its files by itself, and returns its path. It is called once at
	// most, and may be nil where no such provider is served.
	Scratch func() (dir string, err error)
}

// Result is a whole set of files: what it does not name, the volume loses.
type Result struct {
	Files    []File
	Versions []ObjectVersion
	// NotModified says that the versions of Request.Mounted are still current;
	// Files and Versions are then ignored.
	NotModified bool
	// InScratch says that the files are those of Request.Scratch; Files is empty.
	InScratch bool
	// ValidUntil is when the set must have been fetched anew; zero for no bound.
	ValidUntil time.Time
}

// Clear overwrites the contents of every file with zeros.
func (r Result) Clear() {
	for _, f := range r.Files {
		f.Contents.Clear()
	}
}

// File is one file of a volume. Path is relative to the volume's root and
// passes CheckPath; Mode has permission bits only.
type File struct {
	Path     string
	Mode     fs.FileMode
	Contents secret.Value
}

// ObjectVersion says which version of an object a volume holds. Neither field
// may let a reader guess at the value: no plain hashes of it.
type ObjectVersion struct {
	ID      string `json:"id"`
	Version string `json:"version"`
}
