package derive

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Bounds of what is read for one bundle.
const (
	maxCertificates = 1000
	maxKeys         = 16
)

// material is what the sources of a bundle hold, each thing once, in their order.
type material struct {
	set          *set
	password     string // of the sources
	keys         []privateKey
	certificates []*x509.Certificate
}

type privateKey struct {
	pkcs8  []byte
	public interface{ Equal(crypto.PublicKey) bool }
}

func (m *material) clear() {
	for _, k := range m.keys {
		clear(k.pkcs8)
	}
}

// bad is an error about what a source holds, none of which it quotes.
func bad(format string, args ...any) error {
	return &provider.Error{Kind: provider.Invalid, Err: fmt.Errorf(format, args...), Remedy: "correct what the store holds, or the class"}
}

// read adds what a source holds: PEM of any kinds in any order, also within JSON
// and with line breaks written as \n or lost; or PKCS#12, certificates or a
// private key in DER, or in base64 of that.
func (m *material) read(raw []byte) error {
	text := bytes.TrimSpace(raw)
	if len(text) == 0 {
		return bad("it is empty")
	}
	if strings.IndexByte(`{["`, text[0]) >= 0 && json.Valid(text) {
		joined := pemInJSON(text)
		defer clear(joined)
		if len(joined) == 0 {
			return bad("it is JSON without PEM in it")
		}
		return m.readPEM(joined)
	}
	if bytes.Contains(text, pemBegin) {
		return m.readPEM(text)
	}
	if raw[0] == derSequence {
		return m.readDER(raw)
	}
	decoded, err := provider.EncodingBase64.Decode(text)
	defer clear(decoded)
	if err != nil || len(decoded) == 0 || decoded[0] != derSequence {
		return bad("it is neither PEM nor PKCS#12")
	}
	return m.readDER(decoded)
}

// derSequence begins everything in DER that is read here.
const derSequence = 0x30

// pemInJSON returns the PEM texts among the strings of a JSON document, one below
// the other.
func pemInJSON(document []byte) []byte {
	var joined []byte
	decoder := json.NewDecoder(bytes.NewReader(document))
	for {
		token, err := decoder.Token()
		if err != nil {
			return joined
		}
		if text, ok := token.(string); ok && strings.Contains(text, string(pemBegin)) {
			larger := append(append(make([]byte, 0, len(joined)+len(text)+1), joined...), text...)
			clear(joined)
			joined = append(larger, '\n')
		}
	}
}

var (
	pemBegin = []byte("-----BEGIN ")
	pemEnd   = []byte("-----END ")
	pemDash  = []byte("-----")
)

// readPEM reads every block, and tells of one that cannot be read, which the
// standard library would skip.
func (m *material) readPEM(text []byte) error {
	for n := 1; ; n++ {
		_, rest, found := bytes.Cut(text, pemBegin)
		if !found {
			return nil
		}
		label, rest, labelled := bytes.Cut(rest, pemDash)
		body, rest, ended := bytes.Cut(rest, append(append(append([]byte{}, pemEnd...), label...), pemDash...))
		if !labelled || !ended || bytes.Contains(body, pemBegin) {
			return bad("PEM block %d has no end", n)
		}
		text = rest
		if err := m.readBlock(string(label), body); err != nil {
			return at(fmt.Sprintf("PEM block %d", n), err)
		}
	}
}

// at says where in a source an error is.
func at(place string, err error) error {
	known, ok := err.(*provider.Error)
	if !ok {
		return fmt.Errorf("%s: %w", place, err)
	}
	placed := *known
	placed.Op = place
	return &placed
}

// readBlock reads one block of PEM; of kinds that no bundle has, nothing.
func (m *material) readBlock(label string, body []byte) error {
	var add func(der []byte) error
	switch label {
	case "CERTIFICATE", "X509 CERTIFICATE":
		add = m.addCertificate
	case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY":
		add = m.addKey
	case "ENCRYPTED PRIVATE KEY":
		return bad("it is an encrypted private key, which is read within PKCS#12 only")
	default:
		return nil
	}
	if bytes.Contains(body, []byte(",ENCRYPTED")) {
		return bad("it is a private key that is encrypted in the form of old OpenSSL, which is not read")
	}
	der, err := decodeBody(body)
	if err != nil {
		return bad("it is not base64")
	}
	defer clear(der)
	return add(der)
}

// decodeBody decodes base64 with line breaks of any kind.
func decodeBody(body []byte) ([]byte, error) {
	packed := make([]byte, 0, len(body))
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case c == '\\' && i+1 < len(body) && (body[i+1] == 'n' || body[i+1] == 'r'):
			i++
		case c == ' ' || c == '\n' || c == '\r' || c == '\t':
		default:
			packed = append(packed, c)
		}
	}
	defer clear(packed)
	der := make([]byte, base64.StdEncoding.DecodedLen(len(packed)))
	n, err := base64.StdEncoding.Decode(der, packed)
	return der[:n], err
}

func (m *material) addCertificate(der []byte) error {
	c, err := x509.ParseCertificate(bytes.Clone(der)) // of which it keeps parts
	if err != nil {
		return bad("it is a certificate that cannot be read") // the parser's error may quote it
	}
	for _, other := range m.certificates {
		if other.Equal(c) {
			return nil
		}
	}
	if len(m.certificates) == maxCertificates {
		return &provider.Error{Kind: provider.TooLarge, Err: fmt.Errorf("there are more than %d certificates", maxCertificates), Remedy: "name fewer files, or smaller ones"}
	}
	m.certificates = append(m.certificates, c)
	return nil
}

// addKey takes a private key in any of the forms in which there are keys for TLS,
// whatever its PEM block calls it.
func (m *material) addKey(der []byte) error {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		if ec, ecErr := x509.ParseECPrivateKey(der); ecErr == nil {
			key, err = ec, nil
		} else if rsaKey, rsaErr := x509.ParsePKCS1PrivateKey(der); rsaErr == nil {
			key, err = rsaKey, nil
		}
	}
	if err != nil {
		return bad("it is a private key that cannot be read")
	}
	var k privateKey
	switch key := key.(type) {
	case *rsa.PrivateKey:
		k.public = &key.PublicKey
	case *ecdsa.PrivateKey:
		k.public = &key.PublicKey
	case ed25519.PrivateKey:
		k.public = key.Public().(ed25519.PublicKey)
	default:
		return bad("it is a private key that is neither RSA, ECDSA nor Ed25519")
	}
	for _, other := range m.keys {
		if other.public.Equal(k.public) {
			return nil
		}
	}
	if len(m.keys) == maxKeys {
		return &provider.Error{Kind: provider.TooLarge, Err: fmt.Errorf("there are more than %d private keys", maxKeys), Remedy: "name fewer files"}
	}
	if k.pkcs8, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return bad("it is a private key that cannot be written again")
	}
	m.keys = append(m.keys, k)
	return nil
}

func (m *material) readDER(der []byte) error {
	if isPKCS12(der) {
		return m.readPKCS12(der)
	}
	if certificates, err := x509.ParseCertificates(der); err == nil {
		for _, c := range certificates {
			if err := m.addCertificate(c.Raw); err != nil {
				return err
			}
		}
		return nil
	}
	if m.addKey(der) == nil {
		return nil
	}
	return bad("it is neither PEM nor PKCS#12")
}

func (m *material) readPKCS12(der []byte) error {
	o := openPKCS12(der, m.password)
	var known *provider.Error
	switch {
	case errors.As(o.err, &known):
		return known
	case wrongPassword(o.err):
		failure := &provider.Error{Kind: provider.Invalid, Err: errors.New("it is a PKCS#12 file that the password does not open"), Remedy: "correct sourcePassword, or what sourcePasswordFrom names"}
		if m.password == "" {
			failure.Remedy = "give sourcePassword or sourcePasswordFrom"
		}
		return failure
	case o.err != nil: // whose text may quote it
		return bad("it is a PKCS#12 file that cannot be read: it is damaged, or holds other things than one private key with certificates, or trusted certificates")
	}
	if o.key != nil {
		pkcs8, err := x509.MarshalPKCS8PrivateKey(o.key)
		if err == nil {
			err = m.addKey(pkcs8)
			clear(pkcs8)
		}
		if err != nil {
			return at("private key of its PKCS#12", bad("it is neither RSA, ECDSA nor Ed25519"))
		}
	}
	for i, certificate := range o.certificates {
		if err := m.addCertificate(certificate.Raw); err != nil {
			return at(fmt.Sprintf("certificate %d of its PKCS#12", i+1), err)
		}
	}
	return nil
}
