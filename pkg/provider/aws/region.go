package aws

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
)

// conn is one region as one identity sees it.
type conn struct {
	*clients
	*session
	region   string
	key      string // of the session
	refusals *login.Refusals
}

// inRegion logs in and does something there, once more after a new login if AWS
// does not take the credentials of an earlier one.
func (p *Provider) inRegion(ctx context.Context, pod identity, region string, do func(c conn) error) error {
	services, key := p.regions.get(region), pod.key(region)
	for again := false; ; again = true {
		current, err := p.session(ctx, pod, region, services)
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			return explain("log in to AWS in "+region, err, nil)
		}
		if err != nil {
			return err
		}
		err = do(conn{services, current, region, key, &p.refusals})
		if again || !errors.Is(err, errSessionOver) {
			return err
		}
		p.sessions.Forget(key, func(s *session) bool { return s == current })
	}
}

// readRegion reads what is wanted of a region; wanted tells the versions that the
// volume holds. It may return values beside an error.
func (p *Provider) readRegion(ctx context.Context, pod identity, region string, wanted map[ref]string) (map[ref]outcome, error) {
	var found *results
	err := p.inRegion(ctx, pod, region, func(c conn) error {
		found = &results{all: map[ref]outcome{}}
		reads := []func(context.Context, map[ref]string, *results) error{c.readSecrets, c.readParameters}
		return provider.Together(ctx, len(reads), func(ctx context.Context, i int) error { return reads[i](ctx, wanted, found) })
	})
	if found == nil {
		return nil, err
	}
	return found.all, err
}

// results are outcomes, put there by several goroutines.
type results struct {
	mu  sync.Mutex
	all map[ref]outcome
}

func (r *results) put(of ref, o outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[of] = o
}

func (r *results) has(of ref) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.all[of]
	return ok
}

// fail keeps err as the outcome of one object, or returns it where it is more
// than that.
func (r *results) fail(of ref, err *provider.Error) error {
	if errors.Is(err, errSessionOver) || err.Kind != provider.NotFound && err.Kind != provider.Denied && err.Kind != provider.Invalid {
		err.Object = of.String()
		return err
	}
	r.put(of, outcome{err: err})
	return nil
}

func ordered(refs []ref) []ref {
	slices.SortFunc(refs, func(a, b ref) int {
		return strings.Compare(a.name+"\x00"+a.version+"\x00"+a.label, b.name+"\x00"+b.version+"\x00"+b.label)
	})
	return refs
}
