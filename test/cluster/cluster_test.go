package cluster

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// TestCluster takes a cluster of two nodes through its life. What is asked of
// the nodes and pods in between is what tests of the driver stand on.
func TestCluster(t *testing.T) {
	needRoot(t)
	host := hostFolders()
	c := up(t, Options{Name: "selftest", Nodes: 2, SyncFrequency: 5 * time.Second, FeatureGates: map[string]bool{"AllAlpha": false}})

	for _, step := range []struct {
		name string
		run  func(*testing.T, *Cluster)
	}{
		{"a pod runs, logs and is deleted", podRuns},
		{"pods reach the API server by its service", podsReachAPIServer},
		{"the audit log has who asked for what", auditLogHasRequests},
		{"pods on two nodes and this host reach each other", podsReachEachOther},
		{"mounts of a pod in kubelet's folder are the node's, not this host's", mountsPropagate},
		{"pods outlive the API server", apiServerRestarts},
		{"pods outlive kubelet", kubeletRestarts},
		{"a second up finds the cluster, or other options", upAgain},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, c) }) {
			t.FailNow()
		}
	}
	downLeavesNothing(t, c)
	if after := hostFolders(); after != host {
		t.Errorf("this host had\n%s\nand has\n%s", host, after)
	}
}

// TestDownAfterKills has everything killed that a cluster stands on.
func TestDownAfterKills(t *testing.T) {
	for _, kill := range []struct {
		name   string
		victim func(*Cluster) (int, error)
	}{
		{"the process that holds the control plane", func(c *Cluster) (int, error) { return c.control.holder() }},
		{"the process that holds a node", func(c *Cluster) (int, error) { return c.nodes[0].machine.holder() }},
		{"containerd", func(c *Cluster) (int, error) { return c.nodes[0].machine.find("containerd") }},
	} {
		t.Run(kill.name, func(t *testing.T) {
			c := up(t, Options{Name: "killtest"})
			kubectl(t, c, "run", "sleeper", "--image="+BusyboxImage, "--image-pull-policy=Never", "--", "sleep", "1000")
			kubectl(t, c, "wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s")
			trace := traceOf(t, c)
			pid, err := kill.victim(c)
			if err != nil {
				t.Fatal(err)
			}
			killProcess(t, pid)
			if running, _ := c.attach(t.Context()); running {
				t.Error("the cluster is taken for whole")
			}
			if err := c.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
			trace.mustBeGone(t)
		})
	}
}

// TestInterruptedUp ends Up at some point: nothing is left, and the next one works.
func TestInterruptedUp(t *testing.T) {
	needRoot(t)
	o := Options{Name: "cuttest", Log: t.Output()}
	for _, line := range []string{"the network is", "start the control plane", "start node1"} {
		t.Run(line, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			o := o
			o.Log = cancelAt{line, cancel}
			if _, err := Up(ctx, o); err == nil {
				t.Error("it did not fail")
			}
			c, err := describe(o)
			if err != nil {
				t.Fatal(err)
			}
			trace{cluster: c}.mustBeGone(t)
		})
	}
}

// cancelAt cancels once a line of the log starts so.
type cancelAt struct {
	line   string
	cancel context.CancelFunc
}

func (c cancelAt) Write(b []byte) (int, error) {
	if strings.HasPrefix(string(b), c.line) {
		c.cancel()
	}
	return len(b), nil
}

func TestOptionsAreChecked(t *testing.T) {
	needRoot(t)
	for name, o := range map[string]Options{
		"cluster name":   {Name: "Up"},
		"up to 11":       {Name: "a-name-too-long"},
		"nodes":          {Nodes: -1},
		"sync frequency": {SyncFrequency: -1},
	} {
		if _, err := Up(t.Context(), o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%+v: the error %v does not say %q", o, err, name)
		}
	}
}

// up brings a cluster up that ends with the test.
func up(t *testing.T, o Options) *Cluster {
	needRoot(t)
	o.Log = t.Output()
	c, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CI") == "true":
		t.Fatal("the cluster needs root, and CI must run this test")
	default:
		t.Skip("the cluster needs root: run the test as root")
	}
}
