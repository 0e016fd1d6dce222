package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"text/template"
)

// The plugin "opt" makes a folder in /opt, which is the host's.
// restrict_oom_score_adj is for machines without CAP_SYS_RESOURCE, where runc
// dies with "can't get final child's PID from pipe".
var containerdConfig = template.Must(template.New("containerd").Parse(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = "{{.Socket}}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Pause}}"
  restrict_oom_score_adj = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{{.Plugins}}"
    conf_dir = "/etc/cni/net.d"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
`))

// Addresses are never translated: the whole cluster is one routed network.
var networkConfig = template.Must(template.New("network").Parse(`{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [{
    "type": "bridge",
    "bridge": "pods",
    "isGateway": true,
    "hairpinMode": true,
    "ipam": {
      "type": "host-local",
      "ranges": [[{"subnet": "{{.Pods}}"}]],
      "routes": [{"dst": "0.0.0.0/0"}],
      "dataDir": "/run/cni"
    }
  }]
}
`))

// The machine may have control groups version 1, as small ones do. Limits on
// disk and memory are low, since the node shares them with the host. The kernel's
// settings are the host's: kubelet finds what it wants in their place (see
// machine.start) and must not touch them.
var kubeletConfig = template.Must(template.New("kubelet").Parse(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{{.Socket}}
cgroupDriver: cgroupfs
cgroupRoot: {{.ControlGroup}}
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
protectKernelDefaults: true
clusterDNS: []
resolvConf: /etc/resolv.conf
volumePluginDir: /var/lib/kubelet/volumeplugins
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard:
  memory.available: 50Mi
  nodefs.available: 1%
  nodefs.inodesFree: 1%
  imagefs.available: 1%
authentication:
  anonymous:
    enabled: false
  webhook:
    enabled: false
  x509:
    clientCAFile: /etc/kubernetes/ca.crt
authorization:
  mode: AlwaysAllow
{{- if .Options.SyncFrequency}}
syncFrequency: {{.Options.SyncFrequency}}
{{- end}}
{{- if .Options.FeatureGates}}
featureGates:
{{- range $name, $on := .Options.FeatureGates}}
  {{$name}}: {{$on}}
{{- end}}
{{- end}}
`))

// networkPlugins is where this system's packages put the CNI plugins.
func networkPlugins() (string, error) {
	for _, dir := range []string{"/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no CNI plugin \"bridge\" in /usr/lib/cni, /usr/libexec/cni or /opt/cni/bin: install containernetworking-plugins")
}

func writeTemplate(path string, t *template.Template, values any) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(t.Execute(f, values), f.Close())
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}
