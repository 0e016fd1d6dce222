package local

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// entry is one key of an age file's plaintext. Its value stays as it was
// written until it is wanted: others may hold what cannot be mounted.
type entry struct {
	name  string
	line  int // of the key, from 1
	value string
	// binary marks a value in base64.
	binary bool
	// fault says why there is no value. It quotes nothing.
	fault string
}

// contents returns the value in a buffer of its own. The error quotes nothing
// of it.
func (e entry) contents() ([]byte, error) {
	switch {
	case e.fault != "":
		return nil, errors.New(e.fault)
	case e.binary:
		b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(e.value), ""))
		if err != nil {
			clear(b)
			return nil, errors.New("its !!binary value is not base64")
		}
		return b, nil
	}
	return []byte(e.value), nil
}

// parsePlaintext reads a YAML or JSON map of keys to values, in the order of
// the text. Its errors give lines and quote nothing, which is why the parsers'
// own texts are dropped.
func parsePlaintext(text []byte) ([]entry, error) {
	var entries []entry
	var err error
	// JSON has escapes and indents that YAML lacks, or the parser does.
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) && json.Valid(text) && utf8.Valid(text) {
		entries = jsonEntries(text)
	} else if entries, err = yamlEntries(text); err != nil {
		return nil, err
	}
	lines := make(map[string]int, len(entries))
	for _, e := range entries {
		if first := lines[e.name]; first > 0 {
			return nil, fmt.Errorf("lines %d and %d hold the same key", first, e.line)
		}
		lines[e.name] = e.line
	}
	return entries, nil
}

func yamlEntries(text []byte) ([]entry, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	switch err := decoder.Decode(&doc); {
	case err == io.EOF:
		return nil, nil
	case err != nil:
		return nil, notYAML(err)
	}
	switch err := decoder.Decode(new(yaml.Node)); {
	case err == nil:
		return nil, errors.New(`there is a second document after "---"`)
	case err != io.EOF:
		return nil, notYAML(err)
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil, nil // comments only
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: it is not a map of keys to values", root.Line)
	}
	entries := make([]entry, 0, len(root.Content)/2)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := resolve(root.Content[i])
		if key.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: a key is not a plain string", root.Content[i].Line)
		}
		entries = append(entries, yamlEntry(key.Value, root.Content[i].Line, resolve(root.Content[i+1])))
	}
	return entries, nil
}

func yamlEntry(name string, line int, value *yaml.Node) entry {
	e := entry{name: name, line: line}
	if value.Kind != yaml.ScalarNode {
		e.fault = "its value is a map or a list"
		return e
	}
	switch value.ShortTag() {
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!merge":
		e.value = value.Value
	case "!!binary":
		e.value, e.binary = value.Value, true
	case "!!null":
		e.fault = `it has no value (an empty one is "")`
	default: // a password that begins with "!" looks like a tag
		e.fault = `its value has a tag, or begins with "!" without quotes`
	}
	return e
}

func notYAML(err error) error {
	if line, _ := provider.SplitYAMLError(err); line > 0 {
		return fmt.Errorf("line %d: it is not YAML", line)
	}
	return errors.New("it is not YAML")
}

// resolve follows YAML aliases.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}

// jsonEntries reads a map that json.Valid accepts.
func jsonEntries(text []byte) []entry {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	next := func() json.Token { token, _ := decoder.Token(); return token }
	next() // the opening brace
	var entries []entry
	line, counted := 1, 0
	for decoder.More() {
		e := entry{}
		e.name, _ = next().(string)
		at := int(decoder.InputOffset())
		line += bytes.Count(text[counted:at], []byte("\n"))
		counted, e.line = at, line
		switch value := next().(type) {
		case string:
			if e.value = value; strings.ContainsRune(value, utf8.RuneError) {
				e.fault = `its value has an escape that is not Unicode text`
			}
		case json.Number:
			e.value = value.String()
		case bool:
			e.value = fmt.Sprint(value)
		case nil:
			e.fault = `it has no value (an empty one is "")`
		case json.Delim:
			e.fault = "its value is a map or a list"
			for depth := 1; depth > 0; {
				switch next() {
				case json.Delim('{'), json.Delim('['):
					depth++
				case json.Delim('}'), json.Delim(']'):
					depth--
				}
			}
		}
		entries = append(entries, e)
	}
	return entries
}
