package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/internal/kube"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/cluster"
	"github.com/csi-secrets/csi-secrets/pkg/driver"
	"github.com/csi-secrets/csi-secrets/pkg/fetch"
	"github.com/csi-secrets/csi-secrets/pkg/metrics"
	"github.com/csi-secrets/csi-secrets/pkg/notice"
	"github.com/csi-secrets/csi-secrets/pkg/process"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/kubernetes"
	"github.com/csi-secrets/csi-secrets/pkg/provider/local"
	"github.com/csi-secrets/csi-secrets/pkg/rotation"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// nodeOptions are the flags of the node command.
type nodeOptions struct {
	endpoint         string
	nodeID           string
	driverName       string
	kubeconfig       string
	classes          string
	stateDir         string
	leaseDir         string
	registrationDir  string
	registrationPath string
	rotation         bool
	interval         time.Duration
	notified         time.Duration
	events           string
	localFolders     []string
	writable         bool
	startupTaint     string
	watchPods        bool
	syncSecrets      bool
	healthCheck      bool
	healthInterval   time.Duration
	healthAddr       string
	metricsAddr      string
	logJSON          bool
	providers        providerOptions
	sealed           sealedOptions
	notices          noticeOptions
}

// olderNames are the spellings that secrets-store-csi-driver has for flags.
var olderNames = map[string]pflag.NormalizedName{"nodeid": "node-id", "drivername": "driver-name"}

func nodeCommand() *cobra.Command {
	var o nodeOptions
	c := &cobra.Command{
		Use:   "node",
		Short: "Run the driver of a node",
		Long: `Run the driver of a node: it serves CSI on a Unix socket, mounts the secrets
that SecretProviderClass objects name, and keeps them fresh.

Classes come from the API server of a cluster: the one that --kubeconfig tells
of, or that in which the driver runs as a pod. With --classes, they come from the
YAML files of a folder, and no API server is needed.`,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return runNode(ctx, o)
		},
	}
	flags := c.Flags()
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if newer, ok := olderNames[name]; ok {
			return newer
		}
		return pflag.NormalizedName(name)
	})
	flags.StringVar(&o.endpoint, "endpoint", "unix:///csi/csi.sock", "Unix socket to serve CSI on")
	flags.StringVar(&o.nodeID, "node-id", "", "name of the node (required)")
	flags.StringVar(&o.driverName, "driver-name", driver.DefaultName, "name of the driver")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file of the cluster; that in which the driver runs where empty")
	flags.StringVar(&o.classes, "classes", "", "folder of SecretProviderClass YAML files, in place of a cluster")
	flags.StringVar(&o.stateDir, "state-dir", "/run/csi-secrets", "folder for what a restarted driver must know; it holds no secrets")
	flags.StringVar(&o.leaseDir, "lease-dir", "", "folder on which to mount a tmpfs for the leases of volumes; leases in --state-dir where empty")
	flags.BoolVar(&o.rotation, "enable-secret-rotation", true, "refresh volumes at the interval; false for on changes only")
	flags.DurationVar(&o.interval, "rotation-poll-interval", 2*time.Minute, "how often a volume is refreshed; 0 for on changes only")
	flags.DurationVar(&o.notified, "notified-poll-interval", rotation.DefaultNotified, "how often a volume is refreshed of whose changes the driver is told")
	flags.StringVar(&o.registrationDir, "registration-dir", "", "kubelet's folder plugins_registry, to register the driver there; empty for no registration")
	flags.StringVar(&o.registrationPath, "kubelet-registration-path", "", "path of the CSI socket as kubelet sees it; that of --endpoint where empty")
	flags.StringVar(&o.events, "events", eventsProblems, "which events pods get: \"problems\" of refreshes, and their ends, and new files; \"all\" for every mount too; \"none\"")
	flags.StringSliceVar(&o.localFolders, "local-folders", nil, "folders that the provider \"local\" may read; none in a cluster, and all with --classes, where empty")
	flags.BoolVar(&o.writable, "writable-volumes", false, "make volumes writable on the host, though not to pods, for another driver that is to take over")
	flags.BoolVar(&o.syncSecrets, "sync-secrets", false, "make the Kubernetes Secrets that classes ask for (secretObjects)")
	flags.BoolVar(&o.watchPods, "watch-pods", false, "refresh the volumes of a pod whenever its annotation "+class.RefreshAnnotation+" changes; needs list and watch on pods")
	flags.BoolVar(&o.healthCheck, "provider-health-check", false, "ask external providers for their version, and tell of those that do not answer")
	flags.DurationVar(&o.healthInterval, "provider-health-check-interval", 2*time.Minute, "how often external providers are asked")
	flags.StringVar(&o.startupTaint, "startup-taint", "", "key of a taint to remove from the node once kubelet has registered the driver; empty for none")
	flags.StringVar(&o.healthAddr, "health-addr", "", "address to serve /healthz on, as in :9808; empty for none")
	flags.StringVar(&o.metricsAddr, "metrics-addr", "", "address to serve /metrics on, as in :8095; empty for none")
	flags.BoolVar(&o.logJSON, "log-format-json", false, "log as JSON")
	o.providers.addFlags(flags)
	o.sealed.addFlags(flags)
	o.notices.addFlags(flags)
	addLogFlags(flags)
	addFlagsOfOld(flags)
	return c
}

// What --events can be.
const (
	eventsProblems = "problems"
	eventsAll      = "all"
	eventsNone     = "none"
)

// addFlagsOfOld adds the flags of secrets-store-csi-driver that have no meaning
// here, so that a DaemonSet that gives them starts.
func addFlagsOfOld(flags *pflag.FlagSet) {
	flags.String("metrics-backend", "Prometheus", "ignored: metrics are for Prometheus")
	flags.Bool("enable-pprof", false, "ignored: a profile of this process is nobody's business")
	flags.String("pprof-port", "6065", "ignored")
	for _, name := range []string{"metrics-backend", "enable-pprof", "pprof-port"} {
		_ = flags.MarkHidden(name)
	}
}

// addLogFlags adds klog's flags, of which only -v is shown.
func addLogFlags(flags *pflag.FlagSet) {
	var logging flag.FlagSet
	klog.InitFlags(&logging)
	flags.AddGoFlagSet(&logging)
	logging.VisitAll(func(f *flag.Flag) {
		if f.Name != "v" {
			_ = flags.MarkHidden(f.Name)
		}
	})
}

func runNode(ctx context.Context, o nodeOptions) error {
	if o.nodeID == "" {
		return usageError{errors.New("--node-id is required")}
	}
	if o.classes != "" && o.kubeconfig != "" {
		return usageError{errors.New("--classes and --kubeconfig exclude each other")}
	}
	if !slices.Contains([]string{eventsProblems, eventsAll, eventsNone}, o.events) {
		return usageError{fmt.Errorf("--events is %q: it can be problems, all or none", o.events)}
	}
	if o.interval < 0 {
		return usageError{errors.New("--rotation-poll-interval must not be negative")}
	}
	if o.classes == "" && o.notices.wanted() {
		return usageError{errors.New("notices of changes are the controller's in a cluster; a node takes them with --classes")}
	}
	if o.notified <= 0 {
		return usageError{errors.New("--notified-poll-interval must be positive")}
	}
	if o.healthInterval <= 0 {
		return usageError{errors.New("--provider-health-check-interval must be positive")}
	}
	if err := keepMemoryPrivate(); err != nil {
		return err
	}
	ctx = withLogger(ctx, o.logJSON)
	logger := klog.FromContext(ctx)
	// A driver lives beside the pods of a node: memory counts for more than the
	// few percent of processor time that collecting garbage sooner takes.
	debug.SetGCPercent(50)

	surroundings, err := o.surroundings()
	if err != nil {
		return err
	}
	classes := surroundings.classes
	if m := surroundings.metadata; m != nil {
		o.providers.clouds.aws.NodeRegion = func(ctx context.Context) (string, error) {
			return m.NodeLabel(ctx, o.nodeID, corev1.LabelTopologyRegion)
		}
	}
	providers, external, err := o.providers.registry(surroundings.providers)
	if err != nil {
		return err
	}
	interval := o.interval
	if !o.rotation {
		interval = 0
	}
	schedule := rotation.New(classes, providers.Get, interval)
	schedule.Notified = o.notified
	fetcher := fetch.New(providers, 0)
	if fetcher.Sealed, err = o.sealed.open(o.stateDir); err != nil {
		return err
	}
	if surroundings.api != nil && o.watchPods {
		pods, err := cluster.NewPods(surroundings.api, o.nodeID, schedule.RefreshPod)
		if err != nil {
			return err
		}
		surroundings.run = append(surroundings.run, pods.Run)
	}
	var volumes *volume.Manager
	counted := metrics.New(func() metrics.Node { return told(volumes, schedule, fetcher) })
	if surroundings.api != nil && o.syncSecrets {
		syncer, err := secretsync.New(surroundings.api, secretsync.Config{
			Classes: classes, Teller: surroundings.syncTellers, Recorder: counted,
			Files: func(target string) ([]provider.File, time.Time, error) { return volumes.Files(target) },
		})
		if err != nil {
			return err
		}
		surroundings.run, surroundings.observers = append(surroundings.run, syncer.Run), append(surroundings.observers, syncer)
	}
	signaller := process.New(surroundings.teller)
	surroundings.run, surroundings.observers = append(surroundings.run, signaller.Run), append(surroundings.observers, signaller)
	var used activity
	config := volume.Config{
		StateDir: o.stateDir, LeaseDir: o.leaseDir, Classes: classes, Fetcher: fetcher,
		Observer: append(surroundings.observers, schedule, &used), Writable: o.writable,
	}
	if m := surroundings.metadata; m != nil {
		config.Annotations, config.AccountAnnotations = m.PodAnnotations, m.AccountAnnotations
	}
	volumes, err = volume.New(config)
	if err != nil {
		return err
	}
	defer volumes.Close()
	if !volumes.NoSwap() {
		logger.Info("This kernel, or user namespace, cannot keep a tmpfs out of swap: on a machine with swap, secrets may be written there")
	}
	if err := volumes.Recover(ctx); err != nil {
		logger.Error(err, "Some volumes of an earlier driver could not be recovered")
	}
	schedule.Recorder, fetcher.Recorder, signaller.Recorder = counted, counted, counted
	d, err := driver.New(driver.Config{Name: o.driverName, Version: buildVersion(), NodeID: o.nodeID, Volumes: volumes, Recorder: counted})
	if err != nil {
		return err
	}
	listener, err := driver.Listen(o.endpoint)
	if err != nil {
		return err
	}
	logger.Info("Serving", "version", buildVersion(), "driver", o.driverName, "node", o.nodeID, "endpoint", o.endpoint, "volumes", volumes.Len())

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { used.giveBack(ctx); return nil })
	group.Go(func() error { return d.Serve(ctx, listener) })
	group.Go(func() error { schedule.Run(ctx, volumes); return nil })
	group.Go(func() error { volumes.Run(ctx); return nil })
	if fetcher.Sealed != nil {
		group.Go(func() error { fetcher.Sealed.Run(ctx); return nil })
	}
	if folder, ok := classes.(*class.Folder); ok && o.notices.wanted() {
		if err := o.notices.refresh(ctx, group, notice.Finder{Classes: folder, Provider: providers.Get}, schedule.RefreshClass, counted); err != nil {
			return err
		}
	}
	if o.healthCheck {
		group.Go(func() error {
			external.CheckHealth(ctx, o.healthInterval, func(name string, err error) {
				if changed := counted.Checked(name, err == nil); !changed {
					return
				}
				if err != nil {
					logger.Error(err, "An external provider does not answer", "provider", name)
				} else {
					logger.Info("An external provider answers", "provider", name)
				}
			})
			return nil
		})
	}
	for _, run := range surroundings.run {
		group.Go(func() error { run(ctx); return nil })
	}
	if o.registrationDir != "" {
		registration := driver.Registration{Folder: o.registrationDir, Name: o.driverName, Endpoint: o.registrationPath}
		if registration.Endpoint == "" {
			registration.Endpoint = listener.Addr().String()
		}
		if o.startupTaint != "" && surroundings.api != nil {
			registered := make(chan struct{})
			registration.Registered = sync.OnceFunc(func() { close(registered) })
			group.Go(func() error {
				select {
				case <-registered:
					return cluster.RemoveTaint(ctx, surroundings.api, o.nodeID, o.startupTaint)
				case <-ctx.Done():
					return nil
				}
			})
		}
		group.Go(func() error {
			surroundings.settled(ctx)
			return registration.Serve(ctx)
		})
	}
	if o.healthAddr != "" {
		health, err := driver.NewHealth(o.endpoint)
		if err != nil {
			return err
		}
		defer health.Close()
		group.Go(func() error { return serveHTTP(ctx, o.healthAddr, "/healthz", health) })
	}
	if o.metricsAddr != "" {
		group.Go(func() error { return serveHTTP(ctx, o.metricsAddr, "/metrics", counted.Handler()) })
	}
	return group.Wait()
}

// withLogger has what runs with ctx log, as JSON where that is wanted.
func withLogger(ctx context.Context, asJSON bool) context.Context {
	if asJSON {
		klog.SetSlogLogger(slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.Level(-verbosity())})))
	}
	return klog.NewContext(ctx, klog.Background())
}

// secretTellers tells each of them, in their order.
type secretTellers []secretsync.Teller

func (all secretTellers) Synced(v volume.Info, secrets []secretsync.Told, err error) {
	for _, t := range all {
		t.Synced(v, secrets, err)
	}
}

// told returns what metrics tell of the volumes and their stores.
func told(volumes *volume.Manager, schedule *rotation.Scheduler, fetcher *fetch.Fetcher) metrics.Node {
	var stores []metrics.Store
	for _, s := range fetcher.Stores() {
		stores = append(stores, metrics.Store(s))
	}
	list := volumes.List()
	all := make([]metrics.Volume, len(list))
	for i, v := range list {
		all[i] = metrics.Volume{Namespace: v.Pod.Namespace, Pod: v.Pod.Name, Class: v.Class.Name, Provider: v.Provider, Refreshed: v.Refreshed, ValidUntil: v.ValidUntil}
		all[i].Due, _ = schedule.Due(v.TargetPath)
		if v.LastError != nil {
			all[i].ErrorType = provider.KindOf(v.LastError).String()
		}
	}
	node := metrics.Node{Stores: stores, Volumes: all, Releasing: volumes.Releasing()}
	if fetcher.Sealed != nil {
		node.Sealed = fetcher.Sealed.Len()
	}
	return node
}

// surroundings is what a driver has around it: a cluster, or a folder.
type surroundings struct {
	classes   class.Source
	providers map[string]provider.Provider // those that are built in
	observers volume.Observers
	metadata  *cluster.Metadata // nil without a cluster
	run       []func(context.Context)
	api       *kube.API // nil without a cluster
	teller    process.Teller
	// syncTellers hear how the Secrets of volumes stand.
	syncTellers secretTellers
	// settled returns once it makes sense to register with kubelet. That forgets
	// the driver before it registers it anew, which takes the API server: a
	// driver that was restarted without one is better off with what kubelet knows.
	settled func(context.Context)
}

func (o *nodeOptions) surroundings() (surroundings, error) {
	if o.classes != "" {
		folder, err := class.OpenFolder(o.classes)
		files := local.New() // whoever writes the classes runs this driver
		if len(o.localFolders) > 0 {
			files = local.NewConfined(o.localFolders)
		}
		return surroundings{classes: folder, providers: map[string]provider.Provider{"local": files}, settled: func(context.Context) {}}, err
	}
	api, err := kube.Connect(o.kubeconfig, buildVersion())
	if errors.Is(err, kube.ErrOutside) {
		return surroundings{}, usageError{errors.New("outside of a cluster --kubeconfig or --classes is required")}
	}
	if err != nil {
		return surroundings{}, err
	}
	classes, err := class.NewCluster(api, filepath.Join(o.stateDir, "classes.json"))
	if err != nil {
		return surroundings{}, err
	}
	statuses, err := cluster.NewStatuses(api, o.nodeID)
	if err != nil {
		return surroundings{}, err
	}
	metadata, err := cluster.NewMetadata(api)
	if err != nil {
		return surroundings{}, err
	}
	server, client, err := api.Anonymous()
	if err != nil {
		return surroundings{}, err
	}
	s := surroundings{
		providers: map[string]provider.Provider{"local": local.NewConfined(o.localFolders), "kubernetes": kubernetes.New(server, client)},
		classes:   classes, observers: volume.Observers{statuses}, metadata: metadata, run: []func(context.Context){classes.Run, statuses.Run}, api: api, settled: classes.Answered,
		syncTellers: secretTellers{statuses},
	}
	if o.events != eventsNone {
		events, err := cluster.NewEvents(api, o.driverName, o.nodeID)
		if err != nil {
			return surroundings{}, err
		}
		events.Mounts = o.events == eventsAll
		s.observers, s.run, s.teller = append(s.observers, events), append(s.run, events.Run), events
		s.syncTellers = append(s.syncTellers, events)
	}
	return s, nil
}

func verbosity() int {
	for v := 10; v > 0; v-- {
		if klog.V(klog.Level(v)).Enabled() {
			return v
		}
	}
	return 0
}

// keepMemoryPrivate keeps what this process holds out of core files, of the debug
// logs of libraries and away from other processes of its user, and makes the modes of folders that it
// creates independent of where it was started.
func keepMemoryPrivate() error {
	// Libraries read these when they are loaded: it is too late to unset them.
	for name, part := range map[string]string{"GODEBUG": "http2debug", "GRPC_BINARY_LOG_FILTER": ""} {
		if value := os.Getenv(name); value != "" && strings.Contains(value, part) {
			return fmt.Errorf("the environment variable %s=%s would write requests with their secrets to the log; unset it", name, value)
		}
	}
	unix.Umask(0o022)
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch core files off: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process undumpable: %w", err)
	}
	return nil
}

// serveHTTP serves one path until ctx ends.
func serveHTTP(ctx context.Context, addr, path string, handler http.Handler) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("serve %s: %w", path, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+path, handler)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", path, err)
	}
	return nil
}
