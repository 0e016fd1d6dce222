package fetch

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// sharedFor is how long an answer is kept for others after it came: volumes of
// one identity become due together, and replicas start together.
const sharedFor = 3 * time.Second

// shareKey names an answer: what the class asks for, as whom, and what the volume
// has of it already, since an answer may be "not modified".
func shareKey(name, identity string, req provider.Request) string {
	parts := append(asked(name, identity, req), strconv.FormatBool(req.Current != nil), strconv.Itoa(len(req.Mounted)))
	if req.Current != nil {
		for _, v := range req.Mounted {
			parts = append(parts, v.ID, v.Version)
		}
	}
	return login.Key(parts...)
}

// asked is what a class asks for, and as whom.
func asked(name, identity string, req provider.Request) []string {
	parts := []string{name, identity, strconv.FormatUint(uint64(req.Mode), 8), strconv.Itoa(len(req.Parameters))}
	for _, key := range slices.Sorted(maps.Keys(req.Parameters)) {
		parts = append(parts, key, req.Parameters[key])
	}
	return parts
}

// shares are answers that are on their way, or have come just now. It is safe for
// concurrent use; the zero value is ready.
type shares struct {
	mu  sync.Mutex
	all map[string]*share
}

// share is one answer. It is guarded by shares.mu, but for began.
type share struct {
	began  time.Time
	cancel context.CancelCauseFunc // of the ask
	done   chan struct{}           // closed when the answer is there
	result provider.Result
	err    error
	users  int  // that wait for it, or take it
	listed bool // it is in shares.all
}

// get returns the answer of key that was asked for at since or later, or asks.
// Whoever is first asks for all; the ask ends early only when nobody waits for it
// any more. Each caller gets contents of its own. joined says that somebody else
// had asked.
func (s *shares) get(ctx context.Context, key string, since time.Time, ask func(ctx context.Context) (provider.Result, error)) (result provider.Result, joined bool, err error) {
	s.mu.Lock()
	e := s.all[key]
	joined = e != nil && !e.began.Before(since)
	if !joined {
		if e != nil {
			s.unlist(key, e)
		}
		e = &share{began: time.Now(), done: make(chan struct{}), listed: true}
		if s.all == nil {
			s.all = map[string]*share{}
		}
		s.all[key] = e
		var asking context.Context
		asking, e.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
		go s.run(asking, key, e, ask)
	}
	e.users++
	s.mu.Unlock()

	select {
	case <-e.done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		result, err = clone(e.result), e.err
	}
	e.users--
	s.tidy(key, e, err)
	return result, joined, err
}

func (s *shares) run(ctx context.Context, key string, e *share, ask func(ctx context.Context) (provider.Result, error)) {
	defer e.cancel(nil)
	var result provider.Result
	err := provider.Guarded(func() (err error) { // nobody above could recover a panic
		result, err = ask(ctx)
		return err
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	e.result, e.err = result, err
	close(e.done)
	if err != nil {
		s.unlist(key, e) // who comes later asks anew
		return
	}
	s.tidy(key, e, nil)
	time.AfterFunc(sharedFor, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unlist(key, e)
	})
}

// unlist lets nobody else have e. Callers hold s.mu.
func (s *shares) unlist(key string, e *share) {
	if e.listed {
		e.listed = false
		delete(s.all, key)
	}
	s.tidy(key, e, nil)
}

// tidy ends an ask that nobody waits for, with why the last has left as its cause, and
// clears an answer that nobody will take. Callers hold s.mu.
func (s *shares) tidy(key string, e *share, why error) {
	if e.users > 0 {
		return
	}
	select {
	case <-e.done:
		if !e.listed {
			e.result.Clear()
		}
	default:
		e.cancel(why)
		if e.listed {
			e.listed = false
			delete(s.all, key)
		}
	}
}

// clone returns a result with contents of its own.
func clone(r provider.Result) provider.Result {
	r.Files = slices.Clone(r.Files)
	for i, f := range r.Files {
		r.Files[i].Contents = secret.New(slices.Clone(f.Contents.Reveal()))
	}
	r.Versions = slices.Clone(r.Versions)
	return r
}

// identify returns for whom the answer to req is; false where that cannot be said.
func identify(ctx context.Context, sharer provider.Sharer, req provider.Request) (key string, ok bool) {
	err := provider.Guarded(func() error {
		key, ok = sharer.Identity(ctx, req)
		return nil
	})
	return key, ok && err == nil
}

const (
	// lessonKept is how long nobody waits for a lesson again that taught nothing.
	lessonKept = 10 * time.Minute
	// maxLessons bounds those that are kept.
	maxLessons = 1024
)

// lessons are fetches by which a provider may learn that answers can be shared:
// pods that start together wait for the first of them, once. It is safe for
// concurrent use; the zero value is ready.
type lessons struct {
	mu  sync.Mutex
	all map[string]*lesson
}

type lesson struct {
	done  chan struct{}
	ended time.Time // guarded by lessons.mu; zero while it is under way
}

// begin waits for the lesson of that key which is under way, as long as ctx lasts,
// and then reports that it did; where there is none, the caller's fetch is it.
// finish is to be called when the caller's fetch has ended, with whether it
// succeeded.
func (l *lessons) begin(ctx context.Context, key string) (finish func(success bool), waited bool) {
	none := func(bool) {}
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.all[key]
	switch {
	case known == nil || !known.ended.IsZero() && time.Since(known.ended) >= lessonKept:
	case !known.ended.IsZero():
		return none, false
	default:
		l.mu.Unlock()
		select {
		case <-known.done:
		case <-ctx.Done():
		}
		l.mu.Lock()
		return none, true
	}
	if l.all == nil || len(l.all) >= maxLessons {
		l.all = map[string]*lesson{}
	}
	mine := &lesson{done: make(chan struct{})}
	l.all[key] = mine
	return func(success bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		mine.ended = time.Now()
		close(mine.done)
		if !success && l.all[key] == mine {
			delete(l.all, key)
		}
	}, false
}
