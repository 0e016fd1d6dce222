package awstest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/csi-secrets/csi-secrets/test/cloud"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

const (
	west = "us-west-2"
	app  = "arn:aws:iam::123456789012:role/app"
)

var web = issuer.Account{Namespace: "shop", Name: "web", UID: "s1", Pod: "web-1", PodUID: "p1"}

// recorder keeps the body of the last answer.
type recorder struct {
	http.RoundTripper
	body []byte
}

func (r *recorder) RoundTrip(q *http.Request) (*http.Response, error) {
	response, err := r.RoundTripper.RoundTrip(q)
	if err == nil {
		r.body, err = io.ReadAll(response.Body)
		response.Body = io.NopCloser(bytes.NewReader(r.body))
	}
	return response, err
}

func setUp(t *testing.T) (*Cloud, *issuer.Issuer, *recorder) {
	t.Helper()
	n, i := cloud.New(t), issuer.New(t)
	c := New(t, n, i.Verifier(), west)
	c.AddRole(Role{ARN: app, Subjects: []string{web.Subject()}, Allow: Everything})
	transport := &http.Transport{DialContext: n.DialContext, TLSClientConfig: &tls.Config{RootCAs: n.Pool()}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return c, i, &recorder{RoundTripper: transport}
}

func (c *Cloud) signer(role string) aws.CredentialsProvider {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, key, token := c.open(role, "test")
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: id, SecretAccessKey: key, SessionToken: token}, nil
	})
}

func secrets(r http.RoundTripper, credentials aws.CredentialsProvider) *secretsmanager.Client {
	return secretsmanager.New(secretsmanager.Options{Region: west, HTTPClient: &http.Client{Transport: r}, Credentials: credentials, Retryer: aws.NopRetryer{}})
}

func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// seed makes the secret that an example's answer shows.
func (c *Cloud) seed(e map[string]any) {
	s := &secret{arn: text(e, "ARN"), tags: map[string]string{}, versions: map[string]*version{}}
	for _, key := range []string{"VersionIdsToStages", "SecretVersionsToStages"} {
		stages, _ := e[key].(map[string]any)
		for id, all := range stages {
			s.versions[id] = &version{text: "x"}
			for _, stage := range all.([]any) {
				s.versions[id].stages = append(s.versions[id].stages, stage.(string))
			}
		}
	}
	if id := text(e, "VersionId"); id != "" {
		s.versions[id] = &version{text: text(e, "SecretString"), stages: []string{e["VersionStages"].([]any)[0].(string)}}
	}
	c.regions[west].secrets[text(e, "Name")] = s
}

// same reports the members of got that are otherwise in want. What an example has
// beyond that is what the stand-in does not do.
func same(t *testing.T, at string, got, want any) {
	t.Helper()
	switch g := got.(type) {
	case map[string]any:
		w, _ := want.(map[string]any)
		for key, inner := range g {
			if key != "CreatedDate" {
				same(t, at+"."+key, inner, w[key])
			}
		}
	case []any:
		w, _ := want.([]any)
		if len(g) != len(w) {
			t.Errorf("%s: got %v, the example has %v", at, got, want)
			return
		}
		for i := range g {
			same(t, at, g[i], w[i])
		}
	default:
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, the example has %v", at, got, want)
		}
	}
}

func TestTheExamplesOfAWS(t *testing.T) {
	for operation, call := range map[string]func(*secretsmanager.Client, []byte) error{
		"GetSecretValue": func(client *secretsmanager.Client, in []byte) error {
			var input secretsmanager.GetSecretValueInput
			_ = json.Unmarshal(in, &input)
			input.VersionStage = aws.String("AWSPREVIOUS") // that of the example's answer, which its request leaves out
			_, err := client.GetSecretValue(t.Context(), &input)
			return err
		},
		"BatchGetSecretValue": func(client *secretsmanager.Client, in []byte) error {
			var input secretsmanager.BatchGetSecretValueInput
			_ = json.Unmarshal(in, &input)
			_, err := client.BatchGetSecretValue(t.Context(), &input)
			return err
		},
		"DescribeSecret": func(client *secretsmanager.Client, in []byte) error {
			var input secretsmanager.DescribeSecretInput
			_ = json.Unmarshal(in, &input)
			_, err := client.DescribeSecret(t.Context(), &input)
			return err
		},
		"ListSecrets": func(client *secretsmanager.Client, _ []byte) error {
			_, err := client.ListSecrets(t.Context(), &secretsmanager.ListSecretsInput{})
			return err
		},
	} {
		c, _, r := setUp(t)
		for _, e := range c.models["secretsmanager"].Examples[operation] {
			seeds := []any{e.Output}
			for _, key := range []string{"SecretValues", "SecretList"} {
				if all, ok := e.Output[key].([]any); ok {
					seeds = all
				}
			}
			for _, s := range seeds {
				c.seed(s.(map[string]any))
				if tags, ok := s.(map[string]any)["Tags"].([]any); ok { // they come sorted here
					tags[0], tags[1] = tags[1], tags[0]
					for _, tag := range tags {
						c.regions[west].secrets[text(s.(map[string]any), "Name")].tags[text(tag.(map[string]any), "Key")] = text(tag.(map[string]any), "Value")
					}
				}
			}
			in, err := json.Marshal(e.Input)
			if err != nil {
				t.Fatal(err)
			}
			if err := call(secrets(r, c.signer(app)), in); err != nil {
				t.Errorf("%s: %v", e.ID, err)
				continue
			}
			var got any
			if err := json.Unmarshal(r.body, &got); err != nil {
				t.Fatal(err)
			}
			same(t, operation, got, e.Output)
		}
	}
	m := loadModel("sts")
	e := m.Examples["AssumeRoleWithWebIdentity"][0]
	e.Input["DurationSeconds"], e.Output["PackedPolicySize"] = float64(3600), float64(123)
	if err := m.check("AssumeRoleWithWebIdentityRequest", e.Input, "the example"); err != nil {
		t.Error(err)
	}
}

func TestWhoHasNoSessionIsRefused(t *testing.T) {
	c, _, r := setUp(t)
	c.PutSecret(west, "db", "x")
	get := func(credentials aws.CredentialsProvider) error {
		_, err := secrets(r, credentials).GetSecretValue(t.Context(), &secretsmanager.GetSecretValueInput{SecretId: aws.String("db")})
		return err
	}
	forge := func(change func(*aws.Credentials)) aws.CredentialsProvider {
		good, _ := c.signer(app).Retrieve(t.Context())
		change(&good)
		return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return good, nil })
	}
	if err := get(c.signer(app)); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		credentials aws.CredentialsProvider
		want        string
	}{
		"another key":            {forge(func(a *aws.Credentials) { a.SecretAccessKey = "x" }), "InvalidSignatureException"},
		"another token":          {forge(func(a *aws.Credentials) { a.SessionToken = "x" }), "UnrecognizedClientException"},
		"another id":             {forge(func(a *aws.Credentials) { a.AccessKeyID = "ASIAXXXXXXXXXXXXXXXX" }), "UnrecognizedClientException"},
		"nothing":                {aws.AnonymousCredentials{}, "MissingAuthenticationTokenException"},
		"a role without a right": {c.signer("arn:aws:iam::123456789012:role/none"), "AccessDeniedException"},
	} {
		if err := get(test.credentials); code(err) != test.want {
			t.Errorf("%s: got %v", name, err)
		}
	}
	c.SetSkew(time.Hour)
	if err := get(c.signer(app)); code(err) != "InvalidSignatureException" {
		t.Errorf("a clock that is off: got %v", err)
	}
	c.SetSkew(0)
	old := c.signer(app)
	c.EndSessions()
	if err := get(old); code(err) != "ExpiredTokenException" {
		t.Errorf("a session that is over: got %v", err)
	}
}

func TestRolesAreForTheSubjectsThatTheyTrust(t *testing.T) {
	_, i, r := setUp(t)
	client := sts.New(sts.Options{Region: west, HTTPClient: &http.Client{Transport: r}, Retryer: aws.NopRetryer{}})
	assume := func(token string) error {
		_, err := client.AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{RoleArn: aws.String(app), RoleSessionName: aws.String("me"), WebIdentityToken: &token})
		return err
	}
	if err := assume(i.Token(web, "sts.amazonaws.com")); err != nil {
		t.Fatal(err)
	}
	other := web
	other.Name = "other"
	for want, token := range map[string]string{
		"InvalidIdentityToken":  i.Token(web, "vault"),
		"AccessDenied":          i.Token(other, "sts.amazonaws.com"),
		"ExpiredTokenException": i.TokenAt(time.Now().Add(-2*issuer.Lifetime), web, "sts.amazonaws.com"),
	} {
		if err := assume(token); code(err) != want {
			t.Errorf("%s: got %v", want, err)
		}
	}
	if err := assume(issuer.New(t).Token(web, "sts.amazonaws.com")); code(err) != "InvalidIdentityToken" {
		t.Errorf("another issuer: got %v", err)
	}
}

func TestTheModelDecidesWhatIsRight(t *testing.T) {
	m := loadModel("secretsmanager")
	many := make([]any, 21)
	for i := range many {
		many[i] = "x"
	}
	for name, in := range map[string]map[string]any{
		"too many": {"SecretIdList": many}, "none": {"SecretIdList": []any{}}, "no list": {"SecretIdList": "x"}, "unknown": {"SecretIDs": many[:1]},
		"a filter of no kind":   {"Filters": []any{map[string]any{"Key": "colour", "Values": []any{"x"}}}},
		"an impossible pattern": {"Filters": []any{map[string]any{"Key": "name", "Values": []any{"x*"}}}},
		"a page of nothing":     {"MaxResults": float64(0)},
	} {
		if m.check("BatchGetSecretValueRequest", in, "in") == nil {
			t.Errorf("%s is right", name)
		}
	}
	if m.check("GetSecretValueRequest", map[string]any{}, "in") == nil {
		t.Error("a request without SecretId is right")
	}
	if err := m.check("BatchGetSecretValueRequest", map[string]any{"SecretIdList": many[:20]}, "in"); err != nil {
		t.Error(err)
	}
}

func TestParametersByVersionLabelAndPage(t *testing.T) {
	c, _, r := setUp(t)
	for _, value := range []string{"one", "two"} {
		c.PutParameter(west, "/app/db", value)
	}
	c.PutParameter(west, "/app/web", "x")
	c.LabelParameter(west, "/app/db", 1, "stable")
	client := ssm.New(ssm.Options{Region: west, HTTPClient: &http.Client{Transport: r}, Credentials: c.signer(app)})
	out, err := client.GetParameters(t.Context(), &ssm.GetParametersInput{Names: []string{"/app/db", "/app/db:1", "/app/db:stable", ParameterARN(west, "/app/db"), "/app/db:9", "/none"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range out.Parameters {
		got = append(got, *p.Value+aws.ToString(p.Selector))
	}
	if strings.Join(got, " ") != "two one:1 one:stable two" || strings.Join(out.InvalidParameters, " ") != "/app/db:9 /none" {
		t.Errorf("got %v, without %v", got, out.InvalidParameters)
	}
	c.SetPage(1)
	pages := ssm.NewDescribeParametersPaginator(client, &ssm.DescribeParametersInput{})
	n := 0
	for ; pages.HasMorePages(); n++ {
		if _, err := pages.NextPage(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n != 2 {
		t.Errorf("there were %d pages", n)
	}
}
