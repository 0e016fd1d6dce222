package web

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// throttler refuses the first calls and notes what it is sent.
type throttler struct {
	refuse int
	bodies []string
}

func (s *throttler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.bodies = append(s.bodies, string(body))
	if len(s.bodies) <= s.refuse {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, "patience")
		return
	}
	_, _ = io.WriteString(w, "answer")
}

func post(t *testing.T, s *httptest.Server, caller provider.Caller) (status int, body string, header http.Header, err error) {
	t.Helper()
	ctx := t.Context()
	if caller != nil {
		ctx = provider.WithCaller(ctx, caller)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, strings.NewReader("question"))
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: Polite{s.Client().Transport}}).Do(r)
	if err != nil {
		return 0, "", nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), response.Header, err
}

// patient makes throttled calls again, as the governor does for a pod that waits.
func patient(t *testing.T, waits *[]time.Duration) provider.Caller {
	return func(_ context.Context, call func() error) error {
		for {
			err := call()
			if provider.KindOf(err) != provider.Throttled {
				return err
			}
			var refusal *provider.Error
			if !errors.As(err, &refusal) {
				t.Fatal(err)
			}
			*waits = append(*waits, refusal.RetryAfter)
		}
	}
}

func TestAThrottledCallIsMadeAgainWithItsBody(t *testing.T) {
	s := &throttler{refuse: 2}
	server := httptest.NewServer(s)
	defer server.Close()
	var waits []time.Duration
	status, body, _, err := post(t, server, patient(t, &waits))
	if err != nil || status != http.StatusOK || body != "answer" {
		t.Errorf("got %d %q, %v", status, body, err)
	}
	if got := strings.Join(s.bodies, " "); got != "question question question" {
		t.Errorf("the server was sent %s", got)
	}
	if len(waits) != 2 || waits[0] != 7*time.Second || waits[1] != 7*time.Second {
		t.Errorf("it asked for %v", waits)
	}
}

func TestARefusalThatStandsIsTheAnswer(t *testing.T) {
	for name, caller := range map[string]provider.Caller{
		"nobody governs":   nil,
		"it is not urgent": func(_ context.Context, call func() error) error { return call() },
	} {
		server := httptest.NewServer(&throttler{refuse: 1})
		status, body, header, err := post(t, server, caller)
		if err != nil || status != http.StatusTooManyRequests || body != "patience" || header.Get("Retry-After") != "7" {
			t.Errorf("%s: got %d %q %v, %v", name, status, body, header, err)
		}
		server.Close()
	}
}

func TestACallThatIsNotMadeIsAnsweredAsTheStoreWould(t *testing.T) {
	s := &throttler{}
	server := httptest.NewServer(s)
	defer server.Close()
	status, _, header, err := post(t, server, func(context.Context, func() error) error {
		return &provider.Error{Kind: provider.Throttled, Err: provider.ErrNotCalled, RetryAfter: 2500 * time.Millisecond}
	})
	if err != nil || status != http.StatusTooManyRequests || RetryAfter(header) != 3*time.Second || len(s.bodies) > 0 {
		t.Errorf("got %d %v after %d calls, %v", status, header, len(s.bodies), err)
	}
	reason := errors.New("its time is over")
	if _, _, _, err := post(t, server, func(context.Context, func() error) error { return reason }); !errors.Is(err, reason) {
		t.Errorf("got %v", err)
	}
}

func TestABrokenConnectionIsNoAnswer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer server.Close()
	var told error
	_, _, _, err := post(t, server, func(_ context.Context, call func() error) error {
		told = call()
		return told
	})
	if err == nil || told == nil || provider.KindOf(told) == provider.Throttled {
		t.Errorf("got %v, told %v", err, told)
	}
}
