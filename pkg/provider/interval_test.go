package provider

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestOnlyLeavesTheObjectsThatAreDue(t *testing.T) {
	const list = "- {objectName: a, rotationInterval: 30s}\n- objectName: b\n- {objectName: c, rotationInterval: 1h, text: |\n    x}\n"
	const literal = "- objectName: a\n  rotationInterval: 30s\n  text: |2\n      x\n\n- objectName: b\n"
	half := Due{30 * time.Second}
	for name, c := range map[string]struct {
		parameters map[string]string
		due        Due
		want       string // the names of the objects, "" where there is no part
	}{
		"those of an interval":     {map[string]string{"objects": literal}, half, "a"},
		"those of two":             {map[string]string{"objects": "- {objectName: a, rotationInterval: 30s}\n- objectName: b\n- {objectName: c, rotationInterval: 1h}"}, Due{0, time.Hour}, "b c"},
		"of the oldest form":       {map[string]string{"objects": "array:\n- |\n  objectName: a\n  rotationInterval: 30s\n- |\n  objectName: b"}, half, "a"},
		"of Google":                {map[string]string{"secrets": "- {objectName: a, rotationInterval: 30s}\n- objectName: b"}, half, "a"},
		"never":                    {map[string]string{"objects": "- {objectName: a, rotationInterval: never}\n- objectName: b"}, Due{0}, "b"},
		"all":                      {map[string]string{"objects": literal}, Due{0, 30 * time.Second}, ""},
		"none":                     {map[string]string{"objects": literal}, Due{time.Hour}, ""},
		"not said":                 {map[string]string{"objects": literal}, nil, ""},
		"no objects":               {map[string]string{"region": "x"}, half, ""},
		"not YAML":                 {map[string]string{"objects": list}, half, ""},
		"an interval that is none": {map[string]string{"objects": "- {objectName: a, rotationInterval: often}\n- objectName: b"}, Due{0}, ""},
		"an alias":                 {map[string]string{"objects": "- {objectName: a, rotationInterval: 30s, text: &t x}\n- {objectName: *t}"}, half, "a"},
		"with an alias":            {map[string]string{"objects": "- {objectName: &t a, rotationInterval: 30s, text: *t}\n- objectName: b"}, half, ""},
		"an alias of what is not":  {map[string]string{"objects": "- {objectName: &t b}\n- {objectName: *t, rotationInterval: 30s}"}, half, ""},
	} {
		c.parameters["region"], c.parameters[DerivedFilesKey] = "x", "- path: all"
		before := fmt.Sprint(c.parameters)
		part, ok := Only(c.parameters, c.due)
		var names []string
		if ok {
			if part["region"] != "x" || part[DerivedFilesKey] != "" {
				t.Errorf("%s: got %v", name, part)
			}
			for _, key := range listKeys {
				for _, it := range NewParams(part).Objects(key) {
					names = append(names, it.Required("objectName", ""))
					if text := it.Text("text"); strings.Contains(c.parameters[key], "|2") && text != "  x\n" {
						t.Errorf("%s: the text is %q", name, text)
					}
				}
			}
		}
		if got := strings.Join(names, " "); got != c.want || ok != (c.want != "") {
			t.Errorf("%s: got %q, %v", name, got, ok)
		}
		if after := fmt.Sprint(c.parameters); after != before {
			t.Errorf("%s: the class is %s after it", name, after)
		}
	}
}

// What is left of a class is, field by field, what the class says.
func FuzzOnly(f *testing.F) {
	f.Add("- objectName: a\n  rotationInterval: 30s\n- objectName: b\n")
	f.Add("array:\n  - |\n    objectName: a\n    rotationInterval: 30s\n  - |\n    objectName: b\n")
	f.Add("- {rotationInterval: 30s, objectName: a, <<: &m {b: c}}\n- {objectName: 0x1_0, d: *m}\n")
	f.Add("- {rotationInterval: 30s, a: !!binary eA==, b: '', c: ~, d: 2001-01-01, e: [x, {y: z}]}\n- objectName: b\n")
	f.Add("- 0:\n  rotationInterval: 30s\n- 0:")
	f.Add("- ? rotationInterval\n  : 30s\n  \"a\": |2\n      x\n\n  b: >-\n    y\n    z # no\n- b: c\n")
	f.Fuzz(func(t *testing.T, text string) {
		due := Due{30 * time.Second}
		part, ok := Only(map[string]string{"objects": text}, due)
		if !ok {
			return
		}
		all, left := NewParams(map[string]string{"objects": text}), NewParams(part)
		var want []*Item
		for _, it := range all.Objects("objects") {
			if slices.Contains(due, it.interval()) {
				want = append(want, it)
			}
		}
		got := left.Objects("objects")
		if len(got) != len(want) || left.Err() != nil {
			t.Fatalf("%d of %d objects are left of %q: %v", len(got), len(want), part, left.Err())
		}
		for i, it := range want {
			a, b := it.Keys(), got[i].Keys()
			if i := slices.Index(a, ""); i >= 0 && b[i] == "null" {
				a[i] = "null" // so is a key that is not there
			}
			if fmt.Sprintf("%q", a) != fmt.Sprintf("%q", b) {
				t.Fatalf("the fields are %q, and were %q", b, a)
			}
			for _, name := range a {
				a, b := fmt.Sprintf("%#v %#v", it.Value(name), it.Strings(name)), fmt.Sprintf("%#v %#v", got[i].Value(name), got[i].Strings(name))
				if a != b {
					t.Errorf("%q is %s, and was %s, in %q", name, b, a, part["objects"])
				}
			}
		}
	})
}
