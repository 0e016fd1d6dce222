package sync

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// canary is in every value, and must be nowhere else.
const canary = "c4n4ry"

var shop = class.Ref{Namespace: "shop", Name: "db"}

func filesOf(set map[string]string) []provider.File {
	var all []provider.File
	for path, contents := range set {
		all = append(all, provider.File{Path: path, Mode: 0o644, Contents: secret.FromString(contents)})
	}
	return all
}

// object returns a secretObject with data of pairs of objectName and key.
func object(name, kind string, pairs ...string) class.SecretObject {
	o := class.SecretObject{SecretName: name, Type: kind}
	for i := 0; i < len(pairs); i += 2 {
		o.Data = append(o.Data, class.SecretObjectData{ObjectName: pairs[i], Key: pairs[i+1]})
	}
	return o
}

func TestASecretHasWhatItsClassSays(t *testing.T) {
	o := object(" login ", " kubernetes.io/basic-auth ", " user ", " username ", "deep/pass", "password", "empty", "nothing", "user", "twice", "deep/pass", "twice")
	o.Labels, o.Annotations = map[string]string{"app": "shop"}, map[string]string{"note": "mine"}
	files := filesOf(map[string]string{"user": "ann", "deep/pass": canary, "empty": "", "more": "more"})
	want, err := buildFor(o, files)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Contents.Clear()
	}
	got := map[string]string{}
	for key, value := range want.Data {
		got[key] = string(value.Reveal())
	}
	if !maps.Equal(got, map[string]string{"username": "ann", "password": canary, "nothing": "", "twice": canary}) {
		t.Errorf("the data is %q", got)
	}
	if want.Namespace != "shop" || want.Name != "login" || want.Type != "kubernetes.io/basic-auth" || want.Source != "db" || want.Labels["app"] != "shop" || want.Annotations["note"] != "mine" {
		t.Errorf("it is %+v", want)
	}
	if strings.Contains(fmt.Sprintf("%+v %#v", want, want), canary) {
		t.Error("it shows a value")
	}
	want.Clear()
	if want.Data["password"].Len() > 0 {
		t.Error("it is not cleared")
	}
}

func TestWhatIsWrongWithASecretObjectIsSaid(t *testing.T) {
	type bad struct {
		o    class.SecretObject
		kind provider.Kind
		says string
	}
	for name, test := range map[string]bad{
		"no name":                  {object("", "Opaque", "a", "a"), provider.Invalid, `class shop/db: secretObject "": secretName is missing`},
		"a name that is not legal": {object("A_B", "Opaque", "a", "a"), provider.Invalid, `secretObject "A_B": secretName is no legal name`},
		"no type":                  {object("s", " ", "a", "a"), provider.Invalid, `secretObject "s": type is missing; write Opaque`},
		"no data":                  {object("s", "Opaque"), provider.Invalid, `data is empty`},
		"no key":                   {object("s", "Opaque", "a", " "), provider.Invalid, `data entry 1 has no key`},
		"a key that is not legal":  {object("s", "Opaque", "a", "a/b"), provider.Invalid, `secretObject "s", key "a/b": it is not a legal key`},
		"no objectName":            {object("s", "Opaque", "", "k"), provider.Invalid, `secretObject "s", key "k": objectName is missing`},
		"a file that is not there": {object("s", "Opaque", "b", "k"), provider.NotFound, `key "k": file matching objectName b not found in the pod's volume; write the path`},
		"a token of Kubernetes":    {object("s", "kubernetes.io/service-account-token", "a", "token"), provider.Invalid, `Kubernetes fills Secrets of the type kubernetes.io/service-account-token`},
		"too much":                 {object("s", "Opaque", "large", "a", "large", "b"), provider.TooLarge, `its data has 1200000 bytes, and a Secret holds 1048576`},
		"TLS without a key":        {object("s", "kubernetes.io/tls", "a", "tls.crt"), provider.Invalid, `key "tls.key": a TLS Secret needs it`},
		"TLS with another key":     {object("s", "kubernetes.io/tls", "a", "tls.pem"), provider.Invalid, `key "tls.pem": a TLS Secret has the keys tls.crt, tls.key and ca.crt only`},
		"TLS of something else":    {object("s", "kubernetes.io/tls", "a", "tls.crt", "a", "tls.key"), provider.Invalid, `key "tls.crt and tls.key": certificate: it is neither PEM nor PKCS#12`},
		"TLS of an empty file":     {object("s", "kubernetes.io/tls", "empty", "tls.crt", "empty", "tls.key"), provider.Invalid, `certificate: it is empty`},
		"authorities of something": {object("s", "kubernetes.io/tls", "a", "ca.crt"), provider.Invalid, `key "ca.crt": certificate: it is neither PEM nor PKCS#12`},
	} {
		t.Run(name, func(t *testing.T) {
			want, err := buildFor(test.o, filesOf(map[string]string{"a": canary, "empty": "", "large": canary + strings.Repeat("x", 600000-len(canary))}))
			if provider.KindOf(err) != test.kind || err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "class shop/db: secretObject") {
				t.Errorf("got %v of kind %v; want %q", err, provider.KindOf(err), test.says)
			}
			if strings.Contains(fmt.Sprint(err), canary) || len(want.Data) > 0 {
				t.Errorf("it tells a value: %v, %v", err, want)
			}
		})
	}
}

// certified is a private key with its certificate.
type certified struct {
	key         crypto.Signer
	certificate *x509.Certificate
}

func (c certified) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.certificate.Raw}))
}

func (c certified) keyPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(c.key))}))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// sign makes a certificate of key by c, or by itself where c is the zero value.
func (c certified) sign(key crypto.Signer, name string, authority bool) certified {
	template := &x509.Certificate{SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<60))), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true, IsCA: authority,
		NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(4e9, 0)}
	if c.certificate == nil {
		c = certified{key, template}
	}
	return certified{key, must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, c.certificate, key.Public(), c.key))))}
}

func newKey() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func TestATLSSecretIsCutOutOfWhateverHoldsIt(t *testing.T) {
	root := certified{}.sign(newKey(), "root", true)
	issuer := root.sign(newKey(), "issuer", true)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for kind, of := range map[string]struct {
		key   crypto.Signer
		label string
	}{
		"RSA":     {must(rsa.GenerateKey(rand.Reader, 2048)), "RSA PRIVATE KEY"},
		"ECDSA":   {newKey(), "EC PRIVATE KEY"},
		"Ed25519": {edKey, "PRIVATE KEY"},
	} {
		leaf := issuer.sign(of.key, "leaf", false)
		chain := []*x509.Certificate{issuer.certificate, root.certificate}
		for form, contents := range map[string]string{
			"PEM":           leaf.pem() + issuer.pem() + root.pem() + leaf.keyPEM(),
			"key first":     leaf.keyPEM() + root.pem() + issuer.pem() + leaf.pem(),
			"modern PKCS12": string(must(pkcs12.Modern.Encode(of.key, leaf.certificate, chain, ""))),
			"legacy PKCS12": string(must(pkcs12.LegacyDES.Encode(of.key, leaf.certificate, chain, ""))),
		} {
			t.Run(kind+"/"+form, func(t *testing.T) {
				o := object("web", "kubernetes.io/tls", "bundle", "tls.crt", "bundle", "tls.key", "bundle", "ca.crt")
				want, err := buildFor(o, filesOf(map[string]string{"bundle": contents}))
				if err != nil {
					t.Fatal(err)
				}
				pair, err := tls.X509KeyPair(want.Data["tls.crt"].Reveal(), want.Data["tls.key"].Reveal())
				if err != nil || len(pair.Certificate) != 3 || !bytes.Equal(pair.Certificate[0], leaf.certificate.Raw) {
					t.Errorf("a server gets %d certificates, %v", len(pair.Certificate), err)
				}
				if block, rest := pem.Decode(want.Data["tls.key"].Reveal()); block == nil || block.Type != of.label || len(rest) > 0 {
					t.Errorf("the key is %v, want %s", block, of.label)
				}
				roots := x509.NewCertPool()
				if n := strings.Count(string(want.Data["ca.crt"].Reveal()), "BEGIN"); n != 2 || !roots.AppendCertsFromPEM(want.Data["ca.crt"].Reveal()) {
					t.Errorf("there are %d authorities", n)
				}
				if _, err := leaf.certificate.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
					t.Errorf("they are not those of the chain: %v", err)
				}
			})
		}
	}
}

func TestPEMIsKeptInItsOrder(t *testing.T) {
	root := certified{}.sign(newKey(), "root", true)
	leaf := root.sign(newKey(), "leaf", false)
	other := root.sign(newKey(), "other", false)
	want, err := buildFor(object("web", "kubernetes.io/tls", "crt", "tls.crt", "key", "tls.key"), filesOf(map[string]string{
		"crt": "Bag Attributes\n" + leaf.pem() + "\n" + other.pem() + root.pem(), "key": other.keyPEM() + leaf.keyPEM(),
	}))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(want.Data["tls.crt"].Reveal()); got != leaf.pem()+other.pem()+root.pem() {
		t.Errorf("the certificates are\n%s", got)
	}
	if _, err := tls.X509KeyPair(want.Data["tls.crt"].Reveal(), want.Data["tls.key"].Reveal()); err != nil {
		t.Error(err)
	}
}

func TestAKeyOfAnotherCertificateMakesNoSecret(t *testing.T) {
	one, two := certified{}.sign(newKey(), "one", false), certified{}.sign(newKey(), "two", false)
	o := object("web", "kubernetes.io/tls", "crt", "tls.crt", "key", "tls.key")
	_, err := buildFor(o, filesOf(map[string]string{"crt": one.pem(), "key": two.keyPEM()}))
	if provider.KindOf(err) != provider.Invalid || !strings.Contains(fmt.Sprint(err), `secretObject "web", key "tls.crt and tls.key": the private key belongs to none of the certificates`) {
		t.Errorf("got %v", err)
	}
	_, err = buildFor(o, filesOf(map[string]string{"crt": one.pem(), "key": one.pem()}))
	if provider.KindOf(err) != provider.NotFound || !strings.Contains(fmt.Sprint(err), `private key: there is no private key in it`) {
		t.Errorf("got %v", err)
	}
	_, err = buildFor(o, filesOf(map[string]string{"crt": one.pem(), "key": "-----BEGIN PRIVATE KEY-----\n" + canary + "\n-----END PRIVATE KEY-----"}))
	if provider.KindOf(err) != provider.Invalid || !strings.Contains(fmt.Sprint(err), `private key: PEM block 1: it is`) || strings.Contains(err.Error(), canary) {
		t.Errorf("got %v", err)
	}
}

// buildFor makes the Secret that a class asks for.
func buildFor(o class.SecretObject, files []provider.File) (Wanted, error) {
	return Build(shop, terms(shop, o), o, files)
}
