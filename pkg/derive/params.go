package derive

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// entry is one derived file as a class describes it. It is made of a template, or
// of other files; and of those it is a store or PEM text, or what the options
// leave of one of them.
type entry struct {
	path     string
	mode     fs.FileMode // provider.UnsetMode where the class gives none
	optional bool
	replace  bool
	template *compiled
	from     []string
	options  provider.Options
	bundle   *bundle
}

// name is what errors call it.
func (e *entry) name() string { return fmt.Sprintf("derived file %q", e.path) }

// sources are the paths of the files that it is made of, as far as they can be
// told before it is made.
func (e *entry) sources() []string {
	sources := slices.Clone(e.from)
	if e.template != nil {
		sources = append(sources, e.template.files...)
	}
	if e.bundle != nil {
		sources = append(sources, e.bundle.passwordFrom, e.bundle.sourcePasswordFrom)
	}
	return sources
}

// decode reads the parameter and reports to p what is wrong with it.
func decode(p *provider.Params) []*entry {
	items := p.DerivedFiles()
	if len(items) > maxEntries {
		p.Report(provider.Problem{Key: provider.DerivedFilesKey, What: fmt.Sprintf("it lists %d files, more than %d", len(items), maxEntries), Remedy: "derive fewer"})
		for _, it := range items[maxEntries:] {
			it.Keys() // says nothing more about them
		}
		items = items[:maxEntries]
	}
	var entries []*entry
	for _, it := range items {
		entries = append(entries, decodeEntry(it))
	}
	reportClashes(items, entries)
	return entries
}

func decodeEntry(it *provider.Item) *entry {
	e := &entry{path: it.Required("path", "name the file in the volume")}
	it.SetName(e.path)
	it.Path("path", e.path)
	e.mode = it.Mode("filePermission", provider.UnsetMode)
	e.options = it.Options()
	e.optional = e.options.Optional
	e.replace = it.Bool("replace")
	e.from = it.Strings("from")
	for _, path := range e.from {
		it.Path("from", path)
	}
	if n := countRepeated(e.from); n > 0 {
		it.Report("from", "it names a file twice", "remove one of them")
	}
	e.bundle = decodeBundle(it, e.from)

	text := it.Text("template")
	switch {
	case text == "" && len(e.from) == 0 && it.Has("template"):
		it.Report("template", "it is empty", "write what the file holds")
	case text == "" && len(e.from) == 0:
		it.Report("from", "it is missing", `name the file that this one is made of, or write a "template"`)
	case text != "":
		e.decodeTemplate(it, text)
	case len(e.from) > 1 && e.bundle == nil:
		it.Report("from", "it names several files", `name one, or give a "format"; a "template" joins files in other ways`)
	}
	if choosing := e.options != (provider.Options{Optional: e.optional}); choosing && len(e.from) > 1 {
		it.Report("from", "it names several files, and what is to be chosen or decoded is for one", "name one")
	}
	return e
}

// notForTemplates are the fields that say what is done with the files of "from".
var notForTemplates = []string{"from", provider.EncodingField, provider.ExtractJSONField, provider.ExtractYAMLField}

func (e *entry) decodeTemplate(it *provider.Item, text string) {
	for _, field := range append(notForTemplates, bundleFields...) {
		if it.Has(field) {
			it.Report(field, `it has no part in a "template"`, "remove it, or the template")
		}
	}
	compiled, line, err := compile(text)
	if err != nil {
		it.ReportLine("template", line, err.Error(), "correct the template")
		return
	}
	e.template = compiled
}

func countRepeated(texts []string) int {
	return len(texts) - len(slices.Compact(slices.Sorted(slices.Values(texts))))
}

// reportClashes reports the entries that cannot stand beside an earlier one,
// unless something in between replaces that.
func reportClashes(items []*provider.Item, entries []*entry) {
	mounted := map[int]bool{}
	for i, e := range entries {
		if provider.CheckPath(e.path) != nil {
			continue
		}
		if e.replace {
			for j := range mounted {
				if slices.Contains(e.sources(), entries[j].path) {
					delete(mounted, j)
				}
			}
		}
		for j := range i {
			if mounted[j] && excludes(entries[j].path, e.path) != "" {
				items[i].Report("path", fmt.Sprintf("entry %d (%q) has a file path that excludes it", j+1, entries[j].path), "give one of them another path")
				break
			}
		}
		mounted[i] = true
	}
}

// make returns the contents of the entry's file, and of which files it made them.
func (e *entry) make(s *set) (contents []byte, used []*member, err error) {
	if e.template != nil {
		return e.template.execute(s)
	}
	for _, path := range e.from {
		m, err := s.get(path)
		if err != nil {
			return nil, nil, err
		}
		used = append(used, m)
	}
	if e.bundle != nil {
		return e.bundle.make(s, used, e.options)
	}
	raw := used[0].Contents.Reveal()
	contents, err = e.options.Contents(raw)
	if err != nil {
		return nil, nil, of(used[0], err)
	}
	if len(contents) > 0 && &contents[0] == &raw[0] {
		contents = slices.Clone(contents)
	}
	return contents, used, nil
}

// of says of which file an error speaks.
func of(m *member, err error) error {
	known, ok := err.(*provider.Error)
	if !ok {
		return fmt.Errorf("file %q: %w", m.Path, err)
	}
	named := *known
	named.Op = fmt.Sprintf("file %q", m.Path)
	if known.Op != "" {
		named.Op += ": " + known.Op
	}
	return &named
}

// bundle is how a file is made of certificates and keys.
type bundle struct {
	format string
	parts  []string
	alias  string
	legacy bool
	// What opens the store that is made, and the sources: a text of the class, or
	// a file.
	password, passwordFrom             string
	sourcePassword, sourcePasswordFrom string
}

// The formats of a bundle.
const (
	formatPEM    = "pem"
	formatPKCS12 = "pkcs12"
	formatJKS    = "jks"
)

// The parts of a bundle.
const (
	partKey           = "key"
	partCertificate   = "certificate"
	partChain         = "chain"
	partIntermediates = "intermediates"
	partCA            = "ca"
	partBundle        = "bundle"
)

var (
	formats = []string{formatPEM, formatPKCS12, formatJKS}
	parts   = []string{partKey, partCertificate, partChain, partIntermediates, partCA, partBundle}
	// storeFields are those of a key store, bundleFields those of any bundle.
	storeFields  = []string{"alias", "password", "passwordFrom", "legacy"}
	bundleFields = append([]string{"format", "parts", "sourcePassword", "sourcePasswordFrom"}, storeFields...)
)

// isStore tells whether the bundle is a key store or a trust store.
func (b *bundle) isStore() bool { return b.format != formatPEM }

func (b *bundle) has(part string) bool { return slices.Contains(b.parts, part) }

// decodeBundle returns nil where the entry gives no format.
func decodeBundle(it *provider.Item, from []string) *bundle {
	b := &bundle{
		format: strings.ToLower(it.Optional("format")), parts: it.Strings("parts"), alias: it.Optional("alias"), legacy: it.Bool("legacy"),
		password: it.Text("password"), passwordFrom: it.Optional("passwordFrom"),
		sourcePassword: it.Text("sourcePassword"), sourcePasswordFrom: it.Optional("sourcePasswordFrom"),
	}
	if b.format == "" {
		for _, field := range bundleFields {
			if it.Has(field) {
				it.Report(field, `it has no part in a file without a "format"`, `give a format (`+strings.Join(formats, ", ")+`), or remove it`)
			}
		}
		return nil
	}
	if !slices.Contains(formats, b.format) {
		it.Report("format", fmt.Sprintf("%q is none of %s", b.format, strings.Join(formats, ", ")), "correct it")
		return b
	}
	for _, field := range []string{"passwordFrom", "sourcePasswordFrom"} {
		it.Path(field, it.Optional(field))
	}
	if b.password != "" && b.passwordFrom != "" {
		it.Report("passwordFrom", "it excludes password", "remove one of them")
	}
	if b.sourcePassword != "" && b.sourcePasswordFrom != "" {
		it.Report("sourcePasswordFrom", "it excludes sourcePassword", "remove one of them")
	}
	b.decodeParts(it)
	if b.isStore() {
		b.decodeStore(it)
		return b
	}
	for _, field := range storeFields {
		if it.Has(field) {
			it.Report(field, "PEM text has none", "remove it, or make a "+formatPKCS12+" or "+formatJKS)
		}
	}
	return b
}

func (b *bundle) decodeParts(it *provider.Item) {
	if b.parts == nil {
		b.parts = []string{partKey, partChain}
	}
	for i, part := range b.parts {
		if !slices.Contains(parts, part) {
			it.Report("parts", fmt.Sprintf("%q is none of %s", part, strings.Join(parts, ", ")), "correct it")
		}
		if slices.Contains(b.parts[:i], part) {
			it.Report("parts", fmt.Sprintf("it names %q twice", part), "remove one of them")
		}
	}
}

func (b *bundle) decodeStore(it *provider.Item) {
	if b.has(partKey) && (b.has(partBundle) || !b.has(partCertificate) && !b.has(partChain)) {
		it.Report("parts", "a key in a store comes with its certificate or its chain, and no others", "write [key, chain], or leave the key out for a trust store")
	}
	if b.password == "" && b.passwordFrom == "" {
		it.Report("password", "it is missing", `write what opens the store, such as "changeit", or name a file that holds it with "passwordFrom"`)
	}
	if err := checkStorePassword(b.format, b.password); err != nil {
		it.Report("password", err.Error(), "choose another")
	}
	if !printable(b.alias) || len(b.alias) > 100 {
		it.Report("alias", "it has characters that are not plain ASCII, or more than 100 of them", "choose another")
	}
	if b.format == formatPKCS12 && b.has(partKey) && it.Has("alias") {
		it.Report("alias", "the key of a "+formatPKCS12+" has none: Java calls it 1", "remove it, or make a "+formatJKS)
	}
	if b.format == formatJKS && it.Has("legacy") {
		it.Report("legacy", "a "+formatJKS+" has one form only", "remove it")
	}
	if b.alias == "" {
		b.alias = "1" // as Java calls a key without a name
		if !b.has(partKey) {
			b.alias = "ca"
		}
	}
}

// checkStorePassword tells why a store cannot have a password. Java's old format
// takes the bytes of a password for characters.
func checkStorePassword(format, password string) error {
	switch {
	case format == formatJKS && !printable(password):
		return fmt.Errorf("it has characters that are not plain ASCII, which a %s cannot have", formatJKS)
	case !utf8.ValidString(password) || strings.ContainsRune(password, 0):
		return fmt.Errorf("it is not text")
	}
	return nil
}

func printable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
}
