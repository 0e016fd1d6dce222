package notice

import (
	"bytes"
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
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// classes is a Lister, or the error that it returns.
type classes struct {
	all []*class.SecretProviderClass
	err error
}

func (c classes) List(context.Context) ([]*class.SecretProviderClass, error) { return c.all, c.err }

// newClass returns a class of the namespace "shop" with one parameter.
func newClass(name, of, object string) *class.SecretProviderClass {
	c := &class.SecretProviderClass{Spec: class.Spec{Provider: of, Parameters: map[string]string{"objects": object}}}
	c.Namespace, c.Name, c.UID = "shop", name, types.UID("uid-"+name)
	return c
}

// knowing is a provider that knows what its classes name.
type knowing struct{ provider.Provider }

func (*knowing) Concerns(parameters map[string]string, hints []provider.Hint) bool {
	return slices.ContainsFunc(hints, func(h provider.Hint) bool { return h.Object == parameters["objects"] })
}

// mute is a provider that does not.
type mute struct{ provider.Provider }

func newFinder(all ...*class.SecretProviderClass) Finder {
	google := &knowing{}
	return Finder{classes{all: all}, provider.NewRegistry(map[string]provider.Provider{"azure": &knowing{}, "gcp": google, "gke": google, "conjur": &mute{}}, nil).Get}
}

func TestTheClassesThatAHintIsAboutAreFound(t *testing.T) {
	finder := newFinder(
		newClass("a", "azure", "db"), newClass("b", "azure", "db2"), newClass("c", "gcp", "db"), newClass("d", "gke", "db"),
		newClass("e", "conjur", "- prod/db"), newClass("f", "conjur", "- prod/web"), newClass("g", "nobody", "- db"),
	)
	hint := func(of, object string) provider.Hint { return provider.Hint{Provider: of, Object: object} }
	for name, c := range map[string]struct {
		hints []provider.Hint
		want  string
	}{
		"one":                                {[]provider.Hint{hint("azure", "db")}, "a"},
		"two":                                {[]provider.Hint{hint("azure", "db"), hint("azure", "db2")}, "a b"},
		"a provider of two names":            {[]provider.Hint{hint("gcp", "db")}, "c d"},
		"that provider by its other name":    {[]provider.Hint{hint("gke", "db")}, "c d"},
		"a provider that knows nothing":      {[]provider.Hint{hint("conjur", "prod/db")}, "e"},
		"all of such a provider":             {[]provider.Hint{hint("conjur", "")}, "e f"},
		"a provider that is not there":       {[]provider.Hint{hint("nobody", "db")}, "g"},
		"a provider that no class has":       {[]provider.Hint{hint("akeyless", "db")}, ""},
		"any provider":                       {[]provider.Hint{hint("*", "db")}, "a c d e g"},
		"what one has and another is not of": {[]provider.Hint{hint("azure", "x"), hint("gcp", "db2")}, ""},
	} {
		found, err := finder.Find(t.Context(), c.hints)
		var names []string
		for _, f := range found {
			names = append(names, f.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
	finder.Classes = classes{err: errors.New("the API server does not answer")}
	if _, err := finder.Find(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("without classes: %v", err)
	}
}

// writes is an API server within a bubble of synctest: it remembers when classes
// were written.
type writes struct {
	t  *testing.T
	mu sync.Mutex
	// at are the times of writes, since the beginning, by the class's name.
	at    map[string][]time.Duration
	began time.Time
	fails int // so many writes from now on
}

func (w *writes) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	answer := func(code int, body string) (*http.Response, error) {
		return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body))}, nil
	}
	if w.fails > 0 {
		w.fails--
		return answer(http.StatusServiceUnavailable, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":503}`)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Error(err)
	}
	name := filepath.Base(r.URL.Path)
	w.at[name] = append(w.at[name], time.Since(w.began))
	return answer(http.StatusOK, string(body))
}

func (w *writes) want(name string, at ...time.Duration) {
	w.t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.at[name], at) {
		w.t.Errorf("%s was written at %v, want %v", name, w.at[name], at)
	}
}

// annotating runs an Annotator in a bubble until the test ends.
func annotating(t *testing.T, all ...*class.SecretProviderClass) (a *Annotator, w *writes, stop func()) {
	w = &writes{t: t, at: map[string][]time.Duration{}, began: time.Now()}
	scheme := runtime.NewScheme()
	class.AddTypes(scheme)
	client, err := rest.RESTClientForConfigAndClient(&rest.Config{
		Host: "http://api.example.com", APIPath: "/apis", QPS: -1,
		ContentConfig: rest.ContentConfig{GroupVersion: &class.GroupVersion, NegotiatedSerializer: serializer.NewCodecFactory(scheme).WithoutConversion()},
	}, &http.Client{Transport: w})
	if err != nil {
		t.Fatal(err)
	}
	a = newAnnotator(client, newFinder(all...))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); a.Run(ctx) }()
	return a, w, func() { cancel(); <-ended }
}

func take(t *testing.T, a *Annotator, objects ...string) {
	t.Helper()
	var hints []provider.Hint
	for _, o := range objects {
		hints = append(hints, provider.Hint{Provider: "azure", Object: o})
	}
	if err := a.Take(t.Context(), hints); err != nil {
		t.Fatal(err)
	}
}

func TestHintsForAClassAreOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, w, stop := annotating(t, newClass("one", "azure", "db"), newClass("two", "azure", "db"), newClass("other", "azure", "x"))
		defer stop()
		for range 9 {
			take(t, a, "db", "db")
			time.Sleep(settle / 10)
		}
		time.Sleep(time.Minute)
		w.want("one", settle, settle+echo)
		w.want("two", settle, settle+echo)
		w.want("other")
	})
}

// The last hint counts, whenever it comes.
func TestAClassIsWrittenEveryTwoSecondsAtMostAndNeverForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, w, stop := annotating(t, newClass("one", "azure", "db"))
		defer stop()
		for range 30 { // until 2.95 seconds
			time.Sleep(50 * time.Millisecond)
			take(t, a, "db")
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(57 * time.Second)
		ms := time.Millisecond
		w.want("one", 150*ms, 2150*ms, 4150*ms, 19150*ms)
		take(t, a, "db") // at 60 seconds
		time.Sleep(1500 * time.Millisecond)
		take(t, a, "db") // soon after it was written
		time.Sleep(time.Minute)
		w.want("one", 150*ms, 2150*ms, 4150*ms, 19150*ms, 60100*ms, 62100*ms, 77100*ms)
		if len(a.written) > 1 || len(a.pending)+len(a.echoes) > 0 {
			t.Errorf("remembered are %v, %v and %v", a.written, a.pending, a.echoes)
		}
	})
}

func TestAWriteThatFailsIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, w, stop := annotating(t, newClass("one", "azure", "db"))
		defer stop()
		w.fails = 2
		take(t, a, "db")
		time.Sleep(time.Minute)
		w.want("one", settle+3*time.Second, settle+3*time.Second+echo) // after 1 and 2
	})
}

func TestWhatIsTakenIsWrittenBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, w, stop := annotating(t, newClass("one", "azure", "db"), newClass("two", "azure", "db"))
		take(t, a, "db")
		time.Sleep(settle / 2)
		stop()
		w.want("one", settle/2)
		w.want("two", settle/2)
	})
}

func TestHintsAreNotTakenWithoutClasses(t *testing.T) {
	a := newAnnotator(nil, Finder{Classes: classes{err: errors.New("the API server does not answer")}})
	defer a.queue.ShutDown()
	if err := a.Take(t.Context(), []provider.Hint{{Provider: "*"}}); err == nil {
		t.Error("they were")
	}
}

// apiServer stands in for an API server, as far as server-side apply of classes
// goes.
type apiServer struct {
	t      *testing.T
	mu     sync.Mutex
	writes []string
	gone   map[string]int // the status for classes that are not there
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Error(err)
	}
	query := r.URL.Query()
	if r.Method != http.MethodPatch || r.Header.Get("Content-Type") != "application/apply-patch+yaml" || query.Get("fieldManager") != "csi-secrets-notices" || query.Get("force") != "true" {
		s.t.Errorf("%s %s is no server-side apply", r.Method, r.URL)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, r.URL.Path+" "+string(body))
	w.Header().Set("Content-Type", "application/json")
	if code := s.gone[filepath.Base(r.URL.Path)]; code != 0 {
		w.WriteHeader(code)
		reason := map[int]string{http.StatusNotFound: "NotFound", http.StatusConflict: "Conflict"}[code]
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":"no"}`, code, reason)
		return
	}
	_, _ = io.Copy(w, bytes.NewReader(body))
}

func (s *apiServer) written() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.writes)
}

func TestTheAnnotationIsApplied(t *testing.T) {
	s := &apiServer{t: t, gone: map[string]int{"deleted": http.StatusConflict, "unknown": http.StatusNotFound}}
	web := httptest.NewServer(s)
	defer web.Close()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":%q}}]}`, web.URL)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	api, err := kube.Connect(file, "test")
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewAnnotator(api, newFinder(newClass("one", "azure", "db"), newClass("deleted", "azure", "db"), newClass("unknown", "azure", "db")))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	runUntilTheEnd(t, a.Run)
	take(t, a, "db")
	eventually(t, "three writes", func() bool { return len(s.written()) >= 3 })
	eventually(t, "an end of what is left to do", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.written) == 3
	})
	all := s.written()
	if len(all) != 3 {
		t.Errorf("the writes are %q", all) // nobody tries again what has gone
	}
	const path = "/apis/secrets-store.csi.x-k8s.io/v1/namespaces/shop/secretproviderclasses/one "
	i := slices.IndexFunc(all, func(s string) bool { return strings.HasPrefix(s, path) })
	if i < 0 {
		t.Fatalf("the writes are %q", all)
	}
	var got struct {
		APIVersion, Kind string
		Metadata         struct {
			Namespace, Name, UID string
			Annotations          map[string]string
		}
		Spec any
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(all[i], path)), &got); err != nil {
		t.Fatal(err)
	}
	at, err := time.Parse(time.RFC3339Nano, got.Metadata.Annotations[class.RefreshAnnotation])
	if err != nil || at.Before(began) || len(got.Metadata.Annotations) != 1 {
		t.Errorf("the annotations are %v", got.Metadata.Annotations)
	}
	// Without its UID, a class that is not there any more would be made.
	if got.APIVersion != "secrets-store.csi.x-k8s.io/v1" || got.Kind != class.Kind || got.Metadata.UID != "uid-one" || got.Spec != nil {
		t.Errorf("written is %s", all[i])
	}
}
