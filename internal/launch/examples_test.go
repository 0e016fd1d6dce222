package launch

import (
	"bytes"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	sigsyaml "sigs.k8s.io/yaml"
)

// pods returns the pods of a file. Its classes are checked beside the others, in
// cmd/csi-secrets.
func pods(t *testing.T, file string) []corev1.Pod {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var pods []corev1.Pod
	for d := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var document map[string]any
		if err := d.Decode(&document); err == io.EOF {
			return pods
		} else if err != nil {
			t.Fatal(err)
		}
		if document["kind"] != "Pod" {
			continue
		}
		text, err := yaml.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		var pod corev1.Pod
		if err := sigsyaml.UnmarshalStrict(text, &pod); err != nil {
			t.Fatal(err)
		}
		pods = append(pods, pod)
	}
}

// A launcher of an example is where a volume brings it, in a place that is writable
// for its copy alone, and reads what a volume of the driver brings.
func TestExamplesLaunchWhatTheyMount(t *testing.T) {
	files, err := filepath.Glob("../../examples/exec/*.yaml")
	if err != nil || len(files) != 2 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			launched := 0
			for _, pod := range pods(t, file) {
				for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
					command, err := parse(append(c.Command[1:], c.Args...))
					if err != nil {
						t.Fatalf("container %s: %v", c.Name, err)
					}
					if command.copyTo != "" {
						if c.Command[0] != "/csi-secrets-exec" || mounted(pod, c, command.copyTo, false).EmptyDir == nil {
							t.Errorf("container %s copies %s to %s", c.Name, c.Command[0], command.copyTo)
						}
						continue
					}
					from := mounted(pod, c, path.Dir(c.Command[0]), true)
					if path.Base(c.Command[0]) != "csi-secrets-exec" || from.EmptyDir == nil && from.Image == nil {
						t.Errorf("container %s starts %s", c.Name, c.Command[0])
					}
					for _, s := range command.sources {
						if csi := mounted(pod, c, s.path, true).CSI; csi == nil || csi.ReadOnly == nil || !*csi.ReadOnly {
							t.Errorf("container %s reads %s", c.Name, s.path)
						}
					}
					launched++
				}
			}
			if launched != 1 {
				t.Errorf("%d programs are launched", launched)
			}
		})
	}
}

// mounted returns the volume in which a container has a path.
func mounted(pod corev1.Pod, c corev1.Container, path string, readOnly bool) corev1.VolumeSource {
	for _, m := range c.VolumeMounts {
		if m.ReadOnly != readOnly || path != m.MountPath && !strings.HasPrefix(path, m.MountPath+"/") {
			continue
		}
		for _, v := range pod.Spec.Volumes {
			if v.Name == m.Name {
				return v.VolumeSource
			}
		}
	}
	return corev1.VolumeSource{}
}

// The page for users shows lines of the example, in its order.
func TestThePageShowsTheExample(t *testing.T) {
	page, err := os.ReadFile("../../docs/environment.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../../examples/exec/init-container.yaml")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(page)
	if shown == nil {
		t.Fatal("the page shows nothing")
	}
	rest := string(example)
	for line := range strings.Lines(string(shown[1])) {
		var ok bool
		if _, rest, ok = strings.Cut(rest, line); !ok {
			t.Errorf("the example does not have the line %q there", line)
		}
	}
}
