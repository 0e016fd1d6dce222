package provider

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// FindField is the field of an object that stands in place of its name and asks
// for all objects that there are of some kind.
const FindField = "find"

const (
	// defaultFound is how many objects a Find may bring where it does not say.
	defaultFound = 100
	// maxFound is what it may say.
	maxFound = 1000
	// maxListed bounds what is looked through for one Find.
	maxListed = 100_000
)

// Find is what an entry of a class asks for in place of one name: the objects
// whose names begin with Prefix, match Pattern as a whole, and have all Tags
// (which some stores call labels). At least one of them is set.
type Find struct {
	Prefix  string
	Pattern *regexp.Regexp // nil for any
	Tags    map[string]string
	// Limit is how many there may be: more are an error, since a part of them would
	// look like all.
	Limit int
	// TrimPrefix has files named without the prefix.
	TrimPrefix bool
}

// Find returns what the entry asks to find, nil where it names an object. It
// reports what is wrong with the field.
func (it *Item) Find() *Find {
	if !it.Has(FindField) {
		return nil
	}
	f := &Find{Limit: defaultFound}
	n := it.fields[FindField]
	if n.Kind != yaml.MappingNode {
		it.Report(FindField, "it is not a map", "write prefix, pattern or tags below it")
		return f
	}
	report := func(n *yaml.Node, what, remedy string) {
		it.params.Report(it.problem(n, FindField, what, remedy, false))
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i].Value, resolve(n.Content[i+1])
		if value.Kind != yaml.ScalarNode && name != "tags" {
			report(value, fmt.Sprintf("%q is not a plain value", name), "write one value, in quotes if need be")
			continue
		}
		var err error
		switch name {
		case "prefix":
			f.Prefix = value.Value
		case "pattern":
			if _, err = regexp.Compile(value.Value); err == nil {
				f.Pattern, err = regexp.Compile(`\A(?:` + value.Value + `)\z`)
			}
			if err != nil {
				report(value, fmt.Sprintf("%.80q is not a regular expression", value.Value), "write it as https://github.com/google/re2/wiki/Syntax has it; it has to match the whole name")
			}
		case "tags":
			if value.Decode(&f.Tags) != nil {
				report(value, `"tags" is not a map of texts`, "write them as {name: value}")
			}
		case "limit":
			if f.Limit, err = strconv.Atoi(value.Value); err != nil || f.Limit < 1 || f.Limit > maxFound {
				report(value, fmt.Sprintf("the limit %.20q is not a number from 1 to %d", value.Value, maxFound), "correct it")
			}
		case "trimPrefix":
			if f.TrimPrefix, err = strconv.ParseBool(value.Value); err != nil {
				report(value, fmt.Sprintf(`"trimPrefix" is %.20q, not a boolean`, value.Value), "write true or false")
			}
		default:
			it.params.Report(it.problem(n.Content[i], FindField, fmt.Sprintf("it has no %q", name), "it may have prefix, pattern, tags, limit and trimPrefix", true))
		}
	}
	if f.Prefix == "" && f.Pattern == nil && len(f.Tags) == 0 {
		report(n, "it would take every object that there is", "give a prefix, a pattern or tags")
	}
	it.SetName(f.String())
	return f
}

// String returns what is asked for as an error calls it.
func (f *Find) String() string {
	var parts []string
	if f.Prefix != "" {
		parts = append(parts, fmt.Sprintf("prefix %q", f.Prefix))
	}
	if f.Pattern != nil {
		parts = append(parts, fmt.Sprintf("pattern %q", strings.TrimSuffix(strings.TrimPrefix(f.Pattern.String(), `\A(?:`), `)\z`)))
	}
	for _, name := range slices.Sorted(maps.Keys(f.Tags)) {
		parts = append(parts, fmt.Sprintf("tag %s=%q", name, f.Tags[name]))
	}
	return "find " + strings.Join(parts, ", ")
}

// Match reports whether an object is one of those.
func (f *Find) Match(name string, tags map[string]string) bool {
	if !strings.HasPrefix(name, f.Prefix) || f.Pattern != nil && !f.Pattern.MatchString(name) {
		return false
	}
	for tag, value := range f.Tags {
		if got, ok := tags[tag]; !ok || got != value {
			return false
		}
	}
	return true
}

// FileName returns the name of an object's file, or nothing where the object
// has no name but the prefix.
func (f *Find) FileName(name string) string {
	if f.TrimPrefix {
		name = strings.TrimPrefix(name, f.Prefix)
	}
	return strings.Trim(name, "/")
}

// Path returns the path of an object's file below a folder, which may be empty.
// The error is of kind Invalid, for a name that no file can have.
func (f *Find) Path(folder, name string) (string, error) {
	path := f.FileName(name)
	if folder != "" {
		path = strings.TrimSuffix(folder, "/") + "/" + path
	}
	if err := CheckPath(path); err != nil {
		return "", &Error{Kind: Invalid, Object: f.String(), Err: fmt.Errorf("the object %.200q cannot be a file: %w", name, err), Remedy: "leave it out by a narrower pattern, or name it by itself"}
	}
	return path, nil
}

// Gather returns the names of the objects that list offers and that match, each
// once, in order. list returns the error of offer, which ends it when there are
// too many. Errors are of kind TooLarge then, and NotFound where there is none.
func (f *Find) Gather(list func(offer func(name string, tags map[string]string) error) error) ([]string, error) {
	found, listed := map[string]bool{}, 0
	err := list(func(name string, tags map[string]string) error {
		if listed++; listed > maxListed {
			return &Error{Kind: TooLarge, Object: f.String(), Err: fmt.Errorf("there are more than %d objects to look through", maxListed), Remedy: "give a longer prefix"}
		}
		if f.Match(name, tags) {
			found[name] = true
		}
		if len(found) > f.Limit {
			return &Error{Kind: TooLarge, Object: f.String(), Err: fmt.Errorf("there are more than %d such objects", f.Limit), Remedy: fmt.Sprintf("ask for fewer, or raise the limit, up to %d", maxFound)}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, &Error{Kind: NotFound, Object: f.String(), Err: errors.New("there is no such object that this identity may list"), Remedy: "correct it, or mark it optional"}
	}
	return slices.Sorted(maps.Keys(found)), nil
}
