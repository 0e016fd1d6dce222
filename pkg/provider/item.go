package provider

import (
	"fmt"
	"io/fs"

	"go.yaml.in/yaml/v3"
)

// Value returns the field as the YAML says it: a string, number, boolean, list,
// or map with string keys; nil where it is absent or cannot be read.
func (it *Item) Value(name string) any {
	it.asked[name] = true
	n := it.fields[name]
	if n == nil {
		return nil
	}
	var value any
	if err := n.Decode(&value); err != nil {
		_, what := SplitYAMLError(err)
		it.Report(name, "it cannot be read: "+what, "correct it")
		return nil
	}
	if !onlyStringKeys(value) {
		it.Report(name, "it has a key that is no string", "put the key in quotes")
		return nil
	}
	return value
}

func onlyStringKeys(value any) bool {
	switch v := value.(type) {
	case map[any]any:
		return false
	case map[string]any:
		for _, inner := range v {
			if !onlyStringKeys(inner) {
				return false
			}
		}
	case []any:
		for _, inner := range v {
			if !onlyStringKeys(inner) {
				return false
			}
		}
	}
	return true
}

// YAMLMode returns the field as a file mode, for grammars in which that is a YAML
// integer: 0640 and 0o640 are octal, 416 is decimal. In quotes it is octal.
// UnsetMode stands for an absent one.
func (it *Item) YAMLMode(name string) fs.FileMode {
	n := it.fields[name]
	if n == nil || n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" {
		return it.Mode(name, UnsetMode)
	}
	it.asked[name] = true
	var mode int64
	if err := n.Decode(&mode); err != nil || mode < 0 || mode > 0o777 {
		it.Report(name, fmt.Sprintf("%.20q is not a file mode: it must be from 0000 to 0777", n.Value), `write it in octal, as in 0640`)
		return UnsetMode
	}
	if mode == 0 {
		return UnsetMode
	}
	return fs.FileMode(mode)
}
