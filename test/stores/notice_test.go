package stores

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

// freeAddress is one that nobody listens on just now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// A webhook tells of a change: volumes whose class leaves the interval to notices
// have it at once. What nobody has signed does nothing.
func TestANoticeReachesEveryVolume(t *testing.T) {
	w := newWorld(t)
	must(t, w.Policy("app", readAll), w.EnableKV2("secret"))
	put(t, w, "secret/data/a", map[string]any{"data": map[string]any{"v": "value 0"}})
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	keys := filepath.Join(t.TempDir(), "keys")
	must(t, os.WriteFile(keys, []byte("whsec_"+base64.StdEncoding.EncodeToString(key)+"\n"), 0o600))
	address := freeAddress(t)
	w.node = harness.Start(t, harness.Options{Arguments: append(w.arguments(), "--webhook-addr="+address, "--webhook-keys="+keys)})
	for name, path := range map[string]string{"told": "secret/data/a", "other": "secret/data/b"} {
		w.node.AddClass(t, name, "vault", map[string]string{"roleName": "app", "changeNotices": "true", "objects": "- {objectName: a, secretPath: " + path + ", secretKey: v}"})
	}
	const count = 200
	var volumes []standalone.Volume
	for i := range count {
		v := w.volume(t, fmt.Sprint("told-", i), "told")
		w.publish(t, v)
		volumes = append(volumes, v)
	}
	post := func(body, signature, id string) int {
		t.Helper()
		at := fmt.Sprint(time.Now().Unix())
		if signature == "" {
			mac := hmac.New(sha256.New, key)
			_, _ = io.WriteString(mac, id+"."+at+"."+body)
			signature = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/webhook", strings.NewReader(body))
		must(t, err)
		for name, value := range map[string]string{"Content-Type": "application/json", "webhook-id": id, "webhook-timestamp": at, "webhook-signature": signature} {
			r.Header.Set(name, value)
		}
		response, err := http.DefaultClient.Do(r)
		must(t, err)
		defer response.Body.Close()
		return response.StatusCode
	}
	const notice = `{"provider": "vault", "object": "secret/a"}`
	reads := w.asked(t, "read secret/")
	if status := post(notice, "v1,"+base64.StdEncoding.EncodeToString(make([]byte, 32)), "forged"); status != http.StatusUnauthorized {
		t.Errorf("what nobody has signed is answered with %d", status)
	}
	if status := post(`{"provider": "vault", "object": "secret/c"}`, "", "of-others"); status != http.StatusNoContent {
		t.Errorf("a notice for nobody is answered with %d", status)
	}
	var took []time.Duration
	const rounds = 5
	for round := 1; round <= rounds; round++ {
		value := fmt.Sprint("value ", round)
		put(t, w, "secret/data/a", map[string]any{"data": map[string]any{"v": value}})
		if round == 1 && w.asked(t, "read secret/") > reads+2 { // the first watch, of which there is none, and a shared answer
			t.Error("the store was asked without a notice")
		}
		began := time.Now()
		if status := post(notice, "", fmt.Sprint("id-", round)); status != http.StatusNoContent {
			t.Fatalf("a notice is answered with %d", status)
		}
		seen := map[string]bool{}
		for len(seen) < count {
			for _, v := range volumes {
				if !seen[v.Pod] && w.files(t, v)["a"] == value {
					seen[v.Pod] = true
					took = append(took, time.Since(began))
				}
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("a minute after the notice %d of %d volumes have it\n%s", len(seen), count, w.node.Log.Bytes())
			}
		}
	}
	slices.Sort(took)
	t.Logf("%d volumes, %d changes: from the notice to the file %v at p50, %v at p99, %v at most", count, rounds, took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
}
