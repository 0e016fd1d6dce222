package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// minExpiration is the least that an API server gives a token.
	minExpiration = 10 * time.Minute
	// usable is how long a token must be valid still to be used.
	usable = time.Minute
	// requestTimeout bounds one request.
	requestTimeout = 10 * time.Second
)

// TokenRequest is a token that stores are shown, as the tokenRequests of a
// CSIDriver have it.
type TokenRequest struct {
	// Audience is whom the token is for; empty for the API server itself.
	Audience string `json:"audience"`
	// ExpirationSeconds is for how long it is valid, 600 or more; 0 leaves that to
	// the API server.
	ExpirationSeconds int64 `json:"expirationSeconds,omitempty"`
}

func (r TokenRequest) check() error {
	if r.ExpirationSeconds != 0 && r.ExpirationSeconds < int64(minExpiration/time.Second) {
		return fmt.Errorf("the token for the audience %q would expire after %d seconds; the API server gives none for less than %.0f", r.Audience, r.ExpirationSeconds, minExpiration.Seconds())
	}
	return nil
}

// tokens has the API server make tokens of service accounts, and keeps each until
// four fifths of its time are over. It is safe for concurrent use.
type tokens struct {
	client   rest.Interface
	requests []TokenRequest

	mu       sync.Mutex
	accounts map[types.NamespacedName]*account
}

// account has the tokens of one service account. Its lock is held while one is
// made, for all who wait.
type account struct {
	mu     sync.Mutex
	tokens map[string]issued // by audience
}

type issued struct {
	provider.Token
	renew time.Time
}

// of returns the tokens of a service account by audience.
func (t *tokens) of(ctx context.Context, name types.NamespacedName) (map[string]provider.Token, error) {
	t.mu.Lock()
	a := t.accounts[name]
	if a == nil {
		a = &account{tokens: map[string]issued{}}
		t.accounts[name] = a
	}
	t.mu.Unlock()

	a.mu.Lock()
	defer a.mu.Unlock()
	all := make(map[string]provider.Token, len(t.requests))
	for _, r := range t.requests {
		has := a.tokens[r.Audience]
		if !time.Now().Before(has.renew) {
			made, err := t.make(ctx, name, r)
			switch {
			case err == nil:
				has, a.tokens[r.Audience] = made, made
			case time.Until(has.Expires) < usable:
				return nil, err
			default:
				klog.FromContext(ctx).Error(err, "A token is used that ends soon")
			}
		}
		all[r.Audience] = has.Token
	}
	return all, nil
}

// forget has the next call of of make new tokens: the service account may be
// another of the same name, or nobody needs them.
func (t *tokens) forget(name types.NamespacedName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.accounts, name)
}

func (t *tokens) make(ctx context.Context, name types.NamespacedName, r TokenRequest) (issued, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	asked := authenticationv1.TokenRequest{}
	if r.Audience != "" {
		asked.Spec.Audiences = []string{r.Audience}
	}
	if r.ExpirationSeconds > 0 {
		asked.Spec.ExpirationSeconds = &r.ExpirationSeconds
	}
	now := time.Now()
	var made authenticationv1.TokenRequest
	err := t.client.Post().Namespace(name.Namespace).Resource("serviceaccounts").Name(name.Name).SubResource("token").Body(&asked).Do(ctx).Into(&made)
	failure := &provider.Error{Kind: provider.Unavailable, Object: fmt.Sprintf("service account %s", name), Op: fmt.Sprintf("make a token of it for the audience %q", r.Audience), Err: err}
	switch {
	case apierrors.IsForbidden(err):
		failure.Kind = provider.Denied
		failure.Remedy = fmt.Sprintf("give it the right to create serviceaccounts/token with the resourceName %q, by a Role in the namespace", name.Name)
	case apierrors.IsNotFound(err):
		failure.Kind, failure.Err, failure.Remedy = provider.NotFound, errors.New("there is no such service account"), "create it, or correct serviceAccountName"
	case err == nil && made.Status.Token == "":
		failure.Kind, failure.Err = provider.Internal, errors.New("the API server sent none")
	case err == nil:
		expires := made.Status.ExpirationTimestamp.Time
		return issued{provider.Token{Value: secret.FromString(made.Status.Token), Expires: expires}, now.Add(expires.Sub(now) * 4 / 5)}, nil
	}
	return issued{}, failure
}
