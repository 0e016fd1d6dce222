package cluster

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// trace is what a running cluster consists of on this machine, as the kernel
// tells it.
type trace struct {
	cluster    *Cluster
	processes  []process
	namespaces []string // of networks and mounts
}

// traceOf collects the trace of a cluster that is up: every process below those
// that hold the machines, pods' included.
func traceOf(t *testing.T, c *Cluster) trace {
	t.Helper()
	all, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]bool{}
	for _, m := range c.machines() {
		holder, err := m.holder()
		if err != nil {
			t.Fatal(err)
		}
		found[holder] = true
	}
	tr := trace{cluster: c}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			parent, _ := strconv.Atoi(p.status("PPid"))
			if found[parent] && !found[p.pid] {
				found[p.pid], grown = true, true
			}
		}
	}
	for _, p := range all {
		if found[p.pid] {
			tr.processes = append(tr.processes, p)
			tr.namespaces = append(tr.namespaces, namespaces(p.pid)...)
		}
	}
	if len(tr.processes) < 10 {
		t.Errorf("a cluster of only %d processes: the test looks at the wrong ones", len(tr.processes))
	}
	return tr
}

func namespaces(pid int) []string {
	var all []string
	for _, kind := range []string{"net", "mnt", "pid"} {
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			all = append(all, link)
		}
	}
	return all
}

// mustBeGone looks for everything that the cluster was.
func (tr trace) mustBeGone(t *testing.T) {
	t.Helper()
	c := tr.cluster
	own := namespaces(os.Getpid())
	all, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		line := strings.Join(p.arguments, " ")
		for _, old := range tr.processes {
			if p.pid == old.pid && slices.Equal(p.arguments, old.arguments) {
				t.Errorf("process %d runs still: %.100s", p.pid, line)
			}
		}
		if p.pid != os.Getpid() && strings.Contains(line, c.dir) {
			t.Errorf("process %d is of the cluster: %.100s", p.pid, line)
		}
		for _, n := range namespaces(p.pid) {
			if slices.Contains(tr.namespaces, n) && !slices.Contains(own, n) {
				t.Errorf("process %d is in the cluster's namespace %s: %.100s", p.pid, n, line)
			}
		}
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mountinfo), c.dir) {
		t.Errorf("a mount of the cluster is left:\n%s", mountinfo)
	}
	if _, err := net.InterfaceByName(c.link()); err == nil {
		t.Errorf("the link %s is left", c.link())
	}
	if c.network.N != 0 {
		if routes, err := ip(t.Context(), "route show root "+c.network.all()); err != nil || routes != "" {
			t.Errorf("routes are left: %s %v", routes, err)
		}
	}
	if rules, err := exec.Command("iptables-save").Output(); err == nil && (strings.Contains(string(rules), "KUBE") || strings.Contains(string(rules), c.link())) {
		t.Errorf("rules of iptables are left:\n%s", rules)
	}
	if named, _ := filepath.Glob("/run/netns/cni-*"); named != nil {
		t.Errorf("network namespaces are left: %v", named)
	}
	roots, err := controlGroupRoots()
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{c.dir}
	for _, root := range roots {
		paths = append(paths, filepath.Join(root, controlGroup(c.options.Name)))
	}
	for _, path := range paths {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
}

// hostFolders are what nodes make where they are not kept from it, and what
// kubelet would set in the kernel.
func hostFolders() string {
	var found []string
	for _, path := range []string{"/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/opt/containerd", "/opt/cni", "/etc/kubernetes", "/usr/libexec/kubernetes", "/run/containerd"} {
		if _, err := os.Lstat(path); err == nil {
			found = append(found, path)
		}
	}
	for setting := range kernelSettings {
		data, _ := os.ReadFile(filepath.Join("/proc/sys", setting))
		found = append(found, setting+"="+strings.TrimSpace(string(data)))
	}
	slices.Sort(found)
	return strings.Join(found, "\n")
}

func downLeavesNothing(t *testing.T, c *Cluster) {
	runPod(t, c, pod{name: "last", node: "node1", script: "true"})
	tr := traceOf(t, c)
	if err := c.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	tr.mustBeGone(t)
	if err := Down(t.Context(), Options{Name: c.options.Name}); err != nil {
		t.Errorf("a second down: %v", err)
	}
}

func killProcess(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waitGone(t.Context(), pid, "the victim"); err != nil {
		t.Fatal(err)
	}
}

func stderr(err error) []byte {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.Stderr
	}
	return nil
}

func httpGet(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// serveHTTP serves a page at an address of this host and returns its URL.
func serveHTTP(t *testing.T, address, page string) string {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, page)
	}))
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}
