// Package vault is the provider of HashiCorp Vault and OpenBao. README.md is its
// manual.
//
// It speaks their HTTP API (https://developer.hashicorp.com/vault/api-docs,
// https://openbao.org/api-docs/) and reads the classes of HashiCorp's and
// OpenBao's own CSI providers.
package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// Flavour is which of the two servers' spellings a class has.
type Flavour struct {
	name     string // of the provider, and the audience of tokens by default
	prefixes []string
}

// The flavours.
var (
	Vault   = Flavour{"vault", []string{"vault"}}
	OpenBao = Flavour{"openbao", []string{"bao", "openbao", "vault"}}
)

// Defaults are what a class need not say.
type Defaults struct {
	Address, Namespace            string
	Mount                         string // of the auth method; "kubernetes" where empty
	CACertPath, CADirectory       string
	ServerName                    string
	ClientCertPath, ClientKeyPath string
	SkipVerify                    bool
}

// Provider reads whatever paths of a server a class names. What has a lease is
// renewed, replaced in time, and revoked; see lease.go. It is safe for concurrent
// use.
type Provider struct {
	flavour  Flavour
	defaults connection
	mount    string

	clients  clients
	sessions login.Cache[session]
	podwise  set // ways to log in under which a session is one pod's
	sharable set // ways under which it is that of a service account
	plain    set // requests whose answers had none
	created  set // versions of secrets, with their times
	refusals login.Refusals
}

var (
	_ provider.Provider  = (*Provider)(nil)
	_ provider.Validator = (*Provider)(nil)
	_ provider.Releaser  = (*Provider)(nil)
	_ provider.Sharer    = (*Provider)(nil)
	_ provider.Located   = (*Provider)(nil)

	_ provider.Recognizer = (*Provider)(nil)
)

// New returns a Provider for classes of a flavour.
func New(flavour Flavour, d Defaults) *Provider {
	if d.Mount == "" {
		d.Mount = "kubernetes"
	}
	return &Provider{flavour: flavour, mount: d.Mount, defaults: connection{
		Address: d.Address, Namespace: d.Namespace, CACertPath: d.CACertPath, CADirectory: d.CADirectory,
		ServerName: d.ServerName, ClientCertPath: d.ClientCertPath, ClientKeyPath: d.ClientKeyPath, SkipVerify: d.SkipVerify,
	}}
}

// Validate tells what is wrong with a class's parameters.
func (v *Provider) Validate(parameters map[string]string) []provider.Problem {
	reader := provider.NewParams(parameters)
	v.decode(reader)
	return reader.Problems()
}

// Fetch asks for each path that the class names once, all at the same time. What
// came with a lease, or ends by itself, is asked for again when it is due only.
func (v *Provider) Fetch(ctx context.Context, req provider.Request) (provider.Result, error) {
	reader := provider.NewParams(req.Parameters)
	d := v.decode(reader)
	if err := reader.Err(); err != nil {
		return provider.Result{}, err
	}
	c, err := v.clients.get(d.conn)
	if err != nil {
		return provider.Result{}, err
	}
	f := &fetching{Provider: v, params: d, client: c, req: req, keep: req.Keep}
	if f.keep == nil {
		// What nobody can keep is given back at once.
		f.keep = func(s secret.Value) error { f.req.State = s; return nil }
		defer func() { _ = v.Release(context.WithoutCancel(ctx), f.req.State) }()
	}
	if f.state, err = loadState(req.State); err != nil {
		return provider.Result{}, err
	}
	return f.run(ctx)
}

// Store names the server's address.
func (v *Provider) Store(parameters map[string]string) (string, bool) {
	reader := provider.NewParams(parameters)
	d := v.decode(reader)
	return d.conn.Address, reader.Err() == nil
}

// Identity returns the key of the session that the volume's requests are made with,
// where all of them are known to bring no leases: those are the volume's own.
func (v *Provider) Identity(_ context.Context, req provider.Request) (string, bool) {
	reader := provider.NewParams(req.Parameters)
	d := v.decode(reader)
	if reader.Err() != nil || !req.State.IsEmpty() {
		return "", false
	}
	who, err := d.identify(req)
	if err != nil {
		return "", false
	}
	f := &fetching{params: d}
	for _, o := range d.objects {
		if o.find == nil && !v.plain.has(f.learnKey(o.request)) {
			return "", false
		}
	}
	if v.podwise.has(d.sessionKey("")) || !v.sharable.has(d.sessionKey("")) {
		return d.sessionKey(who.claims.Identity()), true
	}
	return d.sessionKey(who.claims.Account()), true
}

// Recognize returns the keys of the sessions that Identity may name.
func (v *Provider) Recognize(req provider.Request) []string {
	reader := provider.NewParams(req.Parameters)
	d := v.decode(reader)
	who, err := d.identify(req)
	if reader.Err() != nil || err != nil {
		return nil
	}
	return []string{d.sessionKey(who.claims.Account()), d.sessionKey(who.claims.Identity())}
}

// fetching is one Fetch.
type fetching struct {
	*Provider
	*params
	client *client
	req    provider.Request
	keep   func(secret.Value) error

	mu    sync.Mutex // of state, while requests run
	state *state

	identity    *identity // nil where kubelet's tokens are not there yet
	identityErr error
	// donate is the session that the volume's own token would make, if a login
	// brought that just now.
	donate *login.Session[session]
}

// got is the answer to one request, or why there is none.
type got struct {
	*answer
	version string
	issued  *issued // nil for what is asked for at each refresh
	err     error
}

func (f *fetching) run(ctx context.Context) (provider.Result, error) {
	f.identity, f.identityErr = f.params.identify(f.req)
	f.state.confirm(f.req.Mounted)
	if err := f.tend(ctx); err != nil {
		return provider.Result{}, errors.Join(err, f.state.save(f.keep))
	}

	if err := f.findObjects(ctx); err != nil {
		return provider.Result{}, errors.Join(err, f.state.save(f.keep))
	}
	var requests []request
	for _, o := range f.objects {
		if !slices.Contains(requests, o.request) {
			requests = append(requests, o.request)
		}
	}
	same, err := f.unmoved(ctx, requests)
	if same || err != nil {
		return provider.Result{NotModified: same}, err
	}
	answers, err := f.answers(ctx, requests)
	if err != nil {
		return provider.Result{}, errors.Join(err, f.state.save(f.keep))
	}
	result, delivered, err := f.result(requests, answers)
	if err != nil {
		return provider.Result{}, errors.Join(err, f.state.save(f.keep))
	}
	f.state.deliver(delivered, time.Now())
	if err := f.state.save(f.keep); err != nil {
		result.Clear()
		return provider.Result{}, err
	}
	result.ValidUntil, result.RefreshAt = f.times(answers)
	return result, nil
}

// answers brings the answer to each request: one that the volume has, or a new
// one. Requests that may bring a lease are made with a token of the volume's own,
// which is kept before the first of them is made.
func (f *fetching) answers(ctx context.Context, requests []request) ([]got, error) {
	answers := make([]got, len(requests))
	var own []int // the requests that may bring a lease
	var open []int
	for i, r := range requests {
		if a := f.state.latest(f.issueKey(r)); a != nil && !f.replace(a) {
			parsed, err := parse(a.Body)
			if err != nil {
				return nil, err
			}
			answers[i] = got{answer: parsed, version: a.Version, issued: a}
			continue
		}
		open = append(open, i)
		if !f.plain.has(f.learnKey(r)) {
			own = append(own, i)
		}
	}
	if len(open) == 0 {
		return answers, nil
	}
	var mine *token
	if len(own) > 0 {
		var err error
		if mine, err = f.ownToken(ctx); err != nil {
			return nil, err
		}
	}
	err := provider.Together(ctx, len(open), func(ctx context.Context, n int) error {
		i := open[n]
		answers[i] = f.ask(ctx, requests[i], mine, slices.Contains(own, i))
		if answers[i].err != nil && !f.mayMiss(requests[i], answers[i].err) {
			return f.named(requests[i], answers[i].err)
		}
		return nil
	})
	if mine != nil {
		f.settle(ctx, mine)
	}
	return answers, err
}

// mayMiss reports whether every object of a request may be missing, and is.
func (f *fetching) mayMiss(r request, err error) bool {
	return provider.KindOf(err) == provider.NotFound && !slices.ContainsFunc(f.objects, func(o object) bool { return o.request == r && !o.Optional && !o.found })
}

// named says of which object err speaks: the first that the request is for and
// that needs it.
func (f *fetching) named(r request, err error) error {
	for _, o := range f.objects {
		if o.request == r && o.Failure(err) != nil {
			var known *provider.Error
			if errors.As(err, &known) && known.Op == "" {
				copied := *known
				copied.Op = "read " + r.String()
				err = &copied
			}
			return o.Failure(err)
		}
	}
	return err
}

// ask makes one request, with the volume's own token where that is wanted, or
// with the one that its identity shares.
func (f *fetching) ask(ctx context.Context, r request, mine *token, own bool) got {
	use, shared, err := f.tokenFor(ctx, mine, own)
	if err != nil {
		return got{err: err}
	}
	body, err := f.call(ctx, r, use)
	if shared && status(err) == http.StatusForbidden {
		// Denied is the read, or a token that the server has dropped meanwhile.
		if ok, aliveErr := alive(ctx, f.client, use); aliveErr == nil && !ok {
			f.forget(f.params, f.identity, use)
			if use, _, err = f.tokenFor(ctx, mine, own); err == nil {
				body, err = f.call(ctx, r, use)
			}
		}
	}
	if err != nil {
		return got{err: f.explain(r, err)}
	}
	parsed, err := parse(body)
	if err != nil {
		return got{err: err}
	}
	if shared && parsed.LeaseID != "" {
		// The path brought no lease before. This one must not outlive the volume.
		f.plain.remove(f.learnKey(r))
		f.revokeStray(ctx, use, parsed.LeaseID)
		return got{err: &provider.Error{Kind: provider.Unavailable, Err: errors.New("it brings a lease now, which it did not before"), Remedy: "it is asked again, with a token of the volume's own"}}
	}
	return f.keepAnswer(r, parsed, body, mine, own)
}

func (f *fetching) call(ctx context.Context, r request, use secret.Value) ([]byte, error) {
	var body []byte
	if r.body != "" {
		body = []byte(r.body)
	}
	return f.client.call(ctx, r.method, r.path, r.query, body, use)
}

// tokenFor returns the token for a request, and whether it is the one that the
// identity's volumes share.
func (f *fetching) tokenFor(ctx context.Context, mine *token, own bool) (use secret.Value, shared bool, err error) {
	if own {
		return secret.FromString(mine.Token), false, nil
	}
	if f.identity == nil {
		// After a restart, until kubelet calls: what the volume has of its own will do.
		f.mu.Lock()
		defer f.mu.Unlock()
		if t := f.state.usable(f.loginKey(), time.Now()); t != nil {
			return secret.FromString(t.Token), false, nil
		}
		return secret.Value{}, false, f.identityErr
	}
	s, err := f.session(ctx, f.client, f.params, f.identity)
	return s.token, true, err
}

// explain adds what the server leaves out.
func (f *fetching) explain(r request, err error) error {
	var known *provider.Error
	if !errors.As(err, &known) {
		return err
	}
	e := *known
	switch status(err) {
	case http.StatusForbidden:
		verb := map[string]string{"GET": "read", "LIST": "list"}[r.method]
		if verb == "" {
			verb = "create or update"
		}
		e.Remedy = fmt.Sprintf("give the role %q a policy with the capability %s on %q", f.role, verb, strings.TrimPrefix(r.path, "v1/"))
	case http.StatusNotFound:
		f.explainAbsence(&e)
	case http.StatusMethodNotAllowed:
		e.Remedy = "correct the object's method"
	}
	return &e
}

// explainAbsence says what is known of something that is not there.
func (f *fetching) explainAbsence(e *provider.Error) {
	var refusal *refused
	if !errors.As(e.Err, &refusal) {
		return
	}
	var body struct {
		Data struct {
			Metadata struct {
				Version      int    `json:"version"`
				DeletionTime string `json:"deletion_time"`
				Destroyed    bool   `json:"destroyed"`
			} `json:"metadata"`
		} `json:"data"`
		Warnings []string `json:"warnings"`
	}
	_ = json.Unmarshal(refusal.body, &body)
	const path = "correct secretPath: with KV version 2 it is MOUNT/data/PATH"
	switch m := body.Data.Metadata; {
	case m.Destroyed:
		e.Err, e.Remedy = fmt.Errorf("its version %d was destroyed", m.Version), "write another, or name one by ?version="
	case m.DeletionTime != "":
		e.Err, e.Remedy = fmt.Errorf("its version %d was deleted at %.40q", m.Version, m.DeletionTime), "undelete it, write another, or name one by ?version="
	case len(body.Warnings) > 0:
		e.Err, e.Remedy = fmt.Errorf("there is nothing at this path; the server warns: %s", shown(strings.Join(body.Warnings, "; "), nil)), path
	case len(refusal.reasons) > 0:
		e.Remedy = "correct secretPath, or enable the secrets engine"
	default:
		e.Err, e.Remedy = errors.New("there is nothing at this path"), "write it, or "+path
	}
}

// result makes the files of all objects, and tells which answers with an end of
// their own they are made of.
func (f *fetching) result(requests []request, answers []got) (result provider.Result, delivered []string, err error) {
	for _, o := range f.objects {
		a := answers[slices.Index(requests, o.request)]
		if a.answer == nil {
			continue // it may be missing
		}
		files, err := o.files(a.answer, f.req)
		if err != nil {
			result.Clear()
			return provider.Result{}, nil, err
		}
		if len(files) == 0 && a.issued == nil {
			continue
		}
		version := a.version
		if version == "" {
			version = f.req.Fingerprint([]byte(o.id), a.Data)
		}
		result.Files = append(result.Files, files...)
		result.Versions = append(result.Versions, provider.ObjectVersion{ID: o.id, Version: version})
		if a.issued != nil {
			delivered = append(delivered, a.issued.Version)
		}
	}
	return result, delivered, nil
}

// set is a bounded set of strings, for what was learned.
type set struct {
	mu  sync.Mutex
	all map[string]struct{}
}

// maxLearned bounds a set.
const maxLearned = 8192

func (s *set) has(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.all[key]
	return ok
}

func (s *set) add(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil || len(s.all) >= maxLearned {
		s.all = map[string]struct{}{}
	}
	s.all[key] = struct{}{}
}

func (s *set) remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, key)
}
