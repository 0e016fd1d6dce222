package metrics

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/metrics.md")

func get(t *testing.T, m *Metrics) string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if answer.Code != http.StatusOK {
		t.Fatal(answer.Body.String())
	}
	return answer.Body.String()
}

// used returns Metrics in which every definition has been counted.
func used() *Metrics {
	now := time.Now()
	m := New(func() Node {
		fresh := Volume{Namespace: "shop", Pod: "web", Class: "db", Provider: "local", Refreshed: now.Add(-time.Hour), Due: now.Add(time.Hour), ValidUntil: now.Add(2 * time.Hour)}
		stale := Volume{Namespace: "shop", Pod: "api", Class: "db", Provider: "local", Refreshed: now.Add(-48 * time.Hour), ErrorType: "denied"}
		return Node{
			Volumes: []Volume{fresh, fresh, stale}, Releasing: 3, Sealed: 12,
			Stores: []Store{{Provider: "vault", Name: "https://vault", Waiting: 7, Paused: 3 * time.Second}, {Provider: "aws", Name: "eu-west-1", Silent: time.Minute}},
		}
	})
	m.Published("local", "")
	m.Published("local", "")
	m.Published("vault", "denied")
	m.Unpublished("")
	m.Unpublished("internal")
	m.Refreshed("local", "", true, 30*time.Millisecond)
	m.Refreshed("local", "", false, time.Millisecond)
	m.Refreshed("local", "unavailable", false, time.Minute)
	m.Checked("vault", true)
	m.Checked("aws", false)
	m.Fetched("vault", "denied", 20*time.Millisecond)
	m.Shared("vault")
	m.StartedSealed("vault")
	m.SecretSynced("vault", "", true, 20*time.Millisecond)
	m.SecretSynced("vault", "", false, 2*time.Millisecond)
	m.SecretSynced("vault", "invalid", false, 2*time.Millisecond)
	m.Signalled("sent")
	m.Received("sqs")
	m.Refused("sqs", "malformed")
	m.Restart("started")
	return m
}

func TestWhatIsCountedIsServed(t *testing.T) {
	served := get(t, used())
	for _, want := range []string{
		`node_publish_total{os_type="linux",provider="local"} 2`,
		`node_publish_error_total{error_type="denied",os_type="linux",provider="vault"} 1`,
		`node_unpublish_total{os_type="linux"} 1`,
		`csi_secrets_releases_pending 3`,
		`csi_secrets_sealed_starts_total{provider="vault"} 1`,
		`csi_secrets_sealed_entries 12`,
		`sync_k8s_secret_total{os_type="linux",provider="vault"} 1`,
		`csi_secrets_sync_error_total{error_type="invalid",provider="vault"} 1`,
		`k8s_secret_duration_sec_count{os_type="linux"} 3`,
		`node_unpublish_error_total{os_type="linux"} 1`,
		`rotation_reconcile_total{os_type="linux",provider="local",rotated="true"} 1`,
		`rotation_reconcile_total{os_type="linux",provider="local",rotated="false"} 1`,
		`rotation_reconcile_error_total{error_type="unavailable",os_type="linux",provider="local",rotated="false"} 1`,
		`rotation_reconcile_duration_sec_bucket{os_type="linux",le="0.05"} 2`,
		`csi_secrets_provider_request_duration_seconds_bucket{error_type="denied",provider="vault",le="0.025"} 1`,
		`csi_secrets_volumes 3`,
		`csi_secrets_provider_shared_total{provider="vault"} 1`,
		`csi_secrets_store_waiting{provider="vault",store="https://vault"} 7`,
		`csi_secrets_store_paused_seconds{provider="vault",store="https://vault"} 3`,
		`csi_secrets_store_silent_seconds{provider="aws",store="eu-west-1"} 60`,
		`csi_secrets_provider_healthy{provider="vault"} 1`,
		`csi_secrets_provider_healthy{provider="aws"} 0`,
		`csi_secrets_volume_refresh_failing{error_type="denied",namespace="shop",pod="api",provider="local",secret_provider_class="db"} 1`,
	} {
		if !strings.Contains(served, want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
	for name, bounds := range map[string][2]float64{
		`csi_secrets_volume_age_seconds{namespace="shop",pod="web",provider="local",secret_provider_class="db"}`:          {3600, 3700},
		`csi_secrets_volume_age_seconds{namespace="shop",pod="api",provider="local",secret_provider_class="db"}`:          {48 * 3600, 49 * 3600},
		`csi_secrets_volume_valid_seconds{namespace="shop",pod="web",provider="local",secret_provider_class="db"}`:        {7100, 7200},
		`csi_secrets_volume_next_refresh_seconds{namespace="shop",pod="web",provider="local",secret_provider_class="db"}`: {3500, 3600},
	} {
		var value float64
		_, rest, found := strings.Cut(served, "\n"+name+" ")
		if _, err := fmt.Sscan(rest, &value); !found || err != nil || value < bounds[0] || value > bounds[1] {
			t.Errorf("%s is %v (%v), want it within %v", name, value, found, bounds)
		}
	}
	if strings.Contains(served, `store_silent_seconds{provider="vault"`) {
		t.Error("a store that answers is told to be silent")
	}
	if strings.Contains(served, `next_refresh_seconds{namespace="shop",pod="api"`) {
		t.Error("a refresh is told that is not planned")
	}
}

// What is served has a definition, and every definition is served.
func TestEveryMetricIsDefined(t *testing.T) {
	var served []string
	for _, line := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(get(t, used()), -1) {
		if !strings.HasPrefix(line[1], "go_") && !strings.HasPrefix(line[1], "process_") {
			served = append(served, line[1]+" "+line[2])
		}
	}
	var defined []string
	for _, d := range definitions {
		defined = append(defined, d.name+" "+d.kind)
	}
	slices.Sort(served)
	slices.Sort(defined)
	if !slices.Equal(served, defined) {
		t.Errorf("served are %q, defined %q", served, defined)
	}
}

// The table of the manual is that of the code; `go test ./pkg/metrics -update`
// writes it.
func TestTheManualHasEveryMetric(t *testing.T) {
	const path, begin, end = "../../docs/metrics.md", "<!-- begin of the table -->\n", "<!-- end of the table -->\n"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(text), begin)
	_, after, ends := strings.Cut(rest, end)
	if !begins || !ends {
		t.Fatalf("%s has no place for the table", path)
	}
	var table strings.Builder
	table.WriteString("| name | type | labels | what it tells |\n| --- | --- | --- | --- |\n")
	for _, d := range definitions {
		labels := slices.Clone(d.labels)
		if d.upstream {
			labels = append(labels, "os_type")
		}
		for i, l := range labels {
			labels[i] = "`" + l + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", d.name, d.kind, strings.Join(labels, ", "), d.help)
	}
	want := before + begin + table.String() + end + after
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(text) {
		t.Errorf("%s differs from the code: run go test ./pkg/metrics -update", path)
	}
}
