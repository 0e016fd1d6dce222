package notice

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// tolerance is how much the time of a signed request may differ from ours.
	tolerance = 5 * time.Minute
	// maxID bounds the id of a request, and maxIDs how many are remembered.
	maxID, maxIDs = 256, 100_000
	// A key has minKey to maxKey bytes.
	minKey, maxKey = 24, 64
)

// WebhookConfig is for senders that sign by Standard Webhooks
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).
type WebhookConfig struct {
	// Keys are those that sign, in base64 with or without whsec_ before it: one, and
	// others while they are changed.
	Keys []secret.Value
	Sink Sink
	// Recorder may be nil.
	Recorder Recorder
}

// signed are the senders that have a key.
type signed struct {
	keys []secret.Value

	mu    sync.Mutex
	taken map[string]time.Time // until when an id is remembered
}

// NewWebhook returns a handler for POSTs whose body is a provider.Hint in JSON, a
// CloudEvent of Key Vault or Pub/Sub, or a list of these. A request whose id
// (webhook-id) was taken already is answered like the first, so that it is not
// sent for ever, and does nothing.
func NewWebhook(c WebhookConfig) (http.Handler, error) {
	s := &signed{taken: map[string]time.Time{}}
	if len(c.Keys) == 0 {
		return nil, errors.New("notice: the webhook has no key")
	}
	for i, text := range c.Keys {
		encoded := strings.TrimPrefix(strings.TrimSpace(string(text.Reveal())), "whsec_")
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || len(key) < minKey || len(key) > maxKey {
			return nil, fmt.Errorf("notice: key %d of the webhook is not whsec_ and %d to %d bytes in base64; make one by: echo whsec_$(openssl rand -base64 32)", i+1, minKey, maxKey)
		}
		s.keys = append(s.keys, secret.New(key))
	}
	return newDoor("webhook", s, http.StatusBadRequest, c.Sink, c.Recorder)
}

func (s *signed) admit(r *http.Request, body []byte) (again func(), err error) {
	id, at := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
	if id == "" || len(id) > maxID || !s.hasSigned(id, at, body, r.Header.Get("webhook-signature")) {
		return nil, &refusal{http.StatusUnauthorized, reasonSignature}
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	sent := time.Unix(seconds, 0)
	if err != nil || time.Since(sent).Abs() > tolerance {
		return nil, &refusal{http.StatusUnauthorized, reasonExpired}
	}
	return s.first(id, sent.Add(tolerance))
}

// hasSigned reports whether one of the signatures in a header, which spaces
// separate, is by one of the keys.
func (s *signed) hasSigned(id, at string, body []byte, header string) bool {
	found := false
	for _, key := range s.keys {
		mac := hmac.New(sha256.New, key.Reveal())
		_, _ = io.WriteString(mac, id+"."+at+".")
		_, _ = mac.Write(body)
		want := []byte("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		for signature := range strings.FieldsSeq(header) {
			found = hmac.Equal([]byte(signature), want) || found
		}
	}
	return found
}

// first notes an id for as long as it could be replayed, and returns how to forget
// it; or a refusal where it is not the first time.
func (s *signed) first(id string, until time.Time) (forget func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if before, ok := s.taken[id]; ok && !now.After(before) {
		if until.After(before) {
			s.taken[id] = until // it was signed anew
		}
		return nil, &refusal{http.StatusNoContent, reasonReplayed}
	}
	if len(s.taken) >= maxIDs {
		maps.DeleteFunc(s.taken, func(_ string, until time.Time) bool { return now.After(until) })
	}
	if len(s.taken) >= maxIDs {
		return nil, &refusal{http.StatusTooManyRequests, reasonReplayed}
	}
	s.taken[id] = until
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.taken, id)
	}, nil
}

func (s *signed) read(body []byte) ([]provider.Hint, []byte, error) {
	hints, err := parseWebhook(body)
	return hints, nil, err
}
