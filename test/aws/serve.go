package awstest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// maxSkew is the difference of clocks that AWS puts up with.
const maxSkew = 5 * time.Minute

// request is one of an operation.
type request struct {
	region, service, operation string
	caller                     *session
	in                         map[string]any
}

// serve is every endpoint: SERVICE[-fips].REGION.DOMAIN.
func (c *Cloud) serve(w http.ResponseWriter, r *http.Request) {
	labels := strings.Split(r.Host, ".")
	q := &request{service: strings.TrimSuffix(labels[0], "-fips"), region: labels[1]}
	m := c.models[q.service]
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller has gone
	}
	if m == nil || r.Method != http.MethodPost || r.URL.Path != "/" {
		c.broke("a request %s %s to %s", r.Method, r.URL.Path, r.Host)
		http.NotFound(w, r)
		return
	}
	var out map[string]any
	failed := c.decode(m, r, body, q)
	if f, wanted := c.began(r.Context(), q.region, q.operation); wanted {
		failed = &f
	}
	if failed == nil && q.service != "sts" {
		failed = c.authenticate(r, body, q)
	}
	if failed == nil {
		out, failed = c.do(r, q)
	}
	if failed == nil {
		if err := m.check(m.Operations[q.operation].Output.Shape, out, q.operation+"'s answer"); err != nil {
			c.broke("%v", err)
		}
	}
	c.mu.Lock()
	w.Header().Set("Date", c.now().UTC().Format(http.TimeFormat))
	c.mu.Unlock()
	w.Header().Set("X-Amzn-Requestid", random())
	status := http.StatusOK
	if failed != nil {
		status = m.status(*failed)
		if failed.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(failed.RetryAfter))
		}
	}
	if q.service == "sts" {
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(status)
		answerXML(w, m, q, out, failed)
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	if failed != nil {
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": failed.Code, "Message": failed.Message})
		return
	}
	_ = json.NewEncoder(w).Encode(wire(out))
}

// decode reads a request in the service's protocol: AWS JSON 1.1 or AWS query.
func (c *Cloud) decode(m *model, r *http.Request, body []byte, q *request) *Failure {
	if q.service == "sts" {
		form, err := url.ParseQuery(string(body))
		q.operation, q.in = form.Get("Action"), map[string]any{}
		if err != nil || form.Get("Version") != m.Metadata.APIVersion {
			c.broke("an STS request of version %q, %v", form.Get("Version"), err)
		}
		for key := range form {
			if key != "Action" && key != "Version" {
				q.in[key] = form.Get(key)
			}
		}
	} else {
		prefix, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		if q.operation = operation; prefix != m.Metadata.TargetPrefix || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
			c.broke("a request with the target %q in %q", r.Header.Get("X-Amz-Target"), r.Header.Get("Content-Type"))
		}
		if err := json.Unmarshal(body, &q.in); err != nil {
			return &Failure{Code: "SerializationException"}
		}
	}
	operation, ok := m.Operations[q.operation]
	if !ok {
		c.broke("%s has no operation %q here", q.service, q.operation)
		return &Failure{Code: "UnknownOperationException"}
	}
	if err := m.check(operation.Input.Shape, q.in, q.operation); err != nil {
		c.broke("%v", err)
		return &Failure{Code: "ValidationException", Message: "1 validation error detected: " + err.Error()}
	}
	return nil
}

// authenticate computes the signature of a request again
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html) and finds
// out whose it is.
func (c *Cloud) authenticate(r *http.Request, body []byte, q *request) *Failure {
	fields := map[string]string{}
	header, isV4 := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	for part := range strings.SplitSeq(header, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[key] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if !isV4 || len(scope) != 5 || err != nil {
		return &Failure{Code: "MissingAuthenticationTokenException", Message: "Missing Authentication Token"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sessions[scope[0]]
	if s == nil || s.token != r.Header.Get("X-Amz-Security-Token") {
		return &Failure{Code: "UnrecognizedClientException", Message: "The security token included in the request is invalid."}
	}
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "https://"+r.Host+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return &Failure{Code: "InvalidSignatureException"}
	}
	for name := range strings.SplitSeq(fields["SignedHeaders"], ";") {
		if name != "host" && name != "content-length" {
			again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	sum := sha256.Sum256(body)
	credentials := aws.Credentials{AccessKeyID: scope[0], SecretAccessKey: s.secret, SessionToken: s.token}
	if err := v4.NewSigner().SignHTTP(r.Context(), credentials, again, hex.EncodeToString(sum[:]), q.service, q.region, at); err != nil || again.Header.Get("Authorization") != r.Header.Get("Authorization") {
		return &Failure{Code: "InvalidSignatureException", Message: "The request signature we calculated does not match the signature you provided. The Canonical String for this request should have been 'POST / x-amz-security-token:" + s.token + "'"}
	}
	if off := c.now().Sub(at).Abs(); off > maxSkew {
		return &Failure{Code: "InvalidSignatureException", Message: fmt.Sprintf("Signature not yet current or expired: %s is off by %s", at.Format(time.RFC3339), off)}
	}
	if s.over {
		return &Failure{Code: "ExpiredTokenException", Message: "The security token included in the request is expired"}
	}
	q.caller = s
	return nil
}

// wire makes of an answer what JSON 1.1 has: times as seconds, blobs in base64.
func wire(value any) any {
	switch v := value.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, inner := range v {
			out[key] = wire(inner)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, inner := range v {
			out[i] = wire(inner)
		}
		return out
	case time.Time:
		return float64(v.UnixMilli()) / 1000
	case []byte:
		return base64.StdEncoding.EncodeToString(v)
	}
	return value
}

// answerXML writes an answer of the query protocol.
func answerXML(w io.Writer, m *model, q *request, out map[string]any, failed *Failure) {
	text := func(s string) string {
		var b bytes.Buffer
		_ = xml.EscapeText(&b, []byte(s))
		return b.String()
	}
	if failed != nil {
		fmt.Fprintf(w, `<ErrorResponse xmlns="%s"><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>%s</RequestId></ErrorResponse>`,
			m.Metadata.XMLNamespace, text(failed.Code), text(failed.Message), random())
		return
	}
	var element func(name string, value any) string
	element = func(name string, value any) string {
		inner := ""
		switch v := value.(type) {
		case map[string]any:
			for _, key := range keys(v) {
				inner += element(key, v[key])
			}
		case time.Time:
			inner = v.UTC().Format(time.RFC3339)
		default:
			inner = text(fmt.Sprint(v))
		}
		return "<" + name + ">" + inner + "</" + name + ">"
	}
	fmt.Fprintf(w, `<%sResponse xmlns="%s">%s</%sResponse>`, q.operation, m.Metadata.XMLNamespace, element(m.Operations[q.operation].Output.ResultWrapper, any(out)), q.operation)
}

// agent answers as https://github.com/aws/eks-pod-identity-agent does.
func (c *Cloud) agent(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, text string) { http.Error(w, text, status) }
	if f, wanted := c.began(r.Context(), "", "Agent"); wanted {
		if f.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(f.RetryAfter))
		}
		refuse(f.Status, fmt.Sprintf("[%s]: (%s): %s, fault: client", random(), f.Code, f.Message))
		return
	}
	if r.Method != http.MethodGet || r.URL.Path != "/v1/credentials" {
		c.broke("a request %s %s to the agent", r.Method, r.URL.Path)
		http.NotFound(w, r)
		return
	}
	token := r.Header.Get("Authorization")
	if strings.Count(token, ".") != 2 {
		refuse(http.StatusBadRequest, "Service account token cannot be parsed: "+token)
		return
	}
	subject, err := c.verifier.Verify(r.Context(), token, "pods.eks.amazonaws.com")
	if err != nil {
		refuse(http.StatusBadRequest, fmt.Sprintf("[%s]: (InvalidTokenException): The service account token is invalid: %s, fault: client", random(), token))
		return
	}
	c.mu.Lock()
	role, ok := c.associations[subject]
	if !ok {
		c.mu.Unlock()
		refuse(http.StatusNotFound, fmt.Sprintf("[%s]: (ResourceNotFoundException): No EKS Pod Identity association found for service account, fault: client", random()))
		return
	}
	id, key, session := c.open(role, "eks-pod-identity")
	answer := map[string]any{"AccessKeyId": id, "SecretAccessKey": key, "Token": session, "AccountId": Account, "Expiration": c.now().Add(lifetime).UTC().Format(time.RFC3339Nano)}
	c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// do performs an operation.
func (c *Cloud) do(r *http.Request, q *request) (map[string]any, *Failure) {
	if q.operation == "AssumeRoleWithWebIdentity" {
		return c.assumeRole(r, q)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return map[string]func(*request) (map[string]any, *Failure){
		"GetSecretValue": c.getSecretValue, "BatchGetSecretValue": c.batchGetSecretValue, "DescribeSecret": c.describeSecret, "ListSecrets": c.listSecrets,
		"GetParameters": c.getParameters, "DescribeParameters": c.describeParameters,
	}[q.operation](q)
}

func (c *Cloud) assumeRole(r *http.Request, q *request) (map[string]any, *Failure) {
	if r.Header.Get("Authorization") != "" {
		c.broke("AssumeRoleWithWebIdentity is signed")
	}
	token := q.in["WebIdentityToken"].(string)
	subject, err := c.verifier.Verify(r.Context(), token, "sts.amazonaws.com")
	if err != nil {
		if _, wrong := c.verifier.Verify(r.Context(), token, "sts.amazonaws.com"); strings.Contains(wrong.Error(), "expired") {
			return nil, &Failure{Code: "ExpiredTokenException", Message: "Token expired: current date/time must be before the expiration date/time"}
		}
		return nil, &Failure{Code: "InvalidIdentityToken", Message: "Incorrect token audience, or no key of the identity provider signed the token " + token}
	}
	arn := q.in["RoleArn"].(string)
	c.mu.Lock()
	defer c.mu.Unlock()
	role, ok := c.roles[arn]
	if !ok || !slices.Contains(role.Subjects, subject) {
		return nil, &Failure{Code: "AccessDenied", Message: "Not authorized to perform sts:AssumeRoleWithWebIdentity", Status: http.StatusForbidden}
	}
	name := q.in["RoleSessionName"].(string)
	id, key, session := c.open(arn, name)
	return map[string]any{
		"Credentials":                 map[string]any{"AccessKeyId": id, "SecretAccessKey": key, "SessionToken": session, "Expiration": c.now().Add(lifetime)},
		"SubjectFromWebIdentityToken": subject, "Audience": "sts.amazonaws.com", "Provider": c.verifier.Issuer(),
		"AssumedRoleUser": map[string]any{"Arn": assumed(arn, name), "AssumedRoleId": "AROA" + random() + ":" + name},
	}, nil
}

// assumed is the ARN of a session.
func assumed(role, name string) string {
	return fmt.Sprintf("arn:aws:sts::%s:assumed-role/%s/%s", Account, role[strings.LastIndexByte(role, '/')+1:], name)
}
