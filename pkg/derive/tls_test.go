package derive

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestTheCertificateOfTheKeyComesFirst(t *testing.T) {
	h := pki()
	for name, certificates := range map[string]string{
		"in order": h.leaf.pem() + h.lower.pem() + h.upper.pem(), "in another": h.lower.pem() + h.upper.pem() + h.leaf.pem(),
	} {
		chain, key, err := TLS([]byte(certificates), []byte(h.leaf.keyPEM()))
		if err != nil || string(chain) != h.leaf.pem()+h.lower.pem()+h.upper.pem() {
			t.Errorf("%s: got %v\n%s", name, err, chain)
		}
		if _, err := tls.X509KeyPair(chain, key); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheAuthoritiesOfAFile(t *testing.T) {
	h := pki()
	own := authority{}.sign(newKey(), "own", nil)
	for name, test := range map[string]struct{ contents, want string }{
		"a chain":                       {h.leaf.pem() + h.leaf.keyPEM() + h.lower.pem() + h.root.pem(), h.lower.pem() + h.root.pem()},
		"a certificate by itself":       {own.pem() + own.keyPEM(), own.pem()},
		"authorities of several chains": {h.root.pem() + h.other.pem(), h.root.pem() + h.other.pem()},
		"none":                          {h.leaf.pem(), ""},
	} {
		got, err := Authorities([]byte(test.contents))
		if string(got) != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%s: got %v\n%s", name, err, got)
		}
		if err != nil && provider.KindOf(err) != provider.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzTLS(f *testing.F) {
	h := pki()
	f.Add([]byte(h.leaf.pem()+h.lower.pem()), []byte(h.leaf.keyPEM()))
	f.Add([]byte(h.leaf.keyPEM()+h.root.pem()+h.leaf.pem()), []byte(h.leaf.keyPEM()+h.root.pem()+h.leaf.pem()))
	f.Add([]byte(`{"a": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"}`), []byte("c4n4ry"))
	f.Fuzz(func(t *testing.T, certificates, key []byte) {
		before := append(bytes.Clone(certificates), key...)
		chain, private, err := TLS(certificates, key)
		if !bytes.Equal(before, append(bytes.Clone(certificates), key...)) {
			t.Error("it changed what it was given")
		}
		if err != nil {
			if provider.KindOf(err) == provider.Internal || chain != nil || private != nil || len(key) > 5 && strings.Contains(err.Error(), string(key)) {
				t.Errorf("%v", err)
			}
			return
		}
		if block, _ := pem.Decode(private); block == nil {
			t.Errorf("the key is %q", private)
		}
		if _, err := Authorities(chain); err != nil && provider.KindOf(err) != provider.NotFound {
			t.Errorf("of what was cut out: %v", err)
		}
	})
}
