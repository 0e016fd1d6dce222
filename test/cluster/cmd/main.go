// Command cluster brings a Kubernetes up on this machine, down, or enters one of
// its machines. `make cluster` and `make cluster-down` call it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/csi-secrets/csi-secrets/test/cluster"
)

const usage = `usage:
	cluster up [flags]                  bring a cluster up with the project's image
	cluster down [flags]                remove it with everything that it made
	cluster enter MACHINE [COMMAND...]  a shell or a command in control, node1, node2, ...
	cluster program NAME                build a program, such as helm, and print its path
flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() && len(os.Args) > 1 && os.Args[1] == "enter" {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	o := cluster.Options{Log: os.Stderr}
	var image bool
	flags := flag.NewFlagSet("cluster", flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprint(os.Stderr, usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.Name, "name", cluster.DefaultName, "tells clusters on this machine apart")
	flags.IntVar(&o.Nodes, "nodes", 1, "number of nodes")
	flags.DurationVar(&o.SyncFrequency, "sync-frequency", 0, "how often kubelet looks at a pod again (default kubelet's own)")
	flags.StringVar(&o.Cache, "cache", "", "folder of built programs (default $CSI_SECRETS_CACHE, or csi-secrets in the user's cache)")
	flags.BoolVar(&image, "image", true, "build the project's image and give it to the nodes")
	flags.Func("feature-gates", "feature gates of Kubernetes, as in A=true,B=false", func(s string) (err error) {
		o.FeatureGates, err = parseGates(s)
		return err
	})
	if len(arguments) == 0 {
		flags.Usage()
		os.Exit(2)
	}
	_ = flags.Parse(arguments[1:]) // It exits on errors.
	switch arguments[0] {
	case "up":
		return up(ctx, o, image)
	case "down":
		return cluster.Down(ctx, o)
	case "enter":
		return enter(ctx, o, flags.Args())
	case "program":
		if flags.NArg() != 1 {
			return errors.New("program: name one program")
		}
		path, err := cluster.BuildProgram(ctx, o, flags.Arg(0))
		if err == nil {
			fmt.Println(path)
		}
		return err
	}
	flags.Usage()
	os.Exit(2)
	return nil
}

func up(ctx context.Context, o cluster.Options, image bool) error {
	c, err := cluster.Up(ctx, o)
	if err != nil {
		return err
	}
	images := cluster.BusyboxImage
	if image {
		if err := c.BuildImage(ctx); err != nil {
			return err
		}
		images += " and " + cluster.ProjectImage
	}
	fmt.Printf("# Kubernetes at %s, nodes: %d, images: %s, logs in %s\n", c.APIServer(), len(c.Nodes()), images, c.LogsDir())
	fmt.Printf("export KUBECONFIG=%s\n", c.Kubeconfig())
	return nil
}

func enter(ctx context.Context, o cluster.Options, arguments []string) error {
	if len(arguments) == 0 {
		return errors.New("enter: name a machine, such as control or node1")
	}
	cmd, err := cluster.Enter(ctx, o, arguments[0], arguments[1:]...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func parseGates(s string) (map[string]bool, error) {
	gates := map[string]bool{}
	for _, gate := range strings.Split(s, ",") {
		name, value, _ := strings.Cut(gate, "=")
		on, err := strconv.ParseBool(value)
		if err != nil || name == "" {
			return nil, fmt.Errorf("%q: use NAME=true or NAME=false", gate)
		}
		gates[name] = on
	}
	return gates, nil
}
