package e2e

import (
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	csicluster "github.com/csi-secrets/csi-secrets/pkg/cluster"
	"github.com/csi-secrets/csi-secrets/test/cluster"
)

// namespace is a namespace of one test.
type namespace struct {
	t    *testing.T
	name string
}

// newNamespace makes the namespace of a test, and removes it after.
func newNamespace(t *testing.T) namespace {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("_", "-", "/", "-").Replace(t.Name()))
	name = strings.Trim(name[:min(len(name), 60)], "-")
	n := namespace{t, name}
	_, _ = tryKubectl(t, nil, "delete", "namespace", name, "--ignore-not-found") // of an earlier run
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		if t.Failed() {
			for _, arguments := range [][]string{
				{"-n", name, "get", "pods", "-o", "wide"}, {"-n", name, "get", "events"},
				{"-n", driverNamespace, "logs", "-l", driverPods, "--tail=40"},
			} {
				out, err := tryKubectl(t, nil, arguments...)
				t.Logf("kubectl %s\n%s%v", strings.Join(arguments, " "), out, err)
			}
		}
		if _, err := tryKubectl(t, nil, "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	eventually(t, func() error {
		_, err := tryKubectl(t, nil, "-n", name, "get", "serviceaccount", "default")
		return err
	})
	return n
}

// kubectl runs kubectl in the namespace.
func (n namespace) kubectl(arguments ...string) string {
	n.t.Helper()
	return kubectl(n.t, append([]string{"-n", n.name}, arguments...)...)
}

// class makes a SecretProviderClass with these objects of the test's provider.
func (n namespace) class(name string, objects ...string) {
	n.t.Helper()
	var list strings.Builder
	for _, o := range objects {
		fmt.Fprintf(&list, "- objectName: %s\n", o)
	}
	n.classOf(name, "e2e", map[string]string{"objects": list.String()})
}

func (n namespace) classOf(name, provider string, parameters map[string]string) {
	n.t.Helper()
	c := class.SecretProviderClass{Spec: class.Spec{Provider: provider, Parameters: parameters}}
	c.APIVersion, c.Kind, c.Name, c.Namespace = class.GroupVersion.String(), class.Kind, name, n.name
	apply(n.t, c)
}

// secrets is a volume with the secrets of a class.
func secrets(name, className string) corev1.Volume {
	readOnly := true
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
		Driver: "secrets-store.csi.k8s.io", ReadOnly: &readOnly, VolumeAttributes: map[string]string{"secretProviderClass": className},
	}}}
}

// template is a pod that mounts the secrets of each class at /mnt/CLASS and runs
// a shell script.
func template(script string, classes ...string) corev1.PodTemplateSpec {
	var grace int64 = 1
	container := corev1.Container{
		Name: "main", Image: cluster.BusyboxImage, ImagePullPolicy: corev1.PullNever, Command: []string{"/bin/sh", "-ec", script},
	}
	p := corev1.PodTemplateSpec{Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &grace}}
	for _, c := range classes {
		p.Spec.Volumes = append(p.Spec.Volumes, secrets("of-"+c, c))
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: "of-" + c, MountPath: "/mnt/" + c, ReadOnly: true})
	}
	p.Spec.Containers = []corev1.Container{container}
	return p
}

const idle = "trap 'exit 0' TERM; while :; do sleep 1 & wait; done"

func podOf(p corev1.PodTemplateSpec) *corev1.Pod {
	return &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: p.ObjectMeta, Spec: p.Spec}
}

// pod makes a pod.
func (n namespace) pod(name string, p corev1.PodTemplateSpec) {
	n.t.Helper()
	object := podOf(p)
	object.Name, object.Namespace = name, n.name
	apply(n.t, object)
}

// ready waits until something is ready.
func (n namespace) ready(what ...string) {
	n.t.Helper()
	n.kubectl(append([]string{"wait", "--for=condition=Ready", fmt.Sprintf("--timeout=%.0fs", patience.Seconds())}, what...)...)
}

// cat returns a file of a pod.
func (n namespace) cat(pod, path string) string {
	n.t.Helper()
	return n.kubectl("exec", pod, "--", "cat", path)
}

// status returns the status object of a pod and class.
func (n namespace) status(pod, className string) (csicluster.PodStatus, error) {
	n.t.Helper()
	out, err := tryKubectl(n.t, nil, "-n", n.name, "get", "-o", "json", "secretproviderclasspodstatus", pod+"-"+n.name+"-"+className)
	if err != nil {
		return csicluster.PodStatus{}, err
	}
	var s csicluster.PodStatus
	return s, decode(out, &s)
}

// events returns the messages of a pod's events, with their reasons.
func (n namespace) events(pod string) string {
	n.t.Helper()
	return n.kubectl("get", "events", "--field-selector", "involvedObject.name="+pod, "-o", `jsonpath={range .items[*]}{.type} {.reason}: {.message}{"\n"}{end}`)
}

func deployment(n namespace, name string, replicas int32, p corev1.PodTemplateSpec) *appsv1.Deployment {
	p.Labels = map[string]string{"app": name}
	return &appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: n.name},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: p.Labels}, Template: p},
	}
}

func statefulSet(n namespace, name string, replicas int32, p corev1.PodTemplateSpec) *appsv1.StatefulSet {
	p.Labels = map[string]string{"app": name}
	return &appsv1.StatefulSet{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: n.name},
		Spec: appsv1.StatefulSetSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: p.Labels}, Template: p},
	}
}

func job(n namespace, name string, p corev1.PodTemplateSpec) *batchv1.Job {
	var none int32
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	return &batchv1.Job{
		TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: n.name},
		Spec: batchv1.JobSpec{BackoffLimit: &none, Template: p},
	}
}
