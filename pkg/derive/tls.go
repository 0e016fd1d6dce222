package derive

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// TLS returns the certificates of one file and the private key of another, as PEM:
// what a Secret of type kubernetes.io/tls holds. Both may be the same file, in any
// form that a bundle is made of; a PKCS#12 file has no password.
//
// The certificates stay in their order, but for that of the key, which comes first.
// Keys are written as secrets-store-csi-driver does: RSA in PKCS#1, ECDSA in SEC 1,
// others in PKCS#8. An error is a *provider.Error and quotes no contents; it is one
// too if the key belongs to none of the certificates.
func TLS(certificates, key []byte) (chain, private []byte, err error) {
	public, secret := &material{}, &material{}
	defer public.clear()
	if err := public.read(certificates); err != nil {
		return nil, nil, inPart("certificate", err)
	}
	if len(public.certificates) == 0 {
		return nil, nil, inPart("certificate", lacks("certificate"))
	}
	if bytes.Equal(certificates, key) {
		secret = public
	} else {
		defer secret.clear()
		if err := secret.read(key); err != nil {
			return nil, nil, inPart("private key", err)
		}
	}
	if len(secret.keys) == 0 {
		return nil, nil, inPart("private key", lacks("private key"))
	}
	for i, c := range public.certificates {
		for _, k := range secret.keys {
			if !k.public.Equal(c.PublicKey) {
				continue
			}
			if private, err = k.traditional(); err != nil {
				return nil, nil, err
			}
			ordered := append([]*x509.Certificate{c}, public.certificates[:i]...)
			return encode(append(ordered, public.certificates[i+1:]...)), private, nil
		}
	}
	return nil, nil, &provider.Error{Kind: provider.Invalid, Err: errors.New("the private key belongs to none of the certificates"),
		Remedy: "name the two files of one certificate in the class; if the store is about to renew them, the next refresh helps"}
}

// Authorities returns the certificates of authorities in a file, as PEM and in their
// order, and those that signed themselves. Errors are as those of TLS.
func Authorities(contents []byte) ([]byte, error) {
	m := &material{set: &set{signatures: maxSignatures}}
	defer m.clear()
	if err := m.read(contents); err != nil {
		return nil, inPart("certificate", err)
	}
	var authorities []*x509.Certificate
	for _, c := range m.certificates {
		itself, err := m.signed(c, c)
		if err != nil {
			return nil, err
		}
		if c.IsCA || itself {
			authorities = append(authorities, c)
		}
	}
	if len(authorities) == 0 {
		return nil, lacks("certificate of an authority")
	}
	return encode(authorities), nil
}

func encode(certificates []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certificates {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes all
	}
	return out.Bytes()
}

// traditional returns the key as PEM in the form that its kind had before PKCS#8.
func (k privateKey) traditional() ([]byte, error) {
	block := &pem.Block{Type: "PRIVATE KEY", Bytes: k.pkcs8}
	parsed, err := x509.ParsePKCS8PrivateKey(k.pkcs8)
	switch parsed := parsed.(type) {
	case *rsa.PrivateKey:
		block.Type, block.Bytes = "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(parsed)
		defer clear(block.Bytes)
	case *ecdsa.PrivateKey:
		block.Type = "EC PRIVATE KEY"
		block.Bytes, err = x509.MarshalECPrivateKey(parsed)
		defer clear(block.Bytes)
	}
	if err != nil {
		return nil, bad("it is a private key that cannot be written again")
	}
	return pem.EncodeToMemory(block), nil
}

// inPart says in which of two files an error is, before where it is in that.
func inPart(part string, err error) error {
	known, ok := err.(*provider.Error)
	if ok && known.Op != "" {
		part += ": " + known.Op
	}
	return at(part, err)
}
