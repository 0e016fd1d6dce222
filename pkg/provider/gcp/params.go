package gcp

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// maxObjects bounds the objects of one volume, those that are found included.
const maxObjects = 1024

// The parameters of a class and the fields of its objects, named as Google's own
// provider names them. providerKey and parentField are ours.
const (
	secretsKey  = "secrets"
	authKey     = "auth"
	providerKey = "workloadIdentityProvider"

	nameField   = "resourceName"
	pathField   = "path"
	fileField   = "fileName"
	modeField   = "mode"
	base64Field = "decodeBase64"
	parentField = "parent"
)

const (
	secretsRemedy = `write a list: "- resourceName: projects/PROJECT/secrets/SECRET/versions/latest" with a path`
	parentRemedy  = "write projects/PROJECT, or projects/PROJECT/locations/LOCATION for regional secrets"
)

// The values of authKey: whose identity asks.
const (
	authPod  = "pod-adc"
	authNode = "provider-adc"
)

// class is what a SecretProviderClass says.
type class struct {
	auth     string // empty for authPod, or a key of the volume's where it has one
	audience string // of the token exchange; empty for that of the cluster
	objects  []object
}

// object is an entry of the class: a secret version or a parameter version, and
// the file that it becomes; or what is to be found, where find is not nil.
type object struct {
	provider.Object
	resource
	find *provider.Find
}

// resource is the name of something at Google, as the class gives it.
type resource struct {
	name      string
	location  string // empty where it is global
	parameter bool   // of Parameter Manager
}

// resourceName has project, location, kind and id. A project may have a domain,
// as in example.com:shop.
var (
	resourceName = regexp.MustCompile(`^projects/[A-Za-z0-9][A-Za-z0-9.:-]*/(?:locations/([a-z0-9-]{1,30})/)?(secrets|parameters)/[A-Za-z0-9_-]+/versions/[A-Za-z0-9_-]+$`)
	parentName   = regexp.MustCompile(`^projects/[A-Za-z0-9][A-Za-z0-9.:-]*(?:/locations/([a-z0-9-]{1,30}))?$`)
)

// parseResource reads the name of a version of a secret or parameter.
func parseResource(name string) (resource, bool) {
	m := resourceName.FindStringSubmatch(name)
	if m == nil {
		return resource{}, false
	}
	r := resource{name: name, location: m[1], parameter: m[2] == "parameters"}
	if r.parameter && r.location == "global" {
		r.location = ""
		return r, true
	}
	return r, r.location != "global" && (r.location != "" || !r.parameter)
}

// decode reads the class's parameters and reports to p what is wrong with them.
func decode(p *provider.Params) *class {
	c := &class{auth: p.Optional(authKey)}
	if c.auth != "" && c.auth != authPod && c.auth != authNode {
		p.Report(provider.Problem{Key: authKey, What: fmt.Sprintf("%.40q is neither %s nor %s", c.auth, authPod, authNode), Remedy: "correct it, or remove it"})
	}
	if text := p.Optional(providerKey); text != "" {
		var ok bool
		if c.audience, ok = parseAudience(text); !ok {
			p.Report(provider.Problem{Key: providerKey, What: fmt.Sprintf("%.200q names no provider of a workload identity pool", text),
				Remedy: "write projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER, or identitynamespace:POOL:PROVIDER"})
		}
	}
	p.Required(secretsKey, secretsRemedy)
	items := p.List(secretsKey, nameField)
	for _, it := range items {
		c.objects = append(c.objects, decodeObject(it))
	}
	var paths []string
	for _, o := range c.objects {
		if o.find == nil && provider.CheckPath(o.Path) == nil {
			paths = append(paths, o.Path)
		}
	}
	problem := ""
	if err := provider.CheckPaths(paths); err != nil {
		problem = err.Error()
	} else if len(items) > maxObjects {
		problem = fmt.Sprintf("it lists %d objects, more than %d", len(items), maxObjects)
	} else if len(items) == 0 && p.Err() == nil {
		problem = "it lists nothing"
	}
	if problem != "" {
		p.Report(provider.Problem{Key: secretsKey, What: problem, Remedy: "correct the list"})
	}
	return c
}

func decodeObject(it *provider.Item) object {
	var o object
	if o.find = it.Find(); o.find != nil {
		o.Name, o.name = o.find.String(), it.Required(parentField, parentRemedy)
		m := parentName.FindStringSubmatch(o.name)
		if m != nil {
			o.location = m[1]
		} else if o.name != "" {
			it.Report(parentField, fmt.Sprintf("%.200q is not the name of a project or location", o.name), parentRemedy)
		}
		if it.Has(nameField) {
			it.Report(nameField, "it excludes "+provider.FindField, "remove one of them")
		}
	} else {
		name := it.Required(nameField, "name a version, as in projects/PROJECT/secrets/SECRET/versions/latest")
		it.SetName(name)
		var ok bool
		if o.resource, ok = parseResource(name); name != "" && !ok {
			it.Report(nameField, "it is not the name of a secret version or parameter version",
				"write projects/*/secrets/*/versions/*, projects/*/locations/*/secrets/*/versions/* or projects/*/locations/*/parameters/*/versions/*")
		}
		o.Name = fmt.Sprintf("resource %q", name)
	}
	o.Path = decodePath(it, o.find != nil)
	o.Mode, o.Options = it.YAMLMode(modeField), it.Options()
	if it.Bool(base64Field) {
		o.Encoding = provider.EncodingBase64
	}
	return o
}

// decodePath returns the path of the object's file; or of the folder of those
// that are found, which may be that of the volume itself. As
// secrets-store-csi-driver has it, it need not be in its shortest form.
func decodePath(it *provider.Item, folder bool) string {
	file, field := it.Optional(fileField), fileField
	if other := it.Optional(pathField); other != "" {
		file, field = other, pathField
	}
	if file == "" {
		if !folder {
			it.Report(pathField, "it is missing", "name the file in the volume")
		}
		return ""
	}
	if !slices.Contains(strings.Split(file, "/"), "..") {
		file = path.Clean(file)
	}
	it.Path(field, file)
	return file
}

var (
	// federated is the audience of a provider of a workload identity pool.
	federated = regexp.MustCompile(`^//iam\.[a-z0-9.-]+/projects/[0-9]+/locations/global/workloadIdentityPools/([a-z0-9.-]+)/providers/([a-z0-9-]+)$`)
	// ofCluster is that of a cluster of GKE or of a fleet.
	ofCluster = regexp.MustCompile(`^identitynamespace:([a-z0-9.:-]+\.svc\.id\.goog):(https://[A-Za-z0-9./_:-]+)$`)
)

// parseAudience reads the audience of a token exchange, with or without its host
// name.
func parseAudience(text string) (audience string, ok bool) {
	if strings.HasPrefix(text, "projects/") {
		text = "//iam." + googleAPIs + "/" + text
	}
	return text, federated.MatchString(text) || ofCluster.MatchString(text)
}

// tokenAudiences returns the audiences of a pod's token that the exchange takes,
// the best first.
func tokenAudiences(audience string) []string {
	if m := ofCluster.FindStringSubmatch(audience); m != nil {
		return []string{m[1]}
	}
	// A provider that lists no audiences takes its own name, with https: before it
	// or without.
	return []string{audience, "https:" + audience}
}
