package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	stdsync "sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/cluster"
	"github.com/csi-secrets/csi-secrets/pkg/fetch"
	"github.com/csi-secrets/csi-secrets/pkg/metrics"
	"github.com/csi-secrets/csi-secrets/pkg/notice"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/kubernetes"
	"github.com/csi-secrets/csi-secrets/pkg/restart"
	"github.com/csi-secrets/csi-secrets/pkg/rotation"
	"github.com/csi-secrets/csi-secrets/pkg/sync"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync/controller"
)

// controllerOptions are the flags of the controller command.
type controllerOptions struct {
	kubeconfig  string
	namespace   string
	identity    string
	restarts    bool
	restart     restart.Config
	secretSyncs bool
	tokens      string
	interval    time.Duration
	notified    time.Duration
	healthAddr  string
	metricsAddr string
	logJSON     bool
	providers   providerOptions
	notices     noticeOptions
	used        activity
}

// refreshes counts refreshes, and takes note that something is done.
type refreshes struct {
	*metrics.Metrics
	used *activity
}

func (r refreshes) Refreshed(provider, errorType string, changed bool, took time.Duration) {
	r.used.done.Store(true)
	r.Metrics.Refreshed(provider, errorType, changed, took)
}

// leaseName is that of the Lease by which controllers choose the one that leads.
const leaseName = "csi-secrets-controller"

func controllerCommand() *cobra.Command {
	var o controllerOptions
	c := &cobra.Command{
		Use:   "controller",
		Short: "Run what a cluster has once, and not on each node",
		Long: `Run what a cluster has once, and not on each node: it hears of changes at the
stores, by webhooks and queues, and has nodes refresh the classes concerned; it
restarts workloads whose pods cannot read a changed secret again; and it makes the
Kubernetes Secrets that SecretSync objects ask for. Of several that run, one leads;
all serve webhooks.`,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return runController(ctx, &o)
		},
	}
	flags := c.Flags()
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file of the cluster; that in which the controller runs where empty")
	flags.StringVar(&o.namespace, "namespace", "kube-system", "namespace of the Lease by which a leader is chosen")
	flags.StringVar(&o.identity, "identity", "", "name of this controller among several (default that of the host)")
	flags.BoolVar(&o.restarts, "restarts", true, "restart workloads after a change, where their class says so (onChange)")
	flags.DurationVar(&o.restart.Settle, "restart-settle", restart.DefaultSettle, "how long a workload waits for more to change before it is restarted")
	flags.DurationVar(&o.restart.Spacing, "restart-spacing", restart.DefaultSpacing, "least time from one restart of a workload to its next")
	flags.IntVar(&o.restart.Parallel, "restart-parallel", restart.DefaultParallel, "how many workloads may be under restart at the same time")
	flags.IntVar(&o.restart.PerMinute, "restart-per-minute", restart.DefaultPerMinute, "how many restarts may begin in a minute")
	flags.BoolVar(&o.secretSyncs, "secret-syncs", false, "make the Kubernetes Secrets that SecretSync objects ask for")
	flags.StringVar(&o.tokens, "token-requests", "", "tokens that stores are shown of a SecretSync's service account, in JSON, as tokenRequests of a CSIDriver")
	flags.DurationVar(&o.interval, "rotation-poll-interval", 2*time.Minute, "how often a SecretSync is refreshed; 0 for on changes only")
	flags.DurationVar(&o.notified, "notified-poll-interval", rotation.DefaultNotified, "how often one is refreshed of whose changes the controller is told")
	flags.StringVar(&o.healthAddr, "health-addr", "", "address to serve /healthz on, as in :9808; empty for none")
	flags.StringVar(&o.metricsAddr, "metrics-addr", "", "address to serve /metrics on, as in :8095; empty for none")
	flags.BoolVar(&o.logJSON, "log-format-json", false, "log as JSON")
	o.providers.addFlags(flags)
	o.notices.addFlags(flags)
	addLogFlags(flags)
	return c
}

func runController(ctx context.Context, o *controllerOptions) error {
	if err := keepMemoryPrivate(); err != nil {
		return err
	}
	ctx = withLogger(ctx, o.logJSON)
	logger := klog.FromContext(ctx)
	api, err := kube.Connect(o.kubeconfig, buildVersion())
	if errors.Is(err, kube.ErrOutside) {
		return usageError{errors.New("outside of a cluster --kubeconfig is required")}
	}
	if err != nil {
		return err
	}
	if o.identity == "" {
		if o.identity, err = os.Hostname(); err != nil {
			return fmt.Errorf("name this controller: %w", err)
		}
	}
	classes, err := class.NewCluster(api, "")
	if err != nil {
		return err
	}
	server, client, err := api.Anonymous()
	if err != nil {
		return err
	}
	providers, _, err := o.providers.registry(map[string]provider.Provider{"kubernetes": kubernetes.New(server, client)})
	if err != nil {
		return err
	}
	counted := metrics.New(func() metrics.Node { return metrics.Node{} })
	var syncs *secretsync.Controller
	if o.secretSyncs {
		if syncs, err = o.newSecretSyncs(api, classes, providers, counted); err != nil {
			return err
		}
	}
	annotator, err := notice.NewAnnotator(api, notice.Finder{Classes: classes, Provider: providers.Get})
	if err != nil {
		return err
	}
	queues, err := o.notices.queues(providers.Get, counted)
	if err != nil {
		return err
	}
	o.restart.Recorder, o.restart.SecretSyncs = counted, o.secretSyncs
	restarter, err := restart.New(api, o.restart)
	if err != nil {
		return err
	}
	logger.Info("Serving", "version", buildVersion(), "identity", o.identity)
	debug.SetGCPercent(50) // memory counts for more than time

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { o.used.giveBack(ctx); return nil })
	if o.notices.wanted() || o.secretSyncs {
		group.Go(func() error { classes.Run(ctx); return nil })
	}
	if o.notices.wanted() {
		group.Go(func() error { annotator.Run(ctx); return nil })
		if err := o.notices.hear(ctx, group, annotator.Take, counted); err != nil {
			return err
		}
	}
	if o.healthAddr != "" {
		alive := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
		group.Go(func() error { return serveHTTP(ctx, o.healthAddr, "/healthz", alive) })
	}
	if o.metricsAddr != "" {
		group.Go(func() error { return serveHTTP(ctx, o.metricsAddr, "/metrics", counted.Handler()) })
	}
	group.Go(func() error {
		return api.Lead(ctx, o.namespace, leaseName, o.identity, func(ctx context.Context) {
			logger.Info("This controller leads")
			var running stdsync.WaitGroup
			for _, q := range queues {
				running.Go(func() { q.Run(ctx, annotator.Take) })
			}
			if o.restarts {
				running.Go(func() { restarter.Run(ctx) })
			}
			if syncs != nil {
				running.Go(func() { syncs.Run(ctx) })
			}
			<-ctx.Done()
			running.Wait()
		})
	})
	return group.Wait()
}

// newSecretSyncs returns what makes Secrets without pods.
func (o *controllerOptions) newSecretSyncs(api *kube.API, classes *class.Cluster, providers *provider.Registry, counted *metrics.Metrics) (*secretsync.Controller, error) {
	var tokens []secretsync.TokenRequest
	if o.tokens != "" {
		if err := json.Unmarshal([]byte(o.tokens), &tokens); err != nil {
			return nil, usageError{fmt.Errorf("--token-requests is no JSON list of audiences: %w", err)}
		}
	}
	if o.interval < 0 || o.notified <= 0 {
		return nil, usageError{errors.New("--rotation-poll-interval must not be negative, and --notified-poll-interval positive")}
	}
	fetcher := fetch.New(providers, 0)
	schedule := rotation.New(classes, providers.Get, o.interval)
	schedule.Notified, schedule.Recorder, fetcher.Recorder = o.notified, refreshes{counted, &o.used}, counted
	writer, err := sync.NewWriter(api, sync.FieldManager)
	if err != nil {
		return nil, err
	}
	metadata, err := cluster.NewMetadata(api)
	if err != nil {
		return nil, err
	}
	return secretsync.New(secretsync.Config{
		API: api, Classes: classes, Fetcher: fetcher, Schedule: schedule, Writer: writer, TokenRequests: tokens, AccountAnnotations: metadata.AccountAnnotations,
	})
}
