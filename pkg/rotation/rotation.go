// Package rotation decides when a volume is refreshed: at an interval, when its
// files run out, when its source says that something changed, or when new
// credentials arrived. It refreshes through volume.Manager and writes nothing
// itself.
package rotation

import (
	"container/heap"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

const (
	// workers is how many volumes are refreshed at the same time.
	workers = 8
	// firstRetry is the wait after a first failure; it doubles with each further
	// one, up to lastRetry or the interval. A store that is away is spared above:
	// most of these retries ask nobody.
	firstRetry = 5 * time.Second
	lastRetry  = 25 * time.Second
	// lastChance is the least wait after a refresh, failed or not, before files that
	// end soon are fetched again.
	lastChance = time.Second
	// watchRetry is the wait before a source that could not be watched is tried
	// again.
	watchRetry = 30 * time.Second
	// never is the wait for what is not planned.
	never = time.Duration(1 << 62)
	// catchUp is when volumes are refreshed after a watch of their source began:
	// it may have changed between their fetch and that.
	catchUp = time.Second
)

// DefaultNotified is an interval for volumes of whose changes the driver is told:
// a notice may get lost.
const DefaultNotified = time.Hour

// Refresher has the volumes. Refresh refreshes the one at a target: an answer will
// do that another volume got at since or later, and those of its objects need not be
// asked for that are not due. Request is what a refresh of it would ask its provider
// for; false where it is gone.
type Refresher interface {
	Refresh(ctx context.Context, target string, since time.Time, due provider.Due) (volume.Refreshed, error)
	Request(ctx context.Context, target string) (provider.Request, bool)
}

// Recorder counts refreshes. An errorType is empty for one that succeeded.
type Recorder interface {
	Refreshed(provider, errorType string, changed bool, took time.Duration)
}

// Scheduler is a volume.Observer that keeps the volumes it hears of fresh. It
// is safe for concurrent use.
type Scheduler struct {
	// Recorder may be nil; it is set before Run.
	Recorder Recorder
	// Notified is the interval of volumes of whose changes the driver is told, by a
	// watch that is under way or because their class says so. It is set before Run;
	// where it is zero they have that of all others.
	Notified time.Duration

	classes   class.Source
	providers func(name string) (provider.Provider, error)
	interval  time.Duration

	wake chan struct{} // holds an element when the queue has a new first

	mu      sync.Mutex
	ctx     context.Context // of Run; nil while it does not run
	queue   queue
	volumes map[string]*entry               // by target
	classOf map[class.Ref]map[string]*entry // by class and target
	groups  map[groupKey]*group
	watches map[watched]context.CancelFunc
	seen    map[watched]bool // the sources that are watched
	source  Refresher        // of Run
	running sync.WaitGroup
}

// groupKey names volumes whose stores are likely to answer alike.
type groupKey struct {
	class          class.Ref
	serviceAccount string
}

// group has its volumes become due together, so that they can share an answer. It
// is guarded by Scheduler.mu.
type group struct {
	volumes int
	next    time.Time                   // when those are due that were refreshed
	objects provider.Due                // which of their objects are due then
	kinds   map[time.Duration]time.Time // when the objects of an interval are
	retry   time.Time                   // when those are due that were not
}

// entry is a volume in the queue. It is guarded by Scheduler.mu.
type entry struct {
	target   string
	pod      string // its UID
	class    class.Ref
	key      groupKey
	due      time.Time
	objects  provider.Due // that are due then
	place    int          // in the queue, -1 while it is not there
	failures int
	running  bool // it is being refreshed, and not in the queue
	again    bool // it became due while it was being refreshed
	gone     bool
}

var _ volume.Observer = (*Scheduler)(nil)

// New returns a Scheduler that refreshes each volume every interval, give or
// take a tenth of it, unless its class has another; zero refreshes on changes
// only.
func New(classes class.Source, providers func(name string) (provider.Provider, error), interval time.Duration) *Scheduler {
	return &Scheduler{
		classes: classes, providers: providers, interval: interval, wake: make(chan struct{}, 1),
		volumes: map[string]*entry{}, classOf: map[class.Ref]map[string]*entry{}, watches: map[watched]context.CancelFunc{}, seen: map[watched]bool{}, groups: map[groupKey]*group{},
	}
}

// Published implements volume.Observer.
func (s *Scheduler) Published(v volume.Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.volumes[v.TargetPath]
	if e == nil {
		e = &entry{target: v.TargetPath, pod: v.Pod.UID, class: v.Class, key: groupKey{v.Class, v.Pod.ServiceAccount}, place: -1}
		s.volumes[e.target] = e
		if s.classOf[e.class] == nil {
			s.classOf[e.class] = map[string]*entry{}
		}
		s.classOf[e.class][e.target] = e
		g := s.groups[e.key]
		if g == nil {
			g = &group{}
			s.groups[e.key] = g
			s.spread(e, v.Interval) // the pods of a fleet start together; that must not last
		}
		g.volumes++
		s.watch(sourceOf(e.class))
		s.watch(watched{e.key, true})
		s.plan(e, v.Interval, v.ValidUntil, v.RefreshAt, 0, 0) // an earlier driver may have fetched it long ago
	}
	if v.LastError != nil || v.Waiting {
		s.schedule(e, time.Now()) // perhaps the new credentials help
	}
}

// Refreshed implements volume.Observer: the Scheduler knows of its own refreshes.
func (s *Scheduler) Refreshed(volume.Info, bool) {}

// Unpublished implements volume.Observer.
func (s *Scheduler) Unpublished(v volume.Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.volumes[v.TargetPath]
	if e == nil {
		return
	}
	e.gone = true
	delete(s.volumes, e.target)
	if e.place >= 0 {
		heap.Remove(&s.queue, e.place)
	}
	if g := s.groups[e.key]; g.volumes > 1 {
		g.volumes--
	} else {
		delete(s.groups, e.key)
		s.unwatch(watched{e.key, true})
	}
	delete(s.classOf[e.class], e.target)
	if len(s.classOf[e.class]) == 0 {
		delete(s.classOf, e.class)
		s.unwatch(sourceOf(e.class))
	}
}

// RefreshClass has the volumes of a class refreshed at once.
func (s *Scheduler) RefreshClass(ref class.Ref) { s.due(sourceOf(ref), 0) }

// RefreshPod has the volumes of the pod with that UID refreshed at once.
func (s *Scheduler) RefreshPod(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, e := range s.volumes {
		if e.pod == uid {
			s.schedule(e, now)
		}
	}
}

// Due returns when the volume at target is refreshed next, and false where that
// is not planned, or is being done.
func (s *Scheduler) Due(target string) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.volumes[target]
	if e == nil || e.running || time.Until(e.due) >= never/2 {
		return time.Time{}, false
	}
	return e.due, true
}

// Run refreshes volumes that are due until ctx ends, and returns when nothing
// of it runs any more. It is called once.
func (s *Scheduler) Run(ctx context.Context, volumes Refresher) {
	s.mu.Lock()
	s.ctx, s.source = ctx, volumes
	for ref := range s.classOf {
		s.watchClass(ref)
	}
	s.mu.Unlock()
	s.running.Go(func() { s.watchClasses(ctx) })
	defer s.running.Wait()

	free := make(chan struct{}, workers)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.wake:
		}
		for {
			e, since, due, wait := s.take()
			if e == nil {
				timer.Reset(wait)
				break
			}
			select {
			case free <- struct{}{}:
			case <-ctx.Done():
				return
			}
			s.running.Go(func() {
				defer func() { <-free }()
				s.refresh(ctx, volumes, e, since, due)
			})
		}
	}
}

func (s *Scheduler) refresh(ctx context.Context, volumes Refresher, e *entry, since time.Time, due provider.Due) {
	began := time.Now()
	done, err := volumes.Refresh(ctx, e.target, since, due)
	s.record(done, err, time.Since(began))
	logger := klog.FromContext(ctx)
	if err != nil && ctx.Err() == nil {
		logger.Error(err, "A refresh failed; what was fetched before stays", "target", e.target)
	} else if done.Changed {
		logger.V(2).Info("Refreshed a volume", "target", e.target)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.running = false
	switch {
	case e.gone:
		return
	case err == nil:
		if e.failures > 0 {
			s.spread(e, done.Interval) // those that failed together come together
		}
		e.failures = 0
		s.plan(e, done.Interval, done.ValidUntil, done.RefreshAt, lastChance, jitter(lastRetry))
	default:
		wait := min(firstRetry<<min(e.failures, 10), lastRetry)
		if interval := s.intervalOf(e, done.Interval); interval > 0 {
			wait = min(wait, max(interval, firstRetry))
		}
		var refusal *provider.Error
		if errors.As(err, &refusal) {
			wait = max(wait, refusal.RetryAfter) // what the store asked for
		}
		if left := time.Until(done.ValidUntil); left > 0 {
			wait = min(wait, max(left/4, lastChance)) // what ends soon is asked for more often
		}
		e.failures++
		s.schedule(e, together(&s.groups[e.key].retry, wait))
	}
	if e.again {
		e.again = false
		s.schedule(e, time.Now())
	}
}

func (s *Scheduler) record(done volume.Refreshed, err error, took time.Duration) {
	if s.Recorder == nil || errors.Is(err, volume.ErrNotPublished) {
		return
	}
	errorType := ""
	if err != nil {
		errorType = provider.KindOf(err).String()
	}
	s.Recorder.Refreshed(done.Provider, errorType, done.Changed, took)
}

// take removes the first volume that is due from the queue and tells since when
// it was, and which objects, or how long it is until one will be.
func (s *Scheduler) take() (e *entry, since time.Time, due provider.Due, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return nil, since, nil, time.Hour
	}
	if wait := time.Until(s.queue[0].due); wait > 0 {
		return nil, since, nil, wait
	}
	e = heap.Pop(&s.queue).(*entry)
	e.running = true
	return e, e.due, e.objects, 0
}

// spread plans the next refresh of e's group for some time within an interval, unless
// it is planned. Callers hold s.mu.
func (s *Scheduler) spread(e *entry, ofClass class.Interval) {
	g, now := s.groups[e.key], time.Now()
	if kinds, all := ofClass.Kinds(s.driversOf(e, ofClass)); len(kinds) > 0 && !g.next.After(now) {
		g.at(now.Add(time.Duration((0.25+0.75*rand.Float64())*float64(kinds.Shortest()))), slices.Collect(maps.Keys(kinds)), kinds, all)
	}
}

// together returns when a volume is due that wants to be after wait, give or take
// a tenth: at the time of its group, if that comes by then, or at one that others
// will take.
func together(due *time.Time, wait time.Duration) time.Time {
	if now := time.Now(); !soon(*due, now, wait) {
		*due = now.Add(jitter(wait))
	}
	return *due
}

// soon tells whether a time is to come, and not after more than wait and a tenth.
func soon(due, now time.Time, wait time.Duration) bool {
	return due.After(now) && !due.After(now.Add(wait*11/10))
}

// driversOf returns the interval of a volume whose class says that, as far as it
// leaves it to the driver; 0 for none. Callers hold s.mu.
func (s *Scheduler) driversOf(e *entry, ofClass class.Interval) time.Duration {
	if s.interval > 0 && s.Notified > 0 && (ofClass.Noticed || s.seen[sourceOf(e.class)] || s.seen[watched{e.key, true}]) {
		return max(s.interval, s.Notified)
	}
	return s.interval
}

// intervalOf returns the shortest interval of a volume whose class says that; 0 for
// none. Callers hold s.mu.
func (s *Scheduler) intervalOf(e *entry, ofClass class.Interval) time.Duration {
	return ofClass.Of(s.driversOf(e, ofClass))
}

// plan schedules a volume, given its class's interval, until when its files are valid,
// and when its provider wants to be asked again. Where one of these is past, or nearly,
// it waits for least, or for over where the files are not valid any more: what was past
// when it came, as where the clocks of node and store differ, would be so again. Callers
// hold s.mu.
func (s *Scheduler) plan(e *entry, ofClass class.Interval, validUntil, refreshAt time.Time, least, over time.Duration) {
	now := time.Now()
	due, objects := now.Add(never), provider.Due(nil)
	if kinds, all := ofClass.Kinds(s.driversOf(e, ofClass)); len(kinds) > 0 {
		g := s.groups[e.key]
		g.plan(kinds, all)
		due, objects = g.next, g.objects
	}
	early := func(at time.Time) {
		if at.Before(due) {
			due, objects = at, nil
		}
	}
	switch left := validUntil.Sub(now); {
	case validUntil.IsZero():
	case left > 0:
		early(now.Add(max(jitter(left*2/3), least)))
	default:
		early(now.Add(over))
	}
	switch {
	case refreshAt.IsZero():
	case refreshAt.After(now):
		early(refreshAt)
	default:
		early(now.Add(least))
	}
	s.schedule(e, due)
	e.objects = objects
}

// plan sees to it that the group is due after the shortest interval of its objects,
// give or take a tenth, together with those others for which no other time is nearer to
// their own. kinds are the intervals, see class.Interval; all says that there are no
// other objects.
func (g *group) plan(kinds class.Kinds, all bool) {
	shortest := kinds.Shortest()
	if soon(g.next, time.Now(), shortest) {
		return
	}
	next, wanted, objects := time.Now().Add(jitter(shortest)), map[time.Duration]time.Time{}, provider.Due(nil)
	for kind, interval := range kinds {
		at := g.kinds[kind]
		if together(&at, interval); interval == shortest || !at.After(next.Add(shortest/2)) {
			objects, at = append(objects, kind), next
		}
		wanted[kind] = at
	}
	g.kinds = wanted
	g.at(next, objects, kinds, all)
}

// at has the group due at a time, with some kinds of its objects.
func (g *group) at(next time.Time, objects provider.Due, kinds class.Kinds, all bool) {
	slices.Sort(objects) // whoever asks for the same is to ask alike
	g.next, g.objects = next, objects
	if all && len(objects) == len(kinds) {
		g.objects = nil
	}
}

// schedule makes all of e due at the given time, or once more after the refresh that
// runs. Callers hold s.mu.
func (s *Scheduler) schedule(e *entry, due time.Time) {
	if e.running {
		e.again = true
		return
	}
	e.due, e.objects = due, nil
	if e.place >= 0 {
		heap.Fix(&s.queue, e.place)
	} else {
		heap.Push(&s.queue, e)
	}
	if s.queue[0] == e {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// watchClasses refreshes the volumes of classes that change.
func (s *Scheduler) watchClasses(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.classes.Watch(ctx, func(ref class.Ref) {
			s.mu.Lock()
			s.watchClass(ref) // its provider and parameters may be others now
			s.mu.Unlock()
			s.due(sourceOf(ref), 0)
		})
		if err != nil {
			klog.FromContext(ctx).Error(err, "Cannot watch the classes; changes are found at the next interval")
		}
		sleep(ctx, watchRetry)
	}
}

// jitter returns d give or take a tenth, so that volumes that were published
// together are not refreshed together for ever.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// queue is a heap of volumes by the time at which they are due.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *queue) Push(x any) {
	e := x.(*entry)
	e.place = len(*q)
	*q = append(*q, e)
}

func (q *queue) Pop() any {
	e := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	e.place = -1
	return e
}
