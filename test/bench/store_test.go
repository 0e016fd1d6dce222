package main

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/vault"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

func TestAStoreTakesSoManyCallsASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		s.limit(10, time.Second)
		began := time.Now()
		for range 3 {
			for range 20 {
				s.ask(t.Context(), read)
			}
			time.Sleep(500 * time.Millisecond)
		}
		calls := s.since(began)
		if a, b := len(calls.came(answered)), len(calls.came(throttled)); a != 20 || b != 40 {
			t.Errorf("in a second and a moment, %d of 60 calls were answered and %d throttled; want 20 and 40", a, b)
		}
		if n := calls.most(time.Second); n != 40 {
			t.Errorf("there were %d calls in some second, want 40", n)
		}
		if n := len(s.since(began.Add(time.Second))); n != 20 {
			t.Errorf("there were %d calls after a second, want 20", n)
		}
	})
}

func TestAStoreIsDownInEachWayInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{latency: time.Millisecond}
		s.down(6*time.Second, hanging, cut, failed)
		for _, want := range []struct {
			outcome outcome
			took    time.Duration
		}{{hanging, 2 * time.Second}, {cut, time.Millisecond}, {failed, time.Millisecond}, {answered, time.Millisecond}} {
			began := time.Now()
			a := s.ask(t.Context(), read)
			if took := time.Since(began); a.outcome != want.outcome || took != want.took {
				t.Errorf("got outcome %d after %v, want %d after %v", a.outcome, took, want.outcome, want.took)
			}
			time.Sleep(2*time.Second - time.Since(began))
		}
	})
}

func TestTheStandInSaysWhatBecomesOfACall(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare    func(*store)
		status     int
		retryAfter string
	}{
		"answered":                   {func(*store) {}, 200, ""},
		"throttled":                  {func(s *store) { s.limit(1, 0); s.bucket.Allow() }, 429, ""},
		"throttled with Retry-After": {func(s *store) { s.limit(1, 3*time.Second); s.bucket.Allow() }, 429, "3"},
		"failed":                     {func(s *store) { s.down(time.Minute, failed) }, 503, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &store{}
			tc.prepare(s)
			w := httptest.NewRecorder()
			standIn{s}.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/"+secretPath, nil))
			if got := w.Header().Get("Retry-After"); w.Code != tc.status || got != tc.retryAfter {
				t.Errorf("got %d with Retry-After %q, want %d with %q", w.Code, got, tc.status, tc.retryAfter)
			}
		})
	}
}

// The driver's own provider logs in, reads, and shares what it reads by the one
// auth method and not by the other.
func TestVolumesAskAloneOrTogetherByTheirAuthMethod(t *testing.T) {
	s := &store{}
	s.set("first")
	server := standIn{s}.serve()
	defer server.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	for way, together := range map[string]bool{alone: false, shared: true} {
		t.Run(way, func(t *testing.T) {
			p := vault.New(vault.Vault, vault.Defaults{})
			var requests []provider.Request
			for i := range 2 {
				req := provider.Request{Parameters: vaultParameters(way, server.URL, ca), Tokens: tokensOf(t, fmt.Sprint("pod-", i)), Mode: provider.DefaultMode}
				req.Keep = func(secret.Value) error { return nil }
				result, err := p.Fetch(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				if len(result.Files) != 2 || string(result.Files[1].Contents.Reveal()) != "first" {
					t.Errorf("got %d files, the second of them not the store's value", len(result.Files))
				}
				requests = append(requests, req)
			}
			var identities []string
			for _, req := range requests {
				identity, ok := p.Identity(t.Context(), req)
				if !ok {
					t.Error("the provider cannot say for whom its answer is")
				}
				identities = append(identities, identity)
			}
			if same := len(slices.Compact(identities)) == 1; same != together {
				t.Errorf("two pods share an answer: %v, want %v", same, together)
			}
		})
	}
	if logins := len(s.since(time.Time{}).of(login)); logins != 3 {
		t.Errorf("two pods that ask alone and two together logged in %d times, want 3", logins)
	}
}

// tokensOf are a pod's tokens as the driver reads them.
func tokensOf(t *testing.T, pod string) map[string]provider.Token {
	t.Helper()
	var all map[string]struct {
		Token               string
		ExpirationTimestamp time.Time
	}
	if err := json.Unmarshal([]byte(tokens(pod)), &all); err != nil {
		t.Fatal(err)
	}
	parsed := map[string]provider.Token{}
	for audience, token := range all {
		parsed[audience] = provider.Token{Value: secret.FromString(token.Token), Expires: token.ExpirationTimestamp}
	}
	return parsed
}
