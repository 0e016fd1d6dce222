package cluster

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// api is an API server that has one object, at path. A real one answers in
// test/e2e.
type api struct {
	path  string
	code  int // of the answer
	asked int
}

const itsMetadata = `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"web","uid":"u1","annotations":{"a":"b"},"labels":{"region":"eu"}}}`

func serveMetadata(t *testing.T, path string) (*api, *Metadata) {
	t.Helper()
	a := &api{path: path, code: http.StatusOK}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked++
		if r.URL.Path != path || !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata") {
			t.Errorf("asked for %s as %s", r.URL, r.Header.Get("Accept"))
		}
		body := itsMetadata
		if a.code != http.StatusOK {
			reason := map[int]string{403: "Forbidden", 404: "NotFound", 500: "InternalError"}[a.code]
			body = fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q}`, a.code, reason)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(a.code)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(web.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":%q}}]}`, web.URL)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	connected, err := kube.Connect(file, "test")
	if err != nil {
		t.Fatal(err)
	}
	m, err := NewMetadata(connected)
	if err != nil {
		t.Fatal(err)
	}
	return a, m
}

func TestAnnotationsOfAPodAreThoseOfThatPod(t *testing.T) {
	api, m := serveMetadata(t, "/api/v1/namespaces/shop/pods/web")
	pod := provider.Pod{Namespace: "shop", Name: "web", UID: "u1"}
	if got, err := m.PodAnnotations(t.Context(), pod); err != nil || got["a"] != "b" {
		t.Errorf("got %v, %v", got, err)
	}
	// A pod of the same name that came later is another.
	pod.UID = "u0"
	if got, err := m.PodAnnotations(t.Context(), pod); provider.KindOf(err) != provider.NotFound || got != nil {
		t.Errorf("got %v, %v", got, err)
	}
	for status, want := range map[int]struct {
		kind provider.Kind
		says string
	}{
		http.StatusForbidden:           {provider.Denied, "the driver may not read pods; let it (chart: conjur.podAnnotations=true)"},
		http.StatusNotFound:            {provider.NotFound, "it is gone"},
		http.StatusInternalServerError: {provider.Unavailable, "it is asked again"},
	} {
		api.code = status
		_, err := m.PodAnnotations(t.Context(), pod)
		if provider.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%d: got %v", status, err)
		}
	}
}

func TestAnnotationsOfAServiceAccountAreReadOnceForManyPods(t *testing.T) {
	api, m := serveMetadata(t, "/api/v1/namespaces/shop/serviceaccounts/app")
	pod := provider.Pod{Namespace: "shop", Name: "web", UID: "u1", ServiceAccount: "app"}
	ask := func(step string, kind provider.Kind, asked int) {
		t.Helper()
		got, err := m.AccountAnnotations(t.Context(), pod)
		if (err == nil) != (got["a"] == "b") || err != nil && provider.KindOf(err) != kind || api.asked != asked {
			t.Errorf("%s: got %v, %v after %d requests, want %d", step, got, err, api.asked, asked)
		}
	}
	age := func(by time.Duration) {
		m.keep("shop/app", account{m.accounts["shop/app"].annotations, time.Now().Add(-by)})
	}
	ask("at first", 0, 1)
	ask("again", 0, 1)
	age(accountFresh)
	ask("some time later", 0, 2)
	age(accountFresh)
	api.code = http.StatusInternalServerError
	ask("while the API server is away", 0, 3)
	age(accountStale)
	ask("while it is away for long", provider.Unavailable, 4)
	api.code = http.StatusForbidden
	age(accountFresh)
	ask("without the right", provider.Denied, 5)
	for i := range 2 * maxAccounts {
		m.keep(fmt.Sprint(i), account{read: time.Now()})
	}
	if len(m.accounts) > maxAccounts {
		t.Errorf("%d accounts are kept", len(m.accounts))
	}
}

func TestALabelOfTheNode(t *testing.T) {
	api, m := serveMetadata(t, "/api/v1/nodes/n1")
	for _, label := range []string{"region", "region", "other", "other"} {
		want := map[string]string{"region": "eu"}[label]
		if got, err := m.NodeLabel(t.Context(), "n1", label); got != want || err != nil {
			t.Errorf("%s: got %q, %v", label, got, err)
		}
	}
	if api.asked != 3 { // what it has not may come
		t.Errorf("%d requests", api.asked)
	}
}
