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
	"github.com/csi-secrets/csi-secrets/test/e2e/deploy"
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
	os.Exit(cluster.Main(m, cluster.Options{Name: "migrate", SyncFrequency: republish}, setUp))
}

// setUp gives the cluster the images of both drivers and a provider.
func setUp(ctx context.Context, c *cluster.Cluster) error {
	kube = c
	if err := upstream.Load(ctx, c); err != nil {
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
	if err := (upstream.Image{Name: readerImage, Entrypoint: "/reader", Files: map[string]string{"reader": reader}}).Load(ctx, c); err != nil {
		return err
	}
	return deploy.Provider(ctx, c)
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
