package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync/controller"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

// withSync is a namespace in which drivers may write Secrets, for the rest of the
// test.
func withSync(t *testing.T) namespace {
	t.Helper()
	n := newNamespace(t)
	t.Cleanup(func() { _ = install(context.Background()) })
	if err := install(t.Context(), "--set", "syncSecret.enabled=true", "--set", "syncSecret.namespaces={"+n.name+"}"); err != nil {
		t.Fatal(err)
	}
	return n
}

// synced makes a class of these objects with a Secret for each of which the name is
// given, keys named after the objects.
func (n namespace) synced(name string, secrets []string, objects ...string) {
	n.t.Helper()
	var list strings.Builder
	for _, o := range objects {
		fmt.Fprintf(&list, "- objectName: %s\n", o)
	}
	c := class.SecretProviderClass{Spec: class.Spec{Provider: "e2e", Parameters: map[string]string{"objects": list.String()}}}
	c.APIVersion, c.Kind, c.Name, c.Namespace = class.GroupVersion.String(), class.Kind, name, n.name
	for _, s := range secrets {
		o := class.SecretObject{SecretName: s, Type: "Opaque", Labels: map[string]string{"environment": "test"}}
		for _, object := range objects {
			o.Data = append(o.Data, class.SecretObjectData{ObjectName: object, Key: object})
		}
		c.Spec.SecretObjects = append(c.Spec.SecretObjects, o)
	}
	apply(n.t, c)
}

// withVariable has a pod's container take the variable VALUE from a key of a Secret.
func withVariable(p corev1.PodTemplateSpec, secret, key string) corev1.PodTemplateSpec {
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "VALUE", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: key}}}}
	return p
}

func (n namespace) secret(name string) (corev1.Secret, error) {
	n.t.Helper()
	out, err := tryKubectl(n.t, nil, "-n", n.name, "get", "secret", name, "-o", "json")
	if err != nil {
		return corev1.Secret{}, err
	}
	var s corev1.Secret
	return s, decode(out, &s)
}

// owned waits until a Secret has these owners, by kind and name, none for that it is
// gone.
func (n namespace) owned(name string, owners ...string) {
	n.t.Helper()
	eventually(n.t, func() error {
		s, err := n.secret(name)
		if len(owners) == 0 {
			if err == nil {
				return fmt.Errorf("the Secret %s is there", name)
			}
			return nil
		}
		var has []string
		for _, o := range s.OwnerReferences {
			has = append(has, o.Kind+"/"+o.Name)
		}
		slices.Sort(has)
		if err == nil && !slices.Equal(has, owners) {
			err = fmt.Errorf("the Secret %s is owned by %v, want %v", name, has, owners)
		}
		return err
	})
}

// The scenarios of secrets-store-csi-driver's own tests: Secrets of Deployments and
// of pods, variables, labels, owners, rotation, and the end.
func TestSecretsAreMadeOfMountedFiles(t *testing.T) {
	n := withSync(t)
	n.synced("db", []string{"db"}, "user", "synced")
	n.synced("api", []string{"api"}, "token")
	for _, name := range []string{"one", "two"} {
		apply(t, deployment(n, name, 2, withVariable(template(idle, "db"), "db", "user")))
	}
	n.pod("bare", withVariable(template(idle, "db", "api"), "api", "token"))
	n.kubectl("rollout", "status", "deployment/one", "--timeout=2m")
	n.kubectl("rollout", "status", "deployment/two", "--timeout=2m")
	n.ready("pod/bare")
	if got := n.kubectl("exec", "deployment/one", "--", "sh", "-c", "echo $VALUE"); got != "value of user\n" {
		t.Errorf("a Deployment's variable is %q", got)
	}
	if got := n.kubectl("exec", "bare", "--", "sh", "-c", "echo $VALUE"); got != "value of token\n" {
		t.Errorf("a pod's variable is %q", got)
	}
	n.owned("db", "Deployment/one", "Deployment/two", "Pod/bare")
	n.owned("api", "Pod/bare")
	s, err := n.secret("db")
	if err != nil || string(s.Data["user"]) != "value of user" || string(s.Data["synced"]) != "value of synced" || len(s.Data) != 2 || s.Type != "Opaque" {
		t.Errorf("the Secret is %v, %v", s, err)
	}
	if s.Labels["environment"] != "test" || s.Labels["secrets-store.csi.k8s.io/managed"] != "true" {
		t.Errorf("its labels are %v", s.Labels)
	}
	eventually(t, func() error {
		status, err := n.status("bare", "db")
		if err == nil && (len(status.Status.Conditions) != 2 || status.Status.Conditions[1].Type != "Synced" || status.Status.Conditions[1].Status != "True") {
			err = fmt.Errorf("the conditions are %v", status.Status.Conditions)
		}
		return err
	})

	// A rotation reaches file and Secret; what others have put on it stays.
	n.kubectl("annotate", "secret", "db", "theirs=stays")
	provider(t, http.MethodPost, "/objects/synced", "second value")
	eventually(t, func() error {
		s, err = n.secret("db")
		if err == nil && string(s.Data["synced"]) != "second value" {
			err = fmt.Errorf("the Secret has %q", s.Data["synced"])
		}
		return err
	})
	if got := n.cat("bare", "/mnt/db/synced"); got != "second value" {
		t.Errorf("the file has %q", got)
	}
	if s.Annotations["theirs"] != "stays" || s.Labels["environment"] != "test" {
		t.Errorf("after a change, the annotations are %v and the labels %v", s.Annotations, s.Labels)
	}

	// Somebody deletes it, and a pod that starts needs it; a key leaves the class; a
	// Secret gets another name.
	n.kubectl("delete", "secret", "db")
	n.kubectl("scale", "deployment/one", "--replicas=3")
	n.kubectl("rollout", "status", "deployment/one", "--timeout=2m")
	n.owned("db", "Deployment/one", "Deployment/two", "Pod/bare")
	n.synced("db", []string{"db"}, "user")
	eventually(t, func() error {
		s, err := n.secret("db")
		if err == nil && len(s.Data) != 1 {
			err = fmt.Errorf("a key that left the class stays: %d keys", len(s.Data))
		}
		return err
	})
	n.synced("api", []string{"renamed"}, "token")
	n.owned("renamed", "Pod/bare")
	n.owned("api")

	// It goes with its last user.
	n.kubectl("delete", "deployment", "one")
	n.owned("db", "Deployment/two", "Pod/bare")
	n.kubectl("delete", "pod", "bare")
	n.owned("db", "Deployment/two")
	n.owned("renamed")
	n.kubectl("delete", "deployment", "two")
	n.owned("db")
}

// writesOf are the requests that changed a Secret, by verb.
func (n namespace) writesOf(name string) string {
	n.t.Helper()
	requests, err := kube.Requests()
	if err != nil {
		n.t.Fatal(err)
	}
	count := map[string]int{}
	for _, r := range requests {
		if r.Resource == "secrets" && r.Namespace == n.name && (r.Name == name || r.Verb == "deletecollection") && r.Code < 300 && !slices.Contains([]string{"get", "list", "watch"}, r.Verb) {
			count[r.Verb]++
		}
	}
	return fmt.Sprint(count)
}

// A Deployment grows, shrinks and rolls, and the driver is killed each time: the
// Secret is the same object all the while, and each change is one write.
func TestASecretSurvivesWhatHappensToItsPods(t *testing.T) {
	n := withSync(t)
	n.synced("db", []string{"db"}, "steady")
	apply(t, deployment(n, "web", 1, withVariable(template(idle, "db"), "db", "steady")))
	finished := func() { n.kubectl("rollout", "status", "deployment/web", "--timeout=3m") }
	finished()
	n.owned("db", "Deployment/web")
	made, err := n.secret("db")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Second) // it is looked at once more after it was made
	before := n.writesOf("db")
	for _, step := range [][]string{
		{"scale", "deployment/web", "--replicas=5"}, {"rollout", "restart", "deployment/web"}, {"scale", "deployment/web", "--replicas=1"}, {"rollout", "restart", "deployment/web"},
	} {
		n.kubectl(step...)
		killDriver(t)
		finished()
	}
	if now, err := n.secret("db"); err != nil || now.UID != made.UID || now.ResourceVersion != made.ResourceVersion {
		t.Errorf("the Secret was written: version %s after %s, %v", now.ResourceVersion, made.ResourceVersion, err)
	}
	if now := n.writesOf("db"); now != before {
		t.Errorf("the writes are %s, after %s", now, before)
	}
	for i := range 2 {
		value := fmt.Sprint("value ", i)
		provider(t, http.MethodPost, "/objects/steady", value)
		eventually(t, func() error {
			s, err := n.secret("db")
			if err == nil && string(s.Data["steady"]) != value {
				err = fmt.Errorf("the Secret has %q", s.Data["steady"])
			}
			return err
		})
	}
	time.Sleep(10 * time.Second)
	var patches, more int
	_, _ = fmt.Sscanf(before, "map[patch:%d]", &patches)
	if _, err := fmt.Sscanf(n.writesOf("db"), "map[patch:%d]", &more); err != nil || more != patches+2 {
		t.Errorf("two changes: the writes are %s, after %s", n.writesOf("db"), before)
	}
}

func TestASecretOfSomebodyElseIsLeftAlone(t *testing.T) {
	n := withSync(t)
	n.kubectl("create", "secret", "generic", "taken", "--from-literal=user=mine")
	n.synced("db", []string{"taken"}, "user")
	before, err := n.secret("taken")
	if err != nil {
		t.Fatal(err)
	}
	n.pod("web", template(idle, "db"))
	n.ready("pod/web") // it has its files all the same
	eventually(t, func() error {
		events := n.events("web")
		if !strings.Contains(events, "Warning SecretSyncFailed: ") || !strings.Contains(events, "Secret "+n.name+"/taken") || !strings.Contains(events, "csi-secrets does not manage it") {
			return fmt.Errorf("the events are\n%s", events)
		}
		status, err := n.status("web", "db")
		if err == nil && (len(status.Status.Conditions) != 2 || status.Status.Conditions[1].Status != "False" || !strings.Contains(status.Status.Conditions[1].Message, "taken")) {
			err = fmt.Errorf("the conditions are %v", status.Status.Conditions)
		}
		return err
	})
	if after, err := n.secret("taken"); err != nil || after.ResourceVersion != before.ResourceVersion || string(after.Data["user"]) != "mine" {
		t.Errorf("it was written: %v, %v", after, err)
	}
}

// secretSync makes a SecretSync of a class, as a service account.
func (n namespace) secretSync(name, className, account string) secretsync.SecretSync {
	s := secretsync.SecretSync{Spec: secretsync.Spec{SecretProviderClassName: className, ServiceAccountName: account, SecretObject: secretsync.SecretObject{
		Type: "Opaque", Data: []secretsync.SecretObjectData{{SourcePath: "password", TargetKey: "PASSWORD"}},
	}}}
	s.APIVersion, s.Kind, s.Name, s.Namespace = secretsync.GroupVersion.String(), secretsync.Kind, name, n.name
	return s
}

// withSecretSyncs is a namespace in which the controller may write Secrets, and make
// tokens of these service accounts, which may read the Secret "source".
func withSecretSyncs(t *testing.T, accounts ...string) namespace {
	t.Helper()
	n := newNamespace(t)
	withController(t, n.secretSyncs()...)
	n.letSync(accounts...)
	return n
}

// secretSyncs are the values of the chart with which the controller may write Secrets.
func (n namespace) secretSyncs() []string {
	return []string{"--set", "controller.secretSyncs.enabled=true", "--set", "controller.secretSyncs.namespaces={" + n.name + "}", "--set", "controller.replicas=1"}
}

// letSync has the controller make tokens of service accounts which may read the Secret
// "source", and makes that and a class db of it.
func (n namespace) letSync(accounts ...string) {
	n.t.Helper()
	n.kubectl("create", "secret", "generic", "source", "--from-literal=password=first")
	n.kubectl("create", "role", "reader", "--verb=get,watch", "--resource=secrets", "--resource-name=source")
	tokens := []string{"create", "role", "tokens", "--verb=create", "--resource=serviceaccounts/token"}
	for _, a := range accounts {
		tokens = append(tokens, "--resource-name="+a)
	}
	n.kubectl(tokens...)
	n.kubectl("create", "rolebinding", "tokens", "--role=tokens", "--serviceaccount="+driverNamespace+":csi-secrets-secrets-store-csi-driver-controller")
	for _, a := range accounts {
		n.kubectl("create", "serviceaccount", a)
		n.kubectl("create", "rolebinding", a, "--role=reader", "--serviceaccount="+n.name+":"+a)
	}
	n.classOf("db", "kubernetes", map[string]string{"objects": "- {objectName: source, key: password}"})
}

// A Secret exists before the first pod does, changes with its source, and goes with
// what asked for it.
func TestASecretIsMadeWithoutAPod(t *testing.T) {
	n := newNamespace(t)
	withController(t, "--set", "controller.secretSyncs.enabled=true", "--set", "controller.replicas=1")
	n.letSync("reader")
	n.kubectl("create", "role", "secrets", "--verb=get,create,patch,delete", "--resource=secrets", "--resource-name=db", "--resource-name=refused", "--resource-name=taken", "--resource-name=theirs")
	n.kubectl("create", "rolebinding", "secrets", "--role=secrets", "--serviceaccount="+driverNamespace+":csi-secrets-secrets-store-csi-driver-controller")
	n.kubectl("create", "serviceaccount", "stranger")
	n.kubectl("create", "secret", "generic", "taken", "--from-literal=PASSWORD=mine")
	apply(t, n.secretSync("db", "db", "reader"))
	apply(t, n.secretSync("refused", "db", "stranger"))
	apply(t, n.secretSync("taken", "db", "reader"))
	has := func(value string) {
		t.Helper()
		eventually(t, func() error {
			s, err := n.secret("db")
			if err == nil && string(s.Data["PASSWORD"]) != value {
				err = fmt.Errorf("the Secret has %q", s.Data["PASSWORD"])
			}
			return err
		})
	}
	has("first")
	p := template(idle)
	p = withVariable(p, "db", "PASSWORD")
	n.pod("web", p)
	n.ready("pod/web")
	if got := n.kubectl("exec", "web", "--", "sh", "-c", "echo $VALUE"); got != "first\n" {
		t.Errorf("the pod's variable is %q", got)
	}
	condition := func(name, kind, status string, words ...string) {
		t.Helper()
		eventually(t, func() error {
			s := read[secretsync.SecretSync](t, "-n", n.name, "secretsync", name)
			for _, c := range s.Status.Conditions {
				if c.Type == kind && string(c.Status) == status && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(c.Message, w) }) {
					return nil
				}
			}
			return fmt.Errorf("the conditions of %s are %v", name, s.Status.Conditions)
		})
	}
	condition("db", "SecretUpdated", "True")
	condition("refused", "SecretCreated", "False", "stranger")
	condition("taken", "SecretCreated", "False", "taken", "csi-secrets does not manage it")
	if s, err := n.secret("taken"); err != nil || string(s.Data["PASSWORD"]) != "mine" {
		t.Errorf("a Secret of somebody else is %v, %v", s, err)
	}
	n.kubectl("patch", "secret", "source", "-p", `{"stringData":{"password":"second"}}`)
	began := time.Now()
	has("second")
	t.Logf("%v after the change, as kubectl sees it", time.Since(began).Round(10*time.Millisecond))
	// The type of a Secret changes with no right but to that Secret.
	n.kubectl("patch", "secretsync", "db", "--type=merge", "-p", `{"spec":{"secretObject":{"type":"example.com/login"}}}`)
	eventually(t, func() error {
		s, err := n.secret("db")
		if err == nil && s.Type != "example.com/login" {
			err = fmt.Errorf("the Secret is of type %s, and the SecretSync says %v", s.Type, read[secretsync.SecretSync](t, "-n", n.name, "secretsync", "db").Status.Conditions)
		}
		return err
	})
	n.kubectl("delete", "secretsync", "db")
	n.owned("db")
	n.takenOver("reader")
}

// takenOver has a Secret change hands that secrets-store-sync-controller has applied:
// what then leaves the SecretSync leaves the Secret.
func (n namespace) takenOver(account string) {
	n.t.Helper()
	was := corev1.Secret{Type: "Opaque", StringData: map[string]string{"PASSWORD": "old", "AGAIN": "old", "EXTRA": "old"}}
	was.APIVersion, was.Kind, was.Namespace, was.Name, was.Labels = "v1", "Secret", n.name, "theirs", map[string]string{"secrets-store.csi.k8s.io/managed": "true", "tier": "one"}
	text, err := json.Marshal(was)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := tryKubectl(n.t, strings.NewReader(string(text)), "apply", "--server-side", "--field-manager=secrets-store-sync-controller", "-f", "-"); err != nil {
		n.t.Fatal(err)
	}
	s := n.secretSync("theirs", "db", account)
	s.Spec.SecretObject.Labels = map[string]string{"tier": "one"}
	s.Spec.SecretObject.Data = append(s.Spec.SecretObject.Data, secretsync.SecretObjectData{SourcePath: "password", TargetKey: "AGAIN"})
	has := func(keys int, label string) {
		n.t.Helper()
		eventually(n.t, func() error {
			s, err := n.secret("theirs")
			if err == nil && (len(s.Data) != keys || string(s.Data["PASSWORD"]) != "second" || s.Labels["tier"] != label) {
				err = fmt.Errorf("the Secret is %+v with %d keys", s.ObjectMeta, len(s.Data))
			}
			return err
		})
	}
	apply(n.t, s)
	has(2, "one")
	s.Spec.SecretObject.Labels, s.Spec.SecretObject.Data = nil, s.Spec.SecretObject.Data[:1]
	apply(n.t, s)
	has(1, "")
}

// A controller that starts makes all Secrets, and then writes nothing more.
func TestManySecretsAreMadeAtOnceAndThenNothingIsWritten(t *testing.T) {
	count := harness.Number(t, "CSI_SECRETS_SYNCS", 40)
	var accounts []string
	for i := range count / 10 {
		accounts = append(accounts, fmt.Sprint("reader-", i))
	}
	n := withSecretSyncs(t, accounts...)
	kubectl(t, "-n", driverNamespace, "scale", "deployment", "-l", controllerPods, "--replicas=0")
	kubectl(t, "-n", driverNamespace, "wait", "--for=delete", "pod", "-l", controllerPods, "--timeout=1m")
	var all []secretsync.SecretSync
	for i := range count {
		all = append(all, n.secretSync(fmt.Sprint("db-", i), "db", accounts[i%len(accounts)]))
	}
	list := map[string]any{"apiVersion": "v1", "kind": "List", "items": all}
	apply(t, list)
	kubectl(t, "-n", driverNamespace, "scale", "deployment", "-l", controllerPods, "--replicas=1")
	eventually(t, func() error {
		_, err := tryKubectl(t, nil, "-n", driverNamespace, "wait", "--for=condition=Ready", "pod", "-l", controllerPods, "--timeout=1m")
		return err
	})
	began := time.Now()
	ready := func() (n int, versions string) {
		var syncs secretsync.SecretSyncList
		if err := json.Unmarshal([]byte(kubectl(t, "-n", all[0].Namespace, "get", "secretsync", "-o", "json")), &syncs); err != nil {
			t.Fatal(err)
		}
		for _, s := range syncs.Items {
			if slices.ContainsFunc(s.Status.Conditions, func(c metav1.Condition) bool { return c.Type == "SecretUpdated" && c.Status == "True" }) {
				n++
			}
			versions += s.ResourceVersion + " "
		}
		return n, versions
	}
	eventually(t, func() error {
		if n, _ := ready(); n < count {
			return fmt.Errorf("%d of %d are ready", n, count)
		}
		return nil
	})
	took := time.Since(began)
	secrets := func() string {
		return n.kubectl("get", "secret", "-l", "secrets-store.csi.k8s.io/managed=true", "-o", "jsonpath={.items[*].metadata.resourceVersion}")
	}
	time.Sleep(10 * time.Second)
	_, objects := ready()
	before := secrets()
	if got := len(strings.Fields(before)); got != count {
		t.Errorf("there are %d Secrets", got)
	}
	time.Sleep(15 * time.Second)
	if _, now := ready(); now != objects || secrets() != before {
		t.Error("something is written though nothing has changed")
	}
	pid, _ := kube.Nodes()[0].Run(t.Context(), "pgrep", "-f", "^/csi-secrets controller ")
	memory, _ := kube.Nodes()[0].Run(t.Context(), "grep", "VmRSS", "/proc/"+strings.TrimSpace(pid)+"/status")
	t.Logf("%d SecretSyncs of %d service accounts: ready %v after the controller was; %s", count, len(accounts), took.Round(100*time.Millisecond), strings.Join(strings.Fields(memory), " "))
}
