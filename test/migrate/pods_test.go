package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	csicluster "github.com/csi-secrets/csi-secrets/pkg/cluster"
)

// set is a number of pods that read the secrets of one class all the time, in a
// namespace of their own. A read that fails, or finds nothing, ends its pod's
// container.
type set struct {
	t    *testing.T
	name string // of the namespace, and of the first secret
	uids map[string]string
}

const className = "db"

// newSet makes a namespace with n pods in it, and waits until they read.
func newSet(t *testing.T, name string, n int, spec ...string) *set {
	t.Helper()
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		if t.Failed() {
			for _, arguments := range [][]string{
				{"-n", name, "get", "pods", "-o", "wide"}, {"-n", name, "get", "events"},
				{"-n", system, "get", "pods", "-o", "wide"}, {"-n", system, "logs", "-l", "app=secrets-store-csi-driver", "-c", "secrets-store", "--tail=60"},
			} {
				out, err := try(nil, "kubectl", arguments...)
				t.Logf("kubectl %s\n%s%v", strings.Join(arguments, " "), out, err)
			}
		}
		// A driver must be there for this long: it ends the pods' volumes.
		_, _ = try(nil, "kubectl", "delete", "namespace", name, "--timeout=1m")
	})
	s := &set{t: t, name: name, uids: map[string]string{}}
	eventually(t, func() error {
		_, err := try(nil, "kubectl", "-n", name, "get", "serviceaccount", "default")
		return err
	})
	apply(t, fmt.Sprintf(`apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: %s, namespace: %s}
spec:
  provider: e2e
  parameters:
    objects: |
      - objectName: %s
      - objectName: certs/tls.key
%s`, className, name, name, strings.Join(spec, "")))
	s.add("reader", n)
	return s
}

// add makes n more pods, and waits until they read.
func (s *set) add(prefix string, n int) {
	s.t.Helper()
	readOnly, grace := true, int64(1)
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"}}
	for i := range n {
		list.Items = append(list.Items, corev1.Pod{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", prefix, i), Namespace: s.name, Labels: map[string]string{"app": "reader"}},
			Spec: corev1.PodSpec{
				TerminationGracePeriodSeconds: &grace,
				Containers: []corev1.Container{{
					Name: "reader", Image: readerImage, ImagePullPolicy: corev1.PullNever, Args: []string{"/mnt/db", s.name, "certs/tls.key"},
					VolumeMounts: []corev1.VolumeMount{{Name: "db", MountPath: "/mnt/db", ReadOnly: true}},
				}},
				Volumes: []corev1.Volume{{Name: "db", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
					Driver: "secrets-store.csi.k8s.io", ReadOnly: &readOnly, VolumeAttributes: map[string]string{"secretProviderClass": className},
				}}}},
			},
		})
	}
	body, err := json.Marshal(list)
	if err != nil {
		s.t.Fatal(err)
	}
	apply(s.t, string(body))
	kubectl(s.t, "-n", s.name, "wait", "--for=condition=Ready", fmt.Sprintf("--timeout=%.0fs", patience.Seconds()), "pods", "--all")
	for _, p := range s.pods() {
		s.uids[p.Name] = string(p.UID)
	}
}

func (s *set) pods() []corev1.Pod {
	s.t.Helper()
	return read[corev1.PodList](s.t, "-n", s.name, "pods").Items
}

// undisturbed checks that every pod is the one that was made, and that none of
// its reads failed.
func (s *set) undisturbed(when string) {
	s.t.Helper()
	pods := s.pods()
	if len(pods) != len(s.uids) {
		s.t.Errorf("%s: there are %d pods of %d", when, len(pods), len(s.uids))
	}
	for _, p := range pods {
		if string(p.UID) != s.uids[p.Name] {
			s.t.Errorf("%s: pod %s is another one", when, p.Name)
		}
		for _, c := range p.Status.ContainerStatuses {
			if c.RestartCount != 0 || c.State.Running == nil {
				logs, _ := try(nil, "kubectl", "-n", s.name, "logs", p.Name, "--previous")
				s.t.Errorf("%s: pod %s was restarted %d times and is %+v: %s", when, p.Name, c.RestartCount, c.State, logs)
			}
		}
	}
}

// reads waits until every pod that matches has read this value of the secret.
func (s *set) reads(value string) {
	s.t.Helper()
	eventually(s.t, func() error {
		have, err := s.lastRead()
		if err != nil {
			return err
		}
		var behind []string
		for pod := range s.uids {
			if have[pod] != value {
				behind = append(behind, fmt.Sprintf("%s reads %q", pod, have[pod]))
			}
		}
		if len(behind) > 0 {
			return fmt.Errorf("%d of %d pods have not read %q: %s and so on", len(behind), len(s.uids), value, behind[0])
		}
		return nil
	})
}

// lastRead returns what the pods have read last, by their names.
func (s *set) lastRead() (map[string]string, error) {
	out, err := try(nil, "kubectl", "-n", s.name, "logs", "-l", "app=reader", "--tail=1", "--prefix", "--max-log-requests=100")
	if err != nil {
		return nil, err
	}
	have := map[string]string{}
	for line := range strings.Lines(out) {
		// [pod/NAME/reader] VALUE
		prefix, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "] ")
		have[strings.Split(prefix, "/")[1]] = value
	}
	return have, nil
}

// statuses waits until every pod's status object tells of this version.
func (s *set) statuses(version string) {
	s.t.Helper()
	eventually(s.t, func() error {
		list := read[csicluster.PodStatusList](s.t, "-n", s.name, "secretproviderclasspodstatuses")
		byPod := map[string]csicluster.PodStatus{}
		for _, o := range list.Items {
			byPod[o.Status.PodName] = o
		}
		if len(byPod) != len(s.uids) {
			return fmt.Errorf("%d pods have statuses, of %d", len(byPod), len(s.uids))
		}
		for pod, uid := range s.uids {
			if err := s.checkStatus(byPod[pod], pod, uid, version); err != nil {
				return err
			}
		}
		return nil
	})
}

// ready waits until the status objects say so, as only this project's driver has
// them.
func (s *set) ready() {
	s.t.Helper()
	eventually(s.t, func() error {
		for _, o := range read[csicluster.PodStatusList](s.t, "-n", s.name, "secretproviderclasspodstatuses").Items {
			if !meta.IsStatusConditionTrue(o.Status.Conditions, "Ready") {
				return fmt.Errorf("%s: the conditions are %+v", o.Name, o.Status.Conditions)
			}
		}
		return nil
	})
}

func (s *set) checkStatus(o csicluster.PodStatus, pod, uid, version string) error {
	if want := pod + "-" + s.name + "-" + className; o.Name != want {
		return fmt.Errorf("the status of pod %s is named %q", pod, o.Name)
	}
	if want := "/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~csi/db/mount"; o.Status.TargetPath != want {
		return fmt.Errorf("%s: targetPath is %q, not %q", o.Name, o.Status.TargetPath, want)
	}
	if !o.Status.Mounted || o.Status.SecretProviderClassName != className {
		return fmt.Errorf("%s: the status is %+v", o.Name, o.Status)
	}
	if len(o.OwnerReferences) != 1 || string(o.OwnerReferences[0].UID) != uid || o.OwnerReferences[0].Kind != "Pod" {
		return fmt.Errorf("%s: the owners are %+v", o.Name, o.OwnerReferences)
	}
	if got := o.Labels["internal.secrets-store.csi.k8s.io/node-name"]; got != "node1" {
		return fmt.Errorf("%s: the node's label is %q", o.Name, got)
	}
	versions := map[string]string{}
	for _, object := range o.Status.Objects {
		versions[object.ID] = object.Version
	}
	if len(versions) != 2 || versions[s.name] != version || versions["certs/tls.key"] != "1" {
		return fmt.Errorf("%s: the objects are %+v, with version %s of %s expected", o.Name, o.Status.Objects, version, s.name)
	}
	return nil
}

// remove deletes pods, and checks that nothing of them stays on the node.
func (s *set) remove(pods ...string) {
	s.t.Helper()
	var uids []string
	for _, p := range pods {
		uids = append(uids, s.uids[p])
		delete(s.uids, p)
	}
	kubectl(s.t, append([]string{"-n", s.name, "delete", "pod", "--wait"}, pods...)...)
	folder, err := kube.Nodes()[0].HostPath("/var/lib/kubelet/pods")
	if err != nil {
		s.t.Fatal(err)
	}
	mounts, err := kube.Nodes()[0].HostPath("/proc/1/mounts")
	if err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, func() error {
		mounted, err := os.ReadFile(mounts)
		if err != nil {
			return err
		}
		for _, uid := range uids {
			if strings.Contains(string(mounted), uid) {
				return fmt.Errorf("a deleted pod leaves a mount:\n%s", mounted)
			}
			if _, err := os.Lstat(filepath.Join(folder, uid)); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("a deleted pod leaves the folder %s (%v)", uid, err)
			}
		}
		return nil
	})
}

// removeAll deletes all pods, and checks that nothing of them stays.
func (s *set) removeAll() {
	s.t.Helper()
	var all []string
	for pod := range s.uids {
		all = append(all, pod)
	}
	s.remove(all...)
}

// secret waits until the Secret of the set's class has this value, as many keys, and
// the label.
func (s *set) secret(value string, keys int, label string) corev1.Secret {
	s.t.Helper()
	var found corev1.Secret
	eventually(s.t, func() error {
		out, err := try(nil, "kubectl", "-n", s.name, "get", "secret", "made", "-o", "json", "--show-managed-fields")
		if err != nil {
			return err
		}
		found = corev1.Secret{}
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			return err
		}
		if string(found.Data["value"]) != value || len(found.Data) != keys || found.Labels["tier"] != label {
			return fmt.Errorf("the Secret is %+v, with %d keys and the value %q", found.ObjectMeta, len(found.Data), found.Data["value"])
		}
		return nil
	})
	return found
}
