// Package serving tests what a driver serves beside CSI: health, metrics, and
// its registration with kubelet.
package serving

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// freeAddress returns an address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(t *testing.T, url string) string {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, answer.Status, err)
	}
	return string(body)
}

func TestADriverServesHealthMetricsAndItsRegistration(t *testing.T) {
	health, counted, plugins := freeAddress(t), freeAddress(t), harness.Folder(t)
	node := harness.Start(t, harness.Options{Arguments: []string{
		"--health-addr", health, "--metrics-addr", counted, "--registration-dir", plugins, "--kubelet-registration-path", "/var/lib/kubelet/plugins/csi-secrets/csi.sock",
	}})
	source := harness.Folder(t)
	if err := os.WriteFile(filepath.Join(source, "a"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	node.AddClass(t, "good", "local", map[string]string{"path": source})
	v := standalone.Volume{Pod: "web", Class: "good"}
	for range 2 {
		if err := node.Publish(harness.Timeout(t), v); err != nil {
			t.Fatal(err)
		}
	}
	if err := node.Publish(harness.Timeout(t), standalone.Volume{Pod: "web", Name: "other", Class: "missing"}); err == nil {
		t.Fatal("a class that does not exist was published")
	}
	if body := get(t, "http://"+health+"/healthz"); body != "ok\n" {
		t.Errorf("health is %q", body)
	}
	expect := func(series ...string) {
		t.Helper()
		body := get(t, "http://"+counted+"/metrics")
		for _, want := range series {
			if !strings.Contains(body, want+"\n") {
				t.Errorf("there is no %s", want)
			}
		}
	}
	expect(`node_publish_total{os_type="linux",provider="local"} 2`, `node_publish_error_total{error_type="not_found",os_type="linux",provider=""} 1`, `csi_secrets_volumes 1`)
	harness.Eventually(t, "a refresh is counted", func() bool {
		return strings.Contains(get(t, "http://"+counted+"/metrics"), `rotation_reconcile_total{os_type="linux",provider="local",rotated="false"} `)
	})
	if err := node.Unpublish(harness.Timeout(t), v); err != nil {
		t.Fatal(err)
	}
	expect(`node_unpublish_total{os_type="linux"} 1`, `csi_secrets_volumes 0`)

	conn, err := grpc.NewClient("unix:"+filepath.Join(plugins, "secrets-store.csi.k8s.io-reg.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	info, err := registration.NewRegistrationClient(conn).GetInfo(harness.Timeout(t), &registration.InfoRequest{})
	if err != nil || info.GetEndpoint() != "/var/lib/kubelet/plugins/csi-secrets/csi.sock" || info.GetType() != registration.CSIPlugin {
		t.Errorf("kubelet is told %v, %v", info, err)
	}
}
