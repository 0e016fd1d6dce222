package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func podRuns(t *testing.T, c *Cluster) {
	runPod(t, c, pod{name: "hello", node: "node1", script: "echo hello from $(hostname)"})
	eventually(t, "the pod's log", func() bool {
		return kubectl(t, c, "logs", "hello") == "hello from hello\n"
	})
	kubectl(t, c, "delete", "pod", "hello", "--timeout=60s")
	if pods := kubectl(t, c, "get", "pods", "-o", "name"); pods != "" {
		t.Errorf("pods after the deletion: %s", pods)
	}
}

// podsReachAPIServer speaks plain HTTP to the API server, which says that it
// expects TLS: busybox knows no TLS that it would accept.
func podsReachAPIServer(t *testing.T, c *Cluster) {
	runPod(t, c, pod{name: "asks", node: "node2", script: `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT`})
	eventually(t, "the API server's answer to a pod", func() bool {
		return strings.Contains(kubectl(t, c, "logs", "asks"), "HTTP request to an HTTPS server")
	})
}

func auditLogHasRequests(t *testing.T, c *Cluster) {
	runPod(t, c, pod{name: "audited", node: "node2", script: "true"})
	kubectl(t, c, "get", "pod", "audited", "--as=somebody", "--as-group=system:masters")
	requests, err := c.Requests()
	if err != nil {
		t.Fatal(err)
	}
	var creates, gets, tokens int
	for _, r := range requests {
		kubectl := strings.HasPrefix(r.UserAgent, "kubectl/") && r.User == "admin"
		switch {
		case kubectl && r.Verb == "create" && r.Resource == "pods" && r.Name == "audited" && r.Code == 201:
			creates++
		case kubectl && r.Verb == "get" && r.Impersonated == "somebody" && r.Resource == "pods" && r.Name == "audited" && r.Code == 200:
			gets++
		case r.User == "system:node:node2" && r.Verb == "create" && r.Resource == "serviceaccounts/token" && r.Namespace == "default":
			tokens++
		}
	}
	if creates != 1 || gets != 1 || tokens == 0 {
		t.Errorf("the audit log has %d creations by kubectl, want 1, %d requests as somebody else, want 1, and %d of kubelet for tokens, want some", creates, gets, tokens)
	}
}

func podsReachEachOther(t *testing.T, c *Cluster) {
	for _, p := range []pod{
		{name: "first", node: "node1", script: "echo a page >/tmp/index.html; httpd -p 8080 -h /tmp"},
		{name: "second", node: "node2", script: "true"},
	} {
		runPod(t, c, p)
	}
	url := "http://" + kubectl(t, c, "get", "pod", "first", "-o", "jsonpath={.status.podIP}") + ":8080/"
	eventually(t, "a page from a pod on the other node", func() bool {
		out, _ := c.Command(t.Context(), "kubectl", "exec", "second", "--", "wget", "-q", "-O", "-", url).Output()
		return string(out) == "a page\n"
	})
	if got := httpGet(t, url); got != "a page\n" {
		t.Errorf("this host got %q from the pod", got)
	}
	// And the other way round.
	server := serveHTTP(t, c.HostIP(), "a page of the host")
	if got := kubectl(t, c, "exec", "second", "--", "wget", "-q", "-O", "-", server); got != "a page of the host" {
		t.Errorf("the pod got %q from this host", got)
	}
}

func mountsPropagate(t *testing.T, c *Cluster) {
	runPod(t, c, pod{name: "mounts", node: "node1", kubelet: true,
		script: "mkdir -p /kubelet/mounted && mount -t tmpfs tmpfs /kubelet/mounted && echo inside >/kubelet/mounted/file"})
	n, err := c.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	path, err := n.HostPath(filepath.Join(n.KubeletDir, "mounted/file"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a pod's mount in the node", func() bool {
		data, _ := os.ReadFile(path)
		return string(data) == "inside\n"
	})
	all, err := mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if strings.HasPrefix(m.path, c.Dir()) {
			t.Errorf("this host has the mount %s", m.path)
		}
	}
	if _, err := n.Run(t.Context(), "umount", filepath.Join(n.KubeletDir, "mounted")); err != nil {
		t.Error(err)
	}
}

func apiServerRestarts(t *testing.T, c *Cluster) {
	runPod(t, c, pod{name: "outlives", node: "node1", script: "true"})
	before := podIdentity(t, c, "outlives")
	if err := c.StopAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Command(t.Context(), "kubectl", "get", "nodes", "--request-timeout=2s").Run(); err == nil {
		t.Error("the API server answers though it was stopped")
	}
	if err := c.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := podIdentity(t, c, "outlives"); after != before {
		t.Errorf("the pod was %s and is %s", before, after)
	}
}

func kubeletRestarts(t *testing.T, c *Cluster) {
	runPod(t, c, pod{name: "survives", node: "node1", script: "true"})
	before := podIdentity(t, c, "survives")
	if err := c.KillKubelet(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	if err := c.StartKubelet(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	runPod(t, c, pod{name: "later", node: "node1", script: "true"})
	if after := podIdentity(t, c, "survives"); after != before {
		t.Errorf("the pod was %s and is %s", before, after)
	}
	if err := c.KillKubelet(t.Context(), "node3"); err == nil {
		t.Error("there is no node3, and no error")
	}
}

// podIdentity changes when the pod or its container is replaced.
func podIdentity(t *testing.T, c *Cluster, name string) string {
	t.Helper()
	return kubectl(t, c, "get", "pod", name, "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID}")
}

func upAgain(t *testing.T, c *Cluster) {
	o := c.options
	same, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if same.HostIP() != c.HostIP() || same.Nodes()[1].IP != c.Nodes()[1].IP {
		t.Errorf("a second up found the cluster at %s and %s", same.HostIP(), same.Nodes()[1].IP)
	}
	o.Nodes = 1
	if _, err := Up(t.Context(), o); err == nil || !strings.Contains(err.Error(), "other options") {
		t.Errorf("a cluster with two nodes was taken for one with one: %v", err)
	}
}
