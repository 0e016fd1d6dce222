// Package migrate tests docs/migrate.md: pods that run under
// secrets-store-csi-driver are taken over by this project's driver, and given
// back, in a real Kubernetes and with the real secrets-store-csi-driver.
//
// The tests need root and a cluster of their own, of test/cluster.
package migrate

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
	"github.com/csi-secrets/csi-secrets/test/peer/upstream"
)

const (
	// patience is how long anything may take.
	patience = 2 * time.Minute
	// republish is how often kubelet publishes a volume again, more or less.
	republish   = 5 * time.Second
	system      = "kube-system"
	readerImage = "localhost/reader:latest"
)

var kube *cluster.Cluster

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests with a cluster need root")
		if os.Getenv("CI") == "true" {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	options := cluster.Options{Name: "migrate", SyncFrequency: republish, Log: os.Stderr}
	if os.Getenv("CSI_SECRETS_E2E_KEEP") == "" {
		defer func() {
			if err := cluster.Down(context.Background(), options); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
	if err := setUp(ctx, options); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// setUp brings the cluster up with the images of both drivers and a provider.
func setUp(ctx context.Context, options cluster.Options) (err error) {
	if kube, err = cluster.Up(ctx, options); err != nil {
		return err
	}
	if err := kube.BuildImage(ctx); err != nil {
		return err
	}
	if err := upstream.Load(ctx, kube); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "migrate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	reader := filepath.Join(dir, "reader")
	if err := upstream.Build(ctx, "./reader", reader); err != nil {
		return err
	}
	if err := (upstream.Image{Name: readerImage, Entrypoint: "/reader", Files: map[string]string{"reader": reader}}).Load(ctx, kube); err != nil {
		return err
	}
	return startProvider(ctx, dir)
}

// startProvider runs the provider of test/e2e.
func startProvider(ctx context.Context, dir string) error {
	binary := filepath.Join(dir, "provider")
	if err := upstream.Build(ctx, "../e2e/provider", binary); err != nil {
		return err
	}
	node := kube.Nodes()[0]
	if _, err := node.Run(ctx, "mkdir", "-p", "/srv/provider"); err != nil {
		return err
	}
	path, err := node.HostPath("/srv/provider/provider")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", program, 0o755); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	for _, arguments := range [][]string{
		{"apply", "-f", "../e2e/testdata/provider.yaml"},
		{"-n", system, "rollout", "restart", "daemonset/e2e-provider"},
		{"-n", system, "rollout", "status", "daemonset/e2e-provider", "--timeout=2m"},
	} {
		if out, err := kube.Command(ctx, "kubectl", arguments...).CombinedOutput(); err != nil {
			return fmt.Errorf("start the provider: %w\n%s", err, out)
		}
	}
	return nil
}

// setSecret gives a secret of the provider another value.
func setSecret(t *testing.T, name, value string) {
	t.Helper()
	address := kubectl(t, "-n", system, "get", "pods", "-l", "app=e2e-provider", "-o", "jsonpath={.items[0].status.podIP}")
	response, err := http.Post("http://"+address+":8080/objects/"+name, "text/plain", strings.NewReader(value))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("the provider answers %s", response.Status)
	}
}

// command runs kubectl or helm, and fails the test where that fails.
func command(t *testing.T, in io.Reader, program string, arguments ...string) string {
	t.Helper()
	out, err := try(in, program, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func try(in io.Reader, program string, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := kube.Command(ctx, program, arguments...)
	var out, failures bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = in, &out, &failures
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(arguments, " "), err, strings.TrimSpace(failures.String()))
	}
	return out.String(), nil
}

func kubectl(t *testing.T, arguments ...string) string {
	t.Helper()
	return command(t, nil, "kubectl", arguments...)
}

func helm(t *testing.T, arguments ...string) {
	t.Helper()
	command(t, nil, "helm", append(arguments, "--namespace", system, "--wait", "--timeout", "2m")...)
}

// apply makes the objects of a YAML or JSON text what they are there.
func apply(t *testing.T, text string) {
	t.Helper()
	command(t, strings.NewReader(text), "kubectl", "apply", "-f", "-")
}

// read reads what kubectl get names.
func read[T any](t *testing.T, arguments ...string) T {
	t.Helper()
	var object T
	if err := json.Unmarshal([]byte(kubectl(t, append([]string{"get", "-o", "json"}, arguments...)...)), &object); err != nil {
		t.Fatal(err)
	}
	return object
}

// eventually waits until nothing is wrong any more.
func eventually(t *testing.T, wrong func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		if err = wrong(); err == nil {
			return
		}
	}
	t.Fatalf("after %v: %v", patience, err)
}
