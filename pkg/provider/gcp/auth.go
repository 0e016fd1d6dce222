package gcp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/oauth2/google"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// cloudScope is what access tokens are for; IAM decides the rest.
const cloudScope = "https://www.googleapis.com/auth/cloud-platform"

// keyFile is the key of a nodePublishSecretRef that holds a service account's key.
const keyFile = "key.json"

// The annotations of a pod's service account that name a service account of
// Google's to act as, and others through which it may.
const (
	accountAnnotation   = "iam.gke.io/gcp-service-account"
	delegatesAnnotation = "iam.gke.io/gcp-service-account-delegates"
)

// accountTokenLife is that of the access token of a service account.
const accountTokenLife = time.Hour

// identity is who asks Google.
type identity struct {
	key   string // of its session: nobody else has the same
	name  string // as IAM and errors call it
	login login.Login[secret.Value]
}

// session is that of an access token that ends a time after it was asked for.
func session(token string, began time.Time, life time.Duration) login.Session[secret.Value] {
	return login.Session[secret.Value]{Value: secret.FromString(token), Renew: began.Add(life * 3 / 4), Ends: began.Add(life - min(life/10, 10*time.Second))}
}

// identify returns who asks for the volume's secrets.
func (p *Provider) identify(ctx context.Context, c *class, req provider.Request) (*identity, error) {
	key, hasKey := req.Secrets[keyFile]
	switch {
	case hasKey && c.auth != "":
		return nil, &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("parameter %q", authKey), Err: fmt.Errorf("it is %s, and the volume's nodePublishSecretRef has a %s", c.auth, keyFile), Remedy: "remove one of them"}
	case hasKey:
		return keyIdentity(key, req)
	case c.auth == authNode:
		return p.nodeIdentity(), nil
	}
	return p.podIdentity(ctx, c, req)
}

// podIdentity is the pod's own: its token is exchanged for one of Google's, and
// that for one of a service account of Google's if the pod's names one.
func (p *Provider) podIdentity(ctx context.Context, c *class, req provider.Request) (*identity, error) {
	audience := cmp.Or(c.audience, p.node.audience)
	if audience == "" {
		var err error
		if audience, err = p.clusters.Get(ctx, "", p.clusterAudience); err != nil {
			return nil, err
		}
	}
	token, err := login.Token(req, "Google Cloud", tokenAudiences(audience)...)
	if err != nil {
		return nil, err
	}
	claims, err := login.Read(token.Value)
	if err != nil {
		return nil, &provider.Error{Kind: provider.Denied, Op: "log in to Google Cloud", Err: fmt.Errorf("the pod's token cannot be read: %w", err)}
	}
	account, err := accountOf(ctx, req)
	if err != nil {
		return nil, err
	}
	principal, holder := principalOf(audience, claims)
	exchange := func(ctx context.Context, _ *login.Session[secret.Value]) (login.Session[secret.Value], error) {
		return p.exchange(ctx, audience, token.Value, claims)
	}
	if account.email == "" {
		why := "the service account has no annotation " + accountAnnotation
		if req.AccountAnnotations == nil {
			why = "annotations of service accounts are not read here"
		}
		return &identity{login.Key(authPod, audience, holder), fmt.Sprintf("%s (%s)", principal, why), exchange}, nil
	}
	key := login.Key(append([]string{authPod, audience, holder, account.email}, account.delegates...)...)
	return &identity{key, "serviceAccount:" + account.email, func(ctx context.Context, _ *login.Session[secret.Value]) (login.Session[secret.Value], error) {
		pod, err := exchange(ctx, nil)
		if err != nil {
			return pod, err
		}
		defer pod.Value.Clear()
		return p.impersonate(ctx, pod.Value, account, principal)
	}}, nil
}

// principalOf returns what IAM calls the holder of a pod's token, and all of its
// claims that may decide about the exchange: a cluster's own pool looks at the
// service account alone, the mapping and the condition of another at all that the
// token says.
func principalOf(audience string, claims login.Claims) (principal, holder string) {
	if pool, _, ok := strings.Cut(audience, "/providers/"); ok && federated.MatchString(audience) {
		return "principal:" + pool + "/subject/" + claims.Subject, claims.Identity()
	}
	pool := tokenAudiences(audience)[0]
	return fmt.Sprintf("principal://iam.%s/projects/NUMBER/locations/global/workloadIdentityPools/%s/subject/ns/%s/sa/%s", googleAPIs, pool, claims.Namespace, claims.ServiceAccount), claims.Account()
}

// account is a service account of Google's; its email is empty for none.
type account struct {
	email     string
	delegates []string
}

// accountName is an email, or the number that Google gives an account.
var accountName = regexp.MustCompile(`^[A-Za-z0-9._-]+(@[A-Za-z0-9.-]+)?$`)

// accountOf returns the service account that the pod's own names in its
// annotations.
func accountOf(ctx context.Context, req provider.Request) (account, error) {
	if req.AccountAnnotations == nil {
		return account{}, nil
	}
	failure := &provider.Error{Object: fmt.Sprintf("service account %s/%s", req.Pod.Namespace, req.Pod.ServiceAccount), Op: "read its annotations"}
	annotations, err := req.AccountAnnotations(ctx)
	if err != nil {
		failure.Kind, failure.Err, failure.Remedy = provider.KindOf(err), err, "may csi-secrets get service accounts?"
		return account{}, failure
	}
	found := account{email: strings.TrimSpace(annotations[accountAnnotation])}
	if found.email == "" {
		return account{}, nil
	}
	if text := annotations[delegatesAnnotation]; text != "" && json.Unmarshal([]byte(text), &found.delegates) != nil {
		failure.Kind, failure.Err, failure.Remedy = provider.Invalid, fmt.Errorf("%s is not a list in JSON", delegatesAnnotation), `write it as in ["NAME@PROJECT.iam.gserviceaccount.com"]`
		return account{}, failure
	}
	for _, email := range append([]string{found.email}, found.delegates...) {
		if !accountName.MatchString(email) {
			failure.Kind, failure.Err, failure.Remedy = provider.Invalid, fmt.Errorf("%.100q is not the email of a service account", email), "correct "+accountAnnotation+" or "+delegatesAnnotation
			return account{}, failure
		}
	}
	return found, nil
}

// exchange exchanges the pod's token for one of Google's (RFC 8693,
// https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token).
func (p *Provider) exchange(ctx context.Context, audience string, token secret.Value, claims login.Claims) (login.Session[secret.Value], error) {
	// It is the same request as that of client credentials, but for its parameters.
	config := clientcredentials.Config{
		TokenURL: "https://" + p.network.host("sts", "") + "/v1/token", AuthStyle: oauth2.AuthStyleInParams, Scopes: []string{cloudScope},
		EndpointParams: url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "audience": {audience},
			"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
			"subject_token_type":   {"urn:ietf:params:oauth:token-type:jwt"}, "subject_token": {string(token.Reveal())},
		},
	}
	began := time.Now()
	got, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, p.network.web))
	if err != nil {
		e := tokenFailure("exchange the pod's token at Google's Security Token Service", err)
		if e.Kind == provider.Denied || e.Kind == provider.Invalid {
			e.Err = fmt.Errorf("%w, for the audience %q and the pod's token (%s)", e.Err, audience, claims)
		}
		return login.Session[secret.Value]{}, e
	}
	return session(got.AccessToken, began, lifeOf(got, began)), nil
}

// lifeOf returns how long a token is valid, as its answer says.
func lifeOf(token *oauth2.Token, began time.Time) time.Duration {
	if token.Expiry.IsZero() {
		return 5 * time.Minute
	}
	return token.Expiry.Sub(began)
}

var tokenRemedies = map[string]string{
	"invalid_grant":       "the pool's provider must know the issuer of the cluster's tokens and its keys, and take the audience; are the clocks right?",
	"invalid_target":      "create or enable the workload identity pool and its provider, or correct " + providerKey,
	"invalid_request":     "correct " + providerKey,
	"unauthorized_client": "the attribute condition of the pool's provider does not let the pod in",
}

// tokenFailure makes an error of what an OAuth 2 library returned. Its text is
// not used: it may be an answer.
func tokenFailure(op string, err error) *provider.Error {
	var answer *oauth2.RetrieveError
	if !errors.As(err, &answer) || answer.Response == nil {
		e := &provider.Error{Kind: provider.Unavailable, Op: op, Err: errors.New("there is no answer with an access token"), Remedy: kindRemedies[provider.Unavailable]}
		var located *url.Error
		if errors.As(err, &located) {
			e.Err = located.Err
		}
		return e
	}
	e := &provider.Error{Kind: provider.Denied, Op: op, Code: answer.ErrorCode, Err: fmt.Errorf("the answer is %d %s", answer.Response.StatusCode, http.StatusText(answer.Response.StatusCode)), RetryAfter: web.RetryAfter(answer.Response.Header)}
	switch status := answer.Response.StatusCode; {
	case status == http.StatusTooManyRequests:
		e.Kind, e.Remedy = provider.Throttled, kindRemedies[provider.Throttled]
	case status >= http.StatusInternalServerError:
		e.Kind, e.Remedy = provider.Unavailable, kindRemedies[provider.Unavailable]
	case e.Code != "":
		e.Err, e.Remedy = fmt.Errorf("%.40q", e.Code), tokenRemedies[e.Code]
		// What begins so is a token.
		if answer.ErrorDescription != "" && !strings.Contains(answer.ErrorDescription, "eyJ") {
			e.Err = fmt.Errorf("%w: %s", e.Err, shown(answer.ErrorDescription))
		}
		if e.Code == "invalid_target" || e.Code == "invalid_request" {
			e.Kind = provider.Invalid
		}
	}
	return e
}

// impersonate returns an access token of a service account, for one of somebody
// who may act as it
// (https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken).
func (p *Provider) impersonate(ctx context.Context, token secret.Value, as account, who string) (login.Session[secret.Value], error) {
	var none login.Session[secret.Value]
	const accounts = "projects/-/serviceAccounts/"
	request := struct {
		Scope     []string `json:"scope"`
		Delegates []string `json:"delegates,omitempty"`
		Lifetime  string   `json:"lifetime"`
	}{Scope: []string{cloudScope}, Lifetime: fmt.Sprintf("%.0fs", accountTokenLife.Seconds())}
	for _, email := range as.delegates {
		request.Delegates = append(request.Delegates, accounts+email)
	}
	body, err := json.Marshal(request)
	if err != nil {
		return none, err
	}
	op := "get an access token of " + as.email
	began := time.Now()
	text, _, err := call(ctx, p.network.web, http.MethodPost, "https://"+p.network.host("iamcredentials", "")+"/v1/"+accounts+as.email+":generateAccessToken",
		http.Header{"Authorization": {bearer(token)}, "Content-Type": {"application/json"}}, body)
	if err != nil {
		e := failure(op, err)
		switch e.Kind {
		case provider.NotFound, provider.Invalid:
			e.Kind, e.Remedy = provider.Invalid, "create it, or correct the annotations "+accountAnnotation+" and "+delegatesAnnotation
		case provider.Denied:
			e.Err = fmt.Errorf("%w (asked as %s)", e.Err, who)
			e.Remedy = cmp.Or(e.Remedy, "grant it roles/iam.workloadIdentityUser on that service account, and each delegate roles/iam.serviceAccountTokenCreator on the next")
		}
		return none, e
	}
	defer clear(text)
	var answer struct {
		AccessToken string `json:"accessToken"`
	}
	if json.Unmarshal(text, &answer) != nil || answer.AccessToken == "" {
		return none, &provider.Error{Kind: provider.Internal, Op: op, Err: errors.New("the answer has no access token")}
	}
	// It lasts as long as was asked for; its end is told by a clock that may not be
	// the node's.
	return session(answer.AccessToken, began, accountTokenLife), nil
}

// keyIdentity is the service account of a key that the volume brought. The key
// signs tokens here (https://google.aip.dev/auth/4111), so that no address in the
// file is ever asked. Files of other types may name addresses, files and
// programs, and are not taken.
func keyIdentity(key secret.Value, req provider.Request) (*identity, error) {
	failure := &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("%q of nodePublishSecretRef", keyFile), Remedy: "write the JSON key of a service account there"}
	var file struct {
		Type  string `json:"type"`
		Email string `json:"client_email"`
	}
	if json.Unmarshal(key.Reveal(), &file) != nil {
		failure.Err = errors.New("it is not JSON")
		return nil, failure
	}
	if file.Type != "service_account" || file.Email == "" {
		failure.Err = errors.New("it is not the key of a service account")
		if file.Type == "external_account" {
			failure.Remedy = fmt.Sprintf("remove it, and write its audience into %s", providerKey)
		}
		return nil, failure
	}
	return &identity{login.Key(keyFile, req.Fingerprint([]byte(keyFile), key.Reveal())), "serviceAccount:" + file.Email, func(context.Context, *login.Session[secret.Value]) (login.Session[secret.Value], error) {
		began := time.Now()
		source, err := google.JWTAccessTokenSourceWithScope(key.Reveal(), cloudScope)
		if err == nil {
			var token *oauth2.Token
			if token, err = source.Token(); err == nil {
				return session(token.AccessToken, began, lifeOf(token, began)), nil
			}
		}
		failure.Err = errors.New("its private key cannot be used") // the library may quote it
		return login.Session[secret.Value]{}, failure
	}}, nil
}

// nodeFile is what Config.CredentialsFile says.
type nodeFile struct {
	text     []byte
	kind     google.CredentialsType
	audience string // of an external account
}

func readNodeFile(name string) (nodeFile, error) {
	if name == "" {
		return nodeFile{}, nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nodeFile{}, fmt.Errorf("credentials of Google Cloud: %w", err)
	}
	var file struct {
		Type     google.CredentialsType `json:"type"`
		Audience string                 `json:"audience"`
	}
	if json.Unmarshal(text, &file) != nil || file.Type == "" {
		return nodeFile{}, fmt.Errorf("credentials of Google Cloud: %s is not a credentials file in JSON", name)
	}
	node := nodeFile{text: text, kind: file.Type}
	if file.Type == google.ExternalAccount {
		var ok bool
		if node.audience, ok = parseAudience(file.Audience); !ok {
			return nodeFile{}, fmt.Errorf("credentials of Google Cloud: %s: its audience %.200q names no provider of a workload identity pool", name, file.Audience)
		}
	}
	return node, nil
}

// nodeIdentity is the node's own, which all volumes share that ask by it.
func (p *Provider) nodeIdentity() *identity {
	if p.node.kind == "" {
		return &identity{login.Key(authNode), "the node's service account", p.nodeToken}
	}
	const name = "the identity of the driver's credentials file"
	return &identity{login.Key(authNode), name, func(ctx context.Context, _ *login.Session[secret.Value]) (login.Session[secret.Value], error) {
		began := time.Now()
		ctx = context.WithValue(ctx, oauth2.HTTPClient, p.network.web)
		credentials, err := google.CredentialsFromJSONWithType(ctx, p.node.text, p.node.kind, cloudScope)
		if err == nil {
			var token *oauth2.Token
			if token, err = credentials.TokenSource.Token(); err == nil {
				return session(token.AccessToken, began, lifeOf(token, began)), nil
			}
		}
		return login.Session[secret.Value]{}, tokenFailure("log in to Google Cloud as "+name, err)
	}}
}

// nodeToken asks the metadata server for a token
// (https://cloud.google.com/compute/docs/access/authenticate-workloads#applications).
func (p *Provider) nodeToken(ctx context.Context, _ *login.Session[secret.Value]) (login.Session[secret.Value], error) {
	var none login.Session[secret.Value]
	const op = "log in to Google Cloud as the node's service account"
	began := time.Now()
	text, err := p.network.fromMetadata(ctx, "instance/service-accounts/default/token")
	if err != nil {
		e := failure(op, err)
		if e.Kind == provider.NotFound {
			e.Kind = provider.Denied
		}
		e.Remedy = "give the node a service account, or the driver a credentials file"
		return none, e
	}
	defer clear(text)
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if json.Unmarshal(text, &answer) != nil || answer.AccessToken == "" {
		return none, &provider.Error{Kind: provider.Internal, Op: op, Err: errors.New("the metadata server's answer has no access token")}
	}
	return session(answer.AccessToken, began, time.Duration(answer.ExpiresIn)*time.Second), nil
}

// clusterAudience is that of the exchange of a pod's token on GKE: its parts are
// configured, or the metadata server's.
func (p *Provider) clusterAudience(ctx context.Context, _ *login.Session[string]) (login.Session[string], error) {
	parts := []string{p.config.Project, p.config.ClusterLocation, p.config.ClusterName}
	err := provider.Together(ctx, len(parts), func(ctx context.Context, i int) error {
		if parts[i] != "" {
			return nil
		}
		text, err := p.network.fromMetadata(ctx, []string{"project/project-id", "instance/attributes/cluster-location", "instance/attributes/cluster-name"}[i])
		parts[i] = strings.TrimSpace(string(text))
		return err
	})
	if err != nil {
		e := failure("ask the metadata server for the GKE cluster", err)
		if e.Kind == provider.NotFound {
			e.Kind = provider.Invalid
		}
		e.Remedy = "where this is not GKE, name the pool's provider with " + providerKey + ", or give the driver a credentials file of type external_account"
		return login.Session[string]{}, e
	}
	audience := fmt.Sprintf("identitynamespace:%s.svc.id.goog:https://container.%s/v1/projects/%s/locations/%s/clusters/%s", parts[0], googleAPIs, parts[0], parts[1], parts[2])
	if !ofCluster.MatchString(audience) {
		return login.Session[string]{}, &provider.Error{Kind: provider.Internal, Op: "ask the metadata server for the GKE cluster", Err: errors.New("its answers are not names")}
	}
	forever := time.Now().AddDate(10, 0, 0)
	return login.Session[string]{Value: audience, Renew: forever, Ends: forever}, nil
}

// fromMetadata returns a value of the metadata server
// (https://cloud.google.com/compute/docs/metadata/querying-metadata).
func (c *network) fromMetadata(ctx context.Context, key string) ([]byte, error) {
	const flavor = "Metadata-Flavor"
	host := cmp.Or(c.config.MetadataHost, "169.254.169.254")
	text, header, err := call(ctx, c.metadata, http.MethodGet, "http://"+host+"/computeMetadata/v1/"+key, http.Header{flavor: {"Google"}}, nil)
	if err == nil && header.Get(flavor) != "Google" {
		clear(text)
		return nil, errors.New("what answers is not a metadata server")
	}
	return text, err
}
