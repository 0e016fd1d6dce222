package faults

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-secrets/csi-secrets/internal/sandbox"
)

// The environment that the tests in the sandbox get from the process outside.
const (
	envBinary = "CSI_SECRETS_BIN"
	envBase   = "CSI_SECRETS_FAULTS_BASE"
)

// parallel is how many tests run at the same time: they mostly wait.
const parallel = "6"

var (
	binary string // of the driver
	base   string // the folder of all that the tests make, but for the secrets
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == tracerCommand {
		os.Exit(runTracer(os.Args[2:]))
	}
	cleanup := func() {}
	if base = os.Getenv(envBase); base == "" {
		var err error
		if cleanup, err = prepare(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			cleanup()
			os.Exit(1)
		}
	}
	binary = os.Getenv(envBinary)
	status := sandbox.Run(func() int { return run(m) })
	cleanup()
	os.Exit(status)
}

// prepare makes the folder of the tests and the binary that they test.
func prepare() (cleanup func(), err error) {
	dir, err := os.MkdirTemp("/tmp", "cs") // short, for the sockets in it
	if err != nil {
		return func() {}, err
	}
	cleanup = func() { _ = os.RemoveAll(dir) }
	// What programs write to a temporary folder is looked through as well.
	temporary := filepath.Join(dir, "tmp")
	if err := os.Mkdir(temporary, 0o755); err != nil {
		return cleanup, err
	}
	path := os.Getenv(envBinary)
	if path == "" {
		path = filepath.Join(dir, "csi-secrets")
		build := exec.Command("go", "build", "-o", path, "github.com/csi-secrets/csi-secrets/cmd/csi-secrets")
		if out, err := build.CombinedOutput(); err != nil {
			return cleanup, fmt.Errorf("build the driver: %v\n%s", err, out)
		}
	}
	for name, value := range map[string]string{envBase: dir, envBinary: path, "TMPDIR": temporary} {
		if err := os.Setenv(name, value); err != nil {
			return cleanup, err
		}
	}
	return cleanup, nil
}

// run runs the tests in the sandbox, and then looks for what they left.
func run(m *testing.M) int {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		_ = flag.Set("test.parallel", parallel)
	}
	before, err := mountsBelow("/")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status := m.Run()
	if status != 0 {
		return status
	}
	after, err := mountsBelow("/")
	if err == nil && strings.Join(after, "\n") != strings.Join(before, "\n") {
		err = fmt.Errorf("mounts before and after the tests differ:\n%q\n%q", before, after)
	}
	if err == nil {
		err = noValues(base)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
