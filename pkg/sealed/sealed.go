// Package sealed keeps answers of stores encrypted in a folder, so that a pod can
// start with one while its store is away. It sees to it that nothing opens an
// answer but the key, for no other name than its own, and no later than it may
// last. Package fetch decides which answers are kept and who gets one.
//
// Who reads the folder learns how many answers there are, their sizes and their
// times. Names of files are MACs.
package sealed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// maxEntries and maxBytes bound the folder: beyond them the oldest go.
	// maxEntryBytes bounds one answer.
	maxEntries    = 4096
	maxBytes      = 256 << 20
	maxEntryBytes = 32 << 20
	// sweepPeriod is how often what has ended is removed.
	sweepPeriod = time.Minute
	// remembered is for how long a removal is known, and what was due. It is more
	// than an answer can be on its way.
	remembered = 10 * time.Minute
	// freshPart is in what part of its time an answer counts as new: the same one is
	// not written again for each pod that starts.
	freshPart = 20
)

// ErrNone is why Open returns nothing where there is no answer that may be used.
var ErrNone = errors.New("no answer is kept")

// Config is what a Cache works with.
type Config struct {
	// Dir is a folder of the Cache's own, which New makes if need be.
	Dir string
	// Key has KeyBytes bytes. It may be cleared after New.
	Key secret.Value
	// Max is how old an answer may become, whatever its class says.
	Max time.Duration
}

// Name says what an answer is of.
type Name struct {
	// Owner names the class and the service account that asked.
	Owner string
	// Answer names all that decides the answer, who asks included.
	Answer string
}

// Cache keeps answers. It is safe for concurrent use.
//
// Nothing is synced to the disk: what a crash of the machine leaves half-written
// does not open, and is removed.
type Cache struct {
	dir   string
	max   time.Duration
	names secret.Value // the key of files' names
	seals secret.Value // the key of which those of files are made

	mu      sync.Mutex
	entries map[file]entry
	bytes   int64                // of all entries
	removed map[string]time.Time // when Remove was called, by a part of a file's name
	asked   map[file]time.Time   // when Due was true
}

// entry is what is known of a file without opening it.
type entry struct {
	at    time.Time // since when the store may have changed or refused the answer
	until time.Time // when it must not be used any more
	bytes int64
	sum   string // a MAC of the contents; empty for what another process sealed
}

// usable reports whether an answer may be used. Its age is the greater one of two:
// by the wall clock, which may have been set back, and, for what this process
// sealed, by the one that only goes forward. What is from the future is not usable.
func (c *Cache) usable(e entry, now time.Time) bool {
	wall := now.Round(0).Sub(e.at.Round(0))
	return wall >= 0 && max(wall, now.Sub(e.at)) < min(e.until.Round(0).Sub(e.at.Round(0)), c.max)
}

// New returns a Cache with what an earlier one with the same key left in the
// folder. It refuses a folder that others than its owner may write to.
func New(c Config) (*Cache, error) {
	if c.Dir == "" || c.Max <= 0 || c.Key.Len() != KeyBytes {
		return nil, fmt.Errorf("a sealed cache needs a folder, a longest age and a key of %d bytes", KeyBytes)
	}
	cache := &Cache{dir: c.Dir, max: c.Max, entries: map[file]entry{}, removed: map[string]time.Time{}, asked: map[file]time.Time{}}
	var err error
	if cache.names, err = derived(c.Key, nil, "csi-secrets sealed cache, names"); err != nil {
		return nil, err
	}
	if cache.seals, err = derived(c.Key, nil, "csi-secrets sealed cache, answers"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the sealed cache: %w", err)
	}
	info, err := os.Stat(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("look at the folder of the sealed cache: %w", err)
	}
	if info.Mode()&0o022 != 0 {
		return nil, fmt.Errorf("the folder of the sealed cache, %s, has the mode %#o: others than its owner may write there; chmod it to 0700", c.Dir, uint32(info.Mode().Perm()))
	}
	return cache, cache.load()
}

// load finds the files of an earlier Cache, and removes what it left half-written
// and what has ended.
func (c *Cache) load() error {
	list, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("read the folder of the sealed cache: %w", err)
	}
	for _, found := range list {
		if f, ok := parseName(found.Name()); ok {
			e, err := readHeader(filepath.Join(c.dir, found.Name()))
			if err != nil {
				e = entry{} // which is over
			}
			c.put(f, e)
		} else if isUnfinished(found.Name()) {
			err = errors.Join(err, os.Remove(filepath.Join(c.dir, found.Name())))
		}
	}
	return errors.Join(err, c.sweep(time.Now()))
}

// Run removes what has ended, until ctx ends.
func (c *Cache) Run(ctx context.Context) {
	ticks := time.NewTicker(sweepPeriod)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		c.mu.Lock()
		err := c.sweep(time.Now())
		c.mu.Unlock()
		if err != nil {
			klog.FromContext(ctx).Error(err, "A sealed answer that has ended cannot be removed")
		}
	}
}

// Len returns how many answers are kept.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

// Has reports whether there is an answer of that name that may be used.
func (c *Cache) Has(n Name) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[c.file(n)]
	return ok && c.usable(e, time.Now())
}

// Due reports whether the store is to be asked for the whole answer, which lasts so
// long, in order to keep it: there is none, or a quarter of its time is over. Where
// it is not kept then, the next time is ten minutes later, or another quarter.
func (c *Cache) Due(n Name, lasts time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, f := time.Now(), c.file(n)
	quarter := min(lasts, c.max) / 4
	if e, ok := c.entries[f]; ok && c.usable(e, now) && now.Sub(e.at) < quarter {
		return false
	}
	if before, ok := c.asked[f]; ok && now.Sub(before) < min(remembered, quarter) {
		return false
	}
	c.asked[f] = now
	return true
}

// Seal keeps r under a name, for lasts from at on, or until Result.ValidUntil. at is
// a time after which the store gave all of r; where it is zero, r replaces what is
// kept, and the time of that goes on. Seal does nothing where something as new is
// kept, or the same and it is new, where the name was removed since at, or where
// there is nothing to replace. Where it fails, an older answer stays.
func (c *Cache) Seal(n Name, r provider.Result, at time.Time, lasts time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, now := c.file(n), time.Now()
	old := c.entries[f]
	switch {
	case at.IsZero():
		at = old.at
	case !at.After(old.at), !at.After(c.removed[f.owner]), !at.After(c.removed[f.answer]):
		return nil
	}
	e := entry{at: at, until: at.Add(lasts)}
	if !r.ValidUntil.IsZero() && r.ValidUntil.Before(e.until) {
		e.until = r.ValidUntil
	}
	if !c.usable(e, now) {
		return nil
	}
	plain, err := encode(r)
	if err != nil {
		return fmt.Errorf("seal an answer: %w", err)
	}
	defer clear(plain)
	e.sum = c.mac(plain)
	if old.sum == e.sum && at.Sub(old.at) < lasts/freshPart {
		return nil
	}
	data, err := c.encrypt(f, e, plain)
	if err != nil {
		return fmt.Errorf("seal an answer: %w", err)
	}
	if len(data) > maxEntryBytes {
		return fmt.Errorf("seal an answer: it has %d bytes, and %d are kept at most", len(data), maxEntryBytes)
	}
	path := filepath.Join(c.dir, f.name())
	if err = os.WriteFile(path+unfinished, data, 0o600); err == nil {
		err = os.Rename(path+unfinished, path)
	}
	if err != nil {
		_ = os.Remove(path + unfinished)
		return fmt.Errorf("keep a sealed answer: %w", err)
	}
	e.bytes = int64(len(data))
	c.put(f, e)
	return c.evict()
}

// Open returns the answer of a name, with its age in Result.SealedAt. The error is
// ErrNone where there is none that may be used. What does not open is removed, and
// the error says why. The caller clears the result.
func (c *Cache) Open(n Name) (provider.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.file(n)
	e, ok := c.entries[f]
	if !ok || !c.usable(e, time.Now()) {
		return provider.Result{}, ErrNone
	}
	r, err := c.decrypt(f, e)
	if err != nil {
		return provider.Result{}, errors.Join(fmt.Errorf("open a sealed answer: %w", err), c.drop(f))
	}
	return r, nil
}

// Remove removes all answers of the owner, and all of the same answer, whoever has
// it: the store refused it after it was asked. Whatever was asked for before is
// not kept any more. It holds even where it fails, which leaves a file to the next
// Cache.
func (c *Cache) Remove(n Name) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	refused, now := c.file(n), time.Now()
	c.removed[refused.owner], c.removed[refused.answer] = now, now
	var problems []error
	for f := range c.entries {
		if f.owner == refused.owner || f.answer == refused.answer {
			problems = append(problems, c.drop(f))
		}
	}
	return errors.Join(problems...)
}

// sweep removes what has ended. Callers hold c.mu.
func (c *Cache) sweep(now time.Time) error {
	var problems []error
	for f, e := range c.entries {
		if !c.usable(e, now) {
			problems = append(problems, c.drop(f))
		}
	}
	maps.DeleteFunc(c.removed, func(_ string, at time.Time) bool { return now.Sub(at) >= remembered })
	maps.DeleteFunc(c.asked, func(_ file, at time.Time) bool { return now.Sub(at) >= remembered })
	return errors.Join(append(problems, c.evict())...)
}

// evict removes the oldest while there is too much. Callers hold c.mu.
func (c *Cache) evict() error {
	var problems []error
	for len(c.entries) > maxEntries || c.bytes > maxBytes {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(c.entries)), func(a, b file) int { return c.entries[a].at.Compare(c.entries[b].at) })
		problems = append(problems, c.drop(oldest))
	}
	return errors.Join(problems...)
}

// put notes e in the place of what was known of f. Callers hold c.mu.
func (c *Cache) put(f file, e entry) {
	c.bytes += e.bytes - c.entries[f].bytes
	c.entries[f] = e
}

// drop forgets a file and removes it. Callers hold c.mu.
func (c *Cache) drop(f file) error {
	c.bytes -= c.entries[f].bytes
	delete(c.entries, f)
	if err := os.Remove(filepath.Join(c.dir, f.name())); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove a sealed answer: %w", err)
	}
	return nil
}
