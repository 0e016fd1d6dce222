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

// ofClass is the source of a class for whoever looks at it.
func ofClass(ref class.Ref) watched { return watched{groupKey: groupKey{class: ref}} }

// watchClass begins to watch all that concerns a class anew, if it has volumes.
// Callers hold s.mu.
func (s *Scheduler) watchClass(ref class.Ref) {
	keys := map[watched]bool{}
	for _, e := range s.classOf[ref] {
		keys[ofClass(ref)], keys[watched{e.key, true}] = true, true
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
	due := func(wait time.Duration) { s.due(key, wait) }
	switch w := p.(type) {
	case provider.Watcher:
		if !key.byIdentity {
			due(catchUp)
			return w.Watch(ctx, c.Spec.Parameters, func() { due(0) })
		}
	case provider.IdentityWatcher:
		if key.byIdentity {
			due(catchUp)
			return w.WatchAs(ctx, func() provider.Request { return s.request(ctx, key) }, func() { due(0) })
		}
	}
	<-ctx.Done() // until the class changes or its last volume goes
	return nil
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
		if e.running || due.Before(e.due) {
			s.schedule(e, due)
		}
	}
}
