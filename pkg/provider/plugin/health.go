package plugin

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// checkTimeout bounds one health check, as in secrets-store-csi-driver.
const checkTimeout = 5 * time.Second

// Names returns the names of the providers that have a socket now, sorted.
func (f *Finder) Names() []string {
	names := map[string]struct{}{}
	for _, folder := range f.folders {
		entries, _ := os.ReadDir(folder) // a folder may appear later
		for _, entry := range entries {
			name, ok := strings.CutSuffix(entry.Name(), ".sock")
			if ok && provider.CheckName(name) == nil {
				names[name] = struct{}{}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// CheckHealth asks every provider that has, or had, a socket for its version,
// once in every interval until ctx ends, and reports what came of it: nil for
// one that answers. Report is called from several goroutines.
func (f *Finder) CheckHealth(ctx context.Context, interval time.Duration, report func(name string, err error)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	known := map[string]struct{}{}
	for {
		for _, name := range f.Names() {
			known[name] = struct{}{}
		}
		var checks sync.WaitGroup
		for name := range known {
			checks.Go(func() {
				limited, cancel := context.WithTimeout(ctx, checkTimeout)
				defer cancel()
				_, _, err := f.Version(limited, name)
				if ctx.Err() == nil {
					report(name, err)
				}
			})
		}
		checks.Wait()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
