package volume

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/mount-utils"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// Config is what a Manager works with.
type Config struct {
	// StateDir keeps a record of every volume. One Manager at a time may use it.
	StateDir string
	// LeaseDir is where the driver mounts a tmpfs of its own, for what providers
	// keep of leases; a folder below StateDir where it is empty. A driver in a
	// container finds it again if mounts there propagate to the host.
	LeaseDir string
	Classes  class.Source
	Fetcher  Fetcher
	// Annotations and AccountAnnotations read those of pods and of their service
	// accounts for providers; nil where nobody can.
	Annotations, AccountAnnotations func(ctx context.Context, pod provider.Pod) (map[string]string, error)
	// Observer may be nil.
	Observer Observer
	// Mounter looks at mounts; nil for the system's own.
	Mounter mount.Interface
	// Writable makes the mounts on the host writable, those of recovered volumes
	// too, for another driver that is to take over. Pods see no difference.
	Writable bool
}

// Manager keeps the volumes of a node. It is safe for concurrent use; calls for
// one volume, or for one target, run one after another.
type Manager struct {
	classes  class.Source
	fetcher  Fetcher
	observer Observer
	mounter  mount.Interface
	records  *records
	kept     *kept
	key      secret.Value // for versions of what has none
	noswap   bool
	writable bool

	annotations, accountAnnotations func(ctx context.Context, pod provider.Pod) (map[string]string, error)

	locks locks
	// lingering are the sets that a tidy is still to remove.
	lingering sync.WaitGroup

	mu       sync.RWMutex
	byTarget map[string]*volume
	targets  map[string][]string // targets by volume ID
}

// New returns a Manager that has no volumes yet: Recover finds those of an
// earlier one. It fails where this machine lets it mount no tmpfs, or where
// another Manager uses the state folder.
func New(c Config) (*Manager, error) {
	if c.StateDir == "" || c.Classes == nil || c.Fetcher == nil {
		return nil, errors.New("a volume manager needs a state folder, a source of classes and a fetcher")
	}
	if c.Observer == nil {
		c.Observer = Observers(nil)
	}
	if c.Mounter == nil {
		c.Mounter = &mount.Mounter{} // mount.New would fork umount(8) to try it
	}
	noswap, err := probeTmpfs()
	if err != nil {
		return nil, err
	}
	records, err := openRecords(c.StateDir)
	if err != nil {
		return nil, err
	}
	key, err := nodeKey(filepath.Join(c.StateDir, "key"))
	if err != nil {
		return nil, errors.Join(err, records.close())
	}
	if c.LeaseDir == "" {
		c.LeaseDir = filepath.Join(c.StateDir, "leases")
	}
	kept, err := openKept(c.LeaseDir, c.Mounter, noswap)
	if err != nil {
		return nil, errors.Join(err, records.close())
	}
	return &Manager{
		classes: c.Classes, fetcher: c.Fetcher, annotations: c.Annotations, accountAnnotations: c.AccountAnnotations, observer: c.Observer, mounter: c.Mounter, records: records, kept: kept, key: key, noswap: noswap, writable: c.Writable,
		byTarget: map[string]*volume{}, targets: map[string][]string{},
	}, nil
}

// nodeKey returns the random key that the file holds, which it makes if need be.
func nodeKey(path string) (secret.Value, error) {
	if key, err := os.ReadFile(path); err == nil && len(key) == 32 {
		return secret.New(key), nil
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it does not fail
	if err := os.WriteFile(path+".new", key, 0o600); err != nil {
		// Versions are others after the next restart then; a full disk is no reason
		// for pods not to start.
		return secret.New(key), nil
	}
	if err := os.Rename(path+".new", path); err != nil {
		return secret.Value{}, fmt.Errorf("keep the key of the node: %w", err)
	}
	return secret.New(key), nil
}

// Run gives back the leases of volumes that are gone until ctx ends.
func (m *Manager) Run(ctx context.Context) { m.kept.run(ctx, m.fetcher.Release) }

// Releasing returns how many volumes that are gone have leases that are not given
// back yet.
func (m *Manager) Releasing() int { return m.kept.pending() }

// Close waits until no files of before a change are left, for about a second, and
// gives up the state folder. The volumes stay mounted. Nothing else is called while it
// runs, nor after it.
func (m *Manager) Close() error {
	m.lingering.Wait()
	return errors.Join(m.kept.close(), m.records.close())
}

// NoSwap reports whether this kernel keeps volumes out of swap.
func (m *Manager) NoSwap() bool { return m.noswap }

// Publish mounts the volume, or does nothing but take over its credentials if
// that was done before. When it fails, nothing is mounted at the target.
//
// A target that already holds a tmpfs of which nothing is known here, as after
// the loss of the state folder or the change from another driver, is written
// in place, because a pod may be using it; where it holds a set of files, a
// failure to fetch another is no error.
func (m *Manager) Publish(ctx context.Context, req Request) error {
	unlock, err := m.lock(ctx, req.VolumeID, req.TargetPath)
	if err != nil {
		return err
	}
	defer unlock()

	mounted, err := m.mounted(req.TargetPath)
	if err != nil {
		return err
	}
	if known := m.get(req.TargetPath); known != nil {
		if err := known.compatible(req); err != nil {
			return err
		}
		if mounted {
			m.renew(known, req.Credentials)
			return nil
		}
	} else if err := m.elsewhere(req); err != nil {
		return err
	}
	v := newVolume(req, time.Now())
	if mounted {
		return m.adopt(ctx, v)
	}
	return m.publish(ctx, v)
}

// publish fetches the volume's files, and mounts them at a target that holds
// no mount. Whatever a kill between two of its steps leaves, Recover removes.
func (m *Manager) publish(ctx context.Context, v *volume) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, m.kept.release(v.VolumeID, v.TargetPath, ""))
		}
	}()
	got, err := m.fetch(ctx, v, nil, time.Time{}, nil)
	if err != nil {
		return err
	}
	defer got.result.Clear()

	t, err := newTree(tmpfsOptions{size: got.size, noswap: m.noswap, fsGroup: v.FSGroup})
	if err != nil {
		return err
	}
	if _, err := replaceSet(t, nil, got.result.Files, v.FSGroup != nil); err != nil {
		t.close()
		return m.inContext(v, err)
	}
	v.Set = t.current()
	if v.onChange.Touch { // so that it can be watched from the start
		err = t.touch(v.Published)
	}
	if err == nil {
		err = m.records.save(v.record)
	}
	if err != nil {
		t.close()
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeEmptyTarget(v.TargetPath), m.records.remove(v.VolumeID, v.TargetPath))
		}
	}()
	target, err := makeTarget(v.TargetPath)
	if err != nil {
		t.close()
		return err
	}
	defer target.Close()
	if err := t.attach(target, m.writable); err != nil {
		return err
	}
	m.put(v)
	return nil
}

// adopt takes over a mount of which nothing is known.
func (m *Manager) adopt(ctx context.Context, v *volume) error {
	t, err := openTree(v.TargetPath)
	if err != nil {
		return err
	}
	defer t.close()
	current, _, err := tidy(t)
	if err != nil {
		return err
	}
	_, err = m.fill(ctx, t, v, time.Time{}, nil)
	switch {
	case err == nil:
		klog.FromContext(ctx).Info("Took over a mounted volume", "volume", v.VolumeID, "target", v.TargetPath)
	case current != "":
		// A pod has these files: they are better than none.
		klog.FromContext(ctx).Error(err, "Took over a mounted volume with the files that it had", "volume", v.VolumeID, "target", v.TargetPath)
		v.lastError, err = err, nil
	default:
		return errors.Join(err, unmount(v.TargetPath), removeEmptyTarget(v.TargetPath), m.kept.release(v.VolumeID, v.TargetPath, ""))
	}
	v.Set = t.current()
	if err := m.records.save(v.record); err != nil {
		return err
	}
	m.put(v)
	return nil
}

// Refresh fetches the files of the volume at target anew and switches to them
// in one step where they differ. When it fails, the volume keeps the files that
// it has, and its Info tells why.
//
// An answer that another volume of the same class and identity got at since or
// later will do. Objects that are not due are asked for only if others have changed.
func (m *Manager) Refresh(ctx context.Context, target string, since time.Time, due provider.Due) (Refreshed, error) {
	known := m.get(target)
	if known == nil {
		return Refreshed{}, fmt.Errorf("%w at %s", ErrNotPublished, target)
	}
	unlock, err := m.lock(ctx, known.VolumeID, target)
	if err != nil {
		return Refreshed{}, err
	}
	defer unlock()
	volumeID := known.VolumeID
	if known = m.get(target); known == nil || known.VolumeID != volumeID {
		return Refreshed{}, fmt.Errorf("%w at %s", ErrNotPublished, target)
	}
	next := *known
	if next.waiting = known.blocked(); next.waiting {
		m.replace(&next)
		return Refreshed{Provider: known.Provider, Interval: known.Interval}, nil
	}
	changed, err := m.refresh(ctx, &next, since, due)
	if next.waiting = known.lost() && errors.Is(err, provider.ErrNoCredentials); next.waiting {
		// The provider got along without credentials so far, and does not any more.
		m.replace(&next)
		return Refreshed{Provider: next.Provider, ValidUntil: next.ValidUntil, Interval: next.Interval}, nil
	}
	if err != nil {
		err = fmt.Errorf("refresh volume %s of pod %s/%s: %w", next.VolumeID, next.Pod.Namespace, next.Pod.Name, err)
	}
	next.lastError = err
	m.replace(&next)
	m.observer.Refreshed(next.info(), changed)
	return Refreshed{next.Provider, changed, next.ValidUntil, next.RefreshAt, next.Interval}, err
}

// Request returns what a refresh of the volume at target would ask its provider
// for, without what only a refresh can use; false where that cannot be told.
func (m *Manager) Request(ctx context.Context, target string) (provider.Request, bool) {
	v := m.get(target)
	if v == nil {
		return provider.Request{}, false
	}
	c, err := m.classes.Get(ctx, v.Class)
	if err != nil {
		return provider.Request{}, false
	}
	return v.request(c), true
}

func (m *Manager) refresh(ctx context.Context, v *volume, since time.Time, due provider.Due) (changed bool, err error) {
	t, err := openTree(v.TargetPath)
	if err != nil {
		return false, err
	}
	defer t.close()
	// A driver that was killed after it had switched the files told nobody.
	missed := v.Set != "" && v.Set != t.current()
	changed, err = m.fill(ctx, t, v, since, due)
	if err != nil {
		return changed, err
	}
	v.Set = t.current()
	if changed = changed || missed; changed {
		v.Changed = v.Refreshed
		if v.onChange.Touch {
			err = t.touch(time.Now())
		}
	}
	return changed, errors.Join(err, m.records.save(v.record))
}

// fill fetches the files of v and writes them to its mounted tmpfs. since and due are
// as in fetch.
func (m *Manager) fill(ctx context.Context, t *tree, v *volume, since time.Time, due provider.Due) (changed bool, err error) {
	before := v.record
	got, err := m.fetch(ctx, v, t, since, due)
	if err != nil {
		return false, err
	}
	defer got.result.Clear()
	defer func() { v.learn(got.part, got.mark, changed || err != nil) }()
	if got.result.NotModified {
		return false, nil
	}
	if before.Made != "" && before.Made != v.Made {
		// A kill after the switch must not leave files that look like the old class's.
		before.Made = ""
		if err := m.records.save(before); err != nil {
			return false, err
		}
	}
	if size, err := t.size(); err != nil || size != got.size {
		if err := t.resize(tmpfsOptions{size: got.size, noswap: m.noswap}); err != nil {
			klog.FromContext(ctx).Error(err, "A volume keeps its size", "volume", v.VolumeID, "target", v.TargetPath)
		}
	}
	changed, err = writeSet(t, got.result.Files, v.FSGroup != nil)
	if err == nil {
		if changed {
			set := t.current()
			m.lingering.Add(1)
			time.AfterFunc(linger, func() {
				defer m.lingering.Done()
				m.tidy(v.VolumeID, v.TargetPath, set)
			})
		}
		// What an earlier provider of the class kept is of no use any more.
		err = m.kept.release(v.VolumeID, v.TargetPath, v.Provider)
	}
	return changed, m.inContext(v, err)
}

// tidy removes the files of before the change that brought a set, unless there was
// another since.
func (m *Manager) tidy(volumeID, target, set string) {
	ctx := context.Background()
	unlock, err := m.lock(ctx, volumeID, target)
	if err != nil {
		return
	}
	defer unlock()
	if v := m.get(target); v == nil || v.VolumeID != volumeID {
		return
	}
	t, err := openTree(target)
	if err == nil {
		defer t.close()
		if t.current() != set {
			return
		}
		_, _, err = tidy(t)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "The files of before a change are left until the next", "volume", volumeID, "target", target)
	}
}

// startWindow is how old an answer may be that a pod which starts shares with
// another: replicas start together.
const startWindow = 2 * time.Second

// urgentBefore is how long before its files end a refresh is as urgent as a start.
const urgentBefore = time.Minute

// fetched is a set of files that fits its volume.
type fetched struct {
	result provider.Result
	size   int64 // of the tmpfs, in bytes
	// part names those objects that were asked for apart before, empty for none, and
	// mark is that of the answer.
	part, mark string
}

// fetch brings the files of v: the one way that leads from a class to files.
// It notes in v what it got. t is the tmpfs that v is mounted from, nil for none.
// since is from when on an answer may be that a refresh shares; zero where a pod
// waits. due are the objects that are asked for first; if they are as before, so are
// the others.
func (m *Manager) fetch(ctx context.Context, v *volume, t *tree, since time.Time, due provider.Due) (fetched, error) {
	c, err := m.classes.Get(ctx, v.Class)
	if err != nil {
		return fetched{}, err
	}
	size, err := c.VolumeSize()
	if err != nil {
		return fetched{}, err
	}
	for key := range v.Attributes {
		if _, ok := c.Spec.Parameters[key]; ok {
			return fetched{}, &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("class %s: parameter %q", v.Class, key),
				Err: errors.New("the volume has an attribute of the same name"), Remedy: "a pod cannot override its class: remove the key from the volumeAttributes or from the class"}
		}
	}
	if v.Interval, err = c.RotationInterval(); err != nil {
		return fetched{}, err
	}
	if v.onChange, err = c.OnChange(); err != nil {
		return fetched{}, err
	}
	sealable, err := c.SealedCache()
	if err != nil {
		return fetched{}, err
	}
	v.Provider = c.Spec.Provider
	now := time.Now()
	req, key := v.request(c), keptKey{v.VolumeID, v.TargetPath, c.Spec.Provider}
	req.Urgent = since.IsZero() || !v.ValidUntil.IsZero() && v.ValidUntil.Sub(now) < urgentBefore
	if req.Since = since; req.Since.IsZero() {
		req.Since = now.Add(-startWindow)
	}
	req.Sealable, req.Starting = sealable, t == nil
	if req.State, err = m.kept.get(key); err != nil {
		return fetched{}, m.inContext(v, err)
	}
	defer req.State.Clear()
	req.Key, req.Keep = m.key, func(state secret.Value) error { return m.kept.put(key, state) }
	if m.annotations != nil {
		req.Annotations = func(ctx context.Context) (map[string]string, error) { return m.annotations(ctx, v.Pod) }
	}
	if m.accountAnnotations != nil {
		req.AccountAnnotations = func(ctx context.Context) (map[string]string, error) { return m.accountAnnotations(ctx, v.Pod) }
	}
	made := madeBy(req, c)
	if t != nil && made == v.Made {
		req.Current = t.file
	}
	got := fetched{size: size}
	if name := fmt.Sprint(due); due != nil && req.Current != nil && v.ValidUntil.IsZero() && v.RefreshAt.IsZero() && v.parts[name] != wholeOnly {
		if got.mark, err = m.fetcher.Part(ctx, c.Spec.Provider, req, due); err != nil {
			return fetched{}, m.inContext(v, err)
		}
		if got.part = name; got.mark != "" && got.mark == v.parts[name] {
			v.Refreshed, got.result.NotModified = now, true
			return got, nil
		}
	}
	result, err := m.ask(ctx, c.Spec.Provider, req, size)
	v.leased = m.kept.has(v.VolumeID, v.TargetPath)
	if err != nil {
		return fetched{}, m.inContext(v, err)
	}
	if result.NotModified {
		result.Versions = v.Objects
	} else if err := checkSetSize(result.Files, size); err != nil {
		result.Clear()
		return fetched{}, m.inContext(v, err)
	}
	if made != v.Made {
		v.parts = nil
	}
	v.Made, v.Objects, v.Refreshed, v.ValidUntil, v.RefreshAt, v.SealedAt = made, result.Versions, now, result.ValidUntil, result.RefreshAt, result.SealedAt
	if !v.SealedAt.IsZero() {
		v.Refreshed = v.SealedAt
	}
	got.result = result
	return got, nil
}

// ask asks the provider.
func (m *Manager) ask(ctx context.Context, name string, req provider.Request, size int64) (result provider.Result, err error) {
	s := m.scratchFor(req.TargetPath, size)
	req.Scratch = s
	defer func() {
		if closeErr := s.close(); closeErr != nil {
			result.Clear()
			result, err = provider.Result{}, errors.Join(err, closeErr)
		}
	}()
	return m.fetcher.Fetch(ctx, name, req)
}

// inContext says of which class err speaks.
func (m *Manager) inContext(v *volume, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOSPC) {
		err = &provider.Error{Kind: provider.TooLarge, Err: err, Remedy: "set the class parameter " + provider.VolumeSizeKey + " to more"}
	}
	return &ClassError{Class: v.Class, Provider: v.Provider, Err: err}
}

// Unpublish takes the volume at target away: its mount, its values, the target
// itself and the record. It succeeds where there is none, and where
// an earlier attempt ended half-way.
func (m *Manager) Unpublish(ctx context.Context, volumeID, target string) error {
	unlock, err := m.lock(ctx, volumeID, target)
	if err != nil {
		return err
	}
	defer unlock()
	known := m.get(target)
	if known != nil && known.VolumeID != volumeID {
		klog.FromContext(ctx).Info("Nothing to unpublish: the target holds another volume", "volume", volumeID, "target", target, "holds", known.VolumeID)
		return nil
	}
	if err := m.takeAway(ctx, target); err != nil {
		return err
	}
	if err := m.kept.release(volumeID, target, ""); err != nil {
		return err
	}
	if err := m.records.remove(volumeID, target); err != nil {
		// The volume is gone, and so is the record at the next start, which finds
		// no mount for it.
		klog.FromContext(ctx).Error(err, "An unpublished volume's record is left", "volume", volumeID, "target", target)
	}
	if known != nil {
		m.drop(known)
	}
	return nil
}

// maxStacked bounds how many mounts are taken off one target.
const maxStacked = 64

func (m *Manager) takeAway(ctx context.Context, target string) error {
	for range maxStacked {
		mounted, err := m.mounted(target)
		if err != nil {
			return err
		}
		if !mounted {
			return errors.Join(m.scratchFor(target, 0).remove(), removeTarget(target))
		}
		if err := unmountAndWipe(ctx, target); err != nil {
			return err
		}
	}
	return fmt.Errorf("unmount %s: it is still mounted after %d unmounts", target, maxStacked)
}

// unmountAndWipe takes the uppermost mount off target, in one step, and then
// removes its files: a copy of the mount in some other namespace would keep the
// values.
func unmountAndWipe(ctx context.Context, target string) error {
	t, openErr := openTree(target)
	if openErr == nil {
		defer t.close()
	}
	if err := unmount(target); err != nil {
		return err
	}
	if openErr == nil {
		if err := wipe(t.root); err != nil {
			klog.FromContext(ctx).Error(err, "Could not remove every file of an unmounted volume", "target", target)
		}
	}
	return nil
}

// Recover finds the volumes of an earlier driver by their records: those that
// are mounted are kept, whole; of others it removes what is left. It is called
// once, before all else. It reports what it could not read and goes on.
func (m *Manager) Recover(ctx context.Context) error {
	all, err := m.records.load()
	problems := []error{err}
	for _, rec := range all {
		if err := m.recover(ctx, rec); err != nil {
			problems = append(problems, fmt.Errorf("recover volume %s at %s: %w", rec.VolumeID, rec.TargetPath, err))
		}
	}
	problems = append(problems, m.kept.orphans(func(target string) bool {
		mounted, err := m.mounted(target)
		return mounted || err != nil
	}))
	return errors.Join(problems...)
}

func (m *Manager) recover(ctx context.Context, rec record) error {
	unlock, err := m.lock(ctx, rec.VolumeID, rec.TargetPath)
	if err != nil {
		return err
	}
	defer unlock()
	mounted, err := m.mounted(rec.TargetPath)
	if err != nil {
		return err
	}
	if err := m.scratchFor(rec.TargetPath, 0).remove(); err != nil {
		return err
	}
	if !mounted {
		return errors.Join(removeEmptyTarget(rec.TargetPath), m.records.remove(rec.VolumeID, rec.TargetPath))
	}
	t, err := openTree(rec.TargetPath)
	if err != nil {
		return err
	}
	defer t.close()
	current, _, err := tidy(t)
	if err != nil {
		return err
	}
	if current == "" {
		return errors.New("its mount holds no whole set of files; kubelet's next publish fills it")
	}
	m.put(&volume{record: rec, leased: m.kept.has(rec.VolumeID, rec.TargetPath)})
	if m.writable {
		return makeWritable(rec.TargetPath)
	}
	return nil
}

// mounted reports whether something is mounted at target, which must be a
// folder or not exist.
func (m *Manager) mounted(target string) (bool, error) {
	if err := checkPlace(target); err != nil {
		return false, err
	}
	return isMounted(m.mounter, target)
}

// Get returns the volume at target.
func (m *Manager) Get(target string) (Info, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v := m.byTarget[target]
	if v == nil {
		return Info{}, false
	}
	return v.info(), true
}

// Len returns how many volumes there are.
func (m *Manager) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.byTarget)
}

// List returns all volumes, ordered by target.
func (m *Manager) List() []Info {
	m.mu.RLock()
	defer m.mu.RUnlock()
	list := make([]Info, 0, len(m.byTarget))
	for _, v := range m.byTarget {
		list = append(list, v.info())
	}
	slices.SortFunc(list, func(a, b Info) int {
		switch {
		case a.TargetPath < b.TargetPath:
			return -1
		case a.TargetPath > b.TargetPath:
			return 1
		}
		return 0
	})
	return list
}

// Usage returns what the volume takes, or ErrNotPublished.
func (m *Manager) Usage(volumeID, target string) (Usage, error) {
	v := m.get(target)
	if v == nil || v.VolumeID != volumeID {
		return Usage{}, fmt.Errorf("%w: %s at %s", ErrNotPublished, volumeID, target)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return Usage{}, fmt.Errorf("look at the file system of %s: %w", target, err)
	}
	size := int64(st.Bsize)
	return Usage{
		TotalBytes: int64(st.Blocks) * size, FreeBytes: int64(st.Bavail) * size, UsedBytes: int64(st.Blocks-st.Bfree) * size,
		TotalInodes: int64(st.Files), FreeInodes: int64(st.Ffree), UsedInodes: int64(st.Files - st.Ffree),
	}, nil
}

// Files returns the files of the volume at target, all of one set even while a
// refresh switches to another, and since when they are: for an answer that was kept
// sealed, since it was given. The caller clears them.
func (m *Manager) Files(target string) (files []provider.File, since time.Time, err error) {
	if m.get(target) == nil {
		return nil, time.Time{}, fmt.Errorf("%w at %s", ErrNotPublished, target)
	}
	t, err := openTree(target)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer t.close()
	set, files, since, err := t.files()
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read the volume at %s: %w", target, err)
	}
	if v := m.get(target); v != nil && v.Set == set && !v.SealedAt.IsZero() {
		since = v.SealedAt
	}
	return files, since, nil
}

// lock keeps every other call for the volume and for the target out.
func (m *Manager) lock(ctx context.Context, volumeID, target string) (unlock func(), err error) {
	// All take the volume's lock first, so that no two wait for each other.
	unlockVolume, err := m.locks.acquire(ctx, "volume "+volumeID)
	if err != nil {
		return nil, err
	}
	unlockTarget, err := m.locks.acquire(ctx, "target "+target)
	if err != nil {
		unlockVolume()
		return nil, err
	}
	return func() { unlockTarget(); unlockVolume() }, nil
}

func (m *Manager) get(target string) *volume {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.byTarget[target]
}

// elsewhere tells whether a volume that may have one target only has another.
func (m *Manager) elsewhere(req Request) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, target := range m.targets[req.VolumeID] {
		if target != req.TargetPath && !req.Shared {
			return fmt.Errorf("%w: volume %q is at %s; unpublish it there first", ErrElsewhere, req.VolumeID, target)
		}
	}
	return nil
}

func (m *Manager) put(v *volume) {
	m.mu.Lock()
	m.byTarget[v.TargetPath] = v
	if !slices.Contains(m.targets[v.VolumeID], v.TargetPath) {
		m.targets[v.VolumeID] = append(m.targets[v.VolumeID], v.TargetPath)
	}
	m.mu.Unlock()
	m.observer.Published(v.info())
}

// replace puts v in the place of the volume at its target.
func (m *Manager) replace(v *volume) {
	m.mu.Lock()
	m.byTarget[v.TargetPath] = v
	m.mu.Unlock()
}

func (m *Manager) renew(known *volume, c Credentials) {
	v := *known
	v.credentials = c
	m.replace(&v)
	m.observer.Published(v.info())
}

func (m *Manager) drop(v *volume) {
	m.mu.Lock()
	delete(m.byTarget, v.TargetPath)
	rest := slices.DeleteFunc(m.targets[v.VolumeID], func(t string) bool { return t == v.TargetPath })
	if m.targets[v.VolumeID] = rest; len(rest) == 0 {
		delete(m.targets, v.VolumeID)
	}
	m.mu.Unlock()
	m.observer.Unpublished(v.info())
}

// checkPlace tells why no folder can be made or used at target, or returns nil.
func checkPlace(target string) error {
	info, err := os.Lstat(target)
	what := ""
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, unix.ENOTDIR):
		what = "below something that is no folder"
	case mount.IsCorruptedMnt(err):
		return nil // it is for unmount to deal with
	case err != nil:
		return fmt.Errorf("look at the target path: %w", err)
	case info.IsDir():
		return nil
	case info.Mode()&os.ModeSymlink != 0:
		what = "a symbolic link"
	default:
		what = "a file"
	}
	return &provider.Error{Kind: provider.Invalid, Object: "target path " + target, Err: fmt.Errorf("it is %s", what), Remedy: "a volume is published to a folder; remove what is there"}
}

// makeTarget makes the target where there is none, and opens it. It follows no
// link in the target's place.
func makeTarget(target string) (*os.File, error) {
	if err := os.MkdirAll(target, 0o750); err != nil {
		return nil, fmt.Errorf("make the target path: %w", err)
	}
	fd, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the target path %s: %w", target, err)
	}
	return os.NewFile(uintptr(fd), target), nil
}

// removeTarget removes the folder of a volume that is not mounted, with what a
// provider of old may have written below it.
func removeTarget(target string) error {
	err := unix.Rmdir(target)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return removeLeftovers(target)
	case errors.Is(err, unix.ENOTDIR):
		return checkPlace(target)
	}
	return fmt.Errorf("remove the target path %s: %w", target, err)
}

// removeEmptyTarget removes the folder of a volume that is not mounted, unless
// somebody put something there.
func removeEmptyTarget(target string) error {
	err := unix.Rmdir(target)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTDIR):
		return nil
	}
	return fmt.Errorf("remove the target path %s: %w", target, err)
}

// removeLeftovers removes target and all below it, and refuses to if anything
// below it is mounted.
func removeLeftovers(target string) error {
	mounts, err := mount.ListProcMounts("/proc/self/mounts")
	if err != nil {
		return fmt.Errorf("look for mounts below %s: %w", target, err)
	}
	for _, p := range mounts {
		if mount.PathWithinBase(p.Path, target) {
			return fmt.Errorf("%w: %s is mounted below %s; unmount it", ErrForeign, p.Path, target)
		}
	}
	if err := os.RemoveAll(target); err != nil {
		return fmt.Errorf("remove the target path %s: %w", target, err)
	}
	return nil
}
