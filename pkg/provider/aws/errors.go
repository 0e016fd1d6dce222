package aws

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"unicode"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
)

// errSessionOver marks that AWS does not accept the credentials any more.
var errSessionOver = errors.New("the credentials are not accepted")

// meaning is what a code of AWS stands for. told says that AWS's own words can be
// shown: they name accounts, roles, actions and objects, and no value or token.
type meaning struct {
	kind   provider.Kind
	told   bool
	remedy string
}

const (
	policyRemedy = "allow it in a policy of the pod's role; where the message names a resource-based policy, a key policy or an organization's, there too"
	quotaRemedy  = "raise the service's quota for the account (of Parameter Store: its throughput setting), or have volumes refreshed less often"
	deniedCode   = "AccessDeniedException"
	notThere     = "correct the name, the region or the account, or mark the object optional"
)

// meanings are those of the errors that the API references of Secrets Manager,
// Parameter Store and STS list, and of the common ones. A code that is not
// here is Unavailable with a status of 5xx, and else Internal.
var meanings = map[string]meaning{
	deniedCode:                    {provider.Denied, true, policyRemedy},
	"ResourceNotFoundException":   {provider.NotFound, true, notThere},
	"ParameterNotFound":           {provider.NotFound, true, notThere},
	"ParameterVersionNotFound":    {provider.NotFound, true, "correct the version or the label"},
	"InvalidRequestException":     {provider.Invalid, true, "a secret that is marked for deletion can be restored (aws secretsmanager restore-secret)"},
	"InvalidParameterException":   {provider.Invalid, true, "correct the object's fields"},
	"ValidationException":         {provider.Invalid, false, "correct the object's name, version or label"},
	"InvalidKeyId":                {provider.Denied, true, "allow the role kms:Decrypt of the key that encrypts the parameter, and see that the key is enabled"},
	"DecryptionFailure":           {provider.Denied, true, "allow the role kms:Decrypt of the key that encrypts the secret, and see that the key is enabled"},
	"EncryptionFailure":           {provider.Denied, true, "see that the KMS key is enabled"},
	"InvalidNextTokenException":   {provider.Internal, false, ""},
	"InternalServiceError":        {provider.Unavailable, false, ""},
	"InternalServerError":         {provider.Unavailable, false, ""},
	"InternalFailure":             {provider.Unavailable, false, ""},
	"ServiceUnavailable":          {provider.Unavailable, false, ""},
	"InvalidFilterValue":          {provider.Invalid, true, "correct what " + provider.FindField + " says"},
	"InvalidFilterKey":            {provider.Invalid, true, "correct what " + provider.FindField + " says"},
	"ExpiredTokenException":       {provider.Denied, true, ""},
	"ExpiredToken":                {provider.Denied, true, ""},
	"UnrecognizedClientException": {provider.Denied, true, "is the region one that the account has enabled?"},
	"InvalidClientTokenId":        {provider.Denied, true, "is the region one that the account has enabled?"},
	"InvalidSignatureException":   {provider.Denied, false, "is the node's clock right?"},
	"SignatureDoesNotMatch":       {provider.Denied, false, "is the node's clock right?"},
	"RequestTimeTooSkewed":        {provider.Denied, false, "correct the node's clock"},
	"RequestExpired":              {provider.Denied, false, "correct the node's clock"},
	"OptInRequired":               {provider.Denied, true, "enable the region for the account"},
	"ThrottlingException":         {provider.Throttled, true, quotaRemedy},
	"Throttling":                  {provider.Throttled, true, quotaRemedy},
	"TooManyRequestsException":    {provider.Throttled, true, quotaRemedy},
	"RequestLimitExceeded":        {provider.Throttled, true, quotaRemedy},
	"LimitExceededException":      {provider.Throttled, true, quotaRemedy},
	"SlowDown":                    {provider.Throttled, true, quotaRemedy},
}

// sessionOver are codes with which a service refuses credentials that it took
// before.
var sessionOver = map[string]bool{"ExpiredTokenException": true, "ExpiredToken": true, "UnrecognizedClientException": true, "InvalidClientTokenId": true}

// stsMeanings are those that differ in STS, whose subject is the pod's token.
var stsMeanings = map[string]meaning{
	"AccessDenied":            {provider.Denied, true, "the role's trust policy must allow sts:AssumeRoleWithWebIdentity to the cluster's OIDC provider, with a condition on sub that fits this service account"},
	"InvalidIdentityToken":    {provider.Denied, true, "register the cluster's issuer as an IAM OIDC provider of the role's account, with the audience " + irsaAudience},
	"IDPRejectedClaim":        {provider.Denied, true, "the IAM OIDC provider must be that of this cluster's issuer"},
	"IDPCommunicationError":   {provider.Unavailable, true, "STS could not read the keys of the cluster's issuer; they must be public"},
	"ExpiredTokenException":   {provider.Unavailable, true, "kubelet's next call for the volume brings another token"},
	"ValidationError":         {provider.Invalid, false, "correct the service account's annotation " + roleAnnotation},
	"RegionDisabledException": {provider.Denied, true, "activate STS in this region for the account"},
}

// agentMeanings are those of EKS Auth, which the agent of EKS Pod Identity passes
// on.
var agentMeanings = map[string]meaning{
	"ResourceNotFoundException":   {provider.Denied, false, "associate the service account with a role (aws eks create-pod-identity-association), or remove " + podIdentityKey},
	"AccessDeniedException":       {provider.Denied, false, "the role's trust policy must allow sts:AssumeRole and sts:TagSession to pods.eks.amazonaws.com, and the node's role eks-auth:AssumeRoleForPodIdentity"},
	"InvalidTokenException":       {provider.Denied, false, "is the cluster of the agent that of the pod?"},
	"ExpiredTokenException":       {provider.Unavailable, false, "kubelet's next call for the volume brings another token"},
	"InvalidParameterException":   {provider.Denied, false, "is the agent's cluster name right?"},
	"InvalidRequestException":     {provider.Denied, false, "is the association's role right?"},
	"ServiceUnavailableException": {provider.Unavailable, false, ""},
	"400":                         {provider.Denied, false, "the agent cannot read the pod's token, or finds it over"},
	"ThrottlingException":         {provider.Throttled, false, ""},
}

// agentCode is that of EKS Auth in the text of the agent.
var agentCode = regexp.MustCompile(`\((\w+Exception)\)`)

// explain returns the error of an attempt. It takes of err nothing but what is
// known to hold neither values nor tokens: texts of the SDK quote answers and
// signed requests. The meanings of special come before those of all.
func explain(op string, err error, special map[string]meaning) *provider.Error {
	failure := &provider.Error{Kind: provider.Unavailable, Op: op, Remedy: "it is asked again"}
	var api smithy.APIError
	var unread *smithy.DeserializationError
	var located *url.Error
	var untrusted *tls.CertificateVerificationError
	var governed *provider.Error
	switch {
	case errors.As(err, &governed): // it was not made
		*failure = *governed
	case errors.As(err, &api):
		explainCode(failure, api.ErrorCode(), api.ErrorMessage(), err, special)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		failure.Err = errors.New("there was no answer in time")
	case errors.As(err, &untrusted):
		failure.Err, failure.Remedy = fmt.Errorf("the server's certificate is not trusted: %w", untrusted.Err), "give the driver the certificate of its CA"
	case errors.As(err, &located):
		failure.Err = fmt.Errorf("there is no answer: %w", web.Bare(err))
	case errors.As(err, &unread):
		failure.Err = errors.New("the answer ended early, or is not one of AWS")
	default:
		failure.Kind, failure.Err = provider.Invalid, errors.New("there is no such endpoint")
		failure.Remedy = "correct the region; not every partition has FIPS and dual-stack endpoints"
	}
	return failure
}

// explainCode fills in what an answer says, of which err may tell more.
func explainCode(failure *provider.Error, code, message string, err error, special map[string]meaning) {
	var answer interface{ HTTPStatusCode() int }
	status := 0
	if errors.As(err, &answer) {
		status = answer.HTTPStatusCode()
	}
	var full *smithyhttp.ResponseError
	if errors.As(err, &full) && full.Response != nil {
		failure.RetryAfter = web.RetryAfter(full.Response.Header)
	}
	if code == "" { // the agent answers in words
		if code = fmt.Sprint(status); agentCode.MatchString(message) {
			code = agentCode.FindStringSubmatch(message)[1]
		}
	}
	known, ok := special[code]
	if !ok {
		known, ok = meanings[code]
	}
	if !ok {
		known.kind = statusKind(status)
	}
	failure.Kind, failure.Remedy, failure.Code = known.kind, known.remedy, code
	if code == "InvalidRequestException" && strings.Contains(message, "marked for deletion") {
		failure.Kind = provider.NotFound // and optional, if the object is
	}
	failure.Err = fmt.Errorf("the answer is %d %s", status, code)
	if known.told {
		failure.Err = fmt.Errorf("%s: %s", code, printable(message))
	}
	if sessionOver[code] && special == nil {
		failure.Err = fmt.Errorf("%w: %w", errSessionOver, failure.Err)
	}
}

func statusKind(status int) provider.Kind {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return provider.Denied
	case status == http.StatusTooManyRequests:
		return provider.Throttled
	case status >= 500:
		return provider.Unavailable
	}
	return provider.Internal
}

// printable bounds what a server says to one line, and leaves out words that are
// long enough to be a token.
func printable(text string) string {
	const most, mostOfWord = 1000, 250
	words := strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) })
	for i, word := range words {
		if len(word) > mostOfWord {
			words[i] = "..."
		}
	}
	text = strings.Join(words, " ")
	if len(text) > most {
		text = text[:most] + "..."
	}
	return strings.TrimRight(text, ". ")
}
