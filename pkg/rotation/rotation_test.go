package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// world is a source of classes, a provider that can be watched, and a refresher
// that notes when it was called.
type world struct {
	mu           sync.Mutex
	refreshed    []time.Duration // since the world began
	targets      []string        // of these
	since        []time.Duration // that they were due
	began        time.Time
	err          error
	busy         time.Duration
	due          []provider.Due
	valid        time.Duration // how long what a refresh brings is valid, less than 0 for not any more; 0 for no bound
	wanted       time.Duration // when the provider wants to be asked again, less than 0 for in the past; 0 for whenever
	interval     class.Interval
	classChanged func(class.Ref)
	changed      func()
	broken       chan error // ends the last watch
	watches      int
	tokens, lost map[string]bool   // by target
	byAccount    map[string]func() // what tells of changes that an identity saw
	last         map[string]int    // the number of the watch that set it
}

func (w *world) Get(context.Context, class.Ref) (*class.SecretProviderClass, error) {
	return &class.SecretProviderClass{Spec: class.Spec{Provider: "store"}}, nil
}

func (w *world) Watch(ctx context.Context, changed func(class.Ref)) error {
	w.set(func() { w.classChanged = changed })
	<-ctx.Done()
	return nil
}

func (w *world) Refresh(ctx context.Context, target string, since time.Time, due provider.Due) (volume.Refreshed, error) {
	w.mu.Lock()
	w.refreshed = append(w.refreshed, time.Since(w.began))
	w.targets, w.since, w.due = append(w.targets, target), append(w.since, since.Sub(w.began)), append(w.due, due)
	busy, valid, wanted, interval, err := w.busy, w.valid, w.wanted, w.interval, w.err
	w.mu.Unlock()
	if busy > 0 {
		sleep(ctx, busy)
	}
	done := volume.Refreshed{Changed: true, Interval: interval}
	if valid != 0 {
		done.ValidUntil = time.Now().Add(valid)
	}
	if wanted != 0 {
		done.RefreshAt = time.Now().Add(wanted)
	}
	return done, err
}

func (w *world) Request(_ context.Context, target string) (provider.Request, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	req := provider.Request{TargetPath: target}
	if w.tokens[target] {
		req.Tokens = map[string]provider.Token{"a": {}}
	}
	return req, !w.lost[target]
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) times() []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]time.Duration(nil), w.refreshed...)
}

// store is the provider; with watched false it cannot be watched.
type store struct{ *world }

func (store) Fetch(context.Context, provider.Request) (provider.Result, error) {
	return provider.Result{}, nil
}

type watchedStore struct{ store }

func (s watchedStore) Watch(ctx context.Context, _ map[string]string, changed func()) error {
	var broken chan error
	s.set(func() {
		s.changed, s.watches = changed, s.watches+1
		s.broken = make(chan error)
		broken = s.broken
	})
	defer s.set(func() { s.watches-- })
	changed()
	select {
	case <-ctx.Done():
		return nil
	case err := <-broken:
		return err
	}
}

var info = volume.Info{TargetPath: "/t", Class: class.Ref{Namespace: "ns", Name: "c"}}

// run calls body in a bubble of time with a running scheduler.
func run(t *testing.T, watched bool, interval time.Duration, body func(w *world, s *Scheduler)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{began: time.Now()}
		var p provider.Provider = store{w}
		if watched {
			p = watchedStore{store{w}}
		}
		s := New(w, func(string) (provider.Provider, error) { return p, nil }, interval)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx, w) }()
		synctest.Wait()
		body(w, s)
		cancel()
		<-done
	})
}

func TestAVolumeIsRefreshedEveryInterval(t *testing.T) {
	run(t, false, time.Minute, func(w *world, s *Scheduler) {
		s.Published(info)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		times := w.times()
		if len(times) < 9 || len(times) > 11 {
			t.Fatalf("refreshed %d times in ten intervals", len(times))
		}
		for i := 1; i < len(times); i++ {
			if gap := times[i] - times[i-1]; gap < 54*time.Second || gap > 66*time.Second {
				t.Errorf("a gap of %v", gap)
			}
		}
	})
}

func TestAClassMayHaveAnIntervalOfItsOwn(t *testing.T) {
	for name, tc := range map[string]struct {
		flag        time.Duration
		ofClass     class.Interval
		least, most int // refreshes in an hour
	}{
		"more often":                    {time.Hour, class.Interval{Class: 5 * time.Minute}, 10, 14},
		"less often":                    {time.Minute, class.Interval{Class: 30 * time.Minute}, 1, 2},
		"never":                         {time.Minute, class.Interval{Class: class.Never}, 0, 0},
		"where others have none":        {0, class.Interval{Class: 10 * time.Minute}, 5, 7},
		"an object more often":          {time.Hour, class.Interval{Own: []time.Duration{5 * time.Minute}}, 10, 14},
		"an object more often than all": {time.Minute, class.Interval{Class: class.Never, Own: []time.Duration{10 * time.Minute}}, 5, 7},
		"an object less often":          {10 * time.Minute, class.Interval{Own: []time.Duration{time.Hour}}, 5, 7},
		"it is told of changes":         {time.Minute, class.Interval{Noticed: true}, 1, 3},
		"told, and an own interval":     {time.Hour, class.Interval{Class: 10 * time.Minute, Noticed: true}, 5, 7},
		"told, and rarer for all":       {2 * time.Hour, class.Interval{Noticed: true}, 0, 1},
		"told, and none for all":        {0, class.Interval{Noticed: true}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, false, tc.flag, func(w *world, s *Scheduler) {
				w.interval, s.Notified = tc.ofClass, 30*time.Minute
				v := info
				v.Interval = tc.ofClass
				s.Published(v)
				time.Sleep(time.Hour)
				synctest.Wait()
				if n := len(w.times()); n < tc.least || n > tc.most {
					t.Errorf("refreshed %d times", n)
				}
			})
		})
	}
}

// Objects are asked for as often as they say themselves, and whenever somebody tells
// of a change all are.
func TestObjectsAreDueAsOftenAsTheySay(t *testing.T) {
	const often, seldom = time.Minute, 6 * time.Hour
	of := class.Interval{Own: []time.Duration{often, seldom}}
	idle := class.Interval{Class: class.Never, Own: []time.Duration{often}, Idle: true}
	for name, tc := range map[string]struct {
		ofClass class.Interval
		want    map[time.Duration][2]int // how often at least and at most in three days
		all     int                      // how often at most all are
	}{
		"three intervals":          {of, map[time.Duration][2]int{often: {3900, 4800}, 0: {390, 480}, seldom: {10, 15}}, 15},
		"some on changes only":     {idle, map[time.Duration][2]int{often: {3900, 4800}}, 0},
		"drivers have no interval": {class.Interval{Own: []time.Duration{seldom}}, map[time.Duration][2]int{seldom: {10, 15}}, 0},
		"all have the same":        {class.Interval{Class: class.Never, Own: []time.Duration{seldom}}, map[time.Duration][2]int{seldom: {10, 15}}, 15},
	} {
		t.Run(name, func(t *testing.T) {
			flag := 10 * time.Minute
			if name == "drivers have no interval" {
				flag = 0
			}
			run(t, false, flag, func(w *world, s *Scheduler) {
				w.interval = tc.ofClass
				const volumes = 3
				for i := range volumes {
					v := info
					v.TargetPath, v.Interval = fmt.Sprint("/", i), tc.ofClass
					s.Published(v)
				}
				time.Sleep(3 * 24 * time.Hour)
				synctest.Wait()
				asked, all := map[time.Duration]int{}, 0
				byTime := map[time.Duration]string{}
				for i, due := range w.due {
					if other, ok := byTime[w.since[i]]; ok && other != fmt.Sprint(due) {
						t.Fatalf("volumes that are due together are asked for %s and %v", other, due)
					}
					byTime[w.since[i]] = fmt.Sprint(due)
					if due == nil {
						all++
						for kind := range tc.want {
							asked[kind]++
						}
					}
					for _, kind := range due {
						asked[kind]++
					}
				}
				for kind, want := range tc.want {
					if n := asked[kind] / volumes; n < want[0] || n > want[1] {
						t.Errorf("those of %v were asked for %d times", kind, n)
					}
				}
				if len(asked) != len(tc.want) || all > volumes*tc.all {
					t.Errorf("asked for was %v, and all %d times", asked, all)
				}
				if len(byTime) > len(w.due)/volumes {
					t.Errorf("%d refreshes were at %d times", len(w.due), len(byTime))
				}
				w.set(func() { w.due = nil })
				s.RefreshClass(info.Class)
				synctest.Wait()
				if n := len(w.due); n != volumes || w.due[0] != nil || w.due[1] != nil || w.due[2] != nil {
					t.Errorf("after a change is asked for %v", w.due)
				}
			})
		})
	}
}

// Whatever of a volume could not be had is asked for again, with all else.
func TestAfterAFailureAllObjectsAreDue(t *testing.T) {
	run(t, false, time.Minute, func(w *world, s *Scheduler) {
		w.interval = class.Interval{Own: []time.Duration{time.Hour}}
		v := info
		v.Interval = w.interval
		s.Published(v)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		w.set(func() { w.due, w.err = nil, errors.New("away") })
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if len(w.due) < 4 || len(w.due[0]) != 1 {
			t.Fatalf("asked for was %v", w.due)
		}
		for _, due := range w.due[1:] {
			if due != nil {
				t.Errorf("after a failure is asked for %v", due)
			}
		}
	})
}

// Volumes of one class and service account can share an answer, if they are
// refreshed at the same time; and whatever they share was asked for when they
// were due, not before.
func TestVolumesThatMayShareAnAnswerAreDueTogether(t *testing.T) {
	run(t, false, time.Minute, func(w *world, s *Scheduler) {
		w.busy = time.Second
		publish := func(account string, count int) {
			for i := range count {
				v := info
				v.TargetPath, v.Pod.ServiceAccount = fmt.Sprint("/", account, i), account
				s.Published(v)
				time.Sleep(time.Second)
			}
		}
		publish("many", 30)
		publish("one", 1)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		due := map[string]map[time.Duration]int{"many": {}, "one": {}}
		for i, target := range w.targets {
			account := strings.Trim(target, "/0123456789")
			due[account][w.since[i]]++
			if w.refreshed[i] < w.since[i] {
				t.Errorf("%s was refreshed at %v, before %v", target, w.refreshed[i], w.since[i])
			}
		}
		if n := len(due["many"]); n < 9 || n > 13 {
			t.Errorf("30 volumes were due at %d times in ten intervals: %v", n, due["many"])
		}
		for at := range due["one"] {
			if due["many"][at] > 0 {
				t.Error("another identity was due at the same time")
			}
		}
	})
}

func TestTheFirstRefreshesOfAFleetAreSpread(t *testing.T) {
	first := map[bool]int{} // in the first half of the interval, or the second
	for range 40 {
		run(t, false, time.Minute, func(w *world, s *Scheduler) {
			s.Published(info)
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			at := w.times()[0]
			if at < 15*time.Second || at > time.Minute {
				t.Errorf("the first refresh came after %v", at)
			}
			first[at < 37*time.Second]++
		})
	}
	if first[true] < 5 || first[false] < 5 {
		t.Errorf("of 40 drivers, %d refresh early", first[true])
	}
}

func TestARepeatedPublishDoesNotDelayTheRefresh(t *testing.T) {
	run(t, false, 2*time.Minute, func(w *world, s *Scheduler) {
		for range 10 {
			s.Published(info)
			time.Sleep(time.Minute)
		}
		if n := len(w.times()); n < 4 {
			t.Errorf("refreshed %d times in five intervals", n)
		}
	})
}

func TestAProviderIsAskedAgainWhenItWantsTo(t *testing.T) {
	run(t, false, time.Hour, func(w *world, s *Scheduler) {
		w.wanted = 7 * time.Second
		v := info
		v.RefreshAt = time.Now().Add(3 * time.Second)
		s.Published(v)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if times := w.times(); !slices.Equal(times, []time.Duration{3 * time.Second, 10 * time.Second, 17 * time.Second}) {
			t.Errorf("refreshed at %v", times)
		}
	})
}

func TestWhatEndsSoonIsTriedAgainMoreOften(t *testing.T) {
	run(t, false, time.Hour, func(w *world, s *Scheduler) {
		w.err, w.valid = errors.New("away"), 8*time.Second // from each attempt on
		v := info
		v.RefreshAt = time.Now().Add(time.Second)
		s.Published(v)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		times := w.times()
		for i := 1; i < len(times); i++ {
			if gap := times[i] - times[i-1]; gap < time.Second || gap > 2200*time.Millisecond {
				t.Errorf("a gap of %v", gap)
			}
		}
		if len(times) < 8 {
			t.Errorf("tried %d times in 20 s", len(times))
		}
	})
}

// The clocks of node and store may differ by more than what the store gives lasts:
// that is no reason to ask without a pause.
func TestWhatIsOverWhenItComesIsNotAskedForAllTheTime(t *testing.T) {
	for name, tc := range map[string]struct {
		valid, wanted time.Duration
		least, most   int // refreshes in ten minutes
	}{
		"over":               {-time.Minute, 0, 20, 30},
		"over just now":      {-time.Nanosecond, 0, 20, 30},
		"over soon":          {10 * time.Millisecond, 0, 20, 601},
		"wanted in the past": {0, -time.Minute, 300, 601},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, false, time.Hour, func(w *world, s *Scheduler) {
				w.valid, w.wanted = tc.valid, tc.wanted
				v := info
				v.RefreshAt = time.Now()
				s.Published(v)
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if n := len(w.times()); n < tc.least || n > tc.most {
					t.Errorf("refreshed %d times", n)
				}
			})
		})
	}
}

// A driver that comes late finds files that were due, or are over: it loses no time, as
// it may be killed again.
func TestWhatBecameDueWhileNoDriverRanIsRefreshedAtOnce(t *testing.T) {
	for name, v := range map[string]volume.Info{"due": {RefreshAt: time.Unix(1, 0)}, "over": {ValidUntil: time.Unix(1, 0)}} {
		t.Run(name, func(t *testing.T) {
			run(t, false, time.Hour, func(w *world, s *Scheduler) {
				v.TargetPath, v.Class = info.TargetPath, info.Class
				s.Published(v)
				synctest.Wait()
				if times := w.times(); !slices.Equal(times, []time.Duration{0}) {
					t.Errorf("refreshed at %v", times)
				}
			})
		})
	}
}

// Whatever else there is to refresh, what is due soon is not put off by it.
func TestWhatIsDueSoonIsNotPutOff(t *testing.T) {
	run(t, false, time.Hour, func(w *world, s *Scheduler) {
		w.valid, w.wanted = time.Minute, 300*time.Millisecond
		s.Published(info)
		s.RefreshClass(info.Class)
		synctest.Wait()
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		if times := w.times(); !slices.Equal(times, []time.Duration{0, 300 * time.Millisecond}) {
			t.Errorf("refreshed at %v", times)
		}
	})
}

func TestAVolumeThatWaitedForCredentialsIsRefreshedWithThem(t *testing.T) {
	run(t, false, time.Hour, func(w *world, s *Scheduler) {
		v := info
		s.Published(v)
		time.Sleep(time.Minute)
		v.Waiting = true
		s.Published(v)
		synctest.Wait()
		if times := w.times(); !slices.Equal(times, []time.Duration{time.Minute}) {
			t.Errorf("refreshed at %v", times)
		}
	})
}

// A store that was away brings everybody into step: that must not last either.
func TestAfterAFailureVolumesDoNotComeTogether(t *testing.T) {
	const interval = 10 * time.Minute
	moments := map[time.Duration]int{}
	for range 200 {
		run(t, false, interval, func(w *world, s *Scheduler) {
			s.Published(info)
			w.set(func() { w.err = errors.New("away") })
			time.Sleep(2 * interval)
			w.set(func() { w.err, w.refreshed = nil, nil })
			time.Sleep(time.Minute)
			synctest.Wait()
			first := len(w.times()) // once it is back
			time.Sleep(interval * 11 / 10)
			synctest.Wait()
			if len(w.times()) <= first {
				t.Fatal("it was not refreshed within an interval")
			}
			moments[w.times()[first].Truncate(time.Minute)]++
		})
	}
	for at, n := range moments {
		if n > 60 { // of 200 in some eight minutes
			t.Errorf("%d of 200 nodes come within the minute of %v", n, at)
		}
	}
}

func TestAFailureIsTriedAgainSoonAndThenLessOften(t *testing.T) {
	run(t, false, time.Minute, func(w *world, s *Scheduler) {
		w.set(func() { w.err = errors.New("away") })
		s.Published(info)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		times := w.times()
		for i, want := range []time.Duration{5, 10, 20, 25, 25, 25} {
			gap := times[i+1] - times[i]
			if want *= time.Second; gap < want*9/10 || gap > want*11/10 {
				t.Errorf("retry %d after %v, want about %v", i+1, gap, want)
			}
		}
		// New credentials are tried at once.
		failed := info
		failed.LastError = w.err
		before := len(w.times())
		s.Published(failed)
		synctest.Wait()
		if len(w.times()) != before+1 {
			t.Error("new credentials were not tried")
		}
	})
}

// identityStore can be watched by those who have tokens.
type identityStore struct{ store }

func (s identityStore) WatchAs(ctx context.Context, request func() provider.Request, changed func()) error {
	req := request()
	if len(req.Tokens) == 0 {
		return provider.ErrNoCredentials
	}
	account := strings.Trim(req.TargetPath, "/0123456789")
	mine := 0
	s.set(func() {
		s.watches++
		mine = s.watches
		s.byAccount[account], s.last[account] = changed, mine
	})
	changed()
	<-ctx.Done()
	s.set(func() {
		if s.last[account] == mine { // the next may have begun before this one ends
			delete(s.byAccount, account)
		}
	})
	return nil
}

func TestAnIdentitySeesItsOwnSourceChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{began: time.Now(), tokens: map[string]bool{"/web2": true}, lost: map[string]bool{"/web0": true}, byAccount: map[string]func(){}, last: map[string]int{}}
		s := New(w, func(string) (provider.Provider, error) { return identityStore{store{w}}, nil }, 0)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx, w) }()
		volumes := map[string]volume.Info{}
		for _, target := range []string{"/web0", "/web1", "/web2", "/other1"} {
			v := info
			v.TargetPath, v.Pod.ServiceAccount = target, strings.Trim(target, "/0123456789")
			volumes[target] = v
			s.Published(v)
		}
		time.Sleep(watchRetry + time.Second) // the first watch may have begun before the volume with tokens came
		synctest.Wait()
		accounts := func(want string) {
			t.Helper()
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			if got := fmt.Sprint(slices.Sorted(maps.Keys(w.byAccount))); got != want {
				t.Errorf("%s are watched, want %s", got, want)
			}
		}
		accounts("[web]") // of the other, no volume has tokens
		var changed func()
		w.set(func() { w.targets, w.tokens["/other1"], changed = nil, true, w.byAccount["web"] })
		changed()
		time.Sleep(time.Second)
		synctest.Wait()
		w.set(func() {
			if got := fmt.Sprint(slices.Sorted(slices.Values(w.targets))); got != "[/web0 /web1 /web2]" {
				t.Errorf("refreshed were %s", got)
			}
		})
		time.Sleep(time.Minute)
		accounts("[other web]")
		for _, target := range []string{"/web0", "/web1", "/web2"} {
			s.Unpublished(volumes[target])
		}
		accounts("[other]")
		w.set(func() { changed = func() { w.classChanged(info.Class) } })
		changed()
		accounts("[other]")
		cancel()
		<-done
	})
}

func TestWhatIsWatchedIsNotPolled(t *testing.T) {
	run(t, true, time.Minute, func(w *world, s *Scheduler) {
		s.Notified = time.Hour
		s.Published(info)
		time.Sleep(2 * catchUp)
		before := len(w.times())
		time.Sleep(50 * time.Minute)
		if n := len(w.times()) - before; n != 0 {
			t.Errorf("polled %d times while it is watched", n)
		}
		w.broken <- errors.New("it broke")
		time.Sleep(2 * catchUp)
		if n := len(w.times()) - before; n != 1 {
			t.Errorf("refreshed %d times when the watch broke", n)
		}
		w.set(func() { before = len(w.refreshed) })
		time.Sleep(watchRetry) // it is watched again
		synctest.Wait()
		time.Sleep(2 * catchUp)
		if n := len(w.times()) - before; n != 1 {
			t.Errorf("refreshed %d times when it was watched again", n)
		}
		w.classChanged(info.Class)
		time.Sleep(2 * catchUp)
		w.set(func() { before = len(w.refreshed) })
		time.Sleep(50 * time.Minute)
		if n := len(w.times()) - before; n != 0 {
			t.Errorf("polled %d times after the class changed", n)
		}
		time.Sleep(2 * time.Hour)
		if n := len(w.times()) - before; n < 1 || n > 3 {
			t.Errorf("in three hours, refreshed %d times in case a notice was lost", n)
		}
	})
}

func TestAChangeOfTheSourceIsFollowedAtOnce(t *testing.T) {
	run(t, true, time.Hour, func(w *world, s *Scheduler) {
		s.Published(info)
		synctest.Wait()
		time.Sleep(2 * catchUp)
		before := len(w.times()) // one, for what changed before the watch began
		if before != 1 {
			t.Errorf("refreshed %d times after the watch began", before)
		}
		w.changed()
		synctest.Wait()
		if len(w.times()) != before+1 {
			t.Error("it was not followed")
		}
	})
}

func TestThePodOfAVolumeMayAskForARefresh(t *testing.T) {
	run(t, false, time.Hour, func(w *world, s *Scheduler) {
		for _, pod := range []string{"a", "b"} {
			for _, volume := range []string{"/1", "/2"} {
				v := info
				v.TargetPath, v.Pod.UID = "/"+pod+volume, pod
				s.Published(v)
			}
		}
		s.RefreshPod("b")
		s.RefreshPod("other")
		synctest.Wait()
		if got := fmt.Sprint(slices.Sorted(slices.Values(w.targets))); got != "[/b/1 /b/2]" {
			t.Errorf("refreshed were %s", got)
		}
	})
}

func TestAChangeDuringARefreshIsNotLost(t *testing.T) {
	run(t, true, time.Hour, func(w *world, s *Scheduler) {
		s.Published(info)
		time.Sleep(2 * catchUp)
		w.set(func() { w.busy = time.Second })
		before := len(w.times())
		w.changed()
		synctest.Wait() // the refresh runs
		w.changed()
		w.changed()
		time.Sleep(5 * time.Second)
		if n := len(w.times()) - before; n != 2 {
			t.Errorf("refreshed %d times, want 2", n)
		}
	})
}

func TestAChangeOfTheClassIsFollowedAtOnce(t *testing.T) {
	run(t, true, time.Hour, func(w *world, s *Scheduler) {
		s.Published(info)
		time.Sleep(2 * catchUp)
		before := len(w.times())
		w.classChanged(info.Class)
		w.classChanged(class.Ref{Namespace: "ns", Name: "other"})
		synctest.Wait()
		if len(w.times()) == before {
			t.Error("it was not followed")
		}
		if w.watches != 1 {
			t.Errorf("%d watches run, want the new one only", w.watches)
		}
	})
}

func TestTheFilesAreFetchedAnewBeforeTheyRunOut(t *testing.T) {
	run(t, false, time.Hour, func(w *world, s *Scheduler) {
		brief := info
		brief.ValidUntil = time.Now().Add(9 * time.Minute)
		w.set(func() { w.valid = 9 * time.Minute })
		s.Published(brief)
		time.Sleep(time.Hour)
		synctest.Wait()
		times := append([]time.Duration{0}, w.times()...)
		if len(times) < 8 {
			t.Errorf("refreshed %d times", len(times)-1)
		}
		for i := 1; i < len(times); i++ {
			if gap := times[i] - times[i-1]; gap > 7*time.Minute {
				t.Errorf("a gap of %v", gap)
			}
		}
	})
}

func TestAnUnpublishedVolumeIsLeftAlone(t *testing.T) {
	run(t, true, time.Minute, func(w *world, s *Scheduler) {
		s.Published(info)
		synctest.Wait()
		s.Unpublished(info)
		s.Unpublished(info)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(w.times()); n != 0 {
			t.Errorf("refreshed %d times", n)
		}
		if w.watches != 0 {
			t.Errorf("%d watches still run", w.watches)
		}
	})
}
