package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

const (
	// maxAsking is how many fetches from one store are under way at the same time.
	maxAsking = 32
	// classShare bounds what one class has of these, in parts of the places that
	// are left then: classes whose fetches hang never hold all places (Choudhury
	// and Hahne, "Dynamic Queue Length Thresholds", 1998).
	classShare = 2
	// urgentTurns is how many urgent turns follow each other while one that is not
	// urgent waits.
	urgentTurns = 9
	// maxStores bounds what is remembered of stores that nobody asks just now;
	// unused is after what time it goes anyway.
	maxStores = 1024
	unused    = 5 * time.Minute
)

// How long a store is left alone that throttles, or does not answer: exponential
// backoff with full jitter ("Exponential Backoff And Jitter", AWS Architecture
// Blog, 2015), from the first to the last.
const (
	firstPause, lastPause = 500 * time.Millisecond, 30 * time.Second
	firstProbe, lastProbe = time.Second, 10 * time.Second
)

// How a store's rate is learned.
const (
	// rateWindow is over how long at most, and rateLeast over how long at least,
	// answers are counted.
	rateWindow, rateLeast = 5 * time.Second, time.Second
	// rateCut is the part of what succeeded that is asked after a throttling. In a
	// second without one the rate grows by rateStep, and rateGrowth of itself.
	rateCut, rateStep, rateGrowth = 0.9, 0.3, 0.03
	// lowestRate is in calls a second; what is slower is left to pauses.
	lowestRate = 1.0
	// rateKept is how long after its last pause a store keeps its rate.
	rateKept = time.Minute
	// rateLag is how far a call may be behind the rate, as timers are, and the
	// next ones make up for it.
	rateLag = 20 * time.Millisecond
)

// When a store counts as not answering: see the circuit breaker in Nygard,
// "Release It!", and of the Azure Architecture Center.
const (
	// maxFailures is how many failures in a row, without an answer, open the circuit.
	maxFailures = 5
	// patience is how long an urgent ask waits for a store whose circuit is open.
	patience = 20 * time.Second
	// leastTime is the time that an ask's deadline must have left its store to
	// count as the store's failure.
	leastTime = time.Second
)

// governor decides when a store is asked. An ask is a fetch, of one call or more. Of
// each store the governor limits the asks under way, lets classes take turns, and
// finds out with one ask at a time whether one that failed answers again. Of the
// calls it holds back those that would come in a pause that the store asked for, or
// faster than it answers. The zero governor is ready to use, by several goroutines.
type governor struct {
	mu     sync.Mutex
	stores map[string]*store
}

// work says what is to be asked.
type work struct {
	store  string // what is asked: calls to one store are governed together
	class  string // for fairness: classes of a store take turns
	urgent bool   // a pod waits for it to start; a refresh does not hurry
}

// turn is one ask of a store, or one call of an ask, from its arrival until it
// returns. It is guarded by governor.mu; refusal may be read once ready is closed.
type turn struct {
	work
	deadline time.Time // of its caller; zero for none
	number   uint64    // in the order of arrival at the store; calls have their ask's
	arrived  time.Time
	began    time.Time
	ready    chan struct{} // closed when it may go on, or is refused
	refusal  error
	volley   int  // store.volley when it began
	probe    bool // it finds out whether the store answers again
	paid     bool // the place of its first call has been kept
	refused  bool // one of its calls was, or was not made, for being one too many
}

func (t *turn) settle(refusal error) {
	t.refusal = refusal
	close(t.ready)
}

// do calls ask when it is the turn of w, and returns ask's error as it is. It
// governs each provider.Call that ask makes; one of an urgent ask that is throttled
// is made again while ctx lasts, and so is the ask. What is not asked
// is an *provider.Error with the reason: of kind Throttled where the store is left
// alone for longer than ctx lasts, or is left alone and w is not urgent; of kind
// Unavailable where the store does not answer, or where ctx ended before the turn
// came, which it then wraps.
func (g *governor) do(ctx context.Context, w work, ask func(ctx context.Context) error) error {
	t := &turn{work: w}
	t.deadline, _ = ctx.Deadline()
	for {
		s, err := g.wait(ctx, t)
		if err != nil {
			return err
		}
		if again, err := g.ask(ctx, s, t, ask); !again {
			return err
		}
	}
}

// wait returns when t holds a place among the asks under way of its store, or why
// it does not.
func (g *governor) wait(ctx context.Context, t *turn) (*store, error) {
	g.mu.Lock()
	now := time.Now()
	s := g.store(t.store, now)
	t.ready, t.arrived = make(chan struct{}), now
	s.enter(t, now)
	s.serve(now)
	g.mu.Unlock()
	select {
	case <-t.ready:
		return s, t.refusal
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-t.ready: // in the same moment
		return s, t.refusal
	default:
	}
	now = time.Now()
	for _, l := range []*lane{&s.urgent, &s.calm} {
		l.drop(func(other *turn) bool { return other == t })
	}
	s.plan(now)
	return nil, &provider.Error{Kind: provider.Unavailable, Object: s.object(), Op: "the ask waited its turn", Err: fmt.Errorf("%s: %w", s.why(now), ctx.Err())}
}

// ask asks, takes note of how that ended and gives the place to the next. It
// reports whether t is to be asked again.
func (g *governor) ask(ctx context.Context, s *store, t *turn, ask func(ctx context.Context) error) (again bool, err error) {
	ended := false // not by a panic
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		now := time.Now()
		s.leave(t, now)
		if ended {
			again = s.note(t, err, context.Cause(ctx), now)
		}
		s.serve(now)
	}()
	err = ask(provider.WithCaller(ctx, func(ctx context.Context, call func() error) error { return g.call(ctx, s, t, call) }))
	ended = true
	return false, err
}

// call makes one call of the ask t, when the store may be called. See provider.Call.
func (g *governor) call(ctx context.Context, s *store, t *turn, call func() error) error {
	c := &turn{work: t.work, number: t.number}
	c.deadline, _ = ctx.Deadline()
	for {
		if err := g.pass(ctx, s, t, c); err != nil {
			return err
		}
		if again, err := g.calling(ctx, s, t, c, call); !again {
			return err
		}
	}
}

// pass returns when c, a call of t, may be made, or why it may not.
func (g *governor) pass(ctx context.Context, s *store, t, c *turn) error {
	g.mu.Lock()
	now := time.Now()
	c.ready = make(chan struct{})
	switch {
	case t.paid && !now.Before(s.paused):
		t.paid = false
		c.volley = s.volley
		c.settle(nil)
	case !c.urgent && now.Before(s.paused):
		c.settle(s.throttling(now))
	default:
		s.calls.push(c)
	}
	s.serve(now)
	g.mu.Unlock()
	select {
	case <-c.ready:
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-c.ready:
		t.refused = t.refused || c.refusal != nil
		return c.refusal
	default:
	}
	now = time.Now()
	t.refused = true
	s.calls.drop(func(other *turn) bool { return other == c })
	s.plan(now)
	return &provider.Error{Kind: provider.Unavailable, Object: s.object(), Op: "the call waited its turn", Err: fmt.Errorf("%s: %w", s.why(now), ctx.Err())}
}

// calling makes the call c of t, and takes note of how that ended. It reports whether
// c is to be made again.
func (g *governor) calling(ctx context.Context, s *store, t, c *turn, call func() error) (again bool, err error) {
	err = call()
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	switch {
	case err == nil:
		s.count(c, now)
	case provider.KindOf(err) == provider.Throttled:
		t.refused = true
		s.throttle(c, err, now)
		again = c.urgent && ctx.Err() == nil && !c.endsBefore(s.paused)
	}
	s.serve(now)
	return again, err
}

// store returns the state of a store. A new one makes those go that were unused
// for long. Callers hold g.mu.
func (g *governor) store(name string, now time.Time) *store {
	if s := g.stores[name]; s != nil {
		return s
	}
	full := len(g.stores) >= maxStores
	for other, s := range g.stores {
		if s.asking == 0 && !s.waited() && len(s.calls) == 0 && (full || now.Sub(latest(s.used, s.paused)) >= unused) {
			delete(g.stores, other)
		}
	}
	if g.stores == nil {
		g.stores = map[string]*store{}
	}
	s := &store{name: name, used: now, limit: maxAsking, since: now, held: map[string]int{}}
	s.wake = time.AfterFunc(unused, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		s.serve(time.Now())
	})
	g.stores[name] = s
	return s
}

// waiting returns the stores that make asks wait.
func (g *governor) waiting(now time.Time) (all []Store) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(g.stores)) {
		s := g.stores[name]
		of := Store{Paused: max(0, s.paused.Sub(now))}
		of.Provider, of.Name, _ = strings.Cut(name, storeSeparator)
		for _, line := range slices.Concat(s.urgent, s.calm) {
			of.Waiting += len(line.turns)
		}
		if s.open() {
			of.Silent = now.Sub(s.silent)
		}
		if of.Waiting > 0 || of.Paused > 0 || of.Silent > 0 {
			all = append(all, of)
		}
	}
	return all
}

// silent reports whether a store is known not to answer.
func (g *governor) silent(name string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.stores[name]
	return s != nil && s.open()
}

// store is what is known of one store. It is guarded by governor.mu.
type store struct {
	name     string
	used     time.Time      // when the last ask returned
	asking   int            // asks under way
	held     map[string]int // these, by class
	calls    lane           // of asks under way, that wait
	urgent   lane           // who waits
	calm     lane           // who waits and is not urgent
	arrivals uint64
	inRow    int         // urgent turns while a calm one waited
	wake     *time.Timer // serves when the time has come for somebody who waits

	// Throttling. A volley are the calls that are made between two pauses: when many of
	// them are throttled, that counts once.
	paused    time.Time // no call is made before
	throttled time.Time // when the volley was
	refusal   string    // the words of the last
	volley    int       // counts them
	volleys   int       // throttled in a row, with no success in between

	// The rate.
	learning bool      // the rate is due to be learned when the pause ends
	since    time.Time // answers are counted since then
	answers  float64   // older ones count less
	rate     float64   // calls a second; zero for no bound
	late     float64   // added to it for each answer that comes late: to a call before
	learned  int       // this volley, when the first rate was learned
	grown    time.Time // when the rate grew last
	next     time.Time // when the rate allows the next call

	// The circuit, and the slow start after it was open.
	failures int       // in a row
	silent   time.Time // when the first of them was asked
	failure  string    // the words of the last
	opened   time.Time // zero while the circuit is closed
	probe    time.Time // when the next probe is due
	probes   int       // that failed
	probing  bool
	limit    int // of asks under way
}

func (s *store) object() string { return fmt.Sprintf("store %q", s.name) }
func (s *store) waited() bool   { return len(s.urgent)+len(s.calm) > 0 }
func (s *store) open() bool     { return !s.opened.IsZero() }

// enter puts t where it waits, in the order of first arrival. What does not hurry
// does not come to wait for the end of a pause.
func (s *store) enter(t *turn, now time.Time) {
	if t.number == 0 {
		s.arrivals++
		t.number = s.arrivals
	}
	switch {
	case t.urgent:
		s.urgent.push(t)
	case now.Before(s.paused):
		t.settle(s.throttling(now))
	default:
		s.calm.push(t)
	}
}

// serve lets those ask whose turn it is, tells those who wait for nothing, and
// comes back when the time has come for another. It is called after each change.
func (s *store) serve(now time.Time) {
	s.learn(now)
	for len(s.calls) > 0 && !now.Before(s.passes()) { // who has begun is to end soon
		c := s.calls.pop(func(string) bool { return true })
		s.spend(now)
		c.volley = s.volley
		c.settle(nil)
	}
	for s.waited() {
		if at, known := s.opens(); !known || now.Before(at) {
			break
		}
		s.begin(s.take(), now)
	}
	refused := func(verdict func(*turn, time.Time) error) func(*turn) bool {
		return func(t *turn) bool {
			refusal := verdict(t, now)
			if refusal != nil {
				t.settle(refusal)
			}
			return refusal != nil
		}
	}
	s.calls.drop(refused(s.tooLong))
	s.urgent.drop(refused(s.verdict))
	s.calm.drop(refused(s.verdict))
	s.plan(now)
}

// opens returns when the next ask that waits may begin; it is not known where
// another has to return before.
func (s *store) opens() (at time.Time, known bool) {
	if s.asking >= s.limit || s.probing || !s.urgent.has(s.mayAsk) && !s.calm.has(s.mayAsk) {
		return time.Time{}, false
	}
	at = s.passes()
	if s.open() {
		at = latest(at, s.probe)
	}
	return at, true
}

// passes returns when the next call may be made.
func (s *store) passes() time.Time { return latest(s.paused, s.next) }

// plan sets the clock to when somebody who waits is to be served or refused.
func (s *store) plan(now time.Time) {
	s.wake.Stop()
	at, known := s.opens()
	sooner := func(other time.Time) {
		if !known || other.Before(at) {
			at, known = other, true
		}
	}
	if len(s.calls) > 0 {
		sooner(s.passes())
	}
	if s.open() {
		for _, line := range s.urgent {
			for _, t := range line.turns {
				sooner(s.patience(t))
			}
		}
	}
	if known {
		s.wake.Reset(at.Sub(now))
	}
}

// take returns the first of those who wait and may ask.
func (s *store) take() *turn {
	switch {
	case !s.calm.has(s.mayAsk):
		return s.urgent.pop(s.mayAsk)
	case s.urgent.has(s.mayAsk) && s.inRow < urgentTurns:
		s.inRow++
		return s.urgent.pop(s.mayAsk)
	}
	s.inRow = 0
	return s.calm.pop(s.mayAsk)
}

// mayAsk reports whether a class has less than its share of the places.
func (s *store) mayAsk(class string) bool { return s.held[class] < classShare*(maxAsking-s.asking) }

// begin gives t a place.
func (s *store) begin(t *turn, now time.Time) {
	if s.asking == 0 && now.Sub(latest(s.used, s.paused)) > rateLeast {
		s.answers, s.since = 0, now // what was before says nothing of what the store could answer
	}
	s.spend(now)
	s.asking++
	s.held[t.class]++
	t.began, t.volley, t.paid, t.refused = now, s.volley, true, false
	t.probe, s.probing = s.open(), s.open()
	t.settle(nil)
}

// spend takes note of a call that is made now, or kept a place for.
func (s *store) spend(now time.Time) {
	if s.rate == 0 {
		return
	}
	s.rate += (rateStep + rateGrowth*s.rate) * min(now.Sub(s.grown), time.Second).Seconds()
	s.grown, s.next = now, latest(s.next, now.Add(-rateLag)).Add(s.interval())
	if now.Sub(s.paused) > rateKept {
		s.rate, s.next = 0, time.Time{}
	}
}

// leave takes the place of t back.
func (s *store) leave(t *turn, now time.Time) {
	s.used = now
	s.asking--
	if s.held[t.class]--; s.held[t.class] == 0 {
		delete(s.held, t.class)
	}
	if t.probe {
		s.probing = false
	}
}

// note learns from how t ended, and reports whether it is to be asked again.
// ended is why its caller's context has ended, nil where it has not.
func (s *store) note(t *turn, err, ended error, now time.Time) (again bool) {
	kind := provider.KindOf(err)
	hasty := !errors.Is(ended, context.DeadlineExceeded) || now.Sub(t.began) < leastTime
	switch {
	case err == nil:
		s.answered()
	case kind == provider.Throttled:
		s.closeCircuit()
		if !t.refused { // no answer was one of throttling as a whole
			s.throttle(t, err, now)
		}
		return t.urgent && ended == nil && !t.endsBefore(s.paused)
	case ended != nil && (kind == provider.Internal || kind == provider.Unavailable && (hasty || t.refused)):
		// The caller has ended it: that says nothing of the store.
	case kind == provider.Unavailable:
		s.fail(t, err, now)
	default: // it is an answer, if not the one hoped for
		s.answered()
	}
	return false
}

func (s *store) answered() {
	s.limit = min(2*s.limit, maxAsking)
	s.closeCircuit()
}

// count counts the answer to a call.
func (s *store) count(c *turn, now time.Time) {
	if c.volley == s.volley {
		s.volleys = 0
	}
	if counted := now.Sub(s.since); counted > rateWindow { // from here on their mean counts, as half a window
		s.answers *= (rateWindow / 2).Seconds() / counted.Seconds()
		s.since = now.Add(-rateWindow / 2)
	}
	s.answers++
	if s.rate > 0 && c.volley < s.learned {
		s.rate += s.late
	}
}

// throttle begins a pause, or makes it longer.
func (s *store) throttle(t *turn, err error, now time.Time) {
	var e *provider.Error
	errors.As(err, &e) // that is where its kind comes from
	s.refusal = words(err)
	if t.volley == s.volley {
		s.volley++
		s.throttled, s.learning = now, true
		if e.RetryAfter <= 0 {
			s.paused = latest(s.paused, now.Add(backoff(firstPause, lastPause, s.volleys)))
		}
		s.volleys++
	}
	s.paused = latest(s.paused, now.Add(e.RetryAfter))
}

// learn sets the rate when a pause has ended: a bit less than was answered in the
// seconds before. A pause of a second is among these: it costs a store with a token
// bucket nothing. Answers that take longer than refusals and the pause count when
// they come. Asks go on one by one, and not at the same moment as other nodes'.
func (s *store) learn(now time.Time) {
	if !s.learning || now.Before(s.paused) {
		return
	}
	s.learning = false
	s.since = s.since.Add(max(0, s.paused.Sub(s.throttled)-rateLeast))
	one := rateCut / max(s.paused.Sub(s.since), rateLeast).Seconds()
	if s.rate == 0 {
		s.rate, s.late, s.learned = s.answers*one, one, s.volley
	} else {
		s.rate = min(s.answers*one, s.rate*rateCut)
	}
	s.rate, s.grown = max(s.rate, lowestRate), s.paused
	s.next = s.paused.Add(rand.N(s.interval()))
}

// interval is the time between two asks at the rate.
func (s *store) interval() time.Duration {
	return time.Duration(float64(time.Second) / s.rate)
}

// fail counts failures, and opens the circuit or keeps it open.
func (s *store) fail(t *turn, err error, now time.Time) {
	if s.failure = words(err); s.failures == 0 {
		s.silent = t.began
	}
	s.failures++
	switch {
	case !s.open() && s.failures >= maxFailures:
		s.opened, s.probes = now, 0
	case t.probe && s.open():
		s.probes++
	default:
		return
	}
	s.probe = now.Add(backoff(firstProbe, lastProbe, s.probes))
}

// closeCircuit is called when the store has answered. With two asks beside those
// that still hang begins a slow start, which each answer doubles.
func (s *store) closeCircuit() {
	if s.open() {
		s.opened, s.limit = time.Time{}, min(s.asking+2, maxAsking)
	}
	s.failures = 0
}

// patience is until when t waits for the store to answer again.
func (s *store) patience(t *turn) time.Time { return latest(s.opened, t.arrived).Add(patience) }

// verdict returns why t need not go on waiting, nil where it does.
func (s *store) verdict(t *turn, now time.Time) error {
	switch {
	case s.open() && (!t.urgent || !now.Before(s.patience(t))):
		return s.unavailable(now)
	}
	return s.tooLong(t, now)
}

// tooLong returns the store's pause as an error, where it lasts longer than t can
// wait.
func (s *store) tooLong(t *turn, now time.Time) error {
	if now.Before(s.paused) && t.endsBefore(s.paused) {
		return s.throttling(now)
	}
	return nil
}

func (t *turn) endsBefore(at time.Time) bool { return !t.deadline.IsZero() && t.deadline.Before(at) }

// words returns what an error says of the store, and nothing of whose object it was
// about: it is told to others.
func words(err error) string {
	var e *provider.Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err.Error()
	}
	return "there was no answer"
}

func (s *store) unavailable(now time.Time) error {
	wait := firstProbe // for the probe that runs
	if !s.probing {
		wait = s.probe.Sub(now)
	}
	return &provider.Error{Kind: provider.Unavailable, Object: s.object(), Op: "it has not answered since " + stamp(s.silent),
		Err: errors.New(s.failure), Remedy: "it is probed", RetryAfter: wait}
}

func (s *store) throttling(now time.Time) error {
	return &provider.Error{Kind: provider.Throttled, Object: s.object(), Op: s.why(now), Err: &notCalled{s.refusal}, RetryAfter: s.paused.Sub(now)}
}

// notCalled is what the store said before, to somebody else.
type notCalled struct{ refusal string }

func (e *notCalled) Error() string { return e.refusal }
func (*notCalled) Unwrap() error   { return provider.ErrNotCalled }

// why says what holds those who wait.
func (s *store) why(now time.Time) string {
	switch {
	case s.open():
		return fmt.Sprintf("it has not answered since %s (%s) and is probed", stamp(s.silent), s.failure)
	case now.Before(s.paused):
		return "it throttles and is left alone until " + stamp(s.paused)
	case now.Before(s.next):
		return fmt.Sprintf("it throttles and is asked %.1f times a second", s.rate)
	}
	return fmt.Sprintf("%d fetches from it are under way, and there is a limit", s.asking)
}

// lane are those who wait, in lines of one class each. The first line is the next.
type lane []*line

type line struct {
	class string
	turns []*turn // by number
}

func (l *lane) push(t *turn) {
	at := slices.IndexFunc(*l, func(line *line) bool { return line.class == t.class })
	if at < 0 {
		*l = append(*l, &line{t.class, []*turn{t}})
		return
	}
	line := (*l)[at]
	place, _ := slices.BinarySearchFunc(line.turns, t, func(a, b *turn) int { return cmp.Compare(a.number, b.number) })
	line.turns = slices.Insert(line.turns, place, t)
}

// has reports whether anybody waits whose class may.
func (l lane) has(may func(class string) bool) bool {
	return slices.ContainsFunc(l, func(line *line) bool { return may(line.class) })
}

// pop removes the first of the first line whose class may, which then is the last
// line. There must be one.
func (l *lane) pop(may func(class string) bool) *turn {
	at := slices.IndexFunc(*l, func(line *line) bool { return may(line.class) })
	line := (*l)[at]
	t := line.turns[0]
	line.turns = slices.Delete(line.turns, 0, 1)
	*l = slices.Delete(*l, at, at+1)
	if len(line.turns) > 0 {
		*l = append(*l, line)
	}
	return t
}

func (l *lane) drop(gone func(*turn) bool) {
	for _, line := range *l {
		line.turns = slices.DeleteFunc(line.turns, gone)
	}
	*l = slices.DeleteFunc(*l, func(line *line) bool { return len(line.turns) == 0 })
}

// backoff returns a random time up to first doubled n times, or last.
func backoff(first, last time.Duration, n int) time.Duration {
	return rand.N(min(first<<min(n, 10), last))
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
