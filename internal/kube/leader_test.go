package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/client-go/rest"
)

// leases stands in for an API server that has one Lease. Its transports do not
// leave the process, so that time stands still while they work.
type leases struct {
	mu      sync.Mutex
	lease   *coordinationv1.Lease
	version int
}

// candidate is one process's way to the API server.
type candidate struct {
	*leases
	mu   sync.Mutex
	away bool // requests hang
}

func (c *candidate) setAway(away bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = away
}

func (c *candidate) api() *API {
	return &API{config: &rest.Config{Host: "http://api.test", QPS: -1}, http: &http.Client{Transport: c}}
}

func (c *candidate) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	away := c.away
	c.mu.Unlock()
	if away {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	var sent coordinationv1.Lease
	if r.Body != nil {
		if err := json.NewDecoder(r.Body).Decode(&sent); err != nil {
			return nil, err
		}
	}
	l := c.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	code, reason := http.StatusOK, ""
	switch {
	case r.Method == http.MethodPost && l.lease != nil:
		code, reason = http.StatusConflict, "AlreadyExists"
	case r.Method != http.MethodPost && l.lease == nil:
		code, reason = http.StatusNotFound, "NotFound"
	case r.Method == http.MethodPut && sent.ResourceVersion != l.lease.ResourceVersion:
		code, reason = http.StatusConflict, "Conflict"
	case r.Method != http.MethodGet:
		l.set(sent)
	}
	var body []byte
	if reason != "" {
		body = fmt.Appendf(nil, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q}`, code, reason)
	} else {
		body, _ = json.Marshal(l.lease)
	}
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}

// set makes lease the one that there is. Callers hold l.mu.
func (l *leases) set(lease coordinationv1.Lease) {
	l.version++
	lease.APIVersion, lease.Kind, lease.ResourceVersion = "coordination.k8s.io/v1", "Lease", fmt.Sprint(l.version)
	l.lease = &lease
}

func (l *leases) holder() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return text(l.lease.Spec.HolderIdentity)
}

// process is a candidate that runs.
type process struct {
	*candidate
	end  context.CancelFunc
	done chan error
}

// diary is what processes did, and when.
type diary struct {
	mu      sync.Mutex
	began   time.Time
	entries []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.entries = append(d.entries, fmt.Sprintf("%s: ", time.Since(d.began))+fmt.Sprintf(format, args...))
}

func (d *diary) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.entries, want) {
		t.Errorf("it happened\n%q, want\n%q", d.entries, want)
	}
}

// start runs a candidate whose work takes a second to end.
func (l *leases) start(t *testing.T, d *diary, name string) *process {
	ctx, end := context.WithCancel(t.Context())
	p := &process{candidate: &candidate{leases: l}, end: end, done: make(chan error, 1)}
	go func() {
		p.done <- p.api().Lead(ctx, "kube-system", "controller", name, func(ctx context.Context) {
			d.note("%s leads", name)
			<-ctx.Done()
			time.Sleep(time.Second)
			d.note("%s has ended", name)
		})
	}()
	synctest.Wait()
	return p
}

func TestALeaderThatEndsGivesTheLeadershipBackAfterItsWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, d := &leases{}, &diary{began: time.Now()}
		first := l.start(t, d, "first")
		second := l.start(t, d, "second")
		time.Sleep(time.Hour)
		first.end()
		if err := <-first.done; err != nil {
			t.Error(err)
		}
		if holder := l.holder(); holder != "" {
			t.Errorf("the lease is held by %q", holder)
		}
		time.Sleep(leasePeriod)
		d.expect(t, "0s: first leads", "1h0m1s: first has ended", "1h0m2s: second leads")
		second.end()
		<-second.done
		if transitions := *l.lease.Spec.LeaseTransitions; transitions != 2 {
			t.Errorf("%d transitions", transitions)
		}
	})
}

func TestALeaderWhoseWorkGoesOnKeepsTheLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leases{}
		ctx, end := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- (&candidate{leases: l}).api().Lead(ctx, "kube-system", "controller", "first", func(ctx context.Context) {
				<-ctx.Done()
				time.Sleep(61 * time.Second)
			})
		}()
		synctest.Wait()
		d := &diary{began: time.Now()}
		second := l.start(t, d, "second")
		end()
		time.Sleep(time.Minute)
		d.expect(t)
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(leasePeriod)
		d.expect(t, "1m2s: second leads")
		second.end()
		<-second.done
	})
}

func TestALeaderThatIsCutOffEndsBeforeAnotherLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, d := &leases{}, &diary{began: time.Now()}
		first := l.start(t, d, "first")
		time.Sleep(time.Second)
		second := l.start(t, d, "second")
		time.Sleep(10 * time.Second) // the last renewal is a second ago
		first.setAway(true)
		if err := <-first.done; !errors.Is(err, ErrDeposed) {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Minute)
		d.expect(t, "0s: first leads", "21s: first has ended", "27s: second leads")
		second.end()
		<-second.done
	})
}

func TestALeaderThatIsKilledIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, d := &leases{}, &diary{began: time.Now()}
		killed, seconds := "killed", int32(leaseDuration/time.Second)
		l.set(coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &killed, LeaseDurationSeconds: &seconds}})
		second := l.start(t, d, "second")
		time.Sleep(time.Minute)
		d.expect(t, "16s: second leads")
		second.end()
		<-second.done
	})
}

func TestAShortOutageAndForeignWritesLeaveTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, d := &leases{}, &diary{began: time.Now()}
		first := l.start(t, d, "first")
		second := l.start(t, d, "second")
		for range 20 {
			first.setAway(true)
			time.Sleep(4500 * time.Millisecond)
			first.setAway(false)
			time.Sleep(8 * time.Second)
			l.mu.Lock()
			l.lease.Annotations = map[string]string{"looked": time.Now().String()}
			l.set(*l.lease)
			l.mu.Unlock()
			time.Sleep(4 * time.Second)
		}
		d.expect(t, "0s: first leads")
		first.end()
		second.end()
		<-first.done
		<-second.done
	})
}

func TestALeaderThatSeesAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, d := &leases{}, &diary{began: time.Now()}
		first := l.start(t, d, "first")
		usurper := "usurper"
		l.mu.Lock()
		l.lease.Spec.HolderIdentity = &usurper
		l.set(*l.lease)
		l.mu.Unlock()
		if err := <-first.done; !errors.Is(err, ErrDeposed) {
			t.Errorf("got %v", err)
		}
		d.expect(t, "0s: first leads", "3s: first has ended")
		if l.holder() != usurper {
			t.Errorf("the lease was taken from %s", usurper)
		}
	})
}

func TestOfManyOneLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leases{}
		var mu sync.Mutex
		leading, most, terms := 0, 0, 0
		ctx, end := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range 10 {
			all.Go(func() {
				for ctx.Err() == nil {
					err := (&candidate{leases: l}).api().Lead(ctx, "kube-system", "controller", fmt.Sprint(i), func(context.Context) {
						mu.Lock()
						leading, terms = leading+1, terms+1
						most = max(most, leading)
						mu.Unlock()
						time.Sleep(20 * time.Second)
						mu.Lock()
						leading--
						mu.Unlock()
					})
					if err != nil {
						t.Error(err)
					}
					time.Sleep(time.Second)
				}
			})
		}
		time.Sleep(10 * time.Minute)
		end()
		all.Wait()
		if most != 1 || terms < 20 {
			t.Errorf("%d led at the same time, in %d terms", most, terms)
		}
	})
}

func TestAnElectionNeedsNames(t *testing.T) {
	if err := (&candidate{}).api().Lead(t.Context(), "kube-system", "controller", "", nil); err == nil {
		t.Error("there is no error")
	}
}
