package sync

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

const (
	// FieldManager owns what the drivers of all nodes write.
	FieldManager = "csi-secrets"
	// workers is how many Secrets are looked at at the same time.
	workers = 4
	// lookAgain is how long after a Secret was made as wanted it is looked whether it
	// has stayed so, and lookAnyway after how long a Secret is looked at of which there is no news.
	// Both are given or taken a fifth.
	lookAgain, lookAnyway = 5 * time.Second, 10 * time.Minute
	// A Secret that cannot be written is tried again after firstRetry, and then after
	// twice as long each time, up to lastRetry.
	firstRetry, lastRetry = time.Second, 5 * time.Minute
	// patience bounds one attempt.
	patience = time.Minute
)

// Config is what Pods works with.
type Config struct {
	Classes class.Source
	// Files returns the files of the volume at a target, all of one set, and since
	// when they are, see volume.Manager.Files. The caller clears them.
	Files func(target string) (files []provider.File, since time.Time, err error)
	// Teller hears how the Secrets of volumes stand.
	Teller Teller
	// Recorder counts; it may be nil.
	Recorder Recorder
}

// Teller hears, after each attempt, how the Secrets stand that are made of a volume:
// those that its class wants, by name, and why not all of them are as wanted, nil if
// they are. It must return at once, is safe for concurrent use, and does not change
// secrets.
type Teller interface {
	Synced(v volume.Info, secrets []Told, err error)
}

// Told is a Secret that a class wants.
type Told struct {
	Name string
	// WrittenAt is when it became what it is, see Written.At; zero where that is not
	// known, or where it is not there.
	WrittenAt time.Time
}

// Recorder counts the attempts to bring a Secret about. errorType is "" for one that
// succeeded, and wrote tells whether that took a write. It is safe for concurrent
// use.
type Recorder interface {
	SecretSynced(provider, errorType string, wrote bool, took time.Duration)
}

// Pods is a volume.Observer that keeps the Secrets which the classes of a node's
// volumes want (secretObjects). It works off the path of a publish; the drivers of
// other nodes may keep the same Secrets at the same time. It is safe for concurrent
// use.
//
// It needs the rights that Writer needs, and to get pods, replicasets and jobs.
type Pods struct {
	config Config
	writer *Writer
	owners *owners
	queue  workqueue.TypedRateLimitingInterface[job]

	mu      sync.Mutex
	volumes map[string]volume.Info // by target
	wishes  map[class.Ref]*wishes  // of classes with volumes
	secrets map[place]*state
}

// place is the namespace and name of a Secret.
type place = types.NamespacedName

// job is something to look at: a class, or a Secret.
type job struct {
	isClass bool
	at      types.NamespacedName
}

// wishes are the Secrets that a class wants, by name.
type wishes struct {
	generation int64
	objects    map[string]class.SecretObject
	news       bool // its volumes have other files than its Secrets were made of
}

// state is what is known of a Secret.
type state struct {
	tried bool
	err   error // of the last attempt
	// dropped is the class that wanted the Secret last, where none does.
	dropped string
	// since is when the Data became what it is, by the clock of whoever wrote it, and
	// seen when this node saw that first.
	since, seen time.Time
	// writtenAt is Written.At, where it is known.
	writtenAt time.Time
	// behind says that the Secret has newer Data than ours, which it never had.
	behind bool
	// settled is the last version of ours that the Secret had.
	settled version
}

// version tells contents of a Secret apart.
type version struct {
	changed    int64 // in nanoseconds, as Unix has it
	class      string
	generation int64
}

var _ volume.Observer = (*Pods)(nil)

// New returns Pods that write nothing before Run. Its error tells what is wrong with
// config.
func New(api *kube.API, config Config) (*Pods, error) { return build(api.Client, config) }

func build(of clients, config Config) (*Pods, error) {
	if config.Classes == nil || config.Files == nil || config.Teller == nil {
		return nil, errors.New("sync: a source of classes, the files of volumes and a teller are needed")
	}
	if config.Recorder == nil {
		config.Recorder = noRecorder{}
	}
	writer, err := newWriter(of, FieldManager)
	if err != nil {
		return nil, err
	}
	owners, err := newOwners(of)
	if err != nil {
		return nil, err
	}
	return &Pods{
		config: config, writer: writer, owners: owners,
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[job](firstRetry, lastRetry)),
		volumes: map[string]volume.Info{}, wishes: map[class.Ref]*wishes{}, secrets: map[place]*state{},
	}, nil
}

type noRecorder struct{}

func (noRecorder) SecretSynced(string, string, bool, time.Duration) {}

// Run keeps Secrets until ctx ends. It is called once.
func (p *Pods) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		<-ctx.Done()
		p.queue.ShutDown()
	})
	for range workers {
		running.Go(func() {
			for p.next(ctx) {
			}
		})
	}
}

// Published implements volume.Observer.
func (p *Pods) Published(v volume.Info) {
	if v.Pod.Name == "" || v.Pod.Namespace == "" || v.Pod.UID == "" {
		return // published by hand
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, known := p.volumes[v.TargetPath]
	p.volumes[v.TargetPath] = v
	if !known {
		p.look(v.Class)
	}
}

// Refreshed implements volume.Observer.
func (p *Pods) Refreshed(v volume.Info, changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.volumes[v.TargetPath]; !known {
		return
	}
	p.volumes[v.TargetPath] = v
	if changed {
		p.look(v.Class)
	} else {
		p.queue.Add(classJob(v.Class)) // which may be why there was a refresh
	}
}

// look has the Secrets of a class looked at. Callers hold p.mu.
func (p *Pods) look(ref class.Ref) {
	if p.wishes[ref] == nil {
		p.wishes[ref] = &wishes{}
	}
	p.wishes[ref].news = true
	p.queue.Add(classJob(ref))
}

// Unpublished implements volume.Observer. Secrets go with their owners.
func (p *Pods) Unpublished(v volume.Info) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.volumes, v.TargetPath)
	p.owners.forget(v.Pod)
	for _, other := range p.volumes {
		if other.Class == v.Class {
			return
		}
	}
	delete(p.wishes, v.Class)
	for at := range p.secrets {
		if at.Namespace == v.Class.Namespace && len(p.wantedBy(at)) == 0 {
			delete(p.secrets, at)
		}
	}
}

func classJob(ref class.Ref) job {
	return job{true, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}}
}

// next does one job, and reports whether there may be others.
func (p *Pods) next(ctx context.Context) bool {
	j, stopped := p.queue.Get()
	if stopped {
		return false
	}
	defer p.queue.Done(j)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var err error
	if j.isClass {
		err = p.lookAtClass(ctx, class.Ref{Namespace: j.at.Namespace, Name: j.at.Name})
	} else {
		err = p.bring(ctx, j.at)
	}
	if err == nil {
		p.queue.Forget(j)
		return true
	}
	klog.FromContext(ctx).V(2).Info("Cannot keep Secrets; it is tried again", "of", j.at, "reason", err.Error())
	p.queue.AddRateLimited(j)
	return true
}

// lookAtClass notes what a class wants, and has looked at what differs from before.
func (p *Pods) lookAtClass(ctx context.Context, ref class.Ref) error {
	c, err := p.config.Classes.Get(ctx, ref)
	if provider.KindOf(err) == provider.NotFound {
		return nil // the Secrets stay for as long as their owners
	}
	if err != nil {
		return err
	}
	objects := map[string]class.SecretObject{}
	for _, o := range c.Spec.SecretObjects {
		objects[strings.TrimSpace(o.SecretName)] = o
	}
	p.mu.Lock()
	w := p.wishes[ref]
	if w == nil {
		p.mu.Unlock()
		return nil
	}
	before, news := w.objects, w.news || w.generation != c.Generation
	w.generation, w.objects, w.news = c.Generation, objects, false
	for name := range objects {
		at := place{Namespace: ref.Namespace, Name: name}
		if news || p.stateOf(at).behind {
			p.queue.Add(job{at: at})
		}
	}
	for name := range before {
		if _, ok := objects[name]; !ok {
			at := place{Namespace: ref.Namespace, Name: name}
			p.stateOf(at).dropped = ref.Name
			p.queue.Add(job{at: at})
		}
	}
	p.mu.Unlock()
	if news && len(objects) == 0 {
		p.tell(ref)
	}
	return nil
}

// stateOf returns the state of a Secret. Callers hold p.mu.
func (p *Pods) stateOf(at place) *state {
	if p.secrets[at] == nil {
		p.secrets[at] = &state{}
	}
	return p.secrets[at]
}

// wantedBy returns the volumes of classes that want a Secret, those whose files
// changed last first. Callers hold p.mu.
func (p *Pods) wantedBy(at place) []volume.Info {
	var users []volume.Info
	for _, v := range p.volumes {
		if w := p.wishes[v.Class]; w != nil && v.Class.Namespace == at.Namespace {
			if _, ok := w.objects[at.Name]; ok {
				users = append(users, v)
			}
		}
	}
	slices.SortFunc(users, func(a, b volume.Info) int {
		if order := changed(b).Compare(changed(a)); order != 0 {
			return order
		}
		return strings.Compare(a.TargetPath, b.TargetPath)
	})
	return users
}

// changed is since when a volume has files like those that it has.
func changed(v volume.Info) time.Time {
	if !v.SealedAt.IsZero() {
		return v.SealedAt
	}
	return v.Changed
}

// bring makes one Secret as it is wanted, or takes away one that is not any more.
func (p *Pods) bring(ctx context.Context, at place) error {
	p.mu.Lock()
	users := p.wantedBy(at)
	if len(users) == 0 {
		dropped := p.stateOf(at).dropped
		p.mu.Unlock()
		return p.remove(ctx, at, dropped)
	}
	from := users[0]
	w := *p.wishes[from.Class]
	p.mu.Unlock()
	began := time.Now()
	wrote, err := p.ensure(ctx, at, users, w)
	p.mu.Lock()
	for _, v := range users {
		if _, still := p.volumes[v.TargetPath]; !still {
			p.owners.forget(v.Pod)
		}
	}
	p.mu.Unlock()
	switch {
	case errors.Is(err, errGone):
		p.queue.AddAfter(job{at: at}, about(lookAnyway)) // it is for those whose pods stay
		return nil
	case errors.Is(err, volume.ErrNotPublished):
		p.queue.AddAfter(job{at: at}, firstRetry) // there may be others
		return nil
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return nil
	}
	kind := ""
	if err != nil {
		kind = provider.KindOf(err).String()
	}
	p.config.Recorder.SecretSynced(from.Provider, kind, wrote, time.Since(began))
	if err == nil {
		p.queue.AddAfter(job{at: at}, about(lookAnyway))
	}
	if wrote {
		klog.FromContext(ctx).Info("Wrote a Secret", "secret", at, "class", from.Class)
	}
	p.mu.Lock()
	s := p.stateOf(at)
	s.tried, s.err = true, err
	p.mu.Unlock()
	told := map[class.Ref]bool{}
	for _, v := range users {
		if !told[v.Class] {
			told[v.Class] = true
			p.tell(v.Class)
		}
	}
	return err
}

// about returns d, give or take a fifth.
func about(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// remove takes a Secret away that a class wants no more. A class that is gone says
// nothing about its Secrets.
func (p *Pods) remove(ctx context.Context, at place, dropped string) error {
	if dropped != "" {
		if err := p.writer.Remove(ctx, at.Namespace, at.Name, dropped); err != nil && !errors.Is(err, ErrForeign) {
			return err
		}
		klog.FromContext(ctx).Info("A class wants a Secret no more", "secret", at, "class", dropped)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.wantedBy(at)) == 0 {
		delete(p.secrets, at)
	}
	return nil
}

// ensure makes a Secret of the volume whose files changed last, for the pods of all
// that want it. It returns errGone where all pods are about to go.
func (p *Pods) ensure(ctx context.Context, at place, users []volume.Info, w wishes) (wrote bool, err error) {
	from := users[0]
	files, since, err := p.config.Files(from.TargetPath)
	if err != nil {
		return false, err
	}
	object := w.objects[at.Name]
	want, err := Build(from.Class, terms(from.Class, object), object, files)
	for _, f := range files {
		f.Contents.Clear()
	}
	if err != nil {
		return false, err
	}
	defer want.Clear()
	want.Generation, want.Changed = w.generation, since
	var pods []provider.Pod
	for _, v := range users {
		pods = append(pods, v.Pod)
	}
	ours := version{since.UnixNano(), from.Class.Name, w.generation}
	var owned bool
	if want.Owners, owned = p.owners.remembered(pods); owned {
		st, err := p.writer.Look(ctx, want)
		p.saw(at, st.Since)
		p.stands(at, st.WrittenAt)
		if err != nil || st.Holds {
			p.settle(at, ours, err)
			return false, err
		}
		owned = st.Owned
	}
	if !owned {
		// Those that were found before may be gone.
		if want.Owners, err = p.owners.find(ctx, pods); err != nil {
			return false, err
		}
		if len(want.Owners) == 0 {
			return false, errGone
		}
	}
	done, err := p.writer.Ensure(ctx, want)
	p.stands(at, done.At)
	var newer *NewerError
	if errors.As(err, &newer) {
		p.saw(at, newer.Changed)
		if !p.prevails(at, ours, from.Refreshed) {
			return done.Wrote, nil
		}
		want.Changed = newer.Changed.Add(1)
		done, err = p.writer.Ensure(ctx, want)
		p.stands(at, done.At)
	}
	if err == nil {
		p.queue.AddAfter(job{at: at}, about(lookAgain))
	}
	p.settle(at, ours, err)
	return done.Wrote, err
}

// settle notes that the Secret has our version, unless err says that it has not.
func (p *Pods) settle(at place, ours version, err error) {
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stateOf(at)
	s.settled, s.behind = ours, false
}

// saw notes since when a Secret has the Data that it has.
func (p *Pods) saw(at place, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.stateOf(at); !s.since.Equal(since) {
		s.since, s.seen = since, time.Now()
	}
}

// stands notes when a Secret became what it is, where that is known.
func (p *Pods) stands(at place, writtenAt time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !writtenAt.IsZero() {
		p.stateOf(at).writtenAt = writtenAt
	}
}

// prevails tells whether our Data are newer than those of a Secret that says the
// contrary, because clocks differ: they are if the store confirmed them after this
// node had seen those. Each version prevails once at most, so that two pods which
// the store gives different values do not take turns for ever.
func (p *Pods) prevails(at place, ours version, confirmed time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stateOf(at)
	s.behind = s.settled != ours
	return s.behind && confirmed.After(s.seen)
}

// tell tells of the Secrets of a class once all of them were tried.
func (p *Pods) tell(ref class.Ref) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.wishes[ref]
	if w == nil {
		return
	}
	var errs []error
	var secrets []Told
	for _, name := range slices.Sorted(maps.Keys(w.objects)) {
		s := p.secrets[place{Namespace: ref.Namespace, Name: name}]
		if s == nil || !s.tried {
			return
		}
		errs, secrets = append(errs, s.err), append(secrets, Told{name, s.writtenAt})
	}
	err := provider.Join(errs)
	for _, v := range p.volumes {
		if v.Class == ref {
			p.config.Teller.Synced(v, secrets, err)
		}
	}
}
