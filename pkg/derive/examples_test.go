package derive_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/derive"
	"github.com/csi-secrets/csi-secrets/pkg/fetch"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/kubernetes"
	"github.com/csi-secrets/csi-secrets/pkg/provider/local"
)

var registry = provider.NewRegistry(map[string]provider.Provider{"local": local.New(), "kubernetes": kubernetes.New("", nil)}, nil)

// bundle returns a private key, its certificate and the root that signed it.
func bundle(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	write := func(kind string, der []byte) {
		text.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	var parent *x509.Certificate
	var parentKey *ecdsa.PrivateKey
	for serial, name := range []string{"root", "leaf"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(serial + 1)), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: serial == 0, BasicConstraintsValid: true}
		if parent == nil {
			parent, parentKey = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		write("CERTIFICATE", der)
		if parent, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		parentKey = key
	}
	der, err := x509.MarshalPKCS8PrivateKey(parentKey)
	if err != nil {
		t.Fatal(err)
	}
	write("PRIVATE KEY", der)
	return text.String()
}

// mount returns what a pod of an example's class finds, as `PATH MODE CONTENTS`,
// the contents of PEM files and stores left out.
func mount(t *testing.T, path, folder string, brought map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, contents := range brought {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(contents), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	documents, problems := class.Decode(path, []byte(strings.ReplaceAll(string(text), folder, dir)))
	if len(documents) != 1 || len(problems) > 0 {
		t.Fatalf("%d classes, %v", len(documents), problems)
	}
	if problems := class.Check(documents[0], registry.Get); len(problems) > 0 {
		t.Error(problems)
	}
	r, err := fetch.New(registry, 0).Fetch(context.Background(), "local", provider.Request{Parameters: documents[0].Class.Spec.Parameters, Mode: 0o644})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range r.Files {
		contents := strings.TrimSpace(string(f.Contents.Reveal()))
		switch {
		case strings.HasPrefix(contents, "-----BEGIN"):
			contents = strings.TrimSpace(strings.Repeat("certificate ", strings.Count(contents, "BEGIN CERTIFICATE")) + strings.Repeat("key", strings.Count(contents, "BEGIN PRIVATE KEY")))
		case f.Contents.Len() > 300:
			contents = "a store"
		}
		fmt.Fprintf(&b, "%s %04o %s\n", f.Path, f.Mode, contents)
	}
	return b.String()
}

func TestTheExamplesMakeWhatTheySay(t *testing.T) {
	brought := map[string]string{"username": "shop", "password": "p&ss=w0rd\n", "database.json": `{"host": "db.example", "port": 5432}`}
	want := `username 0644 shop
password 0644 p&ss=w0rd
application.properties 0400 spring.datasource.url=jdbc:postgresql://db.example:5432/shop
spring.datasource.username=shop
spring.datasource.password=p&ss=w0rd
database-url 0644 postgresql://shop:p%26ss%3Dw0rd%0A@db.example:5432/shop
host 0644 db.example
`
	if got := mount(t, "../../examples/derived/application.yaml", "/srv/shop", brought); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	brought["smtp-password"] = "mail"
	if got := mount(t, "../../examples/derived/application.yaml", "/srv/shop", brought); !strings.Contains(got, "w0rd\nspring.mail.password=mail\n") {
		t.Errorf("got\n%s", got)
	}
	want = `keystore-password 0644 secret
tls.key 0400 key
tls.crt 0644 certificate
ca.crt 0644 certificate
keystore.p12 0644 a store
truststore.jks 0644 a store
`
	if got := mount(t, "../../examples/derived/tls.yaml", "/srv/tls", map[string]string{"bundle.pem": bundle(t), "keystore-password": "secret\n"}); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// Every class and every list of derived files in the manual is without a mistake,
// and its tables have every field, part and function.
func TestTheManualHolds(t *testing.T) {
	text, err := os.ReadFile("../../docs/objects.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		blocks++
		var fragment map[string]string
		if strings.HasPrefix(block, provider.DerivedFilesKey) {
			if err := yaml.Unmarshal([]byte(block), &fragment); err != nil || len(derive.Problems(fragment)) > 0 {
				t.Errorf("%v, %v in\n%s", err, derive.Problems(fragment), block)
			}
			continue
		}
		documents, problems := class.Decode("objects.md", []byte(block))
		for _, d := range documents {
			problems = append(problems, class.Check(d, registry.Get)...)
		}
		for _, p := range problems {
			if !p.Notice {
				t.Errorf("%v in\n%s", p, block)
			}
		}
		if len(documents) != 1 {
			t.Errorf("%d classes in\n%s", len(documents), block)
		}
	}
	if blocks != 6 {
		t.Errorf("%d blocks of YAML", blocks)
	}
	for _, name := range derive.Vocabulary() {
		if !strings.Contains(string(text), "`"+name+"`") && !strings.Contains(string(text), "`"+name+" ") && !strings.Contains(string(text), "`"+name+":") {
			t.Errorf("%s stands nowhere", name)
		}
	}
}
