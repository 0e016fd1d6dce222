package vault

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// session is a store token that several volumes may use, for what has no lease.
type session struct {
	token     secret.Value
	renewable bool
	ttl       time.Duration // that the token was given
	// pod is the only one that may use it; empty where each pod of the service
	// account may.
	pod string
}

// identity is who asks, by the tokens of a pod that will do, the best first.
type identity struct {
	tokens []secret.Value
	claims login.Claims // of the first
}

// identify returns who asks. It fails where there is no token for an audience of
// the class's.
func (d *params) identify(req provider.Request) (*identity, error) {
	first, err := login.Token(req, d.conn.Address, d.audiences...)
	if err != nil {
		return nil, err
	}
	who := &identity{tokens: []secret.Value{first.Value}}
	if who.claims, err = login.Read(first.Value); err != nil {
		return nil, &provider.Error{Kind: provider.Internal, Op: "read the pod's token", Err: err}
	}
	for _, audience := range d.audiences {
		if t, ok := req.Tokens[audience]; ok && !t.Value.Equal(first.Value) {
			who.tokens = append(who.tokens, t.Value)
		}
	}
	return who, nil
}

// auth is what a login or a renewal of a token answers.
type auth struct {
	Auth *struct {
		ClientToken   string            `json:"client_token"`
		Accessor      string            `json:"accessor"`
		LeaseDuration int64             `json:"lease_duration"`
		Renewable     bool              `json:"renewable"`
		TokenType     string            `json:"token_type"`
		NumUses       int               `json:"num_uses"`
		Metadata      map[string]string `json:"metadata"`
	} `json:"auth"`
}

func parseAuth(body []byte) (*auth, error) {
	var a auth
	if body == nil || json.Unmarshal(body, &a) != nil || a.Auth == nil || a.Auth.ClientToken == "" {
		return nil, &provider.Error{Kind: provider.Internal, Err: errors.New("the server's answer to the login has no token"), Remedy: "is it the mount of an auth method, and does that give tokens?"}
	}
	return &a, nil
}

// ttl is how long the token is valid. One that never ends is renewed now and
// then all the same.
func (a *auth) ttl() time.Duration {
	if a.Auth.LeaseDuration <= 0 {
		return 24 * time.Hour
	}
	return time.Duration(a.Auth.LeaseDuration) * time.Second
}

// ofAccount reports whether the server looked at nothing but the service account,
// as the kubernetes auth method does. Under another, a role may be bound to a pod.
func (a *auth) ofAccount() bool {
	for _, key := range []string{"service_account_name", "service_account_namespace", "service_account_secret_name", "service_account_uid"} {
		if _, ok := a.Auth.Metadata[key]; !ok {
			return false
		}
	}
	return true
}

// login exchanges the pod's token for one of the store's. A role whose audience
// is another may take the next of the pod's tokens.
func (d *params) login(ctx context.Context, c *client, who *identity) (*auth, error) {
	var first error
	for _, token := range who.tokens {
		a, err := d.loginWith(ctx, c, token)
		if err == nil {
			return a, nil
		}
		if first == nil {
			first = d.explainLogin(err, who)
		}
		if code := status(err); code != http.StatusForbidden && code != http.StatusBadRequest {
			break
		}
	}
	return nil, first
}

func (d *params) loginWith(ctx context.Context, c *client, token secret.Value) (*auth, error) {
	body, err := json.Marshal(map[string]string{"jwt": string(token.Reveal()), "role": d.role})
	if err != nil {
		return nil, err
	}
	defer clear(body)
	answer, err := c.call(ctx, http.MethodPut, "v1/auth/"+d.mount+"/login", "", body, secret.Value{}, token)
	if err != nil {
		return nil, err
	}
	defer clear(answer)
	return parseAuth(answer)
}

// explainLogin says what was tried, and what the pod's token says: a server often
// says "permission denied" only.
func (d *params) explainLogin(err error, who *identity) error {
	e := &provider.Error{Kind: provider.KindOf(err), Op: fmt.Sprintf("log in to %s at auth/%s as role %q", d.conn.Address, d.mount, d.role), Err: err}
	var known *provider.Error
	if errors.As(err, &known) {
		e.Err, e.Remedy, e.Code, e.RetryAfter = known.Err, known.Remedy, known.Code, known.RetryAfter
	}
	switch status(err) {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusUnauthorized:
		// A login is refused with either, whatever is wrong.
		e.Kind = provider.Denied
		e.Err = fmt.Errorf("%w (the pod's token has %s)", e.Err, who.claims)
		e.Remedy = "does the role exist, and is it bound to this service account, namespace and audience? For the kubernetes auth method the server must be able to review tokens too"
	case http.StatusNotFound:
		e.Kind = provider.Invalid
		e.Remedy = "enable the auth method there, or correct vaultAuthMountPath and vaultNamespace"
	}
	return e
}

// sessionKey names the way to log in: sessions of one key are the same to the
// server but for who logged in.
func (d *params) sessionKey(who string) string {
	conn, _ := json.Marshal(d.conn)
	sum := sha256.Sum256([]byte(strings.Join([]string{string(conn), d.mount, d.role, who}, "\x00")))
	return string(sum[:])
}

// session returns the token that all volumes of the identity use for what has no
// lease. Nobody gets one for which it did not prove its right: it is shared by
// the pods of a service account where that is all the server looked at, and else
// by the volumes of one pod.
func (v *Provider) session(ctx context.Context, c *client, d *params, who *identity) (session, error) {
	account, pod := d.sessionKey(who.claims.Account()), d.sessionKey(who.claims.Identity())
	get := func(key string) (session, error) {
		return v.sessions.Get(ctx, key, func(ctx context.Context, earlier *login.Session[session]) (login.Session[session], error) {
			if earlier != nil && earlier.Value.renewable {
				if s, err := renewSession(ctx, c, earlier.Value); err == nil {
					return s, nil
				}
			}
			a, err := d.login(ctx, c, who)
			if err != nil {
				return login.Session[session]{}, err
			}
			made := newSession(a, who)
			if made.Value.pod != "" && key != pod {
				v.sessions.Put(pod, made) // where it is looked for once another pod came
			}
			return made, nil
		})
	}
	if !v.podwise.has(d.sessionKey("")) {
		s, err := get(account)
		if err == nil && s.pod == "" {
			v.sharable.add(d.sessionKey(""))
		}
		if err != nil || s.pod == "" || s.pod == who.claims.Identity() {
			return s, err
		}
		v.podwise.add(d.sessionKey(""))
	}
	return get(pod)
}

// newSession makes what a login brought a session. One whose token counts its
// uses is of no use to others.
func newSession(a *auth, who *identity) login.Session[session] {
	s := session{token: secret.FromString(a.Auth.ClientToken), renewable: a.Auth.Renewable && a.Auth.TokenType != "batch", ttl: a.ttl()}
	if !a.ofAccount() {
		s.pod = who.claims.Identity()
	}
	return sessionUntil(s, a.ttl(), a.Auth.NumUses > 0)
}

func sessionUntil(s session, ttl time.Duration, once bool) login.Session[session] {
	now := time.Now()
	made := login.Session[session]{Value: s, Renew: now.Add(ttl * 2 / 3), Ends: now.Add(ttl - min(ttl/10, 5*time.Second))}
	if once {
		made.Renew = now
	}
	return made
}

// errTruncated says that a renewal gave less than was asked for.
var errTruncated = errors.New("it is near its end")

func renewSession(ctx context.Context, c *client, s session) (login.Session[session], error) {
	a, err := renewToken(ctx, c, s.token, s.ttl)
	if err != nil {
		return login.Session[session]{}, err
	}
	if a.ttl() < s.ttl/2 {
		return login.Session[session]{}, errTruncated
	}
	return sessionUntil(s, a.ttl(), false), nil
}

func renewToken(ctx context.Context, c *client, token secret.Value, ttl time.Duration) (*auth, error) {
	body, err := json.Marshal(map[string]int64{"increment": int64(ttl / time.Second)})
	if err != nil {
		return nil, err
	}
	answer, err := c.call(ctx, http.MethodPut, "v1/auth/token/renew-self", "", body, token)
	if err != nil {
		return nil, err
	}
	defer clear(answer)
	return parseAuth(answer)
}

// forget drops a session whose token the server no longer knows.
func (v *Provider) forget(d *params, who *identity, token secret.Value) {
	for _, of := range []string{who.claims.Account(), who.claims.Identity()} {
		v.sessions.Forget(d.sessionKey(of), func(s session) bool { return s.token.Equal(token) })
	}
}

// alive reports whether the server knows the token. A server that denies a read
// may mean the read or the token, and OpenBao does not say which.
func alive(ctx context.Context, c *client, token secret.Value) (bool, error) {
	body, err := c.call(ctx, http.MethodGet, "v1/auth/token/lookup-self", "", nil, token)
	clear(body)
	if status(err) == http.StatusForbidden {
		return false, nil
	}
	return err == nil, err
}
