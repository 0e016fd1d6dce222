package gcptest

import (
	"context"
	"encoding/json"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

const cloudScope = "https://www.googleapis.com/auth/cloud-platform"

// rest serves one kind of calls.
func (g *Google) rest(kind string, answer func(w http.ResponseWriter, r *http.Request)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fails := g.begin(kind); fails != nil {
			refuse(w, fails)
			return
		}
		answer(w, r)
	})
}

// httpStatus is how an error looks by HTTP (google/rpc/code.proto).
var httpStatus = map[codes.Code]int{
	codes.InvalidArgument: 400, codes.FailedPrecondition: 400, codes.Unauthenticated: 401, codes.PermissionDenied: 403, codes.NotFound: 404,
	codes.ResourceExhausted: 429, codes.Internal: 500, codes.Unavailable: 503,
}

// refuse answers with an error as Google's REST services do
// (https://google.aip.dev/193#http11json-representation).
func refuse(w http.ResponseWriter, s *status.Status) {
	var details []json.RawMessage
	for _, detail := range s.Proto().GetDetails() {
		if text, err := protojson.Marshal(detail); err == nil {
			details = append(details, text)
		}
		if wait := new(errdetails.RetryInfo); detail.UnmarshalTo(wait) == nil {
			w.Header().Set("Retry-After", strconv.Itoa(int(wait.GetRetryDelay().AsDuration().Seconds())))
		}
	}
	reply(w, httpStatus[s.Code()], map[string]any{"error": map[string]any{"code": httpStatus[s.Code()], "message": s.Message(), "status": code.Code(s.Code()).String(), "details": details}})
}

func reply(w http.ResponseWriter, code int, answer any) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(answer)
}

// exchange is https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token;
// its errors are those of RFC 6749.
func (g *Google) exchange(w http.ResponseWriter, r *http.Request) {
	no := func(code, description string) {
		reply(w, http.StatusBadRequest, map[string]string{"error": code, "error_description": description})
	}
	if r.Method != http.MethodPost || r.URL.Path != "/v1/token" || r.ParseForm() != nil {
		refuse(w, status.New(codes.NotFound, "Method not found."))
		return
	}
	for field, want := range map[string]string{
		"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
		"subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "scope": cloudScope,
	} {
		if r.PostForm.Get(field) != want {
			no("invalid_request", "Invalid value for \""+field+"\".")
			return
		}
	}
	g.mu.Lock()
	of, ok := g.pools[r.PostForm.Get("audience")]
	life := g.life
	g.mu.Unlock()
	if !ok {
		no("invalid_target", `The target service indicated by the "audience" parameters is invalid. This might either be because the pool or provider is disabled or deleted or because it doesn't exist.`)
		return
	}
	subject, err := of.subject(r.Context(), r.PostForm.Get("subject_token"))
	if err != nil {
		no("invalid_grant", "The ID Token is not accepted: "+err.Error())
		return
	}
	g.mu.Lock()
	token := g.issue(of.principal(subject))
	g.mu.Unlock()
	reply(w, http.StatusOK, map[string]any{"access_token": token, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "token_type": "Bearer", "expires_in": int(life.Seconds())})
}

// subject returns whose a pod's token is, if the pool takes it.
func (p pool) subject(ctx context.Context, token string) (subject string, err error) {
	for _, audience := range p.audiences {
		if subject, err = p.tokens.Verify(ctx, token, audience); err == nil {
			return subject, nil
		}
	}
	return "", err
}

// impersonate is
// https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken.
func (g *Google) impersonate(w http.ResponseWriter, r *http.Request) {
	principal, refused := g.authenticate(r.Header.Get("Authorization"))
	if refused != nil {
		refuse(w, refused)
		return
	}
	const prefix = "projects/-/serviceAccounts/"
	var request struct {
		Scope     []string `json:"scope"`
		Delegates []string `json:"delegates"`
		Lifetime  string   `json:"lifetime"`
	}
	name, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/v1/"), ":generateAccessToken")
	life := time.Hour
	var err error
	if json.NewDecoder(r.Body).Decode(&request) != nil || r.Method != http.MethodPost || len(request.Scope) != 1 || request.Scope[0] != cloudScope {
		ok = false
	}
	if request.Lifetime != "" {
		if life, err = time.ParseDuration(request.Lifetime); err != nil || life > time.Hour {
			ok = false
		}
	}
	if !ok {
		refuse(w, status.New(codes.InvalidArgument, "Request contains an invalid argument."))
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, next := range append(request.Delegates, name) {
		email := strings.TrimPrefix(next, prefix)
		as := g.accounts[email]
		switch {
		case as == nil:
			refuse(w, status.New(codes.NotFound, "Not found; Gaia id not found for email "+email))
			return
		case !as.members[principal]:
			refuse(w, denied("iam.googleapis.com", "iam.serviceAccounts.getAccessToken", next))
			return
		}
		principal = "serviceAccount:" + email
	}
	reply(w, http.StatusOK, map[string]string{"accessToken": g.issue(principal), "expireTime": time.Now().Add(life).UTC().Format(time.RFC3339)})
}

var (
	renderPath = regexp.MustCompile(`^/v1/((projects/[^/]+/locations/([^/]+)/parameters/[^/]+)/versions/[^/]+):render$`)
	reference  = regexp.MustCompile(`__REF__\(\\?"?//secretmanager\.googleapis\.com/([^)"\\]+)\\?"?\)`)
)

// render is
// https://cloud.google.com/secret-manager/parameter-manager/docs/reference/rest/v1/projects.locations.parameters.versions/render.
// Secrets are read as the caller; those of the parameter's own identity are not
// told apart.
func (g *Google) render(w http.ResponseWriter, r *http.Request) {
	principal, refused := g.authenticate(r.Header.Get("Authorization"))
	if refused != nil {
		refuse(w, refused)
		return
	}
	m := renderPath.FindStringSubmatch(r.URL.Path)
	host := "parametermanager.googleapis.com"
	if m != nil && m[3] != "global" {
		host = "parametermanager." + m[3] + ".rep.googleapis.com"
	}
	if m == nil || r.Method != http.MethodGet || r.Host != host {
		refuse(w, status.New(codes.InvalidArgument, "Request contains an invalid argument."))
		return
	}
	const permission = "parametermanager.parameterVersions.render"
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.allowed(principal, permission, m[1]) {
		refuse(w, denied("parametermanager.googleapis.com", permission, m[1]))
		return
	}
	payload, ok := g.parameters[m[1]]
	if !ok {
		refuse(w, status.Newf(codes.NotFound, "Resource '%s' was not found", m[1]))
		return
	}
	var missing error
	rendered := reference.ReplaceAllStringFunc(payload, func(text string) string {
		found, _, err := g.find(principal, "secretmanager.versions.access", reference.FindStringSubmatch(text)[1])
		if err != nil {
			missing = err
			return ""
		}
		return found.value
	})
	if missing != nil {
		refuse(w, status.Convert(missing))
		return
	}
	parts := strings.Split(m[1], "/")
	parts[1] = ProjectNumber
	reply(w, http.StatusOK, map[string]any{"parameterVersion": strings.Join(parts, "/"), "payload": map[string]any{"data": []byte(payload)}, "renderedPayload": []byte(rendered)})
}

// metadata is https://cloud.google.com/compute/docs/metadata/overview.
func (g *Google) metadata(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Metadata-Flavor", "Google")
	if r.Header.Get("Metadata-Flavor") != "Google" {
		http.Error(w, "Missing Metadata-Flavor:Google header.", http.StatusForbidden)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	answers := map[string]string{"project-id": Project, "cluster-location": "europe-west1", "cluster-name": "main"}
	if strings.HasSuffix(r.URL.Path, "/instance/service-accounts/default/token") {
		reply(w, http.StatusOK, map[string]any{"access_token": g.issue("serviceAccount:" + NodeAccount), "expires_in": int(g.life.Seconds()), "token_type": "Bearer"})
		return
	}
	answer, ok := answers[path.Base(r.URL.Path)]
	if !ok || !strings.HasPrefix(r.URL.Path, "/computeMetadata/v1/") {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write([]byte(answer))
}
