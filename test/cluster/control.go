package cluster

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const apiTimeout = 60 * time.Second

// auditPolicy has a line for every request, without bodies: who asked, with what
// program, for what, and how it went.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

func (c *Cluster) startControlPlane(ctx context.Context) error {
	c.logf("start the control plane")
	if err := c.control.spawn(ctx, c.control.program("etcd"), "--name=etcd",
		"--data-dir="+filepath.Join(c.control.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380"); err != nil {
		return err
	}
	if err := os.WriteFile(c.auditPolicyFile(), []byte(auditPolicy), 0o644); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	if err := c.control.spawn(ctx, append([]string{c.control.program("kube-controller-manager"),
		"--kubeconfig=" + c.controlKubeconfig("controller-manager"), "--leader-elect=false", "--bind-address=127.0.0.1",
		"--service-account-private-key-file=" + c.serviceAccountKeyFile(), "--use-service-account-credentials=true",
		"--root-ca-file=" + c.caFile(), "--flex-volume-plugin-dir=" + filepath.Join(c.control.dir, "flex"),
	}, c.featureGates()...)...); err != nil {
		return err
	}
	return c.control.spawn(ctx, append([]string{c.control.program("kube-scheduler"),
		"--kubeconfig=" + c.controlKubeconfig("scheduler"), "--leader-elect=false", "--bind-address=127.0.0.1",
	}, c.featureGates()...)...)
}

// StopAPIServer ends the API server with SIGKILL. Nodes and pods run on.
func (c *Cluster) StopAPIServer(ctx context.Context) error {
	return c.control.end(ctx, "kube-apiserver", syscall.SIGKILL)
}

// StartAPIServer starts the API server and waits until it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	pki := filepath.Dir(c.caFile())
	if err := c.control.spawn(ctx, append([]string{c.control.program("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--secure-port=443", "--advertise-address=" + c.network.api(),
		"--service-cluster-ip-range=" + c.network.services(),
		"--tls-cert-file=" + filepath.Join(pki, "server.crt"), "--tls-private-key-file=" + filepath.Join(pki, "server.key"),
		"--client-ca-file=" + c.caFile(), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-account-key-file=" + c.serviceAccountKeyFile(), "--service-account-signing-key-file=" + c.serviceAccountKeyFile(),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--kubelet-client-certificate=" + filepath.Join(pki, "server.crt"), "--kubelet-client-key=" + filepath.Join(pki, "server.key"),
		"--kubelet-preferred-address-types=InternalIP", "--allow-privileged=true",
		"--audit-policy-file=" + c.auditPolicyFile(), "--audit-log-path=" + c.AuditLog(), "--audit-log-maxsize=100000",
	}, c.featureGates()...)...); err != nil {
		return err
	}
	api, err := newAPIClient(c.Kubeconfig(), c.network.api())
	if err != nil {
		return err
	}
	c.api = api
	return c.control.waitFor(ctx, "kube-apiserver", apiTimeout, api.ready)
}

func (c *Cluster) auditPolicyFile() string { return filepath.Join(c.control.dir, "audit-policy.yaml") }

// featureGates is the flag of all programs but kubelet.
func (c *Cluster) featureGates() []string {
	var gates []string
	for _, name := range slices.Sorted(maps.Keys(c.options.FeatureGates)) {
		gates = append(gates, fmt.Sprintf("%s=%t", name, c.options.FeatureGates[name]))
	}
	if gates == nil {
		return nil
	}
	return []string{"--feature-gates=" + strings.Join(gates, ",")}
}
