package controller

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/internal/kube"
)

// server stands in for an API server: lists and watches, writes with resource
// versions, tokens and events. It merges what is applied.
type server struct {
	t      *testing.T
	api    *kube.API
	expiry time.Duration // of tokens

	mu      sync.Mutex
	changed *sync.Cond
	closed  bool
	version int
	objects map[address]document
	log     []change
	writes  []string // "METHOD resource namespace/name/subresource"
	bodies  []string // of all writes but those of Secrets
	refuse  func(method string, at address) (code int, reason, message string)
}

type document = map[string]any

// address is where an object is.
type address struct{ resource, namespace, name, sub string }

type change struct {
	version  int
	resource string
	event    []byte
}

var kinds = map[string][2]string{
	"secretsyncs": {"secret-sync.x-k8s.io/v1alpha1", "SecretSync"}, "secretproviderclasses": {"secrets-store.csi.x-k8s.io/v1", "SecretProviderClass"},
	"secrets": {"v1", "Secret"}, "events": {"v1", "Event"}, "serviceaccounts": {"authentication.k8s.io/v1", "TokenRequest"},
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, expiry: time.Hour, version: 1, objects: map[address]document{}}
	s.changed = sync.NewCond(&s.mu)
	web := httptest.NewServer(s)
	t.Cleanup(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.changed.Broadcast()
		web.CloseClientConnections()
		web.Close()
	})
	file := filepath.Join(t.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":%q}}]}`, web.URL)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.api, err = kube.Connect(file, "test"); err != nil {
		t.Fatal(err)
	}
	return s
}

func parse(path string) address {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	parts = parts[2:] // api/v1
	if strings.HasPrefix(path, "/apis/") {
		parts = parts[1:]
	}
	var at address
	if parts[0] == "namespaces" && len(parts) > 2 {
		at.namespace, parts = parts[1], parts[2:]
	}
	for i, field := range []*string{&at.resource, &at.name, &at.sub} {
		if i < len(parts) {
			*field = parts[i]
		}
	}
	return at
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := parse(r.URL.Path)
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		answer(w, http.StatusUnprocessableEntity, "Invalid", "no streamed lists here")
		return
	}
	if r.URL.Query().Get("watch") != "" {
		s.watch(w, r, at)
		return
	}
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		if code, reason, message := s.refuse(r.Method, at); code != 0 {
			answer(w, code, reason, message)
			return
		}
	}
	if r.Method != http.MethodGet {
		s.writes = append(s.writes, fmt.Sprintf("%s %s %s/%s/%s", r.Method, at.resource, at.namespace, at.name, at.sub))
		if at.resource != "secrets" {
			s.bodies = append(s.bodies, string(body))
		}
	}
	var sent document
	if len(body) > 0 {
		if err := json.Unmarshal(body, &sent); err != nil {
			s.t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
	}
	place := address{at.resource, at.namespace, at.name, ""}
	known := s.objects[place]
	switch {
	case r.Method == http.MethodGet && at.name == "":
		list := document{"apiVersion": kinds[at.resource][0], "kind": kinds[at.resource][1] + "List", "metadata": document{"resourceVersion": strconv.Itoa(s.version)}}
		items := []any{}
		for other, object := range s.objects {
			if other.resource == at.resource && (at.namespace == "" || at.namespace == other.namespace) {
				items = append(items, object)
			}
		}
		list["items"] = items
		_ = json.NewEncoder(w).Encode(list)
	case at.sub == "token":
		s.token(w, at, sent)
	case r.Method == http.MethodPost:
		meta := sent["metadata"].(document)
		if name, _ := meta["name"].(string); name == "" {
			meta["name"] = fmt.Sprintf("%v%d", meta["generateName"], s.version)
		}
		place.name = meta["name"].(string)
		if s.objects[place] != nil {
			answer(w, http.StatusConflict, "AlreadyExists", place.name+" already exists")
			return
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(s.put(place, sent))
	case known == nil && !strings.Contains(r.Header.Get("Content-Type"), "apply-patch"):
		answer(w, http.StatusNotFound, "NotFound", fmt.Sprintf("%s %q not found", at.resource, at.name))
	case r.Method == http.MethodGet:
		_ = json.NewEncoder(w).Encode(known)
	case r.Method == http.MethodDelete:
		s.remove(place)
		_ = json.NewEncoder(w).Encode(known)
	default:
		meta, _ := sent["metadata"].(document)
		if uid := meta["uid"]; uid != nil && known != nil && uid != known["metadata"].(document)["uid"] {
			answer(w, http.StatusConflict, "Conflict", "the UID in the precondition is another")
			return
		}
		next := sent
		if r.Method == http.MethodPatch {
			if at.sub == "status" {
				sent = document{"status": sent["status"]}
			}
			next = merge(known, sent).(document)
		}
		if strings.Contains(r.Header.Get("Content-Type"), "apply-patch") {
			next["metadata"].(document)["managedFields"] = []any{document{"manager": r.URL.Query().Get("fieldManager"), "operation": "Apply", "time": time.Now().UTC().Format(time.RFC3339)}}
		}
		next = s.put(place, next)
		if strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadata") {
			next = document{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": next["metadata"]}
		}
		_ = json.NewEncoder(w).Encode(next)
	}
}

// merge is a JSON merge patch.
func merge(into, patch any) any {
	changes, ok := patch.(document)
	if !ok {
		return patch
	}
	object, _ := into.(document)
	merged := maps.Clone(object)
	if merged == nil {
		merged = document{}
	}
	for key, value := range changes {
		if value == nil {
			delete(merged, key)
		} else {
			merged[key] = merge(merged[key], value)
		}
	}
	return merged
}

func answer(w http.ResponseWriter, code int, reason, message string) {
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":%q}`, code, reason, message)
}

// token makes a token that names its service account and audience. Callers hold
// s.mu.
func (s *server) token(w http.ResponseWriter, at address, sent document) {
	spec, _ := sent["spec"].(document)
	sent["apiVersion"], sent["kind"] = kinds[at.resource][0], kinds[at.resource][1]
	s.version++
	sent["status"] = document{
		"token":               fmt.Sprintf("canary-token %s/%s %v %d", at.namespace, at.name, spec["audiences"], s.version),
		"expirationTimestamp": time.Now().Add(s.expiry).UTC().Format(time.RFC3339),
	}
	_ = json.NewEncoder(w).Encode(sent)
}

// put makes object the one at a place, and returns it. Callers hold s.mu.
func (s *server) put(at address, object document) document {
	known := s.objects[at]
	kind := "ADDED"
	meta := maps.Clone(object["metadata"].(document))
	generation := 1.0
	if known != nil {
		kind = "MODIFIED"
		was := known["metadata"].(document)
		meta["uid"], meta["resourceVersion"] = was["uid"], was["resourceVersion"]
		if generation, _ = was["generation"].(float64); !reflect.DeepEqual(known["spec"], object["spec"]) {
			generation++
		}
	}
	object = maps.Clone(object)
	object["metadata"] = meta
	object["apiVersion"], object["kind"] = kinds[at.resource][0], kinds[at.resource][1]
	meta["namespace"], meta["name"], meta["generation"] = at.namespace, at.name, generation
	if known != nil && reflect.DeepEqual(known, object) {
		return object
	}
	s.version++
	meta["resourceVersion"] = strconv.Itoa(s.version)
	if known == nil {
		meta["uid"] = fmt.Sprintf("uid-%d", s.version)
		meta["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
	}
	s.objects[at] = object
	s.tell(at.resource, kind, object)
	return object
}

// remove takes an object away. Callers hold s.mu.
func (s *server) remove(at address) {
	s.version++
	s.tell(at.resource, "DELETED", s.objects[at])
	delete(s.objects, at)
}

func (s *server) tell(resource, kind string, object document) {
	event, err := json.Marshal(document{"type": kind, "object": object})
	if err != nil {
		s.t.Error(err)
	}
	s.log = append(s.log, change{s.version, resource, append(event, '\n')})
	s.changed.Broadcast()
}

func (s *server) watch(w http.ResponseWriter, r *http.Request, at address) {
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	w.(http.Flusher).Flush()
	defer s.changed.Broadcast()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // a client that goes away must wake the loop
		select {
		case <-r.Context().Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			s.changed.Broadcast()
		case <-stop:
		}
	}()
	for sent := 0; ; {
		var news bytes.Buffer
		s.mu.Lock()
		for news.Len() == 0 {
			if s.closed || r.Context().Err() != nil {
				s.mu.Unlock()
				return
			}
			for ; sent < len(s.log); sent++ {
				if c := s.log[sent]; c.resource == at.resource && c.version > since {
					news.Write(c.event)
				}
			}
			if news.Len() == 0 {
				s.changed.Wait()
			}
		}
		s.mu.Unlock()
		if _, err := news.WriteTo(w); err != nil {
			return
		}
		w.(http.Flusher).Flush()
	}
}

// apply merges JSON into the object at a place, as a user does.
func (s *server) apply(resource, name, text string) {
	s.t.Helper()
	var object document
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		s.t.Fatal(err)
	}
	at := address{resource, namespace, name, ""}
	s.mu.Lock()
	defer s.mu.Unlock()
	if object["metadata"] == nil {
		object["metadata"] = document{}
	}
	s.put(at, merge(s.objects[at], object).(document))
}

func (s *server) delete(resource, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(address{resource, namespace, name, ""})
}

// get reads an object into into, and reports whether there is one.
func (s *server) get(resource, name string, into any) bool {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	object := s.objects[address{resource, namespace, name, ""}]
	if object == nil {
		return false
	}
	text, err := json.Marshal(object)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return true
}

// written returns what was written of some resources since the last call.
func (s *server) written(resources ...string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []string
	for _, w := range s.writes {
		if slices.Contains(resources, strings.Fields(w)[1]) {
			found = append(found, w)
		}
	}
	s.writes = nil
	return found
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("in a minute there was not: %s", what)
}
