package login

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

func jwt(payload string) secret.Value {
	return secret.FromString("e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2lnbmF0dXJl")
}

func TestWhatATokenSays(t *testing.T) {
	c, err := Read(jwt(`{"iss":"https://kubernetes.default.svc","sub":"system:serviceaccount:shop:web","aud":["vault"],"exp":1790000000,
		"kubernetes.io":{"namespace":"shop","pod":{"name":"web-1","uid":"p1"},"serviceaccount":{"name":"web","uid":"s1"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := `issuer "https://kubernetes.default.svc", subject "system:serviceaccount:shop:web", audience "vault", valid until 2026-09-21T14:13:20Z`; c.String() != want {
		t.Errorf("got %s, want %s", c, want)
	}
	if c.Namespace != "shop" || c.ServiceAccount != "web" || c.ServiceAccountUID != "s1" || c.Pod != "web-1" || c.PodUID != "p1" {
		t.Errorf("got %+v", c)
	}
	if c, err := Read(jwt(`{"aud":"one"}`)); err != nil || len(c.Audiences) != 1 || c.Audiences[0] != "one" {
		t.Errorf("got %+v, %v", c, err)
	}
	for _, broken := range []string{"", "a.b", "a.!.c", "e30.bm90IEpTT04.c"} {
		if _, err := Read(secret.FromString(broken)); err == nil || broken != "" && strings.Contains(err.Error(), broken) {
			t.Errorf("%q: %v", broken, err)
		}
	}
}

func TestIdentitiesDifferWhereAClaimDiffers(t *testing.T) {
	seen := map[string]string{}
	for _, payload := range []string{
		`{"iss":"i","sub":"s","aud":["a"],"kubernetes.io":{"namespace":"n","pod":{"name":"p","uid":"1"},"serviceaccount":{"name":"x","uid":"1"}}}`,
		`{"iss":"j","sub":"s","aud":["a"],"kubernetes.io":{"namespace":"n","pod":{"name":"p","uid":"1"},"serviceaccount":{"name":"x","uid":"1"}}}`,
		`{"iss":"i","sub":"t","aud":["a"],"kubernetes.io":{"namespace":"n","pod":{"name":"p","uid":"1"},"serviceaccount":{"name":"x","uid":"1"}}}`,
		`{"iss":"i","sub":"s","aud":["b"],"kubernetes.io":{"namespace":"n","pod":{"name":"p","uid":"1"},"serviceaccount":{"name":"x","uid":"1"}}}`,
		`{"iss":"i","sub":"s","aud":["a"],"kubernetes.io":{"namespace":"n","pod":{"name":"p","uid":"2"},"serviceaccount":{"name":"x","uid":"1"}}}`,
		`{"iss":"i","sub":"s","aud":["a"],"kubernetes.io":{"namespace":"n","pod":{"name":"p","uid":"1"},"serviceaccount":{"name":"x","uid":"2"}}}`,
	} {
		c, err := Read(jwt(payload))
		if err != nil {
			t.Fatal(err)
		}
		if other, taken := seen[c.Identity()]; taken {
			t.Errorf("%s and %s are one identity", other, payload)
		}
		seen[c.Identity()] = payload
	}
}

func TestTheTokenOfThePodForAnAudience(t *testing.T) {
	req := provider.Request{Tokens: map[string]provider.Token{"other": {Value: secret.FromString("x")}, "old": {Value: secret.FromString("x"), Expires: time.Now().Add(-time.Minute)}}}
	if _, err := Token(req, "the store", "mine", "other"); err != nil {
		t.Error(err)
	}
	for audience, want := range map[string]string{"mine": `audience "mine"; those that there are have the audiences "old", "other"`, "old": "ended at"} {
		if _, err := Token(req, "the store", audience); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", audience, err)
		}
	}
}

func TestKeysOfOtherPartsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, parts := range [][]string{{}, {""}, {"", ""}, {"ab"}, {"a", "b"}, {"b", "a"}, {"1:a"}, {"a", "1:b"}, {"a1:b"}, {"a\x00b"}} {
		if key := Key(parts...); seen[key] || key != Key(parts...) {
			t.Errorf("%q: another has the same key", parts)
		} else {
			seen[key] = true
		}
	}
}

func session(value string, renew, ends time.Duration) Session[string] {
	return Session[string]{value, time.Now().Add(renew), time.Now().Add(ends)}
}

func TestManyCallsShareOneLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Cache[string]
		var logins atomic.Int32
		login := func(ctx context.Context, _ *Session[string]) (Session[string], error) {
			time.Sleep(time.Second)
			return session(fmt.Sprint("login ", logins.Add(1)), time.Minute, time.Hour), ctx.Err()
		}
		// The first of them gives up: the others get the session all the same.
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := c.Get(impatient, "k", login); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if got, err := c.Get(t.Context(), "k", login); got != "login 1" || err != nil {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
		all.Wait()
		if got, err := c.Get(t.Context(), "another", login); got != "login 2" || err != nil {
			t.Errorf("another identity got %q, %v", got, err)
		}
	})
}

func TestASessionIsRenewedInTimeAndUsedUntilItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Cache[string]
		get := func(value string, fails error) (string, error) {
			return c.Get(t.Context(), "k", func(_ context.Context, earlier *Session[string]) (Session[string], error) {
				if earlier != nil {
					value += " after " + earlier.Value
				}
				return session(value, time.Minute, time.Hour), fails
			})
		}
		want := func(wanted string, got string, err error) {
			t.Helper()
			if got != wanted || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, wanted)
			}
		}
		got, err := get("a", nil)
		want("a", got, err)
		got, err = get("b", nil)
		want("a", got, err)
		if c.Put("k", session("another", time.Minute, time.Hour)) {
			t.Error("a fresh session was replaced")
		}
		time.Sleep(2 * time.Minute)
		got, err = get("b", nil)
		want("b after a", got, err)
		time.Sleep(2 * time.Minute)
		got, err = get("c", errors.New("down"))
		want("b after a", got, err)
		c.Forget("k", func(value string) bool { return value == "another" })
		got, err = get("c", errors.New("down"))
		want("b after a", got, err)
		c.Forget("k", func(value string) bool { return value == "b after a" })
		if got, err := get("c", errors.New("down")); err == nil || err.Error() != "down" {
			t.Errorf("a forgotten session: got %q, %v", got, err)
		}
		got, err = get("c", nil)
		want("c", got, err)
		time.Sleep(2 * time.Hour)
		if got, err := get("d", errors.New("down")); err == nil {
			t.Errorf("an ended session: got %q", got)
		}
	})
}

func TestAPanicOfALoginIsAnError(t *testing.T) {
	var c Cache[string]
	_, err := c.Get(t.Context(), "k", func(context.Context, *Session[string]) (Session[string], error) { panic("hunter2") })
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	var c Cache[string]
	for i := range maxEntries + 100 {
		c.Put(fmt.Sprint(i), session("x", time.Hour, time.Hour))
	}
	if len(c.entries) > maxEntries {
		t.Errorf("it has %d entries", len(c.entries))
	}
}

func TestWhatHasEndedIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Cache[string]
		c.Put("ended", session("x", time.Second, 2*time.Second))
		c.Put("lives", session("x", time.Hour, time.Hour))
		time.Sleep(2 * sweepPeriod)
		c.Put("new", session("x", time.Hour, time.Hour))
		if c.entries["ended"] != nil || c.entries["lives"] == nil {
			t.Errorf("there are %v", c.entries)
		}
	})
}

func TestRefusalsAreRememberedForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Refusals
		r.Note("a")
		if !r.Has("a") || r.Has("b") {
			t.Error("it does not know what was refused")
		}
		time.Sleep(refusalLasts)
		if r.Has("a") {
			t.Error("it never asks again")
		}
		for i := range 2 * maxRefusals {
			r.Note(fmt.Sprint(i))
		}
		if len(r.ends) > maxRefusals || !r.Has(fmt.Sprint(2*maxRefusals-1)) {
			t.Errorf("it remembers %d", len(r.ends))
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add("e30.e30.e30")
	f.Fuzz(func(_ *testing.T, text string) {
		c, err := Read(secret.FromString(text))
		if err == nil {
			_ = c.String() + c.Identity()
		}
	})
}
