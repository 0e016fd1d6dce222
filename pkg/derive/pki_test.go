package derive

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"sync"
	"time"
)

// authority is a key with its certificate, which can sign others.
type authority struct {
	key         crypto.Signer
	certificate *x509.Certificate
}

var serial = big.NewInt(1000)

// sign makes a certificate of key by a; by itself where a has no certificate.
func (a authority) sign(key crypto.Signer, name string, change func(*x509.Certificate)) authority {
	serial = new(big.Int).Add(serial, big.NewInt(1))
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(4e9, 0)}
	if change != nil {
		change(template)
	}
	if a.certificate == nil {
		a = authority{key, template}
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key))
	return authority{key, must(x509.ParseCertificate(der))}
}

func isCA(c *x509.Certificate) { c.IsCA = true }

func (a authority) pem() string {
	var b bytes.Buffer
	_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
	return b.String()
}

func (a authority) keyPEM() string { return block("PRIVATE KEY", a.pkcs8()) }

func (a authority) pkcs8() []byte { return must(x509.MarshalPKCS8PrivateKey(a.key)) }

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func newKey() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

// hierarchy is a chain of three authorities and what they signed.
type hierarchy struct {
	root, upper, lower, leaf authority
	other                    authority // a root that has no part in it
}

var pki = sync.OnceValue(func() hierarchy {
	var h hierarchy
	h.root = authority{}.sign(newKey(), "root", isCA)
	h.upper = h.root.sign(newKey(), "upper", isCA)
	h.lower = h.upper.sign(newKey(), "lower", isCA)
	h.leaf = h.lower.sign(newKey(), "leaf", nil)
	h.other = authority{}.sign(newKey(), "other", isCA)
	return h
})

var keysOfAllKinds = sync.OnceValue(func() map[string]crypto.Signer {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	return map[string]crypto.Signer{
		"RSA": must(rsa.GenerateKey(rand.Reader, 2048)), "ECDSA": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), "Ed25519": must(ed, err),
	}
})
