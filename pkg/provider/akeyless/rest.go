package akeyless

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
)

const (
	// callTimeout bounds one request. A gateway gives itself 15 seconds to make
	// credentials.
	callTimeout = 55 * time.Second
	// maxAnswerBytes bounds an answer, which may hold all static secrets of a class.
	maxAnswerBytes = 16 << 20
)

// The operations (https://docs.akeyless.io/reference).
const (
	opAuth        = "/auth"
	opDescribe    = "/describe-item"
	opStatic      = "/get-secret-value"
	opRotated     = "/get-rotated-secret-value"
	opCertificate = "/get-certificate-value"
	opDynamic     = "/get-dynamic-secret-value"
	opRevoke      = "/dynamic-secret-tmp-creds-delete"
)

// Remedies that several errors have.
const (
	askedAgain = "it is asked again"
	isItTheAPI = "does akeylessGatewayURL lead to the API, which is at port 8081, or at /v2 of port 8080?"
)

// call posts a request to an operation of the gateway and returns its answer,
// which is JSON, and cleared with the session.
func (s *session) call(ctx context.Context, op string, request map[string]any) ([]byte, error) {
	failure := func(kind provider.Kind, err error, remedy string) ([]byte, error) {
		return nil, &provider.Error{Kind: kind, Op: op + " of " + s.access.Gateway, Err: err, Remedy: remedy}
	}
	text, err := json.Marshal(request)
	if err != nil {
		return failure(provider.Internal, errors.New("the request cannot be written as JSON"), "")
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	posted, err := http.NewRequestWithContext(ctx, http.MethodPost, s.access.Gateway+op, bytes.NewReader(text))
	if err != nil {
		return failure(provider.Invalid, errors.New("the gateway's URL is broken"), "correct akeylessGatewayURL")
	}
	posted.Header.Set("Content-Type", "application/json")
	posted.Header.Set("Accept", "application/json")
	response, err := s.client.Do(posted)
	if err != nil {
		remedy, err := unreachable(err)
		return failure(provider.Unavailable, fmt.Errorf("the gateway does not answer: %w", err), remedy)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes+1))
	if err == nil && len(body) <= maxAnswerBytes && response.StatusCode/100 == 2 && (len(bytes.TrimSpace(body)) == 0 || json.Valid(body)) {
		if op != opDescribe {
			s.seen.add(body)
		}
		return body, nil
	}
	defer clear(body)
	switch {
	case err != nil:
		return failure(provider.Unavailable, fmt.Errorf("the gateway's answer ended early: %w", err), askedAgain)
	case len(body) > maxAnswerBytes:
		return failure(provider.TooLarge, fmt.Errorf("the answer has more than %d bytes", maxAnswerBytes), "")
	case response.StatusCode/100 == 2:
		return failure(provider.Internal, errors.New("the gateway's answer is not JSON"), isItTheAPI)
	}
	r, kind, remedy := s.refuse(response.StatusCode, body)
	e := &provider.Error{Kind: kind, Op: op + " of " + s.access.Gateway, Err: r, Remedy: remedy, Code: strconv.Itoa(r.status), RetryAfter: web.RetryAfter(response.Header)}
	return nil, e
}

// unreachable takes the URL out of an error, and says what to do about it.
func unreachable(err error) (remedy string, bare error) {
	err = web.Bare(err)
	var unknown x509.UnknownAuthorityError
	var verification *tls.CertificateVerificationError
	switch {
	case errors.As(err, &unknown):
		return "put the certificate of the gateway's CA into akeylessCACert", err
	case errors.As(err, &verification):
		return "renew the gateway's certificate, or correct akeylessGatewayURL", err
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "enable TLS at the gateway, or correct the port in akeylessGatewayURL", err
	}
	return askedAgain, err
}

// refusal is an answer that is an error.
type refusal struct {
	status int
	text   string // what the gateway says, without secrets
	token  bool   // it does not take the token, or not any more
}

func (r *refusal) Error() string {
	text := strings.TrimSpace(fmt.Sprintf("the gateway answers %d %s", r.status, http.StatusText(r.status)))
	if r.text != "" {
		text += fmt.Sprintf(": %q", r.text)
	}
	return text
}

// refusalOf returns the refusal in an error, one of status 0 where there is none.
func refusalOf(err error) *refusal {
	r := new(refusal)
	errors.As(err, &r)
	return r
}

// What a gateway says in words, which does not follow from the status: that is 400
// or 500 for much.
var (
	denials  = []string{"unauthorized", "not authorized", "authorization failed", "forbidden", "not allowed", "not_allowed", "denied", "no access", "permission"}
	absences = []string{"not found", "not_found", "does not exist", "doesn't exist"}
	endings  = []string{"expired", "invalid", "not valid", "revoked", "unauthenticated"}
)

// refuse reads an answer that is an error.
func (s *session) refuse(status int, body []byte) (r *refusal, kind provider.Kind, remedy string) {
	var said struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal(body, &said)
	text := strings.ToLower(said.Error)
	says := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
	}
	r = &refusal{status: status, text: s.seen.shown(said.Error)}
	r.token = status == http.StatusUnauthorized || status < 500 && says("token") && says(endings...)
	switch {
	case status < 400:
		return r, provider.Invalid, "redirects are not followed: write the URL to which it leads into akeylessGatewayURL"
	case status == http.StatusTooManyRequests:
		return r, provider.Throttled, askedAgain
	case status == http.StatusRequestEntityTooLarge:
		return r, provider.TooLarge, ""
	case status == http.StatusRequestTimeout, status > http.StatusNotImplemented:
		return r, provider.Unavailable, askedAgain
	case text == "" && (status == http.StatusNotFound || status == http.StatusMethodNotAllowed):
		return r, provider.Invalid, isItTheAPI // of an item that is missing it says so
	case r.token && s.access.Login[uidField] != "":
		return r, provider.Denied, "the universal identity's token is over, or was rotated: put one that is valid into " + uidTokenKey
	case r.token, status == http.StatusForbidden, says(denials...):
		return r, provider.Denied, "give the auth method a role that may read the item"
	case status == http.StatusNotFound, status < 500 && says(absences...) && says("item", "secret"):
		return r, provider.NotFound, "create the item, or correct secretPath"
	case status >= 500:
		return r, provider.Unavailable, askedAgain
	}
	return r, provider.Internal, ""
}
