package cluster

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/csi-secrets/csi-secrets/charts/csi-secrets/crds"
	"github.com/csi-secrets/csi-secrets/internal/kube"
)

func TestADefinitionWithAFurtherVersionStays(t *testing.T) {
	const name = "secretsyncs.secret-sync.x-k8s.io"
	definition := func(versions ...string) string {
		return fmt.Sprintf(`{"kind":"CustomResourceDefinition","apiVersion":"apiextensions.k8s.io/v1","metadata":{"name":%q},"spec":{"versions":[{"name":"%s"}]},"status":{"conditions":[{"type":"Established","status":"True"}]}}`, name, strings.Join(versions, `"},{"name":"`))
	}
	for has, want := range map[string]int{"": 1, definition("v1alpha1"): 1, definition("v1alpha1", "v1beta1"): 0, definition("v1"): 0} {
		applied := 0
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			switch {
			case r.Method == http.MethodPatch:
				applied++
				_, _ = fmt.Fprint(w, definition("v1alpha1"))
			case has == "":
				w.WriteHeader(http.StatusNotFound)
				_, _ = fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":404,"reason":"NotFound"}`)
			default:
				_, _ = fmt.Fprint(w, has)
			}
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
		var told []string
		if err := InstallDefinitions(t.Context(), api, [][]byte{crds.SecretSyncs()}, func(name string) { told = append(told, name) }); err != nil {
			t.Error(err)
		}
		if applied != want || slices.Contains(told, name) != (want > 0) {
			t.Errorf("with %s there: %d applies, told %q", has, applied, told)
		}
	}
}
