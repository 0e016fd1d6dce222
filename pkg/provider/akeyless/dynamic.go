package akeyless

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// The life of the credentials of a dynamic secret.
//
//  1. What it takes to give them back, a login, is kept before they are made.
//  2. They are kept too, and returned at each refresh until they are due.
//  3. Then others are made beside them, which the refresh returns.
//  4. Once the volume is seen to hold those, and an overlap after they were
//     delivered, the old ones are deleted, where the pod's role lets them be.
//  5. Release deletes what is left, when the volume is gone.

const (
	// defaultTTL is that of credentials of which nothing else is known, and the
	// vendor's own for most dynamic secrets.
	defaultTTL = time.Hour
	// maxTTL bounds what is believed.
	maxTTL = 10 * 365 * 24 * time.Hour
	// maxOverlap bounds the time for which old credentials outlive their delivery.
	maxOverlap = 30 * time.Second
	// retryRevoke is the wait before what could not be deleted is tried again.
	retryRevoke = time.Minute
)

// issued are credentials that were made for the volume.
type issued struct {
	Access  access          `json:"access"`
	Path    string          `json:"path"` // of the item, as the class has it
	Name    string          `json:"name"` // as the gateway has it
	Version string          `json:"version"`
	ID      string          `json:"id,omitempty"`
	Value   json.RawMessage `json:"value,omitempty"` // empty while they are being made
	TTL     time.Duration   `json:"ttl"`
	Due     time.Time       `json:"due"`
	Ends    time.Time       `json:"ends"`
	// Delivered is when they were returned last to a volume that did not hold them.
	Delivered time.Time `json:"delivered"`
}

// last sets for how long the credentials are valid, from now on, and when others
// take their place: at 0.6 to two thirds of that, so that volumes do not go in
// step, and with two minutes left, or half the time where that is less.
func (c *issued) last(ttl time.Duration) {
	c.TTL, c.Ends = ttl, time.Now().Add(ttl)
	left := max(ttl/3, min(ttl/2, 2*time.Minute))
	c.Due = c.Ends.Add(-left - mathrand.N(ttl/15+1))
}

func (c *issued) overlap() time.Duration { return min(maxOverlap, c.TTL/3) }

// leases is what a volume keeps of its credentials (provider.Request.State).
type leases struct {
	mu   sync.Mutex // for those who make credentials at the same time
	all  []*issued
	keep func(secret.Value) error // nil where nothing can be kept
	some bool                     // something is kept
}

func loadLeases(req provider.Request) *leases {
	return &leases{keep: req.Keep, all: loadIssued(req.State), some: !req.State.IsEmpty()}
}

// loadIssued returns the credentials of a state. What cannot be read is lost, and
// ends by itself.
func loadIssued(state secret.Value) []*issued {
	var all []*issued
	_ = json.Unmarshal(state.Reveal(), &all)
	return slices.DeleteFunc(all, func(c *issued) bool { return c == nil || len(c.Value) == 0 })
}

// save keeps all but those that drop names.
func (l *leases) save(drop func(*issued) bool) error {
	l.all = slices.DeleteFunc(l.all, drop)
	if l.keep == nil || len(l.all) == 0 && !l.some {
		return nil
	}
	var text []byte
	if l.some = len(l.all) > 0; l.some {
		var err error
		if text, err = json.Marshal(l.all); err != nil {
			return err
		}
	}
	if err := l.keep(secret.New(text)); err != nil {
		return &provider.Error{Kind: provider.Internal, Op: "keep what has to be given back", Err: err}
	}
	return nil
}

func none(*issued) bool         { return false }
func unfinished(c *issued) bool { return len(c.Value) == 0 }

// current returns the credentials to use for an item, nil where others are to be
// made.
func (l *leases) current(a access, path string) *issued {
	for _, c := range slices.Backward(l.all) {
		if c.Path == path && c.Access.as() == a.as() && !unfinished(c) && time.Now().Before(c.Due) {
			return c
		}
	}
	return nil
}

// issue gets the credentials of dynamic secrets: those that there are, or others
// where they are due.
func (f *fetching) issue(ctx context.Context) error {
	var due []*item
	for _, i := range f.of(dynamic) {
		if i.issued = f.leases.current(f.access, i.path); i.issued == nil {
			due = append(due, i)
		}
	}
	if len(due) > 0 {
		if err := f.make(ctx, due); err != nil {
			return err
		}
	}
	for _, i := range f.of(dynamic) {
		i.value, i.version = i.issued.Value, i.issued.Version
	}
	return nil
}

// make makes credentials. One that fails ends none of the others: what the gateway
// has made, but could not tell, cannot be given back.
func (f *fetching) make(ctx context.Context, items []*item) error {
	if _, err := f.authorize(ctx); err != nil {
		return err
	}
	for _, i := range items {
		i.issued = &issued{Access: f.current(), Path: i.path, Name: i.name, Version: rand.Text()[:16]}
		f.leases.all = append(f.leases.all, i.issued)
	}
	if err := f.leases.save(none); err != nil {
		return err
	}
	err := provider.Together(ctx, len(items), func(_ context.Context, n int) error { return f.failed(items[n], f.makeOne(ctx, items[n])) })
	if unkept := f.leases.save(unfinished); err == nil {
		err = unkept
	}
	return err
}

func (f *fetching) makeOne(ctx context.Context, i *item) error {
	body, err := f.ask(ctx, opDynamic, map[string]any{"name": i.name})
	if err != nil {
		return err
	}
	var fields map[string]json.RawMessage
	var compact bytes.Buffer
	if json.Unmarshal(body, &fields) != nil || len(fields) == 0 || json.Compact(&compact, body) != nil {
		return errShape(opDynamic)
	}
	f.leases.mu.Lock()
	defer f.leases.mu.Unlock()
	made := i.issued
	_ = json.Unmarshal(fields["id"], &made.ID) // some kinds have none, and cannot be deleted
	made.Value = compact.Bytes()
	made.last(lifetime(fields, i.ttl))
	if err := f.leases.save(none); err != nil {
		_ = f.provider.revoke(ctx, made)
		made.Value = nil
		return err
	}
	return nil
}

// lifetime returns how long credentials are valid, which they say themselves, or
// else the item.
func lifetime(fields map[string]json.RawMessage, ofItem time.Duration) time.Duration {
	minutes, _ := strconv.ParseFloat(strings.Trim(string(fields["ttl_in_minutes"]), `"`), 64)
	for _, ttl := range []time.Duration{time.Duration(min(minutes, 2*maxTTL.Minutes()) * float64(time.Minute)), ofItem} {
		if ttl > 0 && ttl <= maxTTL {
			return ttl
		}
	}
	return defaultTTL
}

// tidy deletes credentials that are out of use, given what the volume holds, and
// plans the next refresh.
func (f *fetching) tidy(ctx context.Context, result *provider.Result) error {
	now := time.Now()
	mounted := func(c *issued) bool {
		return slices.ContainsFunc(f.req.Mounted, func(m provider.ObjectVersion) bool { return m.Version == c.Version })
	}
	wake := func(at time.Time) {
		if result.RefreshAt.IsZero() || at.Before(result.RefreshAt) {
			result.RefreshAt = at
		}
	}
	inUse := map[string]*issued{}
	for _, i := range f.of(dynamic) {
		c := i.issued
		inUse[c.Path] = c
		if !mounted(c) {
			c.Delivered = now
		}
		wake(c.Due)
		if result.ValidUntil.IsZero() || c.Ends.Before(result.ValidUntil) {
			result.ValidUntil = c.Ends
		}
	}
	var old []*issued
	for _, c := range f.leases.all {
		if a := f.current(); a.as() == c.Access.as() && f.err == nil {
			if a.Token == "" {
				a.Token = c.Access.Token // nothing was asked this time
			}
			c.Access = a
		}
		switch next := inUse[c.Path]; {
		case c == next:
		case next == nil && mounted(c):
			wake(now.Add(c.overlap()))
		case next != nil && now.Before(next.Delivered.Add(c.overlap())):
			wake(next.Delivered.Add(c.overlap()))
		default:
			old = append(old, c)
		}
	}
	gone := map[*issued]bool{}
	for n, err := range f.provider.revokeAll(ctx, old) {
		if gone[old[n]] = err == nil; err != nil {
			wake(now.Add(retryRevoke))
		}
	}
	return f.leases.save(func(c *issued) bool { return gone[c] })
}

// StoreOf names the address of the gateway that Release asks.
func (p *Provider) StoreOf(state secret.Value) (string, bool) {
	for _, c := range loadIssued(state) { // of one gateway, unless the class has changed
		if c.ID != "" && time.Now().Before(c.Ends) {
			return c.Access.Gateway, true
		}
	}
	return "", false
}

// Release deletes the credentials that are left of a volume, as far as the pod's
// role lets it.
func (p *Provider) Release(ctx context.Context, state secret.Value) error {
	return errors.Join(p.revokeAll(ctx, loadIssued(state))...)
}

// revokeAll deletes credentials, and returns an error for each, or nil.
func (p *Provider) revokeAll(ctx context.Context, all []*issued) []error {
	late := &provider.Error{Kind: provider.Unavailable, Op: "delete credentials", Err: errors.New("there was no time left"), Remedy: askedAgain}
	errs := slices.Repeat([]error{late}, len(all)) // of those that are not begun when ctx ends
	_ = provider.Together(ctx, len(all), func(_ context.Context, n int) error {
		errs[n] = p.revoke(ctx, all[n])
		return nil
	})
	return errs
}

// revoke deletes credentials, if they have not ended. It returns nil where they are
// gone, or nothing more can be done about them.
func (p *Provider) revoke(ctx context.Context, c *issued) error {
	if c.ID == "" || !time.Now().Before(c.Ends) {
		return nil
	}
	s, err := p.open(c.Access)
	if err != nil {
		return nil // who it was cannot be told any more
	}
	defer s.close()
	s.seen.add(slices.Clone(c.Value))
	_, err = s.ask(ctx, opRevoke, map[string]any{"name": c.Name, "tmp-creds-id": c.ID})
	switch r := refusalOf(err); {
	case r.status == http.StatusNotFound, r.status == http.StatusMethodNotAllowed, provider.KindOf(err) == provider.Denied, provider.KindOf(err) == provider.NotFound:
		return nil
	case err != nil:
		return fmt.Errorf("credentials of the dynamic secret %q: %w", c.Path, err)
	}
	return nil
}
