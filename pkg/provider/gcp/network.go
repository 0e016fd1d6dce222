package gcp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"github.com/hashicorp/go-retryablehttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// googleAPIs is what the names of Google's hosts end with.
const googleAPIs = "googleapis.com"

// Config is how Google Cloud is reached. The zero Config is that of GKE.
type Config struct {
	// Roots are the CAs of Google's hosts; nil for the machine's own.
	Roots *x509.CertPool
	// DialContext connects to hosts; nil for a dialer that takes the proxy which
	// the environment names.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// UniverseDomain is what the names of hosts end with; googleapis.com where it
	// is empty.
	UniverseDomain string
	// Endpoints are hosts, with a port if it is not 443, to call in the place of
	// Google's, by the names of these: of Private Service Connect.
	Endpoints map[string]string
	// MetadataHost is that of the metadata server; 169.254.169.254 where it is empty.
	MetadataHost string
	// CredentialsFile is a file of the node's own identity (provider-adc), in place
	// of the metadata server's. Where its type is external_account, it also says by
	// which provider of a workload identity pool pods get theirs.
	CredentialsFile string
	// Project, ClusterLocation and ClusterName are those of the GKE cluster; of the
	// metadata server where they are empty.
	Project, ClusterLocation, ClusterName string
}

const (
	// idleTimeout ends connections that firewalls may have forgotten.
	idleTimeout = 90 * time.Second
	// maxConns is how many hosts there may be before unused connections go.
	maxConns = 64
	// connKept is how long a connection is kept after its last use, beyond maxConns:
	// longer than any call lasts.
	connKept = 10 * time.Minute
	// retryWait comes before the only second try.
	retryWait = 100 * time.Millisecond
)

// network is the way to Google's hosts, which all identities share. It holds no
// secret.
type network struct {
	config   Config
	tls      *tls.Config
	web      *http.Client
	metadata *http.Client

	mu    sync.Mutex
	conns map[string]*conn // by host
}

type conn struct {
	*grpc.ClientConn
	used time.Time
}

func newNetwork(config Config) *network {
	c := &network{config: config, tls: &tls.Config{RootCAs: config.Roots, MinVersion: tls.VersionTLS12}, conns: map[string]*conn{}}
	transport, near := web.Transport(c.tls), web.Transport(c.tls)
	near.Proxy, near.DialContext = nil, (&net.Dialer{Timeout: 2 * time.Second}).DialContext
	if config.DialContext != nil {
		transport.DialContext, near.DialContext = config.DialContext, config.DialContext
	}
	c.web, c.metadata = patient(web.Polite{RoundTripper: transport}), patient(near)
	return c
}

// patient returns a client that tries once more where a connection broke or the
// server failed, and follows no redirects.
func patient(transport http.RoundTripper) *http.Client {
	client := (&retryablehttp.Client{
		HTTPClient: &http.Client{Transport: transport, CheckRedirect: web.StayThere},
		RetryMax:   1,
		CheckRetry: func(ctx context.Context, answer *http.Response, err error) (bool, error) {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			if err != nil {
				return retryablehttp.DefaultRetryPolicy(ctx, nil, err)
			}
			return answer.StatusCode >= http.StatusInternalServerError, nil
		},
		Backoff:      func(_, _ time.Duration, _ int, _ *http.Response) time.Duration { return retryWait },
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}).StandardClient()
	client.CheckRedirect = web.StayThere
	return client
}

// host returns the host of a service, of a location where that is not empty.
func (c *network) host(service, location string) string {
	domain := c.config.UniverseDomain
	if domain == "" {
		domain = googleAPIs
	}
	if location != "" {
		service += "." + location + ".rep"
	}
	name := service + "." + domain
	if other := c.config.Endpoints[name]; other != "" {
		return other
	}
	return name
}

// conn returns the connection to a host, which is made when it is first used.
func (c *network) conn(host string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if known := c.conns[host]; known != nil {
		known.used = now
		return known.ClientConn, nil
	}
	for other, known := range c.conns {
		if len(c.conns) >= maxConns && now.Sub(known.used) > connKept {
			known.Close()
			delete(c.conns, other)
		}
	}
	target := host
	if _, _, err := net.SplitHostPort(host); err != nil {
		target += ":443"
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(c.tls)),
		grpc.WithChainUnaryInterceptor(again, politely), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes)),
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: retryWait / 2, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}, // pods wait
			MinConnectTimeout: 10 * time.Second,
		}),
		grpc.WithUserAgent("csi-secrets"),
	}
	if dial := c.config.DialContext; dial != nil {
		target = "passthrough:///" + target
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }))
	}
	made, err := grpc.NewClient(target, options...)
	if err != nil { // its text may have a proxy's password
		return nil, &provider.Error{Kind: provider.Invalid, Op: "connect to " + host, Err: errors.New("it, or the proxy of the driver's environment, is not an address"), Remedy: "correct the endpoint or the proxy"}
	}
	c.conns[host] = &conn{made, now}
	return made, nil
}

// again tries a call once more where a connection broke or Google is unavailable.
// One that is throttled it does not.
func again(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := invoke(ctx, method, request, reply, conn, options...)
	if status.Code(err) != codes.Unavailable {
		return err
	}
	select {
	case <-ctx.Done():
		return err
	case <-time.After(retryWait):
		return invoke(ctx, method, request, reply, conn, options...)
	}
}

// politely makes a call by provider.Call.
func politely(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	var answer error
	err := provider.Call(ctx, func() error {
		answer = invoke(ctx, method, request, reply, conn, options...)
		if answer == nil {
			return nil
		}
		switch refusal := failure("", answer); {
		case refusal.Kind == provider.Throttled && method != secretmanagerpb.SecretManagerService_GetSecretVersion_FullMethodName:
			return refusal
		case refusal.Kind == provider.Unavailable:
			return refusal
		}
		return nil // who asks for a version has another way, with a quota of its own
	})
	if answer == nil && err != nil { // it was not made
		return err
	}
	return answer
}

// bearer is the header that carries an access token.
func bearer(token secret.Value) string { return "Bearer " + string(token.Reveal()) }

// call returns the body and the header of an answer. The error is a *refused
// where there is an answer that is none of success.
func call(ctx context.Context, client *http.Client, method, address string, header http.Header, body []byte) ([]byte, http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, nil, errors.New("the address is not a URL")
	}
	request.Header = header
	answer, err := client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswerBytes+1))
	switch {
	case err == nil && len(text) > maxAnswerBytes:
		err = fmt.Errorf("the answer has more than %d bytes", maxAnswerBytes)
	case err == nil && answer.StatusCode != http.StatusOK:
		err = refusedBy(answer, text)
	}
	if err != nil {
		clear(text)
		return nil, nil, err
	}
	return text, answer.Header, nil
}
