package login

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

const (
	// maxEntries bounds a Cache: beyond it, one that has ended goes, or any.
	maxEntries = 4096
	// sweepPeriod is how often those that have ended go.
	sweepPeriod = time.Minute
)

// loginTimeout bounds one login, which all that wait for it share.
const loginTimeout = 30 * time.Second

// Key makes one key of a Cache of parts, such that others never make the same.
func Key(parts ...string) string {
	hash := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(hash, "%d:%s", len(part), part)
	}
	return string(hash.Sum(nil))
}

// Session is what a login brought, with its times.
type Session[T any] struct {
	Value T
	// Renew is when it is to be renewed or replaced, Ends when it is of no use any
	// more.
	Renew, Ends time.Time
}

// Cache keeps sessions by a key that names the store, the way to log in, and the
// identity that logged in: nobody else is to have the same key. Of several calls
// for one key, one logs in and all others wait for it. The zero Cache is ready to
// use, by several goroutines.
type Cache[T any] struct {
	mu      sync.Mutex
	entries map[string]*entry[T]
	swept   time.Time // when those that had ended were dropped last
}

// entry is guarded by Cache.mu; session and err may be read once done is closed.
type entry[T any] struct {
	session Session[T]
	has     bool
	running chan struct{} // closed when the login that runs has ended; nil where none does
	err     error         // of the last login
}

// Login logs in. earlier is the session that is to be renewed or replaced, nil
// where there is none.
type Login[T any] func(ctx context.Context, earlier *Session[T]) (Session[T], error)

// Get returns the session of key: one that is fresh, or else what login brings.
// Where login fails and the earlier session has not ended, it returns that. The
// login goes on when ctx ends, for those who need it next.
func (c *Cache[T]) Get(ctx context.Context, key string, login Login[T]) (T, error) {
	c.mu.Lock()
	now := time.Now()
	e := c.entries[key]
	if e == nil {
		e = c.add(key, now)
	}
	if e.has && now.Before(e.session.Renew) {
		defer c.mu.Unlock()
		return e.session.Value, nil
	}
	running := e.running
	if running == nil {
		running = make(chan struct{})
		e.running = running
		var earlier *Session[T]
		if e.has && now.Before(e.session.Ends) {
			copied := e.session
			earlier = &copied
		}
		go c.login(context.WithoutCancel(ctx), e, earlier, login)
	}
	c.mu.Unlock()

	var none T
	select {
	case <-running:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.has && time.Now().Before(e.session.Ends) {
		return e.session.Value, nil
	}
	if e.err == nil { // it was forgotten meanwhile, or never of any use
		return none, context.DeadlineExceeded
	}
	return none, e.err
}

func (c *Cache[T]) login(ctx context.Context, e *entry[T], earlier *Session[T], login Login[T]) {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	var session Session[T]
	err := provider.Guarded(func() (err error) { // it must not end the driver of a node
		session, err = login(ctx, earlier)
		return err
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.err = err; err == nil {
		e.session, e.has = session, true
	}
	close(e.running)
	e.running = nil
}

// Put makes session that of key, unless there is one that is fresh, and reports
// whether it did.
func (c *Cache[T]) Put(key string, session Session[T]) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	e := c.entries[key]
	switch {
	case e == nil:
		e = c.add(key, now)
	case e.has && now.Before(e.session.Renew), e.running != nil:
		return false
	}
	e.session, e.has = session, true
	return true
}

// Forget drops the session of key, if bad says so of it, so that the next Get
// logs in.
func (c *Cache[T]) Forget(key string, bad func(T) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[key]; e != nil && e.has && bad(e.session.Value) {
		e.has = false
	}
}

// add makes an entry, and drops those that have ended. Callers hold c.mu.
func (c *Cache[T]) add(key string, now time.Time) *entry[T] {
	if c.entries == nil {
		c.entries = map[string]*entry[T]{}
	}
	full := len(c.entries) >= maxEntries
	if full || now.Sub(c.swept) >= sweepPeriod {
		c.swept = now
		maps.DeleteFunc(c.entries, func(_ string, e *entry[T]) bool {
			return e.running == nil && (!e.has || now.After(e.session.Ends))
		})
	}
	for victim, e := range c.entries {
		if len(c.entries) < maxEntries {
			break
		}
		if e.running == nil {
			delete(c.entries, victim)
		}
	}
	e := &entry[T]{}
	c.entries[key] = e
	return e
}
