package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

// The times of an election are those that Kubernetes' own controllers have.
const (
	// leaseDuration is how long others wait for a leader that is not heard of.
	leaseDuration = 15 * time.Second
	// renewDeadline is how long a leader goes on that cannot renew its Lease. What
	// is left of leaseDuration is for lead to return.
	renewDeadline = 10 * time.Second
	// leasePeriod is the time from one look at the Lease to the next.
	leasePeriod = 2 * time.Second
	// leaseTimeout bounds one request.
	leaseTimeout = 5 * time.Second
)

// ErrDeposed says that this process was the leader and is no more.
var ErrDeposed = errors.New("this process does not lead any more")

// Lead waits until this process is the leader, by the Lease of that name, and then
// calls lead. identity must be another for each process. The context of lead ends
// with ctx, or where the Lease could not be renewed for ten seconds; lead must then
// return within five, since another leader may be there after that. Lead returns
// after lead has: nil where ctx ended or lead returned by itself, with the Lease
// given back, and else ErrDeposed.
//
// It needs the rights to get, create and update the Lease. (client-go's
// leaderelection links a typed client of every kind of Kubernetes.)
func (a *API) Lead(ctx context.Context, namespace, name, identity string, lead func(ctx context.Context)) error {
	if namespace == "" || name == "" || identity == "" {
		return errors.New("lead: a namespace, a name and an identity are needed")
	}
	client, err := a.Client(coordinationv1.SchemeGroupVersion, func(s *apiruntime.Scheme) {
		s.AddKnownTypes(coordinationv1.SchemeGroupVersion, &coordinationv1.Lease{})
	})
	if err != nil {
		return err
	}
	e := &election{client: client, namespace: namespace, name: name, identity: identity}
	if !e.wait(ctx) {
		return nil
	}
	return e.hold(ctx, lead)
}

// election is one process's part in it.
type election struct {
	client                    rest.Interface
	namespace, name, identity string

	seen    *coordinationv1.Lease // as it was read or written last; nil before
	changed time.Time             // when seen was another last, by this process's clock
	renewed time.Time             // before this process last wrote it
}

// wait returns once this process holds the Lease, false where ctx ended before.
func (e *election) wait(ctx context.Context) bool {
	logger, failing := klog.FromContext(ctx), false
	for {
		held, err := e.acquire(ctx)
		if ctx.Err() != nil {
			if held {
				e.release(ctx)
			}
			return false
		}
		if held {
			logger.Info("This process leads", "lease", e.namespace+"/"+e.name, "identity", e.identity)
			return true
		}
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			err = nil // somebody else was first
		}
		if err != nil && !failing {
			logger.Error(err, "Cannot become the leader; it is tried again", "lease", e.namespace+"/"+e.name)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return false
		case <-time.After(leasePeriod):
		}
	}
}

// hold renews the Lease for as long as lead runs.
func (e *election) hold(ctx context.Context, lead func(context.Context)) error {
	leading, stop := context.WithCancel(ctx)
	defer stop()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		lead(leading)
	}()
	for {
		// Others wait from when they saw the Lease change, which is later than renewed.
		deadline := e.renewed.Add(renewDeadline)
		select {
		case <-returned:
			e.release(ctx)
			return nil
		case <-time.After(min(leasePeriod, time.Until(deadline))):
		}
		renewing, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
		held, err := e.acquire(renewing)
		cancel()
		if held || err != nil && time.Now().Before(deadline) {
			continue
		}
		if err == nil {
			err = fmt.Errorf("%s has taken it", text(e.seen.Spec.HolderIdentity))
		}
		klog.FromContext(ctx).Error(err, "This process does not lead any more", "lease", e.namespace+"/"+e.name)
		stop()
		<-returned
		return ErrDeposed
	}
}

// acquire takes or renews the Lease, and returns whether this process holds it.
// An error leaves that open.
func (e *election) acquire(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	began := time.Now()
	var found coordinationv1.Lease
	err := e.client.Get().Namespace(e.namespace).Resource("leases").Name(e.name).Do(ctx).Into(&found)
	if apierrors.IsNotFound(err) {
		found = coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: e.name}}
		return e.write(ctx, began, e.client.Post().Namespace(e.namespace).Resource("leases"), found)
	}
	if err != nil {
		return false, err
	}
	if e.seen == nil || e.seen.ResourceVersion != found.ResourceVersion {
		e.seen, e.changed = &found, time.Now()
	}
	if holder := text(found.Spec.HolderIdentity); holder != "" && holder != e.identity {
		// Clocks differ between machines: what counts is how long it has not changed.
		valid := leaseDuration
		if seconds := found.Spec.LeaseDurationSeconds; seconds != nil {
			valid = time.Duration(*seconds) * time.Second
		}
		if time.Since(e.changed) < valid {
			return false, nil
		}
	}
	return e.write(ctx, began, e.client.Put().Namespace(e.namespace).Resource("leases").Name(e.name), found)
}

// write makes this process the holder of a Lease, if that is as it was read.
func (e *election) write(ctx context.Context, began time.Time, request *rest.Request, lease coordinationv1.Lease) (bool, error) {
	now, seconds := metav1.NewMicroTime(time.Now()), int32(leaseDuration/time.Second)
	if text(lease.Spec.HolderIdentity) != e.identity {
		transitions := int32(1)
		if before := lease.Spec.LeaseTransitions; before != nil {
			transitions += *before
		}
		lease.Spec.AcquireTime, lease.Spec.LeaseTransitions = &now, &transitions
	}
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &e.identity, &seconds, &now
	var written coordinationv1.Lease
	if err := request.Body(&lease).Do(ctx).Into(&written); err != nil {
		return false, err
	}
	e.seen, e.renewed = &written, began
	return true, nil
}

// release gives the Lease back, so that another process need not wait. The end of
// ctx is no reason not to.
func (e *election) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseTimeout)
	defer cancel()
	given := e.seen.DeepCopy()
	given.Spec.HolderIdentity = nil
	err := e.client.Put().Namespace(e.namespace).Resource("leases").Name(e.name).Body(given).Do(ctx).Error()
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot give the leadership back; another process waits for its end", "lease", e.namespace+"/"+e.name)
	}
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
