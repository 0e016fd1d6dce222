package class

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// newTestCluster returns a Cluster whose watch is the test.
func newTestCluster() (*Cluster, kube.Mirror[*SecretProviderClass]) {
	c := &Cluster{classes: map[Ref]*SecretProviderClass{}, news: make(chan struct{})}
	return c, c.store()
}

// object is a class as an API server sends it.
func object(namespace, name, path string) *SecretProviderClass {
	return &SecretProviderClass{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: "u",
			Annotations:   map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "long"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
		},
		Spec: Spec{Provider: "local", Parameters: map[string]string{"path": path}},
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAClassOfTheClusterIsFound(t *testing.T) {
	c, store := newTestCluster()
	must(t, store.Replace([]any{object("shop", "db", "/a"), object("other", "db", "/b")}, "1"))
	got, err := c.Get(t.Context(), Ref{"shop", "db"})
	if err != nil || got.Spec.Parameters["path"] != "/a" {
		t.Fatalf("got %v, %v", got, err)
	}
	if got.Annotations != nil || got.ManagedFields != nil {
		t.Error("what the driver does not need stays in memory")
	}
	must(t, store.Update(object("shop", "db", "/c")))
	if got, err := c.Get(t.Context(), Ref{"shop", "db"}); err != nil || got.Spec.Parameters["path"] != "/c" {
		t.Errorf("after a change: %v, %v", got, err)
	}
	incomplete := object("shop", "half", "/a")
	incomplete.Spec.Provider = ""
	must(t, store.Add(incomplete))
	if _, err := c.Get(t.Context(), Ref{"shop", "half"}); provider.KindOf(err) != provider.Invalid || !strings.Contains(err.Error(), "provider not set in shop/half") {
		t.Errorf("of a class without a provider: %v", err)
	}
}

// A class that is created together with its pod may be told a moment later.
func TestAClassThatComesLateIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, store := newTestCluster()
		must(t, store.Replace(nil, "1"))
		go func() {
			time.Sleep(newcomer / 4)
			_ = store.Add(object("shop", "another", "/a"))
			time.Sleep(newcomer / 4)
			_ = store.Add(object("shop", "db", "/a"))
		}()
		began := time.Now()
		if _, err := c.Get(t.Context(), Ref{"shop", "db"}); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != newcomer/2 {
			t.Errorf("it took %v", took)
		}
		_, err := c.Get(t.Context(), Ref{"shop", "absent"})
		if provider.KindOf(err) != provider.NotFound || !strings.Contains(err.Error(), `failed to get secretproviderclass shop/absent, error: secretproviderclasses.secrets-store.csi.x-k8s.io "absent" not found`) {
			t.Errorf("of a class that does not exist: %v", err)
		}
	})
}

// Before the first answer of the API server nothing is said to be missing.
func TestWithoutAnAnswerNoClassIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, store := newTestCluster()
		c.failure = errors.New("connection refused")
		_, err := c.Get(t.Context(), Ref{"shop", "db"})
		if provider.KindOf(err) != provider.Unavailable || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if _, err := c.Get(ctx, Ref{"shop", "db"}); provider.KindOf(err) != provider.Unavailable || time.Since(began) != time.Second {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
		go func() {
			time.Sleep(time.Second)
			_ = store.Replace([]any{object("shop", "db", "/a")}, "1")
		}()
		if _, err := c.Get(t.Context(), Ref{"shop", "db"}); err != nil {
			t.Error(err)
		}
	})
}

func TestAnErrorOfTheAPIServerIsAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newTestCluster()
		answered := make(chan struct{})
		go func() { defer close(answered); c.Answered(t.Context()) }()
		fail := func(err error) bool {
			c.mu.Lock()
			c.failure = err
			c.tell()
			c.mu.Unlock()
			synctest.Wait()
			select {
			case <-answered:
				return true
			default:
				return false
			}
		}
		if fail(errors.New("connection refused")) {
			t.Error("a connection that is refused was taken for an answer")
		}
		if !fail(apierrors.NewNotFound(schema.GroupResource{Resource: "secretproviderclasses"}, "")) {
			t.Error("an answer was not taken for one")
		}
	})
}

// A driver that starts while the API server is away knows what the one before it
// knew; what the API server says counts as soon as it says something.
func TestWhatAnEarlierDriverKnewIsServed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "classes.json")
	synctest.Test(t, func(t *testing.T) {
		c, store := newTestCluster()
		c.snapshot = &snapshot{file}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); c.keep(ctx) }()
		must(t, store.Replace([]any{object("shop", "db", "/a"), object("shop", "gone", "/a")}, "1"))
		time.Sleep(2 * keepEvery)
		must(t, store.Update(object("shop", "db", "/b")))
		must(t, store.Delete(object("shop", "gone", "/a")))
		time.Sleep(2 * keepEvery)
		cancel()
		<-ended

		next, store := newTestCluster()
		next.snapshot = c.snapshot
		var err error
		next.earlier, err = next.snapshot.read()
		must(t, err)
		began := time.Now()
		got, err := next.Get(t.Context(), Ref{"shop", "db"})
		if err != nil || got.Spec.Parameters["path"] != "/b" || time.Since(began) != stale {
			t.Errorf("after %v: %v, %v", time.Since(began), got, err)
		}
		if _, err := next.Get(t.Context(), Ref{"shop", "gone"}); provider.KindOf(err) != provider.Unavailable {
			t.Errorf("of a class that is unknown: %v", err)
		}
		go func() {
			time.Sleep(stale / 2)
			_ = store.Replace([]any{object("shop", "db", "/c")}, "2")
		}()
		if got, err := next.Get(t.Context(), Ref{"shop", "db"}); err != nil || got.Spec.Parameters["path"] != "/c" {
			t.Errorf("once the API server answers: %v, %v", got, err)
		}
		must(t, store.Replace(nil, "3"))
		if _, err := next.Get(t.Context(), Ref{"shop", "db"}); provider.KindOf(err) != provider.NotFound {
			t.Errorf("of a class that was deleted: %v", err)
		}
	})
	must(t, os.WriteFile(file, []byte("{half"), 0o600))
	if _, err := (&snapshot{file}).read(); err == nil {
		t.Error("a broken file is no error")
	}
}

func TestWatchersHearOfChangesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, store := newTestCluster()
		var mu sync.Mutex
		var heard []string
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- c.Watch(ctx, func(ref Ref) {
				mu.Lock()
				defer mu.Unlock()
				heard = append(heard, ref.String())
			})
		}()
		synctest.Wait()
		expect := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(heard)
			if !slices.Equal(heard, want) {
				t.Errorf("%s: heard of %q, want %q", what, heard, want)
			}
			heard = nil
		}
		must(t, store.Replace([]any{object("a", "x", "/1"), object("a", "y", "/1")}, "1"))
		expect("the first list", "a/x", "a/y")
		must(t, store.Update(object("a", "x", "/1")))
		expect("an update of something else")
		must(t, store.Update(object("a", "x", "/2")))
		expect("a change", "a/x")
		for _, now := range []string{"1", "1", "2"} {
			asked := object("a", "x", "/2")
			asked.Annotations = map[string]string{RefreshAnnotation: now, "other": fmt.Sprint(time.Now())}
			must(t, store.Update(asked))
			time.Sleep(time.Second)
		}
		expect("two wishes for a refresh", "a/x", "a/x")
		must(t, store.Replace([]any{object("a", "x", "/2"), object("a", "z", "/1")}, "2"))
		expect("a list after a lost watch", "a/x", "a/y", "a/z")
		must(t, store.Delete(object("a", "z", "/1")))
		expect("a deletion", "a/z")

		// After a restart, what an earlier driver knew is no news.
		c.mu.Lock()
		c.classes, c.synced = map[Ref]*SecretProviderClass{}, false
		c.earlier = map[Ref]*SecretProviderClass{{"a", "same"}: object("a", "same", "/1"), {"a", "changed"}: object("a", "changed", "/1")}
		c.mu.Unlock()
		must(t, store.Replace([]any{object("a", "same", "/1"), object("a", "changed", "/2"), object("a", "new", "/1")}, "3"))
		expect("the first list after a restart", "a/changed", "a/new")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestAllClassesOfTheClusterAreListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, store := newTestCluster()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.List(ctx); provider.KindOf(err) != provider.Unavailable {
			t.Errorf("before the first answer: %v", err)
		}
		go func() {
			time.Sleep(time.Second)
			must(t, store.Replace([]any{object("shop", "db", "/a"), object("other", "db", "/b")}, "1"))
		}()
		if all, err := c.List(t.Context()); err != nil || len(all) != 2 {
			t.Errorf("got %v, %v", all, err)
		}
	})
}
