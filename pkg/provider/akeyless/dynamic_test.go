package akeyless

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const oneDynamic = "- {secretPath: /db/dynamic, fileName: creds.json}"

// inTime runs a test with a clock of its own.
func inTime(t *testing.T, test func(t *testing.T, g *gateway)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newGateway(t)) })
}

// idOf returns the id of the credentials in a result.
func idOf(t *testing.T, r provider.Result) string {
	t.Helper()
	if len(r.Files) == 0 {
		t.Fatal("there is no file")
	}
	_, rest, _ := strings.Cut(string(r.Files[0].Contents.Reveal()), `"id":"`)
	id, _, _ := strings.Cut(rest, `"`)
	return id
}

func TestCredentialsLastThroughRefreshes(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		v := shop(t, g, oneDynamic)
		first := v.mount()
		began := time.Now()
		if len(v.kept) < 2 || strings.Contains(v.kept[0], canary) || !strings.Contains(v.kept[0], "t-canary-token-1") || !strings.Contains(v.kept[1], canary) {
			t.Errorf("kept %q", v.kept)
		}
		if due := first.RefreshAt.Sub(began); due < 36*minute || due > 40*minute {
			t.Errorf("it is due after %v", due)
		}
		if ends := first.ValidUntil.Sub(began); ends != 60*minute {
			t.Errorf("it ends after %v", ends)
		}
		for range 17 {
			time.Sleep(2 * minute)
			again := v.mount()
			if shown(again) != shown(first) || !again.RefreshAt.Equal(first.RefreshAt) || !again.ValidUntil.Equal(first.ValidUntil) {
				t.Fatalf("after %v: %s", time.Since(began), shown(again))
			}
		}
		if g.count(opDynamic) != 1 || g.count(opDescribe) != 1 {
			t.Errorf("the requests are %v", g.asked)
		}
	})
}

func TestCredentialsAreReplacedInTime(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		v := shop(t, g, oneDynamic)
		first := v.mount()
		time.Sleep(time.Until(first.RefreshAt))
		// What was fetched may not be mounted: the driver may be killed in between.
		before := v.req.Mounted
		second := v.mount()
		v.req.Mounted = before
		if idOf(t, first) != "tmp.1" || idOf(t, second) != "tmp.2" || second.Versions[0].Version == first.Versions[0].Version {
			t.Fatalf("first %s, then %s", shown(first), shown(second))
		}
		for range 5 {
			time.Sleep(minute)
			if again, err := v.fetch(); err != nil || idOf(t, again) != "tmp.2" || g.alive() != "tmp.1 tmp.2" {
				t.Fatalf("while the volume holds the first: %v, alive %q", err, g.alive())
			}
		}
		// Now it is mounted. The overlap counts from its last delivery.
		mounted := v.mount()
		if wait := time.Until(mounted.RefreshAt); wait != maxOverlap {
			t.Errorf("it is asked again after %v", wait)
		}
		time.Sleep(maxOverlap - time.Second)
		if r := v.mount(); g.alive() != "tmp.1 tmp.2" || time.Until(r.RefreshAt) != time.Second {
			t.Errorf("before the overlap has passed: alive %q, again after %v", g.alive(), time.Until(r.RefreshAt))
		}
		time.Sleep(time.Second)
		if r := v.mount(); g.alive() != "tmp.2" || time.Until(r.RefreshAt) < 20*minute || idOf(t, r) != "tmp.2" {
			t.Errorf("after it: alive %q, again after %v", g.alive(), time.Until(r.RefreshAt))
		}
		if last := v.kept[len(v.kept)-1]; strings.Contains(last, "tmp.1") || !strings.Contains(last, "tmp.2") {
			t.Errorf("kept %s", last)
		}
		asks, _ := v.p.Store(v.req.Parameters)
		if at, ok := v.p.StoreOf(v.req.State); !ok || at != asks || at == "" {
			t.Errorf("it is to be given back to %q, want %q", at, asks)
		}
		if err := v.p.Release(t.Context(), v.req.State); err != nil || g.alive() != "" {
			t.Errorf("Release: %v, alive %q", err, g.alive())
		}
	})
}

func TestCredentialsOfAShortLife(t *testing.T) {
	for minutes, want := range map[any][2]time.Duration{
		"3":        {78 * time.Second, 90 * time.Second}, // half of it
		float64(5): {160 * time.Second, 180 * time.Second},
		"0.5":      {13 * time.Second, 15 * time.Second},
		"1440":     {14*time.Hour + 24*minute, 16 * time.Hour},
		"":         {18 * minute, 20 * minute}, // what the item says
		"-1":       {18 * minute, 20 * minute},
		"1e300":    {18 * minute, 20 * minute},
		"NaN":      {18 * minute, 20 * minute},
	} {
		inTime(t, func(t *testing.T, g *gateway) {
			g.dynamics["/db/dynamic"]["ttl_in_minutes"] = minutes
			r := shop(t, g, oneDynamic).mount()
			if due := time.Until(r.RefreshAt); due < want[0] || due > want[1] {
				t.Errorf("%v minutes: due after %v, want %v", minutes, due, want)
			}
		})
	}
	inTime(t, func(t *testing.T, g *gateway) {
		delete(g.dynamics["/db/dynamic"], "ttl_in_minutes")
		if r := shop(t, g, oneDynamic[:len(oneDynamic)-1]+", secretType: dynamic}").mount(); time.Until(r.ValidUntil) != defaultTTL {
			t.Errorf("what says nothing ends after %v", time.Until(r.ValidUntil))
		}
	})
}

func TestTheOverlapOfCredentialsOfAShortLife(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		g.dynamics["/db/dynamic"]["ttl_in_minutes"] = "0.5"
		v := shop(t, g, oneDynamic)
		time.Sleep(time.Until(v.mount().RefreshAt))
		v.mount()
		if r := v.mount(); time.Until(r.RefreshAt) != 10*time.Second || g.alive() != "tmp.1 tmp.2" {
			t.Errorf("again after %v, alive %q", time.Until(r.RefreshAt), g.alive())
		}
		time.Sleep(10 * time.Second)
		if v.mount(); g.alive() != "tmp.2" {
			t.Errorf("alive %q", g.alive())
		}
	})
}

func TestARestartLosesNoCredentials(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		v := shop(t, g, oneDynamic)
		first := v.mount()
		restarted := shop(t, g, oneDynamic)
		restarted.req.State, restarted.req.Mounted = v.req.State, v.req.Mounted
		restarted.req.Tokens = nil // until kubelet calls
		if again := restarted.mount(); shown(again) != shown(first) {
			t.Errorf("got %s, want %s", shown(again), shown(first))
		}
		time.Sleep(time.Until(first.RefreshAt))
		if _, err := restarted.fetch(); !errors.Is(err, provider.ErrNoCredentials) {
			t.Errorf("when they are due: %v", err)
		}
		// Killed before the gateway answered: nothing of that is known.
		restarted.req.State = secret.FromString(v.kept[0])
		restarted.req.Tokens = v.req.Tokens
		if r := restarted.mount(); idOf(t, r) != "tmp.2" {
			t.Errorf("got %s", shown(r))
		}
		for _, broken := range []string{"{", "[null]", `[{"value":{}}]`, "[{}]", "5"} {
			restarted.req.State = secret.FromString(broken)
			if _, err := restarted.fetch(); err != nil {
				t.Errorf("a state of %s: %v", broken, err)
			}
			if err := restarted.p.Release(t.Context(), secret.FromString(broken)); err != nil {
				t.Errorf("the release of %s: %v", broken, err)
			}
		}
	})
}

func TestNothingIsMadeThatCannotBeKept(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		full := errors.New("there is no space left")
		v := shop(t, g, oneDynamic)
		v.keeps = func() error { return full }
		if _, err := v.fetch(); !errors.Is(err, full) || g.count(opDynamic) != 0 {
			t.Errorf("got %v after %v", err, g.asked)
		}
		calls := 0
		v.keeps = func() error {
			if calls++; calls == 2 {
				return full
			}
			return nil
		}
		if _, err := v.fetch(); !errors.Is(err, full) || g.count(opDynamic) != 1 || g.alive() != "" {
			t.Errorf("got %v, alive %q after %v", err, g.alive(), g.asked)
		}
		if !v.req.State.IsEmpty() {
			t.Errorf("%s is kept", v.req.State.Reveal())
		}
		// Where nothing can be kept at all, somebody wants to see them once.
		v = shop(t, g, oneDynamic)
		v.req.Keep = nil
		if r, err := v.fetch(); err != nil || idOf(t, r) != "tmp.2" {
			t.Errorf("got %s, %v", shown(r), err)
		}
	})
}

func TestOneFailureLosesNoOthersCredentials(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		v := shop(t, g, "- {secretPath: /db/dynamic}\n- {secretPath: /db/dynamic2}")
		begun, failed := make(chan struct{}), make(chan struct{})
		g.before = func(op string, body map[string]any, w http.ResponseWriter) bool {
			if op != opDynamic {
				return false
			}
			if body["name"] == "/db/dynamic2" {
				<-begun
				defer close(failed)
				w.WriteHeader(http.StatusInternalServerError)
				_, _ = w.Write([]byte(`{"error":"the database is down"}`))
				return true
			}
			close(begun)
			<-failed
			synctest.Wait() // until the failure is known
			return false
		}
		_, err := v.fetch()
		wantError(t, err, provider.Unavailable, `object "/db/dynamic2": /get-dynamic-secret-value`, "the database is down")
		g.set(func() { g.before = nil })
		r := v.mount()
		if g.count(opDynamic) != 3 || g.alive() != "tmp.1 tmp.2" || idOf(t, r) != "tmp.1" {
			t.Errorf("alive %q after %v", g.alive(), g.asked)
		}
		// A file that cannot be made leaves them kept, for the next time.
		v = shop(t, g, oneDynamic[:len(oneDynamic)-1]+", extractJSONKey: none}")
		_, err = v.fetch()
		wantError(t, err, provider.NotFound, `"none"`)
		if r := v.with("objects", oneDynamic).mount(); idOf(t, r) != "tmp.3" {
			t.Errorf("got %s", shown(r))
		}
	})
}

func TestCredentialsThatNobodyNeedsAreDeleted(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		v := shop(t, g, oneDynamic+"\n- {secretPath: /db/dynamic2}\n- {secretPath: /db/user}")
		v.mount()
		late, cancel := context.WithCancel(t.Context())
		cancel()
		wantError(t, v.p.Release(late, v.req.State), provider.Unavailable, "there was no time left")
		// An object that the class no longer has.
		r := v.with("objects", oneDynamic+"\n- {secretPath: /db/user}").mount()
		if g.alive() != "tmp.1 tmp.2" || time.Until(r.RefreshAt) != maxOverlap {
			t.Errorf("while it is mounted: alive %q, again after %v", g.alive(), time.Until(r.RefreshAt))
		}
		time.Sleep(maxOverlap)
		if r = v.mount(); len(strings.Fields(g.alive())) != 1 {
			t.Errorf("alive %q", g.alive())
		}
		// Another way to log in is another right.
		v.with("akeylessAccessType", "jwt").mount()
		time.Sleep(maxOverlap)
		v.mount()
		if g.alive() != "tmp.3" {
			t.Errorf("alive %q", g.alive())
		}
		v.with("objects", "- {secretPath: /db/user}").mount()
		time.Sleep(maxOverlap)
		v.mount()
		if g.alive() != "" || !v.req.State.IsEmpty() {
			t.Errorf("alive %q, kept %q", g.alive(), v.req.State.Reveal())
		}
		kept := len(v.kept)
		v.mount()
		if len(v.kept) != kept {
			t.Error("nothing was kept again")
		}
	})
}

func TestDeletionsThatFail(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		v := shop(t, g, oneDynamic)
		time.Sleep(time.Until(v.mount().RefreshAt))
		v.mount()
		time.Sleep(maxOverlap)
		down := func(op string, _ map[string]any, w http.ResponseWriter) bool {
			if op == opRevoke {
				w.WriteHeader(http.StatusBadGateway)
				_, _ = fmt.Fprintf(w, `{"error":"cannot drop the user with %s"}`, canary)
			}
			return op == opRevoke
		}
		g.set(func() { g.before = down })
		if r := v.mount(); time.Until(r.RefreshAt) != retryRevoke || g.alive() != "tmp.1 tmp.2" {
			t.Errorf("again after %v, alive %q", time.Until(r.RefreshAt), g.alive())
		}
		wantError(t, v.p.Release(t.Context(), v.req.State), provider.Unavailable, `credentials of the dynamic secret "/db/dynamic": /dynamic-secret-tmp-creds-delete`, "502", "cannot drop the user with [redacted]")
		time.Sleep(retryRevoke)
		g.set(func() { g.before = nil })
		if v.mount(); g.alive() != "tmp.2" {
			t.Errorf("alive %q", g.alive())
		}
		// Where the role may not, they end by themselves.
		g.denied[opRevoke] = true
		if err := v.p.Release(t.Context(), v.req.State); err != nil || g.alive() != "tmp.2" {
			t.Errorf("Release: %v", err)
		}
		// What has ended needs nobody.
		g.set(func() { g.before = down; delete(g.denied, opRevoke) })
		time.Sleep(time.Hour)
		if err := v.p.Release(t.Context(), v.req.State); err != nil {
			t.Errorf("Release of what has ended: %v", err)
		}
	})
}

func TestAReleaseAfterTheLogin(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		v := shop(t, g, oneDynamic)
		v.mount()
		// The token that was kept is over: the login that was kept gives another.
		g.set(func() { clear(g.tokens) })
		restarted := shop(t, g, oneDynamic)
		if err := restarted.p.Release(t.Context(), v.req.State); err != nil || g.alive() != "" || g.logins != 2 {
			t.Errorf("Release: %v, alive %q, %d logins", err, g.alive(), g.logins)
		}
		// Twice is as good as once.
		if err := restarted.p.Release(t.Context(), v.req.State); err != nil {
			t.Error(err)
		}
		// The pod is gone, and its token is no good any more.
		v = shop(t, g, oneDynamic)
		v.mount()
		g.set(func() { clear(g.tokens); g.denied[opAuth] = true })
		if err := restarted.p.Release(t.Context(), v.req.State); err != nil || g.alive() != "tmp.2" {
			t.Errorf("Release: %v, alive %q", err, g.alive())
		}
		// The token that was kept is still good, though it was not used the last time.
		g.set(func() { delete(g.denied, opAuth) })
		v = shop(t, g, oneDynamic)
		v.mount()
		v.mount()
		g.set(func() { g.denied[opAuth] = true })
		if err := restarted.p.Release(t.Context(), v.req.State); err != nil || g.alive() != "tmp.2" {
			t.Errorf("Release: %v, alive %q", err, g.alive())
		}
		// A gateway that does not know the operation.
		v = shop(t, g, oneDynamic)
		g.set(func() { delete(g.denied, opAuth) })
		v.mount()
		g.set(func() {
			g.before = func(op string, _ map[string]any, w http.ResponseWriter) bool {
				if op == opRevoke {
					http.NotFound(w, nil)
				}
				return op == opRevoke
			}
		})
		if err := restarted.p.Release(t.Context(), v.req.State); err != nil || g.alive() != "tmp.2 tmp.4" {
			t.Errorf("Release: %v, alive %q", err, g.alive())
		}
		g.set(func() { g.before = nil })
		// A gateway that is away: it is tried again.
		away, cancel := context.WithCancel(t.Context())
		cancel()
		wantError(t, v.p.Release(away, v.req.State), provider.Unavailable, "does not answer")
		if err := v.p.Release(t.Context(), v.req.State); err != nil || g.alive() != "tmp.2" {
			t.Errorf("Release: %v, alive %q", err, g.alive())
		}
		if err := v.p.Release(t.Context(), secret.Value{}); err != nil {
			t.Errorf("Release of nothing: %v", err)
		}
	})
}

func TestCredentialsWithoutAnIDAreLeftAlone(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		g.dynamics["/db/dynamic"]["id"] = 5
		v := shop(t, g, oneDynamic)
		v.mount()
		if err := v.p.Release(t.Context(), v.req.State); err != nil || g.count(opRevoke) != 0 {
			t.Errorf("Release: %v, asked %v", err, g.asked)
		}
	})
}

func TestTheKeptLoginIsTheLatest(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		v := shop(t, g, oneDynamic+"\n- {secretPath: /db/user}")
		v.mount()
		time.Sleep(5 * minute)
		// kubelet brings another token, and the login is another.
		v.req.Tokens["akeyless"] = provider.Token{Value: secret.FromString(jwt("web-1", "akeyless") + "2")}
		v.mount()
		if last := v.kept[len(v.kept)-1]; g.logins != 2 || !strings.Contains(last, "t-canary-token-2") || strings.Contains(last, "t-canary-token-1") {
			t.Errorf("%d logins, kept %s", g.logins, last)
		}
	})
}

func TestALoginLastsAsLongAsItSays(t *testing.T) {
	inTime(t, func(t *testing.T, g *gateway) {
		v := shop(t, g, "- {secretPath: /db/user}")
		after := func(wait time.Duration, logins int) {
			t.Helper()
			time.Sleep(wait)
			v.mount()
			if g.logins != logins {
				t.Errorf("%d logins, want %d", g.logins, logins)
			}
		}
		after(0, 1)
		after(renewAfter-time.Second, 1)
		after(time.Second, 2)
		// A gateway that cannot log in now does not end what goes on.
		g.denied[opAuth] = true
		after(renewAfter, 2)
		g.denied[opAuth] = false
		g.expires = time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		after(0, 3)
		after(validFor-time.Second, 3)
		g.expires = time.Now().Add(2 * time.Hour).UTC().Format(time.RFC3339)
		g.denied[opAuth] = true
		after(40*minute, 3)
		time.Sleep(6 * minute)
		if _, err := v.fetch(); provider.KindOf(err) != provider.Denied {
			t.Errorf("a session was used that is over: %v", err)
		}
		g.denied[opAuth] = false
		after(0, 4)
		after(validFor-time.Second, 4)
		g.expires = "some time"
		after(time.Second, 5)
		after(renewAfter, 6)
	})
}

func TestTheStateShowsNothing(t *testing.T) {
	v := shop(t, newGateway(t), oneDynamic)
	v.mount()
	if text := fmt.Sprintf("%v %+v %#v", v.req.State, v.req.State, v.req.State); strings.Contains(text, "canary") {
		t.Error(text)
	}
}

func FuzzState(f *testing.F) {
	v := shop(f, newGateway(f), oneDynamic)
	v.mount()
	f.Add([]byte(v.kept[1]))
	f.Add([]byte(`[{"value":{},"id":"x","ends":"2999-01-01T00:00:00Z","access":{"gateway":"https://x","login":{"uid-token":"u-1"}}}]`))
	f.Add([]byte(`[null,{"value":null},{"value":5,"access":{"login":{"k8s-service-account-token":"!","jwt":"a.b.c"}}}]`))
	f.Fuzz(func(t *testing.T, state []byte) {
		p := New()
		l := leases{all: loadIssued(secret.New(state)), some: true, keep: func(secret.Value) error { return nil }}
		for _, c := range l.all {
			if s, err := p.open(c.Access); err == nil {
				s.close()
			}
			if l.current(c.Access, c.Path) != nil && len(c.Value) == 0 {
				t.Error("what is not finished is used")
			}
		}
		if err := l.save(none); err != nil {
			t.Error(err)
		}
	})
}
