package e2e

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/csi-secrets/csi-secrets/pkg/restart"
)

const controllerPods = "app=secrets-store-csi-driver-controller"

// withController runs the controller for the rest of the test.
func withController(t *testing.T, more ...string) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := tryKubectl(t, nil, "-n", driverNamespace, "logs", "-l", controllerPods, "--tail=60")
			t.Logf("the controllers' logs:\n%s%v", logs, err)
		}
		_ = install(context.Background())
	})
	if err := install(t.Context(), append([]string{"--set", "controller.enabled=true"}, more...)...); err != nil {
		t.Fatal(err)
	}
}

// A class that says so has its workloads restarted after a change: each once, and
// with the new value; one that opts out is left alone.
func TestAWorkloadThatCannotReReadIsRestartedOnce(t *testing.T) {
	withController(t, "--set", "controller.restarts.settle=2s", "--set", "controller.restarts.spacing=5s", "--set", "controller.restarts.perMinute=60")
	n := newNamespace(t)
	n.classOf("db", "e2e", map[string]string{"objects": "- objectName: reread", "onChange": "- action: restart"})
	script := "cat /mnt/db/reread > /tmp/read; " + idle
	apply(t, deployment(n, "web", 2, template(script, "db")))
	apply(t, statefulSet(n, "store", 2, template(script, "db")))
	left := deployment(n, "left", 1, template(script, "db"))
	left.Annotations = map[string]string{restart.Annotation: "false"}
	apply(t, left)
	all := []string{"deployment/web", "statefulset/store", "deployment/left"}
	finished := func() {
		t.Helper()
		for _, w := range all {
			n.kubectl("rollout", "status", w, "--timeout=2m")
		}
	}
	finished()
	restarted := func(what string) string {
		return n.kubectl("get", what, "-o", "jsonpath={.spec.template.metadata.annotations."+strings.ReplaceAll(restart.RestartedAtAnnotation, ".", `\.`)+"}")
	}
	var before map[string]string
	for _, value := range []string{"second value", "third value"} {
		provider(t, http.MethodPost, "/objects/reread", value)
		now := map[string]string{}
		for _, w := range all[:2] {
			eventually(t, func() error {
				if now[w] = restarted(w); now[w] == before[w] {
					return fmt.Errorf("%s was not restarted", w)
				}
				return nil
			})
		}
		finished()
		for _, pod := range strings.Fields(n.kubectl("get", "pods", "-l", "app in (web, store)", "--field-selector", "status.phase=Running", "-o", "jsonpath={.items[*].metadata.name}")) {
			eventually(t, func() error {
				out, err := tryKubectl(t, nil, "-n", n.name, "exec", pod, "--", "cat", "/tmp/read")
				if err == nil && out != value {
					err = fmt.Errorf("%s read %q", pod, out)
				}
				if err != nil && strings.Contains(err.Error(), "not found") {
					return nil // it was one of the old ones
				}
				return err
			})
		}
		time.Sleep(15 * time.Second) // three times the least distance: what comes again has come by then
		for _, w := range all[:2] {
			if again := restarted(w); again != now[w] {
				t.Errorf("%s was restarted again for the same change", w)
			}
		}
		before = now
	}
	if restarted("deployment/left") != "" {
		t.Error("a workload that has opted out was restarted")
	}
	sets := read[appsv1.ReplicaSetList](t, "-n", n.name, "replicasets", "-l", "app=web")
	if len(sets.Items) != 3 {
		t.Errorf("two changes made %d ReplicaSets", len(sets.Items))
	}
	if events := n.events("web"); strings.Count(events, "Normal Restarted: restarted the pods: SecretProviderClass db changed at ") != 2 {
		t.Errorf("the events are\n%s", events)
	}
}

// Workloads that have variables of a Secret, and mount nothing, are restarted after
// the Secret has changed, whether pods of others made it or a SecretSync.
func TestAWorkloadThatUsesASecretIsRestartedOnce(t *testing.T) {
	n := newNamespace(t)
	withController(t, append(n.secretSyncs(), "--set", "syncSecret.enabled=true", "--set", "syncSecret.namespaces={"+n.name+"}",
		"--set", "controller.restarts.settle=2s", "--set", "controller.restarts.spacing=5s", "--set", "controller.restarts.perMinute=60")...)
	n.letSync("reader")
	n.synced("files", []string{"made"}, "used")
	for _, name := range []string{"db", "files"} {
		n.kubectl("patch", "secretproviderclass", name, "--type=merge", "-p", `{"spec":{"parameters":{"onChange":"- action: restart"}}}`)
	}
	apply(t, n.secretSync("synced", "db", "reader"))
	apply(t, deployment(n, "files", 2, template(idle, "files")))
	apply(t, deployment(n, "api", 2, withVariable(template(idle), "made", "used")))
	apply(t, statefulSet(n, "store", 2, withVariable(template(idle), "synced", "PASSWORD")))
	left := deployment(n, "left", 1, withVariable(template(idle), "made", "used"))
	left.Annotations = map[string]string{restart.Annotation: "false"}
	apply(t, left)
	finished := func() {
		t.Helper()
		for _, w := range []string{"deployment/api", "statefulset/store", "deployment/left", "deployment/files"} {
			n.kubectl("rollout", "status", w, "--timeout=2m")
		}
	}
	finished()
	at := "spec.template.metadata.annotations." + strings.ReplaceAll(restart.RestartedAtAnnotation, ".", `\.`) + "}"
	restarted := func(what string) string { return n.kubectl("get", what, "-o", "jsonpath={."+at) }
	settled := 15 * time.Second // three times the least distance: what comes again has come by then
	time.Sleep(settled)
	if all := n.kubectl("get", "deployment,statefulset", "-o", "jsonpath={.items[*]."+at); all != "" {
		t.Errorf("that a Secret was made restarted something: %s", all)
	}
	its := map[string]string{"api": "deployment/api", "store": "statefulset/store"}
	before := map[string]string{}
	for _, value := range []string{"second value", "third value"} {
		provider(t, http.MethodPost, "/objects/used", value)
		n.kubectl("patch", "secret", "source", "-p", `{"stringData":{"password":"`+value+`"}}`)
		now := map[string]string{}
		for name, w := range its {
			eventually(t, func() error {
				if now[name] = restarted(w); now[name] == before[name] {
					return fmt.Errorf("%s was not restarted", w)
				}
				return nil
			})
		}
		finished()
		for name, w := range its {
			eventually(t, func() error { // it may take a pod that is about to end
				got, err := tryKubectl(t, nil, "-n", n.name, "exec", w, "--", "sh", "-c", "echo $VALUE")
				if err == nil && got != value+"\n" {
					err = fmt.Errorf("a pod of %s has %q", name, got)
				}
				return err
			})
		}
		time.Sleep(settled)
		for name, w := range its {
			if again := restarted(w); again != now[name] {
				t.Errorf("%s was restarted again for the same change", w)
			}
		}
		before = now
	}
	if restarted("deployment/left") != "" {
		t.Error("a workload that has opted out was restarted")
	}
	for name, secret := range map[string]string{"api": "made", "store": "synced"} {
		if events := n.events(name); strings.Count(events, "Normal Restarted: restarted the pods: Secret "+secret+" changed at ") != 2 {
			t.Errorf("the events of %s are\n%s", name, events)
		}
	}
}

// A signed webhook has nodes refresh the classes that name the object, and no
// others.
func TestANoticeReachesThePodsOfAClass(t *testing.T) {
	const key = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
	_, _ = tryKubectl(t, nil, "-n", driverNamespace, "delete", "secret", "notice-keys", "--ignore-not-found")
	kubectl(t, "-n", driverNamespace, "create", "secret", "generic", "notice-keys", "--from-literal=keys=whsec_"+key)
	withController(t, "--set", "controller.webhook.enabled=true", "--set", "controller.webhook.keysSecret=notice-keys")
	n := newNamespace(t)
	n.classOf("told", "e2e", map[string]string{"objects": "- objectName: noticed", "changeNotices": "true"})
	n.classOf("other", "e2e", map[string]string{"objects": "- objectName: unrelated", "changeNotices": "true"})
	n.pod("web", template(idle, "told", "other"))
	n.ready("pod/web")
	provider(t, http.MethodPost, "/objects/noticed", "second value")
	provider(t, http.MethodPost, "/objects/unrelated", "second value")
	post := func(body, id string) (status int) {
		t.Helper()
		eventually(t, func() error {
			address, err := tryKubectl(t, nil, "-n", driverNamespace, "get", "pods", "-l", controllerPods, "-o", "jsonpath=http://{.items[0].status.podIP}:8443/webhook")
			if err != nil {
				return err
			}
			at := fmt.Sprint(time.Now().Unix())
			raw, _ := base64.StdEncoding.DecodeString(key)
			mac := hmac.New(sha256.New, raw)
			_, _ = io.WriteString(mac, id+"."+at+"."+body)
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(body))
			if err != nil {
				return err
			}
			for name, value := range map[string]string{"Content-Type": "application/json", "webhook-id": id, "webhook-timestamp": at, "webhook-signature": "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))} {
				r.Header.Set(name, value)
			}
			response, err := http.DefaultClient.Do(r)
			if err != nil {
				return err
			}
			defer response.Body.Close()
			status = response.StatusCode
			return nil
		})
		return status
	}
	if status := post(`{"provider":"e2e","object":"noticed"}`, "one"); status != http.StatusNoContent {
		t.Fatalf("it is answered with %d", status)
	}
	began := time.Now()
	eventually(t, func() error {
		if got := n.cat("web", "/mnt/told/noticed"); got != "second value" {
			return fmt.Errorf("the pod reads %q", got)
		}
		return nil
	})
	t.Logf("%v after the notice, as kubectl exec sees it", time.Since(began).Round(10*time.Millisecond))
	if got := n.cat("web", "/mnt/other/unrelated"); got != "value of unrelated" {
		t.Errorf("a class that the notice is not about was refreshed: %q", got)
	}
	// A class that is deleted meanwhile is not made anew by its annotation: the
	// notice is written once more some seconds later.
	n.kubectl("delete", "secretproviderclass", "told")
	time.Sleep(20 * time.Second)
	if classes := n.kubectl("get", "secretproviderclass", "-o", "name"); strings.Contains(classes, "/told") {
		t.Errorf("a class came back: %s", classes)
	}
}
