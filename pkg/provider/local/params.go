package local

import (
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// params is what a class asks for. It is shared once it is decoded, and never
// changed.
type params struct {
	path         string
	identityFile string
	objects      []object // nil for everything that path holds
}

// object is one file of the folder or one key of the age file.
type object struct {
	name string
	file string      // its path in the volume
	mode fs.FileMode // provider.UnsetMode where the class gives none
	provider.Options
	// repeated marks an object whose name an earlier one has too.
	repeated bool
}

// decode reads the class's parameters and reports to p what is wrong with them.
func decode(p *provider.Params) *params {
	d := &params{
		path:         p.Required("path", "write the absolute path of a folder of secrets or of an age file"),
		identityFile: p.Optional("identityFile"),
	}
	for key, value := range map[string]string{"path": d.path, "identityFile": d.identityFile} {
		if value != "" && !filepath.IsAbs(value) {
			p.Report(provider.Problem{Key: key, What: fmt.Sprintf("the path %q is not absolute", value), Remedy: "begin it with /"})
		}
	}
	d.decodeObjects(p)
	return d
}

func (d *params) decodeObjects(p *provider.Params) {
	const key = "objects"
	items := p.Objects(key)
	switch {
	case len(items) > maxObjects:
		p.Report(provider.Problem{Key: key, What: fmt.Sprintf("it lists %d objects, more than %d", len(items), maxObjects), Remedy: "split them over several classes"})
	case len(items) == 0 && p.Optional(key) != "" && !slices.ContainsFunc(p.Problems(), func(p provider.Problem) bool { return p.Key == key }):
		p.Report(provider.Problem{Key: key, What: "it lists nothing", Remedy: `list an object, or remove "objects" to mount all that "path" holds`})
	}
	names := make(map[string]bool, len(items))
	var files []string
	var owners []int // the entries of items that files come from
	for i, it := range items {
		o := object{name: it.Required("objectName", "name the file below the folder, or the key in the age file")}
		it.SetName(o.name)
		field := "objectAlias"
		if o.file = it.Optional(field); o.file == "" {
			field, o.file = "objectName", o.name
		}
		o.mode = it.Mode("filePermission", provider.UnsetMode)
		o.Options = it.Options()
		it.Path(field, o.file)
		if field == "objectAlias" && d.identityFile == "" && o.name != "" {
			if err := provider.CheckPath(o.name); err != nil {
				it.Report("objectName", err.Error(), "name a file below the folder")
			}
		}
		o.repeated = names[o.name]
		names[o.name] = true
		d.objects = append(d.objects, o)
		if provider.CheckPath(o.file) == nil {
			files, owners = append(files, o.file), append(owners, i)
		}
	}
	// What is wrong shows with the later of two entries, and names the earlier.
	for _, c := range clashes(files) {
		first, second := owners[c.first], owners[c.second]
		what := fmt.Sprintf("entry %d (%q) has the file path %q too", first+1, d.objects[first].name, files[c.first])
		if files[c.first] != files[c.second] {
			what = fmt.Sprintf("the file path %q and that of entry %d (%q), %q, exclude each other: one needs the other as a folder",
				files[c.second], first+1, d.objects[first].name, files[c.first])
		}
		items[second].Report("objectName", what, "give one of them another objectAlias")
	}
}

// clash is two paths, by their indices, that cannot stand in one volume.
type clash struct{ first, second int }

// clashes returns, for every path that cannot stand with an earlier one in a
// volume, the first of those. Each path must pass provider.CheckPath; there is
// a clash if and only if provider.CheckPaths fails.
func clashes(paths []string) []clash {
	var all []clash
	files := make(map[string]int, len(paths))   // by path
	folders := make(map[string]int, len(paths)) // that the files need: the first that needs it
	for i, p := range paths {
		other, ok := files[p]
		if !ok {
			other, ok = folders[p]
		}
		for dir := path.Dir(p); !ok && dir != "."; dir = path.Dir(dir) {
			other, ok = files[dir]
		}
		if ok {
			all = append(all, clash{other, i})
		}
		if _, ok := files[p]; !ok {
			files[p] = i
		}
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			if _, ok := folders[dir]; !ok {
				folders[dir] = i
			}
		}
	}
	return all
}

// source is the text that params come from.
type source struct{ path, identityFile, objects string }

// maxCached bounds the texts that a Provider remembers decoded, and
// maxCachedBytes each of them.
const (
	maxCached      = 256
	maxCachedBytes = 64 << 10
)

// decode returns the decoded parameters, from memory where the same text was
// decoded before: to read the YAML costs more than to read two files.
func (p *Provider) decode(parameters map[string]string) (*params, error) {
	text := source{parameters["path"], parameters["identityFile"], parameters["objects"]}
	p.mu.Lock()
	d := p.decoded[text]
	p.mu.Unlock()
	if d != nil {
		return d, nil
	}
	reader := provider.NewParams(parameters)
	d = decode(reader)
	if err := reader.Err(); err != nil {
		return nil, err
	}
	if len(text.path)+len(text.identityFile)+len(text.objects) > maxCachedBytes {
		return d, nil
	}
	// The cache must not keep a larger text alive of which these are parts.
	text = source{strings.Clone(text.path), strings.Clone(text.identityFile), strings.Clone(text.objects)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.decoded) >= maxCached {
		for victim := range p.decoded {
			delete(p.decoded, victim)
			break
		}
	}
	p.decoded[text] = d
	return d, nil
}
