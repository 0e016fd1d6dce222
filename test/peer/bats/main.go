// The command bats runs the end-to-end suite of secrets-store-csi-driver, of its
// module and unchanged, against this project's chart in a cluster of
// test/cluster, or with -upstream against its own. It ends as bats does. It needs
// root.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/csi-secrets/csi-secrets/test/cluster"
	"github.com/csi-secrets/csi-secrets/test/peer/upstream"
)

// providerYAML is what the suite expects of its provider's DaemonSet.
const providerYAML = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: csi-secrets-store-e2e-provider, namespace: kube-system}
spec:
  selector: {matchLabels: {app: csi-secrets-store-e2e-provider}}
  template:
    metadata: {labels: {app: csi-secrets-store-e2e-provider}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
        - {name: provider, image: "localhost/e2e-provider:latest", imagePullPolicy: Never, volumeMounts: [{name: providers, mountPath: /providers}]}
      volumes: [{name: providers, hostPath: {path: /var/run/secrets-store-csi-providers, type: DirectoryOrCreate}}]
`

func main() {
	filter := flag.String("filter", "", "run only tests whose names match this regular expression")
	own := flag.Bool("upstream", false, "run it against secrets-store-csi-driver itself")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, *own, *filter))
}

func run(ctx context.Context, own bool, filter string) int {
	options := cluster.Options{Name: "bats", Log: os.Stderr}
	c, err := cluster.Up(ctx, options)
	if err == nil {
		defer func() {
			if err := cluster.Down(context.WithoutCancel(ctx), options); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
		err = prepare(ctx, c, own)
	}
	if err == nil {
		err = suite(ctx, c, filter)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bats:", err)
		return 1
	}
	return 0
}

// prepare brings in what the suite finds when it starts: its images, its
// provider and the driver.
func prepare(ctx context.Context, c *cluster.Cluster, own bool) error {
	if out, err := exec.CommandContext(ctx, "test/install.sh", "bats", "jq", "gettext-base", "openssl").CombinedOutput(); err != nil {
		return fmt.Errorf("install what the suite needs: %w: %s", err, out)
	}
	if err := loadImages(ctx, c); err != nil {
		return err
	}
	apply := c.Command(ctx, "kubectl", "apply", "-f", "-")
	apply.Stdin = strings.NewReader(providerYAML)
	if out, err := apply.CombinedOutput(); err != nil {
		return fmt.Errorf("start the provider: %w: %s", err, out)
	}
	chart, images, err := driver(ctx, c, own)
	if err != nil {
		return err
	}
	// The values of upstream's own target e2e-helm-deploy, but for images.
	install := c.Command(ctx, "helm", append([]string{"install", "csi-secrets-store", chart, "--namespace", "kube-system", "--wait", "--timeout", "2m",
		"-f", "charts/testdata/values/upstream-e2e.yaml"}, images...)...)
	if out, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("install the chart: %w: %s", err, out)
	}
	return nil
}

// driver gives the nodes a driver's images, and returns its chart and the
// arguments of helm for these images.
func driver(ctx context.Context, c *cluster.Cluster, own bool) (chart string, arguments []string, err error) {
	if own {
		if err := upstream.Load(ctx, c); err != nil {
			return "", nil, err
		}
		return upstream.Chart(ctx)
	}
	repository, tag, _ := strings.Cut(cluster.ProjectImage, ":")
	return "charts/csi-secrets", []string{"--set", "linux.image.repository=" + repository, "--set", "linux.image.tag=" + tag}, c.BuildImage(ctx)
}

// loadImages makes the images that the suite names.
func loadImages(ctx context.Context, c *cluster.Cluster) error {
	dir, err := os.MkdirTemp("", "bats")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	provider := filepath.Join(dir, "provider")
	if err := upstream.Build(ctx, "./test/peer/bats/provider", provider); err != nil {
		return err
	}
	const busybox = "/bin/busybox"
	tools := map[string]string{}
	for _, applet := range []string{"sh", "cat", "env", "sleep", "tail", "wget"} {
		tools["bin/"+applet] = busybox
	}
	for name, script := range map[string]string{"curl": `for url; do :; done; exec wget -q -O - "$url"`, "printenv": "exec env"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			return err
		}
		tools["bin/"+name] = path
	}
	for _, image := range []upstream.Image{
		{Name: "localhost/e2e-provider:latest", Entrypoint: "/provider", Files: map[string]string{"provider": provider}},
		{Name: "registry.k8s.io/e2e-test-images/busybox:1.29-4", Files: tools},
		{Name: "docker.io/curlimages/curl:7.75.0", Files: tools},
	} {
		if err := image.Load(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// suite runs the suite from within upstream's source tree, as it expects.
func suite(ctx context.Context, c *cluster.Cluster, filter string) error {
	folder, err := upstream.Folder(ctx)
	if err != nil {
		return err
	}
	arguments := []string{"--tap", "--timing"}
	if filter != "" {
		arguments = append(arguments, "--filter", filter)
	}
	command := c.Command(ctx, "bats", append(arguments, "test/bats/e2e-provider.bats")...)
	command.Dir, command.Stdout, command.Stderr = folder, os.Stdout, os.Stderr
	return command.Run()
}
