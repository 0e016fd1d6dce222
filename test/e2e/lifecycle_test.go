package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reader fails the pod at the first file of the class that is missing, empty or
// of another set than the file before it.
const reader = `
trap 'exit 0' TERM
while :; do
	set -- "$(cat /mnt/db/..data/left)" "$(cat /mnt/db/right)"
	[ -n "$1" ] && [ -n "$2" ] || { echo "read '$1' and '$2'"; exit 1; }
	now=$1; [ "$now" = "$last" ] || echo "$now"; last=$now
	sleep 0.2 & wait $!
done`

// calm checks that every pod is the one that it was, ran all the time, and
// nothing else is there.
func (n namespace) calm(before []corev1.Pod) {
	n.t.Helper()
	now := n.pods()
	uids := map[string]corev1.Pod{}
	for _, p := range now {
		uids[string(p.UID)] = p
	}
	for _, p := range before {
		p, there := uids[string(p.UID)]
		switch {
		case !there:
			n.t.Errorf("a pod is gone")
		case p.Status.Phase != corev1.PodRunning || p.Status.ContainerStatuses[0].RestartCount > 0:
			n.t.Errorf("pod %s is %s, after %d restarts", p.Name, p.Status.Phase, p.Status.ContainerStatuses[0].RestartCount)
		}
	}
	if len(now) != len(before) {
		n.t.Errorf("there are %d pods, and were %d", len(now), len(before))
	}
}

func (n namespace) pods() []corev1.Pod {
	n.t.Helper()
	return read[corev1.PodList](n.t, "-n", n.name, "pods").Items
}

// allRead waits until every pod has read this value.
func (n namespace) allRead(pods []corev1.Pod, value string) {
	n.t.Helper()
	eventually(n.t, func() error {
		for _, p := range pods {
			log, err := tryKubectl(n.t, nil, "-n", n.name, "logs", p.Name, "--tail=1")
			if err != nil {
				return err
			}
			if strings.TrimSpace(log) != value {
				return fmt.Errorf("pod %s reads %q", p.Name, log)
			}
		}
		return nil
	})
}

// killDriver ends the driver with SIGKILL, and waits for the next one.
func killDriver(t *testing.T) {
	t.Helper()
	before := driverRestarts(t)
	if out, err := kube.Nodes()[0].Run(t.Context(), "kill", "-9", driverProcess(t)); err != nil {
		t.Fatal(err, out)
	}
	eventually(t, func() error {
		if driverRestarts(t) == before {
			return errors.New("the driver has not started again")
		}
		return nil
	})
	kubectl(t, "-n", driverNamespace, "wait", "--for=condition=Ready", "pod", "-l", driverPods, "--timeout=2m")
}

// driverProcess returns the driver's process ID on the node, "" where there is
// none.
func driverProcess(t *testing.T) string {
	t.Helper()
	out, _ := kube.Nodes()[0].Run(t.Context(), "pgrep", "-f", "^/csi-secrets node ")
	return strings.TrimSpace(out)
}

func driverRestarts(t *testing.T) string {
	t.Helper()
	return kubectl(t, "-n", driverNamespace, "get", "pods", "-l", driverPods, "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}")
}

// told returns how many events the driver has sent about each pod.
func (n namespace) told() map[string]int {
	n.t.Helper()
	sent := map[string]int{}
	for _, e := range read[corev1.EventList](n.t, "-n", n.name, "events").Items {
		if e.Source.Component == "secrets-store.csi.k8s.io" {
			sent[e.InvolvedObject.Name] += int(max(e.Count, 1))
		}
	}
	return sent
}

// The driver is killed, upgraded, and registers again with a kubelet that was
// killed, and the store is away: fifty pods notice nothing, their secrets go on
// changing, and they end.
func TestFiftyPodsNoticeNothing(t *testing.T) {
	n := newNamespace(t)
	set := func(value string) {
		provider(t, http.MethodPost, "/objects/left", value)
		provider(t, http.MethodPost, "/objects/right", value)
	}
	set("first")
	n.class("db", "left", "right")
	apply(t, deployment(n, "web", 50, template(reader, "db")))
	n.kubectl("rollout", "status", "deployment/web", "--timeout=4m")
	pods := n.pods()
	n.allRead(pods, "first")

	// kubelet waits twice as long before each restart, until there is a new pod.
	killDriver(t)
	killDriver(t)
	n.calm(pods)
	set("after kills")
	n.allRead(pods, "after kills")

	if err := install(t.Context(), "--set-string", "linux.podAnnotations.upgraded="+fmt.Sprint(time.Now().Unix())); err != nil {
		t.Fatal(err)
	}
	killDriver(t)
	set("after an upgrade")
	n.allRead(pods, "after an upgrade")
	n.calm(pods)

	if err := errors.Join(kube.KillKubelet(t.Context(), "node1"), kube.StartKubelet(t.Context(), "node1")); err != nil {
		t.Fatal(err)
	}
	n.pod("later", template(idle, "db")) // kubelet knows the driver
	n.ready("pod/later")
	n.kubectl("delete", "pod", "later")
	set("after kubelet")
	n.allRead(pods, "after kubelet")
	n.calm(pods)

	before := n.told()
	provider(t, http.MethodPost, "/failures/left?code=14", "")
	eventually(t, func() error {
		for _, p := range pods {
			if s, err := n.status(p.Name, "db"); err != nil || len(s.Status.Conditions) == 0 || s.Status.Conditions[0].Status != metav1.ConditionFalse {
				return fmt.Errorf("the store is away, and the status of %s is %+v, %v", p.Name, s.Status.Conditions, err)
			}
		}
		return nil
	})
	time.Sleep(30 * time.Second) // of many intervals
	n.allRead(pods, "after kubelet")
	provider(t, http.MethodPost, "/failures/left?code=0", "")
	eventually(t, func() error {
		sent := n.told()
		for _, p := range pods {
			if n := sent[p.Name] - before[p.Name]; n != 2 {
				return fmt.Errorf("an outage was %d events of %s, not one for its beginning and one for its end", n, p.Name)
			}
		}
		return nil
	})
	set("after an outage")
	n.allRead(pods, "after an outage")
	n.calm(pods)

	n.kubectl("delete", "deployment", "web")
	eventually(t, func() error {
		if left := len(n.pods()); left > 0 {
			return fmt.Errorf("%d pods are left", left)
		}
		return nil
	})
	for _, p := range pods {
		if strings.Contains(mountsOfNode(t), string(p.UID)) {
			t.Fatalf("a mount of pod %s is left", p.Name)
		}
	}
}

// kubelet ends pods also while there is no driver: they go once it is back.
func TestADrainedNodeKeepsNothing(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "left")
	apply(t, deployment(n, "web", 5, template(idle, "db")))
	n.kubectl("rollout", "status", "deployment/web", "--timeout=2m")
	pods := n.pods()
	t.Cleanup(func() { kubectl(t, "uncordon", "node1") })
	n.kubectl("drain", "node1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=100s", "--pod-selector=app=web")
	for _, p := range pods {
		if strings.Contains(mountsOfNode(t), string(p.UID)) {
			t.Errorf("a mount of the evicted pod %s is left", p.Name)
		}
	}
	kubectl(t, "uncordon", "node1")
	n.kubectl("rollout", "status", "deployment/web", "--timeout=2m")
}

// The API server is away, and the driver is killed: a pod whose class is known
// starts, and running ones get their new secrets.
func TestWithoutTheAPIServerPodsStart(t *testing.T) {
	n := newNamespace(t)
	fixed := providerAddress(t)
	provider(t, http.MethodPost, "/failures/late?code=5", "")
	provider(t, http.MethodPost, "/objects/left", "before")
	n.class("late", "late")
	n.class("db", "left")
	p := template("cat /mnt/late/late; echo; "+idle, "late")
	no := false
	p.Spec.AutomountServiceAccountToken = &no
	n.pod("late", p)
	n.pod("running", template(idle, "db"))
	n.ready("pod/running")
	eventually(t, func() error {
		if events := n.events("late"); !strings.Contains(events, "FailedMount") {
			return errors.New("the pod has not failed yet")
		}
		return nil
	})
	uid := n.kubectl("get", "pod", "late", "-o", "jsonpath={.metadata.uid}")
	runningUID := n.kubectl("get", "pod", "running", "-o", "jsonpath={.metadata.uid}")

	if err := kube.StopAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return kube.StartAPIServer(ctx)
	}
	t.Cleanup(func() { _ = back() })
	time.Sleep(3 * time.Second) // a class is known for good a moment after it was made
	stopped := time.Now()
	// The driver that goes on has never heard of the API server.
	first := driverProcess(t)
	if out, err := kube.Nodes()[0].Run(t.Context(), "kill", "-9", first); err != nil {
		t.Fatal(err, out)
	}
	eventually(t, func() error {
		if now := driverProcess(t); now == "" || now == first {
			return errors.New("the driver has not started again")
		}
		return nil
	})
	post(t, fixed, "/failures/late?code=0", "")
	post(t, fixed, "/objects/left", "while it is away")
	file := func(uid, class, name string) error {
		path, err := kube.Nodes()[0].HostPath(filepath.Join("/var/lib/kubelet/pods", uid, "volumes/kubernetes.io~csi/of-"+class, "mount/..data", name))
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && string(text) != "value of late" && string(text) != "while it is away" {
			err = fmt.Errorf("the file is %q", text)
		}
		return err
	}
	eventually(t, func() error { return file(runningUID, "db", "left") })
	eventually(t, func() error { return file(uid, "late", "late") })
	if least := time.Minute - time.Since(stopped); least > 0 {
		time.Sleep(least) // so long that every cache and watch of a minute is over
	}
	if err := back(); err != nil {
		t.Fatal(err)
	}
	n.ready("pod/late")
	if got := n.kubectl("logs", "late"); got != "value of late\n" {
		t.Errorf("the pod read %q", got)
	}
	// What was to be written is written now.
	eventually(t, func() error {
		s, err := n.status("running", "db")
		if err == nil && s.Status.Objects[0].Version == "1" {
			err = fmt.Errorf("the status is %+v", s.Status)
		}
		return err
	})
	eventually(t, func() error { _, err := n.status("late", "late"); return err })
	// And what changes is heard of.
	n.class("db", "left", "more")
	eventually(t, func() error {
		_, err := tryKubectl(t, nil, "-n", n.name, "exec", "running", "--", "cat", "/mnt/db/more")
		return err
	})
}

// The provider goes and comes back under another pod: pods keep their files, and
// new ones wait for it.
func TestAProviderMayComeLaterThanThePod(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "left")
	n.pod("before", template(idle, "db"))
	n.ready("pod/before")
	kubectl(t, "-n", driverNamespace, "patch", "daemonset", "e2e-provider", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"none":"here"}}}}}`)
	kubectl(t, "-n", driverNamespace, "wait", "--for=delete", "pod", "-l", "app=e2e-provider", "--timeout=1m")
	n.pod("after", template(idle, "db"))
	eventually(t, func() error {
		if !strings.Contains(n.events("after"), "FailedMount") {
			return errors.New("the pod has not failed yet")
		}
		return nil
	})
	eventually(t, func() error {
		s, err := n.status("before", "db")
		if err == nil && (s.Status.Conditions[0].Status != "False" || s.Status.Conditions[0].Reason != "Unavailable") {
			err = fmt.Errorf("the condition is %+v", s.Status.Conditions[0])
		}
		return err
	})
	if got := n.cat("before", "/mnt/db/left"); got == "" {
		t.Error("the pod lost its secrets")
	}
	kubectl(t, "-n", driverNamespace, "patch", "daemonset", "e2e-provider", "-p", `{"spec":{"template":{"spec":{"nodeSelector":null}}}}`)
	n.ready("pod/after")
}

// One watch for each kind, one write for each publish, and nothing is read.
func TestTheAPIServerIsAskedLittle(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "left")
	const pods = 20
	began := time.Now()
	apply(t, deployment(n, "web", pods, template(idle, "db")))
	n.kubectl("rollout", "status", "deployment/web", "--timeout=2m")
	eventually(t, func() error {
		list := read[struct{ Items []any }](t, "-n", n.name, "secretproviderclasspodstatuses")
		if len(list.Items) != pods {
			return fmt.Errorf("there are %d statuses", len(list.Items))
		}
		return nil
	})
	time.Sleep(2 * republish) // each is published, and refreshed, some times more
	requests, err := kube.Requests()
	if err != nil {
		t.Fatal(err)
	}
	verbs := map[string]int{}
	for _, r := range requests {
		if r.User == driverAccount && r.Time.After(began) && r.Namespace == n.name {
			verbs[r.Verb+" "+r.Resource]++
		}
	}
	t.Logf("%d publishes made the requests %v", pods, verbs)
	for request, count := range verbs {
		if request != "patch secretproviderclasspodstatuses" || count > pods {
			t.Errorf("%d publishes made %d requests %q", pods, count, request)
		}
	}
}

func TestEveryMountIsAnEventWhereThatIsAskedFor(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "left")
	t.Cleanup(func() { _ = install(context.Background()) })
	if err := install(t.Context(), "--set", "events=all"); err != nil {
		t.Fatal(err)
	}
	n.pod("web", template(idle, "db"))
	n.ready("pod/web")
	eventually(t, func() error {
		if events := n.events("web"); !strings.Contains(events, "Normal Mounted: mounted 1 objects of SecretProviderClass "+n.name+"/db from provider e2e") {
			return fmt.Errorf("the events are %s", events)
		}
		return nil
	})
}

func TestMetricsOfARunningDriver(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "left")
	n.pod("web", template(idle, "db"))
	n.ready("pod/web")
	eventually(t, func() error {
		ip, err := tryKubectl(t, nil, "-n", driverNamespace, "get", "pods", "-l", driverPods, "-o", "jsonpath={.items[0].status.podIP}")
		if err != nil {
			return err
		}
		text, err := get("http://" + ip + ":8095/metrics")
		if err != nil {
			return err
		}
		labels := fmt.Sprintf(`{namespace=%q,pod="web",provider="e2e",secret_provider_class="db"} `, n.name)
		for _, want := range []string{
			`node_publish_total{os_type="linux",provider="e2e"} `, `csi_secrets_provider_healthy{provider="e2e"} 1`,
			"csi_secrets_volume_age_seconds" + labels, "csi_secrets_volume_next_refresh_seconds" + labels,
			`rotation_reconcile_total{os_type="linux",provider="e2e",rotated="false"} `,
			`csi_secrets_provider_request_duration_seconds_count{error_type="",provider="e2e"} `,
		} {
			if !strings.Contains(text, "\n"+want) {
				return fmt.Errorf("there is no %s in\n%s", want, text)
			}
		}
		return nil
	})
}

// The cluster still has upstream's definitions: statuses fit them, and have
// times and conditions once the chart has upgraded them.
func TestUpstreamsDefinitionsAreUpgraded(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "left")
	n.pod("web", template(idle, "db"))
	n.ready("pod/web")
	folder, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/secrets-store-csi-driver").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"secretproviderclasses", "secretproviderclasspodstatuses"} {
		kubectl(t, "apply", "--server-side", "--force-conflicts", "-f", filepath.Join(strings.TrimSpace(string(folder)), "deploy", "secrets-store.csi.x-k8s.io_"+kind+".yaml"))
	}
	t.Cleanup(func() { _ = install(context.Background()) })
	restart := func() {
		t.Helper()
		kubectl(t, "-n", driverNamespace, "rollout", "restart", "daemonset", "-l", driverPods)
		kubectl(t, "-n", driverNamespace, "rollout", "status", "daemonset", "-l", driverPods, "--timeout=2m")
	}
	restart()
	n.pod("later", template(idle, "db"))
	n.ready("pod/later")
	eventually(t, func() error {
		s, err := n.status("later", "db")
		if err == nil && (!s.Status.Mounted || len(s.Status.Conditions) != 0) {
			err = fmt.Errorf("the status is %+v", s.Status)
		}
		return err
	})
	if err := install(t.Context()); err != nil {
		t.Fatal(err)
	}
	restart()
	for _, pod := range []string{"web", "later"} {
		eventually(t, func() error {
			s, err := n.status(pod, "db")
			if err == nil && len(s.Status.Conditions) != 1 {
				err = fmt.Errorf("the status of %s is %+v", pod, s.Status)
			}
			return err
		})
	}
}

// Pods come to a new node once its driver is registered, and not before.
func TestTheStartupTaintGoesWithTheDriver(t *testing.T) {
	const taint = "secrets-store.csi.k8s.io/agent-not-ready"
	n := newNamespace(t)
	n.class("db", "left")
	t.Cleanup(func() {
		_, _ = tryKubectl(t, nil, "taint", "node", "node1", taint+"-", "other-")
		_ = install(context.Background())
	})
	kubectl(t, "taint", "node", "node1", taint+"=:NoSchedule", "other=here:PreferNoSchedule")
	n.pod("web", template(idle, "db"))
	if err := install(t.Context(), "--set", "startupTaint.enabled=true"); err != nil {
		t.Fatal(err)
	}
	n.ready("pod/web")
	if left := kubectl(t, "get", "node", "node1", "-o", "jsonpath={.spec.taints[*].key}"); strings.Contains(left, taint) || !strings.Contains(left, "other") {
		t.Errorf("the node's taints are %q", left)
	}
}
