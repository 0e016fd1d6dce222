package gcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"go.yaml.in/yaml/v3"
	"golang.org/x/oauth2"
	"google.golang.org/grpc/codes"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	"github.com/csi-secrets/csi-secrets/test/cloud"
	gcptest "github.com/csi-secrets/csi-secrets/test/gcp"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

const canary = "canary-value-of-a-secret"

const (
	accessor = "secretmanager.versions.access"
	viewer   = "secretmanager.versions.get"
	lister   = "secretmanager.secrets.list"
	renderer = "parametermanager.parameterVersions.render"
	project  = "projects/shop"
)

var web1 = issuer.Account{Namespace: "shop", Name: "web", UID: "s1", Pod: "web-1", PodUID: "p1"}

// world is a Google, a cluster whose pods it knows, and a Provider between them.
type world struct {
	testing.TB
	net    *cloud.Net
	google *gcptest.Google
	issuer *issuer.Issuer
	*Provider
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{TB: t, net: cloud.New(t), issuer: issuer.New(t)}
	w.google = gcptest.New(t, w.net, w.issuer.Verifier())
	config := Config{Roots: w.net.Pool(), DialContext: w.net.DialContext}
	for _, c := range change {
		c(&config)
	}
	var err error
	if w.Provider, err = New(config); err != nil {
		t.Fatal(err)
	}
	return w
}

// withRights is newWorld where the pods of web may do all.
func withRights(t testing.TB) *world {
	w := newWorld(t)
	w.google.Grant(gcptest.PodPrincipal("shop", "web"), project, accessor, viewer, lister, renderer)
	return w
}

// request is that of a volume of a pod. Parameters come in pairs, the first is
// the list of secrets.
func (w *world) request(of issuer.Account, list string, more ...string) provider.Request {
	req := provider.Request{
		Parameters: map[string]string{secretsKey: list}, Mode: provider.DefaultMode,
		Tokens:             map[string]provider.Token{gcptest.Pool: {Value: secret.FromString(w.issuer.Token(of, gcptest.Pool))}},
		Pod:                provider.Pod{Namespace: of.Namespace, Name: of.Pod, UID: of.PodUID, ServiceAccount: of.Name},
		AccountAnnotations: annotations(nil),
	}
	for i := 0; i < len(more); i += 2 {
		req.Parameters[more[i]] = more[i+1]
	}
	return req
}

func annotations(all map[string]string) func(context.Context) (map[string]string, error) {
	return func(context.Context) (map[string]string, error) { return all, nil }
}

func (w *world) fetch(req provider.Request) provider.Result {
	w.Helper()
	result, err := w.Fetch(w.Context(), req)
	if err != nil {
		w.Fatal(err)
	}
	return result
}

// refresh is req for a volume that holds result.
func refresh(req provider.Request, result provider.Result) provider.Request {
	req.Mounted = result.Versions
	req.Current = func(path string) (secret.Value, bool) {
		for _, f := range result.Files {
			if f.Path == path {
				return secret.New(bytes.Clone(f.Contents.Reveal())), true
			}
		}
		return secret.Value{}, false
	}
	return req
}

func (w *world) wantCalls(want string) {
	w.Helper()
	if got := w.google.Calls(); got != want {
		w.Errorf("the calls are %q, want %q", got, want)
	}
}

// shownResult is what a result holds.
func shownResult(r provider.Result) string {
	var b strings.Builder
	for _, f := range r.Files {
		fmt.Fprintf(&b, "%s %04o %q\n", f.Path, f.Mode, f.Contents.Reveal())
	}
	for _, v := range r.Versions {
		fmt.Fprintf(&b, "%s=%s\n", v.ID, v.Version)
	}
	return b.String()
}

func wantError(t testing.TB, err error, kind provider.Kind, words ...string) {
	t.Helper()
	if err == nil || provider.KindOf(err) != kind {
		t.Errorf("got %v of kind %v, want %v", err, provider.KindOf(err), kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\ndoes not say %q", err, w)
		}
	}
	for _, hidden := range []string{"canary", "Y2FuYXJ5", "eyJ", "ya29", "Bearer", "PRIVATE KEY"} {
		if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), hidden) {
			t.Errorf("%v\nshows a secret: %q", err, hidden)
		}
	}
}

func latest(name string) string {
	return fmt.Sprintf("- {resourceName: projects/shop/secrets/%s/versions/latest, path: %s}\n", name, name)
}

// many puts n secrets and returns a class that lists them.
func (w *world) many(n int) string {
	var list strings.Builder
	for i := range n {
		name := fmt.Sprintf("s%03d", i)
		w.google.Put(project+"/secrets/"+name, "value of "+name)
		list.WriteString(latest(name))
	}
	return list.String()
}

func TestClassesOfGooglesProvider(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			w := withRights(t)
			w.google.Put(project+"/secrets/testsecret", "first")
			w.google.Put(project+"/secrets/testsecret", `{"user":"admin"}`)
			w.google.Alias(project+"/secrets/testsecret", "stable", 1)
			w.google.Put(project+"/locations/us-central1/secrets/testsecret", `{"user":"regional"}`)
			w.google.Put(project+"/secrets/encoded", `{"data":"aGVsbG8gd29ybGQ="}`)
			w.google.Put(project+"/locations/us-central1/secrets/encoded", "aGVsbG8gd29ybGQ=")
			w.google.PutParameter(project+"/locations/europe-west1/parameters/app/versions/v1", "a: regional")
			w.google.PutParameter(project+"/locations/global/parameters/yaml/versions/v1", "db_pwd: '__REF__(//secretmanager.googleapis.com/projects/shop/secrets/testsecret/versions/latest)'")
			w.google.PutParameter(project+"/locations/global/parameters/json/versions/v1", `{"user":"admin"}`)
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var class struct{ Secrets, Want string }
			if err := yaml.Unmarshal(text, &class); err != nil {
				t.Fatal(err)
			}
			req := w.request(web1, class.Secrets)
			if problems := w.Validate(req.Parameters); problems != nil {
				t.Errorf("it is found wrong: %v", problems)
			}
			result := w.fetch(req)
			if got := shownResult(result); got != class.Want {
				t.Errorf("got\n%swant\n%s", got, class.Want)
			}
			// A refresh brings the same, or says so.
			if again := w.fetch(refresh(req, result)); !again.NotModified && shownResult(again) != class.Want {
				t.Errorf("a refresh got\n%s", shownResult(again))
			}
		})
	}
}

func TestCallsOfAMountAndOfRefreshes(t *testing.T) {
	for _, n := range []int{1, 20, 200} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := withRights(t)
			req := w.request(web1, w.many(n))
			result := w.fetch(req)
			w.wantCalls(fmt.Sprintf("metadata=3 sts=1 AccessSecretVersion=%d", n))
			w.fetch(req)
			w.wantCalls(fmt.Sprintf("AccessSecretVersion=%d", n))
			if !w.fetch(refresh(req, result)).NotModified {
				t.Error("it does not say that nothing moved")
			}
			w.wantCalls(fmt.Sprintf("GetSecretVersion=%d", n))

			w.google.Put(project+"/secrets/s000", "another")
			moved := w.fetch(refresh(req, result))
			w.wantCalls(fmt.Sprintf("GetSecretVersion=%d AccessSecretVersion=1", n))
			want := strings.NewReplacer("value of s000", "another", "s000/versions/1", "s000/versions/2").Replace(shownResult(result))
			if got := shownResult(moved); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			// What the volume has lost is read, moved or not.
			lost := moved
			lost.Files = moved.Files[1:]
			w.google.Put(project+fmt.Sprintf("/secrets/s%03d", n-1), "a third")
			if got := len(w.fetch(refresh(req, lost)).Files); got != n {
				t.Errorf("there are %d files, want %d", got, n)
			}
			w.wantCalls(fmt.Sprintf("GetSecretVersion=%d AccessSecretVersion=%d", n, min(n, 2)))

			// Google's own provider is permitted nothing but access.
			w.google.Revoke(gcptest.PodPrincipal("shop", "web"), project, viewer)
			w.fetch(refresh(req, moved))
			w.wantCalls(fmt.Sprintf("GetSecretVersion=1 AccessSecretVersion=%d", n))
			w.fetch(refresh(req, moved))
			w.wantCalls(fmt.Sprintf("AccessSecretVersion=%d", n))
		})
	}
}

func TestAThrottledRefreshReadsInstead(t *testing.T) {
	w := withRights(t)
	req := w.request(web1, w.many(3))
	result := w.fetch(req)
	w.google.Calls()
	w.google.Fail(gcptest.Get, 1, codes.ResourceExhausted, "Quota exceeded for quota metric 'Read requests'", 0)
	w.fetch(refresh(req, result))
	w.wantCalls("GetSecretVersion=1 AccessSecretVersion=3")
	w.fetch(refresh(req, result))
	w.wantCalls("AccessSecretVersion=3")
}

func TestAVersionThatIsDisabledIsNotKept(t *testing.T) {
	w := withRights(t)
	req := w.request(web1, w.many(2))
	result := w.fetch(req)
	w.google.SetState(project+"/secrets/s001", 1, secretmanagerpb.SecretVersion_DISABLED)
	_, err := w.Fetch(t.Context(), refresh(req, result))
	wantError(t, err, provider.NotFound, "s001", "is in DISABLED state")
}

func TestARefreshThatMayNotSeeSomeReadsThose(t *testing.T) {
	w := newWorld(t)
	who := gcptest.PodPrincipal("shop", "web")
	req := w.request(web1, w.many(3))
	w.google.Grant(who, project, accessor)
	w.google.Grant(who, project+"/secrets/s000", viewer)
	result := w.fetch(req)
	w.google.Calls()
	if got, want := shownResult(w.fetch(refresh(req, result))), shownResult(result); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	w.wantCalls("GetSecretVersion=3 AccessSecretVersion=2")
}

func TestOneExchangeForManyVolumesOfAnIdentity(t *testing.T) {
	w := withRights(t)
	w.google.SetDelay(5 * time.Millisecond)
	list := w.many(2)
	var all sync.WaitGroup
	for i := range 20 {
		of := web1
		of.Pod, of.PodUID = fmt.Sprint("web-", i), fmt.Sprint("p", i)
		all.Go(func() {
			if _, err := w.Fetch(t.Context(), w.request(of, list)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	w.wantCalls("metadata=3 sts=1 AccessSecretVersion=40")
}

// An identity that did not prove its right gets nothing that another was given.
func TestNoSessionIsShared(t *testing.T) {
	w := withRights(t)
	w.google.Put(project+"/secrets/db", canary)
	list := latest("db")
	w.fetch(w.request(web1, list))
	deniedTo := func(name string, req provider.Request, words ...string) {
		t.Helper()
		_, err := w.Fetch(t.Context(), req)
		t.Log(name)
		wantError(t, err, provider.Denied, words...)
	}
	other := web1
	other.Name, other.UID = "batch", "s2"
	deniedTo("another service account", w.request(other, list), `subject/ns/shop/sa/batch`, "grant it secretmanager.versions.access there, as with roles/secretmanager.secretAccessor")
	w.google.Calls()

	// One that was deleted and made again under the same name.
	again := web1
	again.UID = "s3"
	w.fetch(w.request(again, list))
	w.wantCalls("sts=1 AccessSecretVersion=1")

	// In a pool that is no cluster's own, pods of one service account may differ.
	audience := w.google.AddPool(w.issuer.Verifier(), "elsewhere")
	principal := "principal://iam.googleapis.com/projects/" + gcptest.ProjectNumber + "/locations/global/workloadIdentityPools/elsewhere/subject/system:serviceaccount:shop:web"
	w.google.Grant(principal, project, accessor)
	federated := func(of issuer.Account) provider.Request {
		req := w.request(of, list, providerKey, audience)
		req.Tokens[audience] = provider.Token{Value: secret.FromString(w.issuer.Token(of, audience))}
		return req
	}
	web2 := web1
	web2.Pod, web2.PodUID = "web-2", "p2"
	for _, of := range []issuer.Account{web1, web2} {
		w.fetch(federated(of))
		w.wantCalls("sts=1 AccessSecretVersion=1")
		w.fetch(federated(of))
		w.wantCalls("AccessSecretVersion=1")
	}
	deniedTo("another subject", federated(other), "elsewhere/subject/system:serviceaccount:shop:batch")

	// Another cluster of the same pool has other pods of that name.
	_, err := w.Fetch(t.Context(), w.request(web1, list, providerKey, gcptest.ClusterAudience+"-two"))
	wantError(t, err, provider.Invalid, "invalid_target")

	// Keys, and the node.
	w.google.AddAccount("key@shop.iam.gserviceaccount.com")
	w.google.Grant("serviceAccount:key@shop.iam.gserviceaccount.com", project, accessor)
	keyed := w.request(web1, list)
	keyed.Secrets = map[string]secret.Value{keyFile: secret.New(w.google.Key("key@shop.iam.gserviceaccount.com"))}
	w.fetch(keyed)
	w.google.AddAccount("other@shop.iam.gserviceaccount.com")
	keyed.Secrets = map[string]secret.Value{keyFile: secret.New(w.google.Key("other@shop.iam.gserviceaccount.com"))}
	deniedTo("another key", keyed, "asked as serviceAccount:other@shop.iam.gserviceaccount.com")
	deniedTo("the node", w.request(web1, list, authKey, authNode), "asked as the node's service account")
	if refused := w.net.Refused(); refused != nil {
		t.Errorf("it went to %v", refused)
	}
}

func TestAServiceAccountOfGooglesIsActedAs(t *testing.T) {
	w := newWorld(t)
	w.google.Put(project+"/secrets/db", canary)
	pod, via, app := gcptest.PodPrincipal("shop", "web"), "via@other.iam.gserviceaccount.com", "app@shop.iam.gserviceaccount.com"
	w.google.AddAccount(via, pod)
	w.google.AddAccount(app, "serviceAccount:"+via)
	w.google.Grant("serviceAccount:"+app, project, accessor)
	req := w.request(web1, latest("db"))

	req.AccountAnnotations = annotations(map[string]string{accountAnnotation: app})
	_, err := w.Fetch(t.Context(), req)
	wantError(t, err, provider.Denied, "get an access token of app@shop", "iam.serviceAccounts.getAccessToken", "asked as principal://", "roles/iam.workloadIdentityUser")
	w.wantCalls("metadata=3 sts=1 generateAccessToken=1")

	req.AccountAnnotations = annotations(map[string]string{accountAnnotation: app, delegatesAnnotation: `["` + via + `"]`})
	w.fetch(req)
	w.fetch(req)
	w.wantCalls("sts=1 generateAccessToken=1 AccessSecretVersion=2")

	// Without the annotation, the pod has its own rights again, and those are none.
	req.AccountAnnotations = annotations(nil)
	_, err = w.Fetch(t.Context(), req)
	wantError(t, err, provider.Denied, "has no annotation "+accountAnnotation)
	req.AccountAnnotations = nil
	_, err = w.Fetch(t.Context(), req)
	wantError(t, err, provider.Denied)

	for name, c := range map[string]struct {
		annotations map[string]string
		err         error
		kind        provider.Kind
		words       []string
	}{
		"no such account":    {map[string]string{accountAnnotation: "gone@shop.iam.gserviceaccount.com"}, nil, provider.Invalid, []string{"Gaia id not found", "create it, or correct the annotations"}},
		"no email":           {map[string]string{accountAnnotation: "a/../b?x=" + canary[:0]}, nil, provider.Invalid, []string{"is not the email of a service account"}},
		"delegates no JSON":  {map[string]string{accountAnnotation: app, delegatesAnnotation: via}, nil, provider.Invalid, []string{"is not a list in JSON"}},
		"delegates no names": {map[string]string{accountAnnotation: app, delegatesAnnotation: `["a b"]`}, nil, provider.Invalid, []string{`"a b" is not the email`}},
		"cannot be read":     {nil, &provider.Error{Kind: provider.Unavailable, Err: context.DeadlineExceeded}, provider.Unavailable, []string{"service account shop/web: read its annotations"}},
	} {
		t.Run(name, func(t *testing.T) {
			req := w.request(web1, latest("db"))
			req.AccountAnnotations = func(context.Context) (map[string]string, error) { return c.annotations, c.err }
			_, err := w.Fetch(t.Context(), req)
			wantError(t, err, c.kind, c.words...)
		})
	}
}

func TestTheNodesOwnIdentity(t *testing.T) {
	w := newWorld(t)
	w.google.Put(project+"/secrets/db", canary)
	w.google.Grant("serviceAccount:"+gcptest.NodeAccount, project, accessor)
	req := w.request(web1, latest("db"), authKey, authNode)
	req.Tokens = nil // it needs none
	w.fetch(req)
	w.wantCalls("metadata=1 AccessSecretVersion=1")
	w.fetch(req)
	w.wantCalls("AccessSecretVersion=1")

	none := newWorld(t, func(c *Config) { c.MetadataHost = "127.0.0.9" })
	_, err := none.Fetch(t.Context(), none.request(web1, latest("db"), authKey, authNode))
	wantError(t, err, provider.Unavailable, "give the node a service account, or the driver a credentials file")

	other := newWorld(t, func(c *Config) { c.MetadataHost = "captive.example.com" })
	other.net.HandlePlain("captive.example.com", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"access_token":"x"}`) }))
	_, err = other.Fetch(t.Context(), other.request(web1, latest("db"), authKey, authNode))
	wantError(t, err, provider.Unavailable, "what answers is not a metadata server")
}

func TestACredentialsFileOfTheNode(t *testing.T) {
	file := filepath.Join(t.TempDir(), "google.json")
	write := func(content any) {
		text, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := func(c *Config) { c.CredentialsFile = file }
	t.Run("an external account tells how pods log in", func(t *testing.T) {
		audience := "//iam.googleapis.com/projects/" + gcptest.ProjectNumber + "/locations/global/workloadIdentityPools/fleet/providers/kubernetes"
		token := filepath.Join(t.TempDir(), "token")
		write(map[string]any{"type": "external_account", "audience": audience, "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": "https://sts.googleapis.com/v1/token", "credential_source": map[string]string{"file": token}})
		w := newWorld(t, config)
		if got := w.google.AddPool(w.issuer.Verifier(), "fleet"); got != audience {
			t.Fatal(got)
		}
		w.google.Put(project+"/secrets/db", canary)
		subject := "principal://iam.googleapis.com/projects/" + gcptest.ProjectNumber + "/locations/global/workloadIdentityPools/fleet/subject/system:serviceaccount:"
		w.google.Grant(subject+"shop:web", project, accessor)
		w.google.Grant(subject+"kube-system:driver", project, accessor)
		req := w.request(web1, latest("db"))
		req.Tokens["https:"+audience] = provider.Token{Value: secret.FromString(w.issuer.Token(web1, "https:"+audience))}
		w.fetch(req)
		w.wantCalls("sts=1 AccessSecretVersion=1")

		// And the node itself, by the token that the file names.
		if err := os.WriteFile(token, []byte(w.issuer.Token(issuer.Account{Namespace: "kube-system", Name: "driver"}, audience)), 0o600); err != nil {
			t.Fatal(err)
		}
		w.fetch(w.request(web1, latest("db"), authKey, authNode))
		w.wantCalls("sts=1 AccessSecretVersion=1")
		if err := os.WriteFile(token, []byte("canary"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.google.RevokeTokens()
		_, err := w.Fetch(t.Context(), w.request(web1, latest("db"), authKey, authNode))
		wantError(t, err, provider.Unavailable, "log in to Google Cloud as the identity of the driver's credentials file")
	})
	for name, content := range map[string]any{"no type": map[string]string{"audience": "x"}, "an audience that is none": map[string]string{"type": "external_account", "audience": "x"}, "no JSON object": "x"} {
		write(content)
		if _, err := New(Config{CredentialsFile: file}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := New(Config{CredentialsFile: file + "x"}); err == nil {
		t.Error("a file that does not exist: taken")
	}
}

func TestTheKeyOfAServiceAccount(t *testing.T) {
	w := newWorld(t)
	const email = "key@shop.iam.gserviceaccount.com"
	w.google.AddAccount(email)
	w.google.Put(project+"/secrets/db", canary)
	w.google.Grant("serviceAccount:"+email, project, accessor)
	key := w.google.Key(email)
	with := func(text string, more ...string) provider.Request {
		req := w.request(web1, latest("db"), more...)
		req.Secrets = map[string]secret.Value{keyFile: secret.FromString(text)}
		return req
	}
	w.fetch(with(string(key)))
	w.wantCalls("AccessSecretVersion=1")
	for _, auth := range []string{authPod, authNode} {
		_, err := w.Fetch(t.Context(), with(string(key), authKey, auth))
		wantError(t, err, provider.Invalid, `parameter "auth"`, "remove one of them")
	}
	var broken map[string]string
	if err := json.Unmarshal(key, &broken); err != nil {
		t.Fatal(err)
	}
	broken["private_key"] = "canary-of-a-key"
	text, err := json.Marshal(broken)
	if err != nil {
		t.Fatal(err)
	}
	for content, word := range map[string]string{
		string(text): "its private key cannot be used", "canary": "it is not JSON", `{"type":"authorized_user","refresh_token":"canary"}`: "it is not the key of a service account",
		`{"type":"external_account","credential_source":{"file":"/etc/shadow"}}`:                                 "write its audience into workloadIdentityProvider",
		`{"type":"external_account","client_email":"a@b","credential_source":{"url":"http://169.254.169.254/"}}`: "it is not the key of a service account",
		`{"type":"impersonated_service_account"}`:                                                                "it is not the key", `{"type":"service_account"}`: "it is not the key",
	} {
		_, err := w.Fetch(t.Context(), with(content))
		wantError(t, err, provider.Invalid, "nodePublishSecretRef", word)
	}
	w.google.Disable(email)
	w.google.Calls()
	_, err = w.Fetch(t.Context(), with(string(key)))
	wantError(t, err, provider.Denied, "the access token is not accepted", "is the node's clock right, and has serviceAccount:"+email+" not been disabled")
	w.wantCalls("AccessSecretVersion=2")
	if refused := w.net.Refused(); refused != nil {
		t.Errorf("the key's file led it to %v", refused)
	}
}

func TestATokenThatIsNotAcceptedIsReplacedOnce(t *testing.T) {
	w := withRights(t)
	req := w.request(web1, w.many(3))
	result := w.fetch(req)
	w.google.Calls()
	w.google.RevokeTokens()
	w.fetch(req)
	if got := w.google.Calls(); !strings.HasPrefix(got, "sts=1 ") {
		t.Errorf("the calls are %s", got)
	}
	w.google.RevokeTokens()
	if !w.fetch(refresh(req, result)).NotModified {
		t.Error("a refresh reads all")
	}
	w.wantCalls("sts=1 GetSecretVersion=4")
	w.google.Fail(gcptest.Access, 100, codes.Unauthenticated, "no", 0)
	_, err := w.Fetch(t.Context(), req)
	wantError(t, err, provider.Denied, "the access token is not accepted", "UNAUTHENTICATED")
}

func TestTokensAreReplacedInTime(t *testing.T) {
	w := newWorld(t)
	w.google.SetTokenLife(40 * time.Minute)
	const app = "app@shop.iam.gserviceaccount.com"
	w.google.AddAccount(app, gcptest.PodPrincipal("shop", "web"))
	token := secret.FromString(w.issuer.Token(web1, gcptest.Pool))
	pod, err := w.exchange(t.Context(), gcptest.ClusterAudience, token, login.Claims{})
	if err != nil {
		t.Fatal(err)
	}
	acted, err := w.impersonate(t.Context(), pod.Value, account{email: app}, "")
	if err != nil {
		t.Fatal(err)
	}
	node, err := w.nodeToken(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	keyed, err := keyIdentity(secret.New(w.google.Key(app)), provider.Request{})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := keyed.login(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		got         login.Session[secret.Value]
		renew, ends time.Duration
	}{
		"exchanged": {pod, 30 * time.Minute, 40 * time.Minute}, "acted as": {acted, 45 * time.Minute, time.Hour},
		"of the node": {node, 30 * time.Minute, 40 * time.Minute}, "signed": {signed, 45 * time.Minute, time.Hour},
	} {
		if renew, ends := time.Until(c.got.Renew), time.Until(c.got.Ends); (c.renew-renew).Abs() > time.Minute || (c.ends-ends).Abs() > time.Minute || ends >= c.ends {
			t.Errorf("%s: it is replaced after %v, of use for %v", name, renew, ends)
		}
	}
}

func TestRefusalsOfSecretManager(t *testing.T) {
	const name = `resource "projects/shop/secrets/db/versions/latest": read it: `
	for what, c := range map[string]struct {
		change func(w *world)
		kind   provider.Kind
		words  []string
		wait   time.Duration
		code   string
	}{
		"no such secret": {func(w *world) { w.google.Remove(project + "/secrets/db") }, provider.NotFound, []string{name, "not found or has no versions", "correct resourceName, or create it"}, 0, "NOT_FOUND"},
		"no right": {func(w *world) { w.google.Revoke(gcptest.PodPrincipal("shop", "web"), project, accessor) }, provider.Denied,
			[]string{name, "Permission 'secretmanager.versions.access' denied", "/subject/ns/shop/sa/web (the service account has no annotation iam.gke.io/gcp-service-account)", "roles/secretmanager.secretAccessor"}, 0, "PERMISSION_DENIED"},
		"disabled":  {func(w *world) { w.google.SetState(project+"/secrets/db", 1, secretmanagerpb.SecretVersion_DISABLED) }, provider.NotFound, []string{name, "is in DISABLED state", "enable the version"}, 0, "FAILED_PRECONDITION"},
		"destroyed": {func(w *world) { w.google.SetState(project+"/secrets/db", 1, secretmanagerpb.SecretVersion_DESTROYED) }, provider.NotFound, []string{"is in DESTROYED state"}, 0, "FAILED_PRECONDITION"},
		"a key of CMEK": {func(w *world) {
			w.google.Fail(gcptest.Access, 1, codes.FailedPrecondition, "The customer-managed encryption key is not accessible.", 0)
		}, provider.Invalid, []string{"encryption key"}, 0, "FAILED_PRECONDITION"},
		"throttled": {func(w *world) { w.google.Fail(gcptest.Access, 9, codes.ResourceExhausted, "Quota exceeded", 0) }, provider.Throttled, []string{name, "Quota exceeded", "raise the project's quota"}, 0, "RESOURCE_EXHAUSTED"},
		"throttled, a wait": {func(w *world) {
			w.google.Fail(gcptest.Access, 9, codes.ResourceExhausted, "Quota exceeded", 7*time.Second)
		}, provider.Throttled, nil, 7 * time.Second, "RESOURCE_EXHAUSTED"},
		"a long wait": {func(w *world) {
			w.google.Fail(gcptest.Access, 9, codes.ResourceExhausted, "Quota exceeded", 100*time.Hour)
		}, provider.Throttled, nil, time.Hour, "RESOURCE_EXHAUSTED"},
		"an outage": {func(w *world) {
			w.google.Fail(gcptest.Access, 9, codes.Unavailable, "The service is currently unavailable.", 0)
		}, provider.Unavailable, []string{name, "currently unavailable"}, 0, "UNAVAILABLE"},
		"a fault":       {func(w *world) { w.google.Fail(gcptest.Access, 9, codes.Internal, "Internal error encountered.", 0) }, provider.Unavailable, []string{"Internal error"}, 0, "INTERNAL"},
		"damaged twice": {func(w *world) { w.google.Damage(2) }, provider.Unavailable, []string{name, "does not fit the checksum"}, 0, ""},
	} {
		t.Run(what, func(t *testing.T) {
			w := withRights(t)
			w.google.Put(project+"/secrets/db", canary)
			c.change(w)
			_, err := w.Fetch(t.Context(), w.request(web1, latest("db")))
			wantError(t, err, c.kind, c.words...)
			var e *provider.Error
			if !errors.As(err, &e) || e.RetryAfter != c.wait || e.Code != c.code {
				t.Errorf("it asks for %v with the code %q, want %v, %q", e.RetryAfter, e.Code, c.wait, c.code)
			}
			calls := w.google.Calls()
			if tries := map[bool]string{true: "=2", false: "=1"}[what == "an outage" || what == "damaged twice"]; !strings.HasSuffix(calls, "AccessSecretVersion"+tries) {
				t.Errorf("the calls are %s, want AccessSecretVersion%s", calls, tries)
			}
		})
	}
}

func TestOneTryMoreIsEnough(t *testing.T) {
	for what, change := range map[string]func(w *world){
		"a damaged value":              func(w *world) { w.google.Damage(1) },
		"an outage of Secret Manager":  func(w *world) { w.google.Fail(gcptest.Access, 1, codes.Unavailable, "no", 0) },
		"an outage of the STS":         func(w *world) { w.google.Fail(gcptest.Exchange, 1, codes.Unavailable, "no", 0) },
		"a broken connection":          func(w *world) { w.net.Cut("secretmanager.googleapis.com", 1) },
		"a broken connection, STS":     func(w *world) { w.net.Cut("sts.googleapis.com", 1) },
		"values that have no checksum": func(w *world) { w.google.WithoutChecksums() },
	} {
		t.Run(what, func(t *testing.T) {
			w := withRights(t)
			req := w.request(web1, w.many(1))
			change(w)
			w.fetch(req)
		})
	}
}

func TestBrokenConnectionsAreAnOutage(t *testing.T) {
	for _, host := range []string{"secretmanager.googleapis.com", "sts.googleapis.com"} {
		w := withRights(t)
		w.net.Cut(host, 100)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := w.Fetch(ctx, w.request(web1, w.many(2)))
		wantError(t, err, provider.Unavailable)
	}
}

func TestRefusalsAreToldTogether(t *testing.T) {
	w := withRights(t)
	list := w.many(20)
	for i := range 12 {
		w.google.Remove(fmt.Sprintf("%s/secrets/s%03d", project, i))
	}
	_, err := w.Fetch(t.Context(), w.request(web1, list))
	wantError(t, err, provider.NotFound, "s000", "s007", "and 4 more")
	w.google.Calls()
	w.google.Fail(gcptest.Access, 1, codes.ResourceExhausted, "Quota exceeded", 0)
	_, err = w.Fetch(t.Context(), w.request(web1, list))
	wantError(t, err, provider.Throttled)
}

func TestRefusalsOfTheTokenService(t *testing.T) {
	foreign := issuer.New(t)
	expired := time.Now().Add(-2 * issuer.Lifetime)
	for what, c := range map[string]struct {
		change func(w *world, req *provider.Request)
		kind   provider.Kind
		words  []string
	}{
		"a token of another cluster": {func(_ *world, r *provider.Request) { setToken(r, foreign.Token(web1, gcptest.Pool)) }, provider.Denied, []string{"exchange the pod's token", `"invalid_grant"`, `subject "system:serviceaccount:shop:web"`, "are the clocks right?"}},
		"a token that ended":         {func(w *world, r *provider.Request) { setToken(r, w.issuer.TokenAt(expired, web1, gcptest.Pool)) }, provider.Denied, []string{"expired"}},
		"a clock that is ahead": {func(w *world, r *provider.Request) {
			setToken(r, w.issuer.TokenAt(time.Now().Add(time.Hour), web1, gcptest.Pool))
		}, provider.Denied, []string{"invalid_grant"}},
		"another audience": {func(w *world, r *provider.Request) { setToken(r, w.issuer.Token(web1, "vault")) }, provider.Denied, []string{`audience "vault"`}},
		"no token":         {func(_ *world, r *provider.Request) { r.Tokens = nil }, provider.Denied, []string{"kubelet sent no token", gcptest.Pool}},
		"no token at all":  {func(_ *world, r *provider.Request) { setToken(r, "nonsense") }, provider.Denied, []string{"the pod's token cannot be read"}},
		"no pool":          {func(w *world, _ *provider.Request) { w.google.RemovePool(gcptest.ClusterAudience) }, provider.Invalid, []string{`"invalid_target"`, "disabled or deleted", "create or enable the workload identity pool"}},
		"throttled": {func(w *world, _ *provider.Request) {
			w.google.Fail(gcptest.Exchange, 9, codes.ResourceExhausted, "no", 0)
		}, provider.Throttled, []string{"429"}},
		"an outage":          {func(w *world, _ *provider.Request) { w.google.Fail(gcptest.Exchange, 9, codes.Unavailable, "no", 0) }, provider.Unavailable, []string{"503"}},
		"no metadata server": {func(w *world, _ *provider.Request) { w.google.Fail(gcptest.Metadata, 9, codes.NotFound, "no", 0) }, provider.Invalid, []string{"ask the metadata server for the GKE cluster", "where this is not GKE"}},
	} {
		t.Run(what, func(t *testing.T) {
			w := withRights(t)
			w.google.Put(project+"/secrets/db", canary)
			req := w.request(web1, latest("db"))
			c.change(w, &req)
			_, err := w.Fetch(t.Context(), req)
			wantError(t, err, c.kind, c.words...)
			if calls := w.google.Calls(); strings.Contains(calls, "AccessSecretVersion") {
				t.Errorf("it asked for the secret: %s", calls)
			}
		})
	}
	w := withRights(t)
	w.google.Fail(gcptest.Exchange, 1, codes.ResourceExhausted, "no", 9*time.Second)
	_, err := w.Fetch(t.Context(), w.request(web1, w.many(1)))
	var e *provider.Error
	if !errors.As(err, &e) || e.RetryAfter != 9*time.Second {
		t.Errorf("got %v", err)
	}
}

func TestWhatAnAnswerSaysOfARefusal(t *testing.T) {
	disabled := `{"error":{"code":403,"message":"Secret Manager API has not been used","status":"PERMISSION_DENIED","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"SERVICE_DISABLED","metadata":{"service":"secretmanager.googleapis.com"}},{"@type":"type.googleapis.com/unknown"}]}}`
	for what, c := range map[string]struct {
		status int
		header http.Header
		body   string
		kind   provider.Kind
		want   string
		wait   time.Duration
	}{
		"an API that is off":   {403, nil, disabled, provider.Denied, "op: PERMISSION_DENIED: Secret Manager API has not been used; enable the API: gcloud services enable secretmanager.googleapis.com", 0},
		"a wait in the header": {429, http.Header{"Retry-After": {"5"}}, "", provider.Throttled, "op: RESOURCE_EXHAUSTED: the answer is 429 Too Many Requests; raise the project's quota, or refresh less often", 5 * time.Second},
		"not of Google":        {502, nil, "<html>canary</html>", provider.Unavailable, "op: UNAVAILABLE: the answer is 502 Bad Gateway; does Google's status page tell of an outage, and does the node reach the host?", 0},
		"a redirect":           {302, nil, "", provider.Internal, "op: UNKNOWN: the answer is 302 Found", 0},
		"a proxy's password":   {503, nil, `{"error":{"message":"invalid proxy address http://me:canary@proxy"}}`, provider.Unavailable, "op: UNAVAILABLE: the proxy of the driver's environment does not lead there; does Google's status page tell of an outage, and does the node reach the host?", 0},
	} {
		e := failure("op", refusedBy(&http.Response{StatusCode: c.status, Header: c.header}, []byte(c.body)))
		if e.Kind != c.kind || e.Error() != c.want || e.RetryAfter != c.wait {
			t.Errorf("%s: got %v of kind %v, after %v", what, e, e.Kind, e.RetryAfter)
		}
	}
	quoting := &oauth2.RetrieveError{Response: &http.Response{StatusCode: 400}, ErrorCode: "invalid_grant", ErrorDescription: "cannot read eyJhbGciOiJub25lIn0.canary"}
	wantError(t, tokenFailure("op", fmt.Errorf("with text: %w", quoting)), provider.Denied, `op: "invalid_grant"; the pool's provider must know`)
	wantError(t, tokenFailure("op", errors.New("canary")), provider.Unavailable, "op: there is no answer with an access token")
}

func setToken(r *provider.Request, token string) {
	r.Tokens = map[string]provider.Token{gcptest.Pool: {Value: secret.FromString(token)}}
}

func TestTheClusterMayBeConfigured(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Project, c.ClusterLocation, c.ClusterName = "shop", "europe-west1", "main" })
	w.google.Grant(gcptest.PodPrincipal("shop", "web"), project, accessor)
	w.fetch(w.request(web1, w.many(1)))
	w.wantCalls("sts=1 AccessSecretVersion=1")
}

func TestEndpointsMayBeOthers(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Endpoints = map[string]string{"sts.googleapis.com": "sts-mine.p.googleapis.com", "secretmanager.googleapis.com": "secretmanager-mine.p.googleapis.com:443"}
	})
	_, err := w.Fetch(t.Context(), w.request(web1, latest("db")))
	wantError(t, err, provider.Unavailable, "the test has no host sts-mine.p.googleapis.com:443")
	other := newWorld(t, func(c *Config) { c.UniverseDomain = "example.org" })
	_, err = other.Fetch(t.Context(), other.request(web1, latest("db")))
	wantError(t, err, provider.Unavailable, "the test has no host sts.example.org:443")
}

func TestOptionsOfEveryObject(t *testing.T) {
	w := withRights(t)
	w.google.Put(project+"/secrets/doc", `{"db":{"user":"app"},"n":1}`)
	w.google.Put(project+"/secrets/hex", "00ff")
	w.google.Put(project+"/secrets/off", canary)
	w.google.SetState(project+"/secrets/off", 1, secretmanagerpb.SecretVersion_DISABLED)
	req := w.request(web1, `
- {resourceName: projects/shop/secrets/doc/versions/latest, path: user, extractJSONKey: /db/user, mode: "0400"}
- {resourceName: projects/shop/secrets/doc/versions/latest, path: none, extractJSONKey: none, optional: true}
- {resourceName: projects/shop/secrets/hex/versions/latest, path: hex, encoding: hex}
- {resourceName: projects/shop/secrets/absent/versions/latest, path: absent, optional: true}
- {resourceName: projects/shop/secrets/off/versions/latest, path: off, optional: true}
- {resourceName: projects/shop/locations/global/parameters/absent/versions/v1, path: parameter, optional: true}
`)
	const want = `user 0400 "app"
hex 0644 "\x00\xff"
projects/shop/secrets/doc/versions/latest=projects/123456789012/secrets/doc/versions/1
projects/shop/secrets/hex/versions/latest=projects/123456789012/secrets/hex/versions/1
`
	result := w.fetch(req)
	if got := shownResult(result); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	// What appears is mounted, what goes is removed.
	w.google.Put(project+"/secrets/absent", "here")
	w.google.Remove(project + "/secrets/hex")
	_, err := w.Fetch(t.Context(), refresh(req, result))
	wantError(t, err, provider.NotFound, "hex")
	w.google.Put(project+"/secrets/hex", "01")
	result = w.fetch(refresh(req, result))
	if got := shownResult(result); !strings.Contains(got, `absent 0644 "here"`) {
		t.Errorf("got\n%s", got)
	}
	w.google.Remove(project + "/secrets/absent")
	if got := shownResult(w.fetch(refresh(req, result))); strings.Contains(got, "absent") {
		t.Errorf("got\n%s", got)
	}
	_, err = w.Fetch(t.Context(), w.request(web1, "- {resourceName: projects/shop/secrets/doc/versions/latest, path: x, decodeBase64: true}"))
	wantError(t, err, provider.Invalid, "it is not base64")
}

func TestParametersAreRenderedAtEachRefresh(t *testing.T) {
	w := withRights(t)
	const name = project + "/locations/global/parameters/app/versions/v1"
	w.google.Put(project+"/secrets/db", canary)
	w.google.PutParameter(name, "password: __REF__(//secretmanager.googleapis.com/projects/shop/secrets/db/versions/latest)")
	req := w.request(web1, "- {resourceName: "+name+", path: app}\n"+latest("db"))
	result := w.fetch(req)
	w.wantCalls("metadata=3 sts=1 AccessSecretVersion=1 render=1")
	w.google.Put(project+"/secrets/db", "new")
	if got := shownResult(w.fetch(refresh(req, result))); !strings.Contains(got, `app 0644 "password: new"`) {
		t.Errorf("got\n%s", got)
	}
	w.wantCalls("GetSecretVersion=1 AccessSecretVersion=1 render=1")
	for what, c := range map[string]struct {
		code  codes.Code
		kind  provider.Kind
		words []string
		wait  time.Duration
	}{
		"throttled": {codes.ResourceExhausted, provider.Throttled, []string{"RESOURCE_EXHAUSTED: no"}, 3 * time.Second},
		"an outage": {codes.Unavailable, provider.Unavailable, []string{"UNAVAILABLE: no"}, 3 * time.Second},
		"disabled":  {codes.FailedPrecondition, provider.Invalid, []string{"FAILED_PRECONDITION: no"}, 3 * time.Second},
	} {
		w.google.Fail(gcptest.Render, 2, c.code, "no", c.wait)
		_, err := w.Fetch(t.Context(), req)
		wantError(t, err, c.kind, append(c.words, fmt.Sprintf("resource %q: render it", name))...)
		var e *provider.Error
		if !errors.As(err, &e) || e.RetryAfter != c.wait {
			t.Errorf("%s: got %v", what, err)
		}
		w.google.Fail(gcptest.Render, 0, codes.OK, "", 0)
	}
	w.google.Revoke(gcptest.PodPrincipal("shop", "web"), project, renderer)
	_, err := w.Fetch(t.Context(), req)
	wantError(t, err, provider.Denied, "roles/parametermanager.parameterAccessor")
	w.google.RevokeTokens()
	w.google.Grant(gcptest.PodPrincipal("shop", "web"), project, renderer)
	w.fetch(w.request(web1, "- {resourceName: "+name+", path: app}"))
}

func TestFind(t *testing.T) {
	w := withRights(t)
	for _, name := range []string{"prod-a", "prod-b", "prod-c", "test-prod-a", "other"} {
		w.google.Put(project+"/secrets/"+name, "value of "+name)
		w.google.Label(project+"/secrets/"+name, map[string]string{"team": "web"})
	}
	w.google.Label(project+"/secrets/prod-c", map[string]string{"team": "db"})
	w.google.Put(project+"/locations/us-central1/secrets/prod-r", "regional")
	w.google.SetPageSize(1)
	list := `
- {parent: projects/shop, find: {prefix: prod-, tags: {team: web}, trimPrefix: true}, path: found, mode: 0400}
- {parent: projects/shop/locations/us-central1, find: {pattern: "prod-."}}
- {parent: projects/shop, find: {prefix: nothing}, optional: true}
`
	req := w.request(web1, list)
	if problems := w.Validate(req.Parameters); problems != nil {
		t.Error(problems)
	}
	result := w.fetch(req)
	const want = `found/a 0400 "value of prod-a"
found/b 0400 "value of prod-b"
prod-r 0644 "regional"
projects/shop/secrets/prod-a/versions/latest=projects/123456789012/secrets/prod-a/versions/1
projects/shop/secrets/prod-b/versions/latest=projects/123456789012/secrets/prod-b/versions/1
projects/shop/locations/us-central1/secrets/prod-r/versions/latest=projects/123456789012/locations/us-central1/secrets/prod-r/versions/1
`
	if got := shownResult(result); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	// Google filters, by label and by any part of a name: of one secret a page,
	// there are three pages, one and none.
	w.wantCalls("metadata=3 sts=1 ListSecrets=5 AccessSecretVersion=3")
	if !w.fetch(refresh(req, result)).NotModified {
		t.Error("nothing moved, and it does not say so")
	}
	w.google.Put(project+"/secrets/prod-d", "new")
	w.google.Label(project+"/secrets/prod-d", map[string]string{"team": "web"})
	if got := shownResult(w.fetch(refresh(req, result))); !strings.Contains(got, `found/d 0400 "new"`) {
		t.Errorf("got\n%s", got)
	}
	w.google.Remove(project + "/secrets/prod-d")
	w.google.Remove(project + "/secrets/prod-b")
	if got := shownResult(w.fetch(refresh(req, result))); strings.Contains(got, "found/b") || !strings.Contains(got, "found/a") {
		t.Errorf("got\n%s", got)
	}
	for list, c := range map[string]struct {
		kind  provider.Kind
		words string
	}{
		"- {parent: projects/shop, find: {prefix: nothing}}":                                   {provider.NotFound, "there is no such object"},
		"- {parent: projects/shop, find: {prefix: prod, limit: 1}}":                            {provider.TooLarge, "more than 1 such objects"},
		"- {parent: projects/other, find: {prefix: prod}}":                                     {provider.Denied, "secretmanager.secrets.list there, as with roles/secretmanager.viewer"},
		"- {parent: projects/shop, find: {prefix: prod-a, trimPrefix: true}}":                  {provider.Invalid, "a file path must not be empty"},
		"- {parent: projects/shop, find: {prefix: prod-a}}\n" + latest("prod-a"):               {provider.Invalid, "two objects have the same file path"},
		"- {parent: projects/shop, find: {prefix: 'prod\"-'}}":                                 {provider.NotFound, "there is no such object"},
		"- {parent: projects/shop, find: {prefix: prod, tags: {team: 'a\" OR name:\"other'}}}": {provider.NotFound, "there is no such object"},
	} {
		_, err := w.Fetch(t.Context(), w.request(web1, list))
		wantError(t, err, c.kind, c.words)
	}
}

func TestManyHostsDoNotPileUp(t *testing.T) {
	c := newNetwork(Config{})
	for i := range maxConns {
		if _, err := c.conn(fmt.Sprintf("h%d.example.com", i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, known := range c.conns {
		known.used = known.used.Add(-2 * connKept)
	}
	if _, err := c.conn("another.example.com"); err != nil {
		t.Fatal(err)
	}
	if len(c.conns) != maxConns {
		t.Errorf("there are %d", len(c.conns))
	}
	for known := range maps.Values(c.conns) {
		known.Close()
	}
}

// BenchmarkMount is 20 secrets at 50 ms a call, with both steps of the login.
func BenchmarkMount(b *testing.B) {
	w := newWorld(b)
	const app = "app@shop.iam.gserviceaccount.com"
	w.google.AddAccount(app, gcptest.PodPrincipal("shop", "web"))
	w.google.Grant("serviceAccount:"+app, project, accessor)
	list := w.many(20)
	i := 0
	pod := func() provider.Request {
		i++
		of := web1
		of.UID = fmt.Sprint("account ", i) // nobody's session serves it
		req := w.request(of, list)
		req.AccountAnnotations = annotations(map[string]string{accountAnnotation: app})
		return req
	}
	w.fetch(pod())
	w.google.SetDelay(50 * time.Millisecond)
	for b.Loop() {
		w.fetch(pod())
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/mount")
}
