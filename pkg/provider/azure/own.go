package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// OwnIdentity says who this process is, as the variables of a pod with Microsoft Entra
// Workload ID do: AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_FEDERATED_TOKEN_FILE and
// AZURE_AUTHORITY_HOST, which is that of the public cloud where it is empty. Without a
// TokenFile it is a managed identity of the machine: that of Client, or the
// system-assigned one.
type OwnIdentity struct {
	Tenant, Client, TokenFile, Authority string
}

// Own returns credentials of this process's own identity, and what reaches a service
// of Azure with them. Its error tells what is missing in who. Errors of the credentials
// are of type *provider.Error. Both may be used by several goroutines.
func (p *Provider) Own(who OwnIdentity) (azcore.TokenCredential, policy.Transporter, error) {
	if who.Authority == "" {
		who.Authority = public.authority
	}
	who.Authority = strings.TrimSuffix(who.Authority, "/") + "/"
	switch {
	case who.TokenFile == "":
	case who.Tenant == "" || who.Client == "":
		return nil, nil, errors.New("the token file of Microsoft Entra Workload ID needs a tenant and a client: AZURE_TENANT_ID and AZURE_CLIENT_ID")
	case !tenantRule.MatchString(who.Tenant):
		return nil, nil, errors.New("AZURE_TENANT_ID is not the id or domain of a tenant")
	case httpsURL(who.Authority) == nil:
		return nil, nil, errors.New("AZURE_AUTHORITY_HOST is not the URL of a server, as in " + public.authority)
	}
	return own{p, who}, p.entra, nil
}

type own struct {
	*Provider
	who OwnIdentity
}

// GetToken implements azcore.TokenCredential.
func (o own) GetToken(ctx context.Context, options policy.TokenRequestOptions) (azcore.AccessToken, error) {
	c := &class{tenant: o.who.Tenant, client: o.who.Client, cloud: environment{authority: o.who.Authority}}
	for _, scope := range options.Scopes {
		c.cloud.resource = strings.TrimSuffix(scope, "/.default")
	}
	var found confidential.AuthResult
	var err error
	if o.who.TokenFile == "" {
		found, err = o.nodeIdentity(c).login(ctx, options.Claims)
	} else {
		assertion := confidential.NewCredFromAssertionCallback(func(context.Context, confidential.AssertionRequestOptions) (string, error) {
			token, err := os.ReadFile(o.who.TokenFile) // kubelet replaces it
			if err != nil {
				return "", &provider.Error{Kind: provider.Denied, Op: loginOp, Err: fmt.Errorf("the token of this pod cannot be read: %w", err), Remedy: "is it mounted?"}
			}
			return string(bytes.TrimSpace(token)), nil
		})
		found, err = o.exchange(ctx, c, c.client, assertion, options.Claims, o.direct)
		err = refused(err, fmt.Sprintf("the client %q, with the token of this pod", c.client))
	}
	return azcore.AccessToken{Token: found.AccessToken, ExpiresOn: found.ExpiresOn}, err
}
