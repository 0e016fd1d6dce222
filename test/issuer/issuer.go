// Package issuer is the identity of pods in tests: an Issuer signs
// service-account tokens as the API server does, and a Verifier checks them, or
// those of a real API server, as the token services of clouds do.
package issuer

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// URL is the issuer of all tokens of an Issuer.
const URL = "https://kubernetes.default.svc.cluster.local"

// Lifetime is that of a token.
const Lifetime = time.Hour

// Issuer signs tokens. It is safe for concurrent use.
type Issuer struct {
	t      testing.TB
	key    *rsa.PrivateKey
	signer jose.Signer
}

// Account is whose a token is. Pod and PodUID may be empty, as in a token that no
// pod mounts.
type Account struct{ Namespace, Name, UID, Pod, PodUID string }

// Subject is what the token calls the account.
func (a Account) Subject() string {
	return fmt.Sprintf("system:serviceaccount:%s:%s", a.Namespace, a.Name)
}

// New returns an Issuer with a key of its own.
func New(t testing.TB) *Issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "test"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Issuer{t, key, signer}
}

// Token returns a token that is valid from now on.
func (i *Issuer) Token(a Account, audiences ...string) string {
	return i.TokenAt(time.Now(), a, audiences...)
}

// TokenAt returns a token that is valid from a time on.
func (i *Issuer) TokenAt(from time.Time, a Account, audiences ...string) string {
	i.t.Helper()
	named := func(name, uid string) map[string]string { return map[string]string{"name": name, "uid": uid} }
	kubernetes := map[string]any{"namespace": a.Namespace, "serviceaccount": named(a.Name, a.UID)}
	if a.Pod != "" {
		kubernetes["pod"] = named(a.Pod, a.PodUID)
	}
	token, err := jwt.Signed(i.signer).Claims(map[string]any{
		"iss": URL, "sub": a.Subject(), "aud": audiences, "iat": from.Unix(), "nbf": from.Unix(), "exp": from.Add(Lifetime).Unix(), "kubernetes.io": kubernetes,
	}).Serialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return token
}

// Verifier checks the tokens of i.
func (i *Issuer) Verifier() *Verifier {
	return &Verifier{URL, &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{&i.key.PublicKey}}}
}

// JWKS is the document of public keys that an API server has at
// /openid/v1/jwks.
func (i *Issuer) JWKS() http.Handler {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &i.key.PublicKey, KeyID: "test", Algorithm: "RS256", Use: "sig"}}}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_ = json.NewEncoder(w).Encode(set)
	})
}

// Verifier checks tokens of one issuer.
type Verifier struct {
	issuer string
	keys   oidc.KeySet
}

// NewVerifier returns a Verifier of the tokens of an issuer whose public keys are
// at a URL that client reaches.
func NewVerifier(ctx context.Context, issuer, jwksURL string, client *http.Client) *Verifier {
	return &Verifier{issuer, oidc.NewRemoteKeySet(oidc.ClientContext(ctx, client), jwksURL)}
}

// Issuer is whose tokens are taken.
func (v *Verifier) Issuer() string { return v.issuer }

// Verify returns the subject of a token, if the issuer signed it, it has the
// audience, and it is valid now.
func (v *Verifier) Verify(ctx context.Context, token, audience string) (subject string, err error) {
	claims, err := v.Claims(ctx, token, audience)
	if err != nil {
		return "", err
	}
	return claims.Subject, nil
}

// Claims is Verify, with all that the token says.
func (v *Verifier) Claims(ctx context.Context, token, audience string) (*oidc.IDToken, error) {
	// Anybody can sign as nobody: go-oidc takes the algorithms that it is told.
	checked := oidc.NewVerifier(v.issuer, v.keys, &oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{oidc.RS256, oidc.ES256}})
	return checked.Verify(ctx, strings.TrimSpace(token))
}
