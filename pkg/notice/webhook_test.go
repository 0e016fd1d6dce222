package notice

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// heard is a sink and a recorder that remember.
type heard struct {
	mu     sync.Mutex
	hints  []provider.Hint
	counts []string
	err    error // of the sink
}

func (h *heard) take(_ context.Context, hints []provider.Hint) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.hints = append(h.hints, hints...)
	}
	return h.err
}

func (h *heard) Received(source string) { h.count(source) }

func (h *heard) Refused(source, reason string) { h.count(source + " " + reason) }

func (h *heard) count(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts = append(h.counts, what)
}

// fail has the sink return err.
func (h *heard) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}

// want checks what was heard and counted since the last time.
func (h *heard) want(t *testing.T, hints []provider.Hint, counts ...string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !reflect.DeepEqual(h.hints, hints) {
		t.Errorf("heard was %+v, want %+v", h.hints, hints)
	}
	if !slices.Equal(h.counts, counts) {
		t.Errorf("counted was %q, want %q", h.counts, counts)
	}
	h.hints, h.counts = nil, nil
}

const (
	firstKey  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	secondKey = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDnxkk7iKu"
	dbNotice  = `{"provider": "vault", "object": "secret/data/db"}`
)

var db = []provider.Hint{{Provider: "vault", Object: "secret/data/db"}}

func newTestWebhook(t *testing.T, h *heard, keys ...string) http.Handler {
	t.Helper()
	c := WebhookConfig{Sink: h.take, Recorder: h}
	for _, key := range keys {
		c.Keys = append(c.Keys, secret.FromString(key))
	}
	handler, err := NewWebhook(c)
	if err != nil {
		t.Fatal(err)
	}
	return handler
}

// sign returns the signature of a request, computed as the specification of
// Standard Webhooks has it.
func sign(key, id string, at time.Time, body string) string {
	raw, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(key, "whsec_"))
	mac := hmac.New(sha256.New, raw)
	fmt.Fprintf(mac, "%s.%d.%s", id, at.Unix(), body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func post(body string, header ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func signedPost(key, id string, at time.Time, body string) *http.Request {
	return post(body, "webhook-id", id, "webhook-timestamp", fmt.Sprint(at.Unix()), "webhook-signature", sign(key, id, at, body))
}

// serve returns the status and the body of an answer.
func serve(h http.Handler, r *http.Request) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// The key, id, time, body and signature are those of the tests of the
// specification's own libraries.
func TestTheSpecificationsSignatureIsTaken(t *testing.T) {
	s := &signed{keys: []secret.Value{}}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(firstKey, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	s.keys = append(s.keys, secret.New(key))
	const signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	for header, want := range map[string]bool{
		signature: true,
		"v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= v2,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= " + signature: true,
		"v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=":                                                              false,
		"v2" + signature[2:]: false,
		signature[3:]:        false,
		"":                   false,
	} {
		if got := s.hasSigned("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`), header); got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
}

func TestASignedNoticeReachesTheSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &heard{}
		hook := newTestWebhook(t, h, firstKey)
		if code, body := serve(hook, signedPost(firstKey, "msg_1", time.Now(), dbNotice)); code != http.StatusNoContent || body != "" {
			t.Errorf("the answer is %d %q", code, body)
		}
		h.want(t, db, "webhook")
		if code, _ := serve(hook, signedPost(firstKey, "msg_2", time.Now(), `[]`)); code != http.StatusNoContent {
			t.Errorf("the answer to no notice is %d", code)
		}
		h.want(t, nil, "webhook")
		if code, body := serve(hook, signedPost(firstKey, "msg_3", time.Now(), `{"object": "db"}`)); code != http.StatusBadRequest || !strings.Contains(body, "it has no provider") {
			t.Errorf("the answer to what is no notice is %d %q", code, body)
		}
		h.want(t, nil, "webhook", "webhook malformed")
	})
}

func TestEitherKeySignsWhileTheyAreChanged(t *testing.T) {
	h := &heard{}
	hook := newTestWebhook(t, h, firstKey, secondKey+"\n")
	for i, key := range []string{firstKey, secondKey} {
		if code, _ := serve(hook, signedPost(key, fmt.Sprint("msg_", i), time.Now(), dbNotice)); code != http.StatusNoContent {
			t.Errorf("key %d: the answer is %d", i+1, code)
		}
	}
	hook = newTestWebhook(t, h, secondKey)
	if code, _ := serve(hook, signedPost(firstKey, "msg_2", time.Now(), dbNotice)); code != http.StatusUnauthorized {
		t.Errorf("after the change: the answer to the first key is %d", code)
	}
}

// Whoever has no key learns nothing but a status.
func TestAStrangerIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &heard{}
		hook := newTestWebhook(t, h, firstKey)
		now := time.Now()
		good := func() *http.Request { return signedPost(firstKey, "msg_1", now, dbNotice) }
		with := func(key, value string) *http.Request {
			r := good()
			r.Header.Set(key, value)
			return r
		}
		other := signedPost(firstKey, "msg_1", now, `{"provider": "*"}`)
		other.Header.Set("webhook-signature", sign(firstKey, "msg_1", now, dbNotice))
		get := httptest.NewRequest(http.MethodGet, "/", nil)
		for name, c := range map[string]struct {
			request *http.Request
			code    int
			reason  string
		}{
			"another key":              {signedPost(secondKey, "msg_1", now, dbNotice), http.StatusUnauthorized, reasonSignature},
			"another body":             {other, http.StatusUnauthorized, reasonSignature},
			"another id":               {with("webhook-id", "msg_2"), http.StatusUnauthorized, reasonSignature},
			"no id":                    {with("webhook-id", ""), http.StatusUnauthorized, reasonSignature},
			"an id that is too long":   {signedPost(firstKey, strings.Repeat("i", maxID+1), now, dbNotice), http.StatusUnauthorized, reasonSignature},
			"another time":             {with("webhook-timestamp", fmt.Sprint(now.Unix()+1)), http.StatusUnauthorized, reasonSignature},
			"no signature":             {with("webhook-signature", ""), http.StatusUnauthorized, reasonSignature},
			"a request of long ago":    {signedPost(firstKey, "msg_1", now.Add(-tolerance-time.Second), dbNotice), http.StatusUnauthorized, reasonExpired},
			"a request of the future":  {signedPost(firstKey, "msg_1", now.Add(tolerance+time.Second), dbNotice), http.StatusUnauthorized, reasonExpired},
			"a GET":                    {get, http.StatusMethodNotAllowed, reasonRequest},
			"a form":                   {with("Content-Type", "application/x-www-form-urlencoded"), http.StatusUnsupportedMediaType, reasonRequest},
			"no type":                  {with("Content-Type", ""), http.StatusUnsupportedMediaType, reasonRequest},
			"a body that is too large": {signedPost(firstKey, "msg_1", now, strings.Repeat(" ", maxBytes+1)), http.StatusRequestEntityTooLarge, reasonSize},
		} {
			if code, body := serve(hook, c.request); code != c.code || body != "" {
				t.Errorf("%s: the answer is %d %q, want %d", name, code, body, c.code)
			}
			h.want(t, nil, "webhook "+c.reason)
		}
		if code, _ := serve(hook, good()); code != http.StatusNoContent {
			t.Errorf("the request that was right all along is answered %d", code)
		}
	})
}

func TestAReplayDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &heard{}
		hook := newTestWebhook(t, h, firstKey)
		sent := time.Now()
		r := func(at time.Time) *http.Request { return signedPost(firstKey, "msg_1", at, dbNotice) }
		serve(hook, r(sent))
		h.want(t, db, "webhook")
		time.Sleep(time.Minute)
		if code, _ := serve(hook, r(sent)); code != http.StatusNoContent {
			t.Errorf("the answer to a replay is %d", code)
		}
		h.want(t, nil, "webhook replayed")
		again := time.Now()
		serve(hook, r(again)) // a sender that has lost the answer
		h.want(t, nil, "webhook replayed")
		time.Sleep(tolerance - time.Second)
		serve(hook, r(sent))
		h.want(t, nil, "webhook expired")
		serve(hook, r(again))
		h.want(t, nil, "webhook replayed")
		time.Sleep(2 * time.Second)
		serve(hook, r(again))
		h.want(t, nil, "webhook expired")
	})
}

func TestWhatTheSinkDoesNotTakeCanBeSentAgain(t *testing.T) {
	h := &heard{}
	hook := newTestWebhook(t, h, firstKey)
	now := time.Now()
	h.fail(errors.New("no classes"))
	if code, body := serve(hook, signedPost(firstKey, "msg_1", now, dbNotice)); code != http.StatusServiceUnavailable || body != "" {
		t.Errorf("the answer is %d %q", code, body)
	}
	h.want(t, nil, "webhook", "webhook sink")
	h.fail(nil)
	if code, _ := serve(hook, signedPost(firstKey, "msg_1", now, dbNotice)); code != http.StatusNoContent {
		t.Errorf("the answer to the second attempt is %d", code)
	}
	h.want(t, db, "webhook")
}

func TestIDsAreNotRememberedWithoutBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &signed{taken: map[string]time.Time{}}
		for i := range maxIDs {
			if _, err := s.first(fmt.Sprint(i), time.Now().Add(tolerance)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.first("more", time.Now().Add(tolerance)); err == nil || len(s.taken) > maxIDs {
			t.Errorf("%d ids are remembered", len(s.taken))
		}
		time.Sleep(tolerance + time.Second)
		if _, err := s.first("more", time.Now().Add(tolerance)); err != nil || len(s.taken) != 1 {
			t.Errorf("after their time %d ids are remembered: %v", len(s.taken), err)
		}
	})
}

func TestAKeyThatIsNoneIsExplained(t *testing.T) {
	for name, keys := range map[string][]string{
		"none": nil, "a password": {"whsec_hunter2"}, "a short one": {"whsec_aHVudGVyMg=="}, "an empty one beside a good one": {firstKey, ""},
	} {
		c := WebhookConfig{Sink: (&heard{}).take}
		for _, key := range keys {
			c.Keys = append(c.Keys, secret.FromString(key))
		}
		_, err := NewWebhook(c)
		if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "aHVudGVyMg") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewWebhook(WebhookConfig{Keys: []secret.Value{secret.FromString(firstKey)}}); err == nil {
		t.Error("a webhook without a sink is no error")
	}
}

func TestTheManualsExampleIsTaken(t *testing.T) {
	for _, program := range []string{"sh", "openssl", "base64", "od", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	manual, err := os.ReadFile("../../docs/notices.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(string(manual), "<!-- begin of the example -->\n```sh\n")
	script, _, ok := strings.Cut(script, "```\n<!-- end of the example -->")
	h := &heard{}
	server := httptest.NewServer(newTestWebhook(t, h, firstKey))
	defer server.Close()
	script = strings.Replace(script, "https://notices.example.com/webhook", server.URL, 1)
	if !ok || !strings.Contains(script, server.URL) {
		t.Fatal("the manual has no example")
	}
	run := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script)
	run.Env = append(os.Environ(), "no_proxy=*")
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.want(t, []provider.Hint{{Provider: "vault", Object: "secret/data/prod/db"}}, "webhook")
}
