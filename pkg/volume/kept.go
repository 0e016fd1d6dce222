package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"k8s.io/mount-utils"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// keptBytes bounds the tmpfs of what providers keep of all volumes.
	keptBytes = 64 << 20
	// goneMark begins the name of what is to be given back.
	goneMark = "gone-"
	// releasers is how many volumes' leases are given back at the same time.
	releasers = 4
	// releaseTimeout bounds one attempt, firstRelease and lastRelease the wait
	// after one that failed.
	releaseTimeout = 30 * time.Second
	firstRelease   = time.Second
	lastRelease    = 5 * time.Minute
)

// kept holds what providers keep of volumes: leases, and the tokens on which
// they hang (provider.Request.State). It lies in a tmpfs of the driver's own,
// which no pod sees and which outlives the driver where its mount reaches the
// host; it comes into being with the first state. A state whose volume is gone
// waits there until its provider has given back what it stands for.
type kept struct {
	dir     string
	mounter mount.Interface
	noswap  bool
	queue   workqueue.TypedRateLimitingInterface[string] // names of files

	mu      sync.Mutex
	mounted bool
	held    map[keptKey]string // files by what they are of
	gone    map[string]keptKey // files of volumes that are gone
}

// keptKey is what a state is of.
type keptKey struct {
	VolumeID   string `json:"volumeID"`
	TargetPath string `json:"targetPath"`
	Provider   string `json:"provider"`
}

// file returns the name of the key's file.
func (k keptKey) file() string {
	sum := sha256.Sum256([]byte(strings.Join([]string{k.VolumeID, k.TargetPath, k.Provider}, "\x00")))
	return hex.EncodeToString(sum[:16])
}

// openKept finds what an earlier driver left in dir. It reports what it cannot
// read, and goes on.
func openKept(dir string, mounter mount.Interface, noswap bool) (*kept, error) {
	k := &kept{
		dir: dir, mounter: mounter, noswap: noswap, held: map[keptKey]string{}, gone: map[string]keptKey{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRelease, lastRelease)),
	}
	var err error
	if k.mounted, err = isMounted(mounter, dir); err != nil || !k.mounted {
		return k, err
	}
	entries, err := os.ReadDir(dir)
	problems := []error{err}
	for _, entry := range entries {
		name := entry.Name()
		key, err := k.header(name)
		switch {
		case err != nil: // a write that was cut short: the one before it counts
			problems = append(problems, os.Remove(filepath.Join(dir, name)))
		case strings.HasPrefix(name, goneMark):
			k.gone[name] = key
			k.queue.Add(name)
		default:
			k.held[key] = name
		}
	}
	return k, errors.Join(problems...)
}

// header reads whose state a file holds.
func (k *kept) header(name string) (keptKey, error) {
	var key keptKey
	data, err := os.ReadFile(filepath.Join(k.dir, name))
	defer clear(data)
	if err != nil {
		return key, bare(err)
	}
	first, _, found := bytes.Cut(data, []byte("\n"))
	if !found || json.Unmarshal(first, &key) != nil || name != key.file() && !strings.HasPrefix(name, goneMark+key.file()+"-") {
		return key, errors.New("it is broken")
	}
	return key, nil
}

// mount makes the tmpfs. Callers hold k.mu.
func (k *kept) mount() error {
	if k.mounted {
		return nil
	}
	t, err := newTree(tmpfsOptions{size: keptBytes, noswap: k.noswap})
	if err != nil {
		return err
	}
	if err := t.root.Chmod(".", 0o700); err != nil {
		t.close()
		return err
	}
	folder, err := makeTarget(k.dir)
	if err != nil {
		t.close()
		return err
	}
	defer folder.Close()
	if err := t.attach(folder, true); err != nil {
		return err
	}
	k.mounted = true
	return nil
}

// get returns the state of key, empty where there is none.
func (k *kept) get(key keptKey) (secret.Value, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	name, ok := k.held[key]
	if !ok {
		return secret.Value{}, nil
	}
	return k.read(name)
}

// read returns the state that a file holds. Callers hold k.mu.
func (k *kept) read(name string) (secret.Value, error) {
	data, err := os.ReadFile(filepath.Join(k.dir, name))
	if err != nil {
		return secret.Value{}, fmt.Errorf("read what is kept of the volume's leases: %w", bare(err))
	}
	_, state, _ := bytes.Cut(data, []byte("\n"))
	value := secret.New(bytes.Clone(state))
	clear(data)
	return value, nil
}

// has reports whether there is a state of the volume, of whatever provider.
func (k *kept) has(volumeID, target string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key := range k.held {
		if key.VolumeID == volumeID && key.TargetPath == target {
			return true
		}
	}
	return false
}

// put makes state that of key; an empty one removes what there is. When it
// returns, a driver that is started later knows it.
func (k *kept) put(key keptKey, state secret.Value) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	name := key.file()
	if state.IsEmpty() {
		if _, ok := k.held[key]; !ok {
			return nil
		}
		delete(k.held, key)
		return bare(os.Remove(filepath.Join(k.dir, name)))
	}
	header, err := json.Marshal(key)
	if err != nil {
		return err
	}
	if err := k.mount(); err != nil {
		return fmt.Errorf("make a place for the volume's leases: %w", err)
	}
	data := append(append(header, '\n'), state.Reveal()...)
	defer clear(data)
	path := filepath.Join(k.dir, name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		_ = os.Remove(path + ".new")
		if errors.Is(err, unix.ENOSPC) {
			return &provider.Error{Kind: provider.TooLarge, Op: "keep the volume's leases", Err: fmt.Errorf("those of all volumes take more than %d bytes", keptBytes),
				Remedy: "spread the pods over more nodes"}
		}
		return fmt.Errorf("keep the volume's leases: %w", bare(err))
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("keep the volume's leases: %w", bare(err))
	}
	k.held[key] = name
	return nil
}

// release has the states of a volume given back, save that of one provider.
func (k *kept) release(volumeID, target, save string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var problems []error
	for key, name := range k.held {
		if key.VolumeID != volumeID || key.TargetPath != target || key.Provider == save {
			continue
		}
		next := fmt.Sprintf("%s%s-%d", goneMark, name, rand.Uint64())
		if err := os.Rename(filepath.Join(k.dir, name), filepath.Join(k.dir, next)); err != nil {
			problems = append(problems, fmt.Errorf("give back the volume's leases: %w", bare(err)))
			continue
		}
		delete(k.held, key)
		k.gone[next] = key
		k.queue.Add(next)
	}
	return errors.Join(problems...)
}

// orphans has the states given back whose volume mounted does not know.
func (k *kept) orphans(mounted func(target string) bool) error {
	k.mu.Lock()
	var gone []keptKey
	for key := range k.held {
		if !mounted(key.TargetPath) {
			gone = append(gone, key)
		}
	}
	k.mu.Unlock()
	var problems []error
	for _, key := range gone {
		problems = append(problems, k.release(key.VolumeID, key.TargetPath, ""))
	}
	return errors.Join(problems...)
}

// run gives back what is to be given back, until ctx ends. What fails is tried
// again, also by the next driver.
func (k *kept) run(ctx context.Context, release func(ctx context.Context, providerName string, state secret.Value) error) {
	var all sync.WaitGroup
	for range releasers {
		all.Go(func() {
			for {
				name, shutdown := k.queue.Get()
				if shutdown {
					return
				}
				k.releaseOne(ctx, name, release)
				k.queue.Done(name)
			}
		})
	}
	<-ctx.Done()
	k.queue.ShutDown()
	all.Wait()
}

func (k *kept) releaseOne(ctx context.Context, name string, release func(context.Context, string, secret.Value) error) {
	k.mu.Lock()
	key, ok := k.gone[name]
	var state secret.Value
	var err error
	if ok {
		state, err = k.read(name)
	}
	k.mu.Unlock()
	if !ok {
		return
	}
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, releaseTimeout)
		err = release(limited, key.Provider, state)
		cancel()
		state.Clear()
	}
	if err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "A volume that is gone has leases that could not be given back yet", "volume", key.VolumeID, "provider", key.Provider)
		k.queue.AddRateLimited(name)
		return
	}
	if err != nil {
		return // the next driver does
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.gone, name)
	k.queue.Forget(name)
	if err := os.Remove(filepath.Join(k.dir, name)); err != nil {
		klog.FromContext(ctx).Error(bare(err), "What was given back is still kept", "volume", key.VolumeID)
	}
}

// pending returns how many volumes that are gone have leases still.
func (k *kept) pending() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.gone)
}

// close takes the tmpfs away, if nothing is in it.
func (k *kept) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.mounted || len(k.held)+len(k.gone) > 0 {
		return nil
	}
	k.mounted = false
	return errors.Join(unmount(k.dir), removeEmptyTarget(k.dir))
}
