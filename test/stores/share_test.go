package stores

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// A hundred volumes of one identity ask a store as often as one would; another
// identity asks for itself, and is refused what it may not have.
func TestVolumesOfOneIdentityAskAsOne(t *testing.T) {
	w := newWorld(t)
	must(t, w.Policy("app", readAll), w.EnableKV2("secret"))
	for _, name := range []string{"a", "b"} {
		put(t, w, "secret/data/"+name, map[string]any{"data": map[string]any{"v": "first"}})
	}
	w.start(t)
	const interval = 5 * time.Second
	w.node.AddClass(t, "kv", "vault", map[string]string{"roleName": "app", "rotationInterval": interval.String(), "objects": `
- {objectName: a, secretPath: secret/data/a, secretKey: v}
- {objectName: b, secretPath: secret/data/b, secretKey: v}
`})
	const volumes = 100
	w.publish(t, w.volume(t, "kv-0", "kv")) // it finds out that the paths bring no leases
	var all sync.WaitGroup
	for i := 1; i < volumes; i++ {
		v := w.volume(t, fmt.Sprint("kv-", i), "kv")
		all.Go(func() { w.publish(t, v) })
	}
	all.Wait()
	logins, began, before := w.asked(t, "update auth/kubernetes/login"), time.Now(), w.asked(t, "read secret/")
	values := w.asked(t, "read secret/data/")
	time.Sleep(4 * interval)
	reads, rounds := w.asked(t, "read secret/")-before, int(time.Since(began)/(interval*9/10))+1
	t.Logf("%d volumes of 2 objects: %d reads in %v, an interval of %v", volumes, reads, time.Since(began).Round(time.Second), interval)
	if reads == 0 || reads > 2*rounds {
		t.Errorf("%d volumes made %d reads in at most %d rounds of 2", volumes, reads, rounds)
	}
	if logins > 2 {
		t.Errorf("they logged in %d times", logins)
	}
	if values = w.asked(t, "read secret/data/") - values; values > 0 {
		t.Errorf("values were read %d times, though metadata tells that none has changed", values)
	}
	// A change reaches all of them in one round.
	put(t, w, "secret/data/a", map[string]any{"data": map[string]any{"v": "second"}})
	for i := range volumes {
		v := w.volume(t, fmt.Sprint("kv-", i), "kv")
		for deadline := time.Now().Add(30 * time.Second); w.files(t, v)["a"] != "second"; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("volume %d has %q", i, w.files(t, v)["a"])
			}
		}
	}
}
