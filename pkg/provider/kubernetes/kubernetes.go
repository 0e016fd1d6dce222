// Package kubernetes is the provider of what lies in the cluster itself: keys of
// the Secrets and ConfigMaps of the pod's namespace, read with the pod's own
// token. README.md is its manual.
//
// It speaks the API server's REST API
// (https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.36/).
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// Provider reads Secrets and ConfigMaps. It holds no secret between two calls
// and is safe for concurrent use.
type Provider struct {
	server string
	client *http.Client
}

var (
	_ provider.Provider  = (*Provider)(nil)
	_ provider.Validator = (*Provider)(nil)
	_ provider.Sharer    = (*Provider)(nil)
)

// New returns a Provider that asks the API server at that URL by a client
// without credentials of its own.
func New(server string, client *http.Client) *Provider {
	return &Provider{strings.TrimSuffix(server, "/"), client}
}

// Validate tells what is wrong with a class's parameters.
func (p *Provider) Validate(parameters map[string]string) []provider.Problem {
	reader := provider.NewParams(parameters)
	decode(reader)
	return reader.Problems()
}

// Fetch reads each Secret and ConfigMap that the class names once.
func (p *Provider) Fetch(ctx context.Context, req provider.Request) (_ provider.Result, err error) {
	reader := provider.NewParams(req.Parameters)
	d := decode(reader)
	if err := reader.Err(); err != nil {
		return provider.Result{}, err
	}
	token, err := tokenOf(req, d)
	if err != nil {
		return provider.Result{}, err
	}
	sources := d.sources()
	found := make([]contents, len(sources))
	defer func() {
		for _, c := range found {
			c.clear()
		}
	}()
	err = provider.Together(ctx, len(sources), func(ctx context.Context, i int) (err error) {
		found[i], err = p.get(ctx, req.Pod, sources[i], token)
		if provider.KindOf(err) == provider.NotFound && d.optional(sources[i]) {
			found[i], err = contents{}, nil
		}
		return err
	})
	if err != nil {
		return provider.Result{}, err
	}
	var result provider.Result
	for i, s := range sources {
		if found[i].data != nil {
			result.Versions = append(result.Versions, provider.ObjectVersion{ID: s.String(), Version: found[i].version})
		}
	}
	for _, o := range d.objects {
		files, err := o.files(found[slices.Index(sources, o.source)], req)
		if err != nil {
			result.Clear()
			return provider.Result{}, err
		}
		result.Files = append(result.Files, files...)
	}
	return result, nil
}

// Identity returns a key of the pod's service account, which is all that an API
// server's rights are bound to.
func (p *Provider) Identity(_ context.Context, req provider.Request) (string, bool) {
	reader := provider.NewParams(req.Parameters)
	d := decode(reader)
	if reader.Err() != nil {
		return "", false
	}
	token, err := tokenOf(req, d)
	if err != nil {
		return "", false
	}
	claims, err := login.Read(token)
	if err != nil || claims.ServiceAccountUID == "" {
		return "", false
	}
	return login.Key(claims.Account(), req.Pod.Namespace), true
}

// optional tells whether every object of a source may be missing.
func (d *params) optional(s source) bool {
	return !slices.ContainsFunc(d.objects, func(o object) bool { return o.source == s && !o.Optional })
}

// files returns what an object brings of its Secret or ConfigMap; nothing where
// that is missing, and the object optional. Options are of an object that is one
// key.
func (o object) files(c contents, req provider.Request) ([]provider.File, error) {
	if c.data == nil {
		return nil, nil
	}
	whole := provider.Object{Name: o.source.in(req.Pod), Mode: o.mode, Options: o.Options}
	keys := []string{o.key}
	if o.key == "" {
		if keys = slices.Sorted(maps.Keys(c.data)); len(keys) == 0 {
			return nil, whole.Failure(&provider.Error{Kind: provider.NotFound, Err: errors.New("it has no keys"), Remedy: "put one there"})
		}
	}
	files := make([]provider.File, 0, len(keys))
	for _, key := range keys {
		value, ok := c.data[key]
		if !ok {
			return nil, whole.Failure(&provider.Error{Kind: provider.NotFound, Err: fmt.Errorf("it has no key %q", key),
				Remedy: "it has " + strings.Join(slices.Sorted(maps.Keys(c.data)), ", ") + "; correct the key in the class"})
		}
		of := whole
		of.Name, of.Path = fmt.Sprintf("%s: key %q", whole.Name, key), o.path(key)
		file, err := of.File(req, value)
		if err != nil {
			return nil, err
		}
		if file != nil {
			files = append(files, *file)
		}
	}
	return files, nil
}

// tokenOf returns the pod's token that is for the API server.
func tokenOf(req provider.Request, d *params) (secret.Value, error) {
	audiences := login.APIServerAudiences
	if d.audience != "" {
		audiences = []string{d.audience}
	}
	for _, audience := range audiences {
		if token, ok := req.Tokens[audience]; ok {
			return token.Value, nil
		}
	}
	err := &provider.Error{Kind: provider.Denied, Err: fmt.Errorf("kubelet sent no token of the pod for the audience %q", audiences[0]),
		Remedy: fmt.Sprintf("list the audience %q in the CSIDriver's tokenRequests", audiences[0])}
	if d.audience == "" {
		err.Err = errors.New("kubelet sent no token of the pod for the API server")
		err.Remedy = `list the audience "", which is the API server's own, in the CSIDriver's tokenRequests (chart: tokenRequests), or name another that it accepts in the parameter "audience"`
	}
	if len(req.Tokens) > 0 {
		err.Err = fmt.Errorf("%w; those that there are have the audiences %q", err.Err, slices.Sorted(maps.Keys(req.Tokens)))
	}
	return secret.Value{}, err
}
