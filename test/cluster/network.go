package cluster

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// network is the cluster's 10.N.0.0/16. A bridge on the control plane's machine
// joins all machines and this host, which has the link csc-NAME and a route:
//
//	10.N.0.1        control plane, and router between all
//	10.N.0.11 …     nodes
//	10.N.0.254      this host
//	10.N.1.0/24 …   pods of node1 …
//	10.N.240.0/20   services; the first is the API server
//
// The API server listens on its service's own address too, so that no address
// has to be translated. Other services have no proxy.
type network struct{ N int }

func (n network) all() string        { return fmt.Sprintf("10.%d.0.0/16", n.N) }
func (n network) api() string        { return fmt.Sprintf("10.%d.0.1", n.N) }
func (n network) host() string       { return fmt.Sprintf("10.%d.0.254", n.N) }
func (n network) node(i int) string  { return fmt.Sprintf("10.%d.0.%d", n.N, 10+i) }
func (n network) pods(i int) string  { return fmt.Sprintf("10.%d.%d.0/24", n.N, i) }
func (n network) services() string   { return fmt.Sprintf("10.%d.240.0/20", n.N) }
func (n network) apiService() string { return fmt.Sprintf("10.%d.240.1", n.N) }

func (c *Cluster) setNetwork(n network) {
	c.network = n
	for _, node := range c.nodes {
		node.IP = n.node(node.number)
	}
}

// makeNetwork takes a free network and joins the machines to it. All of it goes
// with the control plane's network namespace, this host's end included.
func (c *Cluster) makeNetwork(ctx context.Context) error {
	control, err := c.control.holder()
	if err != nil {
		return err
	}
	if err := c.joinHost(ctx, control); err != nil {
		return fmt.Errorf("make the cluster's network: %w", err)
	}
	if err := c.control.ip(ctx,
		"link add nodes type bridge",
		"link set nodes up",
		"addr add "+c.network.api()+"/24 dev nodes",
		"addr add "+c.network.apiService()+"/32 dev lo",
		"link set host master nodes up",
	); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := c.joinNode(ctx, control, n); err != nil {
			return err
		}
	}
	return nil
}

// link is the name of this host's end, 15 bytes at most.
func (c *Cluster) link() string { return "csc-" + c.options.Name }

// joinHost makes this host's end and its route.
func (c *Cluster) joinHost(ctx context.Context, control int) error {
	if _, err := ip(ctx, fmt.Sprintf("link add %s type veth peer name host netns %d", c.link(), control)); err != nil {
		return err
	}
	if _, err := ip(ctx, "link set "+c.link()+" up"); err != nil {
		return err
	}
	if err := c.claimNetwork(ctx); err != nil {
		return err
	}
	c.logf("the network is %s, this host %s", c.network.all(), c.network.host())
	if _, err := ip(ctx, fmt.Sprintf("addr add %s/24 dev %s", c.network.host(), c.link())); err != nil {
		return err
	}
	_, err := ip(ctx, fmt.Sprintf("route change %s via %s dev %s", c.network.all(), c.network.api(), c.link()))
	return err
}

// claimNetwork finds a network that this host has no route to and makes one,
// which fails if another cluster was faster.
func (c *Cluster) claimNetwork(ctx context.Context) error {
	for i := 200; i < 250; i++ {
		n := network{i}
		routes, err := ip(ctx, "-4 route show root "+n.all())
		if err != nil {
			return err
		}
		if routes != "" {
			continue
		}
		_, err = ip(ctx, fmt.Sprintf("route add %s dev %s", n.all(), c.link()))
		if err == nil {
			c.setNetwork(n)
			return nil
		}
		if !strings.Contains(err.Error(), "File exists") {
			return err
		}
	}
	return errors.New("none of the networks 10.200.0.0/16 to 10.249.0.0/16 is free on this host")
}

// removeLink removes this host's end of the network. The kernel does so too, but
// some time after the last process of the control plane.
func (c *Cluster) removeLink(ctx context.Context) error {
	_, err := ip(ctx, "link del "+c.link())
	if err != nil && strings.Contains(err.Error(), "Cannot find device") {
		return nil
	}
	return err
}

// joinNode connects a node to the bridge and makes the routes to it and from it.
func (c *Cluster) joinNode(ctx context.Context, control int, n *Node) error {
	holder, err := n.machine.holder()
	if err != nil {
		return err
	}
	if _, err := ip(ctx, fmt.Sprintf("link add eth0 netns %d type veth peer name %s netns %d", holder, n.Name, control)); err != nil {
		return err
	}
	if err := c.control.ip(ctx,
		"link set "+n.Name+" master nodes up",
		"route add "+c.network.pods(n.number)+" via "+n.IP,
	); err != nil {
		return err
	}
	return n.machine.ip(ctx,
		"addr add "+n.IP+"/24 dev eth0",
		"link set eth0 up",
		"route add default via "+c.network.api(),
	)
}

// ip runs ip(8) commands in the machine's network.
func (m *machine) ip(ctx context.Context, commands ...string) error {
	for _, command := range commands {
		if _, err := m.run(ctx, append([]string{"ip"}, strings.Fields(command)...)...); err != nil {
			return err
		}
	}
	return nil
}

// ip runs an ip(8) command in this host's network.
func ip(ctx context.Context, command string) (string, error) {
	out, err := exec.CommandContext(ctx, "ip", strings.Fields(command)...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("ip %s: %w: %s", command, err, text)
	}
	return text, nil
}
