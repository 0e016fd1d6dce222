package azure

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	msal "github.com/AzureAD/microsoft-authentication-library-for-go/apps/errors"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
)

const (
	loginOp = "log in to Microsoft Entra ID"
	// maxErrorBytes bounds what is read of the body of an error.
	maxErrorBytes = 16 << 10
)

// kinds are the errors that statuses stand for. Of those that are not here, 5xx
// is Unavailable, and anything else Internal.
var kinds = map[int]provider.Kind{
	http.StatusBadRequest:      provider.Invalid,
	http.StatusUnauthorized:    provider.Denied,
	http.StatusForbidden:       provider.Denied,
	http.StatusNotFound:        provider.NotFound,
	http.StatusTooManyRequests: provider.Throttled,
}

func kindOf(status int) provider.Kind {
	if status >= http.StatusInternalServerError {
		return provider.Unavailable
	}
	return kinds[status]
}

// unauthorized is the answer of a vault that does not take the token.
type unauthorized struct {
	tenant string // the vault's, where it says
	claims string // those that it asks for, where it does
	code   string
}

func (*unauthorized) Error() string { return "it does not accept the token" }

// NonRetriable keeps the SDK from sending the same token again.
func (*unauthorized) NonRetriable() {}

// unreached is the failure of a connection.
type unreached struct{ error }

func (u *unreached) Unwrap() error { return u.error }

// vaultFailure returns why a vault did not answer as it should. Of the answer it
// takes codes and the caller's ids alone.
func vaultFailure(err error, c *class, vault string) *provider.Error {
	failure := &provider.Error{}
	var answer *azcore.ResponseError
	var not *unauthorized
	switch {
	case errors.As(err, &failure):
		return failure
	case errors.As(err, &not):
		failure.Kind, failure.Code = provider.Denied, not.code
		failure.Err, failure.Remedy = fmt.Errorf("the vault %q: %w", vault, not), "is the node's clock right?"
		if not.tenant != "" && !strings.EqualFold(not.tenant, c.tenant) {
			failure.Err = fmt.Errorf("%w: it is of the tenant %s, the class's is %s", failure.Err, not.tenant, c.tenant)
			failure.Remedy = "correct " + tenantKey
		}
		return failure
	case !errors.As(err, &answer):
		return unanswered(err, fmt.Sprintf("the vault %q", vault), "does the vault exist, and does "+cloudKey+" name its cloud?")
	}
	failure.Kind, failure.Code = kindOf(answer.StatusCode), answer.ErrorCode
	failure.RetryAfter = web.RetryAfter(answer.RawResponse.Header)
	text, _ := io.ReadAll(io.LimitReader(answer.RawResponse.Body, maxErrorBytes))
	inner := innerCode(text)
	if inner != "" {
		failure.Code = inner
	}
	failure.Code = onlyCode.FindString(failure.Code)
	failure.Err = fmt.Errorf("the vault %q answers %d %s", vault, answer.StatusCode, http.StatusText(answer.StatusCode))
	if failure.Code != "" {
		failure.Err = fmt.Errorf("%w (%s)", failure.Err, failure.Code)
	}
	if who := caller.FindSubmatch(text); who != nil && failure.Kind == provider.Denied {
		failure.Err = fmt.Errorf("%w to the application %s, object %s", failure.Err, who[1], who[2])
	}
	failure.Remedy = cmp.Or(vaultRemedies[failure.Code], statusRemedies[answer.StatusCode])
	if failure.Kind == provider.NotFound && !strings.HasSuffix(failure.Code, "NotFound") {
		failure.Kind, failure.Remedy = provider.Unavailable, "is it a key vault that answers?" // an optional object is not what was not found
	}
	return failure
}

var (
	onlyCode = regexp.MustCompile(`^[A-Za-z0-9_.]{1,60}$`)
	caller   = regexp.MustCompile(`appid=([0-9a-fA-F-]{36});oid=([0-9a-fA-F-]{36})`)
)

// innerCode returns the code that tells why
// (https://learn.microsoft.com/azure/key-vault/general/rest-error-codes).
func innerCode(body []byte) string {
	var text struct {
		Error struct {
			Inner struct {
				Code string `json:"code"`
			} `json:"innererror"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &text)
	return text.Error.Inner.Code
}

const grantRemedy = "give the identity the role Key Vault Secrets User (of keys: Key Vault Crypto User, of certificates: Key Vault Certificate User), or in the vault's access policies the permission get, to find also list"

var vaultRemedies = map[string]string{
	"ForbiddenByPolicy":     grantRemedy,
	"ForbiddenByRbac":       grantRemedy,
	"AccessDenied":          grantRemedy,
	"ForbiddenByFirewall":   "let the node's address or subnet through the vault's firewall",
	"ForbiddenByConnection": "the vault takes private endpoints only: give the node's network one",
	"SecretDisabled":        "enable that version in the vault, or name another by " + versionField,
}

var statusRemedies = map[int]string{
	http.StatusForbidden:       grantRemedy,
	http.StatusNotFound:        "correct the name or version, or recover it if it was deleted",
	http.StatusTooManyRequests: "it is asked again",
}

// unanswered returns why there is no answer of use. It shows an error's own text
// only where that is of the connection: one of a decoder may quote what it read.
func unanswered(err error, whom, remedy string) *provider.Error {
	failure := &provider.Error{Kind: provider.Unavailable, Remedy: "it is asked again"}
	var untrusted *tls.CertificateVerificationError
	var unknown *net.DNSError
	var large *http.MaxBytesError
	var broken *unreached
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		failure.Err = fmt.Errorf("%s does not answer in time: %w", whom, context.DeadlineExceeded)
		if errors.Is(err, context.Canceled) {
			failure.Err = fmt.Errorf("%s is no longer asked: %w", whom, context.Canceled)
		}
	case errors.As(err, &untrusted):
		failure.Err, failure.Remedy = fmt.Errorf("the certificate of %s cannot be trusted", whom), "is there a proxy on the way that breaks TLS, and is the node's clock right?"
	case errors.As(err, &unknown) && unknown.IsNotFound:
		failure.Err, failure.Remedy = fmt.Errorf("there is no host of %s: %w", whom, unknown), remedy
	case errors.As(err, &large):
		failure.Kind, failure.Err, failure.Remedy = provider.TooLarge, fmt.Errorf("an answer of %s has more than %d bytes", whom, large.Limit), ""
	case errors.As(err, &broken):
		failure.Err = fmt.Errorf("%s cannot be reached: %w", whom, broken.error)
	default:
		failure.Kind, failure.Err, failure.Remedy = provider.Internal, fmt.Errorf("the answer of %s cannot be read", whom), "is something on the way that answers in its place?"
	}
	return failure
}

// loginFailure names the vault for which one logged in: the object does not matter.
func loginFailure(err error, vault string) *provider.Error {
	var known *provider.Error
	if !errors.As(err, &known) {
		known = unanswered(err, "Microsoft Entra ID", "")
		known.Op = loginOp
	}
	failure := *known // others wait for the same
	failure.Object = fmt.Sprintf("key vault %q", vault)
	return &failure
}

// refused returns why Entra ID gave no token to whom.
func refused(err error, whom string) error {
	var known *provider.Error
	var answer msal.CallErr
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case !errors.As(err, &answer):
		failure := unanswered(err, "Microsoft Entra ID", "does "+cloudKey+" name the right cloud?")
		failure.Op = loginOp
		return failure
	}
	failure := &provider.Error{Kind: kindOf(answer.Resp.StatusCode), Op: loginOp, RetryAfter: web.RetryAfter(answer.Resp.Header)}
	switch answer.Resp.StatusCode {
	case http.StatusBadRequest:
		failure.Kind = provider.Denied
	case http.StatusNotFound: // an optional object is not what was not found
		failure.Kind = provider.Unavailable
	}
	text, _ := io.ReadAll(io.LimitReader(answer.Resp.Body, maxErrorBytes))
	failure.Code = aadsts(text)
	failure.Err = fmt.Errorf("the answer to %s is %d %s", whom, answer.Resp.StatusCode, http.StatusText(answer.Resp.StatusCode))
	if failure.Code != "" {
		failure.Err = fmt.Errorf("%w (%s)", failure.Err, failure.Code)
	}
	failure.Remedy = entraRemedies[failure.Code]
	switch failure.Code {
	case "AADSTS90002", "AADSTS900021", "AADSTS900023":
		failure.Kind = provider.Invalid
	case "AADSTS50196":
		failure.Kind = provider.Throttled
	}
	return failure
}

// aadsts returns Entra ID's code
// (https://learn.microsoft.com/entra/identity-platform/reference-error-codes).
func aadsts(body []byte) string {
	var text struct {
		Codes []int `json:"error_codes"`
	}
	if json.Unmarshal(body, &text) != nil || len(text.Codes) == 0 {
		return ""
	}
	return fmt.Sprintf("AADSTS%d", text.Codes[0])
}

const federateRemedy = "give the client a federated identity credential for that issuer, subject and audience; a new one counts after some minutes"

var entraRemedies = map[string]string{
	"AADSTS70021":   federateRemedy,
	"AADSTS700211":  federateRemedy,
	"AADSTS700212":  federateRemedy,
	"AADSTS700213":  federateRemedy,
	"AADSTS700016":  "there is no such client in the tenant: correct " + clientKey + " or " + tenantKey,
	"AADSTS7000215": "correct clientsecret: it must be the secret's value, not its id",
	"AADSTS7000222": "the client secret has ended: make another, or change to workload identity",
	"AADSTS7000112": "the application is disabled in the tenant: enable it",
	"AADSTS90002":   "there is no such tenant: correct " + tenantKey + " or " + cloudKey,
	"AADSTS900021":  "there is no such tenant: correct " + tenantKey + " or " + cloudKey,
	"AADSTS900023":  "that is no tenant: correct " + tenantKey,
	"AADSTS700024":  "the pod's token is not valid now: is the node's clock right?",
	"AADSTS50013":   "does Entra ID reach the cluster's issuer and its keys?",
	"AADSTS500011":  "the tenant has no key vaults in this cloud: correct " + tenantKey + " or " + cloudKey,
	"AADSTS53003":   "a conditional access policy of the tenant blocks the identity",
}

// noManagedIdentity returns why the metadata service gave no token
// (https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#error-handling).
func noManagedIdentity(err error, whom string) error {
	const op, service = "log in as a managed identity", "the node's metadata service (169.254.169.254)"
	var known *provider.Error
	var answer msal.CallErr
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case !errors.As(err, &answer):
		failure := unanswered(err, service, "")
		failure.Op = op
		if failure.Kind == provider.Unavailable {
			failure.Remedy = "does the driver run on an Azure machine, and may it reach that address?"
		}
		return failure
	}
	status := answer.Resp.StatusCode
	failure := &provider.Error{Kind: kindOf(status), Op: op, RetryAfter: web.RetryAfter(answer.Resp.Header), Err: fmt.Errorf("%s answers %d %s to %s", service, status, http.StatusText(status), whom)}
	switch status {
	case http.StatusBadRequest:
		failure.Kind, failure.Remedy = provider.Denied, "assign that identity to the node's machine or scale set, or correct "+assignedKey
	case http.StatusNotFound, http.StatusGone:
		failure.Kind, failure.Remedy = provider.Unavailable, "it is being renewed: it is asked again"
	}
	return failure
}
