package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// stream is an API server whose watches bring what a test sends.
type stream struct {
	mu      sync.Mutex
	watches int
	events  map[string]chan string // by resource and name
}

func (s *stream) serve(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/shop/") + "/" + strings.TrimPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	s.mu.Lock()
	s.watches++
	events := s.events[name]
	s.mu.Unlock()
	if r.URL.Query().Get("watch") != "1" || !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata") || events == nil {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	for {
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case event := <-events:
			if event == "end" {
				return
			}
			_, _ = io.WriteString(w, event+"\n")
		}
	}
}

func event(kind string, version int) string {
	return fmt.Sprintf(`{"type":%q,"object":{"kind":"PartialObjectMetadata","metadata":{"name":"db","uid":"u","resourceVersion":"%d"}}}`, kind, version)
}

func TestChangesAreWatchedAsThePod(t *testing.T) {
	s := &stream{events: map[string]chan string{"secrets/db": make(chan string), "configmaps/settings": make(chan string)}}
	p, _ := serve(t, s.serve)
	ctx, cancel := context.WithCancel(t.Context())
	changed, ended := make(chan struct{}, 10), make(chan error, 1)
	req := request("objects", "- objectName: db\n- {objectName: db, key: user, objectAlias: again}\n- {objectName: settings, objectType: ConfigMap}")
	go func() {
		ended <- p.WatchAs(ctx, func() provider.Request { return req }, func() { changed <- struct{}{} })
	}()
	send := func(to chan string, what string) {
		t.Helper()
		select {
		case to <- what:
		case err := <-ended:
			t.Fatalf("the watch ended: %v", err)
		}
	}
	db, settings := s.events["secrets/db"], s.events["configmaps/settings"]
	send(db, event("ADDED", 1)) // as it is
	send(settings, event("ADDED", 1))
	<-changed // it is
	send(db, event("MODIFIED", 2))
	<-changed
	send(settings, event("DELETED", 2))
	<-changed
	send(db, "end")
	send(db, event("ADDED", 2)) // after the watch began anew, as before
	send(db, `{"type":"ERROR","object":{"kind":"Status","code":410}}`)
	send(db, "end")
	send(db, event("ADDED", 3)) // it changed meanwhile
	<-changed
	if len(changed) > 0 {
		t.Error("it told of changes that were none")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if s.watches != 4 { // of db three, of settings one; db is watched once though named twice
		t.Errorf("%d watches", s.watches)
	}
}

func TestWhoMayNotWatchIsTold(t *testing.T) {
	s := &stream{}
	p, _ := serve(t, s.serve)
	req := request("objects", "- objectName: db")
	err := p.WatchAs(t.Context(), func() provider.Request { return req }, func() { t.Error("changed") })
	wantError(t, err, provider.Denied, "Secret shop/db", "watch it as the pod", "the verb watch on secrets \"db\"")
	req.Tokens = nil
	if err := p.WatchAs(t.Context(), func() provider.Request { return req }, nil); !errors.Is(err, provider.ErrNoCredentials) {
		t.Errorf("got %v", err)
	}
	if err := p.WatchAs(t.Context(), func() provider.Request { return request("objects", "- {}") }, nil); provider.KindOf(err) != provider.Invalid {
		t.Errorf("got %v", err)
	}
}
