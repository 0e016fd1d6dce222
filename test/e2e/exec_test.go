package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/csi-secrets/csi-secrets/test/cluster"
)

// launched has a pod's container started by the launcher, which an init container
// copies out of the image, with the variables of the files of a class.
func launched(p corev1.PodTemplateSpec, className string) corev1.PodTemplateSpec {
	const volume, folder = "launcher", "/launcher"
	mount := corev1.VolumeMount{Name: volume, MountPath: folder}
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}})
	p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{
		Name: "launcher", Image: cluster.ProjectImage, ImagePullPolicy: corev1.PullNever, Command: []string{"/csi-secrets-exec", "--copy-to", folder}, VolumeMounts: []corev1.VolumeMount{mount},
	})
	c := &p.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, mount)
	c.Command = append([]string{folder + "/csi-secrets-exec", "--from", "/mnt/" + className, "--"}, c.Command...)
	return p
}

// A program that the launcher starts has the variables, is process 1, and shows them
// in no argument; its exit status and its signals are its own.
func TestALaunchedProgramHasItsVariables(t *testing.T) {
	n := newNamespace(t)
	n.class("db", "user", "certs/tls.key")
	n.pod("web", launched(template("test \"$USER:$CERTS_TLS_KEY\" = 'value of user:value of certs/tls.key'; "+idle, "db"), "db"))
	ends := launched(template(`trap 'echo "ended as $USER"; exit 7' TERM; while :; do sleep 1 & wait || true; done`, "db"), "db")
	var grace int64 = 30
	ends.Spec.TerminationGracePeriodSeconds, ends.Spec.RestartPolicy = &grace, corev1.RestartPolicyNever
	n.pod("ends", ends)
	n.ready("pod/web", "pod/ends")
	if got := n.cat("web", "/proc/1/cmdline"); !strings.HasPrefix(got, "/bin/sh\x00-ec\x00test ") || strings.Contains(got, "csi-secrets-exec") {
		t.Errorf("process 1 is %q", got)
	}
	if got := n.kubectl("exec", "web", "--", "sh", "-c", "tr '\\0' '\\n' < /proc/1/environ"); !strings.Contains(got, "USER=value of user\n") {
		t.Errorf("its environment is\n%s", got)
	}
	n.kubectl("exec", "ends", "--", "kill", "-TERM", "1")
	eventually(t, func() error {
		pod := read[corev1.Pod](t, "-n", n.name, "pod", "ends")
		ended := pod.Status.ContainerStatuses[0].State.Terminated
		if ended == nil || ended.ExitCode != 7 {
			return fmt.Errorf("its state is %+v", pod.Status.ContainerStatuses[0].State)
		}
		return nil
	})
	if got := n.kubectl("logs", "ends"); got != "ended as value of user\n" {
		t.Errorf("it says %q", got)
	}
}
