// Package e2e tests the driver as its users run it: a real Kubernetes, the Helm
// chart, the image of the project's own Dockerfile, and an external provider
// that is a DaemonSet of its own.
//
// The tests share one cluster, of test/cluster, and need root. With
// CSI_SECRETS_E2E_KEEP=1 the cluster stays for the next run; `make cluster-down
// NAME=e2e` ends it.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/test/cluster"
	"github.com/csi-secrets/csi-secrets/test/e2e/deploy"
)

const (
	// patience is how long anything may take that is not about time.
	patience = 2 * time.Minute
	// republish is how often kubelet publishes a volume again, more or less.
	republish = 10 * time.Second
	// driverNamespace is where the chart is installed.
	driverNamespace = "kube-system"
	driverPods      = "app=secrets-store-csi-driver"
	driverAccount   = "system:serviceaccount:kube-system:secrets-store-csi-driver"
)

var (
	kube  *cluster.Cluster
	began = time.Now().UTC().Format("150405.000")
)

func TestMain(m *testing.M) {
	os.Exit(cluster.Main(m, cluster.Options{Name: "e2e", SyncFrequency: republish}, setUp))
}

// setUp has the driver and a provider run in the cluster.
func setUp(ctx context.Context, c *cluster.Cluster) error {
	kube = c
	for _, n := range c.Nodes() {
		if _, err := n.Run(ctx, "mkdir", "-p", "/srv/secrets"); err != nil {
			return err
		}
	}
	if err := deploy.Provider(ctx, c); err != nil {
		return err
	}
	return install(ctx)
}

// install installs the chart, or upgrades it, with more of helm's arguments than
// the tests always have.
func install(ctx context.Context, more ...string) error {
	chart, err := filepath.Abs("../../charts/csi-secrets")
	if err != nil {
		return err
	}
	repository, tag, _ := strings.Cut(cluster.ProjectImage, ":")
	arguments := []string{
		"upgrade", "--install", "csi-secrets", chart, "--namespace", driverNamespace, "--wait", "--timeout", "2m",
		"--set", "linux.image.repository=" + repository, "--set", "linux.image.tag=" + tag, "--set", "linux.image.pullPolicy=Never",
		"--set", "rotationPollInterval=3s", "--set", "providerHealthCheck=true", "--set", "providerHealthCheckInterval=2s", "--set", "logVerbosity=2",
		"--set-json", `tokenRequests=[{"audience":"vault"},{"audience":"conjur"},{"audience":""}]`,
		"--set", "linux.localFolders={/srv/secrets}", "--set", "conjur.podAnnotations=true",
		"--set-string", "linux.podAnnotations.run=" + began, // a cluster that was kept has an older image
	}
	out, err := kube.Command(ctx, kube.Helm(), append(arguments, more...)...).CombinedOutput()
	if err != nil {
		logs, _ := kube.Command(ctx, kube.Kubectl(), "-n", driverNamespace, "get", "pods,events", "-o", "wide").CombinedOutput()
		return fmt.Errorf("helm: %w\n%s\n%s", err, out, logs)
	}
	return nil
}

// kubectl runs kubectl, and fails the test where that fails.
func kubectl(t *testing.T, arguments ...string) string {
	t.Helper()
	out, err := tryKubectl(t, nil, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryKubectl(t *testing.T, in io.Reader, arguments ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	command := kube.Command(ctx, kube.Kubectl(), arguments...)
	var out, failures bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = in, &out, &failures
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(arguments, " "), err, strings.TrimSpace(failures.String()))
	}
	return out.String(), nil
}

// apply makes an object what it is here.
func apply(t *testing.T, object any) {
	t.Helper()
	body, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tryKubectl(t, bytes.NewReader(body), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// read reads the object that kubectl get names.
func read[T any](t *testing.T, arguments ...string) T {
	t.Helper()
	var object T
	out := kubectl(t, append([]string{"get", "-o", "json"}, arguments...)...)
	if err := json.Unmarshal([]byte(out), &object); err != nil {
		t.Fatal(err)
	}
	return object
}

// eventually waits until nothing is wrong any more.
func eventually(t *testing.T, wrong func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(250 * time.Millisecond) {
		if err = wrong(); err == nil {
			return
		}
	}
	t.Fatalf("after %v: %v", patience, err)
}

// provider tells the provider something, and returns its answer.
func provider(t *testing.T, method, path, body string) string {
	t.Helper()
	var answer string
	eventually(t, func() (err error) {
		address, err := tryKubectl(t, nil, "-n", driverNamespace, "get", "pods", "-l", "app=e2e-provider", "-o", "jsonpath=http://{.items[0].status.podIP}:8080")
		if err != nil {
			return err
		}
		answer, err = ask(method, address+path, body)
		return err
	})
	return answer
}

// providerAddress returns where the provider listens, for a time without an API
// server.
func providerAddress(t *testing.T) string {
	t.Helper()
	return kubectl(t, "-n", driverNamespace, "get", "pods", "-l", "app=e2e-provider", "-o", "jsonpath=http://{.items[0].status.podIP}:8080")
}

func post(t *testing.T, address, path, body string) {
	t.Helper()
	if _, err := ask(http.MethodPost, address+path, body); err != nil {
		t.Fatal(err)
	}
}

func get(url string) (string, error) { return ask(http.MethodGet, url, "") }

func ask(method, url, body string) (string, error) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, response.Status)
	}
	return string(text), err
}
