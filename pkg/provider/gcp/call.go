package gcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"golang.org/x/oauth2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/oauth"
	"google.golang.org/grpc/metadata"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// The services that hold secrets, by the first part of their hosts' names.
const (
	secretManager    = "secretmanager"
	parameterManager = "parametermanager"
)

const (
	// maxAnswerBytes bounds an answer. A secret has 64 KiB at most, a parameter with
	// its secrets some MiB, and both of its payloads are in the answer.
	maxAnswerBytes = 32 << 20
	// pageSize is how many secrets a page of a list has at most.
	pageSize = 1000
)

// caller asks Google's services with one access token.
type caller struct {
	*network
	token secret.Value
	who   string // as an error calls the identity
}

// named is what errors call a resource.
func named(name string) string { return fmt.Sprintf("resource %q", name) }

// secretManager returns the stub for a resource, and the context and option of
// calls that concern it: field is what the request calls its name.
func (c caller) secretManager(ctx context.Context, r resource, field string) (secretmanagerpb.SecretManagerServiceClient, context.Context, grpc.CallOption, error) {
	conn, err := c.conn(c.host(secretManager, r.location))
	if err != nil {
		return nil, nil, nil, err
	}
	// Google's servers route by it, see https://google.aip.dev/client-libraries/4222.
	ctx = metadata.AppendToOutgoingContext(ctx, "x-goog-request-params", field+"="+url.QueryEscape(r.name))
	token := oauth.TokenSource{TokenSource: oauth2.StaticTokenSource(&oauth2.Token{AccessToken: string(c.token.Reveal())})}
	return secretmanagerpb.NewSecretManagerServiceClient(conn), ctx, grpc.PerRPCCredentials(token), nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// access returns a version's value, and the version's own name. A value that was
// damaged on its way is read once more.
func (c caller) access(ctx context.Context, r resource) ([]byte, string, error) {
	client, ctx, token, err := c.secretManager(ctx, r, "name")
	if err != nil {
		return nil, "", err
	}
	for again := false; ; again = true {
		answer, err := client.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: r.name}, token)
		if err != nil {
			return nil, "", c.refusal(r.name, toAccess, err)
		}
		payload := answer.GetPayload()
		if payload == nil {
			return nil, "", &provider.Error{Kind: provider.Internal, Object: named(r.name), Op: toAccess.op, Err: errors.New("the answer has no value")}
		}
		if sum := payload.GetDataCrc32C(); payload.DataCrc32C == nil || int64(crc32.Checksum(payload.GetData(), castagnoli)) == sum {
			return payload.GetData(), answer.GetName(), nil
		}
		clear(payload.GetData())
		if again {
			return nil, "", &provider.Error{Kind: provider.Unavailable, Object: named(r.name), Op: toAccess.op, Err: errors.New("the value does not fit the checksum (CRC32C) that came with it, twice"), Remedy: "something on the way changes it: look at proxies"}
		}
	}
}

// version returns a version's own name without its value, and whether it can be
// read.
func (c caller) version(ctx context.Context, r resource) (string, bool, error) {
	client, ctx, token, err := c.secretManager(ctx, r, "name")
	if err != nil {
		return "", false, err
	}
	answer, err := client.GetSecretVersion(ctx, &secretmanagerpb.GetSecretVersionRequest{Name: r.name}, token)
	if err != nil {
		return "", false, c.refusal(r.name, toSee, err)
	}
	return answer.GetName(), answer.GetState() == secretmanagerpb.SecretVersion_ENABLED, nil
}

// plain is what a filter needs no quoting for; names and labels are that.
var plain = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// filter returns what find asks for as far as a list can be asked for it
// (https://cloud.google.com/secret-manager/docs/filtering): names are only
// compared for parts of them.
func filter(find *provider.Find) string {
	var terms []string
	if plain.MatchString(find.Prefix) {
		terms = append(terms, fmt.Sprintf("name:%q", find.Prefix))
	}
	for label, value := range find.Tags {
		if plain.MatchString(label) && plain.MatchString(value) {
			terms = append(terms, fmt.Sprintf("labels.%s=%q", label, value))
		}
	}
	return strings.Join(terms, " AND ")
}

// list offers the secrets of a project, or of a location of it.
func (c caller) list(ctx context.Context, parent resource, find *provider.Find, offer func(name string, labels map[string]string) error) error {
	client, ctx, token, err := c.secretManager(ctx, parent, parentField)
	if err != nil {
		return err
	}
	request := &secretmanagerpb.ListSecretsRequest{Parent: parent.name, PageSize: pageSize, Filter: filter(find)}
	for {
		page, err := client.ListSecrets(ctx, request, token)
		if err != nil {
			refusal := c.refusal(parent.name, toList, err)
			if refusal.Kind == provider.NotFound {
				refusal.Kind = provider.Invalid // it is the project, which is not optional
			}
			return refusal
		}
		for _, s := range page.GetSecrets() {
			if err := offer(path.Base(s.GetName()), s.GetLabels()); err != nil {
				return err
			}
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return nil
		}
	}
}

// render returns a parameter version with the secrets that it refers to in their
// places, and its name
// (https://cloud.google.com/secret-manager/parameter-manager/docs/reference/rest/v1/projects.locations.parameters.versions/render).
func (c caller) render(ctx context.Context, r resource) ([]byte, string, error) {
	address := "https://" + c.host(parameterManager, r.location) + "/v1/" + r.name + ":render"
	body, _, err := call(ctx, c.web, http.MethodGet, address, http.Header{"Authorization": {bearer(c.token)}}, nil)
	if err != nil {
		return nil, "", c.refusal(r.name, toRender, err)
	}
	defer clear(body)
	var answer struct {
		ParameterVersion string `json:"parameterVersion"`
		RenderedPayload  []byte `json:"renderedPayload"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.ParameterVersion == "" {
		clear(answer.RenderedPayload)
		return nil, "", &provider.Error{Kind: provider.Internal, Object: named(r.name), Op: toRender.op, Err: errors.New("the answer is not a rendered parameter version")}
	}
	return answer.RenderedPayload, answer.ParameterVersion, nil
}
