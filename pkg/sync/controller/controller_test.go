package controller

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/fetch"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/rotation"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync"
)

const (
	namespace = "shop"
	value     = "canary-value"
)

// vault stands in for a store: what it holds, and what it was asked.
type vault struct {
	mu       sync.Mutex
	files    map[string]string
	err      error
	lease    string // that comes with each answer
	asking   func() // called by each fetch; may be nil
	requests []provider.Request
	released []string
}

func (v *vault) Fetch(_ context.Context, req provider.Request) (provider.Result, error) {
	if v.asking != nil {
		v.asking()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.requests = append(v.requests, req)
	if v.lease != "" {
		if err := req.Keep(secret.FromString(v.lease)); err != nil {
			return provider.Result{}, err
		}
	}
	if v.err != nil {
		return provider.Result{}, v.err
	}
	var r provider.Result
	for path, text := range v.files {
		r.Files = append(r.Files, provider.File{Path: path, Mode: 0o644, Contents: secret.FromString(text)})
	}
	return r, nil
}

func (v *vault) StoreOf(secret.Value) (string, bool) { return "", false }

func (v *vault) Release(_ context.Context, state secret.Value) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.released = append(v.released, string(state.Reveal()))
	return nil
}

func (v *vault) Identity(_ context.Context, req provider.Request) (string, bool) {
	switch req.Parameters["identity"] {
	case "account":
		return req.Pod.Namespace + "/" + req.Pod.ServiceAccount, len(req.Tokens) > 0
	case "machine":
		return "the machine", true
	}
	return "", false
}

func (v *vault) asked() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.requests)
}

func (v *vault) last() provider.Request {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.requests[len(v.requests)-1]
}

func (v *vault) change(do func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	do()
}

// still returns a Controller that hears of classes, and of SecretSyncs when it is told.
func (s *server) still(v *vault) *Controller {
	c, _ := s.controller(v, func(context.Context, *Controller) {})
	return c
}

// start runs a Controller, which stop ends.
func (s *server) start(v *vault) (c *Controller, stop func()) {
	return s.controller(v, func(ctx context.Context, c *Controller) { c.Run(ctx) })
}

func (s *server) controller(v *vault, run func(context.Context, *Controller)) (c *Controller, stop func()) {
	s.t.Helper()
	classes, err := class.NewCluster(s.api, filepath.Join(s.t.TempDir(), "classes.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	writer, err := secretsync.NewWriter(s.api, "csi-secrets")
	if err != nil {
		s.t.Fatal(err)
	}
	providers := provider.NewRegistry(map[string]provider.Provider{"vault": v}, nil)
	c, err = New(Config{
		API: s.api, Classes: classes, Fetcher: fetch.New(providers, 0), Schedule: rotation.New(classes, providers.Get, time.Hour),
		Writer: writer, TokenRequests: []TokenRequest{{Audience: "vault", ExpirationSeconds: 600}, {}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { classes.Run(ctx) })
	running.Go(func() { run(ctx, c) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	s.t.Cleanup(stop)
	return c, stop
}

func (s *server) secret(name string) (found corev1.Secret, ok bool) {
	ok = s.get("secrets", name, &found)
	return found, ok
}

func (s *server) status(name string) Status {
	var found SecretSync
	s.get("secretsyncs", name, &found)
	return found.Status
}

// becomes waits until a condition of a SecretSync is as it should be, for its last
// generation.
func (s *server) becomes(name string, status metav1.ConditionStatus, reason string) metav1.Condition {
	s.t.Helper()
	var found SecretSync
	var c metav1.Condition
	eventually(s.t, fmt.Sprintf("%s with %s and %s", name, status, reason), func() bool {
		s.get("secretsyncs", name, &found)
		kind := conditionUpdated
		if found.Status.SyncHash == "" {
			kind = conditionCreated
		}
		if known := meta.FindStatusCondition(found.Status.Conditions, kind); known != nil {
			c = *known
		}
		return c.Status == status && c.Reason == reason && c.ObservedGeneration == found.Generation
	})
	return c
}

func (s *server) events() (all []corev1.Event) {
	s.mu.Lock()
	var names []string
	for at := range s.objects {
		if at.resource == "events" {
			names = append(names, at.name)
		}
	}
	s.mu.Unlock()
	for _, name := range names {
		var e corev1.Event
		s.get("events", name, &e)
		all = append(all, e)
	}
	return all
}

const (
	aClass = `{"spec":{"provider":"vault","parameters":{"path":"db"}}}`
	aSync  = `{"spec":{"secretProviderClassName":"db","serviceAccountName":"web","secretSyncControllerName":"",
		"secretObject":{"type":"Opaque","labels":{"team":"a"},"data":[{"sourcePath":"password","targetKey":"pw"}]}}}`
)

// shop is a cluster with one class and one SecretSync, whose Secret is there.
func shop(t *testing.T) (*server, *vault) {
	t.Helper()
	s, v := newServer(t), &vault{files: map[string]string{"password": value, "user": "app"}}
	s.apply("secretproviderclasses", "db", aClass)
	s.apply("secretsyncs", "login", aSync)
	s.start(v)
	s.becomes("login", metav1.ConditionTrue, reasonUpToDate)
	return s, v
}

func TestASecretIsMadeWithoutAPod(t *testing.T) {
	s, v := shop(t)
	made, _ := s.secret("login")
	var from SecretSync
	s.get("secretsyncs", "login", &from)
	if got := string(made.Data["pw"]); got != value || len(made.Data) != 1 || made.Type != corev1.SecretTypeOpaque {
		t.Errorf("the Secret holds %q, of type %s", made.Data, made.Type)
	}
	if _, ok := made.Labels[madeLabel]; !ok || made.Labels["team"] != "a" {
		t.Errorf("its labels are %q", made.Labels)
	}
	owner := metav1.OwnerReference{APIVersion: "secret-sync.x-k8s.io/v1alpha1", Kind: "SecretSync", Name: "login", UID: from.UID}
	if !reflect.DeepEqual(made.OwnerReferences, []metav1.OwnerReference{owner}) {
		t.Errorf("its owners are %+v", made.OwnerReferences)
	}
	if !meta.IsStatusConditionTrue(from.Status.Conditions, conditionCreated) || from.Status.SyncHash == "" || from.Status.LastSuccessfulSyncTime == nil {
		t.Errorf("the status is %+v", from.Status)
	}
	req := v.last()
	if req.Pod != (provider.Pod{Namespace: namespace, ServiceAccount: "web"}) {
		t.Errorf("the store was asked as %+v", req.Pod)
	}
	for audience, want := range map[string]string{"vault": "canary-token shop/web [vault]", "": "canary-token shop/web <nil>"} {
		if got := string(req.Tokens[audience].Value.Reveal()); !strings.HasPrefix(got, want) {
			t.Errorf("the token for %q is %q", audience, got)
		}
	}
}

func TestWhatIsThereIsNotWrittenAgain(t *testing.T) {
	s, v := newServer(t), &vault{files: map[string]string{"password": value}}
	s.apply("secretproviderclasses", "db", aClass)
	s.apply("secretsyncs", "login", aSync)
	_, stop := s.start(v)
	s.becomes("login", metav1.ConditionTrue, reasonUpToDate)
	stop()
	s.written()
	c, _ := s.start(v)
	asked := v.asked()
	eventually(t, "a fetch of another leader", func() bool { return v.asked() > asked })
	if _, err := c.Refresh(t.Context(), "shop/login", time.Now(), nil); err != nil {
		t.Error(err)
	}
	if w := s.written("secrets", "secretsyncs", "events"); len(w) > 0 {
		t.Errorf("written was %q", w)
	}
}

func TestChangesAreFollowedAtOnce(t *testing.T) {
	s, v := shop(t)
	holds := func(key, want string) {
		t.Helper()
		eventually(t, key+" with "+want, func() bool {
			has, _ := s.secret("login")
			return string(has.Data[key]) == want && len(has.Data) == 1
		})
	}
	hash := s.status("login").SyncHash
	v.change(func() { v.files["password"] = value + "-2" })
	s.apply("secretproviderclasses", "db", `{"spec":{"parameters":{"path":"other"}}}`)
	holds("pw", value+"-2")
	eventually(t, "another hash", func() bool { return s.status("login").SyncHash != hash })
	eventually(t, "a request for what the class has now", func() bool { return v.last().Parameters["path"] == "other" })

	v.change(func() { v.files["password"] = value + "-3" })
	s.apply("secretproviderclasses", "db", `{"metadata":{"annotations":{"`+class.RefreshAnnotation+`":"now"}}}`)
	holds("pw", value+"-3")

	v.change(func() { v.files["password"] = value + "-4" })
	s.apply("secretsyncs", "login", `{"spec":{"forceSynchronization":"now"}}`)
	holds("pw", value+"-4")

	s.apply("secretsyncs", "login", `{"spec":{"secretObject":{"data":[{"sourcePath":"user","targetKey":"name"}]}}}`)
	holds("name", "app")

	s.apply("secretproviderclasses", "db2", `{"spec":{"provider":"vault","parameters":{"path":"db2"}}}`)
	s.apply("secretsyncs", "login", `{"spec":{"secretProviderClassName":"db2","serviceAccountName":"api"}}`)
	eventually(t, "a request of the other class and account", func() bool {
		last := v.last()
		return last.Parameters["path"] == "db2" && last.Pod.ServiceAccount == "api"
	})
	s.apply("secretproviderclasses", "db2", `{"spec":{"parameters":{"path":"db3"}}}`)
	eventually(t, "a request for what the other class has now", func() bool { return v.last().Parameters["path"] == "db3" })
	s.becomes("login", metav1.ConditionTrue, reasonUpToDate)

	s.delete("secretsyncs", "login")
	s.apply("secretsyncs", "marker", aSync)
	s.becomes("marker", metav1.ConditionTrue, reasonUpToDate)
	asked := v.asked()
	s.apply("secretproviderclasses", "db2", `{"spec":{"parameters":{"path":"gone"}}}`)
	s.apply("secretproviderclasses", "db", `{"metadata":{"annotations":{"`+class.RefreshAnnotation+`":"again"}}}`)
	eventually(t, "a request for the marker", func() bool { return v.asked() > asked })
	if v.last().Parameters["path"] == "gone" {
		t.Error("the store is asked for a SecretSync that is gone")
	}
}

func TestAForcedSynchronizationIsSeenWithoutAChange(t *testing.T) {
	s, _ := shop(t)
	hash := s.status("login").SyncHash
	wrote(s, "2020-01-01T00:00:00Z")
	s.written()
	s.apply("secretsyncs", "login", `{"spec":{"forceSynchronization":"now"}}`)
	s.becomes("login", metav1.ConditionTrue, reasonUpToDate) // of the new generation
	if s.status("login").SyncHash != hash || len(s.written("secrets")) > 0 {
		t.Error("the Secret was written")
	}
	if at := s.status("login").LastSuccessfulSyncTime; at.Year() != 2020 {
		t.Errorf("it was written at %s", at)
	}
}

// wrote has the Secret login written at another time.
func wrote(s *server, at string) {
	s.apply("secrets", "login", `{"metadata":{"managedFields":[{"manager":"`+secretsync.FieldManager+`","operation":"Apply","time":"`+at+`"}]}}`)
}

// A restart of those that use the Secret goes by its time.
func TestTheTimeOfAnOutageIsNoneOfTheSecret(t *testing.T) {
	s, v := shop(t)
	wrote(s, "2020-01-01T00:00:00Z")
	for _, err := range []error{&provider.Error{Kind: provider.Invalid, Err: errors.New("the store is sealed")}, nil} {
		v.change(func() { v.err = err })
		s.apply("secretproviderclasses", "db", `{"metadata":{"annotations":{"`+class.RefreshAnnotation+`":"`+fmt.Sprint(err)+`"}}}`)
		if err != nil {
			s.becomes("login", metav1.ConditionFalse, reasonProvider)
		}
	}
	s.becomes("login", metav1.ConditionTrue, reasonUpToDate)
	if at := s.status("login").LastSuccessfulSyncTime; at.Year() != 2020 {
		t.Errorf("the Secret was written at %s", at)
	}
}

func TestTheLastGoodSecretStays(t *testing.T) {
	s, v := shop(t)
	before, _ := s.secret("login")
	since := s.status("login").LastSuccessfulSyncTime.UTC().Format(time.RFC3339)
	v.change(func() {
		v.err = &provider.Error{Kind: provider.Invalid, Object: `object "db"`, Err: errors.New("the store is sealed")}
	})
	refresh := func(text string) {
		s.apply("secretproviderclasses", "db", `{"metadata":{"annotations":{"`+class.RefreshAnnotation+`":"`+text+`"}}}`)
	}
	refresh("1")
	c := s.becomes("login", metav1.ConditionFalse, reasonProvider)
	for _, want := range []string{"since " + since, `provider "vault"`, `object "db": the store is sealed`} {
		if !strings.Contains(c.Message, want) {
			t.Errorf("the message %q does not have %q", c.Message, want)
		}
	}
	eventually(t, "an event", func() bool { return len(s.events()) == 1 })
	if e := s.events()[0]; e.Reason != reasonProvider || e.Type != corev1.EventTypeWarning || e.InvolvedObject.Kind != Kind || e.InvolvedObject.Name != "login" || !strings.Contains(e.Message, "sealed") {
		t.Errorf("the event is %+v", e)
	}

	v.change(func() {
		v.err = &provider.Error{Kind: provider.Invalid, Err: errors.New("the store is sealed, said in other words")}
	})
	s.written()
	asked := v.asked()
	refresh("2")
	eventually(t, "another fetch", func() bool { return v.asked() > asked })
	refresh("3")
	eventually(t, "one more, after that has ended", func() bool { return v.asked() > asked+1 })
	if w := s.written("secrets", "secretsyncs", "events"); len(w) > 0 {
		t.Errorf("the same failure wrote %q", w)
	}

	s.delete("secretproviderclasses", "db")
	if c := s.becomes("login", metav1.ConditionFalse, reasonClass); !strings.Contains(c.Message, "shop/db") || !strings.Contains(c.Message, "since "+since) {
		t.Errorf("the message is %q", c.Message)
	}
	if after, _ := s.secret("login"); !reflect.DeepEqual(before, after) {
		t.Errorf("the Secret became\n%+v, it was\n%+v", after, before)
	}
	v.change(func() { v.err = nil })
	s.apply("secretproviderclasses", "db", aClass)
	s.becomes("login", metav1.ConditionTrue, reasonUpToDate)
}

func TestASecretOfSomebodyElseIsLeftAlone(t *testing.T) {
	s, v := newServer(t), &vault{files: map[string]string{"password": value}}
	s.apply("secrets", "login", `{"type":"Opaque","data":{"pw":"bWluZQ=="}}`)
	before, _ := s.secret("login")
	s.apply("secretproviderclasses", "db", aClass)
	s.apply("secretsyncs", "login", aSync)
	s.start(v)
	c := s.becomes("login", metav1.ConditionFalse, reasonWrite)
	eventually(t, "an event", func() bool { return len(s.events()) == 1 })
	for _, text := range []string{c.Message, s.events()[0].Message} {
		if !strings.Contains(text, "Secret shop/login") {
			t.Errorf("%q does not name it", text)
		}
	}
	if after, _ := s.secret("login"); !reflect.DeepEqual(before, after) {
		t.Errorf("it became %+v", after)
	}
	if c := meta.FindStatusCondition(s.status("login").Conditions, conditionUpdated); c == nil || c.Status != metav1.ConditionUnknown || c.Reason != reasonNoUpdate {
		t.Errorf("the other condition is %+v", c)
	}
}

func TestWhatCannotBecomeASecret(t *testing.T) {
	for name, test := range map[string]struct {
		sync, class string
		reason      string
		want        []string
	}{
		"a token of Kubernetes":                 {sync: `{"spec":{"secretObject":{"type":"kubernetes.io/service-account-token"}}}`, reason: reasonContents, want: []string{"kubernetes.io/service-account-token"}},
		"a file that is not there":              {sync: `{"spec":{"secretObject":{"data":[{"sourcePath":"nothing","targetKey":"pw"}]}}}`, reason: reasonContents, want: []string{"SecretSync shop/login", `"pw"`, "file matching sourcePath nothing not found in what class shop/db brings"}},
		"a class that is not there":             {sync: `{"spec":{"secretProviderClassName":"none"}}`, reason: reasonClass, want: []string{"shop/none"}},
		"an unknown provider":                   {class: `{"spec":{"provider":"other"}}`, reason: reasonProvider, want: []string{`provider "other"`}},
		"an identity that is not the account's": {class: `{"spec":{"parameters":{"identity":"machine"}}}`, reason: reasonClass, want: []string{"class shop/db", "machine of the controller"}},
		"a class with a mistake":                {class: `{"spec":{"parameters":{"rotationInterval":"soon"}}}`, reason: reasonClass, want: []string{"rotationInterval", "soon"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, v := newServer(t), &vault{files: map[string]string{"password": value}}
			s.apply("secretproviderclasses", "db", aClass)
			s.apply("secretsyncs", "login", aSync)
			if test.sync != "" {
				s.apply("secretsyncs", "login", test.sync)
			}
			if test.class != "" {
				s.apply("secretproviderclasses", "db", test.class)
			}
			s.start(v)
			c := s.becomes("login", metav1.ConditionFalse, test.reason)
			for _, want := range test.want {
				if !strings.Contains(c.Message, want) {
					t.Errorf("%q does not have %q", c.Message, want)
				}
			}
			if _, ok := s.secret("login"); ok {
				t.Error("there is a Secret")
			}
		})
	}
}

func TestNobodyIsAskedWithoutTheRightToTokens(t *testing.T) {
	s, v := newServer(t), &vault{files: map[string]string{"password": value}}
	s.apply("secretproviderclasses", "db", aClass)
	s.apply("secretsyncs", "login", aSync)
	s.refuse = func(_ string, at address) (int, string, string) {
		if at.sub == "token" {
			return http.StatusForbidden, "Forbidden", "no"
		}
		return 0, "", ""
	}
	s.start(v)
	c := s.becomes("login", metav1.ConditionFalse, reasonInternal)
	for _, want := range []string{"service account shop/web", `audience "vault"`, "serviceaccounts/token", `resourceName "web"`} {
		if !strings.Contains(c.Message, want) {
			t.Errorf("%q does not have %q", c.Message, want)
		}
	}
	if v.asked() > 0 {
		t.Error("the store was asked")
	}
}

// Nobody would renew or revoke the credentials in a Secret.
func TestCredentialsThatAreMadeForWhoeverAsksAreGivenBack(t *testing.T) {
	s, v := newServer(t), &vault{files: map[string]string{"password": value}, lease: "lease-1"}
	s.apply("secretproviderclasses", "db", aClass)
	s.apply("secretsyncs", "login", aSync)
	controller, _ := s.start(v)
	c := s.becomes("login", metav1.ConditionFalse, reasonProvider)
	if !strings.Contains(c.Message, "class shop/db") || !strings.Contains(c.Message, "volume") {
		t.Errorf("the message is %q", c.Message)
	}
	v.change(func() {
		if !slices.Equal(v.released, []string{"lease-1"}) {
			t.Errorf("given back was %q", v.released)
		}
	})
	if _, ok := s.secret("login"); ok {
		t.Error("there is a Secret")
	}
	if err := v.last().Keep(secret.FromString("late")); err == nil {
		t.Error("a provider may keep what nobody will give back")
	}
	// Others are made when there is a reason to, and not at every attempt.
	asked := v.asked()
	if _, err := controller.Refresh(t.Context(), "shop/login", time.Now(), nil); err == nil || v.asked() != asked {
		t.Errorf("a further attempt: %v, and %d requests", err, v.asked()-asked)
	}
	v.change(func() { v.lease = "lease-2" })
	s.apply("secretsyncs", "login", `{"spec":{"forceSynchronization":"now"}}`)
	eventually(t, "both to be given back", func() bool { v.mu.Lock(); defer v.mu.Unlock(); return len(v.released) == 2 })
	s.becomes("login", metav1.ConditionFalse, reasonProvider)
	v.change(func() { v.lease = "" })
	s.apply("secretproviderclasses", "db", `{"spec":{"parameters":{"path":"static"}}}`)
	s.becomes("login", metav1.ConditionTrue, reasonUpToDate)
}

// A leader may end at any request. The next one brings everything to its end.
func TestALeaderThatEndsAtAnyRequestLeavesNothingHalf(t *testing.T) {
	for after := 0; ; after++ {
		s, v := newServer(t), &vault{files: map[string]string{"password": value}}
		s.apply("secretproviderclasses", "db", aClass)
		s.apply("secretsyncs", "login", aSync)
		writes, dead := 0, false
		s.refuse = func(method string, _ address) (int, string, string) {
			if method == http.MethodGet {
				return 0, "", ""
			}
			if writes++; writes > after {
				dead = true
				return http.StatusServiceUnavailable, "ServiceUnavailable", "this leader is gone"
			}
			return 0, "", ""
		}
		_, stop := s.start(v)
		eventually(t, "an end", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return dead || meta.IsStatusConditionTrue(statusOf(s.objects[address{"secretsyncs", namespace, "login", ""}]), conditionUpdated)
		})
		stop()
		s.mu.Lock()
		s.refuse = nil
		s.mu.Unlock()
		s.start(v)
		s.becomes("login", metav1.ConditionTrue, reasonUpToDate)
		if has, _ := s.secret("login"); string(has.Data["pw"]) != value || len(has.OwnerReferences) != 1 {
			t.Errorf("after %d writes: %+v", after, has)
		}
		if !dead {
			if after < 4 { // two tokens, a Secret with its owner, a status
				t.Errorf("there were %d writes", after)
			}
			return
		}
	}
}

func statusOf(object document) (conditions []metav1.Condition) {
	status, _ := object["status"].(document)
	list, _ := status["conditions"].([]any)
	for _, c := range list {
		conditions = append(conditions, metav1.Condition{Type: c.(document)["type"].(string), Status: metav1.ConditionStatus(c.(document)["status"].(string))})
	}
	return conditions
}

func TestNoValueAndNoTokenIsToldToAnybody(t *testing.T) {
	s, v := shop(t)
	v.change(func() { v.err = &provider.Error{Kind: provider.Denied, Err: errors.New("no")} })
	s.apply("secretsyncs", "login", `{"spec":{"forceSynchronization":"now"}}`)
	s.becomes("login", metav1.ConditionFalse, reasonProvider)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, body := range s.bodies {
		for _, canary := range []string{"canary", base64.StdEncoding.EncodeToString([]byte(value))} {
			if strings.Contains(body, canary) {
				t.Errorf("%s is in %s", canary, body)
			}
		}
	}
}

// Two hundred SecretSyncs of twenty service accounts: each account logs in and asks
// once, and afterwards nothing is written.
func TestManySecretsAreMadeAtOnce(t *testing.T) {
	const syncs, accounts = 200, 20
	s, v := newServer(t), &vault{files: map[string]string{"password": value}}
	s.apply("secretproviderclasses", "db", `{"spec":{"provider":"vault","parameters":{"path":"db","identity":"account"}}}`)
	for i := range syncs {
		s.apply("secretsyncs", fmt.Sprintf("login-%d", i), strings.ReplaceAll(aSync, `"web"`, fmt.Sprintf(`"web-%d"`, i%accounts)))
	}
	began := time.Now()
	s.start(v)
	for i := range syncs {
		s.becomes(fmt.Sprintf("login-%d", i), metav1.ConditionTrue, reasonUpToDate)
	}
	took := time.Since(began)
	writes := map[string]int{}
	for _, w := range s.written("secrets", "secretsyncs", "serviceaccounts", "events") {
		writes[strings.Fields(w)[1]]++
	}
	if want := map[string]int{"secrets": 2 * syncs, "secretsyncs": syncs, "serviceaccounts": 2 * accounts}; !maps.Equal(writes, want) {
		t.Errorf("the writes are %v, want %v", writes, want)
	}
	if v.asked() > syncs/2 {
		t.Errorf("the store was asked %d times", v.asked())
	}
	asked := v.asked()
	s.apply("secretproviderclasses", "db", `{"metadata":{"annotations":{"`+class.RefreshAnnotation+`":"1"}}}`)
	eventually(t, "another fetch for each account", func() bool { return v.asked() >= asked+accounts })
	s.apply("secretproviderclasses", "db", `{"metadata":{"annotations":{"`+class.RefreshAnnotation+`":"2"}}}`)
	eventually(t, "one more", func() bool { return v.asked() >= asked+2*accounts })
	if w := s.written("secrets", "secretsyncs", "events"); len(w) > 0 {
		t.Errorf("afterwards there were %d writes, such as %s", len(w), w[0])
	}
	var used runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&used)
	t.Logf("%d Secrets in %s; the store was asked %d times; heap of controller and API server together: %d KiB", syncs, took, asked, used.HeapAlloc>>10)
}

func aSecretSync(t *testing.T, s *server) *SecretSync {
	t.Helper()
	var found SecretSync
	if !s.get("secretsyncs", "login", &found) {
		t.Fatal("there is no SecretSync")
	}
	return &found
}

// The watch may bring a status later than the next synchronization comes.
func TestAStatusIsKnownOnceItIsWritten(t *testing.T) {
	s, v := newServer(t), &vault{files: map[string]string{"password": value}}
	s.apply("secretproviderclasses", "db", aClass)
	s.apply("secretsyncs", "login", aSync)
	c := s.still(v)
	_ = c.store().Add(aSecretSync(t, s))
	for range 2 {
		if _, err := c.Refresh(t.Context(), "shop/login", time.Now(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if w := s.written("secretsyncs"); len(w) != 1 {
		t.Errorf("written was %q", w)
	}
	_ = c.store().Delete(aSecretSync(t, s))
	if _, ok := c.config.Schedule.Due("shop/login"); ok {
		t.Error("what is gone is due")
	}
}

func TestWhatChangedMeanwhileIsNotWritten(t *testing.T) {
	for name, change := range map[string]func(*server, *Controller){
		"another specification": func(s *server, c *Controller) {
			s.apply("secretsyncs", "login", `{"spec":{"forceSynchronization":"now"}}`)
			_ = c.store().Update(aSecretSync(t, s))
		},
		"no SecretSync": func(_ *server, c *Controller) { _ = c.store().Replace(nil, "") },
	} {
		t.Run(name, func(t *testing.T) {
			s, v := newServer(t), &vault{files: map[string]string{"password": value}}
			s.apply("secretproviderclasses", "db", aClass)
			s.apply("secretsyncs", "login", aSync)
			c := s.still(v)
			_ = c.store().Add(aSecretSync(t, s))
			v.asking = func() { change(s, c) }
			if _, err := c.Refresh(t.Context(), "shop/login", time.Now(), nil); err != nil {
				t.Error(err)
			}
			if w := s.written("secrets", "secretsyncs"); len(w) > 0 {
				t.Errorf("written was %q", w)
			}
		})
	}
}

func TestAStatusIsNotThatOfAnotherOfTheSameName(t *testing.T) {
	s, v := newServer(t), &vault{files: map[string]string{"password": value}}
	s.apply("secretproviderclasses", "db", aClass)
	s.apply("secretsyncs", "login", aSync)
	c := s.still(v)
	_ = c.store().Add(aSecretSync(t, s))
	s.delete("secretsyncs", "login")
	s.apply("secretsyncs", "login", aSync)
	if _, err := c.Refresh(t.Context(), "shop/login", time.Now(), nil); err != nil {
		t.Error(err)
	}
	if has := s.status("login"); len(has.Conditions) > 0 {
		t.Errorf("the other has the status %+v", has)
	}
}

// The token may be of a service account that was since made anew.
func TestAfterARefusalTheStoreIsShownAnotherToken(t *testing.T) {
	s, v := newServer(t), &vault{err: &provider.Error{Kind: provider.Denied, Err: errors.New("no")}}
	s.apply("secretproviderclasses", "db", aClass)
	s.apply("secretsyncs", "login", aSync)
	c := s.still(v)
	_ = c.store().Add(aSecretSync(t, s))
	var shown []string
	for range 2 {
		if _, err := c.Refresh(t.Context(), "shop/login", time.Now(), nil); err == nil {
			t.Error("the store did not refuse")
		}
		shown = append(shown, string(v.last().Tokens["vault"].Value.Reveal()))
	}
	if shown[0] == shown[1] {
		t.Errorf("it was shown %q", shown)
	}
}

// absent has no class, and waits for one.
type absent struct{}

func (absent) Get(ctx context.Context, ref class.Ref) (*class.SecretProviderClass, error) {
	<-ctx.Done()
	return nil, &provider.Error{Kind: provider.NotFound, Err: errors.New("there is no class")}
}

func (absent) Watch(context.Context, func(class.Ref)) error { return nil }

// Else a few hundred would hold up all others.
func TestNobodyWaitsForAClassThatIsKnownToBeGone(t *testing.T) {
	s, _ := shop(t)
	c := s.still(&vault{})
	c.config.Classes = absent{}
	_ = c.store().Add(aSecretSync(t, s))
	_, err := c.Refresh(t.Context(), "shop/login", time.Now(), nil)
	if provider.KindOf(err) != provider.NotFound {
		t.Error(err)
	}
}

func TestWhatIsWrongWithAConfiguration(t *testing.T) {
	s := newServer(t)
	for _, requests := range [][]TokenRequest{{{Audience: "a", ExpirationSeconds: 60}}, {{Audience: "a"}, {Audience: "a"}}} {
		_, err := New(Config{
			API: s.api, Classes: &class.Cluster{}, Fetcher: fetch.New(provider.NewRegistry(nil, nil), 0), Schedule: rotation.New(nil, nil, 0),
			Writer: &secretsync.Writer{}, TokenRequests: requests,
		})
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(`"a"`)) {
			t.Errorf("%v: %v", requests, err)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("nothing is needed")
	}
}
