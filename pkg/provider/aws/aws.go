// Package aws is the provider of AWS Secrets Manager and of AWS Systems Manager
// Parameter Store, read with the IAM role of the pod. It takes the classes of
// AWS's own provider (secrets-store-csi-driver-provider-aws) as they are.
// README.md is its manual.
package aws

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
)

// regionTimeout bounds what one of two regions may take, so that the other's
// answer is of use.
const regionTimeout = 15 * time.Second

// Config is how a Provider reaches AWS. The zero Config is usable.
type Config struct {
	// Region is where classes read that name none; empty for the node's own.
	Region string
	// NodeRegion tells the region of this node; nil where nobody knows it.
	NodeRegion func(ctx context.Context) (string, error)
	// FIPS and DualStack choose endpoints that are validated by FIPS 140 and that
	// have IPv6 addresses.
	FIPS, DualStack bool
	// The URLs that take the place of AWS's own endpoints; empty for those.
	SecretsManagerURL, ParameterStoreURL, STSURL string
	// CAs are those that the endpoints' certificates may be of; nil for the
	// machine's.
	CAs *x509.CertPool
	// Dial connects to the endpoints and to the agent of EKS Pod Identity; nil for
	// the network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Provider reads secrets and parameters. Between two calls it holds credentials,
// each for the identity alone that they were given to, and no value. It is safe
// for concurrent use.
type Provider struct {
	config   Config
	regions  regions
	agent    *http.Client
	sessions login.Cache[*session]
	// patience bounds what one of two regions may take.
	patience time.Duration
	// refusals are of the right to read secrets in batches.
	refusals login.Refusals
}

var (
	_ provider.Provider  = (*Provider)(nil)
	_ provider.Validator = (*Provider)(nil)
	_ provider.Sharer    = (*Provider)(nil)
	_ provider.Located   = (*Provider)(nil)
)

// New returns a Provider, or what is wrong with its configuration.
func New(config Config) (*Provider, error) {
	for _, address := range []string{config.SecretsManagerURL, config.ParameterStoreURL, config.STSURL} {
		if parsed, err := url.Parse(address); address != "" && (err != nil || parsed.Host == "" || parsed.Scheme != "https" && parsed.Scheme != "http") {
			return nil, fmt.Errorf("aws: the endpoint %.200q is not a URL that begins with https://", address)
		}
	}
	if config.Region != "" && !regionRule.MatchString(config.Region) {
		return nil, fmt.Errorf("aws: %.200q is not a region", config.Region)
	}
	transport := web.Transport(&tls.Config{RootCAs: config.CAs, MinVersion: tls.VersionTLS12})
	agent := &http.Transport{DialContext: (&net.Dialer{Timeout: agentDialTimeout}).DialContext, MaxIdleConnsPerHost: provider.AtOnce, IdleConnTimeout: transport.IdleConnTimeout}
	if config.Dial != nil {
		transport.DialContext, agent.DialContext = config.Dial, config.Dial
	}
	p := &Provider{config: config, patience: regionTimeout, agent: &http.Client{Transport: agent, CheckRedirect: web.StayThere}}
	p.regions = regions{config: &p.config, http: &http.Client{Transport: transport, CheckRedirect: web.StayThere}}
	return p, nil
}

// Validate tells what is wrong with a class's parameters.
func (p *Provider) Validate(parameters map[string]string) []provider.Problem {
	reader := provider.NewParams(parameters)
	decode(reader, "")
	return reader.Problems()
}

// Fetch reads each secret and parameter that the class names once. Where the
// volume has files already, it reads no value of which AWS tells the version for
// as few calls.
func (p *Provider) Fetch(ctx context.Context, req provider.Request) (provider.Result, error) {
	c, pod, err := p.understand(ctx, req)
	if err != nil {
		return provider.Result{}, err
	}
	objects, err := p.gather(ctx, pod, c)
	if err != nil {
		return provider.Result{}, err
	}
	mounted := map[string]string{}
	if req.Current != nil {
		for _, v := range req.Mounted {
			mounted[v.ID] = v.Version
		}
	}
	found, err := p.read(ctx, pod, objects, mounted)
	if err != nil {
		return provider.Result{}, err
	}
	defer clearAll(found)
	return p.result(ctx, pod, req, objects, found)
}

// understand returns what a request's class says, and who its pod is.
func (p *Provider) understand(ctx context.Context, req provider.Request) (c *class, pod identity, err error) {
	reader := provider.NewParams(req.Parameters)
	region := ""
	if reader.Optional(regionKey) == "" {
		if region, err = p.region(ctx); err != nil {
			return nil, pod, err
		}
	}
	c = decode(reader, region)
	if err = reader.Err(); err == nil {
		pod, err = identify(ctx, c, req)
	}
	return c, pod, err
}

// Store names the region.
func (p *Provider) Store(parameters map[string]string) (string, bool) {
	reader := provider.NewParams(parameters)
	c := decode(reader, p.config.Region)
	return strings.Join(c.regions, " "), reader.Err() == nil
}

// Identity returns the key of the pod's sessions.
func (p *Provider) Identity(ctx context.Context, req provider.Request) (string, bool) {
	c, pod, err := p.understand(ctx, req)
	if err != nil {
		return "", false
	}
	var keys []string
	for _, region := range c.regions {
		keys = append(keys, region, pod.key(region))
	}
	return login.Key(keys...), true
}

// region returns that of classes which name none.
func (p *Provider) region(ctx context.Context) (string, error) {
	if p.config.Region != "" {
		return p.config.Region, nil
	}
	failure := &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("parameter %q", regionKey), Err: errors.New("it is missing, and the node's region is not known"),
		Remedy: "write it, as in us-west-2, or label the node with topology.kubernetes.io/region"}
	if p.config.NodeRegion == nil {
		return "", failure
	}
	region, err := p.config.NodeRegion(ctx)
	if err != nil {
		failure.Kind, failure.Err = provider.KindOf(err), fmt.Errorf("it is missing, and the node's region cannot be read: %w", err)
		return "", failure
	}
	if region == "" {
		return "", failure
	}
	return region, nil
}
