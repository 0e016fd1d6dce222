// Package deploy gives a cluster the programs of test/e2e: its provider, which it
// runs as a DaemonSet of its own for all tests that have a cluster, and others
// that pods run.
package deploy

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/csi-secrets/csi-secrets/test/cluster"
)

const (
	modules = "github.com/csi-secrets/csi-secrets/test/e2e/"
	// Namespace is where the DaemonSet is.
	Namespace = "kube-system"
	daemonSet = "daemonset/e2e-provider"
)

//go:embed provider.yaml
var manifest []byte

// Program builds a program of test/e2e and gives it to all nodes, at
// /srv/NAME/NAME.
func Program(ctx context.Context, c *cluster.Cluster, name string) error {
	dir, err := os.MkdirTemp("", name)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, name)
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, modules+name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	for _, n := range c.Nodes() {
		if err := install(ctx, n, name, program); err != nil {
			return fmt.Errorf("give %s the program %s: %w", n.Name, name, err)
		}
	}
	return nil
}

// Provider builds the provider, gives it to all nodes, and returns when it runs,
// with nothing of what an earlier one was told.
func Provider(ctx context.Context, c *cluster.Cluster) error {
	if err := Program(ctx, c, "provider"); err != nil {
		return err
	}
	for _, arguments := range [][]string{
		{"apply", "-f", "-"},
		{"-n", Namespace, "rollout", "restart", daemonSet},
		{"-n", Namespace, "rollout", "status", daemonSet, "--timeout=2m"},
	} {
		command := c.Command(ctx, "kubectl", arguments...)
		command.Stdin = bytes.NewReader(manifest)
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("start the provider: %w\n%s", err, out)
		}
	}
	return nil
}

// install puts the program where pods mount it from, in the place of one that may
// be running.
func install(ctx context.Context, n *cluster.Node, name string, program []byte) error {
	folder := "/srv/" + name
	if _, err := n.Run(ctx, "mkdir", "-p", folder); err != nil {
		return err
	}
	path, err := n.HostPath(folder + "/" + name)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", program, 0o755); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
