package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/csi-secrets/csi-secrets/internal/launch"
)

func execCommand() *cobra.Command {
	run := func(c *cobra.Command, args []string) int {
		return launch.Command(c.CommandPath(), args, os.Environ(), c.OutOrStdout(), c.ErrOrStderr())
	}
	command := &cobra.Command{
		Use:                "exec [flags] -- PROGRAM [ARGS...]",
		Short:              "Start a program with files as its environment variables",
		DisableFlagParsing: true, // so that csi-secrets-exec takes the same
		Args:               cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if status := run(c, args); status != 0 {
				return exitStatus(status)
			}
			return nil
		},
	}
	command.SetHelpFunc(func(c *cobra.Command, _ []string) { run(c, []string{"--help"}) })
	return command
}
