// The command peer measures secrets-store-csi-driver and this project's driver
// in one run, over their CSI sockets, with one API server and one external
// provider. See README.md for what each line of its table means. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/csi-secrets/csi-secrets/internal/sandbox"
	"github.com/csi-secrets/csi-secrets/test/cluster"
	"github.com/csi-secrets/csi-secrets/test/peer/upstream"
)

// folderVariable hands the folder of a run to the program inside the sandbox.
const folderVariable = "CSI_SECRETS_PEER_FOLDER"

// settings are the flags.
type settings struct {
	rounds, single, parallel, volumes int
	count                             map[string]int // by driver
}

func main() { os.Exit(run(os.Args[1:])) }

func run(arguments []string) int {
	s, err := parse(arguments)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if folder := os.Getenv(folderVariable); folder != "" {
		return sandbox.Run(func() int { return status(measureAll(ctx, s, folder)) })
	}
	folder, err := os.MkdirTemp("", "peer")
	if err != nil {
		return status(err)
	}
	defer os.RemoveAll(folder)
	defer func() {
		if err := cluster.Down(context.WithoutCancel(ctx), options()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	if err := prepare(ctx, folder); err != nil {
		return status(err)
	}
	os.Setenv(folderVariable, folder)
	return sandbox.Run(nil)
}

func status(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		return 1
	}
	return 0
}

func parse(arguments []string) (settings, error) {
	var s settings
	var ours, theirs int
	flags := flag.NewFlagSet("peer", flag.ContinueOnError)
	flags.IntVar(&s.rounds, "rounds", 3, "how often everything is measured")
	flags.IntVar(&s.single, "single", 100, "calls of a round one at a time")
	flags.IntVar(&s.parallel, "parallel", 64, "how many are many at a time")
	flags.IntVar(&s.volumes, "volumes", 100, "volumes that are mounted while memory is measured")
	flags.IntVar(&ours, "count", 2000, "calls of a round many at a time, of this project's driver")
	flags.IntVar(&theirs, "upstream-count", 200, "the same of secrets-store-csi-driver, which takes longer")
	if err := flags.Parse(arguments); err != nil {
		return s, err
	}
	s.count = map[string]int{oursName: ours, theirsName: theirs}
	switch {
	case flags.NArg() > 0:
		return s, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case min(s.rounds, s.single, s.parallel, s.volumes, ours, theirs) < 1:
		return s, errors.New("all numbers must be 1 at least")
	}
	return s, nil
}

func options() cluster.Options { return cluster.Options{Name: "peer", Log: os.Stderr} }

// prepare brings the cluster up and builds both drivers into folder.
func prepare(ctx context.Context, folder string) error {
	c, err := cluster.Up(ctx, options())
	if err != nil {
		return err
	}
	theirs, err := upstream.Driver(ctx, c)
	if err != nil {
		return err
	}
	if err := os.Symlink(theirs, filepath.Join(folder, theirsName)); err != nil {
		return err
	}
	if err := upstream.Build(ctx, "github.com/csi-secrets/csi-secrets/test/peer/upstream/sidecar", filepath.Join(folder, sidecarName)); err != nil {
		return err
	}
	// As the Makefile builds the program that is released.
	build := exec.CommandContext(ctx, "go", "build", "-tags", "grpcnotrace", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(folder, oursName), "./cmd/csi-secrets")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the driver: %w: %s", err, out)
	}
	for _, arguments := range [][]string{
		{"apply", "--server-side", "-f", "charts/csi-secrets/crds/secrets-store.csi.x-k8s.io_secretproviderclasses.yaml", "-f", "charts/csi-secrets/crds/secrets-store.csi.x-k8s.io_secretproviderclasspodstatuses.yaml"},
		{"wait", "--for=condition=established", "crd", "--all"},
	} {
		if out, err := c.Command(ctx, "kubectl", arguments...).CombinedOutput(); err != nil {
			return fmt.Errorf("install the definitions: %w: %s", err, out)
		}
	}
	return nil
}
