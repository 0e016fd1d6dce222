package conjur

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// maxAnswerBytes bounds an answer, maxErrorBytes what is read of an error.
	maxAnswerBytes, maxErrorBytes = 16 << 20, 16 << 10
	// Conjur has no paging, and servers and proxies end a URL at 8 KiB.
	maxBatch, maxQueryBytes = 100, 6 << 10
	comma                   = "%2C"
	// plain and inBase64 are encodings of answers.
	plain, inBase64 = "identity", "base64"

	// accessLife is how long an access token is accepted, unless its payload says
	// otherwise; after accessRenew it is replaced.
	accessLife  = 480 * time.Second
	accessRenew = 5 * time.Minute
)

// errNotAccepted marks that Conjur does not accept the access token.
var errNotAccepted = errors.New("the access token is not accepted")

// conn is Conjur as one class reaches it, with the access token of one pod.
type conn struct {
	*class
	client *http.Client
	access secret.Value // the Authorization header; empty at a login
}

// answer is what Conjur answered. body is to be cleared.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// call makes one request and returns an answer of status 200, in the encoding
// that was asked for, or any other answer. Errors are those of the way there.
func (c conn) call(ctx context.Context, op, method, path, form, encoding string) (*answer, error) {
	fail := func(kind provider.Kind, err error, remedy string) (*answer, error) {
		return nil, &provider.Error{Kind: kind, Op: op, Err: err, Remedy: remedy}
	}
	request, err := http.NewRequestWithContext(ctx, method, c.address+path, strings.NewReader(form))
	if err != nil {
		return fail(provider.Internal, errors.New("the request cannot be made"), "")
	}
	request.Header.Set("Accept-Encoding", encoding)
	if form != "" {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if !c.access.IsEmpty() {
		request.Header.Set("Authorization", string(c.access.Reveal()))
	}
	response, err := c.client.Do(request)
	if err != nil {
		kind, remedy, err := c.unreachable(err)
		return fail(kind, err, remedy)
	}
	defer response.Body.Close()
	a := &answer{status: response.StatusCode, header: response.Header}
	if a.status != http.StatusOK {
		a.body, _ = io.ReadAll(io.LimitReader(response.Body, maxErrorBytes))
		return a, nil
	}
	if got := strings.ToLower(response.Header.Get("Content-Encoding")); got != encoding && (got != "" || encoding != plain) {
		return fail(provider.Internal, fmt.Errorf("the answer has the Content-Encoding %.40q in place of %q", got, encoding), "is that Conjur, of version 1.17.3 or later, and does nothing on the way change its headers?")
	}
	a.body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		clear(a.body)
		return fail(provider.Unavailable, fmt.Errorf("the answer ended early: %w", err), "it is asked again")
	case len(a.body) > maxAnswerBytes:
		clear(a.body)
		return fail(provider.TooLarge, fmt.Errorf("the answer has more than %d bytes", maxAnswerBytes), "split the objects over several classes")
	}
	return a, nil
}

// unreachable tells why there is no answer.
func (c conn) unreachable(err error) (kind provider.Kind, remedy string, _ error) {
	err = web.Bare(err)
	var untrusted *tls.CertificateVerificationError
	if !errors.As(err, &untrusted) {
		return provider.Unavailable, "it is asked again", fmt.Errorf("there is no answer: %w", err)
	}
	shown := "the server's certificate"
	if len(untrusted.UnverifiedCertificates) > 0 {
		shown += fmt.Sprintf(", by the issuer %.200q,", untrusted.UnverifiedCertificates[0].Issuer)
	}
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &hostname):
		return provider.Invalid, "write a name that it has into " + urlKey, fmt.Errorf("%s is for another name: %w", shown, hostname)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return provider.Unavailable, "renew it, or correct the clock", fmt.Errorf("%s is not valid now", shown)
	case c.certificate != "":
		return provider.Invalid, "write that CA's certificate there", fmt.Errorf("%s does not match %s", shown, certificateKey)
	}
	return provider.Invalid, "write that CA's certificate into " + certificateKey, fmt.Errorf("%s is of no public CA", shown)
}

// code is Conjur's own of an error.
var code = regexp.MustCompile(`\bCONJ\d{5}[A-Z]\b`)

// kinds are the errors that statuses stand for. Of those that are not here, 3xx
// is Invalid, 5xx Unavailable, and anything else Internal.
var kinds = map[int]provider.Kind{
	http.StatusBadRequest:          provider.Invalid,
	http.StatusUnauthorized:        provider.Denied,
	http.StatusForbidden:           provider.Denied,
	http.StatusNotFound:            provider.NotFound,
	http.StatusNotAcceptable:       provider.Invalid,
	http.StatusUnprocessableEntity: provider.Invalid,
	http.StatusTooManyRequests:     provider.Throttled,
}

// failure returns the error of any answer but 200. Of the body it takes Conjur's
// code alone.
func (c conn) failure(a *answer, op string, remedies map[int]string) *provider.Error {
	err := &provider.Error{Kind: kinds[a.status], Op: op, Err: fmt.Errorf("the answer is %d %s", a.status, http.StatusText(a.status)), Remedy: remedies[a.status], Code: string(code.Find(a.body))}
	if err.Code != "" {
		err.Err = fmt.Errorf("%w (%s)", err.Err, err.Code)
	}
	err.RetryAfter = web.RetryAfter(a.header)
	switch {
	case a.status == http.StatusUnauthorized && !c.access.IsEmpty():
		err.Err = fmt.Errorf("%w: %w", errNotAccepted, err.Err)
		err.Remedy = "is Conjur's clock right, and does " + urlKey + " lead to one Conjur alone?"
	case a.status/100 == 3:
		err.Kind, err.Remedy = provider.Invalid, "redirects are not followed: write the address that Conjur itself has into "+urlKey
	case a.status/100 == 5:
		err.Kind = provider.Unavailable
	}
	return err
}

var loginRemedies = map[int]string{
	http.StatusUnauthorized: "Conjur's log tells why: the authenticator must be enabled and know the token's issuer, audience and keys, and the host's annotations must match the token",
	http.StatusForbidden:    "permit the host to authenticate with the authenticator's webservice",
	http.StatusNotFound:     "correct " + authnKey + ", " + accountKey + " or " + urlKey,
	http.StatusBadRequest:   "is " + urlKey + " that of Conjur?",
}

// login exchanges the pod's token for an access token ("JWTAuthenticate",
// "JWTAuthenticateWithId").
func (c conn) login(ctx context.Context, token secret.Value, claims login.Claims) (login.Session[secret.Value], error) {
	var none login.Session[secret.Value]
	path, host := "/authn-jwt/"+escape(c.service)+"/"+escape(c.account), "the host that it names"
	if c.identity != "" {
		path, host = path+"/"+escape(c.identity), fmt.Sprintf("the identity %q", c.identity)
	}
	began := time.Now()
	a, err := c.call(ctx, "", http.MethodPost, path+"/authenticate", "jwt="+url.QueryEscape(string(token.Reveal())), plain)
	if err != nil {
		return none, err
	}
	defer clear(a.body)
	if a.status != http.StatusOK {
		err := c.failure(a, "", loginRemedies)
		err.Err = fmt.Errorf("%w to the pod's token (%s) and %s, with authn-jwt/%s in the account %q", err.Err, claims, host, c.service, c.account)
		return none, err
	}
	life, renew, err := accessTimes(a.body)
	if err != nil {
		return none, &provider.Error{Kind: provider.Internal, Err: err, Remedy: loginRemedies[http.StatusBadRequest]}
	}
	header := `Token token="` + base64.StdEncoding.EncodeToString(a.body) + `"`
	return login.Session[secret.Value]{Value: secret.FromString(header), Renew: began.Add(renew), Ends: began.Add(life)}, nil
}

// accessTimes returns how long an access token is of use, and when it is to be
// replaced. The error quotes nothing of it.
func accessTimes(token []byte) (life, renew time.Duration, err error) {
	var parts struct{ Protected, Payload, Signature string }
	if json.Unmarshal(token, &parts) != nil || parts.Protected == "" || parts.Payload == "" || parts.Signature == "" {
		return 0, 0, errors.New("the answer is not an access token")
	}
	var payload struct {
		Issued  float64 `json:"iat"`
		Expires float64 `json:"exp"`
	}
	text, err := provider.EncodingBase64.Decode([]byte(parts.Payload))
	if err != nil || json.Unmarshal(text, &payload) != nil {
		return 0, 0, errors.New("the payload of the access token cannot be read")
	}
	if payload.Expires == 0 || payload.Issued == 0 {
		return accessLife, accessRenew, nil
	}
	seconds := min(payload.Expires-payload.Issued, 24*60*60) // by Conjur's own clock
	if seconds < 1 {
		return 0, 0, errors.New("the access token is over already")
	}
	life = time.Duration(seconds * float64(time.Second))
	return life, life * 85 / 100, nil
}

// batch is some variables that are asked for at once.
type batch struct {
	variables []string
	query     string
}

// batches divides the variables. One that may be missing is never with one that
// may not: Conjur refuses the whole batch for it. singles must be asked for one
// by one, since in Conjur's lists a comma divides, escaped or not.
func batches(account string, wanted []object) (all []*batch, singles []string) {
	open := map[bool]*batch{} // those with room, by optional
	for _, w := range wanted {
		id := account + ":variable:" + w.variable
		if strings.Contains(id, ",") {
			singles = append(singles, w.variable)
			continue
		}
		id = escape(id)
		b := open[w.Optional]
		if b == nil || len(b.variables) == maxBatch || len(b.query)+len(comma)+len(id) > maxQueryBytes {
			b = &batch{query: id}
			open[w.Optional] = b
			all = append(all, b)
		} else {
			b.query += comma + id
		}
		b.variables = append(b.variables, w.variable)
	}
	return all, singles
}

// read reads the variables in batches, and those of a batch that Conjur refuses
// one by one, to learn which it was.
func (c conn) read(ctx context.Context, wanted []object) (map[string]outcome, error) {
	all, singles := batches(c.account, wanted)
	parts := make([]map[string][]byte, len(all))
	err := provider.Together(ctx, len(all), func(ctx context.Context, i int) (err error) {
		parts[i], err = c.batch(ctx, all[i])
		return err
	})
	found := map[string]outcome{}
	for i, b := range all {
		if parts[i] == nil {
			singles = append(singles, b.variables...)
			continue
		}
		for _, variable := range b.variables {
			value := parts[i][c.account+":variable:"+variable]
			if value == nil {
				found[variable] = outcome{err: &provider.Error{Object: named(variable), Err: errors.New("the answer leaves it out")}}
				continue
			}
			found[variable] = outcome{value: value}
		}
	}
	if err != nil {
		return found, err
	}
	outcomes := make([]outcome, len(singles))
	err = provider.Together(ctx, len(singles), func(ctx context.Context, i int) (err error) {
		outcomes[i], err = c.single(ctx, singles[i])
		return err
	})
	for i, variable := range singles {
		found[variable] = outcomes[i]
	}
	return found, err
}

// batch reads several variables ("BatchSecrets"): all, or none, for which it
// returns nil and no error.
func (c conn) batch(ctx context.Context, b *batch) (map[string][]byte, error) {
	const op = "read variables"
	a, err := c.call(ctx, op, http.MethodGet, "/secrets?variable_ids="+b.query, "", inBase64)
	if err != nil {
		return nil, err
	}
	defer clear(a.body)
	switch a.status {
	case http.StatusOK:
		values, err := decodeBatch(a.body)
		if err != nil {
			return nil, &provider.Error{Kind: provider.Internal, Op: op, Err: err}
		}
		return values, nil
	case http.StatusForbidden, http.StatusNotFound, http.StatusNotAcceptable, http.StatusUnprocessableEntity:
		return nil, nil
	}
	return nil, c.failure(a, op, nil)
}

// decodeBatch returns the values by full id. They are in base64, with line
// breaks, which the decoder skips.
func decodeBatch(body []byte) (map[string][]byte, error) {
	values := map[string][]byte{}
	if json.Unmarshal(body, &values) != nil || values == nil {
		for _, value := range values {
			clear(value)
		}
		return nil, errors.New("the answer is not a JSON object with values in base64")
	}
	return values, nil
}

var singleRemedies = map[int]string{
	http.StatusForbidden:           "permit the host to execute the variable",
	http.StatusNotFound:            "it does not exist, has no value, or the host may not see it",
	http.StatusNotAcceptable:       "correct the variable's id",
	http.StatusUnprocessableEntity: "correct the variable's id",
}

// single reads one variable ("Secret"). That there is none to be had is an
// outcome; the error is one that concerns all.
func (c conn) single(ctx context.Context, variable string) (outcome, error) {
	const op = "read it"
	a, err := c.call(ctx, op, http.MethodGet, "/secrets/"+escape(c.account)+"/variable/"+escape(variable), "", plain)
	if err != nil {
		return outcome{}, provider.Object{Name: named(variable)}.Failure(err)
	}
	if a.status == http.StatusOK {
		return outcome{value: a.body}, nil
	}
	refusal := c.failure(a, op, singleRemedies)
	refusal.Object = named(variable)
	if singleRemedies[a.status] != "" {
		return outcome{err: refusal}, nil
	}
	return outcome{}, refusal
}

// escape makes one segment of a path, or a part of a query, as the examples of
// "ResourceID" in spec/openapi.yml have it.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
