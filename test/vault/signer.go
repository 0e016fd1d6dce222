package vaulttest

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Signer makes tokens as an API server makes them for pods.
type Signer struct {
	Issuer string

	key *rsa.PrivateKey
}

// NewSigner makes a signer with a key of its own. The issuer is a URL.
func NewSigner(issuer string) (*Signer, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	return &Signer{issuer, key}, nil
}

// PublicKey is what the signer's tokens are checked with, as PEM.
func (s *Signer) PublicKey() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		return nil, err
	}
	return encode("PUBLIC KEY", der), nil
}

// Pod is who a token is for. UIDs that are not given follow from the names.
type Pod struct {
	Namespace, ServiceAccount, Name string
	ServiceAccountUID, UID          string // UID is the pod's
}

// claims are those of a ServiceAccount's token that is bound to a pod.
type claims struct {
	Issuer    string     `json:"iss"`
	Subject   string     `json:"sub"`
	Audiences []string   `json:"aud"`
	IssuedAt  int64      `json:"iat"`
	NotBefore int64      `json:"nbf"`
	Expires   int64      `json:"exp"`
	ID        string     `json:"jti"`
	Private   kubernetes `json:"kubernetes.io"`
}

type kubernetes struct {
	Namespace      string `json:"namespace"`
	Pod            object `json:"pod"`
	ServiceAccount object `json:"serviceaccount"`
}

type object struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// Token makes a token for a pod and audiences. It is valid from now on, or has
// expired, where lifetime is negative.
func (s *Signer) Token(p Pod, lifetime time.Duration, audiences ...string) (string, error) {
	begin := time.Now()
	end := begin.Add(lifetime)
	if lifetime < 0 {
		begin = end.Add(-time.Hour)
	}
	return s.sign(claims{
		Issuer: s.Issuer, Subject: subject(p.Namespace, p.ServiceAccount), Audiences: audiences,
		IssuedAt: begin.Unix(), NotBefore: begin.Unix(), Expires: end.Unix(), ID: rand.Text(),
		Private: kubernetes{
			Namespace:      p.Namespace,
			Pod:            object{p.Name, cmp.Or(p.UID, uid("pod", p.Namespace, p.Name))},
			ServiceAccount: object{p.ServiceAccount, cmp.Or(p.ServiceAccountUID, uid("serviceaccount", p.Namespace, p.ServiceAccount))},
		},
	})
}

// uid looks like one, and is always the same for these names.
func uid(names ...string) string {
	h := sha256.Sum256([]byte(strings.Join(names, "/")))
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// subject is how tokens name a ServiceAccount.
func subject(namespace, serviceAccount string) string {
	return "system:serviceaccount:" + namespace + ":" + serviceAccount
}

// header is that of every token.
const header = `{"alg":"RS256","typ":"JWT"}`

// sign makes a JSON Web Token (RFC 7519).
func (s *Signer) sign(c claims) (string, error) {
	payload, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	text := encoding.EncodeToString([]byte(header)) + "." + encoding.EncodeToString(payload)
	hash := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, hash[:])
	if err != nil {
		return "", err
	}
	return text + "." + encoding.EncodeToString(signature), nil
}

// verify returns the claims of a token that sign made and that is valid now.
func (s *Signer) verify(token string) (claims, error) {
	var c claims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errors.New("it is no token")
	}
	signature, err := encoding.DecodeString(parts[2])
	if err != nil {
		return c, err
	}
	hash := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(&s.key.PublicKey, crypto.SHA256, hash[:], signature); err != nil {
		return c, err
	}
	payload, err := encoding.DecodeString(parts[1])
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		return c, err
	}
	if now := time.Now().Unix(); now < c.NotBefore || now >= c.Expires {
		return c, errors.New("service account token has expired")
	}
	return c, nil
}

var encoding = base64.RawURLEncoding
