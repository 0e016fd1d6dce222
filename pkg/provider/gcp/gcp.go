// Package gcp is the provider of Google Secret Manager and Parameter Manager,
// read with the pod's own identity. It takes the classes of Google's own
// provider as they are. README.md is its manual.
//
// Secret Manager is asked by gRPC, with the stubs that Google makes of its
// service description. Tokens come from Google's Security Token Service, the IAM
// Service Account Credentials API and the metadata server.
package gcp

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// Provider reads secrets and parameters of Google Cloud. Between two calls it
// holds access tokens, each for the identity alone that it was given to, and no
// value. It is safe for concurrent use.
type Provider struct {
	config   Config
	network  *network
	node     nodeFile
	sessions login.Cache[secret.Value] // access tokens
	clusters login.Cache[string]       // the audience of the cluster, by nothing
	// readers are the sessions of identities that cannot ask for versions without
	// their values.
	readers login.Refusals
}

var (
	_ provider.Provider  = (*Provider)(nil)
	_ provider.Validator = (*Provider)(nil)
	_ provider.Sharer    = (*Provider)(nil)
	_ provider.Located   = (*Provider)(nil)
)

// New returns a Provider, or an error that says what is wrong with config.
func New(config Config) (*Provider, error) {
	node, err := readNodeFile(config.CredentialsFile)
	if err != nil {
		return nil, err
	}
	return &Provider{config: config, network: newNetwork(config), node: node}, nil
}

// Validate tells what is wrong with a class's parameters.
func (p *Provider) Validate(parameters map[string]string) []provider.Problem {
	reader := provider.NewParams(parameters)
	decode(reader)
	return reader.Problems()
}

// Fetch reads each version that the class names once. On a refresh it asks for
// the versions' numbers first, and reads those that have moved.
func (p *Provider) Fetch(ctx context.Context, req provider.Request) (provider.Result, error) {
	reader := provider.NewParams(req.Parameters)
	c := decode(reader)
	if err := reader.Err(); err != nil {
		return provider.Result{}, err
	}
	who, err := p.identify(ctx, c, req)
	if err != nil {
		return provider.Result{}, err
	}
	for again := false; ; again = true {
		token, err := p.sessions.Get(ctx, who.key, who.login)
		if err != nil {
			return provider.Result{}, err
		}
		f := &fetch{caller{p.network, token, who.name}, req, &p.readers, who.key}
		result, err := f.result(ctx, c.objects)
		if again || !errors.Is(err, errNotAccepted) {
			return result, err
		}
		p.sessions.Forget(who.key, token.Equal)
	}
}

// Store names Google's services, which have quotas together.
func (p *Provider) Store(parameters map[string]string) (string, bool) {
	reader := provider.NewParams(parameters)
	decode(reader)
	return googleAPIs, reader.Err() == nil
}

// Identity returns the key of the pod's access token.
func (p *Provider) Identity(ctx context.Context, req provider.Request) (string, bool) {
	reader := provider.NewParams(req.Parameters)
	c := decode(reader)
	if reader.Err() != nil {
		return "", false
	}
	who, err := p.identify(ctx, c, req)
	if err != nil {
		return "", false
	}
	return who.key, true
}

// fetch is one answer in the making.
type fetch struct {
	caller
	req     provider.Request
	readers *login.Refusals
	session string // as readers know it
}

// outcome is what became of one resource.
type outcome struct {
	resource
	version string // the resource's name with the number of its version
	kept    bool   // the volume holds that version
	value   []byte
	err     error
}

func (f *fetch) result(ctx context.Context, listed []object) (provider.Result, error) {
	objects, err := f.expand(ctx, listed)
	if err != nil {
		return provider.Result{}, err
	}
	outcomes, byName := distinct(objects)
	held := make([]secret.Value, len(objects))
	defer func() {
		for _, o := range outcomes {
			clear(o.value)
		}
		for _, value := range held {
			value.Clear()
		}
	}()
	if f.req.Current != nil {
		if err := f.compare(ctx, outcomes); err != nil {
			return provider.Result{}, err
		}
		if f.unchanged(outcomes) {
			return provider.Result{NotModified: true}, nil
		}
		for i, o := range objects {
			found := byName[o.name]
			if found.kept {
				held[i], found.kept = f.req.Current(o.Path)
			}
		}
	}
	if err := f.read(ctx, outcomes); err != nil {
		return provider.Result{}, err
	}
	if err := refusals(objects, byName); err != nil {
		return provider.Result{}, err
	}
	var result provider.Result
	for i, o := range objects {
		found := byName[o.name]
		if found.err != nil {
			continue // it may be missing
		}
		made, raw := o.Object, found.value
		if found.kept {
			made.Options, raw = provider.Options{}, held[i].Reveal() // they did their work when it was read
		}
		file, err := made.File(f.req, raw)
		if err != nil {
			result.Clear()
			return provider.Result{}, err
		}
		if file != nil {
			result.Files = append(result.Files, *file)
		}
	}
	for _, o := range outcomes {
		if o.err == nil {
			result.Versions = append(result.Versions, provider.ObjectVersion{ID: o.name, Version: o.version})
		}
	}
	return result, nil
}

// distinct returns each resource once, in the order of the class, and by name.
func distinct(objects []object) ([]*outcome, map[string]*outcome) {
	var all []*outcome
	byName := map[string]*outcome{}
	for _, o := range objects {
		if byName[o.name] == nil {
			byName[o.name] = &outcome{resource: o.resource}
			all = append(all, byName[o.name])
		}
	}
	return all, byName
}

// expand puts the secrets that are found in the place of the entries that ask
// for them, each at its latest version.
func (f *fetch) expand(ctx context.Context, listed []object) ([]object, error) {
	if !slices.ContainsFunc(listed, func(o object) bool { return o.find != nil }) {
		return listed, nil
	}
	found := make([][]object, len(listed))
	err := provider.Together(ctx, len(listed), func(ctx context.Context, i int) error {
		o := listed[i]
		if o.find == nil {
			found[i] = listed[i : i+1]
			return nil
		}
		names, err := o.find.Gather(func(offer func(string, map[string]string) error) error { return f.list(ctx, o.resource, o.find, offer) })
		for _, name := range names {
			one := o
			one.name = o.name + "/secrets/" + name + "/versions/latest"
			one.Name = named(one.name)
			if one.Path, err = o.find.Path(o.Path, name); err != nil {
				return err
			}
			found[i] = append(found[i], one)
		}
		return o.Failure(err)
	})
	if err != nil {
		return nil, err
	}
	var objects []object
	var paths []string
	for _, o := range found {
		objects = append(objects, o...)
	}
	if len(objects) > maxObjects {
		return nil, &provider.Error{Kind: provider.TooLarge, Err: fmt.Errorf("the class finds %d objects, more than %d", len(objects), maxObjects), Remedy: "ask for fewer"}
	}
	for _, o := range objects {
		paths = append(paths, o.Path)
	}
	if err := provider.CheckPaths(paths); err != nil {
		return nil, &provider.Error{Kind: provider.Invalid, Err: err, Remedy: "give what is found another " + pathField}
	}
	return objects, nil
}

// compare asks for the versions that the secrets have now, without their values,
// and tells those that the volume holds. Parameters are none of them: their
// versions stay while the secrets move that they refer to.
func (f *fetch) compare(ctx context.Context, outcomes []*outcome) error {
	mounted := map[string]string{}
	for _, v := range f.req.Mounted {
		mounted[v.ID] = v.Version
	}
	var secrets []*outcome
	for _, o := range outcomes {
		if !o.parameter {
			secrets = append(secrets, o)
		}
	}
	if len(secrets) == 0 || f.readers.Has(f.session) {
		return nil
	}
	ask := func(ctx context.Context, o *outcome) error {
		version, enabled, err := f.version(ctx, o.resource)
		switch kind := provider.KindOf(err); {
		case err == nil:
			o.version, o.kept = version, enabled && version == mounted[o.name]
		case errors.Is(err, errNotAccepted):
			return err
		case kind == provider.Denied, kind == provider.Throttled && !errors.Is(err, provider.ErrNotCalled):
			// To read is another right, and another quota, which is 150 times as high.
			f.readers.Note(f.session)
		case kind == provider.NotFound:
			o.err = err
		default:
			return err
		}
		return nil
	}
	// The first tells whether the others are worth the while.
	if err := ask(ctx, secrets[0]); err != nil || f.readers.Has(f.session) {
		return err
	}
	return provider.Together(ctx, len(secrets)-1, func(ctx context.Context, i int) error { return ask(ctx, secrets[i+1]) })
}

// unchanged tells whether the volume holds what there is, and nothing else. What
// is missing, and is not in the volume, was missing before.
func (f *fetch) unchanged(outcomes []*outcome) bool {
	kept := 0
	for _, o := range outcomes {
		if o.kept {
			kept++
		} else if o.err == nil {
			return false
		}
	}
	return kept == len(f.req.Mounted)
}

// read reads what is neither kept nor known to be missing.
func (f *fetch) read(ctx context.Context, outcomes []*outcome) error {
	return provider.Together(ctx, len(outcomes), func(ctx context.Context, i int) error {
		o := outcomes[i]
		if o.kept || o.err != nil {
			return nil
		}
		var err error
		if o.parameter {
			o.value, o.version, err = f.render(ctx, o.resource)
		} else {
			o.value, o.version, err = f.access(ctx, o.resource)
		}
		switch provider.KindOf(err) {
		case provider.NotFound, provider.Invalid, provider.Denied:
			if !errors.Is(err, errNotAccepted) {
				o.err = err // the others may be refused as well
				return nil
			}
		}
		return err
	})
}

// refusals returns in one error why resources were not read, but for those that
// may be missing.
func refusals(objects []object, byName map[string]*outcome) error {
	var errs []error
	told := map[string]bool{}
	for _, o := range objects {
		if err := o.Failure(byName[o.name].err); err != nil && !told[o.name] {
			told[o.name] = true
			errs = append(errs, err)
		}
	}
	return provider.Join(errs)
}
