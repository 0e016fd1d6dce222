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
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/test/harness"
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
	asked           time.Time // when it asked first to be left alone for a second
	early           int       // requests that came in that second, though not at once
	down            bool      // no request is answered
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
		l.mu.Lock()
		down := l.down
		if down {
			l.refused++
		}
		l.mu.Unlock()
		if down {
			panic(http.ErrAbortHandler)
		}
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
	paused := now.Sub(l.asked)
	if paused > time.Second/4 && paused < time.Second {
		l.early++
	}
	if l.tokens < 1 {
		l.refused++
		if paused >= time.Second {
			l.asked = now
		}
		return false
	}
	l.tokens--
	l.passed++
	return true
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
	n := harness.Number(t, "CSI_SECRETS_STORM", 60)
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
	if server.passed > 2*n { // a pod logs in and reads
		t.Errorf("%d pods made %d requests that were answered", n, server.passed)
	}
	if server.refused > server.passed/2 || server.early > server.passed/4 {
		t.Errorf("of %d requests %d were refused, %d of them while the store was to be left alone", server.passed+server.refused, server.refused, server.early)
	}
}

// A store that is away for a while under many volumes, and then comes back: no
// file changes, it is asked little, and all volumes are fresh again soon.
func TestAStoreThatComesBackIsNotOverrun(t *testing.T) {
	w := newWorld(t)
	must(t, w.Policy("app", readAll), w.EnableKV2("secret"))
	put(t, w, "secret/data/a", map[string]any{"data": map[string]any{"v": "before"}})
	server := limit(t, w, 1000)
	w.start(t)
	down, interval := outage(t), "5s"
	if down > time.Minute {
		interval = "2m" // the default
	}
	w.node.AddClass(t, "kv", "vault", map[string]string{
		"roleName": "app", "vaultAddress": server.URL, "vaultSkipTLSVerify": "true", "rotationInterval": interval,
		"objects": "- {objectName: a, secretPath: secret/data/a, secretKey: v}",
	})
	const count = 200
	var volumes []standalone.Volume
	for i := range count {
		v := w.volume(t, fmt.Sprint("kv-", i), "kv")
		w.publish(t, v)
		volumes = append(volumes, v)
	}
	put(t, w, "secret/data/a", map[string]any{"data": map[string]any{"v": "after"}})
	server.mu.Lock()
	server.down, server.refused = true, 0
	server.mu.Unlock()
	time.Sleep(down)
	server.mu.Lock()
	asked := server.refused
	server.mu.Unlock()
	for _, v := range volumes {
		// A refresh may have been on its way when the store went.
		if value := w.files(t, v)["a"]; value != "before" && value != "after" {
			t.Errorf("while the store is away a volume has %q", value)
		}
	}
	server.mu.Lock()
	server.down, server.passed = false, 0
	server.mu.Unlock()
	back := time.Now()
	for _, v := range volumes {
		for w.files(t, v)["a"] != "after" {
			if time.Since(back) > 2*time.Minute {
				t.Fatal("a volume is not fresh two minutes after the store came back")
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	took := time.Since(back)
	server.mu.Lock()
	defer server.mu.Unlock()
	t.Logf("%d volumes: %d requests in %v without a store; all fresh %v after it came back, by %d requests", count, asked, down, took.Round(10*time.Millisecond), server.passed)
	if asked > int(down/time.Second)+count/2 { // each volume alone would have asked several times
		t.Errorf("a store that is away was asked %d times in %v", asked, down)
	}
}

// outage is how long the store is away: CSI_SECRETS_OUTAGE says more.
func outage(t *testing.T) time.Duration {
	text := os.Getenv("CSI_SECRETS_OUTAGE")
	if text == "" {
		return 30 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
