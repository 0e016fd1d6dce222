package provider

import (
	"strings"
	"testing"
)

func TestProblemsNameKeyLineEntryAndRemedy(t *testing.T) {
	for name, tc := range map[string]struct {
		objects string
		want    string
	}{
		"a list entry without a name": {"- objectAlias: a\n- objectName: ok\n", `parameter "objects", line 1, entry 1, "objectName": it is missing; name it`},
		"a bad mode":                  {"- objectName: ok\n- objectName: db\n  filePermission: 9\n", `parameter "objects", line 3, entry 2 ("db"), "filePermission": "9" is not a file mode`},
		"the oldest grammar":          {"array:\n  - |\n    objectName: a\n  - |\n    objectName: db\n    filePermission: '1777'\n", `parameter "objects", line 6, entry 2 ("db"), "filePermission"`},
		"broken YAML":                 {"- objectName: a\n  b: [\n", `parameter "objects", line 2: it is not YAML`},
		"broken YAML in a string":     {"array:\n  - |\n    objectName: a\n  - |\n    objectName: [\n", `parameter "objects", line `},
		"a string":                    {"hello", `it is not a list`},
		"a number in the list":        {"- 7", `entry 1: it is not a map of fields`},
		"the same field twice":        {"- objectName: a\n  objectName: b\n", `line 2`},
		"a list as a name":            {"- objectName: [a]\n", `it is not a plain value`},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewParams(map[string]string{"objects": tc.objects})
			for _, it := range p.Objects("objects") {
				it.SetName(it.Required("objectName", "name it"))
				it.Optional("objectAlias")
				it.Mode("filePermission", DefaultMode)
			}
			err := p.Err()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v\nwant it to contain %q", err, tc.want)
			}
			if KindOf(err) != Invalid {
				t.Errorf("kind is %v, want invalid", KindOf(err))
			}
		})
	}
}

func TestUnknownKeysAreProblemsButNoErrors(t *testing.T) {
	p := NewParams(map[string]string{"path": "/x", "pth": "/y", "objects": "- objectName: a\n  objectNmae: b\n"})
	p.Required("path", "")
	for _, it := range p.Objects("objects") {
		it.Required("objectName", "")
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, problem := range p.Problems() {
		if !problem.Unknown {
			t.Errorf("%v is not marked unknown", problem)
		}
		got = append(got, problem.Key+"/"+problem.Field)
	}
	if want := "objects/objectNmae pth/"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestFieldsAreReadAsTextsAndLists(t *testing.T) {
	p := NewParams(map[string]string{DerivedFilesKey: "- from: a\n  parts: [key, ' chain ']\n  text: |2\n      x\n\n  empty:\n- from: []\n  parts: [a, [b], '']\n  to: {a: b}\n"})
	items := p.DerivedFiles()
	first, second := items[0], items[1]
	if got := strings.Join(append(first.Strings("from"), first.Strings("parts")...), "|"); got != "a|key|chain" {
		t.Errorf("got %s", got)
	}
	if got := first.Text("text"); got != "  x\n" || first.Optional("text") != "x" {
		t.Errorf("got %q", got)
	}
	if !first.Has("empty") || first.Has("none") || first.Text("empty") != "" || first.Strings("none") != nil {
		t.Error("an empty field and an absent one are not told apart")
	}
	if second.Strings("from") != nil {
		t.Error("an empty list has something in it")
	}
	if got := strings.Join(second.Strings("parts"), "|"); got != "a" {
		t.Errorf("got %s", got)
	}
	first.ReportLine("text", 2, "wrong", "")
	first.ReportLine("from", 2, "wrong", "")
	first.ReportLine("none", 2, "wrong", "")
	var got []string
	for _, problem := range p.Problems() {
		got = append(got, strings.TrimPrefix(problem.Error(), `parameter "derivedFiles", `))
	}
	want := []string{
		`line 1, entry 1, "from": wrong`,
		`line 1, entry 1, "none": wrong`,
		`line 5, entry 1, "text": wrong`,
		`line 8, entry 2, "parts": it lists something that is not a plain value; write texts, in quotes if need be`,
		`line 8, entry 2, "parts": it lists something that is not a plain value; write texts, in quotes if need be`,
		`line 9, entry 2, "to": a derived file has no such field; correct its spelling, or remove it`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func FuzzObjects(f *testing.F) {
	f.Add("- objectName: a\n  filePermission: 0644\n")
	f.Add("array:\n  - |\n    objectName: a\n")
	f.Add("a: &x [*x]")
	f.Add("- &a {objectName: b}\n- *a")
	f.Fuzz(func(t *testing.T, text string) {
		p := NewParams(map[string]string{"objects": text})
		for _, it := range p.Objects("objects") {
			it.SetName(it.Required("objectName", ""))
			it.Path("objectName", it.Optional("objectName"))
			it.Mode("filePermission", DefaultMode)
			it.Options()
			it.Strings("objectName")
			it.Text("objectName")
			it.ReportLine("objectName", 3, "wrong", "")
			it.Keys()
		}
		lines := strings.Count(text, "\n") + 1
		for _, problem := range p.Problems() {
			if problem.Line < 0 || problem.Line > lines {
				t.Errorf("line %d of a text with %d: %v", problem.Line, lines, problem)
			}
		}
	})
}
