package akeyless

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
)

const (
	// vendor is the host of the vendor's own servers.
	vendor = "akeyless.io"
	// defaultAudience is that of the pod's token, where the class names none.
	defaultAudience = "akeyless"
	// maxObjects bounds the objects of one class.
	maxObjects = 256
)

// The parameters that may be in the volume's Secret, in place of the class.
const (
	accessKeyKey = "akeylessAccessKey"
	uidTokenKey  = "akeylessUIDInitToken"
)

// The ways to log in, as /auth names them.
const (
	byAccessKey = "access_key"
	byK8s       = "k8s"
	byJWT       = "jwt"
	byUniversal = "universal_identity"
)

// params is what a class asks for.
type params struct {
	access    access            // without what proves the identity
	given     map[string]string // of accessKeyKey and uidTokenKey, what the class has
	audiences []string
	objects   []object
	items     []*item // of the objects, each once
}

// object is one entry of the class.
type object struct {
	provider.Object
	of *item
}

// decode reads the class's parameters and reports to p what is wrong with them.
func decode(p *provider.Params) *params {
	kind := p.Optional("akeylessAccessType")
	if kind == "" {
		kind = byAccessKey
	}
	d := &params{
		access: access{CACert: p.Optional("akeylessCACert"), Login: map[string]string{typeField: kind}},
		given:  map[string]string{accessKeyKey: p.Optional(accessKeyKey), uidTokenKey: p.Optional(uidTokenKey)},
	}
	for _, known := range []string{"akeylessAccessID", "akeylessK8sAuthConfigName", "akeylessAzureObjectID", "akeylessGCPAudience", "vaultKubernetesMountPath"} {
		p.Optional(known) // though it may be of no use
	}
	if kind != byUniversal {
		d.access.Login[idField] = p.Required("akeylessAccessID", "name the auth method's access id, as in p-123456")
	}
	switch kind {
	case byAccessKey, byJWT, byUniversal:
	case byK8s:
		d.access.Login[configField] = p.Required("akeylessK8sAuthConfigName", "name the gateway's auth config for this cluster")
	case "aws_iam", "azure_ad", "gcp":
		p.Report(provider.Problem{Key: "akeylessAccessType", What: kind + " proves who the node is, and not the pod; a pod gets nothing for which it did not prove its right",
			Remedy: "use k8s, or jwt with an auth method that trusts the cluster's issuer"})
	default:
		p.Report(provider.Problem{Key: "akeylessAccessType", What: fmt.Sprintf("%.40q is none of access_key, k8s, jwt and universal_identity", kind), Remedy: "correct it"})
	}
	if d.access.CACert != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(d.access.CACert)) {
		p.Report(provider.Problem{Key: "akeylessCACert", What: "there is no PEM certificate in it", Remedy: "put the certificate of the gateway's CA there"})
	}
	host := d.decodeGateway(p)
	switch audience := p.Optional("audience"); {
	case audience != "":
		d.audiences = []string{audience}
	case kind == byK8s && host != vendor && !strings.HasSuffix(host, "."+vendor):
		// A gateway of one's own reviews the token at the API server. The vendor's
		// servers never get one with which somebody could go there.
		d.audiences = append([]string{defaultAudience}, login.APIServerAudiences...)
	default:
		d.audiences = []string{defaultAudience}
	}
	d.decodeObjects(p)
	return d
}

// decodeGateway reads the gateway's URL and returns its host.
func (d *params) decodeGateway(p *provider.Params) (host string) {
	const key = "akeylessGatewayURL"
	d.access.Gateway = strings.TrimRight(p.Optional(key), "/")
	if d.access.Gateway == "" {
		d.access.Gateway = "https://api." + vendor
	}
	u, err := url.Parse(d.access.Gateway)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
		p.Report(provider.Problem{Key: key, What: "it is not the URL of a gateway", Remedy: "write it as in https://gateway.example.com:8081 or https://gateway.example.com:8080/v2"})
		return ""
	case u.Scheme == "http":
		p.Report(provider.Problem{Key: key, What: "http is not encrypted: whoever is on the way reads the pod's token and every secret",
			Remedy: "enable TLS at the gateway and write https://; akeylessCACert takes the certificate of a CA of your own", Unknown: true}) // Akeyless' provider takes it
	}
	return strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
}

func (d *params) decodeObjects(p *provider.Params) {
	const key = "objects"
	p.Required(key, `write a list: "- secretPath: /PATH" with fileName`)
	entries := p.Objects(key)
	if len(entries) > maxObjects {
		p.Report(provider.Problem{Key: key, What: fmt.Sprintf("it lists %d objects, more than %d", len(entries), maxObjects), Remedy: "split them over several classes"})
		return
	}
	for _, it := range entries {
		item := d.item(it.Required("secretPath", "name an item of Akeyless, as in /folder/item"))
		it.SetName(item.path)
		if kind, ok := hints[it.Optional("secretType")]; ok && item.kind == "" {
			item.kind = kind
		}
		it.Value("secretArgs") // known, and of no use, as there
		o := object{provider.Object{
			Name: fmt.Sprintf("object %q", item.path), Path: it.Optional("fileName"), Mode: it.Mode("filePermission", provider.UnsetMode), Options: it.Options(),
		}, item}
		if o.Path == "" && item.path != "" {
			o.Path = path.Base(item.path)
		}
		it.Path("fileName", o.Path)
		if n := slices.IndexFunc(d.objects, func(other object) bool { return other.Path == o.Path }); n >= 0 && o.Path != "" {
			it.Report("fileName", fmt.Sprintf("entry %d has the file path %q too", n+1, o.Path), "give one of them another fileName")
		}
		d.objects = append(d.objects, o)
	}
}

// item returns that of a path, which several objects may have.
func (d *params) item(path string) *item {
	for _, i := range d.items {
		if i.path == path {
			return i
		}
	}
	i := &item{path: path, name: path}
	d.items = append(d.items, i)
	return i
}
