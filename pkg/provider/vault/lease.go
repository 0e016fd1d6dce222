package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// The life of a lease.
//
//  1. The volume logs in for a token of its own, and keeps it (state), before it
//     asks for anything that may bring a lease: whatever hangs on the token can
//     then be given back, even by a driver that is started later.
//  2. The answer is kept too, and returned at each refresh until it is due.
//  3. Lease and token are renewed at 0.6 to two thirds of their time.
//  4. What cannot be renewed any more, or only for less than it had, is asked for
//     anew at that time, with a new token. Both credentials are valid then.
//  5. Once the volume is seen to hold the new one, and after an overlap, the old
//     lease is revoked: by itself where the policy lets it, or else with its token
//     when nothing else hangs on that.
//  6. Release does the same at once, when the volume is gone.

// retryRevoke is the wait before what could not be revoked is tried again.
const retryRevoke = 30 * time.Second

// retryOver is the wait before something is made anew that was over when it came.
const retryOver = 30 * time.Second

// loginKey names the way to log in, in what is kept.
func (d *params) loginKey() string { return hex.EncodeToString([]byte(d.sessionKey("")))[:32] }

// issueKey names a request with all that decides its answer.
func (f *fetching) issueKey(r request) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{f.loginKey(), r.method, r.path, r.query, r.body}, "\x00")))
	return hex.EncodeToString(sum[:16])
}

// learnKey names what is learned of a path: whether it brings leases.
func (f *fetching) learnKey(r request) string {
	return strings.Join([]string{f.conn.Address, f.conn.Namespace, r.method, r.path}, "\x00")
}

// ownToken logs in for a token of the volume's own and keeps it. Until kubelet
// calls after a restart, it is the one that the volume has.
func (f *fetching) ownToken(ctx context.Context) (*token, error) {
	if f.identity == nil {
		if t := f.state.usable(f.loginKey(), time.Now()); t != nil {
			return t, nil
		}
		return nil, f.identityErr
	}
	a, err := f.login(ctx, f.client, f.identity)
	if err != nil {
		return nil, err
	}
	t := &token{
		ID: newID(), Conn: f.conn, Login: f.loginKey(), Token: a.Auth.ClientToken, TTL: a.ttl(), span: lasting(time.Now(), a.ttl()),
		Renewable: a.Auth.Renewable && a.Auth.TokenType != "batch",
	}
	f.state.Tokens = append(f.state.Tokens, t)
	if err := f.state.save(f.keep); err != nil {
		_ = f.revokeToken(ctx, t)
		f.state.Tokens = slices.DeleteFunc(f.state.Tokens, func(other *token) bool { return other == t })
		return nil, err
	}
	s := newSession(a, f.identity)
	f.donate = &s
	return t, nil
}

// settle gives the volume's own token to its identity where no lease came.
func (f *fetching) settle(ctx context.Context, mine *token) {
	if slices.ContainsFunc(f.state.Answers, func(a *issued) bool { return a.Token == mine.ID }) {
		return
	}
	f.state.Tokens = slices.DeleteFunc(f.state.Tokens, func(t *token) bool { return t == mine })
	if f.donate == nil {
		return
	}
	key := f.sessionKey(f.identity.claims.Account())
	if f.donate.Value.pod != "" {
		f.podwise.add(f.sessionKey(""))
		key = f.sessionKey(f.identity.claims.Identity())
	} else {
		f.sharable.add(f.sessionKey(""))
	}
	if !f.sessions.Put(key, *f.donate) {
		_ = f.revokeToken(ctx, mine)
	}
}

// keepAnswer sorts an answer: what has a lease or an end of its own is kept.
func (f *fetching) keepAnswer(r request, a *answer, body []byte, mine *token, own bool) got {
	now := time.Now()
	made := got{answer: a, version: a.version()}
	var compact bytes.Buffer
	_ = json.Compact(&compact, body) // it was parsed before
	switch ends := a.expires(r.method, now); {
	case a.LeaseID != "":
		duration := time.Duration(a.LeaseDuration) * time.Second
		made.issued = &issued{LeaseID: a.LeaseID, Lease: duration, Renews: a.Renewable}
		if own {
			made.issued.Token = mine.ID
		}
		if duration <= 0 {
			duration = time.Hour
		}
		made.issued.span = lasting(now, duration)
	case !ends.IsZero():
		f.plain.add(f.learnKey(r))
		made.issued = &issued{span: lasting(now, ends.Sub(now))}
	default:
		f.plain.add(f.learnKey(r))
		f.learnCreation(r, a)
		return made
	}
	made.issued.Key, made.issued.Version, made.issued.Body = f.issueKey(r), "issued/"+newID(), compact.Bytes()
	made.version = made.issued.Version
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Answers = append(f.state.Answers, made.issued)
	return made
}

// replace reports whether an answer is to be asked for anew.
func (f *fetching) replace(a *issued) bool {
	now := time.Now()
	if a.over(now) || a.due(now) && !a.Renews {
		return true
	}
	if a.Token == "" {
		return false
	}
	t := f.state.token(a.Token)
	return t == nil || t.over(now) || t.due(now) && !t.Renewable
}

// tend renews what is due, and revokes what is out of use. It fails where
// something cannot be renewed because the server does not answer.
func (f *fetching) tend(ctx context.Context) error {
	now := time.Now()
	f.state.Answers = slices.DeleteFunc(f.state.Answers, func(a *issued) bool { return a.over(now) })
	var due []func(context.Context) error
	for _, t := range f.state.Tokens {
		if t.due(now) && t.Renewable {
			due = append(due, func(ctx context.Context) error { return f.renewOwn(ctx, t) })
		}
	}
	for _, a := range f.state.Answers {
		if t := f.state.token(a.Token); t != nil && a.due(now) && a.Renews && a.Superseded.IsZero() {
			due = append(due, func(ctx context.Context) error { return f.renewLease(ctx, t, a) })
		}
	}
	if err := provider.Together(ctx, len(due), func(ctx context.Context, i int) error { return due[i](ctx) }); err != nil {
		return err
	}
	f.revokeOld(ctx, now)
	return nil
}

// lasts says of an error that it is an answer, which will be the same next time.
func lasts(err error) bool {
	code := status(err)
	return code >= 400 && code < 500 && code != http.StatusTooManyRequests && code != http.StatusPreconditionFailed
}

func (f *fetching) renewOwn(ctx context.Context, t *token) error {
	c, err := f.clients.get(t.Conn)
	if err != nil {
		return err
	}
	a, err := renewToken(ctx, c, secret.FromString(t.Token), t.TTL)
	switch {
	case err == nil:
		t.Renewable = a.ttl() >= t.TTL-t.TTL/10
		t.span = lasting(time.Now(), a.ttl())
	case lasts(err):
		t.Renewable = false
	default:
		return f.cannotRenew("the volume's token", err)
	}
	return nil
}

func (f *fetching) renewLease(ctx context.Context, t *token, a *issued) error {
	text, err := f.put(ctx, t, "sys/leases/renew", map[string]any{"lease_id": a.LeaseID, "increment": int64(a.Lease / time.Second)})
	var renewed *answer
	if err == nil {
		renewed, err = parse(text)
	}
	now := time.Now()
	switch {
	case err == nil:
		duration := time.Duration(renewed.LeaseDuration) * time.Second
		a.Renews = renewed.Renewable && duration >= a.Lease-a.Lease/10
		a.span = lasting(now, duration)
	case says(err, "lease not found"), says(err, "lease expired"), says(err, "lease is expired"):
		a.Ends, a.Renews = now, false // somebody revoked it
	case lasts(err) && !says(err, "failed to renew entry"): // that is what the database is away for
		a.Renews = false
	default:
		return f.cannotRenew("the lease of "+f.nameOf(a.Key), err)
	}
	return nil
}

func (f *fetching) cannotRenew(what string, err error) error {
	var known *provider.Error
	if !errors.As(err, &known) {
		return err
	}
	e := *known
	e.Object, e.Op = what, "renew it"
	return &e
}

// nameOf names the objects of a kept answer.
func (f *fetching) nameOf(key string) string {
	for _, o := range f.objects {
		if f.issueKey(o.request) == key {
			return o.Name
		}
	}
	return "an object that the class no longer has"
}

// revokeOld revokes the leases that were replaced an overlap ago, and the tokens
// on which nothing hangs. What fails is tried again at a later refresh.
func (f *fetching) revokeOld(ctx context.Context, now time.Time) {
	old := func(a *issued) bool { return !a.Superseded.IsZero() && !now.Before(a.Superseded.Add(f.overlap)) }
	f.state.Answers = slices.DeleteFunc(f.state.Answers, func(a *issued) bool {
		if !old(a) {
			return false
		}
		t := f.state.token(a.Token)
		if t == nil || f.revokeLease(ctx, t, a.LeaseID) == nil {
			return true
		}
		// It goes with its token, if all that hangs on that is out of use.
		return !slices.ContainsFunc(f.state.Answers, func(other *issued) bool { return other.Token == a.Token && !old(other) })
	})
	for _, t := range f.state.dropTokens() {
		if err := f.revokeToken(ctx, t); err != nil && !t.over(now) {
			f.state.Tokens = append(f.state.Tokens, t)
		}
	}
}

// put asks a kept token's own server to do something, by that token.
func (v *Provider) put(ctx context.Context, t *token, path string, arguments map[string]any) ([]byte, error) {
	c, err := v.clients.get(t.Conn)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(arguments)
	if err != nil {
		return nil, err
	}
	return c.call(ctx, http.MethodPut, "v1/"+path, "", body, secret.FromString(t.Token))
}

// revokeLease returns nil once the lease is gone, and what it stood for with it.
func (v *Provider) revokeLease(ctx context.Context, t *token, leaseID string) error {
	_, err := v.put(ctx, t, "sys/leases/revoke", map[string]any{"lease_id": leaseID, "sync": true})
	if status(err) == http.StatusBadRequest && (says(err, "lease not found") || says(err, "invalid lease")) {
		return nil
	}
	return err
}

// revokeToken returns nil once the token is gone; the server then revokes the
// leases that hang on it.
func (v *Provider) revokeToken(ctx context.Context, t *token) error {
	_, err := v.put(ctx, t, "auth/token/revoke-self", map[string]any{})
	if lasts(err) {
		return nil // it is gone, or cannot be revoked, as a batch token
	}
	return err
}

// revokeStray revokes a lease that came with a shared token, if the policy lets it.
func (f *fetching) revokeStray(ctx context.Context, use secret.Value, leaseID string) {
	_ = f.revokeLease(ctx, &token{Conn: f.conn, Token: string(use.Reveal())}, leaseID)
}

// times returns when the answers end, and when something is to be done about
// what the volume keeps.
func (f *fetching) times(answers []got) (validUntil, refreshAt time.Time) {
	now := time.Now()
	sooner := func(at *time.Time, t time.Time) {
		if at.IsZero() || t.Before(*at) {
			*at = t
		}
	}
	for _, a := range answers {
		if a.answer == nil {
			continue
		}
		if a.issued == nil {
			if t := a.rotates(now); !t.IsZero() {
				sooner(&refreshAt, t)
			}
			continue
		}
		sooner(&validUntil, f.state.ends(a.issued))
		sooner(&refreshAt, a.issued.Due)
		if t := f.state.token(a.issued.Token); t != nil {
			sooner(&refreshAt, t.Due)
		}
	}
	for _, a := range f.state.Answers {
		if slices.Contains(f.state.Delivered, a.Version) {
			continue
		}
		over := f.state.DeliveredAt.Add(f.overlap) // it is replaced, or will be when the set is mounted
		if !a.Superseded.IsZero() {
			over = a.Superseded.Add(f.overlap)
		}
		if !over.After(now) {
			over = now.Add(retryRevoke)
		}
		if over.After(a.Ends) {
			over = a.Ends
		}
		sooner(&refreshAt, over)
	}
	if !refreshAt.IsZero() && !refreshAt.After(now) {
		refreshAt = now.Add(time.Second)
	}
	return validUntil, refreshAt
}

// StoreOf names the address of the server that Release asks.
func (v *Provider) StoreOf(kept secret.Value) (string, bool) {
	s, err := loadState(kept)
	if err != nil {
		return "", false
	}
	for _, t := range s.Tokens { // of one server, unless the class has changed
		if !t.over(time.Now()) {
			return t.Conn.Address, true
		}
	}
	return "", false
}

// Release revokes all leases of a volume that is gone, and its tokens.
func (v *Provider) Release(ctx context.Context, kept secret.Value) error {
	s, err := loadState(kept)
	if err != nil {
		return nil // nothing can be made of it, now or later
	}
	return provider.Together(ctx, len(s.Tokens), func(ctx context.Context, i int) error {
		t := s.Tokens[i]
		if t.over(time.Now()) {
			return nil
		}
		for _, a := range s.Answers {
			// Where the policy lets it, the lease is gone when the call returns; and in
			// any case the token takes it along.
			if a.Token == t.ID && a.LeaseID != "" {
				if err := v.revokeLease(ctx, t, a.LeaseID); err != nil && !lasts(err) {
					return err
				}
			}
		}
		return v.revokeToken(ctx, t)
	})
}
