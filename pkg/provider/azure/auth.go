package azure

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"
	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/managedidentity"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// audience is that of the pod's token for Entra ID, proxyAudience that for the
	// token proxy of AKS.
	audience      = "api://AzureADTokenExchange"
	proxyAudience = "api://AKSIdentityBinding"
	// clientAnnotation of a service account names the client of its pods.
	clientAnnotation = "azure.workload.identity/client-id"

	// skew is how much earlier than it says a token counts as ended.
	skew = time.Minute
)

// identity is who asks, and how that is proven.
type identity struct {
	// key tells identities apart: nobody else has it who could not log in alike.
	key string
	// login brings a token for the vaults of the class's cloud. claims are what a
	// vault found missing in the last token, mostly nothing.
	login func(ctx context.Context, claims string) (confidential.AuthResult, error)
}

// identity returns who the pod is to Azure, without asking anybody.
func (p *Provider) identity(ctx context.Context, c *class, req provider.Request) (*identity, error) {
	switch c.way {
	case byNode:
		return p.nodeIdentity(c), nil
	case bySecret:
		return p.principal(c, req)
	}
	client := c.client
	if c.way == byAccount {
		var err error
		if client, err = annotatedClient(ctx, req); err != nil {
			return nil, err
		}
	}
	if c.way == byProxy {
		return p.podIdentity(c, req, client, proxyAudience, login.Claims.Identity, p.proxied)
	}
	// Entra ID looks at issuer, subject and audience, which the account fixes
	// (https://learn.microsoft.com/entra/workload-id/workload-identity-federation).
	return p.podIdentity(c, req, client, audience, login.Claims.Account, p.direct)
}

// direct returns the client that reaches Entra ID itself.
func (p *Provider) direct() (*http.Client, error) { return p.entra, nil }

// podIdentity is the application or managed identity that the pod's token stands
// for.
func (p *Provider) podIdentity(c *class, req provider.Request, client, audience string, who func(login.Claims) string, reach func() (*http.Client, error)) (*identity, error) {
	token, err := login.Token(req, "Microsoft Entra ID", audience)
	if err != nil {
		return nil, err
	}
	claims, err := login.Read(token.Value)
	if err != nil {
		return nil, &provider.Error{Kind: provider.Denied, Op: loginOp, Err: fmt.Errorf("the pod's token cannot be read: %w", err)}
	}
	assertion := confidential.NewCredFromAssertionCallback(func(context.Context, confidential.AssertionRequestOptions) (string, error) {
		return string(token.Value.Reveal()), nil
	})
	return &identity{
		key: login.Key("pod", audience, c.cloud.authority, c.cloud.resource, c.tenant, client, who(claims)),
		login: func(ctx context.Context, missing string) (confidential.AuthResult, error) {
			found, err := p.exchange(ctx, c, client, assertion, missing, reach)
			return found, refused(err, fmt.Sprintf("the client %q, with the pod's token (%s)", client, claims))
		},
	}, nil
}

// annotatedClient returns the client that the pod's service account names.
func annotatedClient(ctx context.Context, req provider.Request) (string, error) {
	failure := &provider.Error{Kind: provider.Denied, Object: fmt.Sprintf("service account %s/%s", req.Pod.Namespace, req.Pod.ServiceAccount), Op: fmt.Sprintf("read its annotation %q", clientAnnotation),
		Err: errors.New("csi-secrets may not read service accounts here"), Remedy: fmt.Sprintf("give it the right, or write %s into the class in place of %s", clientKey, annotatedKey)}
	if req.AccountAnnotations == nil {
		return "", failure
	}
	annotations, err := req.AccountAnnotations(ctx)
	if err != nil {
		failure.Kind, failure.Err, failure.Remedy = provider.KindOf(err), err, ""
		return "", failure
	}
	client := strings.TrimSpace(annotations[clientAnnotation])
	if client == "" {
		failure.Kind, failure.Err, failure.Remedy = provider.Invalid, errors.New("it has none"), "annotate it with the client id of the application or managed identity"
		return "", failure
	}
	return client, nil
}

// principal is the service principal that the volume's secret names.
func (p *Provider) principal(c *class, req provider.Request) (*identity, error) {
	var client, password secret.Value
	for name, value := range req.Secrets {
		switch strings.ToLower(name) {
		case "clientid":
			client = value
		case "clientsecret":
			password = value
		}
	}
	if client.IsEmpty() || password.IsEmpty() {
		return nil, &provider.Error{Kind: provider.Denied, Op: loginOp, Err: errors.New("the class names no identity, and the volume's nodePublishSecretRef no secret with clientid and clientsecret"),
			Remedy: fmt.Sprintf("write %s for workload identity, or %s for the node's", clientKey, managedKey)}
	}
	id := strings.TrimSpace(string(client.Reveal()))
	hash := sha256.Sum256(password.Reveal())
	return &identity{
		key: login.Key("principal", c.cloud.authority, c.cloud.resource, c.tenant, id, string(hash[:])),
		login: func(ctx context.Context, missing string) (confidential.AuthResult, error) {
			credential, err := confidential.NewCredFromSecret(string(password.Reveal()))
			if err != nil {
				return confidential.AuthResult{}, err
			}
			found, err := p.exchange(ctx, c, id, credential, missing, p.direct)
			return found, refused(err, "the service principal of nodePublishSecretRef")
		},
	}, nil
}

// exchange asks Entra ID for a token, by the client credentials grant. Each time
// it is a client of its own, which remembers nothing.
func (p *Provider) exchange(ctx context.Context, c *class, client string, credential confidential.Credential, missing string, reach func() (*http.Client, error)) (confidential.AuthResult, error) {
	transport, err := reach()
	if err != nil {
		return confidential.AuthResult{}, err
	}
	app, err := confidential.New(c.cloud.authority+c.tenant, client, credential, confidential.WithHTTPClient(transport),
		confidential.WithInstanceDiscovery(false),                  // the authority is one that we know, or a file of the node's says it
		confidential.WithAzureRegion("DisableMsalForceRegion"),     // else the environment could name one
		confidential.WithClientCapabilities([]string{claimsKnown}), // a vault may ask for more claims
	)
	if err != nil {
		return confidential.AuthResult{}, &provider.Error{Kind: provider.Invalid, Op: loginOp, Err: errors.New("the class's tenant, client or cloud is none that Entra ID can have"), Remedy: fmt.Sprintf("correct %s, %s or %s", tenantKey, clientKey, cloudFileKey)}
	}
	return app.AcquireTokenByCredential(ctx, []string{c.cloud.resource + "/.default"}, confidential.WithClaims(missing))
}

// claimsKnown says that one answers claims challenges
// (https://learn.microsoft.com/entra/identity-platform/claims-challenge).
const claimsKnown = "CP1"

// nodeIdentity is a managed identity of the virtual machine, which any pod of the
// node may use.
func (p *Provider) nodeIdentity(c *class) *identity {
	var id managedidentity.ID = managedidentity.SystemAssigned()
	name := "the node's system-assigned identity"
	if c.client != "" {
		id, name = managedidentity.UserAssignedClientID(c.client), fmt.Sprintf("the managed identity %q", c.client)
	}
	return &identity{
		key: login.Key("node", c.cloud.resource, c.client),
		login: func(ctx context.Context, _ string) (confidential.AuthResult, error) {
			metadata, err := managedidentity.New(id, managedidentity.WithHTTPClient(p.metadata), managedidentity.WithRetryPolicyDisabled())
			if err != nil {
				return confidential.AuthResult{}, &provider.Error{Kind: provider.Internal, Op: loginOp, Err: errors.New("the environment of the driver names another source of managed identities than the metadata service"), Remedy: "remove IDENTITY_ENDPOINT and MSI_ENDPOINT from it"}
			}
			// With claims it leaves out a cache that the whole process shares.
			found, err := metadata.AcquireToken(ctx, c.cloud.resource, managedidentity.WithClaims("{}"))
			return found, noManagedIdentity(err, name)
		},
	}
}

// session is a token, and the clients that carry it. It is the credential of the
// SDK's clients.
type session struct {
	token   secret.Value
	ends    time.Time
	clients clients
}

// newSession logs in.
func (i *identity) newSession(ctx context.Context, claims string) (login.Session[*session], error) {
	began := time.Now()
	found, err := i.login(ctx, claims)
	if err != nil {
		return login.Session[*session]{}, err
	}
	life := found.ExpiresOn.Sub(began) - skew
	if life <= 0 {
		return login.Session[*session]{}, &provider.Error{Kind: provider.Unavailable, Op: loginOp, Err: errors.New("the token that was given is over already"), Remedy: "is the node's clock right?"}
	}
	renew := began.Add(life * 4 / 5)
	if hint := found.Metadata.RefreshOn; hint.After(began) && hint.Before(renew) {
		renew = hint
	}
	s := &session{token: secret.FromString(found.AccessToken), ends: found.ExpiresOn}
	return login.Session[*session]{Value: s, Renew: renew, Ends: began.Add(life)}, nil
}

// GetToken returns the session's token: what another would be needed for is
// judged by the transport, see unauthorized.
func (s *session) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(s.token.Reveal()), ExpiresOn: s.ends}, nil
}

// directory answers by itself where a tenant's endpoints are: in the clouds that
// we know they are the same for all, and each login would ask again
// (https://learn.microsoft.com/entra/identity-platform/v2-protocols#endpoints).
type directory struct{ http.RoundTripper }

const discovery = "/v2.0/.well-known/openid-configuration"

func (d directory) RoundTrip(r *http.Request) (*http.Response, error) {
	tenant, asked := strings.CutSuffix(r.URL.Path, discovery)
	if !asked || !isKnown("https://"+r.URL.Host+"/") {
		return d.RoundTripper.RoundTrip(r)
	}
	root := "https://" + r.URL.Host + tenant
	text, err := json.Marshal(map[string]string{
		"issuer": root + "/v2.0", "authorization_endpoint": root + "/oauth2/v2.0/authorize", "token_endpoint": root + "/oauth2/v2.0/token",
	})
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(text)), ContentLength: int64(len(text)),
	}, nil
}

func isKnown(authority string) bool {
	for _, known := range clouds {
		if known.authority == authority {
			return true
		}
	}
	return false
}

// TokenProxy is where AKS exchanges the tokens of identity bindings
// (https://learn.microsoft.com/azure/aks/identity-bindings-concepts), as the
// variables of the same names in an AKS pod say.
type TokenProxy struct {
	URL     string // AZURE_KUBERNETES_TOKEN_PROXY
	SNIName string // AZURE_KUBERNETES_SNI_NAME
	CAFile  string // AZURE_KUBERNETES_CA_FILE; read at each login. Empty for the public CAs
}

func (t TokenProxy) parse() (*url.URL, error) {
	if t.URL == "" {
		if t.SNIName != "" || t.CAFile != "" {
			return nil, errors.New("azure: the token proxy has no URL")
		}
		return nil, nil
	}
	parsed := httpsURL(t.URL)
	if parsed == nil {
		return nil, errors.New("azure: the token proxy is not a URL that begins with https://")
	}
	if parsed.Path == "" {
		parsed.Path = "/"
	}
	return parsed, nil
}

// proxied returns the client that reaches Entra ID through the token proxy.
func (p *Provider) proxied() (*http.Client, error) {
	failure := &provider.Error{Kind: provider.Invalid, Op: loginOp, Err: errors.New("the driver knows no token proxy, which only AKS has"),
		Remedy: fmt.Sprintf("give the driver AKS's token proxy (--azure-token-proxy), or remove %s for workload identity", proxyKey)}
	if p.proxy == nil {
		return nil, failure
	}
	pem := ""
	if file := p.config.TokenProxy.CAFile; file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			failure.Kind, failure.Err, failure.Remedy = provider.Unavailable, fmt.Errorf("the CA of the token proxy cannot be read from %s", file), "is it mounted into the driver's container?"
			return nil, failure
		}
		pem = string(text)
	}
	return p.proxyClients.Get(pem), nil
}

// throughProxy sends requests for Entra ID to the token proxy, which has the same
// paths.
type throughProxy struct {
	http.RoundTripper
	to *url.URL
}

func (t throughProxy) RoundTrip(r *http.Request) (*http.Response, error) {
	sent := r.Clone(r.Context())
	sent.URL = t.to.JoinPath(r.URL.EscapedPath())
	sent.URL.RawQuery, sent.Host = r.URL.RawQuery, ""
	return t.RoundTripper.RoundTrip(sent)
}

// dialProxy makes the transport of the token proxy.
func (p *Provider) dialProxy(config *tls.Config) http.RoundTripper {
	config.ServerName = p.config.TokenProxy.SNIName
	return directory{throughProxy{link{p.config.Transport(config)}, p.proxy}}
}
