package login

import (
	"maps"
	"sync"
	"time"
)

const (
	// refusalLasts is how long a refusal is remembered.
	refusalLasts = time.Hour
	// maxRefusals bounds how many are.
	maxRefusals = 16384
)

// Refusals remembers for an hour what a store refused to an identity that can do
// without it, so that it is not asked for at every refresh. The zero Refusals is
// ready to use, by several goroutines.
type Refusals struct {
	mu   sync.Mutex
	ends map[string]time.Time // by key
}

// Note remembers the refusal of what key names, the identity included.
func (r *Refusals) Note(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if len(r.ends) >= maxRefusals {
		maps.DeleteFunc(r.ends, func(_ string, end time.Time) bool { return now.After(end) })
	}
	if r.ends == nil || len(r.ends) >= maxRefusals {
		r.ends = map[string]time.Time{} // they are asked for once more
	}
	r.ends[key] = now.Add(refusalLasts)
}

// Has reports whether a refusal is remembered.
func (r *Refusals) Has(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.ends[key])
}
