package derive

import (
	"crypto/x509"
	"encoding/asn1"
	"testing"
	"testing/synctest"
	"time"

	theirs "software.sslmate.com/src/go-pkcs12"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestAPKCS12ThatAsksTooMuchIsNotOpened(t *testing.T) {
	sequence := func(parts ...any) asn1.RawValue {
		var der []byte
		for _, part := range parts {
			der = append(der, must(asn1.Marshal(part))...)
		}
		return asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: der}
	}
	wrapped := func(v asn1.RawValue) []byte { return must(asn1.Marshal(v)) }
	salt, often := []byte("saltsalt"), 1<<62
	for name, der := range map[string][]byte{
		"in its MAC":                     wrapped(sequence(3, sequence(asn1.ObjectIdentifier{1, 2}), sequence(sequence(1), salt, often))),
		"just above the bound":           wrapped(sequence(3, sequence(), sequence(sequence(1), salt, maxIterations+1))),
		"in its encryption":              wrapped(sequence(3, sequence(wrapped(sequence(sequence(asn1.ObjectIdentifier{1, 2}, sequence(salt, often))))))),
		"in what is encrypted in PBES2":  wrapped(sequence(3, sequence(wrapped(sequence(sequence(sequence(salt, often, 32), 7)))))),
		"as a number that has no bounds": wrapped(sequence(3, sequence(salt, asn1.RawValue{Tag: asn1.TagInteger, Bytes: make([]byte, 0)}, salt, asn1.RawValue{Tag: asn1.TagInteger, Bytes: append([]byte{1}, make([]byte, 40)...)}))),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := apply("- {path: out, from: in, format: pem}", map[string]string{"in": string(der)})
			wantError(t, err, provider.Invalid, `derived file "out": file "in": it is a PKCS#12 file that has its password hashed more than 5000000 times; write it again with fewer iterations`)
		})
	}
	h := pki()
	for _, encoder := range []*theirs.Encoder{theirs.LegacyRC2, theirs.LegacyDES, theirs.Modern2023, theirs.Modern2026, theirs.Passwordless} {
		if asksTooMuch(must(encoder.Encode(h.leaf.key, h.leaf.certificate, []*x509.Certificate{h.lower.certificate}, "")), 0) {
			t.Error("a file as they are asks too much")
		}
	}
	if asksTooMuch(h.leaf.certificate.Raw, 0) || asksTooMuch(h.leaf.pkcs8(), 0) {
		t.Error("a certificate or a key asks too much")
	}
}

// One that says only within its encryption how often it has a password hashed is
// waited for no longer than others can bear.
func TestOnePKCS12ThatTakesForEverHoldsUpOthersForABoundedTime(t *testing.T) {
	h := pki()
	der := must(theirs.Modern.Encode(h.leaf.key, h.leaf.certificate, nil, ""))
	synctest.Test(t, func(t *testing.T) {
		before := opener
		defer func() { opener = before }()
		opener = make(chan struct{}, 1)
		opener <- struct{}{}
		began := time.Now()
		o := openPKCS12(der, "")
		if provider.KindOf(o.err) != provider.Unavailable || time.Since(began) != opening {
			t.Errorf("after %v: %v", time.Since(began), o.err)
		}
		<-opener
		if o := openPKCS12(der, ""); o.err != nil || o.key == nil {
			t.Errorf("when it has ended: %v", o.err)
		}
	})
}
