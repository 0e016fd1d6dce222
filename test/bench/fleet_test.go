package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/fetch"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/rotation"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

// A fleet is nodes with the driver's own Scheduler and Fetcher each, in simulated
// time, at one store.
const (
	// classesOfNode and podsOfClass are of each node. The pods of a class have one
	// service account.
	classesOfNode, podsOfClass = 2, 5
	// fleetRate is how many calls a second the store takes.
	fleetRate = 200
	// fleetOutage is how long it is down.
	fleetOutage = 10 * time.Minute
	// window is what is looked at for nodes that ask in step.
	window = 10 * time.Second
)

// A fleet does not ask its store in step, neither without an event nor after the
// store was down. CSI_SECRETS_FLEET is of how many nodes; what is
// measured of them is written then.
func TestAFleetDoesNotAskInStep(t *testing.T) {
	nodes := harness.Number(t, "CSI_SECRETS_FLEET", 50)
	r := newReport(fmt.Sprintf("simulated time, one round; %d nodes of %d classes with %d pods each, refreshed every %v, at one store that takes %d calls a second",
		nodes, classesOfNode, podsOfClass, defaultInterval, fleetRate), alone)
	for _, way := range []string{alone, shared} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, r, way, nodes)
			f.startPods("without Retry-After", 0)
		})
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, r, way, nodes)
			f.startPods("with Retry-After", time.Second)
			f.halfHour("without an event")
			f.announce()
			f.fall()
			f.halfHour("after an outage")
		})
	}
	r.endRound()
	if os.Getenv("CSI_SECRETS_FLEET") != "" {
		if err := r.writeText(os.Stdout); err != nil {
			t.Error(err)
		}
	}
}

type fleet struct {
	t     *testing.T
	ctx   context.Context
	r     *report
	way   string
	store *store
	nodes []*fleetNode
	// announced is told of a change of any class.
	announced []func(class.Ref)
}

// newFleet starts the schedules of nodes that have no volumes yet. They end with
// the test.
func newFleet(t *testing.T, r *report, way string, nodes int) *fleet {
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), klog.Logger{})) // that logs nothing
	f := &fleet{t: t, ctx: ctx, r: r, way: way, store: &store{latency: 20 * time.Millisecond, jitter: 20 * time.Millisecond}}
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	for range nodes {
		n := newFleetNode(f)
		f.nodes = append(f.nodes, n)
		running.Go(func() { n.scheduler.Run(ctx, n) })
	}
	synctest.Wait()
	return f
}

// Get implements class.Source.
func (f *fleet) Get(context.Context, class.Ref) (*class.SecretProviderClass, error) {
	return &class.SecretProviderClass{Spec: class.Spec{Provider: "store"}}, nil
}

// Watch implements class.Source.
func (f *fleet) Watch(ctx context.Context, changed func(class.Ref)) error {
	f.store.mu.Lock()
	f.announced = append(f.announced, changed)
	f.store.mu.Unlock()
	<-ctx.Done()
	return nil
}

// Fetch implements provider.Provider.
func (f *fleet) Fetch(ctx context.Context, _ provider.Request) (provider.Result, error) {
	var a answer
	err := provider.Call(ctx, func() error {
		switch a = f.store.ask(ctx, read); a.outcome {
		case throttled:
			return &provider.Error{Kind: provider.Throttled, Err: errors.New("one call too many"), RetryAfter: a.retryAfter}
		case cut:
			return &provider.Error{Kind: provider.Unavailable, Err: errors.New("the connection ended")}
		}
		return nil
	})
	if err != nil {
		return provider.Result{}, err
	}
	return provider.Result{Files: []provider.File{{Path: "a", Mode: provider.DefaultMode, Contents: secret.FromString(a.secret.value)}}}, nil
}

// Identity implements provider.Sharer.
func (f *fleet) Identity(_ context.Context, req provider.Request) (string, bool) {
	return req.Pod.ServiceAccount, f.way == shared
}

// Store implements provider.Located.
func (f *fleet) Store(map[string]string) (string, bool) { return "store", true }

// fleetNode is a node without mounts: of its volumes it knows the values.
type fleetNode struct {
	scheduler *rotation.Scheduler
	fetcher   *fetch.Fetcher
	volumes   map[string]volume.Info // by target

	mu   sync.Mutex
	held map[string]string // values by target
}

func newFleetNode(f *fleet) *fleetNode {
	registry := provider.NewRegistry(map[string]provider.Provider{"store": f}, nil)
	n := &fleetNode{
		scheduler: rotation.New(f, registry.Get, defaultInterval), fetcher: fetch.New(registry, 0),
		volumes: map[string]volume.Info{}, held: map[string]string{},
	}
	for c := range classesOfNode {
		for i := range podsOfClass {
			target := fmt.Sprintf("/%d/%d", c, i)
			n.volumes[target] = volume.Info{
				TargetPath: target, Class: class.Ref{Namespace: "default", Name: fmt.Sprint(c)},
				Pod: provider.Pod{Namespace: "default", Name: fmt.Sprintf("%d-%d", c, i), ServiceAccount: fmt.Sprint(c)},
			}
		}
	}
	return n
}

// Refresh implements rotation.Refresher.
func (n *fleetNode) Refresh(ctx context.Context, target string, since time.Time, _ provider.Due) (volume.Refreshed, error) {
	return volume.Refreshed{Provider: "store"}, n.fetch(ctx, target, since, false)
}

// Request implements rotation.Refresher.
func (n *fleetNode) Request(context.Context, string) (provider.Request, bool) {
	return provider.Request{}, false
}

func (n *fleetNode) fetch(ctx context.Context, target string, since time.Time, urgent bool) error {
	v := n.volumes[target]
	result, err := n.fetcher.Fetch(ctx, "store", provider.Request{
		Parameters: map[string]string{"class": v.Class.Name}, Attributes: map[string]string{"secretProviderClass": v.Class.Name},
		Pod: v.Pod, Since: since, Urgent: urgent, Mode: provider.DefaultMode,
	})
	if err != nil {
		return err
	}
	defer result.Clear()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held[target] = string(result.Files[0].Contents.Reveal())
	return nil
}

// publish fetches until that succeeds, as kubelet does: for two minutes a time, and
// with waits that double to two minutes.
func (n *fleetNode) publish(ctx context.Context, v volume.Info) {
	for wait := 500 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 2*time.Minute) {
		call, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err := n.fetch(call, v.TargetPath, time.Now().Add(-2*time.Second), true)
		cancel()
		if err == nil {
			n.scheduler.Published(v)
			return
		}
		time.Sleep(wait)
	}
}

// startPods starts all pods of all nodes in one moment.
func (f *fleet) startPods(how string, retryAfter time.Duration) {
	f.store.limit(fleetRate, retryAfter)
	began := time.Now()
	var starting sync.WaitGroup
	for _, n := range f.nodes {
		for _, v := range n.volumes {
			starting.Go(func() { n.publish(f.ctx, v) })
		}
	}
	starting.Wait()
	f.add("all pods start in one moment, 429 "+how, began, time.Now())
}

// halfHour measures half an hour without an event, once what was before is over.
func (f *fleet) halfHour(name string) {
	time.Sleep(2 * defaultInterval)
	began := time.Now()
	time.Sleep(time.Hour / 2)
	calls := f.store.since(began)
	mean := float64(len(calls)) / float64(time.Hour/2/window)
	step := float64(calls.most(window)) / mean
	f.r.addOf(f.way, name+", calls", perHour, 2*float64(len(calls)))
	f.r.addOf(f.way, name+", most calls in a second", perSecond, float64(calls.most(time.Second)))
	f.r.addOf(f.way, fmt.Sprintf("%s, most calls in %v over their mean", name, window), multiple, step)
	if all := float64(defaultInterval / window); step > all/2 { // in step they all would come in one window
		f.t.Errorf("%s, %s: some %v have %.1f times the mean of calls, where %.1f is all nodes in step", f.way, name, window, step, all)
	}
}

// announce measures what comes of a change that all nodes are told of.
func (f *fleet) announce() {
	f.store.set("announced")
	began := time.Now()
	for _, changed := range f.announced {
		for c := range classesOfNode {
			changed(class.Ref{Namespace: "default", Name: fmt.Sprint(c)})
		}
	}
	f.add("a change is announced", began, f.fresh())
}

// fall measures what comes of a store that is down for a while.
func (f *fleet) fall() {
	time.Sleep(2 * defaultInterval)
	began := time.Now()
	f.store.set("changed in the outage")
	f.store.down(fleetOutage, cut)
	time.Sleep(fleetOutage)
	calls := f.store.since(began)
	name := fmt.Sprintf("an outage of %v", fleetOutage)
	f.r.addOf(f.way, name+", calls in it", count, float64(len(calls)))
	f.r.addOf(f.way, name+", most calls in a second of it", perSecond, float64(calls.most(time.Second)))
	back := time.Now()
	f.add(name+" is over", back, f.fresh())
}

// fresh waits until all volumes have the store's value, and returns when.
func (f *fleet) fresh() time.Time {
	f.store.mu.Lock()
	value := f.store.secret.value
	f.store.mu.Unlock()
	for _, n := range f.nodes {
		for target := range n.volumes {
			for n.holds(target) != value {
				time.Sleep(100 * time.Millisecond)
			}
		}
	}
	return time.Now()
}

func (n *fleetNode) holds(target string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.held[target]
}

// add adds what came from one time until another, when all had what they wanted.
func (f *fleet) add(name string, from, until time.Time) {
	calls := f.store.since(from)
	f.r.addOf(f.way, name+", until all are fresh", seconds, until.Sub(from).Seconds())
	f.r.addOf(f.way, name+", calls until then", count, float64(len(calls)))
	f.r.addOf(f.way, name+", of them refused", count, float64(len(calls.came(throttled))))
	f.r.addOf(f.way, name+", most calls in a second", perSecond, float64(calls.most(time.Second)))
}
