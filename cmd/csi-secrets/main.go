// The command csi-secrets brings secrets into Kubernetes pods: see
// `csi-secrets --help`.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(run(os.Args[1:])) }

// run executes the command line and returns the exit status: 0 for success, 1
// for a failure, 2 for a command line that cannot be understood.
func run(args []string) int {
	root := &cobra.Command{
		Use:           "csi-secrets",
		Short:         "Secrets into Kubernetes pods: a CSI node driver",
		Version:       buildVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(nodeCommand(), demoCommand(), renderCommand(), validateCommand(), execCommand(), installCRDsCommand(), controllerCommand())
	for _, c := range root.Commands() {
		if c.Args == nil {
			c.Args = noArguments
		}
	}
	root.SetArgs(args)
	command, err := root.ExecuteC()
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", command.CommandPath(), err)
	var usage usageError
	if errors.As(err, &usage) || command == root {
		fmt.Fprintf(os.Stderr, "see %s --help\n", command.CommandPath())
		return 2
	}
	return 1
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitStatus ends the command with that status, once it has said why itself.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "dev" && info.Main.Version != "" {
		return info.Main.Version
	}
	return version
}
