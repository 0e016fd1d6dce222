package derive

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// maxIterations bounds how often a PKCS#12 has its password hashed for one of its
// parts, in so far as that can be seen without the password.
const maxIterations = 5_000_000

// opening is how long a PKCS#12 may take to be opened. Its maker says how often
// a password is hashed, and what hashes cannot be interrupted: only one is opened
// at a time, so that one that takes for ever, by what it has encrypted twice, takes
// one processor.
const opening = 10 * time.Second

// opener has a place for the one that is being opened.
var opener = make(chan struct{}, 1)

// isPKCS12 tells whether DER is a PFX of version 3 (RFC 7292, section 4).
func isPKCS12(der []byte) bool {
	var pfx struct {
		Version  int
		AuthSafe asn1.RawValue
		Mac      asn1.RawValue `asn1:"optional"`
	}
	_, err := asn1.Unmarshal(der, &pfx)
	return err == nil && pfx.Version == 3
}

// asksTooMuch tells whether DER has, at whatever depth, a number of iterations
// above the bound: an INTEGER right behind an OCTET STRING, its salt (RFC 7292,
// section 4 and appendix C; RFC 8018, appendix A.2).
func asksTooMuch(der []byte, depth int) bool {
	for salt := false; len(der) > 0 && depth < 32; {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(der, &v)
		if err != nil {
			return false // ciphertext, or no DER
		}
		universal := v.Class == asn1.ClassUniversal
		if universal && v.Tag == asn1.TagInteger && salt {
			if n := new(big.Int).SetBytes(v.Bytes); n.Cmp(big.NewInt(maxIterations)) > 0 {
				return true
			}
		}
		salt = universal && v.Tag == asn1.TagOctetString
		if (salt || v.IsCompound) && asksTooMuch(v.Bytes, depth+1) {
			return true
		}
		der = rest
	}
	return false
}

// opened is what a PKCS#12 holds. The key is nil in one of certificates only.
type opened struct {
	key          any
	certificates []*x509.Certificate
	err          error
}

// openPKCS12 opens a store of one key with its certificates, or of certificates
// that are marked as trusted, as Java does it.
func openPKCS12(der []byte, password string) opened {
	if asksTooMuch(der, 0) {
		return opened{err: &provider.Error{Kind: provider.Invalid, Err: fmt.Errorf("it is a PKCS#12 file that has its password hashed more than %d times", maxIterations), Remedy: "write it again with fewer iterations"}}
	}
	late := time.NewTimer(opening)
	defer late.Stop()
	busy := opened{err: &provider.Error{Kind: provider.Unavailable, Err: errors.New("it is a PKCS#12 file that takes too long to open, or waits for another that does"), Remedy: "have it hash its password less often"}}
	place := opener
	select {
	case place <- struct{}{}:
	case <-late.C:
		return busy
	}
	result := make(chan opened, 1)
	go func() {
		defer func() {
			if recover() != nil {
				result <- opened{err: errors.New("it is damaged")}
			}
			<-place
		}()
		result <- openStore(der, password)
	}()
	select {
	case o := <-result:
		return o
	case <-late.C:
		return busy
	}
}

func openStore(der []byte, password string) opened {
	key, leaf, others, err := pkcs12.DecodeChain(der, password)
	if err == nil {
		return opened{key, append([]*x509.Certificate{leaf}, others...), nil}
	}
	if wrongPassword(err) {
		return opened{err: err}
	}
	certificates, trustErr := pkcs12.DecodeTrustStore(der, password)
	if trustErr != nil {
		return opened{err: err}
	}
	return opened{nil, certificates, nil}
}

func wrongPassword(err error) bool {
	return errors.Is(err, pkcs12.ErrIncorrectPassword) || errors.Is(err, pkcs12.ErrDecryption)
}

// pkcs12 writes a key store, or a trust store where there is no key. The key has no
// name in it: Java calls it 1.
func (b *bundle) pkcs12(s selection, password string, salts io.Reader) ([]byte, error) {
	encoder := pkcs12.Modern
	if b.legacy {
		encoder = pkcs12.LegacyDES
	}
	encoder = encoder.WithRand(salts)
	if s.key == nil {
		var entries []pkcs12.TrustStoreEntry
		for i, c := range s.certificates {
			entries = append(entries, pkcs12.TrustStoreEntry{Cert: c, FriendlyName: b.numbered(i)})
		}
		store, err := encoder.EncodeTrustStoreEntries(entries, password)
		return store, unwritable(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(s.key.pkcs8)
	if err != nil {
		return nil, unwritable(err)
	}
	store, err := encoder.Encode(key, s.certificates[0], s.certificates[1:], password)
	return store, unwritable(err)
}

// unwritable replaces an error, which may quote what could not be written.
func unwritable(err error) error {
	if err == nil {
		return nil
	}
	return errors.New("it cannot be written")
}
