package cluster

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// A real API server answers in test/e2e.
func TestAnnotationsOfAPodAreThoseOfThatPod(t *testing.T) {
	code, body := http.StatusOK, `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"web","uid":"u1","annotations":{"a":"b"}}}`
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/namespaces/shop/pods/web" || !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata") {
			t.Errorf("asked for %s as %s", r.URL, r.Header.Get("Accept"))
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}))
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
	annotations, err := NewAnnotations(api)
	if err != nil {
		t.Fatal(err)
	}
	pod := provider.Pod{Namespace: "shop", Name: "web", UID: "u1"}
	if got, err := annotations.Of(t.Context(), pod); err != nil || got["a"] != "b" {
		t.Errorf("got %v, %v", got, err)
	}
	// A pod of the same name that came later is another.
	pod.UID = "u0"
	if got, err := annotations.Of(t.Context(), pod); provider.KindOf(err) != provider.NotFound || got != nil {
		t.Errorf("got %v, %v", got, err)
	}
	for status, want := range map[int]struct {
		kind provider.Kind
		says string
	}{
		http.StatusForbidden:           {provider.Denied, "the driver may not read pods; let it (chart: conjur.podAnnotations=true)"},
		http.StatusNotFound:            {provider.NotFound, "the pod is gone"},
		http.StatusInternalServerError: {provider.Unavailable, "it is asked again"},
	} {
		code, body = status, fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q}`, status, map[int]string{403: "Forbidden", 404: "NotFound", 500: "InternalError"}[status])
		_, err := annotations.Of(t.Context(), pod)
		if provider.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%d: got %v", status, err)
		}
	}
}
