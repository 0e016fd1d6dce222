// Package volume owns the life of a volume: a tmpfs at a target path that holds
// the files of one SecretProviderClass for one pod. It publishes, refreshes and
// unpublishes volumes, and finds them again after a restart of the driver.
//
// Every set of files takes the same path (see Manager.fetch): the class, its
// provider, the atomic writer. A volume is filled before it is attached to its
// target, so that a target either has no volume or a whole one.
package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// The failures of a volume that are not a provider's: each asks something else
// of the caller. Everything else carries a provider.Kind.
var (
	// ErrPending: another call for the volume or its target did not end in time.
	ErrPending = errors.New("another call for this volume has not ended")
	// ErrIncompatible: the target holds a volume that differs from the request.
	ErrIncompatible = errors.New("the target path holds another volume")
	// ErrElsewhere: the volume is published at another target.
	ErrElsewhere = errors.New("the volume is published at another target path")
	// ErrForeign: the target is a mount that is not this driver's.
	ErrForeign = errors.New("the target path is taken")
	// ErrNotPublished: there is no such volume.
	ErrNotPublished = errors.New("the volume is not published")
)

// Request asks for one volume.
type Request struct {
	VolumeID   string
	TargetPath string
	// Shared allows the volume at several targets.
	Shared bool
	Class  class.Ref
	Pod    provider.Pod
	// Attributes are the volume context without tokens.
	Attributes map[string]string
	// FSGroup is the group that can read every file, nil for none.
	FSGroup *int64
	Credentials
}

// Credentials prove who the pod is. They are held in memory only.
type Credentials struct {
	Tokens    map[string]provider.Token
	RawTokens secret.Value
	Secrets   map[string]secret.Value
}

func (c Credentials) empty() bool {
	return len(c.Tokens) == 0 && len(c.Secrets) == 0 && c.RawTokens.IsEmpty()
}

// CheckTarget tells why path cannot be the target of a volume, or returns nil.
func CheckTarget(path string) error {
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("the target path %q is not absolute", path)
	case strings.ContainsRune(path, 0):
		return fmt.Errorf("the target path %q contains a NUL byte", path)
	case filepath.Clean(path) != path || path == "/":
		return fmt.Errorf("the target path %q is not in its shortest form, or is the root", path)
	case len(path) >= provider.MaxPathBytes:
		return fmt.Errorf("the target path has %d bytes, more than %d", len(path), provider.MaxPathBytes-1)
	}
	for part := range strings.SplitSeq(path, "/") {
		if len(part) > provider.MaxComponentBytes {
			return fmt.Errorf("the target path %.60q... has a component of %d bytes, more than %d", path, len(part), provider.MaxComponentBytes)
		}
	}
	return nil
}

// Info is what is known of a volume.
type Info struct {
	VolumeID   string
	TargetPath string
	Class      class.Ref
	Provider   string
	Pod        provider.Pod
	Objects    []provider.ObjectVersion
	Published  time.Time
	Changed    time.Time // when the files became others than before
	Refreshed  time.Time // when they were last known to be current
	ValidUntil time.Time // zero where the provider gave no bound
	RefreshAt  time.Time // when the provider wants to be asked again; zero for whenever
	// SealedAt is from when on the files are, where the pod started with an answer
	// that was kept sealed and its store has given none since; else zero.
	SealedAt time.Time
	// Interval is how often the class wants to be refreshed, see
	// class.RotationInterval.
	Interval class.Interval
	// Signals are those that the class wants to be sent after a change.
	Signals []class.Signal
	// LastError is why the last refresh failed, nil where it did not.
	LastError error
	// Blocked says that a refresh has to wait for kubelet's next publish, which
	// brings the credentials that a restart of the driver lost. Waiting says that
	// one did wait.
	Blocked, Waiting bool
}

// volume is a published volume. It does not change once the Manager has it: a
// refresh puts another in its place.
type volume struct {
	record
	credentials Credentials
	// leased says that the provider keeps something of the volume, by which it may
	// do without credentials.
	leased    bool
	waiting   bool // for credentials
	onChange  class.OnChange
	lastError error
	// parts are the marks of what is mounted, see fetch.Fetcher.Part, by the names of
	// the objects, and wholeOnly for objects that cannot be asked for apart. It is
	// replaced and not changed.
	parts map[string]string
}

// wholeOnly is no mark.
const wholeOnly = "-"

func (v *volume) info() Info {
	return Info{
		VolumeID: v.VolumeID, TargetPath: v.TargetPath, Class: v.Class, Provider: v.Provider, Pod: v.Pod, Objects: v.Objects,
		Published: v.Published, Changed: v.Changed, Refreshed: v.Refreshed, ValidUntil: v.ValidUntil, RefreshAt: v.RefreshAt, SealedAt: v.SealedAt, Interval: v.Interval,
		Signals: v.onChange.Signals, LastError: v.lastError, Blocked: v.blocked(), Waiting: v.waiting,
	}
}

func (v *volume) blocked() bool { return v.lost() && !v.leased }

// lost reports whether the volume had credentials, and has none since a restart.
func (v *volume) lost() bool { return v.Credentials && v.credentials.empty() }

// learn notes what all that was asked for says of a part that was asked for before it.
func (v *volume) learn(part, mark string, changed bool) {
	switch {
	case changed:
		v.parts = nil
	case part != "":
		v.parts = maps.Clone(v.parts)
		if v.parts == nil {
			v.parts = map[string]string{}
		}
		v.parts[part] = cmp.Or(mark, wholeOnly)
	}
}

// request is what the volume asks of its provider.
func (v *volume) request(c *class.SecretProviderClass) provider.Request {
	return provider.Request{
		Parameters: c.Spec.Parameters, Attributes: v.Attributes, Pod: v.Pod,
		Tokens: v.credentials.Tokens, RawTokens: v.credentials.RawTokens, Secrets: v.credentials.Secrets,
		Mounted: v.Objects, TargetPath: v.TargetPath, Mode: provider.DefaultMode,
	}
}

// madeBy returns a MAC of all that a class says, under the node's key: a class may
// hold a credential.
func madeBy(req provider.Request, c *class.SecretProviderClass) string {
	parts := [][]byte{[]byte(c.Spec.Provider)}
	for _, key := range slices.Sorted(maps.Keys(c.Spec.Parameters)) {
		parts = append(parts, []byte(key), []byte(c.Spec.Parameters[key]))
	}
	return req.Fingerprint(parts...)
}

// compatible tells why req is not a repetition of the publish that made v, or
// returns nil. What kubelet may say differently after its own upgrade does not
// count.
func (v *volume) compatible(req Request) error {
	differs := ""
	switch {
	case v.VolumeID != req.VolumeID:
		differs = fmt.Sprintf("it is volume %q", v.VolumeID)
	case v.Class != req.Class:
		differs = fmt.Sprintf("it is of class %s, not %s", v.Class, req.Class)
	case v.Pod.UID != req.Pod.UID:
		differs = fmt.Sprintf("it belongs to the pod %s/%s with UID %q", v.Pod.Namespace, v.Pod.Name, v.Pod.UID)
	case (v.FSGroup == nil) != (req.FSGroup == nil) || v.FSGroup != nil && *v.FSGroup != *req.FSGroup:
		differs = "it has another fsGroup"
	case !sameAttributes(v.Attributes, req.Attributes) || !sameAttributes(req.Attributes, v.Attributes):
		differs = "it has other attributes"
	default:
		return nil
	}
	return fmt.Errorf("%w: %s: %s; unpublish it first", ErrIncompatible, v.TargetPath, differs)
}

// kubeletPrefix begins every attribute that kubelet adds to a volume's own, and
// that may change with kubelet.
const kubeletPrefix = "csi.storage.k8s.io/"

// sameAttributes reports whether b has all of the volume's own attributes of a.
func sameAttributes(a, b map[string]string) bool {
	for key, value := range a {
		if other, ok := b[key]; (!ok || other != value) && !strings.HasPrefix(key, kubeletPrefix) {
			return false
		}
	}
	return true
}

func newVolume(req Request, now time.Time) *volume {
	return &volume{
		record: record{
			VolumeID: req.VolumeID, TargetPath: req.TargetPath, Class: req.Class, Pod: req.Pod,
			Attributes: maps.Clone(req.Attributes), FSGroup: req.FSGroup, Credentials: !req.Credentials.empty(),
			Published: now, Changed: now, Refreshed: now,
		},
		credentials: req.Credentials,
	}
}

// checkSetSize tells why a set of files cannot be held by a volume of size
// bytes, or returns nil.
func checkSetSize(files []provider.File, size int64) error {
	if need := setBytes(files); need > size/2 {
		return &provider.Error{Kind: provider.TooLarge,
			Err:    fmt.Errorf("its %d files take %d bytes and the volume has room for %d, half of its size, so that a refresh fits beside them", len(files), need, size/2),
			Remedy: fmt.Sprintf("set the class parameter %s to at least %dKi", provider.VolumeSizeKey, (2*need+1023)/1024)}
	}
	return nil
}

// Usage is what a volume takes of its bounds.
type Usage struct {
	TotalBytes, UsedBytes, FreeBytes    int64
	TotalInodes, UsedInodes, FreeInodes int64
}

// ClassError is a failure to bring the files of a class.
type ClassError struct {
	Class class.Ref
	// Provider is its name, empty where the class could not be had.
	Provider string
	Err      error
}

func (e *ClassError) Error() string { return fmt.Sprintf("class %s: %v", e.Class, e.Err) }

func (e *ClassError) Unwrap() error { return e.Err }

// Refreshed is what came of a refresh.
type Refreshed struct {
	Provider string
	// Changed says that the files are others than before.
	Changed bool
	// ValidUntil is when they must have been fetched anew; zero for no bound.
	ValidUntil time.Time
	// RefreshAt is when the provider wants to be asked again; zero for whenever.
	RefreshAt time.Time
	// Interval is the class's, see Info.
	Interval class.Interval
}

// Observer hears what happens to volumes. It is called on the publish path and
// must return at once; calls for one volume come in order.
type Observer interface {
	// Published: a volume was published, found again after a restart, or
	// published once more with new credentials.
	Published(Info)
	// Refreshed: a refresh has ended; Info.LastError tells whether it failed.
	// Where changed is set, the files are others than before.
	Refreshed(v Info, changed bool)
	// Unpublished: the volume at that target is gone.
	Unpublished(Info)
}

// Observers tells each of them, in their order.
type Observers []Observer

// Published implements Observer.
func (all Observers) Published(v Info) {
	for _, o := range all {
		o.Published(v)
	}
}

// Refreshed implements Observer.
func (all Observers) Refreshed(v Info, changed bool) {
	for _, o := range all {
		o.Refreshed(v, changed)
	}
}

// Unpublished implements Observer.
func (all Observers) Unpublished(v Info) {
	for _, o := range all {
		o.Unpublished(v)
	}
}

// Fetcher brings the files of a class, checked, and gives back what a provider
// kept of a volume that is gone.
type Fetcher interface {
	Fetch(ctx context.Context, providerName string, req provider.Request) (provider.Result, error)
	Part(ctx context.Context, providerName string, req provider.Request, due provider.Due) (mark string, err error)
	Release(ctx context.Context, providerName string, state secret.Value) error
}
