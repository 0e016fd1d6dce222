package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-secrets/csi-secrets/charts/csi-secrets/crds"
	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/cluster"
)

func installCRDsCommand() *cobra.Command {
	var kubeconfig string
	var timeout time.Duration
	var secretSyncs bool
	c := &cobra.Command{
		Use:   "install-crds",
		Short: "Install or upgrade the CustomResourceDefinitions of a cluster",
		Long: `Install the CustomResourceDefinitions SecretProviderClass and
SecretProviderClassPodStatus, or upgrade those that are there, whoever installed
them. Objects stay as they are. The Helm chart runs this before each install and
upgrade.`,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			api, err := kube.Connect(kubeconfig, buildVersion())
			if errors.Is(err, kube.ErrOutside) {
				return usageError{errors.New("outside of a cluster --kubeconfig is required")}
			}
			if err != nil {
				return err
			}
			documents, err := crds.Documents()
			if err != nil {
				return err
			}
			if secretSyncs {
				documents = append(documents, crds.SecretSyncs())
			}
			return cluster.InstallDefinitions(ctx, api, documents, func(name string) {
				fmt.Fprintln(c.OutOrStdout(), "installed", name)
			})
		},
	}
	c.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig file of the cluster; that in which the command runs where empty")
	c.Flags().BoolVar(&secretSyncs, "secret-syncs", false, "install that of SecretSync too")
	c.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait until the definitions are served")
	return c
}
