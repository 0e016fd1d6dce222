package aws

import (
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/jmespath/go-jmespath"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// maxObjects bounds the objects of one volume, those that are found included.
const maxObjects = 1024

// The parameters of a class, named as the provider of AWS names them.
const (
	objectsKey        = "objects"
	regionKey         = "region"
	failoverRegionKey = "failoverRegion"
	translationKey    = "pathTranslation"
	podIdentityKey    = "usePodIdentity"
	addressTypeKey    = "preferredAddressType"
)

// The fields of an object.
const (
	nameField     = "objectName"
	typeField     = "objectType"
	aliasField    = "objectAlias"
	versionField  = "objectVersion"
	labelField    = "objectVersionLabel"
	modeField     = "filePermission"
	jmesField     = "jmesPath"
	failoverField = "failoverObject"
)

// service is one of the two that keep objects.
type service string

const (
	secretsManager service = "secretsmanager"
	parameterStore service = "ssmparameter"
)

// services are those that an ARN may name.
var services = map[string]service{"secretsmanager": secretsManager, "ssm": parameterStore}

// class is what a SecretProviderClass says.
type class struct {
	regions     []string // one or two; the first may be empty where it is not known yet
	translation string   // in place of a slash; empty for none
	podIdentity bool
	addresses   []string // of the Pod Identity agent, in the order in which they are tried
	objects     []object
}

// object is a secret or a parameter, and the files that it becomes.
type object struct {
	provider.Object
	refs []ref // one for each region
	jmes []extract
	find *provider.Find // in place of a name; Path is then the folder
}

// ref is what a service is asked for: an object in one version, or in that which
// has a label, or, with neither, in the current one.
type ref struct {
	service              service
	name, version, label string
}

// extract is a value of a JSON document that becomes a file.
type extract struct {
	expression string
	search     *jmespath.JMESPath
	path       string
	mode       fs.FileMode
}

// regionRule keeps a region from being more than a part of a host's name.
var regionRule = regexp.MustCompile(`^[A-Za-z0-9-]{1,63}$`)

// decode reads the class's parameters and reports to p what is wrong with them.
// region stands in for one that the class does not name; it may be empty.
func decode(p *provider.Params, region string) *class {
	c := &class{podIdentity: p.Bool(podIdentityKey)}
	if own := p.Optional(regionKey); own != "" {
		region = own
	}
	c.regions = []string{region}
	if second := p.Optional(failoverRegionKey); second != "" {
		if second == region {
			p.Report(provider.Problem{Key: failoverRegionKey, What: fmt.Sprintf("it is the region itself, %q", region), Remedy: "name another region, or remove it"})
		}
		c.regions = append(c.regions, second)
	}
	for i, key := range []string{regionKey, failoverRegionKey}[:len(c.regions)] {
		if region := c.regions[i]; region != "" && !regionRule.MatchString(region) {
			p.Report(provider.Problem{Key: key, What: fmt.Sprintf("%.80q is not a region", region), Remedy: "write it as in us-west-2"})
		}
	}
	switch text := p.Optional(translationKey); {
	case text == "":
		c.translation = "_"
	case strings.EqualFold(text, "false"):
	case len(text) == 1:
		c.translation = text
	default:
		p.Report(provider.Problem{Key: translationKey, What: fmt.Sprintf("%.20q is neither False nor one character", text), Remedy: `write "False", or the character that takes the place of a slash`})
	}
	c.addresses = decodeAddresses(p)
	c.decodeObjects(p)
	return c
}

func decodeAddresses(p *provider.Params) []string {
	switch text := p.Optional(addressTypeKey); strings.ToLower(text) {
	case "ipv4":
		return []string{agentIPv4}
	case "ipv6":
		return []string{agentIPv6}
	case "", "auto":
	default:
		// AWS's provider takes it for auto.
		p.Report(provider.Problem{Key: addressTypeKey, What: fmt.Sprintf("%.20q is none of ipv4, ipv6 and auto", text), Remedy: "correct it, or remove it for auto", Unknown: true})
	}
	return []string{agentIPv4, agentIPv6}
}

func (c *class) decodeObjects(p *provider.Params) {
	p.Required(objectsKey, `write a list: "- objectName: ..."`)
	items := p.Objects(objectsKey)
	if len(items) > maxObjects {
		p.Report(provider.Problem{Key: objectsKey, What: fmt.Sprintf("there are %d objects, more than %d", len(items), maxObjects), Remedy: "split them over several classes"})
		return
	}
	owned := map[string]bool{}
	for _, it := range items {
		o := c.decodeObject(p, it)
		c.objects = append(c.objects, o)
		if o.find != nil {
			continue
		}
		for _, path := range o.paths() {
			if path != "" && owned[path] {
				it.Report(aliasField, fmt.Sprintf("the file %.80q is another object's too", path), "name it with an objectAlias of its own")
			}
			owned[path] = true
		}
	}
}

// paths are those of the object's files.
func (o object) paths() []string {
	paths := []string{o.Path}
	for _, e := range o.jmes {
		paths = append(paths, e.path)
	}
	return paths
}

func (c *class) decodeObject(p *provider.Params, it *provider.Item) object {
	o := object{find: it.Find()}
	first := ref{version: it.Optional(versionField), label: it.Optional(labelField)}
	kind := it.Optional(typeField)
	if o.find == nil {
		first.name = it.Required(nameField, "name the secret or the parameter, or write its ARN")
		it.SetName(first.name)
	} else if it.Has(nameField) {
		it.Report(nameField, "it excludes "+provider.FindField, "remove one of them")
	}
	first.service = c.decodeService(it, nameField, first.name, kind, 0)
	alias := it.Optional(aliasField)
	o.Object = provider.Object{Mode: it.Mode(modeField, provider.UnsetMode), Options: it.Options()}
	o.jmes = c.decodeJMES(p, it)
	o.refs = []ref{first}
	checkVersions(it, versionField, first)
	if o.find != nil {
		o.Name, o.Path = o.find.String(), alias
		if alias != "" {
			it.Path(aliasField, alias)
		}
		for _, field := range []string{versionField, jmesField, failoverField} {
			if it.Has(field) {
				it.Report(field, "it excludes "+provider.FindField, "remove one of them")
			}
		}
	} else {
		o.Name, o.Path = first.String(), c.fileName(first.name)
		field := nameField
		if alias != "" {
			field, o.Path = aliasField, c.fileName(alias)
		}
		it.Path(field, o.Path)
	}
	if len(c.regions) > 1 {
		o.refs = append(o.refs, first)
	}
	c.decodeFailover(p, it, &o, alias, kind)
	return o
}

// decodeService returns whose object name is, which the class or the ARN says.
func (c *class) decodeService(it *provider.Item, field, name, kind string, region int) service {
	s := service(kind)
	if kind != "" && s != secretsManager && s != parameterStore {
		it.Report(typeField, fmt.Sprintf("%.40q is neither %s nor %s", kind, secretsManager, parameterStore), "correct it")
		return ""
	}
	if !strings.HasPrefix(name, "arn:") {
		if kind == "" {
			it.Report(typeField, "it is missing", fmt.Sprintf("write %s or %s, or a full ARN into %s", secretsManager, parameterStore, field))
		}
		return s
	}
	parsed, err := arn.Parse(name)
	if err != nil {
		it.Report(field, fmt.Sprintf("%.80q is not an ARN", name), "correct it")
		return s
	}
	of := services[parsed.Service]
	switch {
	case kind == "" && of == "", kind != "" && of != s:
		it.Report(field, fmt.Sprintf("it is an ARN of the service %.40q", parsed.Service), fmt.Sprintf("write that of a secret (secretsmanager) or of a parameter (ssm), fitting %s", typeField))
	case region < len(c.regions) && c.regions[region] != "" && parsed.Region != c.regions[region]:
		it.Report(field, fmt.Sprintf("it is an ARN of the region %.40q, not of %q", parsed.Region, c.regions[region]), "correct it, or the region")
	}
	return of
}

func checkVersions(it *provider.Item, field string, r ref) {
	if r.service == parameterStore && r.version != "" && r.label != "" {
		it.Report(field, "it excludes "+labelField+" for a parameter", "remove one of them")
	}
}

// fileName makes a path of a name or an alias.
func (c *class) fileName(name string) string {
	if c.translation != "" {
		return strings.ReplaceAll(name, "/", c.translation)
	}
	return strings.TrimLeft(name, "/")
}

// texts reads those keys of a map that stands below a field.
func texts(p *provider.Params, it *provider.Item, field string, value any, keys ...string) map[string]string {
	m, ok := value.(map[string]any)
	if !ok {
		it.Report(field, "it is not a map", "write "+strings.Join(keys, ", ")+" below it")
		return nil
	}
	found := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		text, ok := m[key].(string)
		switch {
		case !slices.Contains(keys, key):
			p.Report(provider.Problem{Key: objectsKey, Field: field, What: fmt.Sprintf("it has no %.40q", key), Remedy: "it may have " + strings.Join(keys, ", "), Unknown: true})
		case !ok && m[key] != nil:
			it.Report(field, fmt.Sprintf("%q is not a text", key), "write it in quotes")
		default:
			found[key] = strings.TrimSpace(text)
		}
	}
	return found
}

func (c *class) decodeJMES(p *provider.Params, it *provider.Item) []extract {
	if !it.Has(jmesField) {
		return nil
	}
	list, ok := it.Value(jmesField).([]any)
	if !ok {
		it.Report(jmesField, "it is not a list", "write entries of path and objectAlias")
		return nil
	}
	var all []extract
	for _, entry := range list {
		fields := texts(p, it, jmesField, entry, "path", aliasField, modeField)
		if fields == nil {
			continue
		}
		e := extract{expression: fields["path"], path: c.fileName(fields[aliasField]), mode: provider.UnsetMode}
		if e.expression == "" || e.path == "" {
			it.Report(jmesField, "an entry lacks its path or its objectAlias", "write both")
			continue
		}
		var err error
		if e.search, err = compile(e.expression); err != nil {
			it.Report(jmesField, fmt.Sprintf("%.80q %v", e.expression, err), `see https://jmespath.org; a key with other characters than letters, digits and _ is written '"my-key"'`)
		}
		if text := fields[modeField]; text != "" {
			if e.mode, err = provider.ParseMode(text); err != nil {
				it.Report(jmesField, err.Error(), `write it as in "0640"`)
			}
		}
		it.Path(jmesField, e.path)
		all = append(all, e)
	}
	return all
}

// decodeFailover reads what takes the object's place in the second region.
func (c *class) decodeFailover(p *provider.Params, it *provider.Item, o *object, alias, kind string) {
	if !it.Has(failoverField) {
		return
	}
	fields := texts(p, it, failoverField, it.Value(failoverField), nameField, versionField, labelField)
	if fields == nil || fields[nameField] == "" {
		return // as AWS's provider has it
	}
	second := ref{o.refs[0].service, fields[nameField], o.refs[0].version, o.refs[0].label}
	if fields[labelField] != "" {
		second.label = fields[labelField]
	}
	switch {
	case alias == "":
		it.Report(failoverField, "the object has no "+aliasField, "give it one: its file must have one name whatever the region")
	case len(c.regions) < 2:
		it.Report(failoverField, "the class has no "+failoverRegionKey, "name the region of this object there")
		return
	case fields[versionField] != second.version:
		it.Report(failoverField, fmt.Sprintf("its %s is not that of the object", versionField), "write the same version into both")
	}
	second.service = c.decodeService(it, failoverField, second.name, kind, 1)
	checkVersions(it, failoverField, second)
	o.refs[1] = second
}

// String names the object for an error.
func (r ref) String() string {
	noun := "secret"
	if r.service == parameterStore {
		noun = "parameter"
	}
	return fmt.Sprintf("%s %q", noun, r.name)
}
