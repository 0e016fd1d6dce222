package plugin

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider/plugin/plugintest"
)

func TestHealthChecksTellWhoAnswers(t *testing.T) {
	first, second := plugintest.Dir(t), plugintest.Dir(t)
	stop := plugintest.Serve(t, first, "comes-and-goes", answering("x"))
	f := newFinder(t, first, filepath.Join(first, "absent"), second)
	for _, name := range []string{"no socket", "dead.sock", "bad name.sock"} {
		if err := os.WriteFile(filepath.Join(second, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := f.Names(), []string{"comes-and-goes", "dead"}; !slices.Equal(got, want) {
		t.Fatalf("found %q, want %q", got, want)
	}

	var mu sync.Mutex
	answers := map[string]bool{}
	ctx, cancel := context.WithCancel(t.Context())
	var checking sync.WaitGroup
	checking.Go(func() {
		f.CheckHealth(ctx, 20*time.Millisecond, func(name string, err error) {
			mu.Lock()
			defer mu.Unlock()
			answers[name] = err == nil
		})
	})
	defer checking.Wait()
	defer cancel()
	await := func(name string, want bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			mu.Lock()
			got, known := answers[name]
			mu.Unlock()
			if known && got == want {
				return
			}
		}
		t.Fatalf("it was not reported that %q answers: %v", name, want)
	}
	await("comes-and-goes", true)
	await("dead", false)
	stop()
	await("comes-and-goes", false)
	plugintest.Serve(t, second, "later", answering("x"))
	await("later", true)
	plugintest.Serve(t, second, "comes-and-goes", answering("x"))
	await("comes-and-goes", true)
}
