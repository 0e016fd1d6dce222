package fetch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// sharing is a provider whose store takes a second, and knows pods by their
// service account. Each file holds the number of the ask, for whom and what.
type sharing struct {
	mu    sync.Mutex
	asked int
	ended int // asks whose context ended
	err   error
	alone bool // answers are the volume's own
	given []secret.Value

	recorded atomic.Int32 // volumes that shared
}

func (s *sharing) Fetched(string, string, time.Duration) {}
func (s *sharing) Shared(string)                         { s.recorded.Add(1) }
func (s *sharing) StartedSealed(string)                  {}

// counts returns how many asks there were, and how many ended early.
func (s *sharing) counts() (asked, ended int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked, s.ended
}

func (s *sharing) Identity(_ context.Context, req provider.Request) (string, bool) {
	return req.Pod.ServiceAccount, !s.alone
}

func (s *sharing) Fetch(ctx context.Context, req provider.Request) (provider.Result, error) {
	s.mu.Lock()
	s.asked++
	asked := s.asked
	s.mu.Unlock()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended++
		return provider.Result{}, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return provider.Result{}, s.err
	}
	if req.Current != nil && len(req.Mounted) > 0 && req.Mounted[0].Version == "current" {
		return provider.Result{NotModified: true}, nil
	}
	value := secret.FromString(fmt.Sprintf("%d for %s of %s", asked, req.Pod.ServiceAccount, req.Parameters["objects"]))
	s.given = append(s.given, value)
	return provider.Result{Files: []provider.File{{Path: "a", Mode: 0o644, Contents: value}}, Versions: []provider.ObjectVersion{{ID: "a", Version: "current"}}}, nil
}

// learning is a provider that knows for whom an answer is once its store has
// answered.
type learning struct{ *sharing }

func (l learning) Identity(ctx context.Context, req provider.Request) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return req.Pod.ServiceAccount, l.asked > 0 && len(l.given) > 0
}

func TestPodsThatStartTogetherWaitForTheFirstAnswerToALesson(t *testing.T) {
	for name, c := range map[string]struct {
		prepare     func(s *sharing)
		asked, more int           // of fifty pods, and of fifty more
		took, again time.Duration // the first and the second fifty
	}{
		"it teaches that they may share": {func(*sharing) {}, 2, 0, 2 * time.Second, 0},
		"it teaches that they may not":   {func(s *sharing) { s.alone = true }, 50, 50, 2 * time.Second, time.Second},
		"it fails":                       {func(s *sharing) { s.err = errors.New("away") }, 50, 50, 2 * time.Second, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &sharing{}
				c.prepare(s)
				var p provider.Provider = learning{s}
				if s.alone {
					p = s
				}
				f := New(provider.NewRegistry(map[string]provider.Provider{"store": p}, nil), 0)
				start := func() time.Duration {
					began := time.Now()
					var all sync.WaitGroup
					for range 50 {
						all.Go(func() {
							req := request("web", "x")
							req.Since = time.Now().Add(-time.Second)
							if r, err := f.Fetch(t.Context(), "store", req); !errors.Is(err, s.err) {
								t.Errorf("got %v, %v", r, err)
							}
						})
					}
					all.Wait()
					return time.Since(began)
				}
				if took, asked := start(), s.asked; asked != c.asked || took != c.took {
					t.Errorf("%d asks in %v, want %d in %v", asked, took, c.asked, c.took)
				}
				before := s.asked
				if took, asked := start(), s.asked-before; asked != c.more || took != c.again {
					t.Errorf("then %d asks in %v, want %d in %v", asked, took, c.more, c.again)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

func request(account, objects string) provider.Request {
	return provider.Request{Pod: provider.Pod{ServiceAccount: account}, Parameters: map[string]string{"objects": objects}, Since: time.Now()}
}

// shared runs body in a bubble of time, with a store.
func shared(t *testing.T, body func(s *sharing, fetch func(req provider.Request) string)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &sharing{}
		f := New(provider.NewRegistry(map[string]provider.Provider{"store": s}, nil), 0)
		f.Recorder = s
		body(s, func(req provider.Request) string {
			r, err := f.Fetch(t.Context(), "store", req)
			defer r.Clear()
			switch {
			case err != nil:
				return err.Error()
			case r.NotModified:
				return "not modified"
			}
			return string(r.Files[0].Contents.Reveal())
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, value := range s.given {
			if !value.IsEmpty() {
				t.Errorf("an answer was kept: %q", value.Reveal())
			}
		}
		if len(f.shares.all) > 0 {
			t.Errorf("%d answers are listed", len(f.shares.all))
		}
	})
}

func TestVolumesOfOneIdentityShareAnAnswer(t *testing.T) {
	shared(t, func(s *sharing, fetch func(provider.Request) string) {
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if got := fetch(request("web", "x")); got != "1 for web of x" {
					t.Errorf("got %q", got)
				}
			})
		}
		all.Wait()
		if s.recorded.Load() != 99 {
			t.Errorf("%d volumes shared the answer", s.recorded.Load())
		}
		began := time.Now().Add(-time.Second)
		late := request("web", "x")
		if late.Since = began; fetch(late) != "1 for web of x" {
			t.Error("an answer that is new enough was asked for again")
		}
		if late.Since = began.Add(time.Millisecond); fetch(late) != "2 for web of x" {
			t.Error("an answer is older than was asked for")
		}
		for _, req := range []provider.Request{request("other", "x"), request("web", "y")} {
			req.Since = time.Time{}
			if got := fetch(req); !strings.HasSuffix(got, fmt.Sprintf("for %s of %s", req.Pod.ServiceAccount, req.Parameters["objects"])) {
				t.Errorf("got %q", got)
			}
		}
	})
}

func TestWhatAVolumeHasDecidesWhatItCanShare(t *testing.T) {
	shared(t, func(s *sharing, fetch func(provider.Request) string) {
		fresh := request("web", "x")
		current, older := fresh, fresh
		current.Current, older.Current = nothing, nothing
		current.Mounted, older.Mounted = []provider.ObjectVersion{{ID: "a", Version: "current"}}, []provider.ObjectVersion{{ID: "a", Version: "older"}}
		otherClass := current
		otherClass.Current = nil // its files were made by another class
		var all sync.WaitGroup
		for want, req := range map[string]provider.Request{"not modified": current, "for web of x": older} {
			for range 3 {
				all.Go(func() {
					if got := fetch(req); !strings.HasSuffix(got, want) {
						t.Errorf("got %q, want %q", got, want)
					}
				})
			}
		}
		for _, req := range []provider.Request{fresh, otherClass} {
			all.Go(func() {
				if got := fetch(req); !strings.HasSuffix(got, "for web of x") {
					t.Errorf("got %q", got)
				}
			})
		}
		all.Wait()
	})
}

func TestAnAnswerOfItsOwnIsNotShared(t *testing.T) {
	shared(t, func(s *sharing, fetch func(provider.Request) string) {
		s.alone = true
		if a, b := fetch(request("web", "x")), fetch(request("web", "x")); a == b {
			t.Errorf("got %q twice", a)
		}
		for _, value := range s.given {
			value.Clear()
		}
	})
}

func TestAnErrorIsSharedByThoseWhoWaitAlone(t *testing.T) {
	shared(t, func(s *sharing, fetch func(provider.Request) string) {
		s.err = errors.New("the store is away")
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if got := fetch(request("web", "x")); !strings.Contains(got, "the store is away") {
					t.Errorf("got %q", got)
				}
			})
		}
		all.Wait()
		s.err = nil
		old := request("web", "x")
		old.Since = time.Time{}
		if got := fetch(old); got != "2 for web of x" {
			t.Errorf("got %q", got)
		}
	})
}

func TestTheFirstWhoAsksMayGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sharing{}
		f := New(provider.NewRegistry(map[string]provider.Provider{"store": s}, nil), 0)
		impatient, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := f.Fetch(impatient, "store", request("web", "x")); err == nil {
				t.Error("it waited")
			}
		})
		synctest.Wait()
		all.Go(func() {
			r, err := f.Fetch(t.Context(), "store", request("web", "x"))
			if asked, _ := s.counts(); err != nil || asked != 1 {
				t.Errorf("got %v after %d asks", err, asked)
			}
			r.Clear()
		})
		all.Wait()
		if _, ended := s.counts(); ended > 0 {
			t.Errorf("%d asks ended", ended)
		}
		short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := f.Fetch(short, "store", request("web", "z")); err == nil {
			t.Error("it waited")
		}
		synctest.Wait()
		if _, ended := s.counts(); ended != 1 {
			t.Errorf("%d asks ended, for which nobody waits", ended)
		}
	})
}

func TestAPanicIsOneForAll(t *testing.T) {
	f := New(provider.NewRegistry(map[string]provider.Provider{"store": panicking{}}, nil), 0)
	if _, err := f.Fetch(t.Context(), "store", request("web", "x")); err == nil {
		t.Error("no error")
	}
}

type panicking struct{}

func (panicking) Identity(context.Context, provider.Request) (string, bool) { return "", true }
func (panicking) Fetch(context.Context, provider.Request) (provider.Result, error) {
	panic("hunter2")
}

// No byte reaches an identity that its store did not authorise, nor one that was
// asked for before the identity wanted it.
func FuzzNoAnswerReachesAnotherIdentity(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, seed, more uint64) {
		synctest.Test(t, func(t *testing.T) {
			s := &stamping{}
			fetcher := New(provider.NewRegistry(map[string]provider.Provider{"store": s}, nil), 0)
			random := rand.New(rand.NewPCG(seed, more))
			var all sync.WaitGroup
			for range 60 {
				req := request(fmt.Sprint("account", random.IntN(3)), fmt.Sprint("class", random.IntN(2)))
				req.Since = time.Now().Add(-time.Duration(random.IntN(4000)) * time.Millisecond)
				s.revoked.Store(fmt.Sprint("account", random.IntN(9)))
				all.Go(func() {
					r, err := fetcher.Fetch(t.Context(), "store", req)
					if err != nil {
						return
					}
					defer r.Clear()
					var account, class string
					var at int64
					if _, err := fmt.Sscan(string(r.Files[0].Contents.Reveal()), &account, &class, &at); err != nil {
						t.Error(err)
					}
					if account != req.Pod.ServiceAccount || class != req.Parameters["objects"] || at < req.Since.UnixNano() {
						t.Errorf("%s of %s, since %d, got %s", req.Pod.ServiceAccount, req.Parameters["objects"], req.Since.UnixNano(), r.Files[0].Contents.Reveal())
					}
				})
				time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
			}
			all.Wait()
			time.Sleep(time.Minute)
		})
	})
}

// stamping is a store that says for whom, of what and when it was asked, and
// refuses one account.
type stamping struct{ revoked atomic.Value }

func (s *stamping) Identity(_ context.Context, req provider.Request) (string, bool) {
	return req.Pod.ServiceAccount, true
}

func (s *stamping) Fetch(_ context.Context, req provider.Request) (provider.Result, error) {
	at := time.Now().UnixNano()
	if req.Pod.ServiceAccount == s.revoked.Load() {
		return provider.Result{}, &provider.Error{Kind: provider.Denied, Err: errors.New("revoked")}
	}
	text := fmt.Sprint(req.Pod.ServiceAccount, " ", req.Parameters["objects"], " ", at)
	return provider.Result{Files: []provider.File{{Path: "a", Mode: 0o644, Contents: secret.FromString(text)}}}, nil
}
