package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// conjur stands in for a Conjur, which cannot be had here: it knows pods by what
// their tokens say, and takes each for a host of its own.
func conjur(t *testing.T) (address, certificate string) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/authn-jwt/kube/shop/authenticate":
			body, _ := io.ReadAll(r.Body)
			form, _ := url.ParseQuery(string(body))
			claims, err := login.Read(secret.FromString(form.Get("jwt")))
			if err != nil || claims.Audiences[0] != "conjur" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]string{
				"protected": "e30", "signature": "x", "payload": base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"sub":%q}`, claims.Subject)),
			})
		case "/secrets":
			values := map[string]string{}
			for id := range strings.SplitSeq(r.URL.Query().Get("variable_ids"), ",") {
				values[id] = base64.StdEncoding.EncodeToString([]byte("value of " + strings.TrimPrefix(id, "shop:variable:")))
			}
			w.Header().Set("Content-Encoding", "base64")
			_ = json.NewEncoder(w).Encode(values)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	listener, err := net.Listen("tcp", net.JoinHostPort(kube.HostIP(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	_ = server.Listener.Close()
	own := selfSigned(t, kube.HostIP())
	server.Listener, server.TLS = listener, &tls.Config{Certificates: []tls.Certificate{own}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}))
}

// selfSigned makes a certificate for an address of this machine.
func selfSigned(t *testing.T, address string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.ParseIP(address)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// What a volume holds stands in the pod's own annotation, as CyberArk's provider
// has it: the driver reads that, and nothing else of pods.
func TestConjurTakesItsListFromThePodsAnnotation(t *testing.T) {
	n, began := newNamespace(t), time.Now()
	address, certificate := conjur(t)
	n.classOf("conjur", "conjur", map[string]string{"account": "shop", "applianceUrl": address, "authnId": "authn-jwt/kube", "sslCertificate": certificate})
	with, without := template(idle, "conjur"), template(idle, "conjur")
	with.Annotations = map[string]string{"conjur.org/secrets": "- \"db/password\": \"prod/db/password\"\n- user: prod/db/user\n"}
	n.pod("with", with)
	n.pod("without", without)
	n.ready("pod/with")
	for path, want := range map[string]string{"/mnt/conjur/db/password": "value of prod/db/password", "/mnt/conjur/user": "value of prod/db/user"} {
		if got := n.cat("with", path); got != want {
			t.Errorf("%s holds %q", path, got)
		}
	}
	eventually(t, func() error {
		if events := n.events("without"); !strings.Contains(events, `it has no annotation "conjur.org/secrets"`) {
			return fmt.Errorf("the events are\n%s", events)
		}
		return nil
	})
	requests, err := kube.Requests()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range requests {
		if r.User == driverAccount && r.Resource == "pods" && r.Verb != "get" && r.Time.After(began) {
			t.Errorf("the driver asked to %s pods", r.Verb)
		}
	}
}
