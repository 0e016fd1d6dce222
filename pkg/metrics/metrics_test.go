package metrics

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestWhatIsCountedIsServed(t *testing.T) {
	m := New(func() int { return 3 })
	m.Published("local", "")
	m.Published("local", "")
	m.Published("vault", "denied")
	m.Unpublished("")
	m.Unpublished("internal")
	m.Refreshed("local", "", true, 30*time.Millisecond)
	m.Refreshed("local", "", false, time.Millisecond)
	m.Refreshed("local", "unavailable", false, time.Minute)
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`node_publish_total{os_type="linux",provider="local"} 2`,
		`node_publish_error_total{error_type="denied",os_type="linux",provider="vault"} 1`,
		`node_unpublish_total{os_type="linux"} 1`,
		`node_unpublish_error_total{os_type="linux"} 1`,
		`rotation_reconcile_total{os_type="linux",provider="local",rotated="true"} 1`,
		`rotation_reconcile_total{os_type="linux",provider="local",rotated="false"} 1`,
		`rotation_reconcile_error_total{error_type="unavailable",os_type="linux",provider="local",rotated="false"} 1`,
		`rotation_reconcile_duration_sec_bucket{os_type="linux",le="0.05"} 2`,
		`csi_secrets_volumes 3`,
	} {
		if !strings.Contains(answer.Body.String(), want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
}
