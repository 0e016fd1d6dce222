package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/csi-secrets/csi-secrets/test/harness"
)

// A process is told of a change by a signal, by a file, and not at all of one that
// is none. Its pod has itself refreshed by an annotation.
func TestAProcessIsToldOfAChange(t *testing.T) {
	t.Cleanup(func() { _ = install(context.Background()) })
	if err := install(t.Context(), "--set", "changeSignals.enabled=true", "--set", "refreshByPod=true"); err != nil {
		t.Fatal(err)
	}
	n := newNamespace(t)
	onChange := "- action: touch\n- {action: signal, process: sh, signal: USR1}"
	n.classOf("told", "e2e", map[string]string{"objects": "- objectName: signalled", "onChange": onChange, "rotationInterval": "never"})
	n.classOf("lost", "e2e", map[string]string{"objects": "- objectName: signalled", "onChange": "- {action: signal, process: nginx, signal: HUP}", "rotationInterval": "never"})
	// Each signal makes it note what it then reads.
	n.pod("web", template(`trap 'exit 0' TERM; trap 'cat /mnt/told/signalled >> /tmp/heard; echo >> /tmp/heard' USR1; touch /tmp/heard; while :; do sleep 1 & wait || true; done`, "told", "lost"))
	n.ready("pod/web")
	changed := n.kubectl("exec", "web", "--", "stat", "-c", "%i", "/mnt/told/..changed") + n.cat("web", "/mnt/told/..changed")
	refresh := func() {
		n.kubectl("annotate", "pod", "web", "--overwrite", "secrets-store.csi.x-k8s.io/refresh="+fmt.Sprint(time.Now().UnixNano()))
	}
	requests := provider(t, http.MethodGet, "/requests", "")
	refresh()
	eventually(t, func() error {
		if now := provider(t, http.MethodGet, "/requests", ""); now == requests {
			return fmt.Errorf("the pod was not refreshed: %s requests", now)
		}
		return nil
	})
	if got := n.kubectl("exec", "web", "--", "stat", "-c", "%i", "/mnt/told/..changed") + n.cat("web", "/mnt/told/..changed"); got != changed {
		t.Errorf("nothing has changed, and it is told that at %s after %s", got, changed)
	}
	provider(t, http.MethodPost, "/objects/signalled", "second value")
	began := time.Now()
	refresh()
	eventually(t, func() error {
		if got := n.cat("web", "/tmp/heard"); got != "second value\n" {
			return fmt.Errorf("the process heard %q", got)
		}
		return nil
	})
	t.Logf("signalled %v after the annotation, as kubectl exec sees it", time.Since(began).Round(10*time.Millisecond))
	got := n.kubectl("exec", "web", "--", "stat", "-c", "%i", "/mnt/told/..changed") + n.cat("web", "/mnt/told/..changed")
	if inode, rest, _ := strings.Cut(got, "\n"); !strings.HasPrefix(changed, inode+"\n") || got <= changed || rest == "" {
		t.Errorf("the file says %s after %s", got, changed)
	}
	eventually(t, func() error {
		if events := n.events("web"); !strings.Contains(events, `Warning ChangeSignalFailed: the files of SecretProviderClass `+n.name+`/lost have changed, but SIGHUP was not sent to "nginx": no process of the pod is called "nginx"`) {
			return fmt.Errorf("nobody hears that there is no such process:\n%s", events)
		}
		return nil
	})
}

// How long it takes from a write to a Secret of the cluster to the files of many
// volumes, of pods with service accounts of their own, is told and not asserted:
// machines are slow at times.
func TestAChangedSecretReachesManyVolumes(t *testing.T) {
	const each = 40 // kubelet takes about a hundred pods
	n := newNamespace(t)
	n.kubectl("create", "secret", "generic", "source", "--from-literal=password=first")
	n.kubectl("create", "role", "reader", "--verb=get,watch", "--resource=secrets", "--resource-name=source")
	n.classOf("db", "kubernetes", map[string]string{"objects": "- {objectName: source, key: password}"})
	var files []string // as this process sees them
	count, marker := harness.Number(t, "CSI_SECRETS_VOLUMES", 60), "many-volumes-of-"+n.name
	for i := 0; i*each < count; i++ {
		name := fmt.Sprintf("web-%d", i)
		n.kubectl("create", "serviceaccount", name)
		n.kubectl("create", "rolebinding", name, "--role=reader", "--serviceaccount="+n.name+":"+name)
		p := template(": "+marker+"-"+name+";"+idle, "db")
		p.Spec.ServiceAccountName = name
		for v := 1; v < min(each, count-i*each); v++ {
			volume := fmt.Sprintf("v%d", v)
			p.Spec.Volumes = append(p.Spec.Volumes, secrets(volume, "db"))
			p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: "/mnt/" + volume, ReadOnly: true})
		}
		n.pod(name, p)
		n.ready("pod/" + name)
		root := rootOf(t, marker+"-"+name)
		for _, m := range p.Spec.Containers[0].VolumeMounts {
			files = append(files, root+m.MountPath+"/password")
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", kube.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	const rounds = 10
	for round := range rounds {
		value := fmt.Sprintf("value %d", round)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, config.Host+"/api/v1/namespaces/"+n.name+"/secrets/source", strings.NewReader(`{"stringData":{"password":"`+value+`"}}`))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/merge-patch+json")
		began := time.Now()
		response, err := client.Do(request)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatal(response, err)
		}
		_ = response.Body.Close()
		for left := slices.Clone(files); len(left) > 0; time.Sleep(time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("after a minute %d of %d volumes have not changed, as %s", len(left), len(files), left[0])
			}
			left = slices.DeleteFunc(left, func(path string) bool {
				got, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if string(got) == value {
					took = append(took, time.Since(began))
				}
				return string(got) == value
			})
		}
		time.Sleep(time.Second)
	}
	slices.Sort(took)
	at := func(percent int) time.Duration {
		return took[(len(took)-1)*percent/100].Round(time.Millisecond)
	}
	t.Logf("%d volumes, %d changes: from before the request to the file %v at p50, %v at p99, %v at most", len(files), rounds, at(50), at(99), at(100))
}

// rootOf returns the root folder of the container of which a process has these words
// in its command line, as this process sees it.
func rootOf(t *testing.T, words string) (root string) {
	t.Helper()
	eventually(t, func() error {
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, path := range all {
			if line, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(line), "/bin/sh\x00-ec\x00: "+words+";") {
				root = filepath.Dir(path) + "/root"
				return nil
			}
		}
		return fmt.Errorf("no process has the words %s", words)
	})
	return root
}
