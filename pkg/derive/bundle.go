package derive

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/pavlo-v-chernykh/keystore-go/v4"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// make returns the bundle that the sources make, and all files that it was made
// of, those with passwords included.
func (b *bundle) make(s *set, sources []*member, options provider.Options) (contents []byte, used []*member, err error) {
	m := &material{set: s}
	defer m.clear()
	used = sources
	password := b.password
	for _, of := range []struct {
		path string
		into *string
	}{{b.passwordFrom, &password}, {b.sourcePasswordFrom, &m.password}} {
		if of.path == "" {
			continue
		}
		file, err := s.get(of.path)
		if err != nil {
			return nil, nil, err
		}
		used = append(used, file)
		*of.into = firstLine(file.Contents.Reveal())
	}
	if b.sourcePassword != "" {
		m.password = b.sourcePassword
	}
	for _, source := range sources {
		if err := m.readSource(source, options); err != nil {
			return nil, nil, of(source, err)
		}
	}
	chosen, err := m.choose(b)
	if err != nil {
		return nil, nil, err
	}
	if b.format == formatPEM {
		contents, err = chosen.pem()
		return contents, used, err
	}
	if err := b.checkPassword(password); err != nil {
		return nil, nil, err
	}
	contents, err = b.store(chosen, password)
	if err != nil {
		return nil, nil, &provider.Error{Kind: provider.Invalid, Op: "make a " + b.format, Err: err}
	}
	return contents, used, nil
}

// firstLine returns what a file of a password holds, as OpenSSL reads one.
func firstLine(contents []byte) string {
	line, _, _ := bytes.Cut(contents, []byte("\n"))
	return string(bytes.TrimSuffix(line, []byte("\r")))
}

// checkPassword checks a password that may come from a file.
func (b *bundle) checkPassword(password string) error {
	fail := func(err error) error {
		return &provider.Error{Kind: provider.Invalid, Op: fmt.Sprintf("the password in file %q", b.passwordFrom), Err: err, Remedy: "choose another"}
	}
	if password == "" {
		return fail(errors.New("it is empty"))
	}
	if err := checkStorePassword(b.format, password); err != nil {
		return fail(err)
	}
	return nil
}

func (m *material) readSource(source *member, options provider.Options) error {
	raw := source.Contents.Reveal()
	contents, err := options.Contents(raw)
	if err != nil {
		return err
	}
	if len(contents) > 0 && len(raw) > 0 && &contents[0] != &raw[0] {
		defer clear(contents)
	}
	return m.read(contents)
}

// pem writes the parts in their order.
func (s selection) pem() ([]byte, error) {
	var out buffer
	write := func(kind string, der []byte) error { return pem.Encode(&out, &pem.Block{Type: kind, Bytes: der}) }
	var err error
	for i := 0; i <= len(s.certificates) && err == nil; i++ {
		if s.key != nil && s.keyAt == i {
			err = write("PRIVATE KEY", s.key.pkcs8)
		}
		if i < len(s.certificates) && err == nil {
			err = write("CERTIFICATE", s.certificates[i].Raw)
		}
	}
	if err != nil {
		clear(out.bytes)
		return nil, err
	}
	return out.bytes, nil
}

// store writes a key store, or a trust store where there is no key.
func (b *bundle) store(s selection, password string) ([]byte, error) {
	salts, err := b.salts(s)
	if err != nil {
		return nil, err
	}
	if b.format == formatJKS {
		return b.jks(s, password, salts)
	}
	return b.pkcs12(s, password, salts)
}

// numbered returns the alias of a trusted certificate: ca, ca-2, ca-3 and so on.
func (b *bundle) numbered(i int) string {
	if i == 0 {
		return b.alias
	}
	return b.alias + "-" + strconv.Itoa(i+1)
}

// jks writes Java's old format. Its entries say when they were made, which is
// here when the certificate was.
func (b *bundle) jks(s selection, password string, salts io.Reader) ([]byte, error) {
	store := keystore.New(keystore.WithOrderedAliases(), keystore.WithCustomRandomNumberGenerator(salts))
	secret := []byte(password)
	defer clear(secret)
	if s.key != nil {
		entry := keystore.PrivateKeyEntry{CreationTime: s.certificates[0].NotBefore, PrivateKey: s.key.pkcs8}
		for _, c := range s.certificates {
			entry.CertificateChain = append(entry.CertificateChain, keystore.Certificate{Type: "X.509", Content: c.Raw})
		}
		if err := store.SetPrivateKeyEntry(b.alias, entry, secret); err != nil {
			return nil, errors.New("the key cannot be written")
		}
	} else {
		for i, c := range s.certificates {
			entry := keystore.TrustedCertificateEntry{CreationTime: c.NotBefore, Certificate: keystore.Certificate{Type: "X.509", Content: c.Raw}}
			if err := store.SetTrustedCertificateEntry(b.numbered(i), entry); err != nil {
				return nil, errors.New("a certificate cannot be written")
			}
		}
	}
	var out bytes.Buffer
	if err := store.Store(&out, secret); err != nil {
		return nil, errors.New("it cannot be written")
	}
	return out.Bytes(), nil
}

// salts returns the salts and initial values of a store: not random, but made of
// all that goes into it, by HKDF (RFC 5869). With random ones every refresh would
// write another file, and every program that watches it would read it anew.
//
// It does what random ones are for. Stores with other contents, be it another
// alias, get other salts, so that no two texts are ever encrypted alike with one
// key and one initial value; those with the same contents get the same ones,
// which tells who sees both that they are the same, and no more. The password is
// left out on purpose: whoever has a store could otherwise try passwords on its
// salts, for which the certificates of a trust store are all that is needed, at
// the price of one hash instead of thousands. Stores of the same contents with
// different passwords so have the same salts, and different keys made with them.
// A private key that goes into a salt cannot be found there without guessing it
// whole.
func (b *bundle) salts(s selection) (io.Reader, error) {
	h := sha256.New()
	add := func(part []byte) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		h.Write(size[:])
		h.Write(part)
	}
	add([]byte(strings.ToLower(b.format)))
	add([]byte(b.alias))
	add([]byte(strconv.FormatBool(b.legacy)))
	if s.key != nil {
		add(s.key.pkcs8)
	} else {
		add(nil)
	}
	for _, c := range s.certificates {
		add(c.Raw)
	}
	secret := h.Sum(nil)
	defer clear(secret)
	stream, err := hkdf.Key(sha256.New, secret, nil, "csi-secrets derived store", 1024)
	return bytes.NewReader(stream), err
}
