package provider

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxParameterBytes bounds the text of one parameter: a class is an API
// object, and those end at about 1.5 MiB.
const maxParameterBytes = 1536 << 10

// The parameters that every class may carry, because a layer above the
// providers reads them.
const (
	// VolumeSizeKey bounds a volume's tmpfs.
	VolumeSizeKey = "volumeSize"
	// RotationIntervalKey is how often a volume is refreshed.
	RotationIntervalKey = "rotationInterval"
	// SealedCacheKey is for how long an answer may be kept sealed on the node.
	SealedCacheKey = "sealedCache"
	// ChangeNoticesKey says that the driver is told when objects change.
	ChangeNoticesKey = "changeNotices"
	// OnChangeKey lists what happens after files have become others.
	OnChangeKey = "onChange"
	// DerivedFilesKey lists files that are made of others, see package derive.
	DerivedFilesKey = "derivedFiles"
)

// commonKeys are known to every Params.
var commonKeys = []string{VolumeSizeKey, RotationIntervalKey, SealedCacheKey, ChangeNoticesKey, OnChangeKey, DerivedFilesKey}

// Problem is one mistake in a class's parameters.
type Problem struct {
	// Key is the parameter, such as "objects".
	Key string
	// Line is where in the parameter's value, from 1; 0 where it is the whole.
	Line int
	// Item names the entry of a list, such as `entry 2 ("db")`; often empty.
	Item string
	// Field is the field of that entry; often empty.
	Field string
	// What is wrong, and what to do about it.
	What, Remedy string
	// Unknown marks a key that nothing reads: an error to a person who checks a
	// class, and no reason to fail a mount.
	Unknown bool
}

func (p Problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "parameter %q", p.Key)
	if p.Line > 0 {
		fmt.Fprintf(&b, ", line %d", p.Line)
	}
	if p.Item != "" {
		fmt.Fprintf(&b, ", %s", p.Item)
	}
	if p.Field != "" {
		fmt.Fprintf(&b, ", %q", p.Field)
	}
	fmt.Fprintf(&b, ": %s", p.What)
	if p.Remedy != "" {
		fmt.Fprintf(&b, "; %s", p.Remedy)
	}
	return b.String()
}

// Params reads the parameters of a class, key by key, and collects what is
// wrong with them. A provider asks for every key that it knows, then looks at
// Err or Problems: what was never asked for is unknown. It is not safe for
// concurrent use.
type Params struct {
	values   map[string]string
	asked    map[string]bool
	items    []*Item
	problems []Problem
}

// NewParams returns a reader of values, which it does not change.
func NewParams(values map[string]string) *Params {
	p := &Params{values: values, asked: map[string]bool{}}
	for _, key := range commonKeys {
		p.asked[key] = true
	}
	return p
}

// Report adds a problem that the provider itself found.
func (p *Params) Report(problem Problem) {
	// The parser counts more characters as line breaks than a text editor does,
	// and puts an unexpected end behind the last line.
	problem.Line = min(problem.Line, strings.Count(p.values[problem.Key], "\n")+1)
	p.problems = append(p.problems, problem)
}

// Optional returns the value of key without the white space around it, or ""
// where it is absent.
func (p *Params) Optional(key string) string {
	p.asked[key] = true
	return strings.TrimSpace(p.values[key])
}

// Required is Optional for a key that must not be empty; remedy tells what it
// has to hold.
func (p *Params) Required(key, remedy string) string {
	v := p.Optional(key)
	if v == "" {
		p.Report(Problem{Key: key, What: "it is missing", Remedy: remedy})
	}
	return v
}

// Bool returns the value of key as strconv.ParseBool reads it, false where it
// is absent.
func (p *Params) Bool(key string) bool {
	v := p.Optional(key)
	if v == "" {
		return false
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		p.Report(Problem{Key: key, What: fmt.Sprintf("%q is not a boolean", v), Remedy: `write "true" or "false"`})
	}
	return b
}

// Objects reads key as a list of objects: a YAML list of maps, or, as the
// oldest classes have it, a map whose "array" is a list of strings that each
// hold a YAML map. It returns nil where the key is absent.
func (p *Params) Objects(key string) []*Item { return p.List(key, "objectName") }

// DerivedFiles is Objects for the parameter DerivedFilesKey.
func (p *Params) DerivedFiles() []*Item { return p.List(DerivedFilesKey, "path") }

// List is Objects for entries that begin with the field of that name.
func (p *Params) List(key, first string) []*Item {
	p.asked[key] = true
	text := p.values[key]
	if strings.TrimSpace(text) == "" {
		return nil
	}
	remedy := fmt.Sprintf(`write a list: "- %s: ..."`, first)
	root, ok := p.parse(key, text, 0, remedy)
	if !ok {
		return nil
	}
	if root.Kind == yaml.MappingNode && key != DerivedFilesKey {
		if root = field(root, "array"); root == nil {
			p.Report(Problem{Key: key, Line: 1, What: `it is a map without "array"`, Remedy: remedy})
			return nil
		}
	}
	if root.Kind != yaml.SequenceNode {
		p.Report(Problem{Key: key, Line: root.Line, What: "it is not a list", Remedy: remedy})
		return nil
	}
	var items []*Item
	for i, entry := range root.Content {
		entry = resolve(entry)
		line := entry.Line
		offset := 0
		if entry.Kind == yaml.ScalarNode && entry.ShortTag() == "!!str" {
			// A block scalar's text begins on the line after its indicator.
			if offset = entry.Line - 1; entry.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
				offset = entry.Line
			}
			if entry, ok = p.parse(key, entry.Value, offset, remedy); !ok {
				continue
			}
		}
		if entry.Kind != yaml.MappingNode {
			p.Report(Problem{Key: key, Line: line, Item: fmt.Sprintf("entry %d", i+1), What: "it is not a map of fields", Remedy: fmt.Sprintf(`write "%s: ..." and further fields below each other`, first)})
			continue
		}
		items = append(items, p.newItem(key, i, offset, entry))
	}
	p.items = append(p.items, items...)
	return items
}

// parse reads text, which begins offset lines into the value of key, as one
// YAML document; remedy is for one that is empty.
func (p *Params) parse(key, text string, offset int, remedy string) (*yaml.Node, bool) {
	if len(text) > maxParameterBytes {
		p.Report(Problem{Key: key, What: fmt.Sprintf("it has %d bytes, more than %d", len(text), maxParameterBytes)})
		return nil, false
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		line, what, remedy := ExplainYAML([]byte(text), err)
		if line > 0 {
			line += offset
		}
		p.Report(Problem{Key: key, Line: line, What: "it is not YAML: " + what, Remedy: remedy})
		return nil, false
	}
	if len(doc.Content) == 0 {
		p.Report(Problem{Key: key, What: "it is empty", Remedy: remedy})
		return nil, false
	}
	return resolve(doc.Content[0]), true
}

// Problems returns all that is wrong, unknown keys and fields included, in the
// order of keys and lines. Call it when every known key has been asked for.
func (p *Params) Problems() []Problem {
	all := NewParams(p.values)
	all.problems = slices.Clone(p.problems)
	for _, key := range slices.Sorted(maps.Keys(p.values)) {
		if !p.asked[key] {
			all.Report(Problem{Key: key, What: "this provider does not know it", Remedy: "correct its spelling, or remove it", Unknown: true})
		}
	}
	for _, it := range p.items {
		for name, n := range it.fields {
			if !it.asked[name] {
				what := "this provider does not know it"
				switch it.key {
				case DerivedFilesKey:
					what = "a derived file has no such field"
				case OnChangeKey:
					what = "an action has no such field"
				}
				all.Report(it.problem(n, name, what, "correct its spelling, or remove it", true))
			}
		}
	}
	slices.SortStableFunc(all.problems, func(a, b Problem) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	return all.problems
}

// Err returns everything that must fail a mount as one *Error of kind Invalid,
// or nil. Unknown keys do not.
func (p *Params) Err() error {
	var errs []error
	for _, problem := range p.problems {
		if !problem.Unknown {
			errs = append(errs, problem)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return &Error{Kind: Invalid, Err: errors.Join(errs...)}
}

// Item is one entry of a list of objects.
type Item struct {
	params *Params
	key    string
	index  int
	offset int // lines of the parameter's value above the entry's own text
	node   *yaml.Node
	fields map[string]*yaml.Node
	asked  map[string]bool
	name   string
}

func (p *Params) newItem(key string, index, offset int, node *yaml.Node) *Item {
	it := &Item{params: p, key: key, index: index, offset: offset, node: node, fields: map[string]*yaml.Node{}, asked: map[string]bool{}}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name := node.Content[i].Value
		if it.fields[name] != nil {
			p.Report(it.problem(node.Content[i], name, "it is given twice", "remove one of them", false))
		}
		it.fields[name] = resolve(node.Content[i+1])
	}
	return it
}

// SetName gives the entry the name by which its problems call it.
func (it *Item) SetName(name string) { it.name = name }

// Keys returns the entry's fields in the order of the text, and marks them
// known: for grammars in which a field's name is itself a value.
func (it *Item) Keys() []string {
	var keys []string
	for i := 0; i+1 < len(it.node.Content); i += 2 {
		keys = append(keys, it.node.Content[i].Value)
		it.asked[it.node.Content[i].Value] = true
	}
	return keys
}

// Optional returns the field's text without the white space around it, or ""
// where it is absent.
func (it *Item) Optional(name string) string {
	it.asked[name] = true
	n := it.fields[name]
	if n == nil || n.ShortTag() == "!!null" {
		return ""
	}
	if n.Kind != yaml.ScalarNode {
		it.Report(name, "it is not a plain value", "write one value, in quotes if need be")
		return ""
	}
	return strings.TrimSpace(n.Value)
}

// Text returns the field's text as it is, white space included, or "" where it
// is absent.
func (it *Item) Text(name string) string {
	if it.Optional(name) == "" {
		return ""
	}
	return it.fields[name].Value
}

// Strings returns the field as a list of texts, none of them empty: a YAML list,
// or one text for a list of one. It returns nil where there is none.
func (it *Item) Strings(name string) []string {
	n := it.fields[name]
	if n == nil || n.Kind != yaml.SequenceNode {
		if text := it.Optional(name); text != "" {
			return []string{text}
		}
		return nil
	}
	it.asked[name] = true
	var texts []string
	for _, entry := range n.Content {
		entry = resolve(entry)
		text := strings.TrimSpace(entry.Value)
		if entry.Kind != yaml.ScalarNode || text == "" || entry.ShortTag() == "!!null" {
			it.params.Report(it.problem(entry, name, "it lists something that is not a plain value", "write texts, in quotes if need be", false))
			continue
		}
		texts = append(texts, text)
	}
	return texts
}

// Has reports whether the entry has the field, and marks it known.
func (it *Item) Has(name string) bool {
	it.asked[name] = true
	return it.fields[name] != nil
}

// Required is Optional for a field that must not be empty.
func (it *Item) Required(name, remedy string) string {
	v := it.Optional(name)
	if v == "" {
		it.Report(name, "it is missing", remedy)
	}
	return v
}

// Bool returns the field as strconv.ParseBool reads it, false where it is absent.
func (it *Item) Bool(name string) bool {
	text := it.Optional(name)
	if text == "" {
		return false
	}
	b, err := strconv.ParseBool(text)
	if err != nil {
		it.Report(name, fmt.Sprintf("%q is not a boolean", text), "write true or false")
	}
	return b
}

// Mode returns the field as a file mode in octal, or otherwise where it is absent.
func (it *Item) Mode(name string, otherwise fs.FileMode) fs.FileMode {
	text := it.Optional(name)
	if text == "" {
		return otherwise
	}
	mode, err := ParseMode(text)
	if err != nil {
		it.Report(name, err.Error(), `write it in quotes, as in "0640"`)
		return otherwise
	}
	return mode
}

// Path checks p, which came from the field of that name, as a file's path.
func (it *Item) Path(name, p string) {
	if p == "" {
		return // reported where it was read
	}
	if err := CheckPath(p); err != nil {
		remedy := "correct it"
		if name == "objectName" {
			remedy = "name the file with objectAlias"
		}
		it.Report(name, err.Error(), remedy)
	}
}

// Report adds a problem with a field of the entry.
func (it *Item) Report(name, what, remedy string) {
	n := it.fields[name]
	if n == nil {
		n = it.node
	}
	it.params.Report(it.problem(n, name, what, remedy, false))
}

// ReportLine is Report for a line, from 1, of a field's own text.
func (it *Item) ReportLine(name string, line int, what, remedy string) {
	n := it.fields[name]
	if n == nil {
		it.Report(name, what, remedy)
		return
	}
	at := *n
	if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		at.Line += line // the text begins below its indicator
	}
	it.params.Report(it.problem(&at, name, what, remedy, false))
}

func (it *Item) problem(n *yaml.Node, name, what, remedy string, unknown bool) Problem {
	entry := fmt.Sprintf("entry %d", it.index+1)
	if it.name != "" {
		entry += fmt.Sprintf(" (%.80q)", it.name)
	}
	return Problem{Key: it.key, Line: n.Line + it.offset, Item: entry, Field: name, What: what, Remedy: remedy, Unknown: unknown}
}

// resolve follows YAML aliases.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}

// field returns the value of a map's key, or nil.
func field(m *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return resolve(m.Content[i+1])
		}
	}
	return nil
}
