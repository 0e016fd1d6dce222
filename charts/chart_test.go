// Package charts_test renders the Helm chart with the helm program and checks
// what comes out.
package charts_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files and the README's tables anew")

const (
	chart       = "csi-secrets"
	kubeVersion = "v1.36.0"
	// upstream is the module whose chart this one stands in for.
	upstream = "sigs.k8s.io/secrets-store-csi-driver"
)

// helmProgram is $HELM, or what `make chart` built, or the helm in PATH.
var helmProgram = sync.OnceValue(func() string {
	if program := os.Getenv("HELM"); program != "" {
		return program
	}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		panic(err)
	}
	if version := regexp.MustCompile(`(?m)^HELM_VERSION\s*:?=\s*(\S+)$`).FindSubmatch(makefile); version != nil {
		if cache, err := os.UserCacheDir(); err == nil {
			program := filepath.Join(cache, "csi-secrets", "helm-"+string(version[1]), "helm")
			if _, err := os.Stat(program); err == nil {
				return program
			}
		}
	}
	program, _ := exec.LookPath("helm")
	return program
})

func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	program := helmProgram()
	if program == "" {
		const help = "there is no helm: `make chart` builds one, HELM names one"
		if os.Getenv("CI") == "true" {
			t.Fatal(help)
		}
		t.Skip(help)
	}
	command := exec.CommandContext(t.Context(), program, args...)
	// Nothing of the caller's Helm counts, and no cluster.
	home := t.TempDir()
	command.Env = []string{"HOME=" + home, "KUBECONFIG=" + filepath.Join(home, "none"), "PATH=" + os.Getenv("PATH")}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("helm %s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	return stdout.String(), nil
}

// template renders a chart as the release csi-secrets-store in kube-system.
func template(t *testing.T, chart string, args ...string) (string, error) {
	t.Helper()
	args = append([]string{"template", "csi-secrets-store", chart, "--namespace", "kube-system", "--kube-version", kubeVersion}, args...)
	return helm(t, args...)
}

func mustTemplate(t *testing.T, chart string, args ...string) string {
	t.Helper()
	out, err := template(t, chart, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// valuesFile writes values to a file that -f takes.
func valuesFile(t *testing.T, values string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(name, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// upstreamFolder is a folder of secrets-store-csi-driver's module, which the
// driver itself is built with.
func upstreamFolder(t *testing.T, path ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", upstream).Output()
	if err != nil {
		t.Fatalf("find %s: %v", upstream, err)
	}
	return filepath.Join(append([]string{strings.TrimSpace(string(out))}, path...)...)
}

func documents(manifest string) []string {
	var all []string
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(manifest, -1) {
		if object := map[string]any{}; yaml.Unmarshal([]byte(document), &object) == nil && len(object) > 0 {
			all = append(all, document)
		}
	}
	return all
}

// objects returns the objects of type T in a manifest, by name.
func objects[T any](t *testing.T, manifest string) map[string]T {
	t.Helper()
	kind := reflect.TypeFor[T]().Name()
	found := map[string]T{}
	for _, document := range documents(manifest) {
		var about struct {
			Kind     string
			Metadata struct{ Name string }
		}
		if err := yaml.Unmarshal([]byte(document), &about); err != nil {
			t.Fatal(err)
		}
		if about.Kind != kind {
			continue
		}
		var object T
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatalf("%s %s: %v", kind, about.Metadata.Name, err)
		}
		found[about.Metadata.Name] = object
	}
	return found
}

func only[T any](t *testing.T, manifest string) T {
	t.Helper()
	found := objects[T](t, manifest)
	if len(found) != 1 {
		t.Fatalf("%d objects of kind %s, want 1", len(found), reflect.TypeFor[T]().Name())
	}
	return slices.Collect(maps.Values(found))[0]
}

func valueSets(t *testing.T) []string {
	t.Helper()
	sets, err := filepath.Glob("testdata/values/*.yaml")
	if err != nil || len(sets) == 0 {
		t.Fatalf("no value sets: %v", err)
	}
	return sets
}

func TestRenderedManifestsAreTheGoldenFiles(t *testing.T) {
	for _, set := range valueSets(t) {
		name := filepath.Base(set)
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			got := mustTemplate(t, chart, "-f", set)
			golden := filepath.Join("testdata", "golden", name)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s is not what the chart renders; go test ./charts -update writes it anew, to be read in the diff", golden)
			}
		})
	}
}

func TestManifestsHaveOnlyFieldsThatKubernetesKnows(t *testing.T) {
	strict := serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, serializer.SerializerOptions{Yaml: true, Strict: true})
	for _, set := range valueSets(t) {
		for _, document := range documents(mustTemplate(t, chart, "-f", set)) {
			_, _, err := strict.Decode([]byte(document), nil, nil)
			if runtime.IsNotRegisteredError(err) && strings.Contains(document, "\nkind: PodMonitor\n") {
				continue // of the Prometheus operator, not of Kubernetes
			}
			if err != nil {
				t.Errorf("%s: %v\n%s", set, err, document)
			}
		}
	}
}

// rights are the rules of the roles, one line each.
func rights(t *testing.T, manifest string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for name, role := range objects[rbacv1.ClusterRole](t, manifest) {
		for _, r := range role.Rules {
			line := fmt.Sprintf("%s/%s: %s", strings.Join(r.APIGroups, ","), strings.Join(r.Resources, ","), strings.Join(r.Verbs, " "))
			if len(r.ResourceNames) > 0 {
				line += " of " + strings.Join(r.ResourceNames, ",")
			}
			all[name] = append(all[name], line)
		}
	}
	return all
}

func TestRightsAreTheseAndNoOthers(t *testing.T) {
	defaults := map[string][]string{
		"secretproviderclasses-role": {
			"secrets-store.csi.x-k8s.io/secretproviderclasses: get list watch",
			"secrets-store.csi.x-k8s.io/secretproviderclasspodstatuses: list watch create patch",
			"/events: create patch",
		},
		"secretproviderclasses-admin-role":           {"secrets-store.csi.x-k8s.io/secretproviderclasses: get list watch create update patch delete"},
		"secretproviderclasses-viewer-role":          {"secrets-store.csi.x-k8s.io/secretproviderclasses: get list watch"},
		"secretproviderclasspodstatuses-viewer-role": {"secrets-store.csi.x-k8s.io/secretproviderclasspodstatuses: get list watch"},
		"csi-secrets-store-secrets-store-csi-driver-upgrade-crds": {
			"apiextensions.k8s.io/customresourcedefinitions: get patch create of secretproviderclasses.secrets-store.csi.x-k8s.io,secretproviderclasspodstatuses.secrets-store.csi.x-k8s.io",
		},
	}
	with := func(role string, rules ...string) map[string][]string {
		m := maps.Clone(defaults)
		m[role] = append(slices.Clone(m[role]), rules...)
		return m
	}
	without := func(roles ...string) map[string][]string {
		m := maps.Clone(defaults)
		for _, role := range roles {
			delete(m, role)
		}
		return m
	}
	const toSync = "/secrets: get create patch delete"
	syncing := with("secretproviderclasses-role", "/pods: get", "apps/replicasets: get", "batch/jobs: get")
	syncing["secretprovidersyncing-role"] = []string{toSync}
	controlled := func(others map[string][]string, pods string) map[string][]string {
		m := maps.Clone(others)
		m["csi-secrets-store-secrets-store-csi-driver-controller"] = []string{
			"secrets-store.csi.x-k8s.io/secretproviderclasses: get list watch patch", "/events: create patch",
			"secrets-store.csi.x-k8s.io/secretproviderclasspodstatuses: list watch",
			pods, "apps/replicasets: get", "apps/deployments,statefulsets,daemonsets: get patch",
			"argoproj.io/rollouts: get patch",
		}
		return m
	}
	secretSyncs := with("secretprovidersyncing-role", toSync)
	secretSyncs["csi-secrets-store-secrets-store-csi-driver-controller"] = []string{
		"secrets-store.csi.x-k8s.io/secretproviderclasses: get list watch patch",
		"secret-sync.x-k8s.io/secretsyncs: list watch", "secret-sync.x-k8s.io/secretsyncs/status: patch", "/events: create patch",
	}
	secretSyncs["csi-secrets-store-secrets-store-csi-driver-upgrade-crds"] = []string{
		strings.Replace(defaults["csi-secrets-store-secrets-store-csi-driver-upgrade-crds"][0], "podstatuses.secrets-store.csi.x-k8s.io", "podstatuses.secrets-store.csi.x-k8s.io,secretsyncs.secret-sync.x-k8s.io", 1),
	}
	for _, c := range []struct {
		name, set string
		want      map[string][]string
	}{
		{"defaults", "", defaults},
		{"start-up taint", "startupTaint.enabled=true", with("secretproviderclasses-role", "/nodes: get patch")},
		{"roles of AWS", "tokenRequests[0].audience=sts.amazonaws.com", with("secretproviderclasses-role", "/serviceaccounts: get", "/nodes: get")},
		{"pod identities of EKS", "tokenRequests[0].audience=pods.eks.amazonaws.com", with("secretproviderclasses-role", "/nodes: get")},
		{"AWS in one region", "tokenRequests[0].audience=pods.eks.amazonaws.com,aws.region=eu-west-1", defaults},
		{"identities of GKE", "tokenRequests[0].audience=shop.svc.id.goog", with("secretproviderclasses-role", "/serviceaccounts: get")},
		{"another audience", "tokenRequests[0].audience=vault", defaults},
		{"not wanted", "tokenRequests[0].audience=sts.amazonaws.com,serviceAccountAnnotations=false,nodeLabels=false", defaults},
		{"wanted", "serviceAccountAnnotations=true,nodeLabels=true", with("secretproviderclasses-role", "/serviceaccounts: get", "/nodes: get")},
		{"nodes and the start-up taint", "startupTaint.enabled=true,nodeLabels=true", with("secretproviderclasses-role", "/nodes: get patch")},
		{"pods that ask for a refresh", "refreshByPod=true", with("secretproviderclasses-role", "/pods: list watch")},
		{"the controller", "controller.enabled=true", controlled(defaults, "/pods: get")},
		{"the controller, and synced Secrets", "controller.enabled=true,syncSecret.enabled=true", controlled(syncing, "/pods: get list")},
		{"a controller that restarts nothing", "controller.enabled=true,controller.restarts.enabled=false", with(
			"csi-secrets-store-secrets-store-csi-driver-controller", "secrets-store.csi.x-k8s.io/secretproviderclasses: get list watch patch",
		)},
		{"synced Secrets", "syncSecret.enabled=true", syncing},
		{"synced Secrets in two namespaces", "syncSecret.enabled=true,syncSecret.namespaces={shop,web}", syncing},
		{"synced Secrets everywhere", "syncSecret.enabled=true,syncSecret.namespaces={*}", syncing},
		{"Secrets without pods", "controller.enabled=true,controller.restarts.enabled=false,controller.secretSyncs.enabled=true", secretSyncs},
		{"no CRDs", "linux.crds.enabled=false", without("csi-secrets-store-secrets-store-csi-driver-upgrade-crds")},
		{"no RBAC but the CRDs' job's", "rbac.install=false", without("secretproviderclasses-role", "secretproviderclasses-admin-role", "secretproviderclasses-viewer-role", "secretproviderclasspodstatuses-viewer-role")},
	} {
		t.Run(c.name, func(t *testing.T) {
			manifest := mustTemplate(t, chart, "--set", c.set)
			if got := rights(t, manifest); !reflect.DeepEqual(got, c.want) {
				t.Errorf("rights are\n%s\nwant\n%s", indented(got), indented(c.want))
			}
			for name, b := range objects[rbacv1.ClusterRoleBinding](t, manifest) {
				if len(b.Subjects) != 1 || b.Subjects[0].Kind != "ServiceAccount" || b.Subjects[0].Namespace != "kube-system" {
					t.Errorf("%s binds %v", name, b.Subjects)
				}
				if _, ok := c.want[b.RoleRef.Name]; !ok {
					t.Errorf("%s binds %s, which is not there", name, b.RoleRef.Name)
				}
			}
		})
	}
}

func indented(v any) string {
	out, _ := json.MarshalIndent(v, "", "  ")
	return string(out)
}

// A release of secrets-store-csi-driver's chart can be upgraded to this one,
// and what finds its objects by name goes on to find them.
func TestNamesAreThoseOfUpstream(t *testing.T) {
	args := []string{"--set", "syncSecret.enabled=true"}
	theirs := mustTemplate(t, upstreamFolder(t, "charts", "secrets-store-csi-driver"), args...)
	ours := mustTemplate(t, chart, append(args, "--set", "syncSecret.namespaces={*}")...)

	their, our := only[appsv1.DaemonSet](t, theirs), only[appsv1.DaemonSet](t, ours)
	if our.Name != their.Name || our.Namespace != their.Namespace {
		t.Errorf("the DaemonSet is %s/%s, want %s/%s", our.Namespace, our.Name, their.Namespace, their.Name)
	}
	if !reflect.DeepEqual(our.Spec.Selector, their.Spec.Selector) {
		t.Errorf("the DaemonSet selects %v, want %v: it cannot be changed", our.Spec.Selector, their.Spec.Selector)
	}
	if got, want := our.Spec.Template.Spec.ServiceAccountName, their.Spec.Template.Spec.ServiceAccountName; got != want {
		t.Errorf("the service account is %s, want %s", got, want)
	}
	names := func(c []corev1.Container) (names []string) {
		for _, c := range c {
			names = append(names, c.Name)
		}
		return names
	}
	if got := names(our.Spec.Template.Spec.Containers); !slices.Equal(got, []string{"secrets-store"}) {
		t.Errorf("the containers are %v, want secrets-store alone", got)
	}
	for name := range objects[rbacv1.ClusterRole](t, theirs) {
		if _, ok := objects[rbacv1.ClusterRole](t, ours)[name]; !ok && !strings.HasSuffix(name, "-keep-crds") {
			t.Errorf("there is no ClusterRole %s", name)
		}
	}
	for name := range objects[rbacv1.ClusterRoleBinding](t, theirs) {
		if _, ok := objects[rbacv1.ClusterRoleBinding](t, ours)[name]; !ok && !strings.HasSuffix(name, "-keep-crds") {
			t.Errorf("there is no ClusterRoleBinding %s", name)
		}
	}
	theirDriver, ourDriver := only[storagev1.CSIDriver](t, theirs), only[storagev1.CSIDriver](t, ours)
	if ourDriver.Name != theirDriver.Name ||
		!reflect.DeepEqual(ourDriver.Spec.AttachRequired, theirDriver.Spec.AttachRequired) ||
		!reflect.DeepEqual(ourDriver.Spec.VolumeLifecycleModes, theirDriver.Spec.VolumeLifecycleModes) {
		t.Errorf("the CSIDriver differs in what cannot be changed: %v, want %v", ourDriver, theirDriver)
	}
}

func TestKubeletRepublishesAndHandsOverTokens(t *testing.T) {
	const tokens = "tokenRequests[0].audience=vault"
	for _, c := range []struct {
		name, set, kubeVersion string
		inSecrets              bool
	}{
		{"defaults", "", "v1.36.0", false},
		{"no interval, no tokens", "enableSecretRotation=false", "v1.36.0", false},
		{"tokens", tokens, "v1.36.0", true},
		{"tokens, Kubernetes 1.34", tokens, "v1.34.9", false},
		{"tokens, a provider's Kubernetes 1.35", tokens, "v1.35.1-gke.100", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := only[storagev1.CSIDriver](t, mustTemplate(t, chart, "--set", c.set, "--kube-version", c.kubeVersion)).Spec
			if spec.RequiresRepublish == nil || !*spec.RequiresRepublish {
				t.Error("kubelet does not publish volumes again")
			}
			if got := spec.ServiceAccountTokenInSecrets != nil && *spec.ServiceAccountTokenInSecrets; got != c.inSecrets {
				t.Errorf("serviceAccountTokenInSecrets is %v, want %v", got, c.inSecrets)
			}
		})
	}
}

// appVersion is the version of the driver that the chart installs.
func appVersion(t *testing.T) string {
	t.Helper()
	var about struct{ AppVersion string }
	content, err := os.ReadFile(filepath.Join(chart, "Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(content, &about); err != nil {
		t.Fatal(err)
	}
	return about.AppVersion
}

func TestImageIsTheDriversOwn(t *testing.T) {
	ours := "ghcr.io/csi-secrets/csi-secrets:" + appVersion(t)
	digest := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct{ name, set, want string }{
		{"by default", "", ours},
		{"a tag", "linux.image.tag=v9", "ghcr.io/csi-secrets/csi-secrets:v9"},
		{"a mirror", "linux.image.repository=mirror/csi-secrets", "mirror/csi-secrets:" + appVersion(t)},
		{"a digest", "linux.image.tag=v9,linux.image.digest=" + digest, "ghcr.io/csi-secrets/csi-secrets@" + digest},
		{"in place of upstream's", "linux.image.repository=registry.k8s.io/csi-secrets-store/driver,linux.image.tag=v1.6.0", ours},
	} {
		t.Run(c.name, func(t *testing.T) {
			manifest := mustTemplate(t, chart, "--set", c.set)
			if got := only[appsv1.DaemonSet](t, manifest).Spec.Template.Spec.Containers[0].Image; got != c.want {
				t.Errorf("the driver's image is %s, want %s", got, c.want)
			}
			if strings.Count(manifest, fmt.Sprintf("image: %q", c.want)) != 2 {
				t.Errorf("the job's image is another than the driver's, %s", c.want)
			}
		})
	}
}

func TestBadValuesAreRefused(t *testing.T) {
	for _, c := range []struct{ name, values, want string }{
		{"an unknown key", "linux: {imagee: {}}", "imagee"},
		{"an unknown key of our own", "podMonitor: {enable: true}", "enable"},
		{"a truth in quotes", `enableSecretRotation: "false"`, "enableSecretRotation"},
		{"a number as interval", "rotationPollInterval: 120", "rotationPollInterval"},
		{"an interval without unit", `rotationPollInterval: "120"`, "rotationPollInterval"},
		{"a relative folder", "linux: {providersDir: providers}", "providersDir"},
		{"a comma in a folder", `linux: {additionalProvidersDirs: ["/a,/b"]}`, "additionalProvidersDirs"},
		{"events that there are not", "events: some", "events"},
		{"an audience that is a list", "tokenRequests: [{audience: [vault]}]", "audience"},
		{"tokens that live too shortly", "tokenRequests: [{audience: vault, expirationSeconds: 60}]", "expirationSeconds"},
		{"a pull policy that there is not", "linux: {image: {pullPolicy: Sometimes}}", "pullPolicy"},
		{"a digest that is none", "linux: {image: {digest: latest}}", "digest"},
		{"a port that is none", "livenessProbe: {port: 70000}", "port"},
		{"an address without port", "linux: {metricsAddr: localhost}", "metricsAddr"},
		{"a label that is a number", "commonLabels: {team: 1}", "team"},
		{"two drivers on a node", "linux: {updateStrategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}}", "maxSurge must be 0"},
		{"a monitor of nothing", `{podMonitor: {enabled: true}, linux: {metricsAddr: ""}}`, "podMonitor.enabled needs linux.metricsAddr"},
		{"two servers on a port", "linux: {metricsAddr: ':9808'}", "must be two ports"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := template(t, chart, "-f", valuesFile(t, c.values))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("helm says %v, want an error with %q", err, c.want)
			}
		})
	}
}

// With --reuse-values, the values of the release before take the place of
// this chart's defaults: what only this chart has is not there at all then.
func TestUpstreamsWholeValuesAreAccepted(t *testing.T) {
	values := upstreamFolder(t, "charts", "secrets-store-csi-driver", "values.yaml")
	reused := valuesFile(t, "{events: null, startupTaint: null, networkPolicy: null, admissionPolicy: null, podMonitor: null, linux: {terminationGracePeriodSeconds: null}}")
	manifest := mustTemplate(t, chart, "-f", values, "-f", reused)
	args := only[appsv1.DaemonSet](t, manifest).Spec.Template.Spec.Containers[0].Args
	for _, want := range []string{"--events=problems", "--rotation-poll-interval=0", "--metrics-addr=:8095", "--health-addr=:9808"} {
		if !slices.Contains(args, want) {
			t.Errorf("the driver is started with %v, want %s among them", args, want)
		}
	}
}

// notes renders NOTES.txt, which helm template leaves out.
func notes(t *testing.T, values string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "chart")
	if err := os.CopyFS(dir, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "templates", "NOTES.txt"))
	if err != nil {
		t.Fatal(err)
	}
	object := fmt.Sprintf("{{- define \"notes\" -}}%s{{- end -}}\nkind: Notes\nmetadata: {name: notes}\ntext: {{ include \"notes\" . | toJson }}\n", text)
	if err := os.WriteFile(filepath.Join(dir, "templates", "notes.yaml"), []byte(object), 0o600); err != nil {
		t.Fatal(err)
	}
	type Notes struct{ Text string }
	return only[Notes](t, mustTemplate(t, dir, "-f", values)).Text
}

func TestNotesTellWhichGivenValuesDoNothing(t *testing.T) {
	t.Run("none by default", func(t *testing.T) {
		got := notes(t, valuesFile(t, "{}"))
		if strings.Contains(got, "do nothing") || !strings.Contains(got, "daemonset/csi-secrets-store-secrets-store-csi-driver") {
			t.Errorf("notes:\n%s", got)
		}
	})
	t.Run("upstream's values", func(t *testing.T) {
		got := notes(t, upstreamFolder(t, "charts", "secrets-store-csi-driver", "values.yaml"))
		_, list, _ := strings.Cut(got, "These values do nothing here:\n")
		want := `  linux.image: registry.k8s.io/csi-secrets-store/driver is secrets-store-csi-driver's; ghcr.io/csi-secrets/csi-secrets:` + appVersion(t) + ` is used
  windows: there is no driver for Windows nodes
  linux.registrarImage: the driver registers itself
  linux.registrar: the driver registers itself
  linux.livenessProbeImage: the driver serves its own /healthz
  linux.livenessProbe: the driver serves its own /healthz
  linux.crds.image: the CRDs come with the driver's image
  livenessProbe.logLevel: the driver serves its own /healthz
  rbac.pspEnabled: Kubernetes has no PodSecurityPolicy any more
`
		if strings.TrimSpace(list) != strings.TrimSpace(want) {
			t.Errorf("the notes list\n%s\nwant\n%s", list, want)
		}
	})
	t.Run("each that the schema calls so", func(t *testing.T) {
		paths := ignored(readSchema(t), "")
		if len(paths) < 8 {
			t.Fatalf("the schema has %v only", paths)
		}
		for _, path := range paths {
			values := any(map[string]any{"given": true})
			for _, key := range slices.Backward(strings.Split(path, ".")) {
				values = map[string]any{key: values}
			}
			content, _ := json.Marshal(values)
			if got := notes(t, valuesFile(t, string(content))); !strings.Contains(got, "\n  "+path+": ") {
				t.Errorf("the notes do not tell that %s does nothing:\n%s", path, got)
			}
		}
	})
}

func TestPackageHoldsNoGoFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := helm(t, "package", chart, "--destination", dir); err != nil {
		t.Fatal(err)
	}
	packages, _ := filepath.Glob(filepath.Join(dir, "*.tgz"))
	file, err := os.Open(packages[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	crds := 0
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(header.Name, ".go") {
			t.Errorf("%s is in the chart", header.Name)
		}
		if strings.HasPrefix(header.Name, "csi-secrets/crds/") {
			crds++
		}
	}
	if crds != 2 {
		t.Errorf("%d files of CRDs in the chart, want 2", crds)
	}
}

// The program parses its flags before it prints its help, and says no to any
// that it does not know.
func TestTheProgramTakesItsArguments(t *testing.T) {
	program := filepath.Join(t.TempDir(), "csi-secrets")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../cmd/csi-secrets").CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	takes := func(t *testing.T, args []string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), program, append(slices.Clone(args), "--help")...).CombinedOutput(); err != nil {
			t.Errorf("csi-secrets %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	for _, set := range valueSets(t) {
		t.Run(filepath.Base(set), func(t *testing.T) {
			manifest := mustTemplate(t, chart, "-f", set)
			takes(t, only[appsv1.DaemonSet](t, manifest).Spec.Template.Spec.Containers[0].Args)
			for _, deployment := range objects[appsv1.Deployment](t, manifest) {
				takes(t, deployment.Spec.Template.Spec.Containers[0].Args)
			}
			for _, job := range objects[batchv1.Job](t, manifest) {
				takes(t, job.Spec.Template.Spec.Containers[0].Args)
			}
		})
	}
}
