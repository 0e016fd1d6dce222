package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func decode(text string, into any) error { return json.Unmarshal([]byte(text), into) }

func TestAPodReadsItsSecrets(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "user", "certs/tls.key")
	n.pod("web", template(idle, "db"))
	n.ready("pod/web")
	if got := n.cat("web", "/mnt/db/user") + "|" + n.cat("web", "/mnt/db/certs/tls.key"); got != "value of user|value of certs/tls.key" {
		t.Errorf("the pod reads %q", got)
	}
	if _, err := tryKubectl(t, nil, "-n", n.name, "exec", "web", "--", "touch", "/mnt/db/x"); err == nil {
		t.Error("the pod can write to its volume")
	}
	pod := read[corev1.Pod](t, "-n", n.name, "pod", "web")
	target := fmt.Sprintf("/var/lib/kubelet/pods/%s/volumes/kubernetes.io~csi/of-db/mount", pod.UID)
	// The container runtime's own mount, in the container, has the options of the
	// file system only.
	for where, options := range map[string]string{
		mountsOfNode(t): "tmpfs " + target + " tmpfs ro,nosuid,nodev,noexec,", n.cat("web", "/proc/mounts"): "tmpfs /mnt/db tmpfs ro,",
	} {
		_, rest, found := strings.Cut(where, options)
		rest, _, _ = strings.Cut(rest, "\n")
		if !found || !strings.Contains(rest, "noswap") || !strings.Contains(rest, "size=") {
			t.Errorf("there is no mount %q with noswap and a size:\n%s", options, where)
		}
	}
	eventually(t, func() error {
		s, err := n.status("web", "db")
		if err != nil {
			return err
		}
		switch st := s.Status; {
		case st.PodName != "web" || st.SecretProviderClassName != "db" || !st.Mounted || st.TargetPath != target || st.Provider != "e2e":
			return fmt.Errorf("the status is %+v", st)
		case len(st.Objects) != 2 || st.Objects[0].ID != "certs/tls.key" || st.Objects[1].Version != "1":
			return fmt.Errorf("its objects are %v", st.Objects)
		case len(st.Conditions) != 1 || st.Conditions[0].Status != "True" || st.MountedAt == nil || st.LastRotationTime == nil:
			return fmt.Errorf("its conditions are %v", st.Conditions)
		case len(s.OwnerReferences) != 1 || s.OwnerReferences[0].UID != pod.UID || s.OwnerReferences[0].Kind != "Pod":
			return fmt.Errorf("its owners are %v", s.OwnerReferences)
		case s.Labels["internal.secrets-store.csi.k8s.io/node-name"] != pod.Spec.NodeName:
			return fmt.Errorf("its labels are %v", s.Labels)
		}
		return nil
	})
	if columns := n.kubectl("get", "secretproviderclasspodstatus"); !strings.Contains(columns, "web") || !strings.Contains(columns, "True") {
		t.Errorf("kubectl get shows\n%s", columns)
	}

	// Deleted by somebody, it comes back; with the pod, it goes.
	n.kubectl("delete", "secretproviderclasspodstatus", "--all")
	eventually(t, func() error { _, err := n.status("web", "db"); return err })
	n.kubectl("delete", "pod", "web")
	eventually(t, func() error {
		if _, err := n.status("web", "db"); err == nil {
			return fmt.Errorf("the status of a pod that is gone is there")
		}
		return nil
	})
	if mounts := mountsOfNode(t); strings.Contains(mounts, string(pod.UID)) {
		t.Errorf("mounts of a pod that is gone:\n%s", mounts)
	}
}

// mountsOfNode returns the mounts of the node.
func mountsOfNode(t *testing.T) string {
	t.Helper()
	out, err := kube.Nodes()[0].Run(t.Context(), "cat", "/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestWorkloads(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "user")
	n.class("api", "token", "cert")
	apply(t, deployment(n, "web", 3, template(idle, "db", "api")))
	apply(t, statefulSet(n, "store", 2, template(idle, "db")))
	apply(t, job(n, "report", template(`test "$(cat /mnt/db/user /mnt/api/token)" = "value of uservalue of token"`, "db", "api")))
	n.kubectl("rollout", "status", "deployment/web", "--timeout=2m")
	n.kubectl("rollout", "status", "statefulset/store", "--timeout=2m")
	n.kubectl("wait", "--for=condition=Complete", "job/report", "--timeout=2m")
	if got := n.cat("deployment/web", "/mnt/api/cert"); got != "value of cert" {
		t.Errorf("the Deployment reads %q", got)
	}
	// A pod that comes again under the same name has a status of its own.
	before := read[corev1.Pod](t, "-n", n.name, "pod", "store-0")
	n.kubectl("delete", "pod", "store-0")
	eventually(t, func() error {
		now, err := tryKubectl(t, nil, "-n", n.name, "get", "pod", "store-0", "-o", "jsonpath={.metadata.uid}")
		if err == nil && (now == string(before.UID) || now == "") {
			err = fmt.Errorf("it has not come again")
		}
		return err
	})
	n.ready("pod/store-0")
	uid := n.kubectl("get", "pod", "store-0", "-o", "jsonpath={.metadata.uid}")
	eventually(t, func() error {
		s, err := n.status("store-0", "db")
		if err == nil && (len(s.OwnerReferences) != 1 || string(s.OwnerReferences[0].UID) != uid || !strings.Contains(s.Status.TargetPath, uid)) {
			err = fmt.Errorf("the status is of another pod: %+v", s)
		}
		return err
	})
}

func TestOneClassTwiceInAPod(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "user")
	p := template(idle, "db")
	p.Spec.Volumes = append(p.Spec.Volumes, secrets("again", "db"))
	p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "again", MountPath: "/mnt/again", ReadOnly: true})
	n.pod("web", p)
	n.ready("pod/web")
	if got := n.cat("web", "/mnt/again/user"); got != "value of user" {
		t.Errorf("the second volume has %q", got)
	}
	eventually(t, func() error { _, err := n.status("web", "db"); return err })
}

func TestAPodThatIsNotRootReadsItsSecrets(t *testing.T) {
	n := newNamespace(t)
	n.classOf("db", "e2e", map[string]string{"objects": "- {objectName: open}\n- {objectName: narrow, mode: 256}\n"}) // 0400
	p := template(idle, "db")
	var user, group int64 = 1000, 2000
	yes := true
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, RunAsNonRoot: &yes, FSGroup: &group}
	n.pod("grouped", p)
	p = template(idle, "db")
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, RunAsNonRoot: &yes}
	n.pod("alone", p)
	n.ready("pod/grouped", "pod/alone")
	if got := n.cat("grouped", "/mnt/db/open") + "|" + n.cat("grouped", "/mnt/db/narrow"); got != "value of open|value of narrow" {
		t.Errorf("with an fsGroup the pod reads %q", got)
	}
	if got := n.kubectl("exec", "grouped", "--", "stat", "-L", "-c", "%a %u %g", "/mnt/db/narrow"); got != "440 0 2000\n" {
		t.Errorf("with an fsGroup the file is %q", got)
	}
	if got := n.cat("alone", "/mnt/db/open"); got != "value of open" {
		t.Errorf("without an fsGroup the pod reads %q", got)
	}
	if _, err := tryKubectl(t, nil, "-n", n.name, "exec", "alone", "--", "cat", "/mnt/db/narrow"); err == nil {
		t.Error("without an fsGroup the pod reads a file of root's")
	}
}

func TestTheProviderGetsThePodsTokens(t *testing.T) {
	n := newNamespace(t)
	n.classOf("db", "e2e", map[string]string{"objects": "- objectName: user", "requireAudience": "conjur"})
	n.pod("web", template(idle, "db"))
	n.ready("pod/web")
	if got := provider(t, http.MethodGet, "/audiences", ""); got != "\nconjur\nvault\n" {
		t.Errorf("the audiences are %q", got)
	}
}

func TestARotationReachesARunningPod(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "rotated")
	n.pod("web", template(idle, "db"))
	n.ready("pod/web")
	eventually(t, func() error { _, err := n.status("web", "db"); return err })
	provider(t, http.MethodPost, "/objects/rotated", "second value")
	eventually(t, func() error {
		if got := n.cat("web", "/mnt/db/rotated"); got != "second value" {
			return fmt.Errorf("the pod reads %q", got)
		}
		return nil
	})
	eventually(t, func() error {
		s, err := n.status("web", "db")
		if err == nil && s.Status.Objects[0].Version != "2" {
			err = fmt.Errorf("the status is %+v", s.Status)
		}
		return err
	})

	// The store refuses: the pod keeps what it has, and somebody hears why.
	provider(t, http.MethodPost, "/failures/rotated?code=7", "") // PermissionDenied
	eventually(t, func() error {
		s, err := n.status("web", "db")
		if err != nil {
			return err
		}
		if c := s.Status.Conditions[0]; c.Status != "False" || c.Reason != "Denied" || !strings.Contains(c.Message, "the store says PermissionDenied") {
			return fmt.Errorf("the condition is %+v", c)
		}
		return nil
	})
	if got := n.cat("web", "/mnt/db/rotated"); got != "second value" {
		t.Errorf("after a refresh that failed the pod reads %q", got)
	}
	provider(t, http.MethodPost, "/failures/rotated?code=0", "")
	eventually(t, func() error {
		s, err := n.status("web", "db")
		if err == nil && s.Status.Conditions[0].Status != "True" {
			err = fmt.Errorf("the condition is %+v", s.Status.Conditions[0])
		}
		return err
	})
	eventually(t, func() error {
		events := n.events("web")
		for _, want := range []string{"Normal MountRotationComplete: switched the files", "Warning MountRotationFailed: the pod keeps the files that it has", "answers again"} {
			if !strings.Contains(events, want) {
				return fmt.Errorf("there is no event %q in\n%s", want, events)
			}
		}
		if n := strings.Count(events, "MountRotationFailed"); n != 1 {
			return fmt.Errorf("one failure has %d events:\n%s", n, events)
		}
		return nil
	})
}

// A changed class reaches running pods without kubelet's or the interval's time.
func TestAChangedClassReachesARunningPod(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "user")
	n.pod("web", template(idle, "db"))
	n.ready("pod/web")
	n.class("db", "user", "another")
	eventually(t, func() error {
		_, err := tryKubectl(t, nil, "-n", n.name, "exec", "web", "--", "cat", "/mnt/db/another")
		return err
	})
}

// What lies in the cluster itself is read with the pod's token: what its service
// account may not read, it does not get.
func TestASecretOfTheClusterIsReadAsThePod(t *testing.T) {
	n := newNamespace(t)
	n.kubectl("create", "secret", "generic", "db", "--from-literal=password=first", "--from-literal=user=app")
	n.kubectl("create", "secret", "generic", "other", "--from-literal=password=canary")
	n.kubectl("create", "configmap", "settings", "--from-literal=level=info")
	n.kubectl("create", "role", "reader", "--verb=get,watch", "--resource=secrets,configmaps", "--resource-name=db", "--resource-name=settings")
	n.kubectl("create", "rolebinding", "reader", "--role=reader", "--serviceaccount="+n.name+":default")
	n.classOf("db", "kubernetes", map[string]string{"objects": "- {objectName: db, key: password, filePermission: \"0400\"}\n- {objectName: settings, objectType: configmap, objectAlias: conf}"})
	n.classOf("watched", "kubernetes", map[string]string{"rotationInterval": "never", "objects": "- {objectName: db, key: password}"})
	n.classOf("other", "kubernetes", map[string]string{"objects": "- objectName: other"})
	n.pod("web", template(idle, "db", "watched"))
	n.pod("greedy", template(idle, "other"))
	n.ready("pod/web")
	if got := n.cat("web", "/mnt/db/password") + "|" + n.cat("web", "/mnt/db/conf/level"); got != "first|info" {
		t.Errorf("the pod reads %q", got)
	}
	for _, value := range []string{"second", "third"} {
		n.kubectl("patch", "secret", "db", "-p", `{"stringData":{"password":"`+value+`"}}`)
		began := time.Now()
		for _, path := range []string{"/mnt/watched/password", "/mnt/db/password"} { // the first is never refreshed by itself
			eventually(t, func() error {
				if got := n.cat("web", path); got != value {
					return fmt.Errorf("the pod reads %q in %s", got, path)
				}
				return nil
			})
			t.Logf("%s: %q after %v, as kubectl exec sees it", path, value, time.Since(began).Round(10*time.Millisecond))
		}
	}
	eventually(t, func() error {
		events := n.events("greedy")
		for _, words := range []string{"PermissionDenied", "the service account " + n.name + "/default may not", `give it a Role with the verb get on secrets "other"`} {
			if !strings.Contains(events, words) {
				return fmt.Errorf("the events do not say %q: %s", words, events)
			}
		}
		return nil
	})
}
