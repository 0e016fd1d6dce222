package stores

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/test/harness"
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

// An object is read as often as its own interval says, and when another has changed.
func TestAnObjectIsReadAsOftenAsItSays(t *testing.T) {
	w := newWorld(t)
	must(t, w.Policy("app", readAll), w.EnableKV2("secret"))
	write := func(name, value string) {
		put(t, w, "secret/data/"+name, map[string]any{"data": map[string]any{"v": value}})
	}
	write("often", "first")
	write("seldom", "first")
	w.start(t)
	const interval, volumes = 5 * time.Second, 10
	w.node.AddClass(t, "kv", "vault", map[string]string{"roleName": "app", "rotationInterval": "1h", "objects": fmt.Sprintf(`
- {objectName: often, secretPath: secret/data/often, secretKey: v, rotationInterval: %v}
- {objectName: seldom, secretPath: secret/data/seldom, secretKey: v}
`, interval)})
	reads := func(name string) int {
		return w.asked(t, "read secret/data/"+name) + w.asked(t, "read secret/metadata/"+name)
	}
	for i := range volumes {
		w.publish(t, w.volume(t, fmt.Sprint("kv-", i), "kv"))
	}
	// All is asked for once more to learn which files are of what.
	begun := reads("often")
	harness.Eventually(t, "some rounds have passed", func() bool { return reads("often") >= begun+4 })
	often, seldom := reads("often"), reads("seldom")
	time.Sleep(3 * interval)
	if n := reads("seldom") - seldom; n > 0 {
		t.Errorf("what is to be read every hour was read %d times in %v", n, 3*interval)
	}
	if n := reads("often") - often; n == 0 {
		t.Error("what is to be read often was not")
	}
	write("seldom", "second")
	write("often", "second")
	for i := range volumes {
		v := w.volume(t, fmt.Sprint("kv-", i), "kv")
		harness.Eventually(t, "a volume has what has changed", func() bool {
			files := w.files(t, v)
			if files["often"] != files["seldom"] {
				t.Fatalf("volume %d has files of two times: %v", i, files)
			}
			return files["often"] == "second"
		})
	}
}
