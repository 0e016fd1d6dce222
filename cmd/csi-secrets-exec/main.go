// The command csi-secrets-exec starts a program with files as its environment
// variables. It is the subcommand exec of csi-secrets, small enough to be copied
// into every pod.
package main

import (
	"os"

	"github.com/csi-secrets/csi-secrets/internal/launch"
)

func main() {
	os.Exit(launch.Command("csi-secrets-exec", os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
