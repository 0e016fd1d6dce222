package kubernetes

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// maxObjects bounds the objects of one class.
const maxObjects = 256

// params is what a class asks for.
type params struct {
	audience string // empty for one that the API server takes for its own
	objects  []object
}

// source is a Secret or ConfigMap.
type source struct {
	resource string // secrets or configmaps
	name     string
}

func (s source) String() string { return strings.TrimSuffix(s.resource, "s") + "/" + s.name }

// in names it in an error.
func (s source) in(pod provider.Pod) string {
	kind := "Secret"
	if s.resource == configMaps {
		kind = "ConfigMap"
	}
	return fmt.Sprintf("%s %s/%s", kind, pod.Namespace, s.name)
}

const (
	secrets    = "secrets"
	configMaps = "configmaps"
)

// object is one entry of the class.
type object struct {
	source
	key   string      // empty for all keys
	alias string      // a file, or a folder for all keys; may be empty
	mode  fs.FileMode // provider.UnsetMode where the class gives none
	provider.Options
}

// path returns the file of a key.
func (o object) path(key string) string {
	switch {
	case o.key == "":
		return path.Join(o.alias, key)
	case o.alias != "":
		return o.alias
	}
	return key
}

// sources returns what the objects are of, each once.
func (d *params) sources() []source {
	var sources []source
	for _, o := range d.objects {
		if !slices.Contains(sources, o.source) {
			sources = append(sources, o.source)
		}
	}
	return sources
}

// decode reads the class's parameters and reports to p what is wrong with them.
func decode(p *provider.Params) *params {
	const key = "objects"
	d := &params{audience: p.Optional("audience")}
	p.Required(key, `write a list: "- objectName: NAME"`)
	items := p.Objects(key)
	if len(items) > maxObjects {
		p.Report(provider.Problem{Key: key, What: fmt.Sprintf("it lists %d objects, more than %d", len(items), maxObjects), Remedy: "split them over several classes"})
		return d
	}
	places := map[string]int{}
	for i, it := range items {
		o := object{source: source{secrets, it.Required("objectName", "name a Secret or ConfigMap of the pod's namespace")}, key: it.Optional("key"), alias: it.Optional("objectAlias")}
		it.SetName(o.name)
		switch kind := it.Optional("objectType"); strings.ToLower(kind) {
		case "", "secret":
		case "configmap":
			o.resource = configMaps
		default:
			it.Report("objectType", fmt.Sprintf("%q is neither secret nor configmap", kind), "correct it")
		}
		if reasons := validation.IsDNS1123Subdomain(o.name); o.name != "" && len(reasons) > 0 {
			it.Report("objectName", fmt.Sprintf("%q cannot be the name of a Secret or ConfigMap", o.name), "correct it")
		}
		if reasons := validation.IsConfigMapKey(o.key); o.key != "" && len(reasons) > 0 {
			it.Report("key", fmt.Sprintf("%q cannot be a key", o.key), "correct it")
		}
		o.mode = it.Mode("filePermission", provider.UnsetMode)
		o.Options = it.Options()
		for _, field := range []string{provider.EncodingField, provider.ExtractJSONField, provider.ExtractYAMLField} {
			if o.key == "" && it.Has(field) {
				it.Report(field, "it is for one key, and the entry names none", `name it with "key", or remove this`)
			}
		}
		if o.alias != "" {
			it.Path("objectAlias", o.alias)
		}
		if o.key != "" {
			if other, taken := places[o.path(o.key)]; taken {
				it.Report("objectAlias", fmt.Sprintf("entry %d has the file path %q too", other+1, o.path(o.key)), "give one of them another objectAlias")
			}
			places[o.path(o.key)] = i
		}
		d.objects = append(d.objects, o)
	}
	return d
}
