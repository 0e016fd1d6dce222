package azure

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// maxObjects bounds the files of one volume.
const maxObjects = 1024

// The parameters of a class, named as Microsoft's own provider names them.
const (
	vaultKey       = "keyvaultName"
	tenantKey      = "tenantID"
	oldTenantKey   = "tenantId"
	objectsKey     = "objects"
	cloudKey       = "cloudName"
	cloudFileKey   = "cloudEnvFileName"
	clientKey      = "clientID"
	annotatedKey   = "usePodServiceAccountAnnotation"
	managedKey     = "useVMManagedIdentity"
	assignedKey    = "userAssignedIdentityID"
	proxyKey       = "useAzureTokenProxy"
	podIdentityKey = "usePodIdentity"
)

// The fields of an object.
const (
	nameField     = "objectName"
	kindField     = "objectType"
	aliasField    = "objectAlias"
	versionField  = "objectVersion"
	historyField  = "objectVersionHistory"
	notAfterField = "objectNotAfter"
	formatField   = "objectFormat"
	encodingField = "objectEncoding"
	modeField     = "filePermission"
)

// The kinds of objects, as a class and ids call them.
const (
	secretKind = "secret"
	keyKind    = "key"
	certKind   = "cert"
)

// pfx is the format of a certificate's secret that is left as it is.
const pfx = "pfx"

// The ways to log in.
type way int

const (
	byPod     way = iota // workload identity: the pod's token
	byProxy              // the pod's token, through the token proxy of AKS
	byNode               // the managed identity of the node
	bySecret             // a service principal, by nodePublishSecretRef
	byAccount            // byPod, for the client that the service account's annotation names
)

// class is what a SecretProviderClass says.
type class struct {
	vault, tenant string
	cloud         environment
	cloudFile     string // where the cloud is to be read from
	way           way
	client        string // the application or managed identity; empty for that of the node itself
	objects       []object
}

// object is one entry of a class. Path is its file's, or its folder's.
type object struct {
	provider.Object
	vault, kind, name string
	id                string    // that of its version
	version           string    // empty for the newest
	history           int       // how many versions, from 2 on
	notAfter          time.Time // the newest of then; zero for that of now
	format            string
	find              *provider.Find
}

// historical reports whether the object is a folder of versions.
func (o object) historical() bool { return o.history > 1 }

// environment is where the services of one Azure are.
type environment struct {
	authority string // of Entra ID, with a slash at its end
	resource  string // of vaults, for tokens
	suffix    string // of vaults' host names
}

const (
	publicCloud = "AZUREPUBLICCLOUD"
	stackCloud  = "AZURESTACKCLOUD"
)

// clouds are those that Microsoft's provider knows, by their names in capitals.
var clouds = map[string]environment{
	publicCloud:              public,
	"AZURECLOUD":             public,
	"AZUREUSGOVERNMENT":      government,
	"AZUREUSGOVERNMENTCLOUD": government,
	"AZURECHINACLOUD":        {"https://login.chinacloudapi.cn/", "https://vault.azure.cn", "vault.azure.cn"},
	"AZUREGERMANCLOUD":       {"https://login.microsoftonline.de/", "https://vault.microsoftazure.de", "vault.microsoftazure.de"},
	stackCloud:               {},
}

var (
	public     = environment{"https://login.microsoftonline.com/", "https://vault.azure.net", "vault.azure.net"}
	government = environment{"https://login.microsoftonline.us/", "https://vault.usgovcloudapi.net", "vault.usgovcloudapi.net"}
)

// The rules for names, which become parts of host names and URLs.
var (
	vaultRule   = regexp.MustCompile(`^[-A-Za-z0-9]{3,24}$`)
	tenantRule  = regexp.MustCompile(`^[-.A-Za-z0-9]+$`)
	objectRule  = regexp.MustCompile(`^[-A-Za-z0-9]{1,127}$`)
	versionRule = regexp.MustCompile(`^[A-Za-z0-9]*$`)
	suffixRule  = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9]*(\.[A-Za-z0-9][-A-Za-z0-9]*)+$`)
)

const (
	noVault     = "it is no name of a key vault"
	vaultRemedy = "write its name alone, 3 to 24 letters, digits and hyphens"
)

// decode reads the class's parameters and reports to p what is wrong with them.
func decode(p *provider.Params) *class {
	c := &class{vault: p.Required(vaultKey, "name the key vault")}
	if c.vault != "" && !vaultRule.MatchString(c.vault) {
		p.Report(provider.Problem{Key: vaultKey, What: noVault, Remedy: vaultRemedy})
	}
	c.tenant = p.Optional(oldTenantKey)
	if tenant := p.Optional(tenantKey); tenant != "" {
		c.tenant = tenant
	}
	switch {
	case c.tenant == "":
		p.Report(provider.Problem{Key: tenantKey, What: "it is missing", Remedy: "write the tenant of the key vault"})
	case !tenantRule.MatchString(c.tenant):
		p.Report(provider.Problem{Key: tenantKey, What: fmt.Sprintf("%.80q is no tenant", c.tenant), Remedy: "write its id or its domain"})
	}
	decodeCloud(p, c)
	decodeWay(p, c)
	p.Required(objectsKey, `write a list: "- objectName: ..."`)
	for _, it := range p.Objects(objectsKey) {
		c.objects = append(c.objects, decodeObject(p, it, c.vault))
	}
	checkFiles(p, c.objects)
	return c
}

func decodeCloud(p *provider.Params, c *class) {
	name := p.Optional(cloudKey)
	c.cloudFile = p.Optional(cloudFileKey)
	if name == "" {
		name = publicCloud
	}
	known := false
	c.cloud, known = clouds[strings.ToUpper(name)]
	switch stack := strings.EqualFold(name, stackCloud); {
	case !known:
		p.Report(provider.Problem{Key: cloudKey, What: fmt.Sprintf("there is no cloud %.80q", name), Remedy: "write AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud, AzureGermanCloud or AzureStackCloud"})
	case !stack:
		c.cloudFile = ""
	case c.cloudFile == "":
		p.Report(provider.Problem{Key: cloudFileKey, What: "it is missing", Remedy: "AzureStackCloud needs a file of endpoints in the driver's container"})
	}
}

func decodeWay(p *provider.Params, c *class) {
	c.client = p.Optional(clientKey)
	assigned := p.Optional(assignedKey)
	chosen := ""
	choose := func(key string, w way) {
		if !p.Bool(key) {
			return
		}
		if chosen != "" {
			p.Report(provider.Problem{Key: key, What: "it excludes " + chosen, Remedy: "remove one of them"})
		}
		chosen, c.way = key, w
	}
	if c.client == "" {
		c.way = bySecret
	}
	choose(podIdentityKey, byPod)
	choose(managedKey, byNode)
	choose(proxyKey, byProxy)
	switch annotated := p.Bool(annotatedKey); {
	case chosen == podIdentityKey:
		p.Report(provider.Problem{Key: podIdentityKey, What: "pod identity (NMI) was retired by Microsoft, and is not supported", Remedy: "change to workload identity: give the managed identity a federated credential for the service account, and the class its " + clientKey})
	case c.way == byNode:
		c.client = assigned
	case c.way == byProxy && c.client == "":
		p.Report(provider.Problem{Key: clientKey, What: "it is missing", Remedy: "write the client id of the managed identity, which " + proxyKey + " needs"})
	case annotated && chosen == "":
		c.way = byAccount
	}
}

func decodeObject(p *provider.Params, it *provider.Item, vault string) object {
	o := object{find: it.Find(), vault: vault}
	if o.find == nil {
		o.name = it.Required(nameField, "name an object of the key vault")
		it.SetName(o.name)
		if o.name != "" && !objectRule.MatchString(o.name) {
			it.Report(nameField, "it is no name that a key vault takes", "write up to 127 letters, digits and hyphens")
		}
	} else if it.Has(nameField) {
		it.Report(nameField, "it excludes "+provider.FindField, "remove one of them")
	}
	o.kind = it.Required(kindField, "write secret, key or cert")
	if o.kind != "" && o.kind != secretKind && o.kind != keyKind && o.kind != certKind {
		it.Report(kindField, fmt.Sprintf("%.40q is none of secret, key and cert", o.kind), "correct it")
	}
	o.id = o.kind + "/" + o.name
	if other := it.Optional(vaultKey); other != "" && !strings.EqualFold(other, vault) {
		if o.vault = other; !vaultRule.MatchString(other) {
			it.Report(vaultKey, noVault, vaultRemedy)
		}
		o.id = other + "/" + o.id
	}
	decodeVersion(it, &o)
	if o.find != nil {
		o.Object.Name = o.find.String()
		o.Path = it.Optional(aliasField)
	} else {
		o.Object.Name = fmt.Sprintf("%s %q", noun(o.kind), o.name)
		o.setPath(it)
	}
	o.Mode, o.Options = it.Mode(modeField, provider.UnsetMode), it.Options()
	decodeForm(it, &o)
	return o
}

// noun is what errors call an object of a kind.
func noun(kind string) string {
	if kind == certKind {
		return "certificate"
	}
	return kind
}

func decodeVersion(it *provider.Item, o *object) {
	if o.version = it.Optional(versionField); o.version == "latest" {
		o.version = ""
	}
	if !versionRule.MatchString(o.version) {
		it.Report(versionField, "it is no version", "write the version's id, or remove it for the newest")
	}
	if o.find != nil && o.version != "" {
		it.Report(versionField, "it excludes "+provider.FindField, "remove it, for the newest of each")
	}
	if text := it.Optional(notAfterField); text != "" {
		if o.notAfter = parseTime(text); o.notAfter.IsZero() {
			it.Report(notAfterField, fmt.Sprintf("%.40q is not a time", text), "write it as in 2026-06-05T19:41:00Z")
		}
		if o.version != "" {
			it.Report(notAfterField, "it excludes "+versionField, "remove one of them")
		}
	}
	if text := it.Optional(historyField); text != "" {
		var err error
		if o.history, err = strconv.Atoi(text); err != nil || o.history < 0 || o.history > maxObjects {
			it.Report(historyField, fmt.Sprintf("%.20q is not a number from 0 to %d", text, maxObjects), "correct it")
		}
	}
}

// parseTime reads a time as ISO 8601 has it, seconds and time of day as you like;
// zero where it is none.
func parseTime(text string) time.Time {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z07:00", time.DateOnly} {
		if read, err := time.Parse(layout, text); err == nil {
			return read
		}
	}
	return time.Time{}
}

// setPath names the file. As Microsoft's provider has it, that need not be in its
// shortest form.
func (o *object) setPath(it *provider.Item) {
	field := aliasField
	if o.Path = it.Optional(aliasField); o.Path == "" {
		o.Path, field = o.name, nameField
	}
	if o.Path != "" && !strings.Contains(o.Path, "..") {
		o.Path = path.Clean(o.Path)
	}
	it.Path(field, o.Path)
}

// decodeForm reads how a file is made of an object.
func decodeForm(it *provider.Item, o *object) {
	switch format := it.Optional(formatField); {
	case format == pfx && o.kind != secretKind:
		it.Report(formatField, "only a secret can be had as pfx", "write objectType: secret for the certificate with its key")
	case strings.EqualFold(format, pfx):
		o.format = pfx
	case format != "" && !strings.EqualFold(format, "pem"):
		it.Report(formatField, fmt.Sprintf("%.40q is neither pem nor pfx", format), "correct it, or remove it for pem")
	}
	name := it.Optional(encodingField)
	if name == "" {
		return
	}
	encoding, err := provider.ParseEncoding(name)
	switch {
	case err != nil:
		it.Report(encodingField, err.Error(), "correct it, or remove it")
	case o.kind != secretKind:
		it.Report(encodingField, "only a secret can be decoded", "remove it")
	case it.Has(provider.EncodingField):
		it.Report(encodingField, "it excludes "+provider.EncodingField, "remove one of them")
	}
	o.Encoding = encoding
}

// checkFiles reports files that exclude each other.
func checkFiles(p *provider.Params, objects []object) {
	var paths []string
	for _, o := range objects {
		if o.find == nil && provider.CheckPath(o.Path) == nil {
			paths = append(paths, o.Path)
		}
	}
	what := ""
	if err := provider.CheckPaths(paths); err != nil {
		what = err.Error()
	} else if len(objects) > maxObjects {
		what = fmt.Sprintf("it lists %d objects, more than %d", len(objects), maxObjects)
	}
	if what != "" {
		p.Report(provider.Problem{Key: objectsKey, What: what, Remedy: "correct the list"})
	}
}

// maxCloudBytes bounds the file of a cloud's endpoints.
const maxCloudBytes = 1 << 20

// readCloud reads a file of endpoints, in the form of
// https://pkg.go.dev/github.com/Azure/go-autorest/autorest/azure#Environment.
// The error quotes nothing of it.
func readCloud(name string) (environment, error) {
	fail := func(err error) (environment, error) {
		return environment{}, &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("%s %q", cloudFileKey, name), Op: "read it", Err: err, Remedy: "name a JSON file of endpoints that is mounted into the driver's container"}
	}
	// What has no size, such as a pipe or most of /proc, might not end.
	info, err := os.Stat(name)
	if err != nil {
		return fail(errors.Unwrap(err))
	}
	if !info.Mode().IsRegular() || info.Size() == 0 || info.Size() > maxCloudBytes {
		return fail(fmt.Errorf("it is no file of 1 to %d bytes", maxCloudBytes))
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return fail(errors.Unwrap(err))
	}
	read, err := parseCloud(text)
	if err != nil {
		return fail(err)
	}
	return read, nil
}

func parseCloud(text []byte) (environment, error) {
	var file struct {
		ActiveDirectoryEndpoint string `json:"activeDirectoryEndpoint"`
		KeyVaultEndpoint        string `json:"keyVaultEndpoint"`
		KeyVaultDNSSuffix       string `json:"keyVaultDNSSuffix"`
	}
	if json.Unmarshal(text, &file) != nil {
		return environment{}, errors.New("it is not a JSON object of texts")
	}
	read := environment{strings.TrimRight(file.ActiveDirectoryEndpoint, "/") + "/", strings.TrimRight(file.KeyVaultEndpoint, "/"), strings.TrimPrefix(file.KeyVaultDNSSuffix, ".")}
	if httpsURL(read.authority) == nil {
		return environment{}, errors.New("its activeDirectoryEndpoint is not a URL that begins with https://")
	}
	if httpsURL(read.resource) == nil {
		return environment{}, errors.New("its keyVaultEndpoint is not a URL that begins with https://")
	}
	if !suffixRule.MatchString(read.suffix) {
		return environment{}, errors.New("its keyVaultDNSSuffix is no domain")
	}
	return read, nil
}

// httpsURL parses a URL of a host and maybe a path; nil where it is none.
func httpsURL(text string) *url.URL {
	parsed, err := url.Parse(text)
	if err != nil || parsed.Scheme != "https" || parsed.Host == "" || parsed.User != nil || parsed.RawQuery != "" || parsed.Fragment != "" {
		return nil
	}
	return parsed
}
