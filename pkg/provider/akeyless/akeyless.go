// Package akeyless is the provider of what lies in Akeyless: static, rotated and
// dynamic secrets and certificates, read with the pod's own identity. README.md is
// its manual.
//
// It speaks version 2 of the vendor's REST API (https://docs.akeyless.io/reference).
package akeyless

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// Provider reads items of Akeyless. Between two calls it holds logins, each for
// one identity, and no item. It is safe for concurrent use.
type Provider struct {
	clients  web.Clients
	sessions login.Cache[secret.Value]
	key      []byte // for the names of sessions, some of which are made of an access key
}

var (
	_ provider.Provider  = (*Provider)(nil)
	_ provider.Validator = (*Provider)(nil)
	_ provider.Releaser  = (*Provider)(nil)
	_ provider.Located   = (*Provider)(nil)
)

// Store names the gateway's address.
func (p *Provider) Store(parameters map[string]string) (string, bool) {
	reader := provider.NewParams(parameters)
	d := decode(reader)
	return d.access.Gateway, reader.Err() == nil
}

// New returns a Provider, which has no identity of its own.
func New() *Provider { return &Provider{key: []byte(rand.Text())} }

// Validate tells what is wrong with a class's parameters.
func (p *Provider) Validate(parameters map[string]string) []provider.Problem {
	reader := provider.NewParams(parameters)
	decode(reader)
	return reader.Problems()
}

// Fetch reads each item that the class names once, static secrets all at once.
// Credentials that were made for the volume before are returned until they are due.
func (p *Provider) Fetch(ctx context.Context, req provider.Request) (result provider.Result, err error) {
	reader := provider.NewParams(req.Parameters)
	d := decode(reader)
	if err := reader.Err(); err != nil {
		return provider.Result{}, err
	}
	unidentified := d.identify(req)
	s, err := p.open(d.access)
	if err != nil {
		return provider.Result{}, err
	}
	s.err = unidentified // what needs no login is served all the same
	defer s.close()
	f := &fetching{session: s, objects: d.objects, items: d.items, req: req, leases: loadLeases(req)}
	defer func() {
		if err != nil {
			result.Clear()
			result = provider.Result{}
		}
		for _, i := range f.items {
			clear(i.value)
		}
	}()
	for _, step := range []func(context.Context) error{f.describe, f.read, f.issue} {
		if err := step(ctx); err != nil {
			return provider.Result{}, err
		}
	}
	if result, err = f.result(); err == nil {
		err = f.tidy(ctx, &result)
	}
	return result, err
}

// fetching is one fetch.
type fetching struct {
	*session
	objects []object
	items   []*item // of the objects, each once
	req     provider.Request
	leases  *leases
}

// of returns the items of a kind.
func (f *fetching) of(k kind) []*item {
	var found []*item
	for _, i := range f.items {
		if i.kind == k && !i.missing {
			found = append(found, i)
		}
	}
	return found
}

// failed returns the error with an item's object in it, or nil where there is none
// or the item may be missing.
func (f *fetching) failed(i *item, err error) error {
	if err == nil {
		return nil
	}
	for _, o := range f.objects {
		if named := o.Failure(err); o.of == i && named != nil {
			return named
		}
	}
	i.missing = true
	return nil
}

// describe asks what the items are of which the class does not say it.
func (f *fetching) describe(ctx context.Context) error {
	unknown := f.of("")
	return provider.Together(ctx, len(unknown), func(ctx context.Context, n int) error {
		i := unknown[n]
		if f.leases.current(f.access, i.path) != nil {
			i.kind = dynamic
			return nil
		}
		body, err := f.ask(ctx, opDescribe, map[string]any{"name": i.path})
		if err == nil {
			err = i.describe(body)
		}
		return f.failed(i, err)
	})
}

// read gets the values of all items but dynamic secrets.
func (f *fetching) read(ctx context.Context) error {
	var work []func(context.Context) error
	if all := f.of(static); len(all) > 0 {
		work = append(work, func(ctx context.Context) error { return f.readStatic(ctx, all) })
	}
	for _, i := range append(f.of(rotated), f.of(certificate)...) {
		work = append(work, func(ctx context.Context) error {
			op, request, read := opCertificate, map[string]any{"name": i.name}, i.readCertificate
			if i.kind == rotated {
				op, request, read = opRotated, map[string]any{"names": i.name, "json": true}, i.readRotated
			}
			body, err := f.ask(ctx, op, request)
			if err == nil {
				err = read(body)
			}
			return f.failed(i, err)
		})
	}
	return provider.Together(ctx, len(work), func(ctx context.Context, n int) error { return work[n](ctx) })
}

// readStatic gets static secrets with one request. Where the gateway refuses that,
// it asks for each by itself, to know which one it is about.
func (f *fetching) readStatic(ctx context.Context, items []*item) error {
	names := make([]string, len(items))
	for n, i := range items {
		names[n] = i.name
	}
	body, err := f.ask(ctx, opStatic, map[string]any{"names": names})
	var known *provider.Error
	if errors.As(err, &known) && len(items) > 1 && known.Object == "" && !refusalOf(err).token { // else the login has failed
		switch known.Kind {
		case provider.Unavailable, provider.Throttled:
			named := *known
			named.Object = fmt.Sprintf("object %q and %d others", items[0].path, len(items)-1)
			return &named
		}
		return provider.Together(ctx, len(items), func(ctx context.Context, n int) error { return f.readStatic(ctx, items[n:n+1]) })
	}
	for _, i := range items {
		if err == nil {
			err = i.readStatic(body)
		}
		if err := f.failed(i, err); err != nil {
			return err
		}
		err = nil
	}
	return nil
}

// result makes the files.
func (f *fetching) result() (result provider.Result, err error) {
	for _, o := range f.objects {
		if o.of.missing {
			continue
		}
		file, err := o.File(f.req, o.of.value)
		if err != nil {
			return result, err
		}
		if file == nil {
			continue
		}
		version := o.of.version
		if version == "" {
			version = f.req.Fingerprint([]byte(o.of.path), o.of.value)
		}
		result.Files = append(result.Files, *file)
		result.Versions = append(result.Versions, provider.ObjectVersion{ID: o.Path + ":" + o.of.path, Version: version})
	}
	return result, nil
}
