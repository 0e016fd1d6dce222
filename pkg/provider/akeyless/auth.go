package akeyless

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// renewAfter is when a new login takes the place of one that does not say how
	// long it is valid: by default that is 300 seconds for the k8s auth method.
	renewAfter = 4 * time.Minute
	// validFor is the longest that such a login is used: Akeyless' own provider
	// logs in anew after that.
	validFor = 870 * time.Second
)

// The fields of /auth.
const (
	typeField     = "access-type"
	idField       = "access-id"
	keyField      = "access-key"
	configField   = "k8s-auth-config-name"
	k8sTokenField = "k8s-service-account-token"
	jwtField      = "jwt"
	uidField      = "uid-token"
)

// access is a gateway and all that it takes to log in there.
type access struct {
	Gateway string            `json:"gateway"`
	CACert  string            `json:"caCert,omitempty"`
	Login   map[string]string `json:"login"`           // what /auth is asked; it is not for a universal identity
	Token   string            `json:"token,omitempty"` // of the last login
}

// String names it for an error.
func (a access) String() string { return a.Gateway + " by " + a.Login[typeField] }

// as tells for whom credentials are made: it stays the same when the pod's token,
// the access key or the CA changes.
func (a access) as() string {
	return strings.Join([]string{a.Gateway, a.Login[typeField], a.Login[idField], a.Login[configField]}, "\x00")
}

// errMissing says which parameter is missing. The volume's Secret comes with
// kubelet's calls, as the pod's tokens do.
type errMissing string

func (e errMissing) Error() string {
	return "neither the class nor the volume's Secret has " + string(e)
}
func (e errMissing) Is(target error) bool { return target == provider.ErrNoCredentials }

// identify adds what proves the pod's identity.
func (d *params) identify(req provider.Request) error {
	a := d.access
	field, key := keyField, accessKeyKey
	switch a.Login[typeField] {
	case byUniversal:
		field, key = uidField, uidTokenKey
	case byK8s, byJWT:
		token, err := login.Token(req, a.String(), d.audiences...)
		if a.Login[typeField] == byJWT {
			a.Login[jwtField] = string(token.Value.Reveal())
		} else {
			a.Login[k8sTokenField] = base64.StdEncoding.EncodeToString(token.Value.Reveal())
		}
		return err
	}
	if a.Login[field] = d.given[key]; a.Login[field] == "" {
		a.Login[field] = strings.TrimSpace(string(req.Secrets[key].Reveal()))
	}
	if a.Login[field] == "" {
		return &provider.Error{Kind: provider.Denied, Op: "log in to " + a.String(), Err: errMissing(key),
			Remedy: "put it into the Secret that the volume's nodePublishSecretRef names, or use akeylessAccessType k8s, which needs none"}
	}
	return nil
}

// session is what one fetch, or one release, has to do with a gateway.
type session struct {
	provider *Provider
	client   *http.Client
	access   access
	key      string // of the login, for all of the same identity
	pod      string // what the pod's token says, for errors
	err      error  // why nobody can log in; nil where one can
	seen     seen

	mu    sync.Mutex
	token string // used last; guarded by mu
}

// open returns a session, which begins with the token of the last one, as long as
// the gateway takes that. Close it.
func (p *Provider) open(a access) (*session, error) {
	s := &session{provider: p, client: p.clients.Get(a.CACert), access: a, token: a.Token}
	identity, jwt := a.Login[keyField], a.Login[jwtField]
	if text, ok := a.Login[k8sTokenField]; ok {
		decoded, _ := base64.StdEncoding.DecodeString(text)
		jwt = string(decoded)
	}
	if jwt != "" {
		claims, err := login.Read(secret.FromString(jwt))
		if err != nil {
			return nil, &provider.Error{Kind: provider.Internal, Op: "read the pod's token", Err: err}
		}
		identity, s.pod = claims.Identity(), claims.String()
	}
	mac := hmac.New(sha256.New, p.key)
	for _, part := range []string{a.as(), a.CACert, identity} {
		fmt.Fprintf(mac, "%d:%s", len(part), part)
	}
	s.key = string(mac.Sum(nil))
	if now := time.Now(); a.Token != "" {
		p.sessions.Put(s.key, login.Session[secret.Value]{Value: secret.FromString(a.Token), Renew: now.Add(time.Minute), Ends: now.Add(time.Minute)})
	}
	secrets, err := json.Marshal([]string{a.Token, a.Login[keyField], a.Login[uidField], a.Login[k8sTokenField], jwt})
	s.seen.add(secrets)
	return s, err
}

// close forgets what was sent and received.
func (s *session) close() { s.seen.clear() }

// current returns the access with the token used last.
func (s *session) current() access {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.access
	a.Token = s.token
	return a
}

// authorize returns the token to use: that of the login which all of the same
// identity share.
func (s *session) authorize(ctx context.Context) (string, error) {
	if s.err != nil {
		return "", s.err
	}
	token := s.access.Login[uidField]
	if token == "" {
		shared, err := s.provider.sessions.Get(ctx, s.key, s.login)
		if err != nil {
			return "", err
		}
		token = string(shared.Reveal())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != token {
		s.token = token
		s.seen.add([]byte(`"` + token + `"`))
	}
	return token, nil
}

// ask calls an operation that needs a token. One that the gateway does not take
// any more is replaced, once.
func (s *session) ask(ctx context.Context, op string, request map[string]any) ([]byte, error) {
	for again := false; ; again = true {
		token, err := s.authorize(ctx)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(token, "u-") {
			request[uidField] = token
		} else {
			request["token"] = token
		}
		answer, err := s.call(ctx, op, request)
		if again || !refusalOf(err).token || s.access.Login[uidField] != "" {
			return answer, err
		}
		s.provider.sessions.Forget(s.key, func(t secret.Value) bool { return string(t.Reveal()) == token })
	}
}

// login logs in, for all who wait for it: it may go on when this session has ended.
func (s *session) login(ctx context.Context, _ *login.Session[secret.Value]) (login.Session[secret.Value], error) {
	a := s.access
	a.Token = ""
	s, err := s.provider.open(a)
	if err != nil {
		return login.Session[secret.Value]{}, err
	}
	defer s.close()
	request := map[string]any{}
	for field, value := range s.access.Login {
		request[field] = value
	}
	body, err := s.call(ctx, opAuth, request)
	if err != nil {
		return login.Session[secret.Value]{}, s.explain(err)
	}
	var answer struct {
		Token      string
		Expiration any
	}
	if json.Unmarshal(body, &answer) != nil || answer.Token == "" {
		return login.Session[secret.Value]{}, s.explain(&provider.Error{Kind: provider.Internal, Err: errors.New("the gateway's answer has no token"), Remedy: isItTheAPI})
	}
	now := time.Now()
	made := login.Session[secret.Value]{Value: secret.FromString(answer.Token), Renew: now.Add(renewAfter), Ends: now.Add(validFor)}
	// How the time is written, the vendor's documents do not say.
	if ends, err := time.Parse(time.RFC3339, fmt.Sprint(answer.Expiration)); err == nil && ends.After(now.Add(time.Minute)) {
		made.Renew, made.Ends = now.Add(min(ends.Sub(now)*2/3, validFor)), ends.Add(-10*time.Second)
	}
	return made, nil
}

// explain says what was tried, and what the pod's token says: why a login is
// refused, the gateway tells in few words, and with whatever status.
func (s *session) explain(err error) error {
	var known *provider.Error
	if !errors.As(err, &known) {
		return err
	}
	e := *known
	e.Object, e.Op = fmt.Sprintf("access id %.60q", s.access.Login[idField]), "log in to "+s.access.String()
	if refusalOf(err).status == 0 || e.Kind != provider.Denied && e.Kind != provider.NotFound && e.Kind != provider.Internal {
		return &e
	}
	e.Kind, e.Remedy = provider.Denied, "correct akeylessAccessID and the access key"
	if s.pod != "" {
		e.Err = fmt.Errorf("%w (the pod's token has %s)", e.Err, s.pod)
		e.Remedy = "is the auth method for this issuer and audience, and bound to this service account?"
	}
	if config := s.access.Login[configField]; config != "" {
		e.Remedy += fmt.Sprintf(" Is the gateway's auth config %.60q for this cluster, and may it review tokens of this audience?", config)
	}
	return &e
}
