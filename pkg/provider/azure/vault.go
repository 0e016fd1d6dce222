package azure

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azcertificates"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
)

// maxAnswerBytes bounds an answer: a secret has 25 KiB at most, a page of a list
// 25 entries.
const maxAnswerBytes = 4 << 20

// options are those of all clients: one more try, soon, for what may pass at once.
// Throttling is told above, where it is known who else asks.
func options(transport policy.Transporter) azcore.ClientOptions {
	return azcore.ClientOptions{
		Transport: transport,
		Telemetry: policy.TelemetryOptions{ApplicationID: "csi-secrets"},
		Retry: policy.RetryOptions{
			MaxRetries: 1, RetryDelay: 200 * time.Millisecond, MaxRetryDelay: 500 * time.Millisecond,
			StatusCodes: []int{http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout},
		},
	}
}

// link is a transport that bounds answers, and whose own failures can be told from
// those of who reads them.
type link struct{ http.RoundTripper }

func (l link) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := l.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, &unreached{err}
	}
	response.Body = http.MaxBytesReader(nil, linked{response.Body}, maxAnswerBytes)
	return response, nil
}

type linked struct{ io.ReadCloser }

func (l linked) Read(b []byte) (int, error) {
	n, err := l.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		err = &unreached{err}
	}
	return n, err
}

// transport reaches one vault, and no other host: neither a link to the next page
// nor a redirect takes the token elsewhere.
type transport struct {
	http.RoundTripper
	host string
	// challenge is what the vault answers to a request without a token. The SDK
	// begins with one to learn it.
	challenge string
}

func (t transport) Do(r *http.Request) (*http.Response, error) {
	if port := r.URL.Port(); r.URL.Hostname() != t.host || r.URL.Scheme != "https" || port != "" && port != "443" {
		return nil, &provider.Error{Kind: provider.Internal, Err: errors.New("the vault's answer leads to another host, to which the token must not go")}
	}
	if r.Header.Get("Authorization") == "" {
		return &http.Response{
			StatusCode: http.StatusUnauthorized, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
			Header: http.Header{"Www-Authenticate": {t.challenge}}, Body: http.NoBody,
		}, nil
	}
	response, err := t.RoundTrip(r)
	if err == nil && response.StatusCode == http.StatusUnauthorized {
		defer response.Body.Close()
		return nil, readChallenge(response)
	}
	return response, err
}

var (
	ofTenant = regexp.MustCompile(`authorization(?:_uri)?="https://[^/"]+/([0-9a-fA-F-]{36})`)
	ofClaims = regexp.MustCompile(`claims="([A-Za-z0-9+/=_-]+)"`)
	ofCode   = regexp.MustCompile(`\bAKV\d{5}\b`)
)

// readChallenge reads why a vault does not take a token
// (https://learn.microsoft.com/azure/key-vault/general/authentication-requests-and-responses).
func readChallenge(response *http.Response) *unauthorized {
	text := strings.Join(response.Header.Values("Www-Authenticate"), ", ")
	not := &unauthorized{}
	if found := ofTenant.FindStringSubmatch(text); found != nil {
		not.tenant = found[1]
	}
	if found := ofClaims.FindStringSubmatch(text); found != nil && strings.Contains(text, `error="insufficient_claims"`) {
		if claims, err := base64.StdEncoding.DecodeString(found[1]); err == nil && json.Valid(claims) {
			not.claims = string(claims)
		}
	}
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxErrorBytes))
	not.code = string(ofCode.Find(body))
	return not
}

// client is a vault, as one session sees it.
type client struct {
	secrets *azsecrets.Client
	keys    *azkeys.Client
	certs   *azcertificates.Client
}

// clients are those of a session, by vault.
type clients struct {
	mu  sync.Mutex
	all map[string]*client
}

// at returns the client of a vault, which lives as long as the session.
func (p *Provider) at(s *session, c *class, vault string) (*client, error) {
	host := strings.ToLower(vault) + "." + c.cloud.suffix
	s.clients.mu.Lock()
	defer s.clients.mu.Unlock()
	if found := s.clients.all[host]; found != nil {
		return found, nil
	}
	o := options(transport{p.transport, host, fmt.Sprintf(`Bearer authorization="%s%s", resource="%s"`, c.cloud.authority, c.tenant, c.cloud.resource)})
	made, address := &client{}, "https://"+host+"/"
	var errs [3]error
	made.secrets, errs[0] = azsecrets.NewClient(address, s, &azsecrets.ClientOptions{ClientOptions: o, DisableChallengeResourceVerification: true})
	made.keys, errs[1] = azkeys.NewClient(address, s, &azkeys.ClientOptions{ClientOptions: o, DisableChallengeResourceVerification: true})
	made.certs, errs[2] = azcertificates.NewClient(address, s, &azcertificates.ClientOptions{ClientOptions: o, DisableChallengeResourceVerification: true})
	if errors.Join(errs[:]...) != nil {
		return nil, errors.New("a client of the SDK cannot be made")
	}
	if s.clients.all == nil {
		s.clients.all = map[string]*client{}
	}
	s.clients.all[host] = made
	return made, nil
}

// conn is Key Vault, as one pod of one class reaches it.
type conn struct {
	*Provider
	*class
	*identity
}

// call makes requests to a vault, with a token of an earlier login or of a new one.
// A token that the vault does not take is replaced once.
func (n *conn) call(ctx context.Context, vault, op string, do func(context.Context, *client) error) error {
	claims := ""
	for again := false; ; again = true {
		s, err := n.sessions.Get(ctx, n.key, func(ctx context.Context, _ *login.Session[*session]) (login.Session[*session], error) {
			return n.newSession(ctx, claims)
		})
		if err != nil {
			return loginFailure(err, vault)
		}
		at, err := n.at(s, n.class, vault)
		if err == nil {
			err = do(ctx, at)
		}
		var not *unauthorized
		switch {
		case err == nil:
			return nil
		case errors.As(err, &not) && !again:
			claims = not.claims
			n.sessions.Forget(n.key, func(other *session) bool { return other == s })
			continue
		}
		failure := *vaultFailure(err, n.class, vault)
		if failure.Op == "" {
			failure.Op = op
		}
		return &failure
	}
}

// properties are what a list tells of an object, or of a version of one.
type properties struct {
	name, version string
	created       time.Time
	enabled       bool
	tags          map[string]string
}

// list brings the objects of a kind, or the versions of one where it has a name,
// page by page. last says that no page follows; the error of page ends it.
func (c *client) list(ctx context.Context, kind, name string, page func(all []properties, last bool) error) error {
	switch {
	case kind == secretKind && name == "":
		return pages(ctx, c.secrets.NewListSecretPropertiesPager(nil), func(r azsecrets.ListSecretPropertiesResponse) []properties { return ofSecrets(r.Value) }, page)
	case kind == secretKind:
		return pages(ctx, c.secrets.NewListSecretPropertiesVersionsPager(name, nil), func(r azsecrets.ListSecretPropertiesVersionsResponse) []properties { return ofSecrets(r.Value) }, page)
	case kind == keyKind && name == "":
		return pages(ctx, c.keys.NewListKeyPropertiesPager(nil), func(r azkeys.ListKeyPropertiesResponse) []properties { return ofKeys(r.Value) }, page)
	case kind == keyKind:
		return pages(ctx, c.keys.NewListKeyPropertiesVersionsPager(name, nil), func(r azkeys.ListKeyPropertiesVersionsResponse) []properties { return ofKeys(r.Value) }, page)
	case name == "":
		return pages(ctx, c.certs.NewListCertificatePropertiesPager(nil), func(r azcertificates.ListCertificatePropertiesResponse) []properties { return ofCerts(r.Value) }, page)
	}
	return pages(ctx, c.certs.NewListCertificatePropertiesVersionsPager(name, nil), func(r azcertificates.ListCertificatePropertiesVersionsResponse) []properties { return ofCerts(r.Value) }, page)
}

func pages[T any](ctx context.Context, pager *runtime.Pager[T], read func(T) []properties, page func([]properties, bool) error) error {
	for pager.More() {
		next, err := pager.NextPage(ctx)
		if err != nil {
			return err
		}
		if err := page(read(next), !pager.More()); err != nil {
			return err
		}
	}
	return nil
}

func ofSecrets(all []*azsecrets.SecretProperties) (read []properties) {
	for _, each := range all {
		if each.ID != nil && each.Attributes != nil {
			read = append(read, property(each.ID.Name(), each.ID.Version(), each.Attributes.Created, each.Attributes.Enabled, each.Tags))
		}
	}
	return read
}

func ofKeys(all []*azkeys.KeyProperties) (read []properties) {
	for _, each := range all {
		if each.KID != nil && each.Attributes != nil {
			read = append(read, property(each.KID.Name(), each.KID.Version(), each.Attributes.Created, each.Attributes.Enabled, each.Tags))
		}
	}
	return read
}

func ofCerts(all []*azcertificates.CertificateProperties) (read []properties) {
	for _, each := range all {
		if each.ID != nil && each.Attributes != nil {
			read = append(read, property(each.ID.Name(), each.ID.Version(), each.Attributes.Created, each.Attributes.Enabled, each.Tags))
		}
	}
	return read
}

func property(name, version string, created *time.Time, enabled *bool, tags map[string]*string) properties {
	p := properties{name: name, version: version, enabled: enabled == nil || *enabled, tags: map[string]string{}}
	if created != nil {
		p.created = *created
	}
	for tag, value := range tags {
		if value != nil {
			p.tags[tag] = *value
		}
	}
	return p
}

// answer is an object of a vault. value is to be cleared.
type answer struct {
	version string
	value   []byte // of a key or certificate in PEM
	// form is the content type of a secret that belongs to a certificate, empty of
	// any other.
	form string
}

// get reads a version of an object, the newest where it is empty.
func (c *client) get(ctx context.Context, kind, name, version string) (answer, error) {
	nothing := &provider.Error{Kind: provider.Internal, Err: errors.New("the vault's answer holds nothing of it")}
	switch kind {
	case secretKind:
		read, err := c.secrets.GetSecret(ctx, name, version, nil)
		switch {
		case err != nil:
			return answer{}, err
		case read.Value == nil || read.ID == nil:
			return answer{}, nothing
		}
		a := answer{version: read.ID.Version(), value: []byte(*read.Value)}
		if read.KID != nil && *read.KID != "" {
			a.form = "unknown"
			if read.ContentType != nil {
				a.form = *read.ContentType
			}
		}
		return a, nil
	case keyKind:
		read, err := c.keys.GetKey(ctx, name, version, nil)
		switch {
		case err != nil:
			return answer{}, err
		case read.Key == nil || read.Key.KID == nil || read.Key.Kty == nil:
			return answer{}, nothing
		}
		text, err := publicKey(read.Key)
		return answer{version: read.Key.KID.Version(), value: text}, err
	}
	read, err := c.certs.GetCertificate(ctx, name, version, nil)
	switch {
	case err != nil:
		return answer{}, err
	case len(read.CER) == 0 || read.ID == nil:
		return answer{}, nothing
	}
	return answer{version: read.ID.Version(), value: pemText(certificateBlock, read.CER)}, nil
}
