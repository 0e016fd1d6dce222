package stores

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
)

// limiter is a server that passes so many requests a second on, and answers 429
// to all others.
type limiter struct {
	*httptest.Server
	rate int

	mu              sync.Mutex
	tokens          float64
	last            time.Time
	passed, refused int
	paused          time.Time // until when it asked to be left alone
	early           int       // requests that came half a pause before its end
}

func limit(t testing.TB, w *world, rate int) *limiter {
	t.Helper()
	target, err := url.Parse(w.Address)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.CA())
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 64}
	l := &limiter{rate: rate, tokens: float64(rate), last: time.Now()}
	l.Server = httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !l.allow() {
			rw.Header().Set("Retry-After", "1")
			rw.WriteHeader(http.StatusTooManyRequests)
			return
		}
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(l.Close)
	return l
}

func (l *limiter) allow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.tokens = min(float64(l.rate), l.tokens+now.Sub(l.last).Seconds()*float64(l.rate))
	l.last = now
	if now.Before(l.paused.Add(-time.Second / 2)) {
		l.early++
	}
	if l.tokens < 1 {
		l.refused++
		l.paused = now.Add(time.Second)
		return false
	}
	l.tokens--
	l.passed++
	return true
}

// pods is how many start at once: CSI_SECRETS_STORM says more.
func pods(t *testing.T) int {
	text := os.Getenv("CSI_SECRETS_STORM")
	if text == "" {
		return 60
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Pods that each log in for themselves start all at once, at a store that takes
// ten requests a second. None of them fails, and kubelet need not come again.
func TestPodsThatStartAtOnceGetByAStoreThatThrottles(t *testing.T) {
	w := newWorld(t)
	must(t, w.Policy("app", readAll), w.EnableKV2("secret"))
	put(t, w, "secret/data/a", map[string]any{"data": map[string]any{"v": "x"}})
	server := limit(t, w, 10)
	w.start(t)
	w.node.AddClass(t, "storm", "vault", map[string]string{
		"roleName": "app", "vaultAuthMountPath": "jwt", "vaultAddress": server.URL, "vaultSkipTLSVerify": "true", "rotationInterval": "never",
		"objects": "- {objectName: a, secretPath: secret/data/a, secretKey: v}",
	})
	w.publish(t, w.volume(t, "first", "storm"))
	time.Sleep(2 * time.Second) // the bucket is full again
	server.mu.Lock()
	server.passed, server.refused, server.early = 0, 0, 0
	server.mu.Unlock()
	var all sync.WaitGroup
	began := time.Now()
	n := pods(t)
	for i := range n {
		v := w.volume(t, fmt.Sprint("storm-", i), "storm")
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // as kubelet has it
			defer cancel()
			if err := w.node.Publish(ctx, v); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	server.mu.Lock()
	defer server.mu.Unlock()
	least := time.Duration(float64(server.passed-server.rate) / float64(server.rate) * float64(time.Second))
	t.Logf("%d pods: %d requests, which the store takes in %v; it took %v (%.2f times), with %d refused and %d early in a pause", n, server.passed, least, took.Round(10*time.Millisecond), took.Seconds()/least.Seconds(), server.refused, server.early)
	if server.refused == 0 {
		t.Error("the store never throttled")
	}
	if server.early > server.passed/4 { // fetches that were under way go on
		t.Errorf("of %d requests, %d came while the store was to be left alone", server.passed, server.early)
	}
}
