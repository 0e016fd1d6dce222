package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/csi-secrets/csi-secrets/pkg/restart"
	"github.com/csi-secrets/csi-secrets/test/child"
)

// rollout is what these tests read of a Rollout.
type rollout struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		RestartAt *metav1.Time `json:"restartAt"`
	} `json:"spec"`
	Status struct {
		Phase              string       `json:"phase"`
		RestartedAt        *metav1.Time `json:"restartedAt"`
		ObservedGeneration string       `json:"observedGeneration"`
	} `json:"status"`
}

// withRollouts runs Argo's controller of Rollouts for the rest of the test.
func withRollouts(t *testing.T) {
	t.Helper()
	program, err := kube.Program(t.Context(), "rollouts-controller")
	if err != nil {
		t.Fatal(err)
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/argoproj/argo-rollouts")
	list.Dir, list.Env = "../cluster/programs/rollouts", append(os.Environ(), "GOWORK=off")
	folder, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	definitions := filepath.Join(strings.TrimSpace(string(folder)), "manifests/crds")
	for _, kind := range []string{"rollout", "analysis-run", "analysis-template", "cluster-analysis-template", "experiment"} {
		kubectl(t, "apply", "--server-side", "-f", filepath.Join(definitions, kind+"-crd.yaml"))
	}
	t.Cleanup(func() {
		_, _ = tryKubectl(t, nil, "delete", "crd", "--wait=false", "rollouts.argoproj.io", "analysisruns.argoproj.io", "analysistemplates.argoproj.io", "clusteranalysistemplates.argoproj.io", "experiments.argoproj.io")
	})
	kubectl(t, "wait", "--for=condition=Established", "crd/rollouts.argoproj.io", "--timeout=1m")
	log, err := os.Create(filepath.Join(t.TempDir(), "rollouts.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	command := exec.Command(program, "--kubeconfig", kube.Kubeconfig(), "--leader-elect=false", "--healthzPort=0", "--metricsPort=0")
	command.Stdout, command.Stderr = log, log
	process, err := child.Start(command)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !process.Running() || t.Failed() {
			t.Logf("the controller of Rollouts:\n%s", child.Tail(log.Name()))
		}
		_ = process.End(syscall.SIGTERM, 10*time.Second)
	})
}

// canary applies a Rollout whose canaries wait for somebody.
func (n namespace) canary(name string, p corev1.PodTemplateSpec, version string) {
	n.t.Helper()
	p.Labels = map[string]string{"app": name, "version": version}
	apply(n.t, map[string]any{
		"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": map[string]any{"name": name, "namespace": n.name},
		"spec": map[string]any{
			"replicas": 4, "selector": map[string]any{"matchLabels": map[string]string{"app": name}}, "template": p,
			"strategy": map[string]any{"canary": map[string]any{"maxUnavailable": 1, "steps": []any{map[string]any{"setWeight": 50}, map[string]any{"pause": map[string]any{}}}}},
		},
	})
}

func (n namespace) rollout(name string) rollout {
	n.t.Helper()
	return read[rollout](n.t, "-n", n.name, "rollouts.argoproj.io", name)
}

// A Rollout is restarted by its own controller, which replaces the pods of the
// stable and of the canary version alike, and moves on by no step.
func TestARolloutIsRestartedOnce(t *testing.T) {
	withRollouts(t)
	withController(t, "--set", "controller.restarts.settle=2s", "--set", "controller.restarts.spacing=5s", "--set", "controller.restarts.perMinute=60")
	n := newNamespace(t)
	n.classOf("db", "e2e", map[string]string{"objects": "- objectName: rolled", "onChange": "- action: restart"})
	p := template("cat /mnt/db/rolled > /tmp/read; "+idle, "db")
	n.canary("web", p, "one")
	phase := func(want string) {
		t.Helper()
		eventually(t, func() error {
			if r := n.rollout("web"); r.Status.Phase != want || r.Status.ObservedGeneration != fmt.Sprint(r.Generation) {
				return fmt.Errorf("the Rollout is %+v", r.Status)
			}
			return nil
		})
	}
	phase("Healthy")
	var last *metav1.Time
	changes := func(value, phaseThen string, versions ...string) {
		t.Helper()
		provider(t, http.MethodPost, "/objects/rolled", value)
		eventually(t, func() error {
			r := n.rollout("web")
			if r.Spec.RestartAt == nil || r.Spec.RestartAt.Equal(last) || !r.Spec.RestartAt.Equal(r.Status.RestartedAt) {
				return fmt.Errorf("the Rollout is restarted at %v, has restarted at %v", r.Spec.RestartAt, r.Status.RestartedAt)
			}
			return nil
		})
		phase(phaseThen)
		now := n.rollout("web").Spec.RestartAt
		eventually(t, func() error {
			pods := read[corev1.PodList](t, "-n", n.name, "pods", "-l", "app=web")
			counts := map[string]int{}
			for _, pod := range pods.Items {
				if pod.DeletionTimestamp != nil {
					continue
				}
				counts[pod.Labels["version"]]++
				if out, err := tryKubectl(t, nil, "-n", n.name, "exec", pod.Name, "--", "cat", "/tmp/read"); err != nil || out != value {
					return fmt.Errorf("%s read %q, %v", pod.Name, out, err)
				}
			}
			for _, v := range versions {
				if counts[v] != 4/len(versions) {
					return fmt.Errorf("there are %v", counts)
				}
			}
			return nil
		})
		time.Sleep(15 * time.Second) // three times the least distance: what comes again has come by then
		if r := n.rollout("web"); !r.Spec.RestartAt.Equal(now) || r.Status.Phase != phaseThen {
			t.Errorf("then the Rollout is restarted at %s, after %s, and %s", r.Spec.RestartAt, now, r.Status.Phase)
		}
		last = now
	}
	changes("second value", "Healthy", "one")
	n.canary("web", p, "two")
	phase("Paused")
	changes("third value", "Paused", "one", "two")
	if sets := read[appsv1.ReplicaSetList](t, "-n", n.name, "replicasets", "-l", "app=web"); len(sets.Items) != 2 {
		t.Errorf("two versions have %d ReplicaSets", len(sets.Items))
	}
	if events := n.events("web"); strings.Count(events, "Normal Restarted: restarted the pods: SecretProviderClass db changed at ") != 2 {
		t.Errorf("the events are\n%s", events)
	}
	if at := n.kubectl("get", "rollouts.argoproj.io", "web", "-o", "jsonpath={.metadata.annotations."+strings.ReplaceAll(restart.RestartedForAnnotation, ".", `\.`)+"}"); at != "SecretProviderClass db" {
		t.Errorf("it was restarted for %q", at)
	}
	_, _ = tryKubectl(t, nil, "-n", n.name, "delete", "rollouts.argoproj.io", "web", "--wait=true", "--timeout=30s")
}
