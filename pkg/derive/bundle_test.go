package derive

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pavlo-v-chernykh/keystore-go/v4"
	theirs "software.sslmate.com/src/go-pkcs12"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// names tells what PEM text holds: "key", and certificates by their names.
func names(text string) string {
	var all []string
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				all = append(all, "something else")
			}
			return strings.Join(all, " ")
		}
		if b.Type == "PRIVATE KEY" {
			all = append(all, "key")
			continue
		}
		all = append(all, must(x509.ParseCertificate(b.Bytes)).Subject.CommonName)
	}
}

func TestABundleIsSplitIntoItsParts(t *testing.T) {
	h := pki()
	mixed := h.upper.pem() + "# a comment\n" + h.other.pem() + h.lower.pem() + h.leaf.keyPEM() + h.root.pem() + h.leaf.pem() + h.upper.pem()
	for name, tc := range map[string]struct{ source, parts, want string }{
		"by default, the key and the chain without its root": {mixed, "", "key leaf lower upper"},
		"the key":                                       {mixed, "key", "key"},
		"the certificate":                               {mixed, "certificate", "leaf"},
		"the chain":                                     {mixed, "chain", "leaf lower upper"},
		"the intermediates":                             {mixed, "intermediates", "lower upper"},
		"the authorities":                               {mixed, "ca", "other root"},
		"every certificate once, as they come":          {mixed, "bundle", "upper other lower root leaf"},
		"parts in the order of the class":               {mixed, "[certificate, key, ca]", "leaf key other root"},
		"a certificate once":                            {mixed, "[certificate, chain, bundle]", "leaf lower upper other root"},
		"a chain without its root":                      {h.lower.pem() + h.leaf.pem(), "chain", "leaf lower"},
		"the authority of a chain without its root":     {h.lower.pem() + h.leaf.pem(), "ca", "lower"},
		"a chain with a gap":                            {h.leaf.pem() + h.upper.pem() + h.root.pem() + h.leaf.keyPEM(), "chain", "leaf"},
		"the only certificate, an authority's, as such": {h.lower.pem(), "ca", "lower"},
		"roots only":                                    {h.other.pem() + h.root.pem(), "ca", "other root"},
		"a certificate that signed itself":              {h.root.pem() + h.root.keyPEM(), "[key, chain, ca]", "key root"},
		"a key alone":                                   {h.leaf.keyPEM(), "key", "key"},
		"a part that is not there beside one that is":   {h.leaf.pem() + h.lower.pem(), "[certificate, intermediates]", "leaf lower"},
		"no intermediates beside a chain":               {h.lower.pem() + h.lower.keyPEM(), "[key, chain, intermediates]", "key lower"},
		"certificates without the key that would tell":  {h.leaf.pem() + h.lower.pem() + h.other.pem(), "chain", "leaf lower"},
	} {
		t.Run(name, func(t *testing.T) {
			entry := "- path: out\n  from: in\n  format: pem\n"
			if tc.parts != "" {
				entry += "  parts: " + tc.parts + "\n"
			}
			if got := names(derived(t, entry, map[string]string{"in": tc.source})); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
	t.Run("what a server takes", func(t *testing.T) {
		text := derived(t, "- {path: out, from: in, format: pem}", map[string]string{"in": mixed})
		pair, err := tls.X509KeyPair([]byte(text), []byte(text))
		if err != nil || len(pair.Certificate) != 3 {
			t.Errorf("%d certificates, %v", len(pair.Certificate), err)
		}
	})
	t.Run("several files", func(t *testing.T) {
		brought := map[string]string{"ca.crt": h.root.pem() + h.lower.pem() + h.upper.pem(), "tls.crt": h.leaf.pem(), "tls.key": h.leaf.keyPEM()}
		if got := names(derived(t, "- {path: out, from: [ca.crt, tls.crt, tls.key], format: PEM, parts: [chain, key]}", brought)); got != "leaf lower upper key" {
			t.Errorf("got %s", got)
		}
	})
}

func TestMaterialIsReadInAllItsForms(t *testing.T) {
	h := pki()
	ecKey := h.leaf.key.(*ecdsa.PrivateKey)
	rsaKey := keysOfAllKinds()["RSA"].(*rsa.PrivateKey)
	ofRSA := h.lower.sign(rsaKey, "leaf", nil)
	ofEd := h.lower.sign(keysOfAllKinds()["Ed25519"], "leaf", nil)
	text := h.leaf.keyPEM() + h.leaf.pem() + h.lower.pem()
	p12 := must(theirs.LegacyRC2.Encode(h.leaf.key, h.leaf.certificate, []*x509.Certificate{h.lower.certificate}, ""))
	sealed := must(theirs.Modern.Encode(h.leaf.key, h.leaf.certificate, []*x509.Certificate{h.lower.certificate}, "secret"))
	list := must(json.Marshal([]string{h.leaf.keyPEM(), h.leaf.pem(), h.lower.pem()}))
	object := must(json.Marshal(map[string]any{"serial": 7, "private_key": h.leaf.keyPEM(), "certificate": strings.TrimSpace(h.leaf.pem()), "ca_chain": []string{h.lower.pem()}, "note": "x"}))
	for name, tc := range map[string]struct{ source, fields string }{
		"PEM":                                 {text, ""},
		"a key in the form of SEC 1":          {block("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}) + block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecKey))) + h.leaf.pem() + h.lower.pem(), ""},
		"a key in the form of PKCS#1":         {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)) + ofRSA.pem() + h.lower.pem(), ""},
		"a key of RSA in the form of PKCS#8":  {ofRSA.keyPEM() + ofRSA.pem() + h.lower.pem(), ""},
		"a key of Ed25519":                    {ofEd.keyPEM() + ofEd.pem() + h.lower.pem(), ""},
		"a key under another form's name":     {block("PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)) + ofRSA.pem() + h.lower.pem(), ""},
		"a key that comes twice":              {text + block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecKey))), ""},
		"kinds of PEM that have no part":      {block("CERTIFICATE REQUEST", []byte("x")) + text + block("X509 CRL", []byte("y")), ""},
		"the line breaks of Windows":          {strings.ReplaceAll(text, "\n", "\r\n"), ""},
		"line breaks written as \\n":          {strings.ReplaceAll(text, "\n", `\n`), ""},
		"line breaks that became spaces":      {strings.ReplaceAll(text, "\n", " "), ""},
		"line breaks that are lost":           {strings.ReplaceAll(text, "\n", ""), ""},
		"indented lines":                      {strings.ReplaceAll(text, "\n", "\n  "), ""},
		"a list in JSON":                      {string(list), ""},
		"an object in JSON":                   {string(object), ""},
		"a text in JSON":                      {string(must(json.Marshal(text))), ""},
		"PKCS#12":                             {string(p12), ""},
		"PKCS#12 in base64":                   {base64.StdEncoding.EncodeToString(p12) + "\n", ""},
		"PKCS#12 with a password":             {string(sealed), "sourcePassword: secret"},
		"PKCS#12 with a password from a file": {string(sealed), "sourcePasswordFrom: password"},
		"PKCS#12 in hex":                      {hex.EncodeToString(sealed), "encoding: hex\n  sourcePassword: secret"},
		"PKCS#12 in base64 in JSON":           {`{"pfx": "` + base64.StdEncoding.EncodeToString(p12) + `"}`, "extractJSONKey: pfx"},
		"PEM in base64":                       {base64.StdEncoding.EncodeToString([]byte(text)), "encoding: base64"},
		"PEM in YAML":                         {"tls: |\n  " + strings.ReplaceAll(text, "\n", "\n  "), "extractYAMLKey: tls"},
	} {
		t.Run(name, func(t *testing.T) {
			want := "key leaf lower"
			entry := "- path: out\n  from: in\n  format: pem\n"
			if tc.fields != "" {
				entry += "  " + tc.fields + "\n"
			}
			if got := names(derived(t, entry, map[string]string{"in": tc.source, "password": "secret\r\nmore"})); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
	for name, der := range map[string][]byte{"a certificate in DER": h.leaf.certificate.Raw, "certificates in DER": append(bytes.Clone(h.leaf.certificate.Raw), h.lower.certificate.Raw...)} {
		if got := names(derived(t, "- {path: out, from: [in, key], format: pem}", map[string]string{"in": string(der), "key": string(h.leaf.pkcs8())})); !strings.HasPrefix(got, "key leaf") {
			t.Errorf("%s: got %s", name, got)
		}
	}
}

// encryptedKey was made by `openssl genpkey -algorithm ed25519 -aes256 -pass pass:secret`.
const encryptedKey = `-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhg5qRD9xkdAQICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEFgetmBAMBwqZvxUrrN++IYEQHP5
/ciTAOrc+CSBi1CANPyHSSiMb+Jawe/2UV+ZMwWygJynedCmKYXrn+MRGfMs1SeL
yYmjH5y+WlLwiLOKq2g=
-----END ENCRYPTED PRIVATE KEY-----
`

func TestMaterialThatCannotBeUsedIsSaidWithoutQuotingIt(t *testing.T) {
	h := pki()
	cut := strings.Replace(h.leaf.pem(), "-----END", "-----ENE", 1)
	renewed := h.lower.sign(h.leaf.key, "renewed", nil)
	sealed := string(must(theirs.Modern.Encode(h.leaf.key, h.leaf.certificate, nil, "canary")))
	for name, tc := range map[string]struct {
		source string
		parts  string
		kind   provider.Kind
		says   string
	}{
		"text":                          {canary, "", provider.Invalid, `file "in": it is neither PEM nor PKCS#12; correct what the store holds`},
		"nothing":                       {" \n", "", provider.Invalid, `file "in": it is empty`},
		"base64 of text":                {base64.StdEncoding.EncodeToString([]byte(canary)), "", provider.Invalid, `it is neither PEM nor PKCS#12`},
		"JSON without PEM":              {`{"a": "` + canary + `"}`, "", provider.Invalid, `it is JSON without PEM in it`},
		"DER of something else":         {"0\x03\x02\x01\x01", "", provider.Invalid, `it is neither PEM nor PKCS#12`},
		"a block without an end":        {h.leaf.keyPEM() + cut, "", provider.Invalid, `file "in": PEM block 2 has no end`},
		"a block within a block":        {"-----BEGIN CERTIFICATE-----\n" + h.leaf.pem(), "", provider.Invalid, "PEM block 1 has no end"},
		"a block that is not base64":    {block("CERTIFICATE", nil)[:28] + canary + "!\n-----END CERTIFICATE-----", "", provider.Invalid, "PEM block 1: it is not base64"},
		"a certificate that is none":    {h.leaf.pem() + block("CERTIFICATE", []byte(canary)), "", provider.Invalid, "PEM block 2: it is a certificate that cannot be read"},
		"a key that is none":            {block("PRIVATE KEY", []byte(canary)), "", provider.Invalid, "PEM block 1: it is a private key that cannot be read"},
		"an encrypted key":              {encryptedKey, "", provider.Invalid, "PEM block 1: it is an encrypted private key, which is read within PKCS#12 only"},
		"a key of old OpenSSL":          {"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----", "", provider.Invalid, "PEM block 1: it is a private key that is encrypted in the form of old OpenSSL"},
		"PKCS#12 with another password": {sealed, "", provider.Invalid, "it is a PKCS#12 file that the password does not open; give sourcePassword or sourcePasswordFrom"},
		"no key":                        {h.leaf.pem(), "", provider.NotFound, `derived file "out": there is no private key in it; correct "from" or "parts"`},
		"no certificate":                {h.leaf.keyPEM(), "", provider.NotFound, "there is no certificate in it"},
		"no authority":                  {h.leaf.pem(), "ca", provider.NotFound, "there is no certificate of an authority in it"},
		"no intermediates":              {h.leaf.pem(), "intermediates", provider.NotFound, "there is no intermediate certificate in it"},
		"a key of another certificate":  {h.other.keyPEM() + h.leaf.pem() + h.lower.pem(), "", provider.Invalid, "none of the certificates in it is that of the private key"},
		"two keys with certificates":    {h.leaf.keyPEM() + h.leaf.pem() + h.other.keyPEM() + h.other.pem(), "", provider.Invalid, "there are several private keys with certificates in it"},
		"two keys without any":          {h.leaf.keyPEM() + h.other.keyPEM(), "key", provider.Invalid, "there are several private keys in it, and no certificate that tells which"},
		"two leaves without a key":      {h.leaf.pem() + renewed.pem(), "chain", provider.Invalid, "it cannot be told which of its certificates the chain begins with"},
	} {
		t.Run(name, func(t *testing.T) {
			entry := "- path: out\n  from: in\n  format: pem\n"
			if tc.parts != "" {
				entry += "  parts: " + tc.parts + "\n"
			}
			_, err := apply(entry, map[string]string{"in": tc.source})
			wantError(t, err, tc.kind, `derived file "out": `, tc.says)
			if leaf := base64.StdEncoding.EncodeToString(h.leaf.certificate.Raw); strings.Contains(err.Error(), leaf[:20]) {
				t.Errorf("an error quotes a certificate: %v", err)
			}
		})
	}
	_, err := apply("- {path: out, from: in, format: pem, sourcePassword: x}", map[string]string{"in": sealed})
	wantError(t, err, provider.Invalid, "the password does not open; correct sourcePassword, or what sourcePasswordFrom names")
	for password, says := range map[string]string{"": "it is empty; choose another", "\n": "it is empty", "canary\xff": "it is not text", "ä": "not plain ASCII"} {
		format := "pkcs12"
		if password == "ä" {
			format = "jks"
		}
		_, err := apply("- {path: out, from: in, passwordFrom: password, format: "+format+"}", map[string]string{"in": h.leaf.keyPEM() + h.leaf.pem(), "password": password})
		wantError(t, err, provider.Invalid, `derived file "out": the password in file "password": `, says)
	}
}

func TestOfSeveralCertificatesWithOneKeyTheLatestCounts(t *testing.T) {
	h := pki()
	renewed := h.lower.sign(h.leaf.key, "renewed", func(c *x509.Certificate) { c.NotBefore = time.Unix(2e9, 0) })
	for _, source := range []string{h.leaf.pem() + renewed.pem(), renewed.pem() + h.leaf.pem()} {
		if got := names(derived(t, "- {path: out, from: in, format: pem}", map[string]string{"in": source + h.leaf.keyPEM()})); got != "key renewed" {
			t.Errorf("got %s", got)
		}
	}
}

func TestAnAuthorityThatAnotherSignedToo(t *testing.T) {
	h := pki()
	// The same name and key, once by itself and once by another root.
	crossed := h.other.sign(h.root.key, "root", isCA)
	leaf := h.root.sign(newKey(), "leaf", nil)
	for source, want := range map[string]string{
		leaf.pem() + h.root.pem() + crossed.pem() + h.other.pem(): "leaf",
		leaf.pem() + crossed.pem() + h.root.pem() + h.other.pem(): "leaf root",
		leaf.pem() + crossed.pem():                                "leaf root",
	} {
		if got := names(derived(t, "- {path: out, from: in, format: pem, parts: chain}", map[string]string{"in": source})); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	// A name alone makes no issuer, nor do two that signed each other a chain
	// without an end.
	impostor := authority{}.sign(newKey(), "lower", isCA)
	if got := names(derived(t, "- {path: out, from: in, format: pem, parts: chain}", map[string]string{"in": h.leaf.pem() + impostor.pem() + h.lower.pem()})); got != "leaf lower" {
		t.Errorf("got %s", got)
	}
	a, b := newKey(), newKey()
	one := authority{a, &x509.Certificate{Subject: must(x509.ParseCertificate(pki().root.certificate.Raw)).Subject}}
	two := authority{b, &x509.Certificate{Subject: pki().other.certificate.Subject}}
	byTwo, byOne := two.sign(a, "root", isCA), one.sign(b, "other", isCA)
	circle := one.sign(newKey(), "leaf", nil)
	if got := names(derived(t, "- {path: out, from: in, format: pem, parts: chain}", map[string]string{"in": circle.pem() + byTwo.pem() + byOne.pem()})); got != "leaf root other" {
		t.Errorf("got %s", got)
	}
}

// Go checks no signatures with MD5; there still are roots with them.
func TestAChainThatIsSignedWithMD5(t *testing.T) {
	brought := map[string]string{"in": string(must(os.ReadFile("testdata/md5.pem")))}
	for parts, want := range map[string]string{"chain": "leaf mid", "ca": "root", "[chain, ca]": "leaf mid root"} {
		if got := names(derived(t, "- {path: out, from: in, format: pem, parts: "+parts+"}", brought)); got != want {
			t.Errorf("%s: got %s, want %s", parts, got, want)
		}
	}
}

func TestManyCertificatesOfOneNameTakeNoLongTime(t *testing.T) {
	h := pki()
	var source strings.Builder
	source.WriteString(h.leaf.pem())
	for range 200 {
		source.WriteString(authority{}.sign(h.other.key, "lower", func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "lower"}; c.IsCA = true }).pem())
	}
	began := time.Now()
	got, err := apply(many("- {path: x%d, from: in, format: pem, parts: ca}\n", 60), map[string]string{"in": source.String()})
	wantError(t, err, provider.TooLarge, "there are too many certificates of the same name")
	t.Logf("%d files after %v", len(got), time.Since(began))
	_, err = apply("- {path: x, from: in, format: pem, parts: bundle}", map[string]string{"in": strings.Repeat(h.leaf.keyPEM(), 3) + keysOf(maxKeys)})
	wantError(t, err, provider.TooLarge, "there are more than 16 private keys")
}

func keysOf(n int) string {
	var b strings.Builder
	for range n {
		b.WriteString(authority{key: newKey()}.keyPEM())
	}
	return b.String()
}

// stores are entries that make key stores and trust stores.
const stores = `
- {path: key.p12, from: in, format: pkcs12, password: changeit}
- {path: full.p12, from: in, format: pkcs12, password: changeit, parts: [key, chain, ca]}
- {path: old.p12, from: in, format: pkcs12, password: changeit, legacy: true, parts: [key, certificate]}
- {path: trust.p12, from: in, format: pkcs12, password: changeit, parts: ca}
- {path: key.jks, from: in, format: jks, passwordFrom: password, alias: Server}
- {path: trust.jks, from: in, format: jks, password: changeit, parts: [ca, intermediates], alias: my}
`

// wantStores are the certificates of each, by name.
var wantStores = map[string]string{
	"key.p12": "leaf lower upper", "full.p12": "leaf lower upper root", "old.p12": "leaf", "trust.p12": "other root",
	"key.jks": "leaf lower upper", "trust.jks": "my=other my-2=root my-3=lower my-4=upper",
}

// forStores is what a provider brings for the stores.
func forStores(key crypto.Signer) map[string]string {
	h := pki()
	leaf := h.lower.sign(key, "leaf", nil)
	return map[string]string{"in": h.other.pem() + h.upper.pem() + leaf.keyPEM() + h.root.pem() + leaf.pem() + h.lower.pem(), "password": "changeit\n"}
}

func madeStores(t *testing.T, brought map[string]string) map[string][]byte {
	t.Helper()
	got, err := apply(stores, brought)
	if err != nil {
		t.Fatal(err)
	}
	made := map[string][]byte{}
	for _, f := range got {
		made[f.Path] = f.Contents.Reveal()
	}
	return made
}

// What keytool and openssl say about the same stores follows below, where the
// machine has them; on every machine, two other Go implementations read them.
func TestStoresAreReadByOtherImplementations(t *testing.T) {
	for kind, key := range keysOfAllKinds() {
		t.Run(kind, func(t *testing.T) {
			made := madeStores(t, forStores(key))
			for _, path := range []string{"key.p12", "full.p12", "old.p12"} {
				got, leaf, chain, err := theirs.DecodeChain(made[path], "changeit")
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				var names []string
				for _, c := range append([]*x509.Certificate{leaf}, chain...) {
					names = append(names, c.Subject.CommonName)
				}
				if !key.(interface{ Equal(crypto.PrivateKey) bool }).Equal(got) || strings.Join(names, " ") != wantStores[path] {
					t.Errorf("%s: got %T, %s", path, got, names)
				}
			}
			trusted, err := theirs.DecodeTrustStore(made["trust.p12"], "changeit")
			if err != nil || len(trusted) != 2 || trusted[0].Subject.CommonName != "other" || trusted[1].Subject.CommonName != "root" {
				t.Errorf("got %v, %v", trusted, err)
			}
			store := keystore.New()
			if err := store.Load(bytes.NewReader(made["key.jks"]), []byte("changeit")); err != nil {
				t.Fatal(err)
			}
			entry, err := store.GetPrivateKeyEntry("server", []byte("changeit"))
			if err != nil || len(entry.CertificateChain) != 3 || !key.(interface{ Equal(crypto.PrivateKey) bool }).Equal(must(x509.ParsePKCS8PrivateKey(entry.PrivateKey))) || entry.CreationTime.Unix() != 1e9 {
				t.Errorf("got %d certificates of %v, %v", len(entry.CertificateChain), entry.CreationTime, err)
			}
			store = keystore.New(keystore.WithOrderedAliases())
			if err := store.Load(bytes.NewReader(made["trust.jks"]), []byte("changeit")); err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, alias := range store.Aliases() {
				entry := must(store.GetTrustedCertificateEntry(alias))
				names = append(names, alias+"="+must(x509.ParseCertificate(entry.Certificate.Content)).Subject.CommonName)
			}
			if strings.Join(names, " ") != wantStores["trust.jks"] {
				t.Errorf("got %s", names)
			}
		})
	}
}

func TestAStoreIsTheSameAsLongAsWhatItIsMadeOf(t *testing.T) {
	brought := forStores(keysOfAllKinds()["ECDSA"])
	first, again := madeStores(t, brought), madeStores(t, brought)
	for path := range wantStores {
		if !bytes.Equal(first[path], again[path]) {
			t.Errorf("%s changes", path)
		}
	}
	// The order of sources that has no part in it does not count; all else does.
	salt := func(entry string, brought map[string]string) string {
		got := must(apply(entry, brought))
		return hex.EncodeToString(got[len(got)-1].Contents.Reveal())
	}
	seen := map[string]string{}
	other := forStores(newKey())
	for name, made := range map[string]string{
		"as it is":          salt("- {path: x, from: in, format: pkcs12, password: a}", brought),
		"another password":  salt("- {path: x, from: in, format: pkcs12, password: b}", brought),
		"of trust by b":     salt("- {path: x, from: in, format: pkcs12, password: a, parts: ca, alias: b}", brought),
		"another algorithm": salt("- {path: x, from: in, format: pkcs12, password: a, legacy: true}", brought),
		"with its root":     salt("- {path: x, from: in, format: pkcs12, password: a, parts: [key, chain, ca]}", brought),
		"of another key":    salt("- {path: x, from: in, format: pkcs12, password: a}", other),
		"of trust":          salt("- {path: x, from: in, format: pkcs12, password: a, parts: ca}", brought),
		"of trust, in JKS":  salt("- {path: x, from: in, format: jks, password: a, parts: ca}", brought),
		"in JKS":            salt("- {path: x, from: in, format: jks, password: a}", brought),
		"in JKS by b":       salt("- {path: x, from: in, format: jks, password: a, alias: b}", brought),
	} {
		if before, ok := seen[made]; ok {
			t.Errorf("%s is the same as %s", name, before)
		}
		seen[made] = name
	}
}

// The salts are of what is in a store and not of its password: those would let
// somebody who has the store try passwords without deriving a key from each.
func TestSaltsSayNothingAboutThePassword(t *testing.T) {
	s := selection{key: &privateKey{pkcs8: []byte("key")}, certificates: []*x509.Certificate{{Raw: []byte("a")}}}
	read := func(b bundle, s selection) string {
		b.format = formatPKCS12
		salts := make([]byte, 200)
		must(must(b.salts(s)).Read(salts))
		return string(salts)
	}
	base := read(bundle{alias: "a", password: "x"}, s)
	if base != read(bundle{alias: "a", password: "y", passwordFrom: "z"}, s) {
		t.Error("they depend on the password")
	}
	other := s
	other.certificates = []*x509.Certificate{{Raw: []byte("b")}}
	keyless := s
	keyless.key = nil
	joined := s
	joined.key, joined.certificates = &privateKey{pkcs8: []byte("ke")}, []*x509.Certificate{{Raw: []byte("ya")}}
	all := []string{base, read(bundle{alias: "b"}, s), read(bundle{alias: "a", legacy: true}, s), read(bundle{alias: "a"}, other), read(bundle{alias: "a"}, keyless), read(bundle{alias: "a"}, joined)}
	if slices.Sort(all); len(slices.Compact(all)) != 6 {
		t.Error("different contents have the same salts")
	}
}

func TestKeytoolListsTheStores(t *testing.T) {
	keytool := program(t, "keytool")
	for kind, key := range keysOfAllKinds() {
		dir := t.TempDir()
		for path, contents := range madeStores(t, forStores(key)) {
			must(0, os.WriteFile(filepath.Join(dir, path), contents, 0o600))
		}
		for path, want := range map[string][]string{
			"key.p12":   {"Keystore type: PKCS12", "contains 1 entry", "Alias name: 1\n", "PrivateKeyEntry", "chain length: 3", "CN=leaf", "CN=lower", "CN=upper"},
			"full.p12":  {"Alias name: 1\n", "PrivateKeyEntry", "chain length: 4", "CN=root"},
			"old.p12":   {"PrivateKeyEntry", "chain length: 1"},
			"trust.p12": {"contains 2 entries", "Alias name: ca\n", "Alias name: ca-2\n", "trustedCertEntry", "CN=other", "CN=root"},
			"key.jks":   {"Keystore type: JKS", "contains 1 entry", "Alias name: server", "Creation date: Sep 9, 2001", "PrivateKeyEntry", "chain length: 3"},
			"trust.jks": {"Keystore type: JKS", "contains 4 entries", "Alias name: my\n", "Alias name: my-4\n", "trustedCertEntry"},
		} {
			out := runProgram(t, keytool, "-J-Duser.language=en", "-J-Duser.timezone=UTC", "-list", "-v", "-keystore", filepath.Join(dir, path), "-storepass", "changeit")
			for _, text := range want {
				if !strings.Contains(out, text) {
					t.Errorf("%s of %s: keytool does not say %q:\n%s", path, kind, text, out)
				}
			}
			if !strings.Contains(path, "key") {
				continue
			}
			// It opens the key itself to make a request of it.
			alias := map[string]string{"key.p12": "1", "key.jks": "server"}[path]
			out = runProgram(t, keytool, "-certreq", "-alias", alias, "-keystore", filepath.Join(dir, path), "-storepass", "changeit")
			b, _ := pem.Decode([]byte(out[max(strings.Index(out, "-----BEGIN"), 0):]))
			if b == nil || must(x509.ParseCertificateRequest(b.Bytes)).CheckSignature() != nil {
				t.Errorf("%s of %s: keytool cannot use the key:\n%s", path, kind, out)
			}
		}
	}
}

func TestOpenSSLReadsTheStores(t *testing.T) {
	openssl := program(t, "openssl")
	dir := t.TempDir()
	for path, contents := range madeStores(t, forStores(keysOfAllKinds()["RSA"])) {
		must(0, os.WriteFile(filepath.Join(dir, path), contents, 0o600))
	}
	for _, path := range []string{"key.p12", "full.p12", "old.p12", "trust.p12"} {
		out := runProgram(t, openssl, "pkcs12", "-in", filepath.Join(dir, path), "-passin", "pass:changeit", "-nodes")
		if !strings.Contains(out, "CN = "+strings.Fields(wantStores[path])[0]) || strings.Contains(out, "PRIVATE KEY") == strings.HasPrefix(path, "trust") {
			t.Errorf("%s: openssl says\n%s", path, out)
		}
	}
	// What it writes is read, from PEM with its own headers between the blocks too.
	runProgram(t, openssl, "pkcs12", "-in", filepath.Join(dir, "full.p12"), "-passin", "pass:changeit", "-nodes", "-out", filepath.Join(dir, "all.pem"))
	text := derived(t, "- {path: out, from: in, format: pem, parts: [key, chain, ca]}", map[string]string{"in": string(must(os.ReadFile(filepath.Join(dir, "all.pem"))))})
	if got := names(text); got != "key leaf lower upper root" {
		t.Errorf("got %s", got)
	}
}

func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("there is no %s here", name)
		}
		t.Skipf("there is no %s here; Go's own implementations read the stores all the same", name)
	}
	return path
}

func runProgram(t *testing.T, path string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(path), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Whatever the source, reading it ends, and an error quotes nothing of it.
func FuzzMaterial(f *testing.F) {
	h := pki()
	f.Add([]byte(h.leaf.keyPEM()+h.leaf.pem()+h.root.pem()), "")
	f.Add([]byte(`["`+strings.ReplaceAll(h.leaf.pem(), "\n", `\n`)+`"]`), "x")
	f.Add(must(theirs.LegacyRC2.Encode(h.leaf.key, h.leaf.certificate, nil, "")), "")
	f.Add([]byte(encryptedKey), "secret")
	f.Add([]byte(canary+"-----BEGIN CERTIFICATE-----canary\n-----END CERTIFICATE-----"), canary)
	f.Fuzz(func(t *testing.T, source []byte, password string) {
		m := &material{set: newSet(nil), password: password}
		err := m.read(source)
		if err != nil && provider.KindOf(err) != provider.Invalid && provider.KindOf(err) != provider.TooLarge {
			t.Errorf("%v of kind %v", err, provider.KindOf(err))
		}
		wantNoCanary(t, err)
		for _, parts := range append([]string{"key chain"}, parts...) {
			s, err := m.choose(&bundle{format: formatPEM, parts: strings.Fields(parts)})
			wantNoCanary(t, err)
			if err == nil && s.key == nil && len(s.certificates) == 0 {
				t.Error("nothing was chosen, and there is no error")
			}
		}
	})
}

func BenchmarkApply(b *testing.B) {
	brought := forStores(keysOfAllKinds()["ECDSA"])
	brought["json"] = `{"user": "app", "password": "p"}`
	for _, bb := range []struct{ name, entries string }{
		{"a key of JSON", "- {path: x, from: json, extractJSONKey: user}"},
		{"a template", "- path: x\n  template: '{{ with fromJson (file \"json\") }}{{ .user }}:{{ .password }}{{ end }}'"},
		{"a chain in PEM", "- {path: x, from: in, format: pem}"},
		{"a PKCS#12", "- {path: x, from: in, format: pkcs12, password: changeit}"},
		{"a JKS", "- {path: x, from: in, format: jks, password: changeit}"},
		{"five of them", "- {path: a, from: in, format: pem, parts: key}\n- {path: b, from: in, format: pem, parts: chain}\n- {path: c, from: in, format: pem, parts: ca}\n- {path: d, from: json, extractJSONKey: user}\n- {path: e, template: '{{ file \"json\" }}'}"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			given := files(brought)
			parameters := map[string]string{provider.DerivedFilesKey: bb.entries}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Apply(parameters, given, 0o644); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("decoding five", func(b *testing.B) {
		for b.Loop() {
			_ = Problems(map[string]string{provider.DerivedFilesKey: "- {path: a, from: in, format: pem, parts: key}\n- {path: b, from: in, format: pem, parts: chain}\n- {path: c, from: in, format: pem, parts: ca}\n- {path: d, from: json, extractJSONKey: user}\n- {path: e, template: '{{ file \"json\" }}'}"})
		}
	})
}
