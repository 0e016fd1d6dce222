package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"text/template"
	"time"
)

// authority signs every certificate of a cluster: the API server's, and those
// that its users have as names (CN) and groups (O).
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func (c *Cluster) caFile() string { return filepath.Join(c.control.dir, "pki/ca.crt") }

// serviceAccountKeyFile has the key that signs ServiceAccount tokens.
func (c *Cluster) serviceAccountKeyFile() string {
	return filepath.Join(c.control.dir, "pki/service-account.key")
}

// makeCredentials makes all keys and certificates but the kubelets', and the
// administrator's kubeconfig.
func (c *Cluster) makeCredentials() error {
	pki := filepath.Dir(c.caFile())
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := certificateTemplate("csi-secrets-cluster", "")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage |= x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	c.authority = &authority{certificate, key}
	if err := os.WriteFile(c.caFile(), encode("CERTIFICATE", der), 0o644); err != nil {
		return err
	}
	if err := c.writeServerCertificate(pki); err != nil {
		return err
	}
	signer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.serviceAccountKeyFile(), encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(signer)), 0o600); err != nil {
		return err
	}
	for path, user := range map[string][2]string{
		c.Kubeconfig(): {"admin", "system:masters"},
		c.controlKubeconfig("controller-manager"): {"system:kube-controller-manager", ""},
		c.controlKubeconfig("scheduler"):          {"system:kube-scheduler", ""},
	} {
		if err := c.writeKubeconfig(path, user[0], user[1]); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) controlKubeconfig(program string) string {
	return filepath.Join(c.control.dir, "pki", program+".conf")
}

func (c *Cluster) writeServerCertificate(pki string) error {
	template := certificateTemplate("kube-apiserver", "")
	template.DNSNames = []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	for _, ip := range []string{c.network.api(), c.network.apiService(), "127.0.0.1"} {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	certificate, key, err := c.authority.issue(template)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(pki, "server.crt"), certificate, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(pki, "server.key"), key, 0o600)
}

// issue makes a key and a certificate for it, both as PEM.
func (a *authority) issue(template *x509.Certificate) (certificate, key []byte, err error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, signer.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, nil, err
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", private), nil
}

func certificateTemplate(user, group string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: user},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if group != "" {
		t.Subject.Organization = []string{group}
	}
	return t
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

var kubeconfig = template.Must(template.New("kubeconfig").Parse(`apiVersion: v1
kind: Config
current-context: {{.Name}}
clusters:
- name: {{.Name}}
  cluster:
    server: {{.Server}}
    certificate-authority-data: {{.CA}}
contexts:
- name: {{.Name}}
  context: {cluster: {{.Name}}, user: {{.Name}}}
users:
- name: {{.Name}}
  user:
    client-certificate-data: {{.Certificate}}
    client-key-data: {{.Key}}
`))

// writeKubeconfig writes a kubeconfig file for a user of this group, or of none.
func (c *Cluster) writeKubeconfig(path, user, group string) error {
	certificate, key, err := c.authority.issue(certificateTemplate(user, group))
	if err != nil {
		return fmt.Errorf("make a certificate for %s: %w", user, err)
	}
	if err := writeTemplate(path, kubeconfig, map[string]string{
		"Name": c.options.Name, "Server": c.APIServer(),
		"CA":          base64.StdEncoding.EncodeToString(encode("CERTIFICATE", c.authority.certificate.Raw)),
		"Certificate": base64.StdEncoding.EncodeToString(certificate),
		"Key":         base64.StdEncoding.EncodeToString(key),
	}); err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}
