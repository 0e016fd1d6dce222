package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// server stands in for an API server, as far as one watch, applies and events
// go. test/e2e runs the same against a real one.
type server struct {
	t   *testing.T
	api *kube.API

	mu      sync.Mutex
	objects map[string]PodStatus // by namespace/name
	writes  []string             // their bodies
	refuse  func(body string) (code int, message string)
	watches []chan string
	events  []string
}

func newServer(t *testing.T, objects ...PodStatus) *server {
	t.Helper()
	s := &server{t: t, objects: map[string]PodStatus{}}
	for _, o := range objects {
		s.objects[o.Namespace+"/"+o.Name] = o
	}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
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

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case strings.HasSuffix(r.URL.Path, "/events"):
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.events = append(s.events, string(body))
		s.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(body)
	case r.Method == http.MethodGet && r.URL.Query().Get("sendInitialEvents") == "true":
		s.fail(w, http.StatusUnprocessableEntity, "no streamed lists here")
	case r.Method == http.MethodGet && r.URL.Query().Get("watch") != "":
		s.watch(w, r)
	case r.Method == http.MethodGet:
		if got, want := r.URL.Query().Get("labelSelector"), NodeLabel+"=node-1"; got != want {
			s.t.Errorf("the label selector is %q, want %q", got, want)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		list := PodStatusList{}
		list.APIVersion, list.Kind, list.ResourceVersion = class.GroupVersion.String(), PodStatusKind+"List", "1"
		for _, o := range s.objects {
			list.Items = append(list.Items, o)
		}
		_ = json.NewEncoder(w).Encode(list)
	case r.Method == http.MethodPatch:
		body, _ := io.ReadAll(r.Body)
		if r.URL.Query().Get("fieldManager") == "" || r.Header.Get("Content-Type") != "application/apply-patch+yaml" {
			s.t.Errorf("%s is no server-side apply", r.URL)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.refuse != nil {
			if code, message := s.refuse(string(body)); code != 0 {
				s.fail(w, code, message)
				return
			}
		}
		s.writes = append(s.writes, string(body))
		var o PodStatus
		if err := json.Unmarshal(body, &o); err != nil {
			s.t.Error(err)
		}
		s.objects[o.Namespace+"/"+o.Name] = o
		_, _ = w.Write(body)
	default:
		s.t.Errorf("unexpected request: %s %s", r.Method, r.URL)
	}
}

func (s *server) fail(w http.ResponseWriter, code int, message string) {
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"message":%q}`, code, message)
}

func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	events := make(chan string, 10)
	s.mu.Lock()
	s.watches = append(s.watches, events)
	s.mu.Unlock()
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-events:
			_, _ = io.WriteString(w, e+"\n")
			w.(http.Flusher).Flush()
		}
	}
}

// tell sends an event to every watch.
func (s *server) tell(kind string, o PodStatus) {
	s.t.Helper()
	s.eventually("a watch", func() bool { return len(s.watches) > 0 })
	o.APIVersion, o.Kind, o.ResourceVersion = class.GroupVersion.String(), PodStatusKind, "2"
	body, err := json.Marshal(map[string]any{"type": kind, "object": o})
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.watches {
		w <- string(body)
	}
}

// eventually waits until a condition holds, under the server's lock.
func (s *server) eventually(what string, holds func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		ok := holds()
		s.mu.Unlock()
		if ok {
			return
		}
	}
	s.t.Fatalf("in a minute there was not: %s; written was %q", what, s.writes)
}

// written waits for the nth write, and returns it.
func (s *server) written(n int) PodStatus {
	s.t.Helper()
	s.eventually(fmt.Sprintf("write %d", n), func() bool { return len(s.writes) >= n })
	s.mu.Lock()
	defer s.mu.Unlock()
	var o PodStatus
	if err := json.Unmarshal([]byte(s.writes[n-1]), &o); err != nil {
		s.t.Fatal(err)
	}
	return o
}

// quiet checks that there are n writes, and no more come soon.
func (s *server) quiet(n int) {
	s.t.Helper()
	time.Sleep(3 * settle)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.writes) != n {
		s.t.Errorf("there are %d writes, want %d: %q", len(s.writes), n, s.writes)
	}
}

func (s *server) statuses() *Statuses {
	s.t.Helper()
	statuses := s.newStatuses()
	s.run(statuses)
	return statuses
}

// newStatuses returns Statuses that are not run yet.
func (s *server) newStatuses() *Statuses {
	s.t.Helper()
	statuses, err := NewStatuses(s.api, "node-1")
	if err != nil {
		s.t.Fatal(err)
	}
	return statuses
}

// run runs Statuses until the test ends.
func (s *server) run(statuses *Statuses) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); statuses.Run(ctx) }()
	s.t.Cleanup(func() { cancel(); <-ended })
}

var published = time.Date(2026, 11, 21, 8, 0, 0, 123456789, time.Local)

func info(pod, className string) volume.Info {
	return volume.Info{
		VolumeID: "csi-" + pod, TargetPath: "/pods/" + pod + "/" + className, Class: class.Ref{Namespace: "shop", Name: className}, Provider: "vault",
		Pod:       provider.Pod{Namespace: "shop", Name: pod, UID: "uid-" + pod},
		Objects:   []provider.ObjectVersion{{ID: "b", Version: "2"}, {ID: "a", Version: "1"}, {ID: "a", Version: "1"}},
		Published: published, Changed: published, Refreshed: published,
	}
}

func TestAStatusSaysWhatIsMounted(t *testing.T) {
	s := newServer(t)
	s.statuses().Published(info("web", "db"))
	s.written(1)
	want := `{"kind":"SecretProviderClassPodStatus","apiVersion":"secrets-store.csi.x-k8s.io/v1",` +
		`"metadata":{"namespace":"shop","name":"web-shop-db","labels":{"internal.secrets-store.csi.k8s.io/node-name":"node-1"},` +
		`"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"web","uid":"uid-web"}]},` +
		`"status":{"podName":"web","secretProviderClassName":"db","mounted":true,"targetPath":"/pods/web/db","objects":[{"id":"a","version":"1"},{"id":"b","version":"2"}],` +
		`"provider":"vault","mountedAt":"TIME","lastRotationTime":"TIME",` +
		`"conditions":[{"type":"Ready","status":"True","lastTransitionTime":"TIME","reason":"Mounted","message":"the files are those of the last refresh"}]}}`
	want = strings.ReplaceAll(want, "TIME", published.UTC().Format(time.RFC3339))
	if s.writes[0] != want {
		t.Errorf("written was\n%s\nwant\n%s", s.writes[0], want)
	}
}

// kubelet repeats a publish every minute, and a refresh that finds nothing new
// has nothing to tell.
func TestWhatIsUnchangedIsNotWritten(t *testing.T) {
	s := newServer(t)
	statuses := s.statuses()
	v := info("web", "db")
	for range 100 {
		statuses.Published(v)
		v.Refreshed = v.Refreshed.Add(time.Minute)
		statuses.Refreshed(v, false)
	}
	s.written(1)
	s.quiet(1)
	v.Objects, v.Changed = []provider.ObjectVersion{{ID: "a", Version: "2"}}, v.Changed.Add(time.Hour)
	statuses.Refreshed(v, true)
	if got := s.written(2).Status; got.Objects[0].Version != "2" || !got.LastRotationTime.Equal(ptr(v.Changed.Truncate(time.Second))) {
		t.Errorf("after a rotation: %+v", got)
	}
	statuses.Unpublished(v)
	s.quiet(2)
}

func TestAFailedRefreshIsACondition(t *testing.T) {
	s := newServer(t)
	statuses := s.statuses()
	v := info("web", "db")
	statuses.Published(v)
	s.written(1)
	for i := range 10 {
		v.LastError = &provider.Error{Kind: provider.TooLarge, Err: fmt.Errorf("request %d is refused: %s", i, strings.Repeat("x", 2000))}
		statuses.Refreshed(v, false)
	}
	c := s.written(2).Status.Conditions[0]
	if c.Status != "False" || c.Reason != "TooLarge" || len(c.Message) > 1024 || !strings.Contains(c.Message, "is refused") || time.Since(c.LastTransitionTime.Time) > time.Hour {
		t.Errorf("the condition is %+v", c)
	}
	s.quiet(2)
	v.LastError = nil
	statuses.Refreshed(v, false)
	if c := s.written(3).Status.Conditions[0]; c.Status != "True" || time.Since(c.LastTransitionTime.Time) > time.Hour {
		t.Errorf("the condition is %+v", c)
	}
}

// two Secrets, one of which was never there.
var two = []secretsync.Told{{Name: "login", WrittenAt: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}, {Name: "tls"}}

func TestHowSecretsStandIsACondition(t *testing.T) {
	s := newServer(t)
	statuses := s.statuses()
	v := info("web", "db")
	statuses.Synced(v, two, nil) // of a volume of which nobody has heard
	statuses.Published(v)
	if n := len(s.written(1).Status.Conditions); n != 1 {
		t.Errorf("there are %d conditions", n)
	}
	for range 10 {
		statuses.Synced(v, two, &provider.Error{Kind: provider.Invalid, Err: errors.New("it exists")})
	}
	if c := s.written(2).Status.Conditions[1]; c.Type != "Synced" || c.Status != "False" || c.Reason != "Invalid" || c.Message != "it exists" {
		t.Errorf("the condition is %+v", c)
	}
	for range 10 {
		statuses.Synced(v, two, nil)
	}
	if c := s.written(3).Status.Conditions[1]; c.Status != "True" || c.Message != "Secrets are as secretObjects wants them: 2" {
		t.Errorf("the condition is %+v", c)
	}
	s.quiet(3)
	later := slices.Clone(two)
	later[0].WrittenAt = later[0].WrittenAt.Add(time.Hour)
	statuses.Synced(v, later, nil)
	if got := s.written(4).Status.Secrets; len(got) != 2 || got[0].Name != "login" || !got[0].WrittenAt.Equal(ptr(later[0].WrittenAt)) || got[1].Name != "tls" || got[1].WrittenAt != nil {
		t.Errorf("the Secrets are %+v", got)
	}
	statuses.Synced(v, nil, nil)
	if got := s.written(5).Status; len(got.Conditions) != 1 || len(got.Secrets) != 0 {
		t.Errorf("the status is %+v", got)
	}
}

func TestARestartDoesNotTakeTheConditionOfSecretsAway(t *testing.T) {
	first := newServer(t)
	statuses := first.statuses()
	statuses.Published(info("web", "db"))
	statuses.Synced(info("web", "db"), two, nil)
	first.eventually("the condition", func() bool {
		its := first.objects["shop/web-shop-db"].Status
		return len(its.Conditions) == 2 && len(its.Secrets) == 2
	})
	first.mu.Lock()
	left := first.objects["shop/web-shop-db"]
	first.mu.Unlock()
	for _, c := range []struct {
		name         string
		volumesFirst bool // else the list of statuses is
	}{{"volumes are known first", true}, {"statuses are known first", false}} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, left)
			statuses := s.newStatuses()
			if c.volumesFirst {
				statuses.Published(info("web", "db"))
			}
			s.run(statuses)
			<-statuses.started
			statuses.Published(info("web", "db"))
			s.quiet(0)
			statuses.Synced(info("web", "db"), two, nil)
			s.quiet(0)
		})
	}
}

func TestAStatusThatIsGoneBeforeItsVolumeIsKnownIsWritten(t *testing.T) {
	s := newServer(t)
	statuses := s.statuses()
	statuses.Published(info("web", "db"))
	left := s.written(1)
	second := newServer(t, left)
	statuses = second.statuses()
	<-statuses.started
	second.tell("DELETED", left)
	second.eventually("the end of the status", func() bool {
		statuses.mu.Lock()
		defer statuses.mu.Unlock()
		return len(statuses.seen) == 0
	})
	statuses.Published(info("web", "db"))
	second.written(1)
}

func TestASecretThatCannotBeMadeIsToldOnce(t *testing.T) {
	s := newServer(t)
	events, err := NewEvents(s.api, "driver.test", "node-1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); events.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	v := info("web", "db")
	failure := &provider.Error{Kind: provider.NotFound, Object: "class shop/db", Err: errors.New("no file")}
	events.Synced(v, two, failure) // of a volume of which nobody has heard
	events.Published(v)
	for range 5 {
		events.Synced(v, two, failure)
	}
	events.Synced(v, two, nil)
	events.Synced(v, two, &provider.Error{Kind: provider.Invalid, Err: errors.New("it exists")})
	s.eventually("events", func() bool { return len(s.events) >= 2 })
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, want := range []string{"class shop/db: no file", "it exists"} {
		if !strings.Contains(s.events[i], `"reason":"SecretSyncFailed","message":"`+want) || !strings.Contains(s.events[i], `"type":"Warning"`) {
			t.Errorf("event %d is %s", i, s.events[i])
		}
	}
	if len(s.events) > 2 {
		t.Errorf("there are more: %q", s.events[2:])
	}
}

// After a restart, what the API server has already is not written again.
func TestARestartWritesWhatDiffersOnly(t *testing.T) {
	first := newServer(t)
	statuses := first.statuses()
	statuses.Published(info("web", "db"))
	statuses.Published(info("api", "db"))
	first.written(2)
	var found []PodStatus
	for _, o := range first.objects {
		if o.Status.PodName == "api" {
			o.Status.Objects = nil
		}
		found = append(found, o)
	}
	s := newServer(t, found...)
	statuses = s.statuses()
	statuses.Published(info("web", "db"))
	statuses.Published(info("api", "db"))
	statuses.Published(info("new", "db"))
	s.written(2)
	s.quiet(2)
	if !strings.Contains(s.writes[0]+s.writes[1], "api-shop-db") || !strings.Contains(s.writes[0]+s.writes[1], "new-shop-db") {
		t.Errorf("written was %q", s.writes)
	}
}

func TestWhatOthersChangeIsPutRight(t *testing.T) {
	s := newServer(t)
	statuses := s.statuses()
	statuses.Published(info("web", "db"))
	right := s.written(1)
	wrong := right
	wrong.Status.TargetPath = "/etc"
	wrong.Labels = nil
	s.tell("MODIFIED", wrong)
	if got := s.written(2).Status.TargetPath; got != right.Status.TargetPath {
		t.Errorf("the target path is %q", got)
	}
	s.tell("DELETED", right)
	s.written(3)
	statuses.Unpublished(info("web", "db"))
	s.tell("DELETED", right)
	s.quiet(3)
}

func TestAWriteThatFailsIsTriedAgain(t *testing.T) {
	s := newServer(t)
	failures := 0
	s.refuse = func(string) (int, string) {
		if failures++; failures == 1 {
			return http.StatusServiceUnavailable, "later"
		}
		return 0, ""
	}
	s.statuses().Published(info("web", "db"))
	s.written(1)
}

// The definitions may still be those of secrets-store-csi-driver.
func TestAStatusFitsTheDefinitionThatIsThere(t *testing.T) {
	s := newServer(t)
	s.refuse = func(body string) (int, string) {
		if strings.Contains(body, "conditions") {
			return http.StatusInternalServerError, "failed to create typed patch object: .status.conditions: field not declared in schema"
		}
		return 0, ""
	}
	s.statuses().Published(info("web", "db"))
	if got := s.written(1).Status; !got.Mounted || got.MountedAt != nil || got.Provider != "" {
		t.Errorf("written was %+v", got)
	}
	s.quiet(1)
}

func TestNamesDoNotClash(t *testing.T) {
	s := newServer(t)
	statuses := s.statuses()
	a, b := info("a-shop", "x"), info("a", "shop-x") // both a-shop-shop-x
	long := info("p"+strings.Repeat("o", 250), "db")
	twice := info("web", "db")
	twice.TargetPath += "-2"
	for _, v := range []volume.Info{a, b, long, info("web", "db"), twice} {
		statuses.Published(v)
	}
	s.written(4)
	s.quiet(4)
	names := map[string]bool{}
	for n := range 4 {
		o := s.written(n + 1)
		if names[o.Name] = true; len(o.Name) > 253 {
			t.Errorf("the name %s has %d bytes", o.Name, len(o.Name))
		}
	}
	if len(names) != 4 || !names["a-shop-shop-x"] || !names["web-shop-db"] {
		t.Errorf("the names are %v", names)
	}
	if label := nodeLabel(strings.Repeat("n", 64)); len(label) > 63 || nodeLabel("node-1") != "node-1" {
		t.Errorf("a long node's label is %q", label)
	}
}

func TestEventsAreSentOnce(t *testing.T) {
	s := newServer(t)
	e, err := NewEvents(s.api, "secrets-store.csi.k8s.io", "node-1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); e.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	expect := func(n int, reason, text string) {
		t.Helper()
		s.eventually(fmt.Sprintf("event %d", n), func() bool { return len(s.events) >= n })
		time.Sleep(100 * time.Millisecond)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.events) != n || !strings.Contains(s.events[n-1], reason) || !strings.Contains(s.events[n-1], text) || !strings.Contains(s.events[n-1], `"uid":"uid-web"`) {
			t.Errorf("the events are %q, want %s %q as number %d", s.events, reason, text, n)
		}
	}
	v := info("web", "db")
	e.Published(v)
	for range 20 {
		v.LastError = errors.New("no such host")
		e.Refreshed(v, false)
	}
	expect(1, reasonRotationFailed, "no such host")
	v.LastError = &provider.Error{Kind: provider.Denied, Err: errors.New("not allowed")}
	e.Refreshed(v, false)
	expect(2, reasonRotationFailed, "not allowed")
	for range 20 { // a store that says now this, now that
		for _, err := range []error{errors.New("no such host"), &provider.Error{Kind: provider.Denied, Err: errors.New("not allowed")}} {
			v.LastError = err
			e.Refreshed(v, false)
		}
	}
	expect(2, reasonRotationFailed, "not allowed")
	v.LastError = nil
	e.Refreshed(v, false)
	expect(3, reasonRotated, "answers again")
	e.Refreshed(v, false)
	e.Refreshed(v, true)
	expect(4, reasonRotated, "switched the files")

	e.Mounts = true
	e.Published(v) // once more
	v.TargetPath, v.Published = "/another", time.Now()
	e.Published(v)
	expect(5, reasonMounted, "mounted 3 objects")

	e.Mounts = false
	v.TargetPath, v.SealedAt = "/a third", time.Now().Add(-2*time.Hour)
	e.Published(v)
	e.Published(v)
	expect(6, reasonMountedSealed, "mounted 3 objects of SecretProviderClass shop/db as provider vault gave them 2h0m0s ago")
}

func ptr(t time.Time) *metav1.Time { return &metav1.Time{Time: t} }
