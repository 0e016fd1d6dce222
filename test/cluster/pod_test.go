package cluster

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// pod is a pod of busybox that runs a script and then sleeps.
type pod struct {
	name, node, script string
	kubelet            bool // has kubelet's folder at /kubelet, with mounts of both sides
}

func (p pod) manifest(t *testing.T) string {
	t.Helper()
	container := map[string]any{
		"name": "main", "image": BusyboxImage, "imagePullPolicy": "Never",
		"command": []string{"sh", "-c", p.script + "\nsleep 1000"},
	}
	spec := map[string]any{"nodeName": p.node, "terminationGracePeriodSeconds": 0, "containers": []any{container}}
	if p.kubelet {
		container["securityContext"] = map[string]any{"privileged": true}
		container["volumeMounts"] = []any{map[string]any{"name": "kubelet", "mountPath": "/kubelet", "mountPropagation": "Bidirectional"}}
		spec["volumes"] = []any{map[string]any{"name": "kubelet", "hostPath": map[string]any{"path": kubeletDir}}}
	}
	data, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": p.name}, "spec": spec})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// runPod starts a pod and waits until it is ready. It is deleted with the test.
func runPod(t *testing.T, c *Cluster, p pod) {
	t.Helper()
	apply := c.Command(t.Context(), "kubectl", "apply", "-f", "-")
	apply.Stdin = strings.NewReader(p.manifest(t))
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("start pod %s: %v\n%s", p.name, err, out)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			delete := c.Command(t.Context(), "kubectl", "delete", "pod", p.name, "--ignore-not-found", "--wait=false")
			_ = delete.Run()
		}
	})
	kubectl(t, c, "wait", "--for=condition=Ready", "pod/"+p.name, "--timeout=60s")
}

func kubectl(t *testing.T, c *Cluster, arguments ...string) string {
	t.Helper()
	out, err := c.Command(t.Context(), "kubectl", arguments...).Output()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(arguments, " "), err, stderr(err))
	}
	return string(out)
}

// eventually waits for what is to come true.
func eventually(t *testing.T, what string, try func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !try(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 seconds: %s", what)
		}
	}
}
