package stores

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-secrets/csi-secrets/test/harness"
)

// A pod whose identity was given the same answer before starts while its store is
// away, also after a restart of the driver; another does not, and nobody reads
// what is on the disk.
func TestAPodStartsWithWhatIsSealedWhileItsStoreIsAway(t *testing.T) {
	w := newWorld(t)
	must(t, w.Policy("app", readAll), w.EnableKV2("secret"))
	const canary = "canary-of-the-sealed-cache"
	put(t, w, "secret/data/a", map[string]any{"data": map[string]any{"v": canary}})
	server := limit(t, w, 1000)
	dir, key := t.TempDir(), filepath.Join(t.TempDir(), "key")
	secretKey := make([]byte, 32)
	_, _ = rand.Read(secretKey)
	must(t, os.WriteFile(key, secretKey, 0o400))
	sealed := []string{"--sealed-cache-dir=" + dir, "--sealed-cache-key=" + key}
	w.node = harness.Start(t, harness.Options{Arguments: append(w.arguments(), sealed...)})
	for name, path := range map[string]string{"kept": "secret/data/a", "never": "secret/data/b"} {
		parameters := map[string]string{"roleName": "app", "vaultAddress": server.URL, "vaultSkipTLSVerify": "true", "rotationInterval": "5s", "objects": "- {objectName: a, secretPath: " + path + ", secretKey: v}"}
		if name == "kept" {
			parameters["sealedCache"] = "1h"
		}
		w.node.AddClass(t, name, "vault", parameters)
	}
	first := w.volume(t, "first", "kept")
	w.publish(t, first)
	entries := func() []string {
		found, err := filepath.Glob(filepath.Join(dir, "*"))
		must(t, err)
		return found
	}
	harness.Eventually(t, "an answer is kept", func() bool { return len(entries()) > 0 }) // of the first refresh: the driver has learned then
	for _, name := range entries() {
		text, err := os.ReadFile(name)
		must(t, err)
		if bytes.Contains(text, []byte(canary)) {
			t.Error("a value is on the disk")
		}
	}
	down := func(is bool) {
		server.mu.Lock()
		defer server.mu.Unlock()
		server.down = is
	}
	down(true)
	w.publish(t, w.volume(t, "second", "kept"))
	w.node.Kill()
	w.again(t, sealed...)
	third := w.volume(t, "third", "kept")
	w.publish(t, third)
	if got := w.files(t, third)["a"]; got != canary {
		t.Errorf("the pod reads %q", got)
	}
	if err := w.node.Publish(harness.Timeout(t), w.volume(t, "fourth", "never")); err == nil {
		t.Error("a pod of a class that keeps nothing started")
	}
	if log := w.node.Log.Bytes(); !bytes.Contains(log, []byte("A pod starts with a sealed answer")) || bytes.Contains(log, []byte(canary)) {
		t.Errorf("the log is\n%s", log)
	}
	put(t, w, "secret/data/a", map[string]any{"data": map[string]any{"v": "new"}})
	down(false)
	harness.Eventually(t, "the volume is fresh", func() bool { return w.files(t, third)["a"] == "new" })
}
