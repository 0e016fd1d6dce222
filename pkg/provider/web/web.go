// Package web is what providers share that reach their store by HTTP.
package web

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Transport returns a transport with these TLS settings, by the proxy that the
// environment names, which keeps as many connections to a store as one volume
// uses at the same time.
func Transport(config *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: provider.AtOnce,
		IdleConnTimeout:     90 * time.Second,
	}
}

// StayThere is the CheckRedirect of clients that follow none: a token is for one
// server and for no other.
func StayThere(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// maxClients bounds the sets of CAs for which connections are kept.
const maxClients = 64

// Clients are HTTP clients that follow no redirects, one for each set of CAs. They
// hold no secret. The zero value is ready to use, by several goroutines.
type Clients struct {
	// System are the CAs where a class names none; nil for the machine's own.
	System *x509.CertPool
	// Dial makes the transport of a client; nil for Transport.
	Dial func(*tls.Config) http.RoundTripper

	mu  sync.Mutex
	all map[string]*http.Client // by PEM
}

// Get returns the client that trusts the CAs of a PEM text and nobody else, or
// those of the system where it is empty.
func (c *Clients) Get(pem string) *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.all[pem]; found != nil {
		return found
	}
	if c.all == nil {
		c.all = map[string]*http.Client{}
	}
	for key, client := range c.all {
		if len(c.all) < maxClients {
			break
		}
		client.CloseIdleConnections()
		delete(c.all, key)
	}
	roots := c.System
	if pem != "" {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(pem))
	}
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	client := &http.Client{Transport: Polite{Transport(config)}, CheckRedirect: StayThere}
	if c.Dial != nil {
		client.Transport = Polite{c.Dial(config)}
	}
	c.all[pem] = client
	return client
}

// maxRetryAfter bounds the wait that a store may ask for.
const maxRetryAfter = time.Hour

// RetryAfter returns the wait that the header of an answer asks for, in seconds,
// zero where it asks for none (RFC 9110, section 10.2.3).
func RetryAfter(header http.Header) time.Duration {
	seconds, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || seconds <= 0 {
		return 0
	}
	return time.Duration(min(seconds, int(maxRetryAfter/time.Second))) * time.Second
}

// Bare takes the method and the URL out of an error of an HTTP client, where the
// address stands beside it anyway.
func Bare(err error) error {
	var located *url.Error
	if errors.As(err, &located) {
		return located.Err
	}
	return err
}
