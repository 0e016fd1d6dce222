// Package conjur is the provider of CyberArk Conjur, also called Secrets
// Manager: variables, read with the pod's own token. It takes the classes of
// CyberArk's own provider as they are. README.md is its manual.
//
// It speaks Conjur's REST API
// (https://github.com/cyberark/conjur-openapi-spec): "JWTAuthenticate" and
// "JWTAuthenticateWithId" of spec/authentication.yml, "BatchSecrets" and
// "Secret" of spec/secrets.yml.
package conjur

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// audience is that of the token with which a pod logs in.
const audience = "conjur"

// Provider reads variables of Conjur. Between two calls it holds access tokens,
// each for the pod alone that it was given to, and no value. It is safe for
// concurrent use.
type Provider struct {
	sessions login.Cache[secret.Value] // of Authorization headers
	clients  web.Clients
}

var (
	_ provider.Provider  = (*Provider)(nil)
	_ provider.Validator = (*Provider)(nil)
	_ provider.Located   = (*Provider)(nil)
)

// New returns a Provider.
func New() *Provider { return &Provider{} }

// Validate tells what is wrong with a class's parameters.
func (p *Provider) Validate(parameters map[string]string) []provider.Problem {
	reader := provider.NewParams(parameters)
	decode(reader)
	return reader.Problems()
}

// Store names the server's address.
func (p *Provider) Store(parameters map[string]string) (string, bool) {
	reader := provider.NewParams(parameters)
	c := decode(reader)
	return c.address, reader.Err() == nil
}

// Fetch reads each variable that the class, or the pod's annotation, names once.
func (p *Provider) Fetch(ctx context.Context, req provider.Request) (provider.Result, error) {
	reader := provider.NewParams(req.Parameters)
	c := decode(reader)
	if err := reader.Err(); err != nil {
		return provider.Result{}, err
	}
	objects, err := c.mapping(ctx, req)
	if err != nil {
		return provider.Result{}, err
	}
	token, claims, err := tokenOf(req)
	if err != nil {
		return provider.Result{}, err
	}
	wanted := variables(objects)
	found, err := p.read(ctx, c, token, claims, wanted)
	defer func() {
		for _, f := range found {
			clear(f.value)
		}
	}()
	if err == nil {
		err = refusals(wanted, found)
	}
	if err != nil {
		return provider.Result{}, fmt.Errorf("conjur at %s: %w", c.address, err)
	}
	var result provider.Result
	for _, w := range wanted {
		if f := found[w.variable]; f.err == nil {
			result.Versions = append(result.Versions, provider.ObjectVersion{ID: w.variable, Version: req.Fingerprint([]byte("conjur"), []byte(w.variable), f.value)})
		}
	}
	for _, o := range objects {
		f := found[o.variable]
		if f.err != nil {
			continue // it may be missing
		}
		file, err := o.File(req, f.value)
		if err != nil {
			result.Clear()
			return provider.Result{}, err
		}
		if file != nil {
			result.Files = append(result.Files, *file)
		}
	}
	return result, nil
}

// tokenOf returns the pod's token for Conjur, and what it says of itself.
func tokenOf(req provider.Request) (secret.Value, login.Claims, error) {
	token, err := login.Token(req, "Conjur", audience)
	if err != nil {
		return secret.Value{}, login.Claims{}, err
	}
	failure := &provider.Error{Kind: provider.Denied, Op: "log in to Conjur"}
	claims, err := login.Read(token.Value)
	switch {
	case err != nil:
		failure.Err = fmt.Errorf("the pod's token cannot be read: %w", err)
	case !claims.Expires.IsZero() && time.Now().After(claims.Expires):
		failure.Kind, failure.Err, failure.Remedy = provider.Unavailable, fmt.Errorf("the pod's token is over (%s)", claims), "kubelet's next call for the volume brings another"
	default:
		return token.Value, claims, nil
	}
	return secret.Value{}, login.Claims{}, failure
}

// variables returns the objects with each variable once, since Conjur takes a
// list with one twice for an error. It is optional if all its objects are.
func variables(objects []object) []object {
	var wanted []object
	index := map[string]int{}
	for _, o := range objects {
		i, ok := index[o.variable]
		if !ok {
			index[o.variable] = len(wanted)
			wanted = append(wanted, o)
			continue
		}
		wanted[i].Optional = wanted[i].Optional && o.Optional
	}
	return wanted
}

// outcome is what became of one variable: a value, or why there is none.
type outcome struct {
	value []byte
	err   error
}

// read logs in, or takes the access token of an earlier login, and reads the
// variables. It may return values beside an error.
func (p *Provider) read(ctx context.Context, c *class, token secret.Value, claims login.Claims, wanted []object) (map[string]outcome, error) {
	client, key := p.clients.Get(c.certificate), c.sessionKey(claims)
	for again := false; ; again = true {
		access, err := p.sessions.Get(ctx, key, func(ctx context.Context, _ *login.Session[secret.Value]) (login.Session[secret.Value], error) {
			return conn{c, client, secret.Value{}}.login(ctx, token, claims)
		})
		if err != nil {
			return nil, fmt.Errorf("log in: %w", err)
		}
		found, err := conn{c, client, access}.read(ctx, wanted)
		if again || !errors.Is(err, errNotAccepted) {
			return found, err
		}
		p.sessions.Forget(key, access.Equal)
	}
}

// sessionKey tells the logins of different pods apart, since the host of an
// authn-jwt service may be bound to any claim of the token.
func (c *class) sessionKey(claims login.Claims) string {
	return login.Key(c.address, c.certificate, c.account, c.service, c.identity, claims.Identity())
}

// refusals returns in one error why variables were not read, but for those that
// may be missing.
func refusals(wanted []object, found map[string]outcome) error {
	var errs []error
	for _, w := range wanted {
		errs = append(errs, w.Failure(found[w.variable].err))
	}
	return provider.Join(errs)
}
