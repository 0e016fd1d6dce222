// The command bench measures a built csi-secrets from outside: it starts the
// driver of a node without Kubernetes, calls it over its socket as kubelet
// would, and compares it with what the kernel's own calls take on the same
// machine at the same time. See README.md for what each line means.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/csi-secrets/csi-secrets/internal/sandbox"
)

// folderVariable hands the folder of a run to the program inside the sandbox.
const folderVariable = "CSI_SECRETS_BENCH_FOLDER"

// settings are the flags.
type settings struct {
	driver   string
	rounds   int
	single   int
	count    int
	parallel int
	volumes  int
	pods     int
	parts    string
	output   string
}

// The parts of a run.
const (
	callsPart = "calls"
	storePart = "store"
)

var parts = map[string]func(*bench, context.Context) error{callsPart: (*bench).measureCalls, storePart: (*bench).measureStore}

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
	if folder := os.Getenv(folderVariable); folder != "" {
		return sandbox.Run(func() int { return measureAll(s, folder) })
	}
	folder, err := os.MkdirTemp("", "bench")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(folder)
	if err := provideDriver(s.driver, driverIn(folder)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Setenv(folderVariable, folder)
	return sandbox.Run(nil)
}

func parse(arguments []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&s.driver, "driver", "", "the csi-secrets to measure; empty to build the one of this tree")
	flags.IntVar(&s.rounds, "rounds", 5, "how often everything is measured")
	flags.IntVar(&s.single, "single", 300, "calls of a round one at a time")
	flags.IntVar(&s.count, "count", 2000, "calls of a round many at a time")
	flags.IntVar(&s.parallel, "parallel", 64, "how many are \"many at a time\"")
	flags.IntVar(&s.volumes, "volumes", 500, "volumes that are mounted while memory and refresh are measured")
	flags.IntVar(&s.pods, "pods", 1000, "pods whose volumes are of the simulated store")
	flags.StringVar(&s.parts, "parts", callsPart+","+storePart, "what is measured, by comma")
	flags.StringVar(&s.output, "o", "text", "output: text or json")
	if err := flags.Parse(arguments); err != nil {
		return s, err
	}
	switch {
	case flags.NArg() > 0:
		return s, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case s.rounds < 1 || s.single < 1 || s.count < 1 || s.parallel < 1 || s.volumes < 1 || s.pods < 1:
		return s, errors.New("-rounds, -single, -count, -parallel, -volumes and -pods must be 1 at least")
	case s.output != "text" && s.output != "json":
		return s, fmt.Errorf("-o %s is neither text nor json", s.output)
	}
	for part := range strings.SplitSeq(s.parts, ",") {
		if parts[part] == nil {
			return s, fmt.Errorf("-parts has %q: there are %s", part, strings.Join(slices.Sorted(maps.Keys(parts)), ", "))
		}
	}
	return s, nil
}

func driverIn(folder string) string { return filepath.Join(folder, "csi-secrets") }

// provideDriver puts the program to measure at path: a link to the given one,
// or a build of this tree as it is released.
func provideDriver(given, path string) error {
	if given != "" {
		absolute, err := filepath.Abs(given)
		if err != nil {
			return err
		}
		if _, err := os.Stat(absolute); err != nil {
			return fmt.Errorf("there is no driver to measure: %w", err)
		}
		return os.Symlink(absolute, path)
	}
	build := exec.Command("go", "build", "-tags", "grpcnotrace", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/csi-secrets/csi-secrets/cmd/csi-secrets")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the driver: %w", err)
	}
	return nil
}

// measureAll runs inside the sandbox and returns the exit status.
func measureAll(s settings, folder string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := measureParts(ctx, s, folder); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		return 1
	}
	return 0
}

func measureParts(ctx context.Context, s settings, folder string) error {
	b, err := newBench(s, folder)
	if err != nil {
		return err
	}
	m, err := thisMachine(b.driver)
	if err != nil {
		return err
	}
	var reports []*report
	for part := range strings.SplitSeq(s.parts, ",") {
		if err := parts[part](b, ctx); err != nil {
			return err
		}
		reports = append(reports, b.report)
	}
	if s.output == "json" {
		return writeJSON(os.Stdout, m, s, reports)
	}
	m.writeText(os.Stdout)
	for _, r := range reports {
		if err := r.writeText(os.Stdout); err != nil {
			return err
		}
	}
	return nil
}
