package fetch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// throttling is a store with a token bucket that holds the tokens of a second.
type throttling struct {
	rate       float64 // tokens a second
	took       time.Duration
	refusing   time.Duration // what a refusal takes
	retryAfter time.Duration

	mu      sync.Mutex
	tokens  float64
	filled  time.Time
	told    time.Time // when it asked last to be left alone, until pause
	pause   time.Time
	refused int
	early   int // asks in a pause
	most    int // asks at the same time
	asking  int
}

func (s *throttling) ask(ctx context.Context) error {
	s.mu.Lock()
	now := time.Now()
	if s.filled.IsZero() {
		s.tokens = s.rate
	} else {
		s.tokens = min(s.rate, s.tokens+s.rate*now.Sub(s.filled).Seconds())
	}
	s.filled = now
	if now.After(s.told) && now.Before(s.pause) {
		s.early++
	}
	s.asking++
	s.most = max(s.most, s.asking)
	takes, refused := s.took, s.tokens < 1
	if refused {
		takes = s.refusing
	} else {
		s.tokens--
	}
	s.mu.Unlock()

	ended := sleep(ctx, takes)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking--
	if refused {
		s.refused++
		s.told = time.Now()
		s.pause = latest(s.pause, s.told.Add(s.retryAfter))
		return throttled(s.retryAfter)
	}
	return ended
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func throttled(retryAfter time.Duration) error {
	return &provider.Error{Kind: provider.Throttled, Op: "read", Err: errors.New("429 Too Many Requests"), RetryAfter: retryAfter}
}

func down() error {
	return &provider.Error{Kind: provider.Unavailable, Op: "read", Err: errors.New("connection refused")}
}

func kind(t *testing.T, err error, want provider.Kind, words ...string) *provider.Error {
	t.Helper()
	var e *provider.Error
	if !errors.As(err, &e) || e.Kind != want {
		t.Fatalf("got %v, want kind %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not in %q", w, err)
		}
	}
	return e
}

// one has a fetch of one call.
func (g *governor) one(ctx context.Context, w work, call func(context.Context) error) error {
	return g.do(ctx, w, func(ctx context.Context) error {
		return provider.Call(ctx, func() error { return call(ctx) })
	})
}

var urgent, calm = work{store: "s", class: "c", urgent: true}, work{store: "s", class: "c"}

func TestAStoreThatThrottlesIsAskedAsOftenAsItAnswers(t *testing.T) {
	const asks = 500
	for _, rate := range []float64{3, 10, 100} {
		for _, took := range []time.Duration{50 * time.Millisecond, 500 * time.Millisecond} {
			for _, refusing := range []time.Duration{took, 5 * time.Millisecond} {
				for _, retryAfter := range []time.Duration{0, time.Second} {
					t.Run(fmt.Sprintf("%g a second, an answer takes %v, a refusal %v, Retry-After %v", rate, took, refusing, retryAfter), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							var g governor
							s := &throttling{rate: rate, took: took, refusing: refusing, retryAfter: retryAfter}
							if err := g.one(t.Context(), calm, s.ask); err != nil { // what was long ago does not count
								t.Error(err)
							}
							time.Sleep(time.Hour)
							began := time.Now()
							var all sync.WaitGroup
							for i := range asks {
								all.Go(func() {
									if err := g.one(t.Context(), work{"s", fmt.Sprint(i % 7), true}, s.ask); err != nil {
										t.Error(err)
									}
								})
							}
							all.Wait()
							lasted := time.Since(began).Seconds()
							best := max(asks/rate, took.Seconds()*asks/maxAsking)
							t.Logf("%.1f s, at best %.1f, %d refused", lasted, best, s.refused)
							if lasted > 1.2*best {
								t.Errorf("it lasted %.1f s, more than 1.2 x %.1f", lasted, best)
							}
							if s.early > 0 {
								t.Errorf("%d asks came when the store had asked to be left alone", s.early)
							}
							if s.refused > asks/3 {
								t.Errorf("%d were refused", s.refused)
							}
							if s.most > maxAsking {
								t.Errorf("%d were under way", s.most)
							}
						})
					})
				}
			}
		}
	}
}

// A test's store that does what the test wants: each ask waits for its result.
type directed struct {
	results chan error
	mu      sync.Mutex
	asked   []string // who, in order
}

func newDirected() *directed { return &directed{results: make(chan error)} }

func (s *directed) ask(who string) func(context.Context) error {
	return func(ctx context.Context) error {
		s.mu.Lock()
		s.asked = append(s.asked, who)
		s.mu.Unlock()
		select {
		case err := <-s.results:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// names returns who was asked since the last call.
func (s *directed) names() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	names := strings.Join(s.asked, " ")
	s.asked = nil
	return names
}

// fails makes the store fail n times with err, at once.
func fails(t *testing.T, g *governor, w work, n int, err error) {
	t.Helper()
	for range n {
		if got := g.one(t.Context(), w, func(context.Context) error { return err }); !errors.Is(got, err) {
			t.Fatalf("got %v", got)
		}
	}
}

func succeeds(context.Context) error { return nil }

func never(t *testing.T) func(context.Context) error {
	return func(context.Context) error {
		t.Error("the store was asked")
		return nil
	}
}

func TestClassesTakeTurnsAndPodsThatStartComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		s := newDirected()
		var all sync.WaitGroup
		come := func(name, class string, urgent bool) {
			all.Go(func() {
				if err := g.one(t.Context(), work{"s", class, urgent}, s.ask(name)); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		for i := range maxAsking {
			come("x", fmt.Sprint("x", i), true)
		}
		if got := s.names(); got != strings.TrimSpace(strings.Repeat("x ", maxAsking)) {
			t.Errorf("asked: %s", got)
		}
		come("r1", "r", false)
		come("q1", "q", false)
		for _, name := range strings.Fields("a0 a1 b0 b1 c0 d0 d1 e0 e1 f0") {
			come(name, name[:1], true)
		}
		if got := s.names(); got != "" {
			t.Errorf("asked beyond the limit: %s", got)
		}
		var order []string
		for range 12 {
			s.results <- nil
			order = append(order, s.names())
		}
		if got, want := strings.Join(order, " "), "a0 b0 c0 d0 e0 f0 a1 b1 d1 r1 e1 q1"; got != want {
			t.Errorf("the order is %s, want %s", got, want)
		}
		for range maxAsking {
			s.results <- nil
		}
		all.Wait()
	})
}

// Fetches of one class hang, as many as there may be; those of others go on.
func TestAClassThatHangsLeavesPlacesToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		hang := func(class string) {
			for range 2 * maxAsking {
				go func() {
					_ = g.one(t.Context(), work{"s", class, true}, func(ctx context.Context) error { return sleep(ctx, time.Minute) })
				}()
			}
			synctest.Wait()
		}
		for _, class := range []string{"a", "b", "c"} {
			hang(class)
			if err := g.one(t.Context(), work{"s", "good", false}, succeeds); err != nil {
				t.Error(err)
			}
			if time.Since(g.stores["s"].since) > 0 {
				t.Fatal("it waited")
			}
		}
	})
}

// A fetch logs in, reads a list, and then its objects: no call of the fetches that
// are under way comes in a pause, or is made again before it has ended.
func TestCallsOfFetchesUnderWayKeepThePause(t *testing.T) {
	for _, retryAfter := range []time.Duration{0, time.Second} {
		t.Run(retryAfter.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const fetches, calls = 100, 5
				var g governor
				s := &throttling{rate: 10, took: 30 * time.Millisecond, refusing: 5 * time.Millisecond, retryAfter: retryAfter}
				var mu sync.Mutex
				made := 0
				call := func(ctx context.Context) error {
					return provider.Call(ctx, func() error {
						err := s.ask(ctx)
						if err == nil {
							mu.Lock()
							made++
							mu.Unlock()
						}
						return err
					})
				}
				began := time.Now()
				var all sync.WaitGroup
				for i := range fetches {
					all.Go(func() {
						err := g.do(t.Context(), work{"s", fmt.Sprint(i % 7), true}, func(ctx context.Context) error {
							if err := errors.Join(call(ctx), call(ctx)); err != nil {
								return err
							}
							var objects sync.WaitGroup
							for range calls - 2 {
								objects.Go(func() {
									if err := call(ctx); err != nil {
										t.Error(err)
									}
								})
							}
							objects.Wait()
							return nil
						})
						if err != nil {
							t.Error(err)
						}
					})
				}
				all.Wait()
				lasted, best := time.Since(began).Seconds(), fetches*calls/s.rate
				t.Logf("%.1f s, at best %.1f, %d refused", lasted, best, s.refused)
				if made != fetches*calls {
					t.Errorf("%d calls succeeded, want %d: some were made twice", made, fetches*calls)
				}
				if lasted > 1.2*best {
					t.Errorf("it lasted %.1f s, more than 1.2 x %.1f", lasted, best)
				}
				if s.early > 0 {
					t.Errorf("%d calls came when the store had asked to be left alone", s.early)
				}
			})
		})
	}
}

func TestACallOfARefreshDoesNotWaitForAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		err := g.do(t.Context(), calm, func(ctx context.Context) error {
			if err := provider.Call(ctx, func() error { return nil }); err != nil {
				t.Error(err)
			}
			fails(t, &g, work{"s", "other", false}, 1, throttled(10*time.Second))
			return provider.Call(ctx, func() error { t.Error("the store was called"); return nil })
		})
		if e := kind(t, err, provider.Throttled, "left alone until 2000-01-01T00:00:10Z"); e.RetryAfter != 10*time.Second {
			t.Errorf("asked to come back in %v", e.RetryAfter)
		}
		if pause := time.Until(g.stores["s"].paused); pause != 10*time.Second {
			t.Errorf("the pause has become %v", pause)
		}
	})
}

// Who waits for a call until its time is over has not found the store silent.
func TestACallThatWaitsIsNoFailureOfTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		for range maxFailures {
			fails(t, &g, calm, 1, throttled(2*time.Second))
			time.Sleep(2 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_ = g.do(ctx, urgent, func(ctx context.Context) error {
				for { // more than the rate allows in that time
					if err := provider.Call(ctx, func() error { return ctx.Err() }); err != nil {
						return err
					}
				}
			})
			cancel()
		}
		if s := g.stores["s"]; s.open() || s.failures > 0 {
			t.Errorf("%d failures in a row", s.failures)
		}
	})
}

func TestStoresDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		fails(t, &g, work{store: "throttles", class: "c"}, 1, throttled(time.Hour))
		fails(t, &g, work{store: "down", class: "c"}, maxFailures, down())
		if err := g.one(t.Context(), calm, succeeds); err != nil {
			t.Error(err)
		}
	})
}

func TestWhoEndsLeavesTheQueueAndHearsWhatHeldIt(t *testing.T) {
	for _, c := range []struct {
		name  string
		holds func(t *testing.T, g *governor)
		words string
	}{
		{"the limit", func(t *testing.T, g *governor) {
			for i := range maxAsking {
				go func() {
					_ = g.one(t.Context(), work{"s", fmt.Sprint(i), true}, func(ctx context.Context) error { return sleep(ctx, time.Minute) })
				}()
			}
		}, "32 fetches from it are under way, and there is a limit"},
		{"a pause", func(t *testing.T, g *governor) { fails(t, g, calm, 1, throttled(time.Minute)) }, "left alone until 2000-01-01T00:01:00Z"},
		{"the rate", func(t *testing.T, g *governor) {
			fails(t, g, calm, 1, throttled(time.Millisecond))
			time.Sleep(time.Millisecond)
			for range 10 {
				go func() { _ = g.one(t.Context(), urgent, succeeds) }()
			}
		}, "times a second"},
		{"the circuit", func(t *testing.T, g *governor) {
			fails(t, g, calm, maxFailures, down())
			go func() {
				_ = g.one(t.Context(), urgent, func(ctx context.Context) error { return sleep(ctx, time.Minute) })
			}()
		}, "it has not answered since 2000-01-01T00:00:00Z (connection refused) and is probed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g governor
				c.holds(t, &g)
				synctest.Wait()
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(2*time.Second, cancel)
				began := time.Now()
				err := g.one(ctx, urgent, never(t))
				kind(t, err, provider.Unavailable, `store "s"`, "waited its turn", c.words)
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%v does not wrap the context's error", err)
				}
				if took := time.Since(began); took != 2*time.Second {
					t.Errorf("it took %v", took)
				}
				if n := len(g.stores["s"].urgent); c.name != "the rate" && n > 0 {
					t.Errorf("%d lines wait", n)
				}
			})
		})
	}
}

func TestARefreshDoesNotWaitForAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		fails(t, &g, calm, 1, throttled(10*time.Second))
		time.Sleep(3 * time.Second)
		err := g.one(t.Context(), calm, never(t))
		if e := kind(t, err, provider.Throttled, "2000-01-01T00:00:10Z", "429 Too Many Requests"); e.RetryAfter != 7*time.Second {
			t.Errorf("asked to come back in %v", e.RetryAfter)
		}
		time.Sleep(7*time.Second - time.Nanosecond)
		kind(t, g.one(t.Context(), calm, never(t)), provider.Throttled)
		time.Sleep(time.Nanosecond)
		if err := g.one(t.Context(), calm, succeeds); err != nil {
			t.Error(err)
		}
	})
}

func TestAPodWaitsForAPauseOnlyIfItCanLastThatLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		within := func(d time.Duration, ask func(context.Context) error) (time.Duration, error) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			began := time.Now()
			err := g.one(ctx, urgent, ask)
			return time.Since(began), err
		}
		refused := throttled(10 * time.Second)
		took, err := within(9*time.Second, func(context.Context) error { return refused })
		if !errors.Is(err, refused) || took != 0 {
			t.Errorf("it was throttled: after %v, %v", took, err)
		}
		took, err = within(9*time.Second, never(t))
		if kind(t, err, provider.Throttled, "429 Too Many Requests"); took != 0 {
			t.Errorf("it came later: after %v, %v", took, err)
		}
		time.Sleep(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		if err := g.one(ctx, urgent, func(context.Context) error { cancel(); return refused }); !errors.Is(err, refused) {
			t.Errorf("it was throttled when its caller had gone: %v", err)
		}
		times := 0
		took, err = within(22*time.Second, func(context.Context) error {
			if times++; times == 1 {
				return throttled(10 * time.Second)
			}
			return nil
		})
		if err != nil || times != 2 || took < 20*time.Second || took > 22*time.Second {
			t.Errorf("asked %d times in %v: %v", times, took, err)
		}
	})
}

func TestWhoWaitsIsToldWhenThePauseGrowsBeyondItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		go func() {
			_ = g.one(t.Context(), calm, func(context.Context) error {
				time.Sleep(time.Second)
				return throttled(time.Minute)
			})
		}()
		synctest.Wait()
		fails(t, &g, calm, 1, throttled(10*time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		began := time.Now()
		if kind(t, g.one(ctx, urgent, never(t)), provider.Throttled); time.Since(began) != time.Second {
			t.Errorf("told after %v", time.Since(began))
		}
	})
}

func TestPausesWithoutRetryAfterGrowUntilASuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pauses := func(n int) (sum time.Duration) {
			for range 200 {
				g := governor{}
				fails(t, &g, calm, 1, throttled(0))
				for range n {
					time.Sleep(time.Until(g.stores["s"].paused) + time.Minute)
					fails(t, &g, calm, 1, throttled(0))
				}
				pause := time.Until(g.stores["s"].paused)
				if pause > min(firstPause<<n, lastPause) {
					t.Errorf("pause %d lasts %v", n, pause)
				}
				sum += pause
				time.Sleep(pause + time.Minute)
				if err := g.one(t.Context(), calm, succeeds); err != nil {
					t.Fatal(err)
				}
				fails(t, &g, calm, 1, throttled(0))
				if pause := time.Until(g.stores["s"].paused); pause > firstPause {
					t.Errorf("after a success: %v", pause)
				}
			}
			return sum / 200
		}
		for n, about := range []time.Duration{firstPause / 2, firstPause, 2 * firstPause, 4 * firstPause, 8 * firstPause, 16 * firstPause, lastPause / 2, lastPause / 2} {
			if mean := pauses(n); mean < about*7/10 || mean > about*13/10 {
				t.Errorf("pause %d lasts %v in the mean, want about %v", n, mean, about)
			}
		}
	})
}

func TestALateRefusalDoesNotShortenAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		began := time.Now()
		for _, a := range []struct{ at, returns, retryAfter time.Duration }{{0, 5, 10}, {0, 0, 1}, {3, 6, 0}} {
			time.AfterFunc(a.at*time.Second, func() {
				_ = g.one(t.Context(), calm, func(context.Context) error {
					time.Sleep(time.Until(began.Add(a.returns * time.Second)))
					return throttled(a.retryAfter * time.Second)
				})
			})
			synctest.Wait()
		}
		time.Sleep(7 * time.Second)
		if e := kind(t, g.one(t.Context(), calm, never(t)), provider.Throttled); e.RetryAfter != 8*time.Second {
			t.Errorf("asked to come back in %v", e.RetryAfter)
		}
	})
}

func TestAfterAPauseNodesDoNotComeAtTheSameMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		moments := map[time.Time]bool{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for range 50 {
			var g governor
			fails(t, &g, calm, 1, throttled(time.Second))
			all.Go(func() {
				_ = g.one(t.Context(), urgent, func(context.Context) error {
					mu.Lock()
					defer mu.Unlock()
					moments[time.Now()] = true
					return nil
				})
			})
		}
		all.Wait()
		if len(moments) < 25 {
			t.Errorf("50 nodes come at %d moments", len(moments))
		}
	})
}

func TestWhoWasThrottledKeepsItsPlaceInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		s := newDirected()
		var all sync.WaitGroup
		for i := range maxAsking + 5 {
			all.Go(func() {
				if err := g.one(t.Context(), work{"s", fmt.Sprint(i), true}, s.ask(fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		s.names()
		for range 3 {
			s.results <- throttled(time.Second)
			synctest.Wait()
		}
		for range maxAsking - 3 {
			s.results <- nil
		}
		again := s.names()
		for range 8 {
			time.Sleep(2 * time.Second)
			again += " " + s.names()
			s.results <- nil
		}
		all.Wait()
		if got := strings.Join(strings.Fields(again), " "); got != "0 1 2 32 33 34 35 36" {
			t.Errorf("the order is %s", got)
		}
	})
}

func TestManyRefusalsOfOneVolleyAreOneThrottling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		var all sync.WaitGroup
		for i := range maxAsking {
			all.Go(func() {
				_ = g.one(t.Context(), work{"s", fmt.Sprint(i), false}, func(context.Context) error {
					time.Sleep(time.Second)
					return throttled(0)
				})
			})
		}
		all.Wait()
		if pause := time.Until(g.stores["s"].paused); pause > firstPause {
			t.Errorf("the pause is %v", pause)
		}
	})
}

// burst returns how long n urgent asks take that come at once, of a store that
// answers at once.
func burst(t *testing.T, g *governor, n int) time.Duration {
	t.Helper()
	began := time.Now()
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			if err := g.one(t.Context(), urgent, succeeds); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	return time.Since(began)
}

func TestTheRateIsThatOfTheSecondsBefore(t *testing.T) {
	steadily := func(t *testing.T, g *governor, n int, pace time.Duration) {
		for range n {
			fails(t, g, urgent, 1, nil)
			time.Sleep(pace)
		}
	}
	for _, c := range []struct {
		name   string
		before func(t *testing.T, g *governor) // which succeeds with 20 a second in the end
	}{
		{"after a second", func(t *testing.T, g *governor) {
			steadily(t, g, 20, 50*time.Millisecond)
			fails(t, g, calm, 1, throttled(time.Millisecond))
		}},
		{"after a minute of less", func(t *testing.T, g *governor) {
			steadily(t, g, 60, time.Second)
			steadily(t, g, 120, 50*time.Millisecond)
			fails(t, g, calm, 1, throttled(time.Millisecond))
		}},
		{"after a minute of more", func(t *testing.T, g *governor) {
			steadily(t, g, 6000, 10*time.Millisecond)
			steadily(t, g, 300, 50*time.Millisecond)
			fails(t, g, calm, 1, throttled(time.Millisecond))
		}},
		{"before a long pause", func(t *testing.T, g *governor) {
			steadily(t, g, 100, 50*time.Millisecond)
			fails(t, g, calm, 1, throttled(20*time.Second))
			time.Sleep(20 * time.Second)
		}},
		{"of answers that come after the refusals", func(t *testing.T, g *governor) {
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					_ = g.one(t.Context(), urgent, func(context.Context) error { time.Sleep(time.Second); return nil })
				})
			}
			synctest.Wait()
			fails(t, g, calm, 1, throttled(time.Millisecond))
			time.Sleep(100 * time.Millisecond)
			_ = g.one(t.Context(), calm, succeeds) // the rate is set
			all.Wait()
		}},
		{"and does not change while nobody asks", func(t *testing.T, g *governor) {
			steadily(t, g, 20, 50*time.Millisecond)
			fails(t, g, calm, 1, throttled(time.Millisecond))
			time.Sleep(time.Millisecond)
			_ = g.one(t.Context(), calm, succeeds)
			time.Sleep(50 * time.Second)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g governor
				c.before(t, &g)
				rate := 36 / burst(t, &g, 36).Seconds()
				if rate < 14 || rate > 22 {
					t.Errorf("it is asked %.1f times a second", rate)
				}
			})
		})
	}
}

func TestAThrottlingFromWhichNothingWasLearnedHoldsNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		fails(t, &g, calm, 1, throttled(0)) // another client has used up what there was
		if took := burst(t, &g, 500); took > 45*time.Second {
			t.Errorf("500 asks took %v", took)
		}
	})
}

func TestARateIsForgottenAMinuteAfterTheLastThrottling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		fails(t, &g, calm, 1, throttled(time.Second))
		if took := burst(t, &g, 20); took < 5*time.Second {
			t.Errorf("a throttled store was asked 20 times in %v", took)
		}
		time.Sleep(rateKept)
		if took := burst(t, &g, 20); took > time.Second {
			t.Errorf("a minute later that takes %v", took)
		}
	})
}

func TestAStoreThatDoesNotAnswerIsProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		s := newDirected()
		fails(t, &g, calm, maxFailures-1, down())
		fails(t, &g, calm, 1, &provider.Error{Kind: provider.Denied})
		time.Sleep(time.Second)
		fails(t, &g, calm, maxFailures-1, down())
		time.Sleep(time.Second)
		fails(t, &g, calm, 1, down())
		// A refresh is told at once.
		e := kind(t, g.one(t.Context(), calm, never(t)), provider.Unavailable, `store "s": it has not answered since 2000-01-01T00:00:01Z: connection refused; it is probed`)
		if e.RetryAfter <= 0 || e.RetryAfter > firstProbe {
			t.Errorf("asked to come back in %v", e.RetryAfter)
		}
		// Pods wait; one of them probes.
		var all sync.WaitGroup
		for range 40 {
			all.Go(func() {
				if err := g.one(t.Context(), urgent, s.ask("pod")); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(firstProbe)
		if got := s.names(); got != "pod" {
			t.Errorf("asked: %s", got)
		}
		if e := kind(t, g.one(t.Context(), calm, never(t)), provider.Unavailable); e.RetryAfter != firstProbe {
			t.Errorf("asked to come back in %v", e.RetryAfter)
		}
		// It answers: the others follow, by and by.
		for _, more := range []int{2, 3, 5, 9, 17} { // one for the answer, and the limit doubles
			s.results <- nil
			if got := len(strings.Fields(s.names())); got != more && more < 17 || got > more {
				t.Errorf("%d more asked, want %d", got, more)
			}
		}
		for range 35 {
			s.results <- nil
		}
		all.Wait()
	})
}

func TestARefreshProbesWhereNoPodWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		fails(t, &g, calm, maxFailures, down())
		e := kind(t, g.one(t.Context(), calm, never(t)), provider.Unavailable)
		time.Sleep(e.RetryAfter)
		fails(t, &g, calm, 1, down())
		e = kind(t, g.one(t.Context(), calm, never(t)), provider.Unavailable)
		time.Sleep(e.RetryAfter)
		if err := g.one(t.Context(), calm, succeeds); err != nil {
			t.Error(err)
		}
		if err := g.one(t.Context(), calm, succeeds); err != nil {
			t.Error(err)
		}
	})
}

func TestPodsHearSoonThatAStoreDoesNotAnswer(t *testing.T) {
	for name, probe := range map[string]func(ctx context.Context) error{
		"it refuses": func(context.Context) error { return down() },
		"it hangs":   func(ctx context.Context) error { return sleep(ctx, time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g governor
				fails(t, &g, calm, maxFailures, down())
				for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(time.Second) {
					_ = g.one(t.Context(), calm, func(context.Context) error { return down() })
				}
				var all sync.WaitGroup
				var mu sync.Mutex
				probes, most := 0, 0
				for range 100 {
					all.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), DefaultTimeout)
						defer cancel()
						began, probed := time.Now(), false
						err := g.one(ctx, urgent, func(ctx context.Context) error {
							probed = true
							mu.Lock()
							probes++
							most = max(most, probes)
							mu.Unlock()
							defer func() { mu.Lock(); probes--; mu.Unlock() }()
							return probe(ctx)
						})
						if probed {
							return
						}
						kind(t, err, provider.Unavailable, "connection refused")
						if took := time.Since(began); took != patience {
							t.Errorf("told after %v", took)
						}
					})
				}
				all.Wait()
				if most > 1 {
					t.Errorf("%d probes at a time", most)
				}
			})
		})
	}
}

func TestProbesOfAStoreBecomeRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		fails(t, &g, calm, maxFailures, down())
		began, probes := time.Now(), 0
		for time.Since(began) < time.Hour {
			_ = g.one(t.Context(), calm, func(context.Context) error { probes++; return down() })
			time.Sleep(100 * time.Millisecond)
		}
		if mean := time.Hour / time.Duration(probes); mean < lastProbe*4/10 || mean > lastProbe*6/10 {
			t.Errorf("%d probes in an hour, want one in %v in the mean", probes, lastProbe/2)
		}
	})
}

func TestWhatCountsAsAFailureOfTheStore(t *testing.T) {
	of := func(kind provider.Kind) func(context.Context) error {
		return func(context.Context) error { return &provider.Error{Kind: kind} }
	}
	after := func(d time.Duration, err func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			if ended := sleep(ctx, d); ended == nil {
				return nil
			}
			return err(ctx)
		}
	}
	hangs := after(time.Hour, context.Context.Err)
	canceled := func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		time.AfterFunc(time.Minute, cancel)
		return ctx, cancel
	}
	within := func(d time.Duration) func(context.Context) (context.Context, context.CancelFunc) {
		return func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, d) }
	}
	for _, c := range []struct {
		name  string
		ctx   func(context.Context) (context.Context, context.CancelFunc)
		ask   func(context.Context) error
		fails bool
	}{
		{"it is unavailable", within(time.Minute), of(provider.Unavailable), true},
		{"it hangs", within(time.Minute), hangs, true},
		{"it hangs, which its provider calls unavailable", within(time.Minute), after(time.Hour, of(provider.Unavailable)), true},
		{"it had no time to answer", within(leastTime - 1), hangs, false},
		{"its caller gave up", canceled, hangs, false},
		{"its caller gave up, which its provider calls unavailable", canceled, after(time.Hour, of(provider.Unavailable)), false},
		{"denied", within(time.Minute), of(provider.Denied), false},
		{"not found", within(time.Minute), of(provider.NotFound), false},
		{"invalid", within(time.Minute), of(provider.Invalid), false},
		{"too large", within(time.Minute), of(provider.TooLarge), false},
		{"internal", within(time.Minute), of(provider.Internal), false},
		{"success", within(time.Minute), succeeds, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g governor
				for range maxFailures {
					ctx, cancel := c.ctx(t.Context())
					_ = g.one(ctx, urgent, c.ask)
					cancel()
				}
				asked := false
				_ = g.one(t.Context(), calm, func(context.Context) error { asked = true; return nil })
				if asked == c.fails {
					t.Errorf("the circuit is open: %t, want %t", !asked, c.fails)
				}
			})
		})
	}
}

func TestAStoreThatThrottlesHasAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		fails(t, &g, calm, maxFailures, down())
		time.Sleep(firstProbe)
		fails(t, &g, calm, 1, throttled(time.Second))
		kind(t, g.one(t.Context(), calm, never(t)), provider.Throttled)
		time.Sleep(2 * time.Second)
		if err := g.one(t.Context(), calm, func(context.Context) error {
			time.Sleep(2 * time.Second)
			return g.one(t.Context(), calm, succeeds) // beside it: it is no probe
		}); err != nil {
			t.Error(err)
		}
	})
}

func TestAPanicGivesItsPlaceBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		panics := func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_ = g.one(t.Context(), urgent, func(context.Context) error { panic("x") })
		}
		for range maxAsking + 1 {
			panics()
		}
		fails(t, &g, calm, maxFailures, down())
		panics() // as a probe
		fails(t, &g, calm, 1, down())
		kind(t, g.one(t.Context(), calm, never(t)), provider.Unavailable)
		if err := g.one(t.Context(), urgent, succeeds); err != nil {
			t.Error(err)
		}
	})
}

func TestWhatIsKnownOfStoresIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g governor
		of := func(name string) work { return work{store: name, class: "c"} }
		fails(t, &g, of("paused"), 1, throttled(time.Hour))
		go func() {
			_ = g.one(t.Context(), of("asked"), func(ctx context.Context) error { return sleep(ctx, time.Hour) })
		}()
		fails(t, &g, of("unused"), 1, down())
		time.Sleep(unused)
		fails(t, &g, of("new"), 1, down())
		if g.stores["unused"] != nil || g.stores["paused"] == nil || g.stores["asked"] == nil {
			t.Errorf("there are %v", g.stores)
		}
		for i := range 2 * maxStores {
			fails(t, &g, of(fmt.Sprint(i)), 1, down())
		}
		if len(g.stores) > maxStores || g.stores["asked"] == nil {
			t.Errorf("there are %d", len(g.stores))
		}
	})
}

// What comes, when, how long its caller waits, what it is answered and when is
// all chance; what must hold always does.
func FuzzGovernor(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, uint8(60*seed))
	}
	f.Fuzz(func(t *testing.T, seed uint64, trouble uint8) {
		synctest.Test(t, func(t *testing.T) { chance(t, rand.New(rand.NewPCG(seed, 0)), int(trouble)) })
	})
}

func chance(t *testing.T, random *rand.Rand, trouble int) {
	var g governor
	var mu sync.Mutex // guards random and what follows
	asking, told, pause := map[string]int{}, map[string]time.Time{}, map[string]time.Time{}
	upTo := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) }
	ask := func(store string) func(context.Context) error {
		return func(ctx context.Context) error {
			mu.Lock()
			if asking[store]++; asking[store] > maxAsking {
				t.Errorf("%d asks are under way", asking[store])
			}
			if now := time.Now(); now.After(told[store]) && now.Before(pause[store]) {
				t.Errorf("asked %v before the pause ends", pause[store].Sub(now))
			}
			takes, what := upTo(3*time.Second), random.IntN(256)
			if random.IntN(50) == 0 {
				takes = time.Hour
			}
			wait := max(0, upTo(10*time.Second)-5*time.Second)
			mu.Unlock()
			err := sleep(ctx, takes)
			mu.Lock()
			defer mu.Unlock()
			asking[store]--
			switch {
			case err != nil || what >= trouble:
				return err
			case what%8 == 0:
				panic("x")
			case what%8 == 1:
				return &provider.Error{Kind: provider.Denied}
			case what%8 < 4:
				told[store] = time.Now()
				pause[store] = latest(pause[store], told[store].Add(wait))
				return throttled(wait)
			}
			return down()
		}
	}
	var all sync.WaitGroup
	for range 300 {
		mu.Lock()
		w := work{fmt.Sprint(random.IntN(2)), fmt.Sprint(random.IntN(4)), random.IntN(3) > 0}
		comes, lasts, gives, calls := upTo(30*time.Second), upTo(2*time.Minute), random.IntN(10) == 0, random.IntN(4)
		mu.Unlock()
		all.Go(func() {
			time.Sleep(comes)
			ctx, cancel := context.WithTimeout(t.Context(), lasts)
			defer cancel()
			if gives {
				time.AfterFunc(lasts/2, cancel)
			}
			came := time.Now()
			defer func() {
				_ = recover()
				if time.Since(came) > lasts {
					t.Errorf("it returned %v late", time.Since(came)-lasts)
				}
			}()
			call := ask(w.store)
			_ = g.do(ctx, w, func(ctx context.Context) error {
				for range calls {
					if err := provider.Call(ctx, func() error { return call(ctx) }); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	all.Wait()
	g.mu.Lock()
	stores := maps.Clone(g.stores)
	g.mu.Unlock()
	for name, s := range stores {
		g.mu.Lock()
		if s.asking != 0 || s.probing || s.waited() || asking[name] != 0 {
			t.Errorf("store %s: %d under way, %d lines wait", name, s.asking, len(s.urgent)+len(s.calm))
		}
		if len(s.calls) > 0 || len(s.held) > 0 {
			t.Errorf("store %s: %d calls wait, %d classes have places", name, len(s.calls), len(s.held))
		}
		g.mu.Unlock()
		// After all this it is asked again, at most a pause and a probe later.
		time.Sleep(time.Minute)
		if err := g.one(t.Context(), work{name, "c", true}, succeeds); err != nil {
			t.Error(err)
		}
	}
}
