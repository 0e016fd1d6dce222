package charts_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	yamlv3 "go.yaml.in/yaml/v3"
)

// schema is as much of a JSON schema as these tests look at.
type schema struct {
	Description          string
	Comment              string `json:"$comment"`
	Properties           map[string]*schema
	AdditionalProperties any
}

func (s *schema) ignored() bool { return s.Comment == "ignored" }

func readSchema(t *testing.T) *schema {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(chart, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s schema
	if err := json.Unmarshal(content, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// ignored returns the paths of values that do nothing.
func ignored(s *schema, prefix string) (paths []string) {
	for _, key := range slices.Sorted(maps.Keys(s.Properties)) {
		if p := s.Properties[key]; p.ignored() {
			paths = append(paths, prefix+key)
		} else {
			paths = append(paths, ignored(p, prefix+key+".")...)
		}
	}
	return paths
}

// value is a value that the chart has a default for.
type value struct {
	path, fallback string
	schema         *schema
}

// values returns the values of values.yaml in its order, down to where the
// schema leaves an object's keys to its user.
func values(t *testing.T, s *schema, node *yamlv3.Node, prefix string) (all []value) {
	t.Helper()
	for i := 0; i < len(node.Content); i += 2 {
		key, content := node.Content[i].Value, node.Content[i+1]
		below := s.Properties[key]
		if below == nil {
			t.Errorf("%s%s is not in the schema", prefix, key)
			continue
		}
		if len(below.Properties) > 0 {
			all = append(all, values(t, below, content, prefix+key+".")...)
			continue
		}
		var fallback any
		if err := content.Decode(&fallback); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(fallback)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, value{prefix + key, string(text), below})
	}
	return all
}

func defaults(t *testing.T) []value {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var document yamlv3.Node
	if err := yamlv3.Unmarshal(content, &document); err != nil {
		t.Fatal(err)
	}
	return values(t, readSchema(t), document.Content[0], "")
}

// checkSchema tells of keys that have no description, of objects that take any
// key, and of values that the schema knows and values.yaml does not have.
func checkSchema(t *testing.T, s *schema, prefix string, known map[string]bool) {
	t.Helper()
	for key, below := range s.Properties {
		path := prefix + key
		if below.Description == "" {
			t.Errorf("%s has no description in the schema", path)
		}
		if len(below.Properties) > 0 {
			if below.AdditionalProperties != false {
				t.Errorf("%s takes keys that it does not know", path)
			}
			checkSchema(t, below, path+".", known)
			continue
		}
		switch path {
		case "global", "enabled", "install": // for the charts around this one
			continue
		}
		if known[path] == below.ignored() {
			t.Errorf("%s: in values.yaml is what does something, and no more", path)
		}
	}
}

func TestSchemaAndValuesAgree(t *testing.T) {
	known := map[string]bool{}
	for _, v := range defaults(t) {
		known[v.path] = true
	}
	s := readSchema(t)
	if s.AdditionalProperties != false {
		t.Error("the schema takes keys that it does not know")
	}
	checkSchema(t, s, "", known)
}

// The README's tables are written from values.yaml and the schema.
func TestReadmeHasEveryValue(t *testing.T) {
	var table, nothing strings.Builder
	table.WriteString("| value | default | meaning |\n| --- | --- | --- |\n")
	for _, v := range defaults(t) {
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", v.path, v.fallback, strings.ReplaceAll(v.schema.Description, "|", `\|`))
	}
	s := readSchema(t)
	for _, path := range ignored(s, "") {
		below := s
		for key := range strings.SplitSeq(path, ".") {
			below = below.Properties[key]
		}
		fmt.Fprintf(&nothing, "- `%s`: %s\n", path, strings.TrimPrefix(below.Description, "Does nothing: "))
	}
	name := filepath.Join(chart, "README.md")
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	want := between(t, between(t, string(content), "values", table.String()), "ignored", nothing.String())
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(content) != want {
		t.Errorf("%s does not have the values as values.yaml and the schema have them; go test ./charts -update writes them", name)
	}
}

// between puts text between the marks of that name.
func between(t *testing.T, content, mark, text string) string {
	t.Helper()
	start, end := "<!-- "+mark+" -->\n", "<!-- end of "+mark+" -->"
	before, rest, ok := strings.Cut(content, start)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("the README has no marks %s%s", start, end)
	}
	return before + start + text + end + after
}
