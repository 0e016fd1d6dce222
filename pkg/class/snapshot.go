package class

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"k8s.io/klog/v2"
)

// The classes of a cluster are written to the snapshot keepSoon after one has
// changed, so that the changes that come together are written together, and then
// not again for keepEvery.
const (
	keepSoon  = 50 * time.Millisecond
	keepEvery = time.Second
)

// snapshot is a file of classes. They hold no secret.
type snapshot struct{ path string }

// read returns the classes of the file, none where there is no file.
func (s *snapshot) read() (map[Ref]*SecretProviderClass, error) {
	text, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []*SecretProviderClass
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("read the classes that were kept: %w", err)
	}
	classes := make(map[Ref]*SecretProviderClass, len(list))
	for _, c := range list {
		if c != nil {
			classes[c.Ref()] = c
		}
	}
	return classes, nil
}

// write makes list the classes of the file, in one step.
func (s *snapshot) write(list []*SecretProviderClass) error {
	text, err := json.Marshal(list)
	if err == nil {
		err = os.WriteFile(s.path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(s.path+".new", s.path)
	}
	if err != nil {
		_ = os.Remove(s.path + ".new")
		return fmt.Errorf("keep the classes for a driver that starts without the API server: %w", err)
	}
	return nil
}

// keep writes the classes to the snapshot soon after they have changed, until
// ctx ends.
func (c *Cluster) keep(ctx context.Context) {
	failed := false
	for sleep(ctx, keepSoon) {
		c.mu.Lock()
		changed, list := c.unkept && c.synced, []*SecretProviderClass(nil)
		if changed {
			list, c.unkept = slices.Collect(maps.Values(c.classes)), false
		}
		news := c.news
		c.mu.Unlock()
		if !changed {
			select {
			case <-ctx.Done():
			case <-news:
			}
			continue
		}
		err := c.snapshot.write(list)
		if err != nil {
			c.mu.Lock()
			c.unkept = true
			c.mu.Unlock()
		}
		if err != nil && !failed {
			klog.FromContext(ctx).Error(err, "It is tried again")
		}
		failed = err != nil
		sleep(ctx, keepEvery)
	}
}

// sleep returns whether ctx goes on after d.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
