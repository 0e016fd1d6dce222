package migrate

import (
	"os"
	"strings"
	"testing"

	"github.com/csi-secrets/csi-secrets/test/cluster"
	"github.com/csi-secrets/csi-secrets/test/peer/upstream"
)

const release = "csi-secrets-store"

// ourImage are the arguments of helm for the image of the source tree.
func ourImage() []string {
	repository, tag, _ := strings.Cut(cluster.ProjectImage, ":")
	return []string{"--set", "linux.image.repository=" + repository, "--set", "linux.image.tag=" + tag, "--set", "linux.image.pullPolicy=Never"}
}

// follow runs a command of docs/migrate.md, which must be there in these words,
// with this tree's chart, the tests' values, and more arguments.
func follow(t *testing.T, line string, more ...string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/migrate.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "\n"+line) {
		t.Fatalf("docs/migrate.md does not tell to run %q", line)
	}
	words := strings.Fields(line)
	for i, word := range words {
		switch word {
		case "charts/csi-secrets":
			words[i] = "../../charts/csi-secrets"
		case "values.yaml":
			words[i] = "testdata/values.yaml"
		}
	}
	words = append(words, more...)
	if words[0] == "helm" {
		words = append(words, "--namespace", system, "--wait", "--timeout", "2m")
	}
	command(t, nil, words[0], words[1:]...)
}

// kept are objects that a change of the driver must not delete, as they are now.
func kept(t *testing.T) string {
	t.Helper()
	return kubectl(t, "get", "-A", "-o", `jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.uid}{"\n"}{end}`,
		"customresourcedefinitions,csidrivers,secretproviderclasses")
}

// The way of those who installed secrets-store-csi-driver by its Helm chart:
// there by helm upgrade, back by helm rollback.
func TestFromItsHelmChartAndBack(t *testing.T) {
	chart, images, err := upstream.Chart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	helm(t, append([]string{"install", release, chart, "-f", "testdata/values.yaml"}, images...)...)
	t.Cleanup(func() { _, _ = try(nil, "helm", "uninstall", release, "--namespace", system, "--wait") })
	theirs := newSet(t, "theirs", 33, `
  secretObjects:
    - secretName: made
      type: Opaque
      labels: {tier: one}
      data:
        - {objectName: theirs, key: value}
        - {objectName: certs/tls.key, key: more}
`)
	theirs.reads("value of theirs")
	theirs.statuses("1")
	made := theirs.secret("value of theirs", 2, "one")
	before := kept(t)

	follow(t, "helm upgrade csi-secrets-store charts/csi-secrets --namespace kube-system -f values.yaml", append(ourImage(), "--set", "syncSecret.namespaces={*}")...)
	// Some end before kubelet has published their volumes to the new driver.
	theirs.remove("reader-30", "reader-31", "reader-32")
	follow(t, "kubectl --namespace kube-system rollout status daemonset/csi-secrets-store-secrets-store-csi-driver")
	if after := kept(t); after != before {
		t.Errorf("before the change there were\n%safter it\n%s", before, after)
	}
	setSecret(t, "theirs", "second")
	theirs.reads("second")
	theirs.statuses("2")
	theirs.ready()
	theirs.undisturbed("under the new driver")
	if now := theirs.secret("second", 2, "one"); now.UID != made.UID {
		t.Error("the Secret was made anew")
	}
	kubectl(t, "-n", "theirs", "patch", "secretproviderclass", className, "--type=json", "-p", `[{"op": "remove", "path": "/spec/secretObjects/0/labels"}, {"op": "remove", "path": "/spec/secretObjects/0/data/1"}]`)
	if now := theirs.secret("second", 1, ""); now.UID != made.UID {
		t.Error("the Secret was made anew")
	}

	ours := newSet(t, "ours", 10)
	theirs.remove("reader-0", "reader-1", "reader-2")

	before = kept(t)
	handBack(t)
	follow(t, "helm rollback csi-secrets-store 1 --namespace kube-system")
	ours.remove("reader-8", "reader-9")
	if after := kept(t); after != before {
		t.Errorf("before the way back there were\n%safter it\n%s", before, after)
	}
	setSecret(t, "theirs", "third")
	theirs.reads("third")
	theirs.statuses("3")
	theirs.secret("third", 1, "")
	theirs.undisturbed("back under the old driver")
	setSecret(t, "ours", "second")
	ours.reads("second")
	ours.undisturbed("back under the old driver")
	theirs.removeAll()
	ours.removeAll()
}

// handBack makes what this driver has mounted writable to the old one.
func handBack(t *testing.T) {
	t.Helper()
	follow(t, "helm upgrade csi-secrets-store charts/csi-secrets --namespace kube-system --reuse-values --set linux.writableVolumes=true")
	follow(t, "kubectl --namespace kube-system rollout status daemonset/csi-secrets-store-secrets-store-csi-driver")
}

// The way of those who applied secrets-store-csi-driver's static YAML: its
// DaemonSet goes, and Helm takes over what else there is. Back, Helm's release
// goes, and the YAML is applied again.
func TestFromItsManifestsAndBack(t *testing.T) {
	manifests, err := upstream.Manifests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rollOut := func() {
		t.Helper()
		apply(t, manifests)
		kubectl(t, "-n", system, "rollout", "status", "daemonset/csi-secrets-store", "--timeout=2m")
	}
	rollOut()
	t.Cleanup(func() {
		_, _ = try(strings.NewReader(manifests), "kubectl", "delete", "--ignore-not-found", "-f", "-")
	})
	theirs := newSet(t, "static", 5)
	theirs.statuses("1")
	before := kept(t)

	follow(t, "kubectl --namespace kube-system delete daemonset csi-secrets-store")
	follow(t, "helm install csi-secrets-store charts/csi-secrets --namespace kube-system --take-ownership", append(ourImage(), "--set", "rotationPollInterval=2s")...)
	t.Cleanup(func() { _, _ = try(nil, "helm", "uninstall", release, "--namespace", system, "--wait") })
	if after := kept(t); after != before {
		t.Errorf("before the change there were\n%safter it\n%s", before, after)
	}
	// Without rotation, as in the YAML, the old driver would not have brought it.
	setSecret(t, "static", "second")
	theirs.reads("second")
	theirs.statuses("2")
	theirs.ready()
	theirs.remove("reader-0")
	theirs.add("ours", 3)

	handBack(t)
	follow(t, "helm uninstall csi-secrets-store --namespace kube-system")
	rollOut()
	theirs.undisturbed("back under the old driver")
	theirs.remove("reader-1", "ours-0")
	theirs.add("new", 2)
	theirs.reads("second")
	theirs.undisturbed("at the end")
	theirs.removeAll()
}
