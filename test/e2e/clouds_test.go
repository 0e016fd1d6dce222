package e2e

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/csi-secrets/csi-secrets/test/aws"
	"github.com/csi-secrets/csi-secrets/test/azure"
	"github.com/csi-secrets/csi-secrets/test/cloud"
	"github.com/csi-secrets/csi-secrets/test/gcp"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

// verifier checks the tokens of the cluster's pods by the keys that its API server
// publishes.
func verifier(t *testing.T) *issuer.Verifier {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kube.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	var discovery struct{ Issuer string }
	if err := decode(kubectl(t, "get", "--raw", "/.well-known/openid-configuration"), &discovery); err != nil {
		t.Fatal(err)
	}
	return issuer.NewVerifier(t.Context(), discovery.Issuer, kube.APIServer()+"/openid/v1/jwks", client)
}

// reach has the driver reach the hosts of clouds, by a proxy, for the time of the
// test.
func reach(t *testing.T, n namespace, clouds *cloud.Net) {
	t.Helper()
	ca, err := os.ReadFile(clouds.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	apply(t, corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: metav1.ObjectMeta{Name: "e2e-clouds", Namespace: driverNamespace}, Data: map[string]string{"ca.pem": string(ca)}})
	api, err := url.Parse(kube.APIServer())
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ := net.SplitHostPort(api.Host)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := install(ctx); err != nil {
			t.Error(err)
		}
	})
	environment := fmt.Sprintf(`[{"name":"HTTPS_PROXY","value":%q},{"name":"NO_PROXY","value":"%s,10.0.0.0/8"},{"name":"SSL_CERT_FILE","value":"/clouds/ca.pem"}]`, clouds.ProxyURL(), host)
	err = install(t.Context(),
		"--set-json", "linux.env="+environment, "--set-json", `linux.volumes=[{"name":"clouds","configMap":{"name":"e2e-clouds"}}]`,
		"--set-json", `linux.volumeMounts=[{"name":"clouds","mountPath":"/clouds"}]`, "--set", "gcp.cluster=shop/europe-west1/main",
		"--set-json", `tokenRequests=[{"audience":"vault"},{"audience":"conjur"},{"audience":""},{"audience":"api://AzureADTokenExchange"},{"audience":"sts.amazonaws.com"},{"audience":"shop.svc.id.goog"}]`,
	)
	if err != nil {
		t.Fatal(err)
	}
}

// Pods with the tokens that the real kubelet brings, which the stand-ins check
// against the real API server's keys: each gets what its own service account may
// have, from three clouds, and sees it change.
func TestCloudsKnowThePodsApart(t *testing.T) {
	n := newNamespace(t)
	clouds, pods := cloud.At(t, kube.HostIP()), verifier(t)
	amazon, microsoft, google := awstest.New(t, clouds, pods, "eu-west-1"), azuretest.New(t, clouds, pods), gcptest.New(t, clouds, pods)
	subject := issuer.Account{Namespace: n.name, Name: "app"}.Subject()

	role := "arn:aws:iam::" + awstest.Account + ":role/app"
	amazon.AddRole(awstest.Role{ARN: role, Subjects: []string{subject}, Allow: awstest.Everything})
	amazon.PutSecret("eu-west-1", "prod/db", `{"password":"canary-of-amazon"}`)
	amazon.PutParameter("eu-west-1", "/prod/user", "user-canary-of-amazon")
	client := microsoft.Add(azuretest.Client{Subjects: []string{subject}})
	vault := microsoft.Vault("shop")
	vault.SetSecret("db", "canary-of-microsoft")
	vault.GrantAll(client)
	const email = "app@shop.iam.gserviceaccount.com"
	google.AddAccount(email, gcptest.PodPrincipal(n.name, "app"))
	google.Put("projects/shop/secrets/db", "canary-of-google")
	google.Grant("serviceAccount:"+email, "projects/shop/secrets/db", "secretmanager.versions.access")

	reach(t, n, clouds)
	kubectl(t, "label", "nodes", "--all", "--overwrite", "topology.kubernetes.io/region=eu-west-1")
	n.kubectl("create", "serviceaccount", "app")
	n.kubectl("annotate", "serviceaccount", "app", "eks.amazonaws.com/role-arn="+role, "iam.gke.io/gcp-service-account="+email)
	n.kubectl("annotate", "serviceaccount", "default", "eks.amazonaws.com/role-arn="+role, "iam.gke.io/gcp-service-account="+email)
	n.classOf("aws", "aws", map[string]string{"objects": "- {objectName: prod/db, objectType: secretsmanager, jmesPath: [{path: password, objectAlias: password}]}\n- {objectName: /prod/user, objectType: ssmparameter}"})
	n.classOf("azure", "azure", map[string]string{"keyvaultName": "shop", "tenantID": azuretest.Tenant, "clientID": client, "objects": "array:\n  - |\n    objectName: db\n    objectType: secret\n"})
	n.classOf("gcp", "gcp", map[string]string{"auth": "pod-adc", "secrets": "- {resourceName: projects/shop/secrets/db/versions/latest, path: db}"})

	right := template(idle, "aws", "azure", "gcp")
	right.Spec.ServiceAccountName = "app"
	n.pod("right", right)
	for _, provider := range []string{"aws", "azure", "gcp"} {
		n.pod("wrong-"+provider, template(idle, provider))
	}
	n.ready("pod/right")
	for path, want := range map[string]string{
		"aws/prod_db": `{"password":"canary-of-amazon"}`, "aws/password": "canary-of-amazon", "aws/_prod_user": "user-canary-of-amazon", "azure/db": "canary-of-microsoft", "gcp/db": "canary-of-google",
	} {
		if got := n.cat("right", "/mnt/"+path); got != want {
			t.Errorf("%s holds %q", path, got)
		}
	}
	for provider, words := range map[string][]string{
		"aws": {"AccessDenied", role}, "azure": {"AADSTS", n.name + ":default"}, "gcp": {"PERMISSION_DENIED", "roles/iam.workloadIdentityUser"},
	} {
		eventually(t, func() error {
			events := n.events("wrong-" + provider)
			for _, w := range words {
				if !strings.Contains(events, w) {
					return fmt.Errorf("no %q in the events of the pod that %s does not know:\n%s", w, provider, events)
				}
			}
			return nil
		})
	}

	amazon.PutSecret("eu-west-1", "prod/db", `{"password":"rotated"}`)
	vault.SetSecret("db", "rotated")
	google.Put("projects/shop/secrets/db", "rotated")
	for _, path := range []string{"aws/password", "azure/db", "gcp/db"} {
		eventually(t, func() error {
			if got := n.cat("right", "/mnt/"+path); got != "rotated" {
				return fmt.Errorf("%s holds %q", path, got)
			}
			return nil
		})
	}
	log := kubectl(t, "-n", driverNamespace, "logs", "-l", driverPods, "--tail=-1")
	for _, value := range []string{"canary", "rotated\"", "eyJ"} {
		if strings.Contains(log, value) {
			t.Errorf("the driver's log shows %q", value)
		}
	}
}
