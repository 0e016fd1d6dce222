package cluster

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"
)

// mainTimeout bounds the time until a cluster is set up for tests.
const mainTimeout = time.Hour

// Main is the TestMain of a package whose tests share a cluster: it brings the
// cluster up, lets setUp prepare it, runs the tests, takes the cluster down, and
// returns the exit status. With CSI_SECRETS_E2E_KEEP the cluster stays, for the
// next run. Without root there are no tests, which is a failure where CI is true.
func Main(tests interface{ Run() int }, o Options, setUp func(context.Context, *Cluster) error) int {
	flag.Parse()
	if list := flag.Lookup("test.list"); list != nil && list.Value.String() != "" {
		return tests.Run()
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests with a cluster need root")
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), mainTimeout)
	defer cancel()
	o.Log = os.Stderr
	if os.Getenv("CSI_SECRETS_E2E_KEEP") == "" {
		defer func() {
			if err := Down(context.Background(), o); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
	c, err := Up(ctx, o)
	if err == nil {
		err = c.BuildImage(ctx)
	}
	if err == nil {
		err = setUp(ctx, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return tests.Run()
}
