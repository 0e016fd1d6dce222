package derive

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// maxSignatures bounds the signatures that are checked for one volume.
const maxSignatures = 10_000

func lacks(what string) error {
	return &provider.Error{Kind: provider.NotFound, Err: fmt.Errorf("there is no %s in it", what), Remedy: `correct "from" or "parts" in the class, or what the store holds`}
}

// identity returns the certificate at which a chain begins, with its private key
// where there is one: that of the only key that has a certificate, or without a
// key the only certificate that signed none of the others.
//
// Of several certificates with one key, as after a renewal, the latest counts.
func (m *material) identity() (leaf *x509.Certificate, key *privateKey, err error) {
	if len(m.certificates) == 0 {
		return nil, nil, lacks("certificate")
	}
	if len(m.keys) == 0 {
		leaf, err = m.first()
		return leaf, nil, err
	}
	for i := range m.keys {
		var own *x509.Certificate
		for _, c := range m.certificates {
			if m.keys[i].public.Equal(c.PublicKey) && (own == nil || c.NotBefore.After(own.NotBefore)) {
				own = c
			}
		}
		switch {
		case own == nil:
			continue
		case leaf != nil:
			return nil, nil, bad("there are several private keys with certificates in it")
		}
		leaf, key = own, &m.keys[i]
	}
	if leaf == nil {
		return nil, nil, bad("none of the certificates in it is that of the private key")
	}
	return leaf, key, nil
}

// first returns the certificate at which a chain begins, where no key tells.
func (m *material) first() (*x509.Certificate, error) {
	var ends, ownEnds []*x509.Certificate
	for _, c := range m.certificates {
		issued := func(other *x509.Certificate) bool { return other != c && bytes.Equal(other.RawIssuer, c.RawSubject) }
		if slices.ContainsFunc(m.certificates, issued) {
			continue
		}
		ends = append(ends, c)
		if !c.IsCA {
			ownEnds = append(ownEnds, c)
		}
	}
	switch {
	case len(ends) == 1:
		return ends[0], nil
	case len(ownEnds) == 1:
		return ownEnds[0], nil
	}
	return nil, bad("it cannot be told which of its certificates the chain begins with, since there is no private key; name fewer files")
}

// path returns the chain of leaf as far as the certificates reach, and the root at
// its end by itself, nil where that is missing. A leaf that signed itself is no
// root. Where two could have signed one, the first counts.
func (m *material) path(leaf *x509.Certificate) (chain []*x509.Certificate, root *x509.Certificate, err error) {
	chain = []*x509.Certificate{leaf}
	for last := leaf; ; {
		if itself, err := m.signed(last, last); err != nil || itself && last == leaf {
			return chain, nil, err
		} else if itself {
			return chain[:len(chain)-1], last, nil
		}
		next, err := m.issuer(last)
		if err != nil || next == nil || slices.Contains(chain, next) {
			return chain, nil, err
		}
		chain = append(chain, next)
		last = next
	}
}

// issuer returns the certificate that signed c, or nil.
func (m *material) issuer(c *x509.Certificate) (*x509.Certificate, error) {
	for _, other := range m.certificates {
		if other == c {
			continue
		}
		if yes, err := m.signed(c, other); err != nil || yes {
			return other, err
		}
	}
	return nil, nil
}

// signed tells whether parent signed c. Of signatures that Go does not check, such
// as those with MD5, names and key identifiers tell.
func (m *material) signed(c, parent *x509.Certificate) (bool, error) {
	if !bytes.Equal(c.RawIssuer, parent.RawSubject) {
		return false, nil
	}
	if len(c.AuthorityKeyId) > 0 && len(parent.SubjectKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, parent.SubjectKeyId) {
		return false, nil
	}
	if m.set.signatures--; m.set.signatures < 0 {
		return false, &provider.Error{Kind: provider.TooLarge, Err: errors.New("there are too many certificates of the same name"), Remedy: "name fewer files, or smaller ones"}
	}
	err := parent.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature)
	var insecure x509.InsecureAlgorithmError
	return err == nil || errors.As(err, &insecure) || errors.Is(err, x509.ErrUnsupportedAlgorithm), nil
}

// roots returns the certificates that signed themselves; where there is none,
// those of authorities that none of the others signed.
func (m *material) roots() ([]*x509.Certificate, error) {
	var roots, tops []*x509.Certificate
	for _, c := range m.certificates {
		root, err := m.signed(c, c)
		if err != nil {
			return nil, err
		}
		if root {
			roots = append(roots, c)
		}
	}
	if len(roots) > 0 {
		return roots, nil
	}
	for _, c := range m.certificates {
		if !c.IsCA {
			continue
		}
		issuer, err := m.issuer(c)
		if err != nil {
			return nil, err
		}
		if issuer == nil {
			tops = append(tops, c)
		}
	}
	return tops, nil
}

// selection is what a bundle is made of.
type selection struct {
	key          *privateKey // nil where it has none
	keyAt        int         // how many certificates come before it
	certificates []*x509.Certificate
}

// choose picks the parts of a bundle, each certificate once, in the order of the
// parts.
func (m *material) choose(b *bundle) (selection, error) {
	var s selection
	var chain []*x509.Certificate // from the leaf on
	var root *x509.Certificate    // at its end
	if b.has(partCertificate) || b.has(partChain) || b.has(partIntermediates) || b.has(partKey) && len(m.certificates) > 0 {
		leaf, key, err := m.identity()
		if err != nil {
			return s, err
		}
		s.key = key
		if chain, root, err = m.path(leaf); err != nil {
			return s, err
		}
	}
	var err error
	switch {
	case !b.has(partKey):
		s.key = nil
	case s.key == nil:
		if s.key, err = m.onlyKey(); err != nil {
			return s, err
		}
	}
	if b.isStore() && s.key != nil {
		// Java wants a chain without gaps, and no other root beside it.
		s.certificates = b.ownChain(chain, root)
		return s, nil
	}
	for _, part := range b.parts {
		var of []*x509.Certificate
		switch part {
		case partKey:
			s.keyAt = len(s.certificates)
		case partCertificate:
			of = chain[:1]
		case partChain:
			of = chain
		case partIntermediates:
			of = chain[1:]
		case partCA:
			if of, err = m.roots(); err != nil {
				return s, err
			}
		case partBundle:
			of = m.certificates
		}
		for _, c := range of {
			if !slices.Contains(s.certificates, c) {
				s.certificates = append(s.certificates, c)
			}
		}
	}
	if s.key == nil && len(s.certificates) == 0 {
		return s, lacks(b.what())
	}
	return s, nil
}

// onlyKey is for material without certificates, or whose certificates have no key.
func (m *material) onlyKey() (*privateKey, error) {
	switch len(m.keys) {
	case 0:
		return nil, lacks("private key")
	case 1:
		return &m.keys[0], nil
	}
	return nil, bad("there are several private keys in it, and no certificate that tells which")
}

// what names the certificates that the bundle is made of.
func (b *bundle) what() string {
	if len(b.parts) == 1 {
		switch b.parts[0] {
		case partCA:
			return "certificate of an authority"
		case partIntermediates:
			return "intermediate certificate"
		}
	}
	return "certificate"
}

// ownChain returns the certificates of the key in a store: its own first.
func (b *bundle) ownChain(chain []*x509.Certificate, root *x509.Certificate) []*x509.Certificate {
	if !b.has(partChain) && !b.has(partIntermediates) {
		return chain[:1]
	}
	if b.has(partCA) && root != nil {
		return append(chain, root)
	}
	return chain
}
