package rotation

import (
	"context"
	"errors"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// refusedRetry is the wait before an identity that may not watch tries it again.
const refusedRetry = 10 * time.Minute

// watched is a source: of a class, or of a class as one identity sees it.
type watched struct {
	groupKey
	byIdentity bool
}

// sourceOf is the source of a class for whoever looks at it.
func sourceOf(ref class.Ref) watched { return watched{groupKey: groupKey{class: ref}} }

// watchClass begins to watch all that concerns a class anew, if it has volumes.
// Callers hold s.mu.
func (s *Scheduler) watchClass(ref class.Ref) {
	keys := map[watched]bool{}
	for _, e := range s.classOf[ref] {
		keys[sourceOf(ref)], keys[watched{e.key, true}] = true, true
	}
	for key := range keys {
		s.unwatch(key)
		s.watch(key)
	}
}

// watch starts to watch a source, if its provider can. Callers hold s.mu.
func (s *Scheduler) watch(key watched) {
	if s.ctx == nil || s.ctx.Err() != nil || s.watches[key] != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.watches[key] = cancel
	s.running.Go(func() {
		logger := klog.FromContext(ctx).WithValues("class", key.class.String())
		for ctx.Err() == nil {
			wait := watchRetry
			switch err := s.watchSource(ctx, key); {
			case errors.Is(err, provider.ErrNoCredentials):
				logger.V(4).Info("The source of a class is watched once kubelet brings tokens", "serviceAccount", key.serviceAccount)
			case provider.KindOf(err) == provider.Denied:
				logger.V(2).Info("The source of a class is not watched; changes are found at the next interval", "serviceAccount", key.serviceAccount, "because", err.Error())
				wait = refusedRetry
			case err != nil:
				logger.Error(err, "Cannot watch the source of a class; changes are found at the next interval")
			}
			sleep(ctx, wait)
		}
	})
}

func (s *Scheduler) unwatch(key watched) {
	if cancel := s.watches[key]; cancel != nil {
		cancel()
		delete(s.watches, key)
		delete(s.seen, key)
	}
}

// watchSource watches a source until ctx ends, also where its provider cannot.
func (s *Scheduler) watchSource(ctx context.Context, key watched) error {
	c, err := s.classes.Get(ctx, key.class)
	if err != nil {
		return err
	}
	p, err := s.providers(c.Spec.Provider)
	if err != nil {
		return err
	}
	changed := func() {
		wait := time.Duration(0)
		if s.see(ctx, key) {
			wait = catchUp
		}
		s.due(key, wait)
	}
	defer s.unsee(ctx, key)
	switch w := p.(type) {
	case provider.Watcher:
		if !key.byIdentity {
			return w.Watch(ctx, c.Spec.Parameters, changed)
		}
	case provider.IdentityWatcher:
		if key.byIdentity {
			return w.WatchAs(ctx, func() provider.Request { return s.request(ctx, key) }, changed)
		}
	}
	<-ctx.Done() // until the class changes or its last volume goes
	return nil
}

// see notes that a source is watched, and reports whether it was not before. A
// watch whose ctx has ended is over already.
func (s *Scheduler) see(ctx context.Context, key watched) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil || s.seen[key] {
		return false
	}
	s.seen[key] = true
	for other, g := range s.groups {
		if other == key.groupKey || !key.byIdentity && other.class == key.class {
			g.next, g.kinds = time.Time{}, nil // by now that is too soon
		}
	}
	return true
}

// unsee notes that a source is not watched any more. Its volumes become due soon,
// and then as often as others.
func (s *Scheduler) unsee(ctx context.Context, key watched) {
	s.mu.Lock()
	over := ctx.Err() == nil && s.seen[key]
	if over {
		delete(s.seen, key)
	}
	s.mu.Unlock()
	if over {
		s.due(key, catchUp)
	}
}

// request returns what a volume of the group asks for, one with tokens if there is
// any.
func (s *Scheduler) request(ctx context.Context, key watched) provider.Request {
	var targets []string
	s.mu.Lock()
	for target, e := range s.classOf[key.class] {
		if e.key == key.groupKey {
			targets = append(targets, target)
		}
	}
	s.mu.Unlock()
	var found provider.Request
	for _, target := range targets {
		if req, ok := s.source.Request(ctx, target); ok {
			if found = req; len(req.Tokens) > 0 {
				break
			}
		}
	}
	return found
}

// due makes the volumes of a source due after wait.
func (s *Scheduler) due(key watched, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := time.Now().Add(wait)
	for _, e := range s.classOf[key.class] {
		if key.byIdentity && e.key != key.groupKey {
			continue
		}
		e.objects = nil
		if e.running || due.Before(e.due) {
			s.schedule(e, due)
		}
	}
}
