package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/test/e2e/deploy"
	"github.com/csi-secrets/csi-secrets/test/postgres"
	"github.com/csi-secrets/csi-secrets/test/vault"
)

// soak is how long the pod with a database password runs: `make soak` says ten
// minutes.
func soak(t *testing.T) time.Duration {
	text := os.Getenv("CSI_SECRETS_SOAK")
	if text == "" {
		return 75 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// newVault starts a Vault that pods reach, and that has the cluster's API server
// review their tokens.
func newVault(t *testing.T, n namespace) *vaulttest.Server {
	t.Helper()
	v := vaulttest.New(t, vaulttest.Options{Host: kube.HostIP()})
	account := "vault-reviewer"
	n.kubectl("create", "serviceaccount", account)
	binding := rbacv1.ClusterRoleBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRoleBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: "e2e-" + n.name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:auth-delegator"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: account, Namespace: n.name}},
	}
	apply(t, binding)
	t.Cleanup(func() { _, _ = tryKubectl(t, nil, "delete", "clusterrolebinding", binding.Name) })
	reviewer := strings.TrimSpace(n.kubectl("create", "token", account, "--duration=2h"))
	config, err := clientcmd.BuildConfigFromFlags("", kube.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	ca := config.CAData
	if len(ca) == 0 && config.CAFile != "" {
		if ca, err = os.ReadFile(config.CAFile); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.AuthKubernetes("kubernetes", kube.APIServer(), ca, reviewer); err != nil {
		t.Fatal(err)
	}
	return v
}

// classOfVault makes a class of the provider vault for this server.
func (n namespace) classOfVault(name string, v *vaulttest.Server, parameters map[string]string) {
	n.t.Helper()
	all := map[string]string{"vaultAddress": v.Address, "vaultCAPem": string(v.CA()), "roleName": "app"}
	for key, value := range parameters {
		all[key] = value
	}
	n.classOf(name, "vault", all)
}

// A pod logs in to PostgreSQL ten times a second with a password from Vault, whose
// lease is 20 s and which is another after a minute, while the driver is killed.
// No login fails, and when the pod is gone, so are its users.
func TestADatabasePasswordFromVaultAlwaysWorks(t *testing.T) {
	n := newNamespace(t)
	v, pg := newVault(t, n), postgres.New(t, postgres.Options{Host: kube.HostIP()})
	if err := errors.Join(
		v.Policy("app", `path "database/creds/app" { capabilities = ["read"] }`),
		v.EnableDatabase("database", pg), v.DatabaseRole("database", "app", 20*time.Second, time.Minute),
		v.KubernetesRole("kubernetes", "app", vaulttest.Role{Namespace: n.name, ServiceAccount: "default", Audience: "vault", Policies: []string{"app"}}),
		deploy.Program(t.Context(), kube, "login"),
	); err != nil {
		t.Fatal(err)
	}
	n.classOfVault("db", v, map[string]string{"objects": `
- {objectName: username, secretPath: database/creds/app, secretKey: username}
- {objectName: password, secretPath: database/creds/app, secretKey: password}
`})
	server := fmt.Sprintf("postgresql://%s:%d/%s?sslmode=disable", pg.Host, pg.Port, postgres.Database)
	p := template("exec /program/login -folder /mnt/db -server '"+server+"'", "db")
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "program", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv/login"}}})
	p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "program", MountPath: "/program", ReadOnly: true})
	n.pod("app", p)
	n.ready("pod/app")
	began := time.Now()
	length := soak(t)
	time.Sleep(length / 2)
	killDriver(t)
	time.Sleep(length - time.Since(began))
	log := n.kubectl("logs", "app")
	lines := strings.Split(strings.TrimSpace(log), "\n")
	var logins, failed, users int
	if _, err := fmt.Sscanf(lines[len(lines)-1], "logins %d failed %d users %d", &logins, &failed, &users); err != nil {
		t.Errorf("the last line is %q", lines[len(lines)-1])
	}
	t.Logf("in %v: %d logins, %d of them failed, with %d users", time.Since(began).Round(time.Second), logins, failed, users)
	if failures := strings.Count(log, "FAILED"); failures > 0 || failed > 0 {
		t.Errorf("%d logins failed:\n%s", failures, log)
	}
	if users < 2 {
		t.Error("the password was never replaced")
	}
	n.kubectl("delete", "pod", "app", "--wait")
	gone := time.Now()
	eventually(t, func() error {
		roles, err := pg.Roles(t.Context())
		if err == nil && len(roles) > 0 {
			err = fmt.Errorf("there still are the users %q", roles)
		}
		return err
	})
	t.Logf("the last user was gone %v after the pod", time.Since(gone).Round(time.Millisecond))
	eventually(t, func() error {
		leases, err := v.Leases("database/creds/")
		if err == nil && len(leases) > 0 {
			err = fmt.Errorf("there still are %d leases", len(leases))
		}
		return err
	})
}

// Classes of pods of several service accounts, as Vault's own provider has them:
// each gets what its role lets it have, and no more.
func TestVaultKnowsThePodsApart(t *testing.T) {
	n := newNamespace(t)
	v := newVault(t, n)
	if err := errors.Join(
		v.EnableKV2("secret"), v.Policy("app", `path "secret/data/app" { capabilities = ["read"] }`),
		v.KubernetesRole("kubernetes", "app", vaulttest.Role{Namespace: n.name, ServiceAccount: "app", Audience: "vault", Policies: []string{"app"}}),
		// A role of old: no audience, so that the token is the API server's own.
		v.KubernetesRole("kubernetes", "older", vaulttest.Role{Namespace: n.name, ServiceAccount: "app", Policies: []string{"app"}}),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Do("PUT", "secret/data/app", map[string]any{"data": map[string]any{"password": "of-the-app"}}); err != nil {
		t.Fatal(err)
	}
	n.kubectl("create", "serviceaccount", "app")
	objects := "- {objectName: password, secretPath: secret/data/app, secretKey: password}"
	n.classOfVault("db", v, map[string]string{"objects": objects})
	n.classOfVault("older", v, map[string]string{"objects": objects, "roleName": "older", "rotationInterval": "never"})
	right, wrong := template(idle, "db", "older"), template(idle, "db")
	right.Spec.ServiceAccountName = "app"
	n.pod("right", right)
	n.pod("wrong", wrong)
	n.ready("pod/right")
	for _, path := range []string{"/mnt/db/password", "/mnt/older/password"} {
		if got := n.cat("right", path); got != "of-the-app" {
			t.Errorf("%s holds %q", path, got)
		}
	}
	eventually(t, func() error {
		if events := n.events("wrong"); !strings.Contains(events, "service account name not authorized") || !strings.Contains(events, `system:serviceaccount:`+n.name+`:default`) {
			return fmt.Errorf("the events are\n%s", events)
		}
		return nil
	})
	if _, err := v.Do("PUT", "secret/data/app", map[string]any{"data": map[string]any{"password": "rotated"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := n.cat("right", "/mnt/db/password"); got != "rotated" {
			return fmt.Errorf("the file holds %q", got)
		}
		return nil
	})
	// A class that is never refreshed by itself is when somebody wishes.
	if got := n.cat("right", "/mnt/older/password"); got != "of-the-app" {
		t.Errorf("the class without an interval has %q", got)
	}
	n.kubectl("annotate", "secretproviderclass", "older", class.RefreshAnnotation+"=now")
	eventually(t, func() error {
		if got := n.cat("right", "/mnt/older/password"); got != "rotated" {
			return fmt.Errorf("after the wish for a refresh the file holds %q", got)
		}
		return nil
	})
	eventually(t, func() error {
		status, err := n.status("right", "db")
		if err == nil && (len(status.Status.Objects) != 1 || status.Status.Objects[0].Version != "2") {
			err = fmt.Errorf("the status has %+v", status.Status.Objects)
		}
		return err
	})
}
