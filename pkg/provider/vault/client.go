package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/openbao/openbao/api/v2"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// maxAnswerBytes bounds an answer. Values of KV have 1 MiB by default.
	maxAnswerBytes = 8 << 20
	// maxClients bounds how many servers, and ways to reach them, are remembered.
	maxClients = 64
	// maxShownBytes bounds what an error quotes of the server's.
	maxShownBytes = 512
)

// connection is how a server is reached. It holds no secret.
type connection struct {
	Address        string `json:"address"`
	Namespace      string `json:"namespace,omitempty"`
	CAPem          string `json:"caPem,omitempty"`
	CACertPath     string `json:"caCertPath,omitempty"`
	CADirectory    string `json:"caDirectory,omitempty"`
	ServerName     string `json:"serverName,omitempty"`
	ClientCertPath string `json:"clientCertPath,omitempty"`
	ClientKeyPath  string `json:"clientKeyPath,omitempty"`
	SkipVerify     bool   `json:"skipVerify,omitempty"`
}

// clients are those for the connections that were used. They share nothing but
// this: each has its own TLS settings.
type clients struct {
	mu  sync.Mutex
	all map[string]*client
}

type client struct {
	api       *api.Client
	transport *http.Transport
	address   string
}

// get returns the client of a connection. Files of certificates are read anew
// when they have changed.
func (c *clients) get(conn connection) (*client, error) {
	key, err := conn.key()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.all[key]; found != nil {
		return found, nil
	}
	made, err := newClient(conn)
	if err != nil {
		return nil, err
	}
	if c.all == nil {
		c.all = map[string]*client{}
	}
	if len(c.all) >= maxClients {
		for victim, old := range c.all {
			delete(c.all, victim)
			old.transport.CloseIdleConnections()
			break
		}
	}
	c.all[key] = made
	return made, nil
}

// key tells connections apart, and those of changed files.
func (conn connection) key() (string, error) {
	text, err := json.Marshal(conn)
	if err != nil {
		return "", err
	}
	key := string(text)
	for _, path := range []string{conn.CACertPath, conn.CADirectory, conn.ClientCertPath, conn.ClientKeyPath} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return "", conn.failure(err)
		}
		key += fmt.Sprintf("\x00%d.%d", info.ModTime().UnixNano(), info.Size())
	}
	return key, nil
}

func (conn connection) failure(err error) error {
	return &provider.Error{Kind: provider.Invalid, Op: "prepare the connection to " + conn.Address, Err: err,
		Remedy: "correct the TLS parameters of the class; files are those of the driver's container"}
}

func newClient(conn connection) (*client, error) {
	config, err := conn.tls()
	if err != nil {
		return nil, conn.failure(err)
	}
	transport := web.Transport(config)
	address := conn.Address
	if socket, ok := strings.CutPrefix(address, "unix://"); ok {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
		address = "http://localhost"
	}
	made, err := api.NewClient(&api.Config{
		Address: address,
		HttpClient: &http.Client{
			Transport:     bounded{web.Polite{RoundTripper: transport}},
			CheckRedirect: web.StayThere, // api.Client follows one, to the active server
		},
		DisableEnvironment: true,
		MaxRetries:         2,
		MinRetryWait:       100 * time.Millisecond,
		MaxRetryWait:       time.Second,
		CheckRetry:         tryAgain,
	})
	if err != nil {
		return nil, conn.failure(err)
	}
	if conn.Namespace != "" {
		made.SetNamespace(conn.Namespace)
	}
	return &client{made, transport, conn.Address}, nil
}

// tls returns the settings of a connection.
func (conn connection) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: conn.ServerName, InsecureSkipVerify: conn.SkipVerify}
	var files []string
	switch {
	case conn.CAPem != "":
	case conn.CACertPath != "":
		files = []string{conn.CACertPath}
	case conn.CADirectory != "":
		entries, err := os.ReadDir(conn.CADirectory)
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			if path := filepath.Join(conn.CADirectory, entry.Name()); !strings.HasPrefix(entry.Name(), ".") {
				if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
					files = append(files, path)
				}
			}
		}
	}
	if conn.CAPem != "" || len(files) > 0 || conn.CADirectory != "" {
		config.RootCAs = x509.NewCertPool()
		found := config.RootCAs.AppendCertsFromPEM([]byte(conn.CAPem))
		for _, path := range files {
			pem, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			found = config.RootCAs.AppendCertsFromPEM(pem) || found
		}
		if !found {
			return nil, errors.New("there is no PEM certificate in the CA's file, folder or parameter")
		}
	}
	if conn.ClientCertPath != "" {
		pair, err := tls.LoadX509KeyPair(conn.ClientCertPath, conn.ClientKeyPath)
		if err != nil {
			return nil, fmt.Errorf("the client's certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// tryAgain says what is asked for again at once, twice: what a server that comes
// or goes says. What asks for patience is left to those who plan.
func tryAgain(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		return retryablehttp.DefaultRetryPolicy(ctx, nil, err)
	}
	switch resp.StatusCode {
	case http.StatusPreconditionFailed, http.StatusBadGateway, http.StatusGatewayTimeout:
		return true, nil
	}
	return false, nil
}

// errTooLarge ends an answer that exceeds maxAnswerBytes.
var errTooLarge = fmt.Errorf("the answer has more than %d bytes", maxAnswerBytes)

// bounded bounds the answers of a transport.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = &boundedBody{resp.Body, maxAnswerBytes}
	}
	return resp, err
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// call sends a request and returns the body of the answer, which is nil for one
// without. secrets are what must not show in an error. The error is an *Error
// with the server's reasons.
func (c *client) call(ctx context.Context, method, path, query string, body []byte, token secret.Value, secrets ...secret.Value) ([]byte, error) {
	r := c.api.NewRequest(method, "/"+path)
	r.ClientToken = string(token.Reveal())
	if body != nil {
		r.BodyBytes = body
	}
	if query != "" {
		values, err := url.ParseQuery(query)
		if err != nil {
			return nil, &provider.Error{Kind: provider.Invalid, Err: errors.New("its query is broken")}
		}
		r.Params = values
	}
	resp, err := c.api.RawRequestWithContext(ctx, r)
	if resp != nil {
		defer resp.Body.Close()
	}
	var refused *api.ResponseError
	switch {
	case errors.As(err, &refused):
		return nil, c.refusal(refused, resp, append(secrets, token))
	case err != nil:
		return nil, c.unreachable(ctx, err)
	}
	answer, err := io.ReadAll(resp.Body)
	switch {
	case errors.Is(err, errTooLarge):
		return nil, &provider.Error{Kind: provider.TooLarge, Err: err}
	case err != nil:
		return nil, &provider.Error{Kind: provider.Unavailable, Err: fmt.Errorf("the answer of %s ended early: %w", c.address, web.Bare(err)), Remedy: "it is asked again"}
	}
	if len(bytes.TrimSpace(answer)) == 0 {
		return nil, nil
	}
	return answer, nil
}

// refused is why a server refused a request.
type refused struct {
	status  int
	reasons []string
	body    []byte // of a 404, which may say more; nil otherwise
}

func (r *refused) Error() string {
	text := fmt.Sprintf("the server answers %d", r.status)
	if name := http.StatusText(r.status); name != "" {
		text += " (" + name + ")"
	}
	if len(r.reasons) > 0 {
		text += ": " + strings.Join(r.reasons, "; ")
	}
	return text
}

func (r *refused) says(text string) bool {
	for _, reason := range r.reasons {
		if strings.Contains(reason, text) {
			return true
		}
	}
	return false
}

// status returns that of a refusal, 0 for other errors.
func status(err error) int {
	var r *refused
	if errors.As(err, &r) {
		return r.status
	}
	return 0
}

func says(err error, text string) bool {
	var r *refused
	return errors.As(err, &r) && r.says(text)
}

func (c *client) refusal(from *api.ResponseError, resp *api.Response, secrets []secret.Value) error {
	r := &refused{status: from.StatusCode}
	if !from.RawError { // what is no JSON may be the page of something on the way
		for _, reason := range from.Errors {
			if reason = shown(reason, secrets); reason != "" {
				r.reasons = append(r.reasons, reason)
			}
		}
	}
	if resp != nil && r.status == http.StatusNotFound {
		r.body, _ = io.ReadAll(resp.Body)
	}
	e := &provider.Error{Kind: provider.Internal, Err: r, Code: strconv.Itoa(r.status)}
	switch {
	case r.status == http.StatusForbidden, r.status == http.StatusUnauthorized:
		e.Kind = provider.Denied
	case r.status == http.StatusNotFound:
		e.Kind = provider.NotFound
	case r.status == http.StatusTooManyRequests:
		e.Kind, e.Remedy = provider.Throttled, "it is asked again"
		if resp != nil {
			e.RetryAfter = web.RetryAfter(resp.Header)
		}
	case r.status >= http.StatusInternalServerError:
		e.Kind, e.Remedy = provider.Unavailable, "it is asked again"
		if r.says("sealed") {
			e.Remedy = "unseal it; it is asked again"
		}
	case r.status >= http.StatusBadRequest:
		e.Kind = provider.Invalid
	}
	return e
}

// shown returns a reason as an error may show it.
func shown(reason string, secrets []secret.Value) string {
	for _, s := range secrets {
		if !s.IsEmpty() {
			reason = strings.ReplaceAll(reason, string(s.Reveal()), secret.Redacted)
		}
	}
	reason = strings.Join(strings.Fields(reason), " ")
	if len(reason) > maxShownBytes {
		reason = strings.ToValidUTF8(reason[:maxShownBytes], "") + "..."
	}
	return reason
}

// unreachable explains why there was no answer.
func (c *client) unreachable(ctx context.Context, err error) error {
	e := &provider.Error{Kind: provider.Unavailable, Err: fmt.Errorf("the server %s does not answer: %w", c.address, web.Bare(err)), Remedy: "it is asked again"}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var verification *tls.CertificateVerificationError
	switch {
	case errors.Is(err, errTooLarge):
		e.Kind, e.Err, e.Remedy = provider.TooLarge, errTooLarge, ""
	case ctx.Err() != nil:
		e.Err = fmt.Errorf("the server %s does not answer in time: %w", c.address, ctx.Err())
	case errors.As(err, &unknown):
		e.Remedy = "give the CA's certificate by vaultCACertPath, vaultCADirectory or vaultCAPem"
	case errors.As(err, &host):
		e.Remedy = "correct vaultAddress, or say by vaultTLSServerName whose certificate it is"
	case errors.As(err, &invalid), errors.As(err, &verification):
		e.Remedy = "the server's certificate cannot be trusted: renew it, or correct the CA"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		e.Remedy = "the server speaks HTTP there: correct vaultAddress"
	}
	return e
}
