// Package deploy runs the provider of test/e2e in a cluster, as a DaemonSet of
// its own, for all tests that have a cluster.
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
	module = "github.com/csi-secrets/csi-secrets/test/e2e/provider"
	// Namespace is where the DaemonSet is.
	Namespace = "kube-system"
	daemonSet = "daemonset/e2e-provider"
)

//go:embed provider.yaml
var manifest []byte

// Provider builds the provider, gives it to all nodes, and returns when it runs,
// with nothing of what an earlier one was told.
func Provider(ctx context.Context, c *cluster.Cluster) error {
	dir, err := os.MkdirTemp("", "provider")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "provider")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, module)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the provider: %w\n%s", err, out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	for _, n := range c.Nodes() {
		if err := install(ctx, n, program); err != nil {
			return fmt.Errorf("give %s the provider: %w", n.Name, err)
		}
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

// install puts the program where the DaemonSet mounts it from, in the place of
// one that may be running.
func install(ctx context.Context, n *cluster.Node, program []byte) error {
	if _, err := n.Run(ctx, "mkdir", "-p", "/srv/provider"); err != nil {
		return err
	}
	path, err := n.HostPath("/srv/provider/provider")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", program, 0o755); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
