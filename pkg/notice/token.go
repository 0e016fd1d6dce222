package notice

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
)

const (
	// The documents of an issuer are asked for keysPause after the last time at the
	// earliest, or failPause where they could not be had: everybody can send a token
	// of an unknown key.
	keysPause, failPause = time.Minute, 5 * time.Second
	// keysTimeout bounds a request for one.
	keysTimeout = 10 * time.Second
)

// tokenIssuer checks the tokens of an issuer of OpenID Connect. It is safe for
// concurrent use.
type tokenIssuer struct {
	name      string // its URL, as its tokens have it
	audience  string
	discovery *http.Client
	keys      *http.Client

	mu  sync.Mutex
	set oidc.KeySet // nil until it was found
}

// newTokenIssuer returns an issuer that is asked for its keys by client, which may be
// nil, when a token comes.
func newTokenIssuer(name, audience string, client *http.Client) *tokenIssuer {
	if client == nil {
		client = &http.Client{Transport: web.Transport(&tls.Config{MinVersion: tls.VersionTLS12})}
	}
	sparing := func() *http.Client {
		return &http.Client{Transport: &sparing{next: client.Transport}, Timeout: keysTimeout, CheckRedirect: web.StayThere}
	}
	return &tokenIssuer{name: name, audience: audience, discovery: sparing(), keys: sparing()}
}

// verify reads the claims of a token that is the issuer's, has the audience and is
// valid now. Its error is a refusal.
func (i *tokenIssuer) verify(ctx context.Context, token string, claims any) error {
	set, err := i.keySet(ctx)
	if err != nil {
		return &refusal{http.StatusServiceUnavailable, reasonKeys}
	}
	asked := &asked{KeySet: set}
	verifier := oidc.NewVerifier(i.name, asked, &oidc.Config{ClientID: i.audience, SupportedSigningAlgs: []string{oidc.RS256}})
	verified, err := verifier.Verify(ctx, token)
	if err == nil {
		err = verified.Claims(claims)
	}
	if asked.unavailable {
		return &refusal{http.StatusServiceUnavailable, reasonKeys}
	}
	if err != nil {
		return &refusal{http.StatusUnauthorized, reasonToken}
	}
	return nil
}

// keySet finds the issuer's keys by its discovery document.
func (i *tokenIssuer) keySet(ctx context.Context) (oidc.KeySet, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.set != nil {
		return i.set, nil
	}
	// The request may be nobody's who waits for the answer.
	ctx = context.WithoutCancel(ctx)
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, i.discovery), i.name)
	if err != nil {
		return nil, err
	}
	var document struct {
		Keys string `json:"jwks_uri"`
	}
	if err := found.Claims(&document); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(document.Keys, "https://") {
		return nil, errors.New("its keys are nowhere")
	}
	i.set = oidc.NewRemoteKeySet(oidc.ClientContext(ctx, i.keys), document.Keys)
	return i.set, nil
}

// asked tells whether the keys to check a token with could not be had.
type asked struct {
	oidc.KeySet
	unavailable bool
}

func (a *asked) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := a.KeySet.VerifySignature(ctx, token)
	a.unavailable = errors.Is(err, errNoAnswer)
	return payload, err
}

var (
	errNoAnswer = errors.New("the issuer does not answer")
	errAskedNow = errors.New("the issuer was asked a moment ago")
)

// sparing sends a request for one document at most every keysPause. In between it
// has the last request's failure, or errAskedNow.
type sparing struct {
	next http.RoundTripper

	mu   sync.Mutex
	at   time.Time
	last error
}

func (s *sparing) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch since := time.Since(s.at); {
	case s.last != nil && since < failPause:
		return nil, s.last
	case s.last == nil && since < keysPause:
		return nil, errAskedNow
	}
	answer, err := s.next.RoundTrip(r)
	if err == nil && answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		err = errors.New(answer.Status)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	s.at, s.last = time.Now(), err
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// bearer returns the token of an Authorization header, or nothing.
func bearer(r *http.Request) string {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(kind, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}
