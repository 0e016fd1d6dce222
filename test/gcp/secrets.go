package gcptest

import (
	"context"
	"fmt"
	"hash/crc32"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type principalKey struct{}

// intercept counts a call, and lets those through whose access token is known and
// who ask the host, and say the routing parameters, of the resource.
func (g *Google) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if fails := g.begin(path.Base(info.FullMethod)); fails != nil {
		return nil, fails.Err()
	}
	header, _ := metadata.FromIncomingContext(ctx)
	first := func(key string) string { return strings.Join(header.Get(key), ",") }
	principal, refused := g.authenticate(first("authorization"))
	if refused != nil {
		return nil, refused.Err()
	}
	field, name := "name", ""
	switch r := request.(type) {
	case interface{ GetName() string }:
		name = r.GetName()
	case interface{ GetParent() string }:
		field, name = "parent", r.GetParent()
	}
	if want := field + "=" + url.QueryEscape(name); first("x-goog-request-params") != want {
		return nil, status.Errorf(codes.InvalidArgument, "the routing header is %q, not %q", first("x-goog-request-params"), want)
	}
	host := "secretmanager.googleapis.com"
	if parts := strings.Split(name, "/"); len(parts) > 3 && parts[2] == "locations" {
		host = "secretmanager." + parts[3] + ".rep.googleapis.com"
	}
	if asked := strings.TrimSuffix(first(":authority"), ":443"); asked != host {
		return nil, status.Errorf(codes.InvalidArgument, "%s is not at %s", name, asked)
	}
	return handler(context.WithValue(ctx, principalKey{}, principal), request)
}

// unauthenticated is Google's answer to an access token that is not valid.
func unauthenticated(reason string) *status.Status {
	s, _ := status.New(codes.Unauthenticated, "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.").
		WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "googleapis.com"})
	return s
}

// authenticate returns who holds the access token of an Authorization header: one
// that was issued, or one that a service account signed by itself
// (https://google.aip.dev/auth/4111).
func (g *Google) authenticate(header string) (string, *status.Status) {
	token, ok := strings.CutPrefix(header, "Bearer ")
	if !ok {
		return "", unauthenticated("CREDENTIALS_MISSING")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if strings.Count(token, ".") == 2 {
		return g.selfSigned(token)
	}
	of, ok := g.holders[token]
	if !ok {
		return "", unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED")
	}
	if time.Now().After(of.ends) {
		return "", unauthenticated("ACCESS_TOKEN_EXPIRED")
	}
	return of.principal, nil
}

// selfSigned is called with g.mu held.
func (g *Google) selfSigned(token string) (string, *status.Status) {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return "", unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED")
	}
	var claims struct {
		jwt.Claims
		Scope string `json:"scope"`
	}
	if parsed.UnsafeClaimsWithoutVerification(&claims) != nil || claims.Issuer != claims.Subject {
		return "", unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED")
	}
	of := g.accounts[claims.Issuer]
	if of == nil || of.key == nil || of.disabled || parsed.Claims(&of.key.PublicKey, &claims) != nil {
		return "", unauthenticated("ACCOUNT_STATE_INVALID")
	}
	if claims.Scope != cloudScope || claims.Validate(jwt.Expected{Time: time.Now()}) != nil || claims.Expiry.Time().Sub(claims.IssuedAt.Time()) > time.Hour {
		return "", unauthenticated("ACCESS_TOKEN_EXPIRED")
	}
	return "serviceAccount:" + claims.Issuer, nil
}

// denied is Google's answer to somebody who lacks a permission, which does not say
// whether there is a resource.
func denied(service, permission, resource string) *status.Status {
	s, _ := status.New(codes.PermissionDenied, fmt.Sprintf("Permission '%s' denied for resource '%s' (or it may not exist).", permission, resource)).
		WithDetails(&errdetails.ErrorInfo{Reason: "IAM_PERMISSION_DENIED", Domain: service, Metadata: map[string]string{"permission": permission, "resource": resource}})
	return s
}

var versionName = regexp.MustCompile(`^(projects/[^/]+/(?:locations/[^/]+/)?secrets/[^/]+)/versions/([^/]+)$`)

// find returns a version and its own name. Callers hold g.mu.
func (g *Google) find(principal, permission, name string) (*version, string, error) {
	m := versionName.FindStringSubmatch(name)
	if m == nil {
		return nil, "", status.Errorf(codes.InvalidArgument, "The provided Secret Version ID [%s] does not match the expected format.", name)
	}
	if !g.allowed(principal, permission, name) {
		return nil, "", denied("secretmanager.googleapis.com", permission, name).Err()
	}
	parts := strings.Split(m[1], "/")
	parts[1] = ProjectNumber
	numbered := strings.Join(parts, "/")
	s := g.secrets[m[1]]
	if s == nil {
		return nil, "", status.Errorf(codes.NotFound, "Secret [%s] not found or has no versions.", numbered)
	}
	number, err := strconv.Atoi(m[2])
	if err != nil {
		number = s.aliases[m[2]]
	}
	if m[2] == "latest" {
		number = len(s.versions)
	}
	if number < 1 || number > len(s.versions) {
		return nil, "", status.Errorf(codes.NotFound, "Secret Version [%s/versions/%s] not found.", numbered, m[2])
	}
	return &s.versions[number-1], fmt.Sprintf("%s/versions/%d", numbered, number), nil
}

// AccessSecretVersion is documented in secretmanagerpb.
func (g *Google) AccessSecretVersion(ctx context.Context, r *secretmanagerpb.AccessSecretVersionRequest) (*secretmanagerpb.AccessSecretVersionResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	found, name, err := g.find(ctx.Value(principalKey{}).(string), "secretmanager.versions.access", r.GetName())
	if err != nil {
		return nil, err
	}
	if found.state != secretmanagerpb.SecretVersion_ENABLED {
		return nil, status.Errorf(codes.FailedPrecondition, "Secret Version [%s] is in %s state.", name, found.state)
	}
	payload := &secretmanagerpb.SecretPayload{Data: []byte(found.value)}
	if !g.noChecksum {
		sum := int64(crc32.Checksum(payload.Data, crc32.MakeTable(crc32.Castagnoli)))
		payload.DataCrc32C = &sum
	}
	if g.damaged > 0 {
		g.damaged--
		payload.Data = append(payload.Data, '!')
	}
	return &secretmanagerpb.AccessSecretVersionResponse{Name: name, Payload: payload}, nil
}

// GetSecretVersion is documented in secretmanagerpb.
func (g *Google) GetSecretVersion(ctx context.Context, r *secretmanagerpb.GetSecretVersionRequest) (*secretmanagerpb.SecretVersion, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	found, name, err := g.find(ctx.Value(principalKey{}).(string), "secretmanager.versions.get", r.GetName())
	if err != nil {
		return nil, err
	}
	return &secretmanagerpb.SecretVersion{Name: name, State: found.state}, nil
}

var filterTerm = regexp.MustCompile(`^(?:name:"([^"]+)"|labels\.([a-z0-9_-]+)="([^"]*)")$`)

// ListSecrets is documented in secretmanagerpb. The page token is the name of the
// last secret of the page before.
func (g *Google) ListSecrets(ctx context.Context, r *secretmanagerpb.ListSecretsRequest) (*secretmanagerpb.ListSecretsResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	const permission = "secretmanager.secrets.list"
	if !g.allowed(ctx.Value(principalKey{}).(string), permission, r.GetParent()) {
		return nil, denied("secretmanager.googleapis.com", permission, r.GetParent()).Err()
	}
	size := g.pageSize
	if r.GetPageSize() > 0 {
		size = min(size, int(r.GetPageSize()))
	}
	page := &secretmanagerpb.ListSecretsResponse{}
	for _, name := range slices.Sorted(maps.Keys(g.secrets)) {
		s := g.secrets[name]
		fits, err := matches(r.GetFilter(), path.Base(name), s.labels)
		if err != nil {
			return nil, err
		}
		if path.Dir(name) != r.GetParent()+"/secrets" || !fits || name <= r.GetPageToken() {
			continue
		}
		if len(page.Secrets) == size {
			page.NextPageToken = r.GetParent() + "/secrets/" + path.Base(page.Secrets[size-1].Name)
			break
		}
		parts := strings.Split(name, "/")
		parts[1] = ProjectNumber
		page.Secrets = append(page.Secrets, &secretmanagerpb.Secret{Name: strings.Join(parts, "/"), Labels: s.labels})
	}
	return page, nil
}

func matches(filter, name string, labels map[string]string) (bool, error) {
	if filter == "" {
		return true, nil
	}
	for term := range strings.SplitSeq(filter, " AND ") {
		m := filterTerm.FindStringSubmatch(term)
		switch {
		case m == nil:
			return false, status.Errorf(codes.InvalidArgument, "the filter %q cannot be read", filter)
		case m[1] != "" && !strings.Contains(name, m[1]), m[2] != "" && labels[m[2]] != m[3]:
			return false, nil
		}
	}
	return true, nil
}
