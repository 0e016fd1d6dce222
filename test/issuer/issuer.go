// Package issuer is the identity of pods in tests: an Issuer signs
// service-account tokens as the API server does, and a Verifier checks them, or
// those of a real API server, as the token services of clouds do.
package issuer

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// URL is the issuer of tokens where a test does not care.
const URL = "https://kubernetes.default.svc.cluster.local"

// Lifetime is that of a token.
const Lifetime = time.Hour

// Issuer signs tokens. It is safe for concurrent use.
type Issuer struct {
	// Name is what the tokens call it: a URL.
	Name string

	t      testing.TB
	key    *rsa.PrivateKey
	signer jose.Signer
}

// Account is whose a token is. UIDs that are not given follow from the names; Pod
// may be empty, as in a token that no pod mounts.
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
	return &Issuer{URL, t, key, signer}
}

// As returns an Issuer of another name with the same key.
func (i *Issuer) As(name string) *Issuer {
	other := *i
	other.Name = name
	return &other
}

// Token returns a token that is valid from now on.
func (i *Issuer) Token(a Account, audiences ...string) string {
	return i.TokenAt(time.Now(), a, audiences...)
}

// TokenAt returns a token that is valid from a time on.
func (i *Issuer) TokenAt(from time.Time, a Account, audiences ...string) string {
	return i.TokenUntil(from, from.Add(Lifetime), a, audiences...)
}

// TokenUntil returns a token that is valid from a time on until another.
func (i *Issuer) TokenUntil(from, until time.Time, a Account, audiences ...string) string {
	i.t.Helper()
	named := func(name, uid string) map[string]string { return map[string]string{"name": name, "uid": uid} }
	kubernetes := map[string]any{"namespace": a.Namespace, "serviceaccount": named(a.Name, cmp.Or(a.UID, uid("serviceaccount", a.Namespace, a.Name)))}
	if a.Pod != "" {
		kubernetes["pod"] = named(a.Pod, cmp.Or(a.PodUID, uid("pod", a.Namespace, a.Pod)))
	}
	token, err := jwt.Signed(i.signer).Claims(map[string]any{
		"iss": i.Name, "sub": a.Subject(), "aud": audiences, "iat": from.Unix(), "nbf": from.Unix(), "exp": until.Unix(), "jti": rand.Text(), "kubernetes.io": kubernetes,
	}).Serialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return token
}

// uid looks like one, and is always the same for these names.
func uid(names ...string) string {
	h := sha256.Sum256([]byte(strings.Join(names, "/")))
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// PublicKey is what the tokens are checked with, as PEM.
func (i *Issuer) PublicKey() []byte {
	der, err := x509.MarshalPKIXPublicKey(&i.key.PublicKey)
	if err != nil {
		i.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// Verifier checks the tokens of i.
func (i *Issuer) Verifier() *Verifier {
	return &Verifier{i.Name, &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{&i.key.PublicKey}}}
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
	return v.check(ctx, token, oidc.Config{ClientID: audience})
}

func (v *Verifier) check(ctx context.Context, token string, config oidc.Config) (*oidc.IDToken, error) {
	config.SupportedSigningAlgs = []string{oidc.RS256, oidc.ES256}
	return oidc.NewVerifier(v.issuer, v.keys, &config).Verify(ctx, strings.TrimSpace(token))
}
