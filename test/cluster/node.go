package cluster

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"syscall"
	"text/template"
	"time"
)

const (
	// kubeletDir is kubelet's folder as nodes and hostPath volumes see it, and the
	// one that charts expect. On the host it is Node.HostPath's business.
	kubeletDir       = "/var/lib/kubelet"
	containerdSocket = "/run/containerd/containerd.sock"
	nodeTimeout      = 90 * time.Second
)

// Node is a node of a cluster.
type Node struct {
	// Name is the node's name in Kubernetes.
	Name string
	// IP is the node's address on the cluster's network.
	IP string
	// KubeletDir is the kubelet root folder, in the node: a hostPath volume of it
	// works on all nodes alike. HostPath leads there from the host.
	KubeletDir string

	number  int // from 1
	machine *machine
}

// HostPath is a path of this host that leads to path in the node, mounts of the
// node included. It ends with the node.
func (n *Node) HostPath(path string) (string, error) {
	holder, err := n.machine.holder()
	if err != nil {
		return "", err
	}
	return filepath.Join("/proc", fmt.Sprint(holder), "root", path), nil
}

// ContainerdSocket is the path of containerd's socket on this host. Its images
// and pods are in the namespace k8s.io.
func (n *Node) ContainerdSocket() string { return filepath.Join(n.machine.dir, containerdSocket) }

// Run runs a command in the node, as root and with the node's files, network and
// processes, and returns what it printed on both streams.
func (n *Node) Run(ctx context.Context, command ...string) (string, error) {
	return n.machine.run(ctx, command...)
}

// Nodes are all nodes, in order.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node is the node of this name: "node1", "node2" and so on.
func (c *Cluster) Node(name string) (*Node, error) {
	for _, n := range c.nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the cluster has no node %q, but node1 to node%d", name, len(c.nodes))
}

// KillKubelet ends a node's kubelet with SIGKILL. Its pods run on.
func (c *Cluster) KillKubelet(ctx context.Context, node string) error {
	n, err := c.Node(node)
	if err != nil {
		return err
	}
	return n.machine.end(ctx, "kubelet", syscall.SIGKILL)
}

// StartKubelet starts a node's kubelet again and waits until it answers.
func (c *Cluster) StartKubelet(ctx context.Context, node string) error {
	n, err := c.Node(node)
	if err != nil {
		return err
	}
	return c.startKubelet(ctx, n)
}

func (c *Cluster) startNode(ctx context.Context, n *Node) error {
	c.logf("start %s", n.Name)
	if err := makeControlGroup(n.cgroup(c.options.Name)); err != nil {
		return err
	}
	if err := c.configureNode(n); err != nil {
		return err
	}
	if err := n.machine.spawn(ctx, "containerd", "--config", "/etc/containerd/config.toml"); err != nil {
		return err
	}
	if err := n.machine.waitFor(ctx, "containerd", nodeTimeout, func(ctx context.Context) error {
		_, err := n.machine.run(ctx, "ctr", "version")
		return err
	}); err != nil {
		return err
	}
	return c.startKubelet(ctx, n)
}

func (c *Cluster) startKubelet(ctx context.Context, n *Node) error {
	if err := n.machine.spawn(ctx, n.machine.program("kubelet"),
		"--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf",
		"--hostname-override="+n.Name, "--node-ip="+n.IP); err != nil {
		return err
	}
	return n.machine.waitFor(ctx, "kubelet", nodeTimeout, func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(n.IP, "10250"))
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
}

// cgroup is the node's part of the control groups. Kubelet removes groups of
// pods that it does not know, so that two must not share one.
func (n *Node) cgroup(cluster string) string {
	return filepath.Join(controlGroup(cluster), n.Name)
}

// configureNode writes the files of a node in its /etc.
func (c *Cluster) configureNode(n *Node) error {
	plugins, err := networkPlugins()
	if err != nil {
		return err
	}
	values := map[string]any{
		"Node": n, "Network": c.network, "Options": c.options,
		"ControlGroup": n.cgroup(c.options.Name), "Pods": c.network.pods(n.number), "ClusterPods": c.network.all(),
		"Socket": containerdSocket, "Pause": pauseImage, "Plugins": plugins,
	}
	for _, f := range []struct {
		path string
		text *template.Template
	}{
		{"etc/containerd/config.toml", containerdConfig},
		{"etc/cni/net.d/10-bridge.conflist", networkConfig},
		{"etc/kubernetes/kubelet.yaml", kubeletConfig},
	} {
		if err := writeTemplate(filepath.Join(n.machine.dir, f.path), f.text, values); err != nil {
			return err
		}
	}
	etc := filepath.Join(n.machine.dir, "etc")
	if err := c.writeKubeconfig(filepath.Join(etc, "kubernetes/kubelet.conf"), "system:node:"+n.Name, "system:nodes"); err != nil {
		return err
	}
	return copyFile(c.caFile(), filepath.Join(etc, "kubernetes/ca.crt"))
}

// waitForNodes waits until pods can be made and will be scheduled.
func (c *Cluster) waitForNodes(ctx context.Context) error {
	return poll(ctx, nodeTimeout, "wait for nodes and the default ServiceAccount", func(ctx context.Context) error {
		for _, n := range c.nodes {
			if err := c.api.nodeReady(ctx, n.Name); err != nil {
				return err
			}
		}
		return c.api.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
	})
}
