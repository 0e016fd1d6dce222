package class

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// MaxFileBytes bounds a file of classes.
const MaxFileBytes = 4 << 20

// DefaultNamespace is that of a class whose file names none.
const DefaultNamespace = "default"

// maxNodes bounds the values of one document, so that YAML aliases cannot
// multiply a small file into a large one.
const maxNodes = 1 << 17

// The fields that the API server keeps.
var (
	rootFields     = []string{"apiVersion", "kind", "metadata", "spec", "status"}
	metadataFields = []string{"name", "namespace", "labels", "annotations", "generateName", "selfLink", "uid",
		"resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
		"ownerReferences", "finalizers", "managedFields"}
	specFields   = []string{"provider", "parameters", "secretObjects"}
	secretFields = []string{"secretName", "type", "labels", "annotations", "data"}
	dataFields   = []string{"objectName", "key"}
)

// Document is one SecretProviderClass of a file, with the lines of its parts.
type Document struct {
	File  string
	Line  int
	Class *SecretProviderClass

	unreadable []Problem // for which an API server would refuse the class
	mistakes   []Problem // which no mount fails for, and no person wants
	lines      map[string]int
	parameters map[string]value
}

// value is where a parameter's value stands in the file.
type value struct {
	line int
	// block says that the value's own lines are lines of the file, from the one
	// after line on.
	block bool
	// bad says that the value has been reported already.
	bad bool
}

// Err returns an *provider.Error of kind Invalid with every reason for which an
// API server would refuse the class, or nil.
func (d *Document) Err() error { return invalid(d.unreadable) }

func invalid(problems []Problem) error {
	var errs []error
	for _, p := range problems {
		errs = append(errs, p)
	}
	if len(errs) == 0 {
		return nil
	}
	return &provider.Error{Kind: provider.Invalid, Err: errors.Join(errs...)}
}

// Decode returns the SecretProviderClasses among the YAML or JSON documents of
// a file, lists of them included; documents of other kinds are skipped. The
// problems are those of the file itself: where there is one, classes may be
// missing. What is wrong with a single class is told by its Err and by Check.
// The file's name serves to tell where a problem is.
func Decode(file string, data []byte) ([]*Document, []Problem) {
	if len(data) > MaxFileBytes {
		return nil, []Problem{{File: file, What: fmt.Sprintf("it has %d bytes, more than %d", len(data), MaxFileBytes), Remedy: "split it into several files"}}
	}
	var documents []*Document
	var problems []Problem
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var root yaml.Node
		err := decoder.Decode(&root)
		if err == io.EOF {
			return documents, problems
		}
		if err != nil {
			return documents, append(problems, syntaxProblem(file, data, err))
		}
		found, wrong := read(file, &root, true)
		documents, problems = append(documents, found...), append(problems, wrong...)
	}
}

// syntaxProblem tells where and why data is not YAML.
func syntaxProblem(file string, data []byte, err error) Problem {
	line, what, remedy := provider.ExplainYAML(data, err)
	return Problem{File: file, Line: line, What: "it is not YAML: " + what, Remedy: remedy}
}

// read reads one YAML document, or one entry of a list of objects.
func read(file string, root *yaml.Node, lists bool) ([]*Document, []Problem) {
	if root.Kind == yaml.DocumentNode && len(root.Content) > 0 {
		root = root.Content[0]
	}
	root = resolve(root)
	apiVersion, kind := scalar(root, "apiVersion"), scalar(root, "kind")
	group, version, _ := strings.Cut(apiVersion, "/")
	switch {
	case kind == Kind:
		d := &Document{File: file, Line: root.Line, Class: &SecretProviderClass{}, lines: map[string]int{}, parameters: map[string]value{}}
		r := reader{document: d, left: maxNodes}
		r.class(root)
		if group != Group || version != Version && version != VersionV1alpha1 {
			what := "it is missing"
			if apiVersion != "" {
				what = fmt.Sprintf("%q is not a version of %s", apiVersion, Kind)
			}
			r.unreadable(d.line("apiVersion"), "apiVersion", what, fmt.Sprintf("write %s/%s", Group, Version))
		}
		d.name()
		return []*Document{d}, nil
	case lists && (kind == "List" || kind == Kind+"List"):
		var documents []*Document
		var problems []Problem
		if items := lookup(root, "items"); items != nil && items.Kind == yaml.SequenceNode {
			for _, item := range items.Content {
				found, wrong := read(file, item, false)
				documents, problems = append(documents, found...), append(problems, wrong...)
			}
		}
		return documents, problems
	case group == Group && !strings.HasPrefix(kind, Kind+"PodStatus"):
		return nil, []Problem{{File: file, Line: root.Line, Key: "kind", What: fmt.Sprintf("%q is not a kind of %s", kind, Group), Remedy: "write " + Kind}}
	}
	return nil, nil
}

// line returns the line of a key, or the first of the keys given after it that
// is there, or that of the document.
func (d *Document) line(keys ...string) int {
	for _, key := range keys {
		if line := d.lines[key]; line > 0 {
			return line
		}
	}
	return d.Line
}

// name gives every problem found so far the name of the class.
func (d *Document) name() {
	if d.Class.Name == "" {
		return
	}
	for _, list := range [][]Problem{d.unreadable, d.mistakes} {
		for i := range list {
			list[i].Class = d.Class.Ref().String()
		}
	}
}

// reader reads the nodes of one document into its class.
type reader struct {
	document *Document
	left     int // nodes that may still be read
}

// entry is one key of a map, with its value.
type entry struct {
	key   string
	line  int
	value *yaml.Node
}

func (r *reader) unreadable(line int, key, what, remedy string) {
	r.document.unreadable = append(r.document.unreadable, Problem{File: r.document.File, Line: line, Key: key, What: what, Remedy: remedy})
}

func (r *reader) mistake(line int, key, item, field, what, remedy string) {
	r.document.mistakes = append(r.document.mistakes, Problem{File: r.document.File, Line: line, Key: key, Item: item, Field: field, What: what, Remedy: remedy})
}

func (r *reader) class(root *yaml.Node) {
	d := r.document
	entries := r.fields(root, "", rootFields)
	for _, e := range entries {
		d.lines[e.key] = e.line
	}
	for _, e := range entries {
		switch e.key {
		case "apiVersion":
			d.Class.APIVersion, _ = r.text(e, e.key)
		case "kind":
			d.Class.Kind, _ = r.text(e, e.key)
		case "metadata":
			r.metadata(e)
		case "spec":
			r.spec(e)
		}
	}
	if d.Class.Namespace == "" {
		d.Class.Namespace = DefaultNamespace
	}
	if d.Class.Name == "" && d.lines["metadata.name"] == 0 {
		r.unreadable(d.line("metadata"), "metadata.name", "it is missing", "give the class a name, by which pods refer to it")
	}
}

func (r *reader) metadata(metadata entry) {
	class := r.document.Class
	for _, e := range r.fields(metadata.value, "metadata", metadataFields) {
		key := "metadata." + e.key
		r.document.lines[key] = e.line
		switch e.key {
		case "name":
			if name, ok := r.text(e, key); ok {
				r.rule(e.line, key, name, "give the class a name, by which pods refer to it", validation.IsDNS1123Subdomain(name))
				class.Name = name
			}
		case "namespace":
			if namespace, ok := r.text(e, key); ok && namespace != "" {
				r.rule(e.line, key, namespace, "", validation.IsDNS1123Label(namespace))
				class.Namespace = namespace
			}
		case "labels":
			class.Labels = r.texts(e, key)
		case "annotations":
			class.Annotations = r.texts(e, key)
		}
	}
}

// rule reports that a name breaks Kubernetes' rules for it.
func (r *reader) rule(line int, key, name, remedy string, broken []string) {
	switch {
	case name == "":
		r.unreadable(line, key, "it is empty", remedy)
	case len(broken) > 0:
		r.unreadable(line, key, fmt.Sprintf("%.80q is not a legal name", name), broken[0])
	}
}

func (r *reader) spec(spec entry) {
	d := r.document
	entries := r.fields(spec.value, "spec", specFields)
	for _, e := range entries {
		d.lines["spec."+e.key] = e.line
		switch e.key {
		case "provider":
			d.Class.Spec.Provider, _ = r.text(e, e.key)
		case "parameters":
			r.parameters(e)
		case "secretObjects":
			r.secretObjects(e)
		}
	}
}

func (r *reader) parameters(parameters entry) {
	d := r.document
	d.Class.Spec.Parameters = map[string]string{}
	for _, e := range r.fields(parameters.value, "parameters", nil) {
		text, ok := r.text(e, "parameters."+e.key)
		d.Class.Spec.Parameters[e.key] = text
		d.parameters[e.key] = value{line: e.value.Line, block: e.value.Style&yaml.LiteralStyle != 0, bad: !ok}
	}
}

func (r *reader) secretObjects(list entry) {
	names := map[string]bool{}
	for i, n := range r.list(list.value, "secretObjects") {
		var s SecretObject
		key := fmt.Sprintf("secretObjects entry %d", i+1)
		lines := map[string]int{}
		for _, e := range r.fields(n, key, secretFields) {
			lines[e.key] = e.line
			switch e.key {
			case "secretName":
				s.SecretName, _ = r.text(e, key+", "+e.key)
			case "type":
				s.Type, _ = r.text(e, key+", "+e.key)
			case "labels":
				s.Labels = r.texts(e, key+", "+e.key)
			case "annotations":
				s.Annotations = r.texts(e, key+", "+e.key)
			case "data":
				s.Data = r.secretData(e, key+", data")
			}
		}
		r.document.Class.Spec.SecretObjects = append(r.document.Class.Spec.SecretObjects, s)

		item := fmt.Sprintf("entry %d", i+1)
		if s.SecretName != "" {
			item += fmt.Sprintf(" (%q)", s.SecretName)
		}
		report := func(field, what, remedy string) {
			line := lines[field]
			if line == 0 {
				line = n.Line
			}
			r.mistake(line, "secretObjects", item, field, what, remedy)
		}
		switch broken := validation.IsDNS1123Subdomain(s.SecretName); {
		case s.SecretName == "":
			report("secretName", "it is missing", "name the Kubernetes Secret to be made")
		case len(broken) > 0:
			report("secretName", "it is not a legal name", broken[0])
		case names[s.SecretName]:
			report("secretName", "an entry above has the same name", "put the data of both into one entry")
		}
		names[s.SecretName] = true
		if s.Type == "" {
			report("type", "it is missing", "write Opaque, or another type of Secret")
		}
		if len(s.Data) == 0 {
			report("data", "it is empty", "list at least one objectName with its key")
		}
	}
}

func (r *reader) secretData(list entry, key string) []SecretObjectData {
	var data []SecretObjectData
	keys := map[string]bool{}
	for i, n := range r.list(list.value, key) {
		var d SecretObjectData
		item := fmt.Sprintf("entry %d", i+1)
		lines := map[string]int{"objectName": n.Line, "key": n.Line}
		for _, e := range r.fields(n, key+" "+item, dataFields) {
			lines[e.key] = e.line
			switch e.key {
			case "objectName":
				d.ObjectName, _ = r.text(e, key+" "+item+", "+e.key)
			case "key":
				d.Key, _ = r.text(e, key+" "+item+", "+e.key)
			}
		}
		data = append(data, d)

		if d.ObjectName == "" {
			r.mistake(lines["objectName"], key, item, "objectName", "it is missing", "write the path of a file in the volume")
		} else if err := provider.CheckPath(d.ObjectName); err != nil {
			r.mistake(lines["objectName"], key, item, "objectName", err.Error(), "write the path of a file in the volume")
		}
		switch broken := validation.IsConfigMapKey(d.Key); {
		case d.Key == "":
			r.mistake(lines["key"], key, item, "key", "it is missing", "write the key in the Secret that is to hold the file")
		case len(broken) > 0:
			r.mistake(lines["key"], key, item, "key", fmt.Sprintf("%.80q is not a legal key of a Secret", d.Key), broken[0])
		case keys[d.Key]:
			r.mistake(lines["key"], key, item, "key", fmt.Sprintf("an entry above has the same key %q", d.Key), "choose another key, or remove one of them")
		}
		keys[d.Key] = true
	}
	return data
}

// spend takes n from the nodes that may still be read.
func (r *reader) spend(n int, line int, key string) bool {
	if r.left < 0 {
		return false
	}
	if r.left -= n; r.left >= 0 {
		return true
	}
	r.unreadable(line, key, fmt.Sprintf("the document's aliases multiply it to more than %d values", maxNodes), "write the values out where they are used")
	return false
}

// list returns the entries of a list, none for what is none.
func (r *reader) list(n *yaml.Node, key string) []*yaml.Node {
	n = resolve(n)
	if null(n) || !r.spend(len(n.Content), n.Line, key) {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		r.unreadable(n.Line, key, "it is not a list", `write "- " before each entry`)
		return nil
	}
	entries := make([]*yaml.Node, len(n.Content))
	for i, entry := range n.Content {
		entries[i] = resolve(entry)
	}
	return entries
}

// fields returns the entries of a map in the order of the text, none for what
// is none. Keys that are not among known, where that is given, are mistakes.
func (r *reader) fields(n *yaml.Node, key string, known []string) []entry {
	n = resolve(n)
	if null(n) {
		return nil
	}
	var entries []entry
	if n.Kind != yaml.MappingNode {
		r.unreadable(n.Line, key, "it is not a map of fields", `write fields below each other, as in "name: value"`)
		return nil
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch name, ok := keyName(k); {
		case !r.spend(1, k.Line, key):
			return entries
		case k.Tag == "!!merge":
		case !ok:
			r.unreadable(k.Line, key, "a key is not a plain text", "put it in quotes")
		case seen[name] > 0:
			r.unreadable(k.Line, strings.TrimPrefix(key+"."+name, "."), fmt.Sprintf("it is given twice, first in line %d", seen[name]), "remove one of them")
		default:
			seen[name] = k.Line
			entries = append(entries, entry{name, k.Line, resolve(v)})
		}
	}
	entries = append(entries, r.merged(n, seen, key, 0)...)
	for _, e := range entries {
		if known != nil && !slices.Contains(known, e.key) {
			r.unknown(e, key, known)
		}
	}
	return entries
}

func (r *reader) unknown(e entry, key string, known []string) {
	what, remedy := "a class has no such field", "write one of "+strings.Join(known[:min(len(known), 5)], ", ")
	if key == "" && slices.Contains(specFields, e.key) {
		remedy = "indent it below spec"
	}
	r.mistake(e.line, strings.TrimPrefix(key+"."+e.key, "."), "", "", what, remedy)
}

// maxMerges bounds how deep maps merge others, which may be themselves.
const maxMerges = 8

// merged returns the entries that n takes from other maps with "<<", except
// those that have been seen, which it extends.
func (r *reader) merged(n *yaml.Node, seen map[string]int, key string, depth int) []entry {
	var entries []entry
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Tag != "!!merge" {
			continue
		}
		line := n.Content[i].Line
		sources := []*yaml.Node{resolve(n.Content[i+1])}
		if sources[0].Kind == yaml.SequenceNode {
			sources = sources[0].Content
		}
		for _, source := range sources {
			source = resolve(source)
			if source.Kind != yaml.MappingNode || depth >= maxMerges {
				r.unreadable(line, key, `"<<" does not name a map that can be merged`, "write the fields out")
				return entries
			}
			for j := 0; j+1 < len(source.Content); j += 2 {
				if !r.spend(1, line, key) {
					return entries
				}
				k := source.Content[j]
				if name, ok := keyName(k); ok && k.Tag != "!!merge" && seen[name] == 0 {
					seen[name] = k.Line
					entries = append(entries, entry{name, k.Line, resolve(source.Content[j+1])})
				}
			}
			entries = append(entries, r.merged(source, seen, key, depth+1)...)
		}
	}
	return entries
}

// texts reads a map whose values are all texts.
func (r *reader) texts(e entry, key string) map[string]string {
	var texts map[string]string
	for _, e := range r.fields(e.value, key, nil) {
		if texts == nil {
			texts = map[string]string{}
		}
		texts[e.key], _ = r.text(e, key+"."+e.key)
	}
	return texts
}

// text reads a value that must be a string, and reports what is not: an API
// server would refuse it.
func (r *reader) text(e entry, key string) (string, bool) {
	n := e.value
	switch kind := kindOf(n); kind {
	case "string":
		return n.Value, true
	case "map", "list":
		r.unreadable(e.line, key, fmt.Sprintf("its value is a %s, not a string", kind), fmt.Sprintf(`write "%s: |" and indent what follows, which makes it a text`, e.key))
		return "", false
	case "null":
		r.unreadable(e.line, key, "it has no value", `write "" for an empty one, or remove the key`)
		return "", false
	case "boolean", "number":
		r.unreadable(e.line, key, fmt.Sprintf("%.80s is a %s, not a string", n.Value, kind), fmt.Sprintf("put it in quotes: %.80q", n.Value))
		return n.Value, false
	default:
		r.unreadable(e.line, key, fmt.Sprintf("it is a %s, not a string", kind), fmt.Sprintf("put it in quotes, without a tag: %.80q", n.Value))
		return n.Value, false
	}
}

// words are the letters that YAML 1.1 takes for booleans and null.
var words = []string{"y", "yes", "n", "no", "true", "false", "on", "off", "null"}

// kindOf names what a cluster takes a value for. kubectl reads YAML 1.1, where
// yes, no, on and off are booleans too.
func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "map"
	case n.Kind == yaml.SequenceNode:
		return "list"
	case n.Kind != yaml.ScalarNode:
		return "null"
	}
	if n.Style != 0 {
		switch n.ShortTag() {
		case "!!str":
			return "string"
		case "!!null":
			return "null"
		}
		return "value tagged " + n.ShortTag()
	}
	if c := n.Value[:min(len(n.Value), 1)]; c >= "A" && !slices.Contains(words, strings.ToLower(n.Value)) && c != "~" && c != "[" && c != "{" {
		return "string"
	}
	var plain map[string]any
	if err := sigsyaml.Unmarshal([]byte("v: "+n.Value), &plain); err != nil {
		return "value that cannot be read"
	}
	switch plain["v"].(type) {
	case string:
		return "string"
	case bool:
		return "boolean"
	case nil:
		return "null"
	}
	return "number"
}

// keyName returns the text of a map's key; false where it is no text.
func keyName(n *yaml.Node) (string, bool) {
	n = resolve(n)
	return n.Value, n.Kind == yaml.ScalarNode && kindOf(n) == "string"
}

func null(n *yaml.Node) bool {
	return n.Kind == 0 || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// resolve follows YAML aliases.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}

// lookup returns the value of a map's key, or nil.
func lookup(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return resolve(n.Content[i+1])
		}
	}
	return nil
}

// scalar returns the text of a map's key, or "".
func scalar(n *yaml.Node, key string) string {
	if v := lookup(n, key); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}
