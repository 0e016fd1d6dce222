package stores

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

// slow is a server that passes requests on after a while.
func slow(t testing.TB, w *world, by time.Duration) *httptest.Server {
	target, err := url.Parse(w.Address)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.CA())
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 64}
	server := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		time.Sleep(by)
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	return server
}

// BenchmarkTwentyObjects publishes volumes with twenty secrets of a Vault that
// takes 50 ms to answer, for an identity that has logged in before.
func BenchmarkTwentyObjects(b *testing.B) {
	w := newWorld(b)
	must(b, w.Policy("app", readAll), w.EnableKV2("secret"))
	server := slow(b, w, 50*time.Millisecond)
	var objects strings.Builder
	for i := range 20 {
		put(b, w, fmt.Sprint("secret/data/", i), map[string]any{"data": map[string]any{"a": "x"}})
		fmt.Fprintf(&objects, "- {objectName: f%d, secretPath: secret/data/%d, secretKey: a}\n", i, i)
	}
	w.start(b)
	w.node.AddClass(b, "twenty", "vault", map[string]string{
		"roleName": "app", "vaultAddress": server.URL, "vaultSkipTLSVerify": "true", "objects": objects.String(),
	})
	w.publish(b, w.volume(b, "first", "twenty"))
	var volumes []standalone.Volume
	for i := range b.N {
		volumes = append(volumes, w.volume(b, fmt.Sprint("pod-", i), "twenty"))
	}
	b.ResetTimer()
	for _, v := range volumes {
		if err := w.node.Publish(harness.Timeout(b), v); err != nil {
			b.Fatal(err)
		}
	}
}
