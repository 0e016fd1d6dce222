// Package cloud is the part of the Internet that a test needs: host names of
// secret stores that lead to handlers of the test, over TLS with certificates of
// the test's own CA, and to nobody else. A provider reaches them by DialContext,
// the whole program by an HTTP proxy.
package cloud

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Net is a set of hosts. It is safe for concurrent use.
type Net struct {
	t      testing.TB
	host   string // where its servers listen
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	caFile string
	tls    *server
	plain  *server
	proxy  *server

	mu      sync.Mutex
	hosts   map[string]http.Handler // of TLS, by name or "*.suffix"
	clear   map[string]http.Handler // without TLS
	certs   map[string]*tls.Certificate
	refused []string
	cut     map[string]int
}

// server is an HTTP server on a loopback address.
type server struct {
	*http.Server
	address string
}

// New returns a Net without hosts, which ends with the test.
func New(t testing.TB) *Net { return At(t, "127.0.0.1") }

// At is New for those who reach the test's machine at an address of it.
func At(t testing.TB, address string) *Net {
	t.Helper()
	n := &Net{t: t, host: address, hosts: map[string]http.Handler{}, clear: map[string]http.Handler{}, certs: map[string]*tls.Certificate{}, cut: map[string]int{}}
	n.makeCA()
	n.tls = n.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.answer(n.hosts, w, r) }), &tls.Config{
		GetCertificate: n.certificate, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12,
	})
	n.plain = n.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.answer(n.clear, w, r) }), nil)
	n.proxy = n.serve(http.HandlerFunc(n.forward), nil)
	return n
}

// Handle serves a host by TLS on port 443. The host is a name, or "*." and what
// its names end with.
func (n *Net) Handle(host string, h http.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[host] = h
}

// HandlePlain serves a host without TLS on port 80.
func (n *Net) HandlePlain(host string, h http.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.clear[host] = h
}

// Cut ends the next count TLS connections to a host in the middle of the
// server's first answer.
func (n *Net) Cut(host string, count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[host] = count
}

// Pool holds the CA's certificate.
func (n *Net) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(n.ca)
	return pool
}

// CAFile is a PEM file of the CA's certificate.
func (n *Net) CAFile() string { return n.caFile }

// ProxyURL is that of an HTTP proxy which leads to the hosts.
func (n *Net) ProxyURL() string { return "http://" + n.proxy.address }

// Refused returns the addresses that were asked for and are no host of n.
func (n *Net) Refused() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.refused...)
}

// DialContext connects to the host of an address such as
// "sts.googleapis.com:443", and fails for all others.
func (n *Net) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	at := ""
	n.mu.Lock()
	switch {
	case port == "443" && find(n.hosts, host) != nil:
		at = n.tls.address
	case port == "80" && find(n.clear, host) != nil:
		at = n.plain.address
	default:
		n.refused = append(n.refused, address)
	}
	cut := at != "" && n.cut[host] > 0
	if cut {
		n.cut[host]--
	}
	n.mu.Unlock()
	if at == "" {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("the test has no host %s", address)}
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", at)
	if err == nil && cut {
		conn = &cutConn{Conn: conn}
	}
	return conn, err
}

// cutConn ends in the middle of the record that follows the TLS handshake.
type cutConn struct {
	net.Conn
	read int
}

// cutAfter is less than what a server's certificates take.
const cutAfter = 700

func (c *cutConn) Read(b []byte) (int, error) {
	if c.read >= cutAfter {
		c.Close()
		return 0, io.EOF
	}
	n, err := c.Conn.Read(b[:min(len(b), cutAfter-c.read)])
	c.read += n
	return n, err
}

func find(hosts map[string]http.Handler, host string) http.Handler {
	if h := hosts[host]; h != nil {
		return h
	}
	if _, suffix, ok := strings.Cut(host, "."); ok {
		return hosts["*."+suffix]
	}
	return nil
}

func (n *Net) answer(hosts map[string]http.Handler, w http.ResponseWriter, r *http.Request) {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	n.mu.Lock()
	h := find(hosts, strings.Trim(host, "[]"))
	n.mu.Unlock()
	if h == nil {
		http.Error(w, "the test has no such host", http.StatusMisdirectedRequest)
		return
	}
	h.ServeHTTP(w, r)
}

// forward is the proxy: CONNECT for TLS, and whole requests without it.
func (n *Net) forward(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		n.answer(n.clear, w, r)
		return
	}
	there, err := n.DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	if _, err := io.WriteString(here, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	go pipe(there, buffered.Reader, there)
	pipe(here, bufio.NewReader(there), here)
}

// pipe copies until either side ends, and then closes one.
func pipe(to io.Writer, from *bufio.Reader, closes io.Closer) {
	_, _ = io.Copy(to, from)
	closes.Close()
}

func (n *Net) serve(h http.Handler, config *tls.Config) *server {
	listener, err := net.Listen("tcp", net.JoinHostPort(n.host, "0"))
	if err != nil {
		n.t.Fatal(err)
	}
	s := &server{&http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}, listener.Addr().String()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if config == nil {
			_ = s.Serve(listener)
			return
		}
		_ = s.ServeTLS(listener, "", "")
	}()
	n.t.Cleanup(func() {
		s.Close()
		<-done
	})
	return s
}

func (n *Net) makeCA() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		n.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "csi-secrets test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		n.t.Fatal(err)
	}
	if n.ca, err = x509.ParseCertificate(der); err != nil {
		n.t.Fatal(err)
	}
	n.caKey, n.caFile = key, filepath.Join(n.t.TempDir(), "ca.pem")
	if err := os.WriteFile(n.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// certificate makes the certificate of a host when it is first asked for.
func (n *Net) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if found := n.certs[hello.ServerName]; found != nil {
		return found, nil
	}
	if find(n.hosts, hello.ServerName) == nil {
		return nil, fmt.Errorf("the test has no host %q", hello.ServerName)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{hello.ServerName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, n.ca, &key.PublicKey, n.caKey)
	if err != nil {
		return nil, err
	}
	n.certs[hello.ServerName] = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return n.certs[hello.ServerName], nil
}
