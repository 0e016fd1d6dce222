// Package provider defines what a secret store is to csi-secrets: the Provider
// contract, the request and result that pass through it, the kinds of errors,
// and the parsing that every provider shares (parameters, object lists, paths,
// modes). It knows no Kubernetes client, no mount and no file of a volume.
package provider

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"io/fs"
	"sync"
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
// source. Watch calls changed, from one goroutine at a time, once it sees whatever
// happens from then on, and after each change of what parameters name, until ctx
// ends; it then returns nil. It returns an error when it cannot watch. A change
// may be reported more than once.
type Watcher interface {
	Watch(ctx context.Context, parameters map[string]string, changed func()) error
}

// Located is a Provider whose store is somewhere else. Store names what is asked for
// a class with these parameters, such as a server's address: what has one name
// is throttled, or away, together. It returns false for parameters that no store
// would be asked with.
type Located interface {
	Store(parameters map[string]string) (name string, ok bool)
}

// IdentityWatcher is a Watcher that needs to prove who asks. request returns what a
// volume asks for, with the tokens that are valid when it is called; WatchAs calls
// changed as Watch does, for what that names and may be seen by that identity.
// Its error is of kind Denied where the identity may not watch.
type IdentityWatcher interface {
	WatchAs(ctx context.Context, request func() Request, changed func()) error
}

// Sharer is a Provider that knows for whom an answer is. Identity returns a key of
// all that its store, and it itself, look at of who asks: requests of one class
// with the same key would be answered alike, and the store has been shown, or is
// to be shown for all of them, that it may. It returns false where an answer
// is the volume's own, or nothing can be said. It asks no store.
type Sharer interface {
	Identity(ctx context.Context, req Request) (key string, ok bool)
}

// Recognizer is a Sharer that learns of its store alone how much that looks at.
// Recognize returns each key that Identity may come to return for req: what was
// given under one of them, when that was known, may be given to who asks. It
// asks no store.
type Recognizer interface {
	Recognize(req Request) (keys []string)
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
	Mounted []ObjectVersion
	// Current returns a copy of what the volume holds in a file, by the File.Path
	// under which the provider returned it; false where there is no such file. It
	// is nil on a first publish, and where the class was another when the files
	// were made. Only where it is not nil may a provider answer
	// Result.NotModified, and only if it proves the versions of Mounted current.
	// It is safe for concurrent use.
	Current func(path string) (secret.Value, bool)
	// TargetPath is where the pod's volume is published. It is passed on to
	// external providers; nothing may be written there.
	TargetPath string
	// Urgent says that a pod waits to start, or loses soon what it has.
	Urgent bool
	// Since is from when on an answer may be, which another volume of the same
	// identity got (see Sharer).
	Since time.Time
	// Sealable is for how long the answer may be kept encrypted on the node, for
	// pods of the same identity that start while the store is away; zero for not at
	// all. Starting says that nothing is mounted yet, so that such an answer will do.
	// Providers need neither.
	Sealable time.Duration
	Starting bool
	// Key is random and stays the same for the volumes of this node, for
	// Fingerprint.
	Key secret.Value
	// Mode is the mode for files to which the class gives none.
	Mode fs.FileMode
	// Annotations reads those of the pod from the API server, with the driver's
	// own right to do so: a provider calls it only where a class cannot say what
	// to mount otherwise. It is nil where there is no cluster, or no such right.
	Annotations func(ctx context.Context) (map[string]string, error)
	// AccountAnnotations is Annotations for the pod's service account. It may
	// answer with what it read some seconds ago.
	AccountAnnotations func(ctx context.Context) (map[string]string, error)
	// Scratch may be nil where no provider that writes its files by itself is
	// served.
	Scratch Scratch
	// State is what the provider kept last of this volume; empty for none. Keep
	// keeps another in its place, or none where it is empty: leases, and the
	// tokens on which they hang, which a later fetch renews and which
	// Releaser.Release gives back when the volume goes or was never mounted. Once
	// Keep returns, that is so even if the driver is killed. A provider calls it
	// before it makes at its store what has to be given back. Keep is nil where
	// nothing can be kept: the provider then makes nothing of that kind.
	//
	// The files of an answer may or may not have been mounted when the next fetch
	// sees the state: Mounted tells.
	State secret.Value
	Keep  func(state secret.Value) error
}

// Fingerprint returns a version for what a store gives none: a MAC of parts under
// the node's key, which lets nobody guess at them.
func (r Request) Fingerprint(parts ...[]byte) string {
	key := r.Key.Reveal()
	if len(key) == 0 {
		key = ownKey()
	}
	mac := hmac.New(sha256.New, key)
	for _, part := range parts {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		mac.Write(size[:])
		mac.Write(part)
	}
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
}

// ownKey is the key of a process that was given none.
var ownKey = sync.OnceValue(func() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it does not fail
	return key
})

// Scratch is an empty folder in memory, for an external provider that writes
// its files by itself.
type Scratch interface {
	// Open makes the folder and returns its path. It is called once at most.
	Open() (dir string, err error)
	// Files returns what was written there.
	Files() ([]File, error)
}

// Releaser is a Provider that keeps state of volumes (Request.Keep). Release
// gives back what a state stands for, when the volume is gone: it returns nil
// once nothing is left at the store, as far as can be known, and is called
// again after an error. It may be called after a part was given back.
type Releaser interface {
	Release(ctx context.Context, state secret.Value) error
	// StoreOf names the store that Release asks, as Located.Store does; false where it
	// would ask none.
	StoreOf(state secret.Value) (name string, ok bool)
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
	// A refresh is planned at two thirds of the time until then, and in about half a
	// minute where it is over.
	ValidUntil time.Time
	// RefreshAt is when the provider wants to be asked again at the latest, with
	// all jitter in it; zero for whenever. The past stands for a second from now on.
	RefreshAt time.Time
	// SealedAt is zero, but for an answer that was kept sealed and is used because
	// the store gives none: it is from that time on. Package fetch sets it.
	SealedAt time.Time
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
