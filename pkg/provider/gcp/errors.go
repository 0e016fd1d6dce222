package gcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
)

// errNotAccepted says that Google knows the access token no more.
var errNotAccepted = errors.New("the access token is not accepted")

const (
	// maxShownBytes bounds what an error quotes of Google's.
	maxShownBytes = 500
	// maxRetryAfter bounds the wait that Google may ask for.
	maxRetryAfter = time.Hour
)

// right is what an identity needs for a call.
type right struct{ op, permission, role string }

var (
	toAccess = right{"read it", "secretmanager.versions.access", "roles/secretmanager.secretAccessor"}
	toSee    = right{"ask for its version", "secretmanager.versions.get", "roles/secretmanager.viewer"}
	toList   = right{"list secrets", "secretmanager.secrets.list", "roles/secretmanager.viewer"}
	toRender = right{"render it", "parametermanager.parameterVersions.render", "roles/parametermanager.parameterAccessor"}
)

// refused is an answer by HTTP that is none of success.
type refused struct {
	status *status.Status
	wait   time.Duration // zero where it asks for none
}

func (r *refused) Error() string { return r.status.Code().String() }

// GRPCStatus has package status find it.
func (r *refused) GRPCStatus() *status.Status { return r.status }

// httpCodes are those of answers that are not Google's own JSON.
var httpCodes = map[int]codes.Code{
	http.StatusBadRequest: codes.InvalidArgument, http.StatusUnauthorized: codes.Unauthenticated, http.StatusForbidden: codes.PermissionDenied,
	http.StatusNotFound: codes.NotFound, http.StatusTooManyRequests: codes.ResourceExhausted,
}

// refusedBy reads an answer that is an error
// (https://google.aip.dev/193#http11json-representation).
func refusedBy(answer *http.Response, body []byte) *refused {
	var text struct {
		Error struct {
			Message string            `json:"message"`
			Status  string            `json:"status"`
			Details []json.RawMessage `json:"details"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &text)
	of, ok := httpCodes[answer.StatusCode]
	if answer.StatusCode >= http.StatusInternalServerError {
		of = codes.Unavailable
	} else if !ok {
		of = codes.Unknown
	}
	if named, ok := code.Code_value[text.Error.Status]; ok {
		of = codes.Code(named)
	}
	made := &spb.Status{Code: int32(of), Message: text.Error.Message}
	if made.Message == "" {
		made.Message = fmt.Sprintf("the answer is %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
	}
	for _, detail := range text.Error.Details {
		var known anypb.Any
		if protojson.Unmarshal(detail, &known) == nil { // of others there is nothing to learn
			made.Details = append(made.Details, &known)
		}
	}
	return &refused{status.FromProto(made), web.RetryAfter(answer.Header)}
}

var kinds = map[codes.Code]provider.Kind{
	codes.InvalidArgument: provider.Invalid, codes.FailedPrecondition: provider.Invalid, codes.OutOfRange: provider.Invalid, codes.Unimplemented: provider.Invalid,
	codes.NotFound:         provider.NotFound,
	codes.PermissionDenied: provider.Denied, codes.Unauthenticated: provider.Denied,
	codes.ResourceExhausted: provider.Throttled,
	codes.Unavailable:       provider.Unavailable, codes.DeadlineExceeded: provider.Unavailable, codes.Canceled: provider.Unavailable, codes.Aborted: provider.Unavailable, codes.Internal: provider.Unavailable,
}

var kindRemedies = map[provider.Kind]string{
	provider.Throttled:   "raise the project's quota, or refresh less often",
	provider.Unavailable: "does Google's status page tell of an outage, and does the node reach the host?",
}

// unreadable is what Secret Manager says of a version in another state than
// enabled. Its code is that of other refusals too, as of a key (CMEK) that cannot
// be used.
var unreadable = regexp.MustCompile(`is in (DISABLED|DESTROYED) state`)

// failure makes an error of what a call returned: of Google's answers it has the
// code and the message, which is about resources and never has their contents.
func failure(op string, err error) *provider.Error {
	var governed *provider.Error
	if errors.As(err, &governed) { // it was not made
		e := *governed
		return &e
	}
	answer, ok := status.FromError(err)
	if !ok {
		if !errors.Is(err, context.DeadlineExceeded) {
			err = web.Bare(err)
		}
		return &provider.Error{Kind: provider.Unavailable, Op: op, Err: err, Remedy: kindRemedies[provider.Unavailable]}
	}
	e := &provider.Error{Kind: kinds[answer.Code()], Op: op, Code: code.Code(answer.Code()).String()}
	e.Err = fmt.Errorf("%s: %s", e.Code, shown(answer.Message()))
	e.Remedy = kindRemedies[e.Kind]
	if answer.Code() == codes.FailedPrecondition && unreadable.MatchString(answer.Message()) {
		e.Kind, e.Remedy = provider.NotFound, "enable the version, add another, or name another"
	}
	for _, detail := range answer.Details() {
		switch detail := detail.(type) {
		case *errdetails.RetryInfo:
			e.RetryAfter = min(max(detail.GetRetryDelay().AsDuration(), 0), maxRetryAfter)
		case *errdetails.ErrorInfo:
			if detail.GetReason() == "SERVICE_DISABLED" {
				e.Remedy = "enable the API: gcloud services enable " + shown(detail.GetMetadata()["service"])
			}
		}
	}
	var byHTTP *refused
	if errors.As(err, &byHTTP) && byHTTP.wait > 0 {
		e.RetryAfter = byHTTP.wait
	}
	return e
}

// shown returns the beginning of a message. What gRPC says of a proxy may have
// its password.
func shown(message string) string {
	if strings.Contains(message, "proxy") {
		return "the proxy of the driver's environment does not lead there"
	}
	if len(message) > maxShownBytes {
		return strings.ToValidUTF8(message[:maxShownBytes], "") + "..."
	}
	return message
}

// refusal is failure for a call that concerns a resource.
func (c caller) refusal(name string, need right, err error) *provider.Error {
	e := failure(need.op, err)
	e.Object = named(name)
	switch code.Code_value[e.Code] {
	case int32(codes.Unauthenticated):
		e.Err = fmt.Errorf("%w: %w", errNotAccepted, e.Err)
		e.Remedy = fmt.Sprintf("is the node's clock right, and has %s not been disabled or deleted?", c.who)
	case int32(codes.PermissionDenied):
		e.Err = fmt.Errorf("%w (asked as %s)", e.Err, c.who)
		if e.Remedy == "" {
			e.Remedy = fmt.Sprintf("grant it %s there, as with %s", need.permission, need.role)
		}
	case int32(codes.NotFound):
		e.Remedy = "correct " + nameField + ", or create it"
	}
	return e
}
