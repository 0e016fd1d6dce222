// Package controller makes the Kubernetes Secrets that SecretSync objects ask for
// (secret-sync.x-k8s.io/v1alpha1, as secrets-store-sync-controller has them): a
// class is fetched as a service account, by the same providers as volumes are, and
// without a pod.
//
// It is level-triggered: what a SecretSync got is in the Secret and in its status,
// so that another leader goes on where one ended, and writes nothing that is
// there.
package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/fetch"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/rotation"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// releaseTimeout bounds the giving back of what no Secret can hold. A leader that
// ends has little time for it.
const releaseTimeout = 3 * time.Second

// Config is what a Controller needs.
type Config struct {
	API      *kube.API
	Classes  class.Source
	Fetcher  *fetch.Fetcher
	Schedule *rotation.Scheduler // which nobody else runs
	Writer   *secretsync.Writer
	// TokenRequests are the tokens that stores are shown of a service account.
	TokenRequests []TokenRequest
	// AccountAnnotations reads those of a service account, as in provider.Request;
	// nil where there is no right to.
	AccountAnnotations func(ctx context.Context, pod provider.Pod) (map[string]string, error)
}

// Controller keeps the Secrets of all SecretSyncs of a cluster as their stores have
// them. It needs the rights to list and watch secretsyncs, to patch
// secretsyncs/status and to create events; and in the namespace of each SecretSync
// those that its author grants: to create serviceaccounts/token of its service
// account, and what secretsync.Writer needs for Secrets.
type Controller struct {
	config       Config
	client, core rest.Interface
	tokens       tokens

	mu      sync.Mutex
	objects map[string]*object // by target
}

var _ rotation.Refresher = (*Controller)(nil)

// object is a SecretSync that there is.
type object struct {
	sync *SecretSync // as the API server has it; guarded by Controller.mu

	mu       sync.Mutex // held while the Secret is synchronized
	provider string     // that was asked last
	told     time.Time  // when the status was written last
	leased   lease
	// writtenAt is when the Secret became what it is; zero where that is not known.
	writtenAt time.Time
}

// lease names a fetch that brought what has to be given back, which a Secret
// cannot do.
type lease struct {
	class      *class.SecretProviderClass
	generation int64 // of the SecretSync
}

// leases is what a provider keeps during one fetch. It is safe for concurrent use.
type leases struct {
	mu    sync.Mutex
	state secret.Value
	over  bool
}

// keep is a provider.Request.Keep.
func (l *leases) keep(state secret.Value) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return errors.New("nobody waits for the answer any more")
	}
	l.state.Clear()
	l.state = secret.New(slices.Clone(state.Reveal()))
	return nil
}

// end returns what is to be given back. A provider that goes on can keep nothing
// more.
func (l *leases) end() secret.Value {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	return l.state
}

// New returns a Controller that does nothing before Run. Its error tells what is
// wrong with config.
func New(config Config) (*Controller, error) {
	if config.API == nil || config.Classes == nil || config.Fetcher == nil || config.Schedule == nil || config.Writer == nil {
		return nil, errors.New("controller: an API server, classes, a fetcher, a schedule and a writer are needed")
	}
	for i, r := range config.TokenRequests {
		if err := r.check(); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(config.TokenRequests[:i], func(other TokenRequest) bool { return other.Audience == r.Audience }) {
			return nil, fmt.Errorf("the token for the audience %q is requested twice", r.Audience)
		}
	}
	client, err := config.API.Client(GroupVersion, AddTypes)
	if err != nil {
		return nil, err
	}
	core, err := config.API.Client(corev1.SchemeGroupVersion, func(s *runtime.Scheme) {
		kube.AddEvents(s)
		s.AddKnownTypes(authenticationv1.SchemeGroupVersion, &authenticationv1.TokenRequest{})
	})
	if err != nil {
		return nil, err
	}
	return &Controller{
		config: config, client: client, core: core, objects: map[string]*object{},
		tokens: tokens{client: core, requests: config.TokenRequests, accounts: map[types.NamespacedName]*account{}},
	}, nil
}

// Run keeps Secrets until ctx ends. It is called once, by the one leader.
func (c *Controller) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { c.config.Schedule.Run(ctx, c) })
	kube.Watched{
		Client: c.client, Resource: resource, Object: &SecretSync{}, List: func() runtime.Object { return &SecretSyncList{} },
	}.Follow(ctx, c.store())
}

// Refresh implements rotation.Refresher: it has the Secret of the SecretSync at
// target hold what the store has. It has no file of a part of the objects, and asks for
// all of them.
func (c *Controller) Refresh(ctx context.Context, target string, since time.Time, _ provider.Due) (volume.Refreshed, error) {
	o, _ := c.get(target)
	if o == nil {
		return volume.Refreshed{}, volume.ErrNotPublished
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, s := c.get(target) // as it is by now
	if s == nil {
		return volume.Refreshed{}, volume.ErrNotPublished
	}
	done, err := c.synchronize(ctx, o, s, since)
	if errors.Is(err, errSuperseded) {
		return done, nil // the schedule knows
	}
	return done, errors.Join(err, c.report(ctx, o, s, done.Changed, err))
}

// Request implements rotation.Refresher.
func (c *Controller) Request(ctx context.Context, target string) (provider.Request, bool) {
	_, s := c.get(target)
	if s == nil {
		return provider.Request{}, false
	}
	from, err := c.classOf(ctx, s)
	if err != nil {
		return provider.Request{}, false
	}
	req, err := c.request(ctx, s, from)
	return req, err == nil
}

// classOf returns the class of a SecretSync. A new SecretSync waits a little for a
// class that is not there, as both may be new; others need not, since a class that
// comes is a reason to synchronize.
func (c *Controller) classOf(ctx context.Context, s *SecretSync) (*class.SecretProviderClass, error) {
	if len(s.Status.Conditions) > 0 {
		now, cancel := context.WithCancel(ctx)
		cancel()
		if from, err := c.config.Classes.Get(now, s.class()); provider.KindOf(err) != provider.Unavailable {
			return from, err
		}
	}
	return c.config.Classes.Get(ctx, s.class())
}

// request is what the store is asked for. There is no pod: the tokens are the
// service account's own.
func (c *Controller) request(ctx context.Context, s *SecretSync, from *class.SecretProviderClass) (provider.Request, error) {
	all, err := c.tokens.of(ctx, s.account())
	if err != nil {
		return provider.Request{}, err
	}
	req := provider.Request{
		Parameters: from.Spec.Parameters, Pod: s.identity(), Tokens: all, Mode: provider.DefaultMode,
		Attributes: map[string]string{
			"secretProviderClass":                    s.Spec.SecretProviderClassName,
			"csi.storage.k8s.io/pod.namespace":       s.Namespace,
			"csi.storage.k8s.io/serviceAccount.name": s.Spec.ServiceAccountName,
		},
	}
	req.Pod.UID = ""
	if read := c.config.AccountAnnotations; read != nil {
		req.AccountAnnotations = func(ctx context.Context) (map[string]string, error) { return read(ctx, req.Pod) }
	}
	return req, nil
}

// synchronize leads from the class to the Secret. Its error is a *failure.
func (c *Controller) synchronize(ctx context.Context, o *object, s *SecretSync, since time.Time) (done volume.Refreshed, err error) {
	from, err := c.classOf(ctx, s)
	if err != nil {
		return done, &failure{reasonClass, err}
	}
	o.provider, done.Provider = from.Spec.Provider, from.Spec.Provider
	if done.Interval, err = from.RotationInterval(); err != nil {
		return done, &failure{reasonClass, err}
	}
	if o.leased == (lease{from, s.Generation}) {
		return done, &failure{reasonProvider, errLeased(from)} // others would be made
	}
	req, err := c.request(ctx, s, from)
	if err != nil {
		return done, &failure{reasonInternal, err}
	}
	if err := c.checkIdentity(ctx, req, from); err != nil {
		return done, &failure{reasonClass, err}
	}
	req.Since, req.Urgent = since, s.Status.SyncHash == "" // pods may wait for one that is not there
	var leases leases
	req.Keep = leases.keep
	result, err := c.config.Fetcher.Fetch(ctx, from.Spec.Provider, req)
	defer result.Clear()
	if kept := leases.end(); !kept.IsEmpty() {
		defer kept.Clear()
		releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		if releaseErr := c.config.Fetcher.Release(releasing, from.Spec.Provider, kept); releaseErr != nil {
			klog.FromContext(ctx).Error(releaseErr, "What a store made for a Secret ends by itself only", "class", s.class())
		}
		if err == nil {
			o.leased, err = lease{from, s.Generation}, errLeased(from)
		}
	}
	if err != nil {
		if provider.KindOf(err) == provider.Denied {
			c.tokens.forget(s.account()) // it may be of a service account that was since made anew
		}
		return done, &failure{reasonProvider, err}
	}
	done.ValidUntil, done.RefreshAt = result.ValidUntil, result.RefreshAt
	want, err := secretsync.Build(s.class(), s.terms(), s.secretObject(), result.Files)
	if err != nil {
		return done, &failure{reasonContents, err}
	}
	defer want.Clear()
	want.Owners, want.Source = []metav1.OwnerReference{s.owner()}, Kind+"/"+s.Name
	want.Generation, want.Changed = s.Generation, time.Now()
	if _, now := c.get(s.target()); now == nil || !now.is(s) {
		return done, errSuperseded
	}
	written, err := c.config.Writer.Ensure(ctx, want)
	if done.Changed, o.writtenAt = written.Wrote, written.At; err != nil {
		return done, &failure{reasonWrite, err}
	}
	return done, nil
}

// checkIdentity returns an error where a provider would not ask as the service
// account: an identity that takes no token is that of the machine on which this
// controller runs, which nobody who writes a class may use.
func (c *Controller) checkIdentity(ctx context.Context, req provider.Request, from *class.SecretProviderClass) error {
	p, err := c.config.Fetcher.Provider(from.Spec.Provider)
	sharer, ok := p.(provider.Sharer)
	if err != nil || !ok {
		return nil
	}
	req.Tokens = nil
	err = provider.Guarded(func() error {
		_, ok = sharer.Identity(ctx, req)
		return nil
	})
	if err != nil || !ok {
		return nil // Fetch tells what is wrong
	}
	return &provider.Error{Kind: provider.Invalid, Object: "class " + from.Ref().String(),
		Err:    fmt.Errorf("provider %q would be asked as the machine of the controller, and not as the service account", from.Spec.Provider),
		Remedy: "write into the class how the service account logs in, or have pods mount it in a volume"}
}

// errSuperseded says that a SecretSync became another while its store was asked.
var errSuperseded = errors.New("the SecretSync is another by now")

// errLeased says that a class brings what ends, and is made for each who asks.
func errLeased(from *class.SecretProviderClass) error {
	return &provider.Error{Kind: provider.Invalid, Object: "class " + from.Ref().String(),
		Err:    errors.New("it brings credentials that are made for whoever asks, and nobody could renew or revoke those in a Secret; what was made is given back"),
		Remedy: "have pods mount it in a volume, or take these objects out of the class"}
}

// is reports whether two SecretSyncs are one, and ask for the same.
func (s *SecretSync) is(other *SecretSync) bool {
	return s.UID == other.UID && s.Generation == other.Generation
}

// owner has the Secret go with its SecretSync. It is not named as the controller,
// of which there is one only: the Secret outlives a SecretSync that is made anew.
func (s *SecretSync) owner() metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: GroupVersion.String(), Kind: Kind, Name: s.Name, UID: s.UID}
}

func (s *SecretSync) target() string { return s.Namespace + "/" + s.Name }

func (s *SecretSync) account() types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Spec.ServiceAccountName}
}

// identity is who asks, with the SecretSync's UID in the place of a pod's.
func (s *SecretSync) identity() provider.Pod {
	return provider.Pod{Namespace: s.Namespace, UID: string(s.UID), ServiceAccount: s.Spec.ServiceAccountName}
}

// info is what the schedule needs to know of a SecretSync that is to be
// synchronized at once.
func (s *SecretSync) info() volume.Info {
	return volume.Info{TargetPath: s.target(), Class: s.class(), Pod: s.identity(), Waiting: true}
}

// get returns the SecretSync at a target, nil where there is none.
func (c *Controller) get(target string) (*object, *SecretSync) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.objects[target]
	if o == nil {
		return nil, nil
	}
	return o, o.sync
}

// keepStatus notes a status that was written to s, without waiting for the watch.
func (c *Controller) keepStatus(s *SecretSync, status Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.objects[s.target()]; o != nil && o.sync.UID == s.UID {
		next := *o.sync
		next.Status = status
		o.sync = &next
	}
}

// set notes a SecretSync as the API server has it. Callers hold c.mu.
func (c *Controller) set(s *SecretSync) {
	if s.DeletionTimestamp != nil {
		c.remove(s.target())
		return
	}
	s.ManagedFields, s.Annotations = nil, nil // nobody reads them
	o := c.objects[s.target()]
	if o == nil {
		o = &object{}
		c.objects[s.target()] = o
	}
	before := o.sync
	o.sync = s
	switch {
	case before == nil:
	case before.is(s):
		return
	case before.UID != s.UID, before.class() != s.class(), before.account() != s.account():
		c.drop(before)
	}
	c.config.Schedule.Published(s.info())
}

// remove forgets a SecretSync, if there is one. Its Secret goes with it, by the
// garbage collector. Callers hold c.mu.
func (c *Controller) remove(target string) {
	if o := c.objects[target]; o != nil {
		delete(c.objects, target)
		c.drop(o.sync)
	}
}

// drop takes what a SecretSync was off the schedule. Callers hold c.mu.
func (c *Controller) drop(s *SecretSync) {
	c.config.Schedule.Unpublished(s.info())
	for _, other := range c.objects {
		if other.sync.account() == s.account() {
			return
		}
	}
	c.tokens.forget(s.account())
}

// store is what the watch writes to.
func (c *Controller) store() kube.Mirror[*SecretSync] {
	return kube.Mirror[*SecretSync]{
		Lock: &c.mu,
		Set: func(at types.NamespacedName, s *SecretSync) {
			if s == nil {
				c.remove(at.String())
			} else {
				c.set(s)
			}
		},
		Known: func() (all []types.NamespacedName) {
			for _, o := range c.objects {
				all = append(all, types.NamespacedName{Namespace: o.sync.Namespace, Name: o.sync.Name})
			}
			return all
		},
	}
}
