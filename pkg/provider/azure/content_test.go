package azure

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// authority signs certificates.
type authority struct {
	key         crypto.Signer
	certificate *x509.Certificate
}

// sign returns a certificate for a key, signed by a, or by itself where that is nil.
func (a *authority) sign(t testing.TB, name string, key crypto.Signer, isCA bool) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: isCA, BasicConstraintsValid: true,
	}
	parent, signer := template, key
	if a != nil {
		parent, signer = a.certificate, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// family is a leaf, an intermediate and a root.
type family struct {
	key                      crypto.Signer
	leaf, intermediate, root *x509.Certificate
}

func newFamily(t testing.TB, key crypto.Signer) family {
	t.Helper()
	keys := []*ecdsa.PrivateKey{newEC(t, elliptic.P256()), newEC(t, elliptic.P256())}
	root := &authority{key: keys[0]}
	root.certificate = (*authority)(nil).sign(t, "root", keys[0], true)
	middle := &authority{keys[1], root.sign(t, "intermediate", keys[1], true)}
	return family{key, middle.sign(t, "shop.example.com", key, false), middle.certificate, root.certificate}
}

func newEC(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSA(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func inPEM(certificates ...*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certificates {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.String()
}

func (f family) keyPEM(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(f.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (f family) publicPEM(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(f.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// pfx returns the family's PFX in base64, its first certificate first.
func (f family) pfx(t testing.TB, encoder *pkcs12.Encoder, first *x509.Certificate, others ...*x509.Certificate) string {
	t.Helper()
	der, err := encoder.Encode(f.key, first, others, "")
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}

func TestPFXBecomesPEM(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"RSA": newRSA(t), "EC": newEC(t, elliptic.P384())} {
		f := newFamily(t, key)
		for how, encoder := range map[string]*pkcs12.Encoder{"modern": pkcs12.Modern2023, "triple DES, as the service makes it": pkcs12.LegacyDES, "RC2": pkcs12.LegacyRC2} {
			text := f.pfx(t, encoder, f.leaf, f.root, f.intermediate)
			got, err := fromPFX([]byte(text), false)
			if want := f.keyPEM(t) + inPEM(f.leaf, f.root, f.intermediate); err != nil || string(got) != want {
				t.Errorf("%s, %s: got %v\n%s\nwant\n%s", name, how, err, got, want)
			}
			got, err = fromPFX([]byte(text), true)
			if want := f.keyPEM(t) + inPEM(f.leaf, f.intermediate, f.root); err != nil || string(got) != want {
				t.Errorf("%s, %s, ordered: got %v\n%s\nwant\n%s", name, how, err, got, want)
			}
		}
	}
	for name, text := range map[string]string{
		"not base64": canary + "!", "not PKCS#12": base64.StdEncoding.EncodeToString([]byte(canary)), "empty": "",
	} {
		_, err := fromPFX([]byte(text), true)
		if provider.KindOf(err) != provider.Invalid || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// The cases of TestFetchCertChain of Microsoft's provider: any order becomes that
// from leaf to root, what is missing is left out.
func TestChainsAreOrderedFromTheLeafOn(t *testing.T) {
	f := newFamily(t, newEC(t, elliptic.P256()))
	stranger := newFamily(t, newEC(t, elliptic.P256()))
	selfSigned := &x509.Certificate{Raw: []byte{3}, SubjectKeyId: []byte{3}, AuthorityKeyId: []byte{3}}
	withoutIDs := &x509.Certificate{Raw: []byte("self-signed, without key ids")}
	for name, tc := range map[string]struct{ given, want []*x509.Certificate }{
		"in order":                    {[]*x509.Certificate{f.leaf, f.intermediate, f.root}, []*x509.Certificate{f.leaf, f.intermediate, f.root}},
		"from root to leaf":           {[]*x509.Certificate{f.root, f.intermediate, f.leaf}, []*x509.Certificate{f.leaf, f.intermediate, f.root}},
		"mixed":                       {[]*x509.Certificate{f.intermediate, f.leaf, f.root}, []*x509.Certificate{f.leaf, f.intermediate, f.root}},
		"without the root":            {[]*x509.Certificate{f.intermediate, f.leaf}, []*x509.Certificate{f.leaf, f.intermediate}},
		"without the intermediate":    {[]*x509.Certificate{f.leaf, f.root}, []*x509.Certificate{f.leaf}},
		"the leaf alone":              {[]*x509.Certificate{f.leaf}, []*x509.Certificate{f.leaf}},
		"one without key ids":         {[]*x509.Certificate{withoutIDs}, []*x509.Certificate{withoutIDs}},
		"self-signed, before another": {[]*x509.Certificate{selfSigned, f.root}, []*x509.Certificate{selfSigned}},
		"a root twice":                {[]*x509.Certificate{f.root, f.leaf, f.root, f.intermediate}, []*x509.Certificate{f.leaf, f.intermediate, f.root}},
		"two that sign each other":    {cycle(), cycle()},
		"with those of another leaf":  {[]*x509.Certificate{f.leaf, stranger.intermediate, f.intermediate}, []*x509.Certificate{f.leaf, f.intermediate}},
	} {
		if got := chain(tc.given); inPEM(got...) != inPEM(tc.want...) {
			t.Errorf("%s: got %d certificates in another order", name, len(got))
		}
	}
}

func cycle() []*x509.Certificate {
	one, two := []byte{1}, []byte{2}
	return []*x509.Certificate{{Raw: one, SubjectKeyId: one, AuthorityKeyId: two}, {Raw: two, SubjectKeyId: two, AuthorityKeyId: one}}
}

func TestPublicKeysBecomePEM(t *testing.T) {
	rsaKey := newRSA(t)
	for name, kind := range map[string]azkeys.KeyType{"RSA": azkeys.KeyTypeRSA, "RSA of an HSM": azkeys.KeyTypeRSAHSM} {
		got, err := publicKey(&azkeys.JSONWebKey{Kty: &kind, N: rsaKey.N.Bytes(), E: []byte{1, 0, 1}})
		if want := (family{key: rsaKey}).publicPEM(t); err != nil || string(got) != want {
			t.Errorf("%s: got %v\n%s", name, err, got)
		}
	}
	for name, curve := range curves {
		for range 40 { // some have coordinates that begin with a zero
			key := newEC(t, curve)
			point, err := key.PublicKey.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			half := len(point) / 2
			got, err := publicKey(&azkeys.JSONWebKey{Kty: to.Ptr(azkeys.KeyTypeECHSM), Crv: &name, X: bytes.TrimLeft(point[1:1+half], "\x00"), Y: bytes.TrimLeft(point[1+half:], "\x00")})
			if want := (family{key: key}).publicPEM(t); err != nil || string(got) != want {
				t.Fatalf("%s: got %v\n%s", name, err, got)
			}
		}
	}
	for name, key := range map[string]*azkeys.JSONWebKey{
		"P-256K":               {Kty: to.Ptr(azkeys.KeyTypeEC), Crv: to.Ptr(azkeys.CurveNameP256K), X: []byte{1}, Y: []byte{2}},
		"no curve":             {Kty: to.Ptr(azkeys.KeyTypeEC), X: []byte{1}, Y: []byte{2}},
		"not on the curve":     {Kty: to.Ptr(azkeys.KeyTypeEC), Crv: to.Ptr(azkeys.CurveNameP256), X: []byte{1}, Y: []byte{2}},
		"too long":             {Kty: to.Ptr(azkeys.KeyTypeEC), Crv: to.Ptr(azkeys.CurveNameP256), X: bytes.Repeat([]byte{1}, 33), Y: []byte{2}},
		"symmetric":            {Kty: to.Ptr(azkeys.KeyTypeOctHSM)},
		"RSA without a number": {Kty: to.Ptr(azkeys.KeyTypeRSA), E: []byte{1, 0, 1}},
		"a huge exponent":      {Kty: to.Ptr(azkeys.KeyTypeRSA), N: rsaKey.N.Bytes(), E: bytes.Repeat([]byte{1}, 40)},
	} {
		if _, err := publicKey(key); provider.KindOf(err) != provider.Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestPEMIsSplitIntoCertificatesAndKeys(t *testing.T) {
	f := newFamily(t, newEC(t, elliptic.P256()))
	for name, text := range map[string]string{
		"key first": f.keyPEM(t) + inPEM(f.leaf, f.root), "key last": inPEM(f.leaf) + "noise\n" + inPEM(f.root) + f.keyPEM(t),
	} {
		certificates, keys := split([]byte(text))
		if string(certificates) != inPEM(f.leaf, f.root) || string(keys) != f.keyPEM(t) {
			t.Errorf("%s: got\n%s\n%s", name, certificates, keys)
		}
	}
	if certificates, keys := split([]byte("none")); len(certificates)+len(keys) > 0 {
		t.Errorf("got %q, %q", certificates, keys)
	}
}

func FuzzFromPFX(f *testing.F) {
	family := newFamily(f, newEC(f, elliptic.P256()))
	f.Add(family.pfx(f, pkcs12.Modern2023.WithIterations(1), family.leaf, family.root), true)
	f.Add("AAAA", false)
	f.Fuzz(func(t *testing.T, text string, ordered bool) {
		got, err := fromPFX([]byte(text), ordered)
		if (err == nil) == (len(got) == 0) {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func FuzzChain(f *testing.F) {
	f.Add([]byte{1, 2, 2, 3, 3, 3})
	f.Fuzz(func(t *testing.T, ids []byte) {
		var all []*x509.Certificate
		for i := 0; i+1 < len(ids) && i < 40; i += 2 {
			all = append(all, &x509.Certificate{Raw: []byte{byte(i)}, SubjectKeyId: ids[i : i+1], AuthorityKeyId: ids[i+1 : i+2]})
		}
		if len(all) == 0 {
			return
		}
		got := chain(all)
		for i, c := range got {
			if !slices.Contains(all, c) || slices.Contains(got[:i], c) {
				t.Errorf("%v: it holds a certificate twice, or one that was not given", ids)
			}
		}
	})
}
