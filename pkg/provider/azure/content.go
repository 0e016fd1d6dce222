package azure

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// The content types of a secret that belongs to a certificate.
const (
	pemForm = "application/x-pem-file"
	pfxForm = "application/x-pkcs12"
)

const (
	certificateBlock = "CERTIFICATE"
	keyBlock         = "PRIVATE KEY"
)

func pemText(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// publicKey returns a key as PKIX in PEM.
func publicKey(key *azkeys.JSONWebKey) ([]byte, error) {
	fail := func(what string) ([]byte, error) {
		return nil, &provider.Error{Kind: provider.Invalid, Err: errors.New(what), Remedy: "use an RSA key, or one of the curves P-256, P-384 and P-521"}
	}
	var public any
	switch *key.Kty {
	case azkeys.KeyTypeRSA, azkeys.KeyTypeRSAHSM:
		exponent := new(big.Int).SetBytes(key.E)
		if len(key.N) == 0 || !exponent.IsInt64() || exponent.Int64() > 1<<31-1 {
			return fail("its RSA key cannot be read")
		}
		public = &rsa.PublicKey{N: new(big.Int).SetBytes(key.N), E: int(exponent.Int64())}
	case azkeys.KeyTypeEC, azkeys.KeyTypeECHSM:
		curve := elliptic.Curve(nil)
		if key.Crv != nil {
			curve = curves[*key.Crv]
		}
		if curve == nil {
			return fail("its elliptic curve has no form in PEM here")
		}
		point, err := uncompressed(curve, key.X, key.Y)
		if err == nil {
			public, err = ecdsa.ParseUncompressedPublicKey(curve, point)
		}
		if err != nil {
			return fail("its key is no point of its curve")
		}
	default:
		return fail("its type has no public key")
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return fail("its key cannot be written")
	}
	return pemText("PUBLIC KEY", der), nil
}

var curves = map[azkeys.CurveName]elliptic.Curve{
	azkeys.CurveNameP256: elliptic.P256(), azkeys.CurveNameP384: elliptic.P384(), azkeys.CurveNameP521: elliptic.P521(),
}

// uncompressed joins the coordinates of a point (SEC 1, section 2.3.3).
func uncompressed(curve elliptic.Curve, x, y []byte) ([]byte, error) {
	size := (curve.Params().BitSize + 7) / 8
	point := []byte{4}
	for _, coordinate := range [][]byte{x, y} {
		number := new(big.Int).SetBytes(coordinate)
		if number.BitLen() > size*8 {
			return nil, errors.New("a coordinate is too long")
		}
		point = append(point, number.FillBytes(make([]byte, size))...)
	}
	return point, nil
}

// text returns what the object's file is made of: the secret of a certificate in
// PEM, unless the class wants it as it came.
func (p *Provider) text(o object, a answer) ([]byte, error) {
	switch {
	case a.form == "" || a.form == pemForm || a.form == pfxForm && o.format == pfx:
		return a.value, nil
	case a.form == pfxForm:
		return fromPFX(a.value, p.config.ConstructPEMChain)
	}
	return nil, &provider.Error{Kind: provider.Invalid, Err: errors.New("it belongs to a certificate, and is neither PEM nor PKCS#12"), Remedy: "correct the content type in the certificate's policy"}
}

// fromPFX turns the PFX of a certificate, in base64 and without a password, into
// PEM: the key as PKCS#8, then the certificates, as they come or from leaf to root.
func fromPFX(text []byte, ordered bool) ([]byte, error) {
	fail := func(what string) ([]byte, error) {
		return nil, &provider.Error{Kind: provider.Invalid, Err: errors.New(what), Remedy: "mount it with " + formatField + ": pfx, or import it into the vault anew"}
	}
	der, err := provider.EncodingBase64.Decode(text)
	if err != nil {
		return fail("it is not base64")
	}
	defer clear(der)
	key, first, others, err := pkcs12.DecodeChain(der, "")
	if err != nil {
		return fail("it is no PKCS#12 file with one key and its certificates, without a password") // the parser's error may quote it
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fail(fmt.Sprintf("a key of type %T has no form in PEM", key))
	}
	defer clear(plain)
	certificates := append([]*x509.Certificate{first}, others...)
	if ordered {
		certificates = chain(certificates)
	}
	made := pemText(keyBlock, plain)
	for _, certificate := range certificates {
		made = append(made, pemText(certificateBlock, certificate.Raw)...)
	}
	return made, nil
}

// chain orders certificates from the leaf on, by the key ids of RFC 5280, section
// 4.2.1.1. Those that do not belong to the leaf's chain are left out, as
// Microsoft's provider does.
func chain(all []*x509.Certificate) []*x509.Certificate {
	parents := map[*x509.Certificate]*x509.Certificate{}
	issuers := map[*x509.Certificate]bool{}
	for _, each := range all {
		for _, other := range all {
			if !each.Equal(other) && len(each.AuthorityKeyId) > 0 && bytes.Equal(each.AuthorityKeyId, other.SubjectKeyId) {
				parents[each], issuers[other] = other, true
				break
			}
		}
	}
	leaf := all[0]
	for _, each := range all {
		if !issuers[each] {
			leaf = each
			break
		}
	}
	var ordered []*x509.Certificate
	seen := map[*x509.Certificate]bool{}
	for at := leaf; at != nil && !seen[at]; at = parents[at] {
		ordered, seen[at] = append(ordered, at), true
	}
	return ordered
}

// split divides PEM into its certificates and all else, which are keys.
func split(text []byte) (certificates, keys []byte) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == certificateBlock {
			certificates = append(certificates, pem.EncodeToMemory(block)...)
		} else {
			keys = append(keys, pem.EncodeToMemory(block)...)
		}
	}
	return certificates, keys
}
