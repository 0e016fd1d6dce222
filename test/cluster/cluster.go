// Package cluster brings up a real Kubernetes on this machine for whole-system
// tests, and takes it down without a trace.
//
// A cluster is one machine with the control plane and one with each node. A
// machine here is a set of namespaces (mount, PID, network, UTS, IPC) that one
// process holds: the kubelets, the container runtimes and all pods run in them,
// write to folders of the run instead of /var/lib, /var/log, /run and /etc, and
// see the cluster's own network and this host, nothing else. Once the holding
// processes are killed, the kernel removes every process, mount, address and
// route of the cluster.
//
// Up, Down and the methods that change a cluster need root.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"
)

// base is where runs keep their files. It is on a disk, since containerd's
// overlays do not stack on every file system, and its name is short, since a
// Unix socket's path has 107 bytes at most.
const base = "/var/tmp/csi-secrets-cluster"

// DefaultName is the name of the cluster that `make cluster` brings up.
const DefaultName = "default"

// maxNodes is as many nodes as one machine has ever needed to show anything.
const maxNodes = 4

// Options say what cluster to bring up.
type Options struct {
	// Name tells clusters on the same machine apart; DefaultName where empty.
	Name string
	// Nodes is 1 where it is 0.
	Nodes int
	// SyncFrequency is how often kubelet looks at a pod again, and so how often it
	// publishes its volumes again; kubelet's own default (1 minute) where it is 0.
	SyncFrequency time.Duration
	// FeatureGates are given to every program of Kubernetes.
	FeatureGates map[string]bool
	// Cache is the folder of built programs; CacheDir where empty.
	Cache string `json:"-"`
	// Log is told what happens, in lines; nothing where nil.
	Log io.Writer `json:"-"`
}

// Cluster is a running cluster. Its methods may be called from several
// goroutines, but not to stop and start the same program at once.
type Cluster struct {
	options   Options
	programs  *programs
	dir       string
	network   network
	api       *apiClient
	control   *machine
	authority *authority // while the cluster is made
	nodes     []*Node
}

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,9}[a-z0-9])?$`)

// Up brings a cluster up, or finds the one of this name running. It returns when
// pods can start: the API answers, every node is ready, and the default namespace
// has its ServiceAccount. What a killed run of this name left is removed first,
// and so is what a failed Up made.
//
// A cluster with other options is an error. It outlives the process that made
// it; Down ends it.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	c, err := describe(o)
	if err != nil {
		return nil, err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := c.installPackages(ctx); err != nil {
		return nil, err
	}
	if err := c.programs.buildAll(ctx, clusterPrograms()...); err != nil {
		return nil, err
	}
	running, err := c.attach(ctx)
	if running || err != nil {
		return c, err
	}
	if err := c.remove(ctx); err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		// The context may be what failed; what was made has to go all the same.
		return nil, errors.Join(err, c.remove(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// Down removes the cluster of this name with everything that it made, in
// whatever state it is. It is no error if there is none. Only Name, Cache and
// Log of o count.
func Down(ctx context.Context, o Options) error {
	o.Nodes = maxNodes
	c, err := describe(o)
	if err != nil {
		return err
	}
	return c.Down(ctx)
}

// Down removes the cluster: every process, mount, network and file of it.
func (c *Cluster) Down(ctx context.Context) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return c.remove(ctx)
}

// describe checks the options and says where everything of a cluster is, without
// touching anything.
func describe(o Options) (*Cluster, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a cluster needs root: it makes namespaces, mounts and networks")
	}
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	switch {
	case !validName.MatchString(o.Name):
		return nil, fmt.Errorf("cluster name %q: use up to 11 lower-case letters, digits and dashes", o.Name)
	case o.Nodes < 1 || o.Nodes > maxNodes:
		return nil, fmt.Errorf("%d nodes: use 1 to %d", o.Nodes, maxNodes)
	case o.SyncFrequency < 0:
		return nil, fmt.Errorf("sync frequency %v: use a positive duration", o.SyncFrequency)
	}
	programs, err := newPrograms(&o)
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		options:  o,
		programs: programs,
		dir:      filepath.Join(base, o.Name),
	}
	c.control = c.newMachine("control")
	for i := 1; i <= o.Nodes; i++ {
		m := c.newMachine(fmt.Sprintf("node%d", i))
		c.nodes = append(c.nodes, &Node{Name: m.name, KubeletDir: kubeletDir, number: i, machine: m})
	}
	return c, nil
}

// start makes everything of a cluster that is not there.
func (c *Cluster) start(ctx context.Context) error {
	// Its /etc is a copy of the host's, and its secrets are nobody's business.
	if err := os.MkdirAll(base, 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(c.LogsDir(), 0o755); err != nil {
		return err
	}
	for _, m := range c.machines() {
		if err := m.start(); err != nil {
			return err
		}
	}
	if err := c.makeNetwork(ctx); err != nil {
		return err
	}
	if err := c.makeCredentials(); err != nil {
		return err
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := c.startNode(ctx, n); err != nil {
			return err
		}
	}
	if err := c.loadBaseImages(ctx); err != nil {
		return err
	}
	if err := c.waitForNodes(ctx); err != nil {
		return err
	}
	return c.save()
}

// machines are the control plane's and the nodes'.
func (c *Cluster) machines() []*machine {
	all := []*machine{c.control}
	for _, n := range c.nodes {
		all = append(all, n.machine)
	}
	return all
}

// state is what a later process needs to know of a cluster that is up.
type state struct {
	Options Options
	Network network
}

func (c *Cluster) stateFile() string { return filepath.Join(c.dir, "cluster.json") }

// save marks the cluster as whole.
func (c *Cluster) save() error {
	data, err := json.MarshalIndent(state{c.options, c.network}, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(c.stateFile(), append(data, '\n'), 0o644)
}

// attach finds out whether this very cluster is up and whole, and connects to it.
func (c *Cluster) attach(ctx context.Context) (bool, error) {
	var s state
	data, err := os.ReadFile(c.stateFile())
	if err != nil || json.Unmarshal(data, &s) != nil {
		return false, nil
	}
	c.setNetwork(s.Network)
	if c.api, err = newAPIClient(c.Kubeconfig(), c.network.api()); err != nil {
		return false, nil
	}
	if !c.alive(ctx, s.Options.Nodes) {
		return false, nil
	}
	o := s.Options
	if o.Nodes != c.options.Nodes || o.SyncFrequency != c.options.SyncFrequency || !maps.Equal(o.FeatureGates, c.options.FeatureGates) {
		return false, fmt.Errorf("cluster %q runs with other options (%d nodes, sync frequency %v, feature gates %v): take it down first", o.Name, o.Nodes, o.SyncFrequency, o.FeatureGates)
	}
	c.logf("cluster %q is up already", o.Name)
	return true, nil
}

// alive reports whether every program of a cluster of so many nodes runs.
func (c *Cluster) alive(ctx context.Context, nodes int) bool {
	for _, program := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		if !c.control.runs(program) {
			return false
		}
	}
	for i := 1; i <= nodes; i++ {
		m := c.newMachine(fmt.Sprintf("node%d", i))
		if !m.runs("containerd") || !m.runs("kubelet") {
			return false
		}
	}
	return c.api.ready(ctx) == nil
}

func (c *Cluster) logf(format string, arguments ...any) {
	fmt.Fprintf(c.options.Log, format+"\n", arguments...)
}

// Dir is the folder of all files of the cluster.
func (c *Cluster) Dir() string { return c.dir }

// LogsDir is the folder of the programs' logs and the API server's audit log. It
// goes with the cluster.
func (c *Cluster) LogsDir() string { return filepath.Join(c.dir, "logs") }

// Kubeconfig is the path of a kubeconfig file of an administrator
// (system:masters), good on this host.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

// HostIP is this host's address on the cluster's network. Servers of tests that
// listen on it can be reached from pods and nodes.
func (c *Cluster) HostIP() string { return c.network.host() }

// APIServer is the URL of the API server, from this host and from nodes and pods.
func (c *Cluster) APIServer() string { return "https://" + c.network.api() }

// Command is a command that knows the cluster: kubectl and helm without a path
// are those of Kubectl and Helm. What they keep goes with the cluster.
func (c *Cluster) Command(ctx context.Context, program string, arguments ...string) *exec.Cmd {
	if path := c.programs.path(program); path != "" {
		program = path
	}
	cmd := exec.CommandContext(ctx, program, arguments...)
	cmd.Env = append(os.Environ(),
		"KUBECONFIG="+c.Kubeconfig(), "KUBECACHEDIR="+filepath.Join(c.dir, "kubectl"),
		"HELM_CACHE_HOME="+filepath.Join(c.dir, "helm/cache"), "HELM_CONFIG_HOME="+filepath.Join(c.dir, "helm/config"), "HELM_DATA_HOME="+filepath.Join(c.dir, "helm/data"),
		"NO_PROXY="+c.network.all(), "no_proxy="+c.network.all())
	return cmd
}

// Kubectl is the path of kubectl: this machine's, or one that was built.
func (c *Cluster) Kubectl() string { return c.programs.path("kubectl") }

// Helm is the path of helm: this machine's, or one that was built.
func (c *Cluster) Helm() string { return c.programs.path("helm") }
