package azure

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	azuretest "github.com/csi-secrets/csi-secrets/test/azure"
)

func TestWhoThisProcessIsToAzure(t *testing.T) {
	w := newWorld(t)
	assigned := w.Assign(false)
	w.Assign(true)
	p := w.provider(Config{})
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(w.issuer.Token(webAccount, audience)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		who   OwnIdentity
		calls string
	}{
		"a pod's":             {OwnIdentity{Tenant: azuretest.Tenant, Client: w.client, TokenFile: file}, "login 1"},
		"a pod's, in a cloud": {OwnIdentity{Tenant: azuretest.Tenant, Client: w.client, TokenFile: file, Authority: "https://login.microsoftonline.com"}, "login 1"},
		"the machine's":       {OwnIdentity{}, "metadata 1"},
		"one assigned to it":  {OwnIdentity{Client: assigned}, "metadata 1"},
	} {
		credential, transport, err := p.Own(tc.who)
		if err != nil || transport == nil {
			t.Fatal(name, err)
		}
		token, err := credential.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{azuretest.Storage + "/.default"}})
		if err != nil || !slices.Contains(w.Tokens(), token.Token) || token.ExpiresOn.IsZero() {
			t.Errorf("%s: got a token until %s, %v", name, token.ExpiresOn, err)
		}
		w.wantCalls(tc.calls)
	}

	stranger, _, err := p.Own(OwnIdentity{Client: "11111111-1111-1111-1111-111111111111"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stranger.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{azuretest.Storage + "/.default"}})
	if provider.KindOf(err) != provider.Denied {
		t.Errorf("an identity that the machine has not: %v", err)
	}
	for want, who := range map[string]OwnIdentity{
		"AZURE_TENANT_ID and AZURE_CLIENT_ID": {TokenFile: file, Client: w.client},
		"AZURE_TENANT_ID is not":              {TokenFile: file, Client: w.client, Tenant: "../x"},
		"AZURE_AUTHORITY_HOST is not":         {TokenFile: file, Client: w.client, Tenant: azuretest.Tenant, Authority: "http://login.example.com"},
	} {
		if _, _, err := p.Own(who); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", who, err)
		}
	}
}
