package gcptest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/csi-secrets/csi-secrets/test/cloud"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

var web = issuer.Account{Namespace: "shop", Name: "web", UID: "s1"}

type world struct {
	*testing.T
	*Google
	issuer *issuer.Issuer
	net    *cloud.Net
	client *http.Client
}

func newWorld(t *testing.T) *world {
	n, i := cloud.New(t), issuer.New(t)
	return &world{t, New(t, n, i.Verifier()), i, n, &http.Client{Transport: &http.Transport{DialContext: n.DialContext, TLSClientConfig: &tls.Config{RootCAs: n.Pool()}, ForceAttemptHTTP2: true}}}
}

// exchangeForm is the request of the reference
// (https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token), some
// fields in pairs changed.
func exchangeForm(token string, changed ...string) url.Values {
	form := url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}, "scope": {cloudScope}, "audience": {ClusterAudience}, "subject_token": {token},
	}
	for i := 0; i < len(changed); i += 2 {
		form.Set(changed[i], changed[i+1])
	}
	return form
}

// ask returns the status and the JSON of an answer.
func (w *world) ask(r *http.Request) (int, map[string]any) {
	w.Helper()
	answer, err := w.client.Do(r)
	if err != nil {
		w.Fatal(err)
	}
	defer answer.Body.Close()
	var body map[string]any
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
		w.Fatal(err)
	}
	return answer.StatusCode, body
}

func (w *world) exchanged(form url.Values) (int, map[string]any) {
	w.Helper()
	r, err := http.NewRequest(http.MethodPost, "https://sts.googleapis.com/v1/token", strings.NewReader(form.Encode()))
	if err != nil {
		w.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return w.ask(r)
}

// token returns an access token of a pod.
func (w *world) token(a issuer.Account) string {
	w.Helper()
	code, body := w.exchanged(exchangeForm(w.issuer.Token(a, Pool)))
	if code != http.StatusOK {
		w.Fatal(code, body)
	}
	return body["access_token"].(string)
}

func TestOnlyPodsTokensForThePoolAreExchanged(t *testing.T) {
	w := newWorld(t)
	code, body := w.exchanged(exchangeForm(w.issuer.Token(web, Pool)))
	if code != 200 || body["token_type"] != "Bearer" || body["expires_in"] != 3600.0 || body["issued_token_type"] != "urn:ietf:params:oauth:token-type:access_token" {
		t.Errorf("got %d %v", code, body)
	}
	good := w.issuer.Token(web, Pool)
	for what, c := range map[string]struct {
		form url.Values
		want string
	}{
		"another audience of the token":    {exchangeForm(w.issuer.Token(web, "vault")), "invalid_grant"},
		"a token that ended":               {exchangeForm(w.issuer.TokenAt(time.Now().Add(-2*issuer.Lifetime), web, Pool)), "invalid_grant"},
		"a token of another issuer":        {exchangeForm(issuer.New(t).Token(web, Pool)), "invalid_grant"},
		"no token":                         {exchangeForm("x"), "invalid_grant"},
		"another audience of the exchange": {exchangeForm(good, "audience", "//iam.googleapis.com/x"), "invalid_target"},
		"another grant":                    {exchangeForm(good, "grant_type", "client_credentials"), "invalid_request"},
		"another scope":                    {exchangeForm(good, "scope", ""), "invalid_request"},
	} {
		if code, body := w.exchanged(c.form); code != 400 || body["error"] != c.want || body["error_description"] == "" {
			t.Errorf("%s: got %d %v, want %s", what, code, body, c.want)
		}
	}
}

// generate asks for the access token of a service account.
func (w *world) generate(bearer, email, body string) (int, map[string]any) {
	r, err := http.NewRequest(http.MethodPost, "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"+email+":generateAccessToken", bytes.NewReader([]byte(body)))
	if err != nil {
		w.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+bearer)
	return w.ask(r)
}

func TestOnlyMembersActAsAServiceAccount(t *testing.T) {
	w := newWorld(t)
	const app, via = "app@shop.iam.gserviceaccount.com", "via@shop.iam.gserviceaccount.com"
	w.AddAccount(via, PodPrincipal("shop", "web"))
	w.AddAccount(app, "serviceAccount:"+via)
	pod := w.token(web)
	const scope = `"scope":["https://www.googleapis.com/auth/cloud-platform"]`
	for what, c := range map[string]struct {
		bearer, email, body string
		code                int
		status              string
	}{
		"a member":              {pod, via, `{` + scope + `,"lifetime":"300s"}`, 200, ""},
		"by a delegate":         {pod, app, `{` + scope + `,"delegates":["projects/-/serviceAccounts/` + via + `"]}`, 200, ""},
		"without the delegate":  {pod, app, `{` + scope + `}`, 403, "PERMISSION_DENIED"},
		"another pod":           {w.token(issuer.Account{Namespace: "shop", Name: "batch"}), via, `{` + scope + `}`, 403, "PERMISSION_DENIED"},
		"no such account":       {pod, "gone@x.iam.gserviceaccount.com", `{` + scope + `}`, 404, "NOT_FOUND"},
		"no access token":       {"x", via, `{` + scope + `}`, 401, "UNAUTHENTICATED"},
		"a life that is longer": {pod, via, `{` + scope + `,"lifetime":"43200s"}`, 400, "INVALID_ARGUMENT"},
		"no scope":              {pod, via, `{}`, 400, "INVALID_ARGUMENT"},
	} {
		code, body := w.generate(c.bearer, c.email, c.body)
		if code != c.code {
			t.Errorf("%s: got %d %v, want %d", what, code, body, c.code)
		}
		if of, ok := body["error"].(map[string]any); ok && of["status"] != c.status {
			t.Errorf("%s: got %v, want %s", what, body, c.status)
		}
		if c.code == 200 {
			if _, err := time.Parse(time.RFC3339, body["expireTime"].(string)); err != nil || body["accessToken"] == "" {
				t.Errorf("%s: got %v", what, body)
			}
		}
	}
}

// secretManager returns Google's own client for a host, and the context of calls
// about a resource.
func (w *world) secretManager(host, bearer, field, name string) (secretmanagerpb.SecretManagerServiceClient, context.Context) {
	conn, err := grpc.NewClient("passthrough:///"+host+":443", grpc.WithContextDialer(w.dial), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: w.net.Pool()})))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { conn.Close() })
	return secretmanagerpb.NewSecretManagerServiceClient(conn), metadata.AppendToOutgoingContext(w.T.Context(), "authorization", "Bearer "+bearer, "x-goog-request-params", field+"="+url.QueryEscape(name))
}

func TestSecretManagerAnswersThoseWhoMayAsk(t *testing.T) {
	w := newWorld(t)
	const secret, regional = "projects/shop/secrets/db", "projects/shop/locations/us-central1/secrets/db"
	w.Put(secret, "one")
	w.Put(secret, "two")
	w.Put(secret, "three")
	w.SetState(secret, 3, secretmanagerpb.SecretVersion_DESTROYED)
	w.Alias(secret, "stable", 2)
	w.Put(regional, "regional")
	w.Grant(PodPrincipal("shop", "web"), "projects/shop", "secretmanager.versions.access", "secretmanager.versions.get")
	pod, batch := w.token(web), w.token(issuer.Account{Namespace: "shop", Name: "batch"})
	const global, central = "secretmanager.googleapis.com", "secretmanager.us-central1.rep.googleapis.com"
	for what, c := range map[string]struct {
		host, bearer, name string
		code               codes.Code
		value, version     string
	}{
		"a version":                  {global, pod, secret + "/versions/1", codes.OK, "one", "projects/" + ProjectNumber + "/secrets/db/versions/1"},
		"an alias":                   {global, pod, secret + "/versions/stable", codes.OK, "two", "projects/" + ProjectNumber + "/secrets/db/versions/2"},
		"the latest, destroyed":      {global, pod, secret + "/versions/latest", codes.FailedPrecondition, "", ""},
		"no such version":            {global, pod, secret + "/versions/9", codes.NotFound, "", ""},
		"no such secret":             {global, pod, secret + "x/versions/1", codes.NotFound, "", ""},
		"no version":                 {global, pod, secret, codes.InvalidArgument, "", ""},
		"regional":                   {central, pod, regional + "/versions/latest", codes.OK, "regional", "projects/" + ProjectNumber + "/locations/us-central1/secrets/db/versions/1"},
		"regional, the global host":  {global, pod, regional + "/versions/latest", codes.InvalidArgument, "", ""},
		"somebody without the right": {global, batch, secret + "/versions/1", codes.PermissionDenied, "", ""},
		"nobody":                     {global, "x", secret + "/versions/1", codes.Unauthenticated, "", ""},
	} {
		client, ctx := w.secretManager(c.host, c.bearer, "name", c.name)
		answer, err := client.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: c.name})
		if status.Code(err) != c.code || string(answer.GetPayload().GetData()) != c.value || answer.GetName() != c.version {
			t.Errorf("%s: got %v, %v", what, answer, err)
		}
	}
	client, ctx := w.secretManager(global, pod, "name", secret+"/versions/latest")
	seen, err := client.GetSecretVersion(ctx, &secretmanagerpb.GetSecretVersionRequest{Name: secret + "/versions/latest"})
	if err != nil || seen.GetState() != secretmanagerpb.SecretVersion_DESTROYED || !strings.HasSuffix(seen.GetName(), "/versions/3") {
		t.Errorf("got %v, %v", seen, err)
	}
	w.SetTokenLife(-time.Second)
	client, ctx = w.secretManager(global, w.token(web), "name", secret+"/versions/1")
	if _, err := client.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: secret + "/versions/1"}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("an access token that ended: got %v", err)
	}
}

func (w *world) dial(ctx context.Context, address string) (net.Conn, error) {
	return w.net.DialContext(ctx, "tcp", address)
}

func TestListsHavePagesAndFilters(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a", "prod-b", "c", "prod-d"} {
		w.Put("projects/shop/secrets/"+name, "x")
	}
	w.Label("projects/shop/secrets/prod-d", map[string]string{"team": "web"})
	w.Put("projects/other/secrets/e", "x")
	w.Grant(PodPrincipal("shop", "web"), "projects/shop", "secretmanager.secrets.list")
	w.SetPageSize(3)
	client, ctx := w.secretManager("secretmanager.googleapis.com", w.token(web), "parent", "projects/shop")
	for filter, want := range map[string]string{"": "a c prod-b | prod-d", `name:"prod-"`: "prod-b prod-d", `name:"prod-" AND labels.team="web"`: "prod-d", `labels.team="db"`: ""} {
		request := &secretmanagerpb.ListSecretsRequest{Parent: "projects/shop", Filter: filter, PageSize: 1000}
		got := ""
		for {
			page, err := client.ListSecrets(ctx, request)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range page.GetSecrets() {
				got += " " + s.GetName()[strings.LastIndexByte(s.GetName(), '/')+1:]
			}
			if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
				break
			}
			got += " |"
		}
		if strings.TrimSpace(got) != want {
			t.Errorf("%s: got %s, want %s", filter, got, want)
		}
	}
	if _, err := client.ListSecrets(ctx, &secretmanagerpb.ListSecretsRequest{Parent: "projects/shop", Filter: `name~"x"`}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a filter that it cannot read: got %v", err)
	}
}

func TestTheMetadataServerAnswersThoseWhoKnowIt(t *testing.T) {
	w := newWorld(t)
	for header, want := range map[string]int{"Google": 200, "": 403} {
		r, err := http.NewRequest(http.MethodGet, "http://169.254.169.254/computeMetadata/v1/project/project-id", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Metadata-Flavor", header)
		answer, err := w.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want || answer.Header.Get("Metadata-Flavor") != "Google" {
			t.Errorf("%q: got %d", header, answer.StatusCode)
		}
	}
	if got := w.Calls(); got != "metadata=2" {
		t.Errorf("it counts %s", got)
	}
}
