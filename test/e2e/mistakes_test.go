package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A person who made a common mistake reads in the pod's events what is wrong and
// what to do.
func TestAMistakeIsExplainedInThePodsEvents(t *testing.T) {
	n := newNamespace(t)
	provider(t, http.MethodPost, "/failures/forbidden?code=7", "")
	provider(t, http.MethodPost, "/failures/absent?code=5", "")
	provider(t, http.MethodPost, "/failures/down?code=14", "")
	provider(t, http.MethodPost, "/objects/huge", strings.Repeat("x", 1<<20))
	source, err := kube.Nodes()[0].HostPath("/srv/secrets")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "password"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A provider that died leaves its socket.
	if _, err := kube.Nodes()[0].Run(t.Context(), "sh", "-c", "rm -f /var/run/secrets-store-csi-providers/dead.sock; cp -a /var/run/secrets-store-csi-providers/e2e.sock /var/run/secrets-store-csi-providers/dead.sock"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = kube.Nodes()[0].Run(t.Context(), "rm", "-f", "/var/run/secrets-store-csi-providers/dead.sock")
	})
	n.class("good", "user")

	for name, tc := range map[string]struct {
		provider   string // e2e where it is empty
		parameters map[string]string
		change     func(*corev1.Pod)
		says       []string
	}{
		"class-missing": {
			says: []string{"failed to get secretproviderclass NAMESPACE/class-missing", "not found", `create the SecretProviderClass "class-missing" in the namespace`},
		},
		"class-not-named": {
			parameters: map[string]string{"objects": "- objectName: user"},
			change:     func(p *corev1.Pod) { delete(p.Spec.Volumes[0].CSI.VolumeAttributes, "secretProviderClass") },
			says:       []string{"secretProviderClass is not set", "name a SecretProviderClass in the pod's volumeAttributes"},
		},
		"provider-misspelt": {
			provider: "valut", parameters: map[string]string{"objects": "- objectName: user"},
			says: []string{`provider "valut" has no socket`, "is the provider's DaemonSet running"},
		},
		"provider-dead": {
			provider: "dead", parameters: map[string]string{"objects": "- objectName: user"},
			says: []string{`provider "dead"`, "connection refused", "is the provider's DaemonSet running"},
		},
		"object-denied": {
			parameters: map[string]string{"objects": "- objectName: forbidden"},
			says:       []string{"PermissionDenied", `provider "e2e" at`, `object "forbidden"`, "does the store let the pod's service account in"},
		},
		"object-absent": {
			parameters: map[string]string{"objects": "- objectName: absent"},
			says:       []string{"NotFound", `object "absent"`, "create it in the store, or correct its name in the class"},
		},
		"store-down": {
			parameters: map[string]string{"objects": "- objectName: down"},
			says:       []string{"Unavailable", `object "down"`, "the provider's log on this node may say more"},
		},
		"audience-not-configured": {
			parameters: map[string]string{"objects": "- objectName: user", "requireAudience": "unknown"},
			says:       []string{`no token for the audience "unknown"`, "CSIDriver's tokenRequests"},
		},
		"volume-writable": {
			parameters: map[string]string{"objects": "- objectName: user"},
			change:     func(p *corev1.Pod) { p.Spec.Volumes[0].CSI.ReadOnly = nil },
			says:       []string{"readOnly: true"},
		},
		"parameter-overridden": {
			parameters: map[string]string{"objects": "- objectName: user"},
			change:     func(p *corev1.Pod) { p.Spec.Volumes[0].CSI.VolumeAttributes["objects"] = "- objectName: forbidden" },
			says:       []string{`parameter "objects"`, "a pod cannot override its class", "remove the key"},
		},
		"objects-not-yaml": {
			provider: "local", parameters: map[string]string{"path": "/srv/secrets", "objects": "- objectName: password\n objectAlias: x"},
			says: []string{`parameter "objects", line 2`, "it is not YAML", "correct the line"},
		},
		"file-outside": {
			provider: "local", parameters: map[string]string{"path": "/srv/secrets", "objects": "- {objectName: password, objectAlias: ../../etc/passwd}"},
			says: []string{"../../etc/passwd", "objectAlias"},
		},
		"local-file-missing": {
			provider: "local", parameters: map[string]string{"path": "/srv/secrets", "objects": "- objectName: pasword"},
			says: []string{`object "pasword"`, "create the file, or correct objectName"},
		},
		"local-file-of-the-node": {
			provider: "local", parameters: map[string]string{"path": "/var/lib/kubelet/pods"},
			says: []string{"PermissionDenied", "in none of the folders that this provider may read", "--local-folders"},
		},
		"volume-too-small": {
			parameters: map[string]string{"objects": "- objectName: huge", "volumeSize": "1Mi"},
			says:       []string{"set the class parameter volumeSize to at least"},
		},
		"volume-size-wrong": {
			parameters: map[string]string{"objects": "- objectName: user", "volumeSize": "much"},
			says:       []string{"volumeSize", `"much"`},
		},
		"secret-for-publish-missing": { // kubelet's own words
			parameters: map[string]string{"objects": "- objectName: user"},
			change: func(p *corev1.Pod) {
				p.Spec.Volumes[0].CSI.NodePublishSecretRef = &corev1.LocalObjectReference{Name: "creds"}
			},
			says: []string{"creds", "not found"},
		},
	} {
		if tc.parameters != nil {
			if tc.provider == "" {
				tc.provider = "e2e"
			}
			n.classOf(name, tc.provider, tc.parameters)
		}
		p := podOf(template(idle, name))
		p.Name, p.Namespace = name, n.name
		if tc.change != nil {
			tc.change(p)
		}
		apply(t, p)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eventually(t, func() error {
				events, err := tryKubectl(t, nil, "-n", n.name, "get", "events", "--field-selector", "involvedObject.name="+name+",reason=FailedMount", "-o", "jsonpath={.items[*].message}")
				if err != nil {
					return err
				}
				for _, words := range tc.says {
					if words = strings.ReplaceAll(words, "NAMESPACE", n.name); !strings.Contains(events, words) {
						return fmt.Errorf("its events do not say %q: %s", words, events)
					}
				}
				t.Log(events)
				return nil
			})
		})
	}
}

// Nothing of a class can hold up the pods of another.
func TestAGoodPodStartsBesideBadOnes(t *testing.T) {
	n := newNamespace(t)
	provider(t, http.MethodPost, "/failures/forbidden?code=7", "")
	n.class("bad", "forbidden")
	n.class("good", "user")
	apply(t, deployment(n, "bad", 10, template(idle, "bad")))
	apply(t, deployment(n, "good", 5, template(idle, "good")))
	n.kubectl("rollout", "status", "deployment/good", "--timeout=2m")
	// What was refused is given: all start.
	provider(t, http.MethodPost, "/failures/forbidden?code=0", "")
	n.kubectl("rollout", "status", "deployment/bad", "--timeout=4m")
}
