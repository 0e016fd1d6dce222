package derive

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const canary = "canary-value"

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// files returns those that a provider brought, sorted by path.
func files(contents map[string]string) []provider.File {
	var all []provider.File
	for _, path := range slices.Sorted(maps.Keys(contents)) {
		all = append(all, provider.File{Path: path, Mode: 0o644, Contents: secret.FromString(contents[path])})
	}
	return all
}

func apply(entries string, brought map[string]string) ([]provider.File, error) {
	return Apply(map[string]string{provider.DerivedFilesKey: entries, "path": "/x"}, files(brought), 0o640)
}

// shown writes files as `PATH MODE "CONTENTS"`, one a line.
func shown(files []provider.File) string {
	var b strings.Builder
	for _, f := range files {
		fmt.Fprintf(&b, "%s %04o %q\n", f.Path, f.Mode, f.Contents.Reveal())
	}
	return b.String()
}

// derived returns the contents of the last file, which is the last that was
// derived.
func derived(t *testing.T, entries string, brought map[string]string) string {
	t.Helper()
	got, err := apply(entries, brought)
	if err != nil {
		t.Fatalf("%v\nof\n%s", err, entries)
	}
	return string(got[len(got)-1].Contents.Reveal())
}

func wantError(t *testing.T, err error, kind provider.Kind, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if got := provider.KindOf(err); got != kind {
		t.Errorf("the kind is %v, not %v: %v", got, kind, err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("got  %v\nwant it to contain %q", err, text)
		}
	}
	wantNoCanary(t, err)
}

func wantNoCanary(t *testing.T, err error) {
	t.Helper()
	for ; err != nil; err = errors.Unwrap(err) {
		for _, form := range []string{"%v", "%+v", "%#v"} {
			if text := fmt.Sprintf(form, err); strings.Contains(text, "canary") || strings.Contains(text, "Y2FuYXJ5") {
				t.Errorf("an error shows a value: %s", text)
			}
		}
	}
}

func TestDerivedFilesAreMountedBesideTheirSources(t *testing.T) {
	brought := map[string]string{"db": `{"user": "app", "password": "p", "nested": {"key": "aGk="}}`, "host": "h"}
	for name, tc := range map[string]struct{ entries, want string }{
		"a key of a JSON file": {
			"- {path: password, from: db, extractJSONKey: password, filePermission: '0400'}",
			`db 0644 "{\"user\": \"app\", \"password\": \"p\", \"nested\": {\"key\": \"aGk=\"}}"` + "\n" + `host 0644 "h"` + "\n" + `password 0400 "p"` + "\n"},
		"in place of its source": {
			"- {path: db/password, from: [db], extractJSONKey: password, replace: true}",
			`host 0644 "h"` + "\n" + `db/password 0640 "p"` + "\n"},
		"under the name of its source": {
			"- {path: db, from: db, extractYAMLKey: /nested/key, encoding: base64, replace: true}",
			`host 0644 "h"` + "\n" + `db 0640 "hi"` + "\n"},
		"several of one source, in place of it": {
			"- {path: u, from: db, extractJSONKey: user, replace: true}\n- {path: p, from: db, extractJSONKey: password, replace: true}",
			`host 0644 "h"` + "\n" + `u 0640 "app"` + "\n" + `p 0640 "p"` + "\n"},
		"by one of several that are made of it": {
			"- {path: u, from: db, extractJSONKey: user, replace: true}\n- {path: p, from: db, extractJSONKey: password}",
			`host 0644 "h"` + "\n" + `u 0640 "app"` + "\n" + `p 0640 "p"` + "\n"},
		"of files made before, which are not mounted": {
			"- {path: a, from: db, extractJSONKey: nested, replace: true}\n- {path: b, from: a, extractJSONKey: key, replace: true}\n- {path: c, from: b, encoding: base64, replace: true}",
			`host 0644 "h"` + "\n" + `c 0640 "hi"` + "\n"},
		"step by step under one name": {
			"- {path: db, from: db, extractJSONKey: nested, replace: true}\n- {path: db, from: db, extractJSONKey: key, replace: true}\n- {path: db, from: db, encoding: base64, replace: true}",
			`host 0644 "h"` + "\n" + `db 0640 "hi"` + "\n"},
		"a template in place of what it names": {
			"- path: db\n  replace: true\n  template: '{{ file \"host\" }}{{ has \"db\" }}{{ has \"none\" }}'\n",
			""},
		"a copy": {
			"- {path: copy, from: host}",
			`db 0644 "{\"user\": \"app\", \"password\": \"p\", \"nested\": {\"key\": \"aGk=\"}}"` + "\n" + `host 0644 "h"` + "\n" + `copy 0640 "h"` + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := apply(tc.entries, brought)
			if tc.want == "" {
				// What a template only asks for by has is not replaced.
				wantError(t, err, provider.Invalid, `derived file "db": the volume has a file of that path already; give it another path, or write "replace: true"`)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if shown(got) != tc.want {
				t.Errorf("got\n%swant\n%s", shown(got), tc.want)
			}
			if problems := Problems(map[string]string{provider.DerivedFilesKey: tc.entries}); len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
		})
	}
}

func TestAClassWithoutDerivedFilesCostsNothing(t *testing.T) {
	brought := files(map[string]string{"a": "1", "b": "2"})
	for _, parameters := range []map[string]string{nil, {"path": "/x"}, {provider.DerivedFilesKey: " \n"}} {
		got, err := Apply(parameters, brought, 0o644)
		if err != nil || len(got) != 2 || &got[0] != &brought[0] {
			t.Errorf("%v: got %v, %v", parameters, got, err)
		}
		if problems := Problems(parameters); len(problems) > 0 {
			t.Errorf("%v: %v", parameters, problems)
		}
	}
	parameters := map[string]string{"path": "/x"}
	if n := testing.AllocsPerRun(10, func() { _, _ = Apply(parameters, brought, 0o644) }); n > 0 {
		t.Errorf("it allocates %v times", n)
	}
}

func TestWhatIsNotMountedIsCleared(t *testing.T) {
	brought := files(map[string]string{"a": canary, "b": canary})
	shared := brought[1].Contents
	brought = append(brought, provider.File{Path: "c", Contents: shared})
	got, err := Apply(map[string]string{provider.DerivedFilesKey: "- {path: x, from: a, replace: true}\n- {path: y, from: b, replace: true}"}, brought, 0o644)
	if err != nil || len(got) != 3 {
		t.Fatalf("got %v, %v", shown(got), err)
	}
	if !brought[0].Contents.IsEmpty() {
		t.Error("a replaced file keeps its contents")
	}
	if string(shared.Reveal()) != canary || string(got[1].Contents.Reveal()) != canary || string(got[2].Contents.Reveal()) != canary {
		t.Error("a value that a mounted file shares was cleared")
	}

	brought = files(map[string]string{"a": canary})
	s := newSet(brought)
	entries := decode(provider.NewParams(map[string]string{provider.DerivedFilesKey: "- {path: x, from: a}\n- {path: y, from: a, encoding: hex}"}))
	if err := s.derive(entries[0], 0o644); err != nil {
		t.Fatal(err)
	}
	made := s.members[1].Contents.Reveal()
	if err := s.derive(entries[1], 0o644); err == nil {
		t.Fatal("no error")
	}
	s.clearDerived()
	if strings.Trim(string(made), "\x00") != "" || string(brought[0].Contents.Reveal()) != canary {
		t.Error("after an error, what was derived is left, or what was given is not")
	}
}

func TestAnOptionalDerivedFileMayLackItsSource(t *testing.T) {
	brought := map[string]string{"json": `{"a": "b"}`, "text": canary}
	for name, entry := range map[string]string{
		"a missing file":               "from: gone",
		"one missing file of several":  "from: [text, gone]\n  format: pem",
		"a missing file in a template": "template: '{{ file \"gone\" }}'",
		"a missing key":                "from: json\n  extractJSONKey: c",
		"a missing password file":      "from: text\n  format: jks\n  passwordFrom: gone",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := apply("- path: x\n  optional: true\n  replace: true\n  "+entry, brought)
			if err != nil || len(got) != 2 {
				t.Errorf("got %v, %v", shown(got), err)
			}
			_, err = apply("- path: x\n  "+entry, brought)
			wantError(t, err, provider.NotFound, `derived file "x": `)
		})
	}
	_, err := apply("- {path: x, from: text, optional: true, encoding: hex}", brought)
	wantError(t, err, provider.Invalid, `derived file "x": file "text": it is not hex`)
}

func TestErrorsNameTheDerivedFileAndItsSource(t *testing.T) {
	brought := map[string]string{"json": `{"a": "` + canary + `"}`, "text": canary, "dir/file": canary}
	for name, tc := range map[string]struct {
		entry string
		kind  provider.Kind
		says  string
	}{
		"a missing source":          {"{path: x, from: gone}", provider.NotFound, `derived file "x": there is no file "gone"; the volume has dir/file, json, text; correct the name, or have the class fetch it`},
		"a key that is not there":   {"{path: x, from: json, extractJSONKey: b}", provider.NotFound, `derived file "x": file "json": it has no key "b"; correct the key in the class`},
		"a document that is none":   {"{path: x, from: text, extractJSONKey: b}", provider.Invalid, `derived file "x": file "text": it is not JSON; remove extractJSONKey`},
		"an encoding that it lacks": {"{path: x, from: json, encoding: base64}", provider.Invalid, `derived file "x": file "json": it is not base64`},
		"a path that is taken":      {"{path: json, from: text}", provider.Invalid, `derived file "json": the volume has a file of that path already; give it another path`},
		"a path below a file":       {"{path: json/x, from: text}", provider.Invalid, `derived file "json/x": it needs a folder "json", but the volume has a file of that path`},
		"a path that is a folder":   {"{path: dir, from: text}", provider.Invalid, `derived file "dir": the volume has a folder of that path, for the file "dir/file"`},
		"a mistake in the class":    {"{path: /x, from: text}", provider.Invalid, `parameter "derivedFiles", line 1, entry 1 ("/x"), "path": the file path "/x" is absolute`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := apply("- "+tc.entry, brought)
			wantError(t, err, tc.kind, tc.says)
			if got != nil {
				t.Errorf("got %v beside the error", got)
			}
		})
	}
	many := map[string]string{}
	for i := range 30 {
		many[fmt.Sprintf("f%02d", i)] = ""
	}
	_, err := apply("- {path: x, from: gone}", many)
	wantError(t, err, provider.NotFound, "the volume has f00, ", "f19 and 10 more; ")
	_, err = apply("- {path: x, from: gone}", nil)
	wantError(t, err, provider.NotFound, "the volume has none; ")
}

func TestEveryMistakeOfAClassIsReportedWithItsLine(t *testing.T) {
	for name, tc := range map[string]struct {
		entries string
		want    []string
	}{
		"no list":                                {"path: x", []string{`line 1: it is not a list; write a list: "- path: ..."`}},
		"broken YAML":                            {"- path: [", []string{`line 1: it is not YAML`}},
		"nothing at all":                         {"- {}", []string{`"path": it is missing; name the file in the volume`, `line 1, entry 1, "from": it is missing; name the file that this one is made of, or write a "template"`}},
		"an unknown field":                       {"- path: x\n  from: a\n  form: b", []string{`line 3, entry 1 ("x"), "form": a derived file has no such field; correct its spelling, or remove it`}},
		"a path that is none":                    {"- path: ../x\n  from: /a\n", []string{`line 1, entry 1 ("../x"), "path": the file path "../x" contains ".."`, `line 2, entry 1 ("../x"), "from": the file path "/a" is absolute`}},
		"common options":                         {"- path: x\n  from: a\n  filePermission: '999'\n  encoding: rot13\n  optional: perhaps\n  replace: 7", []string{`line 3`, `line 4, entry 1 ("x"), "encoding": "rot13" is none of`, `line 5, entry 1 ("x"), "optional": "perhaps" is not a boolean`, `line 6, entry 1 ("x"), "replace": "7" is not a boolean`}},
		"an empty template":                      {"- path: x\n  template: ''", []string{`line 2, entry 1 ("x"), "template": it is empty; write what the file holds`}},
		"an empty list":                          {"- path: x\n  from: []", []string{`line 2, entry 1 ("x"), "from": it is missing; name the file that this one is made of`}},
		"several sources":                        {"- path: x\n  from: [a, b]", []string{`line 2, entry 1 ("x"), "from": it names several files; name one, or give a "format"`}},
		"a source twice":                         {"- path: x\n  from: [a, a]\n  format: pem", []string{`line 2, entry 1 ("x"), "from": it names a file twice`}},
		"a key of several":                       {"- path: x\n  from: [a, b]\n  format: pem\n  extractJSONKey: k", []string{`line 2, entry 1 ("x"), "from": it names several files, and what is to be chosen or decoded is for one`}},
		"a template and more":                    {"- path: x\n  template: a\n  from: b\n  encoding: hex", []string{`line 3, entry 1 ("x"), "from": it has no part in a "template"`, `line 4, entry 1 ("x"), "encoding": it has no part in a "template"`}},
		"an error in a template that is a block": {"- path: x\n  template: |\n    a\n    {{ 1 }\n", []string{`line 4, entry 1 ("x"), "template": unexpected "}" in operand; correct the template`}},
		"an error in a template in quotes":       {"- path: x\n  template: \"a\\n{{ b }}\"\n", []string{`line 2, entry 1 ("x"), "template": function "b" not defined`}},
		"the hidden function":                    {"- path: x\n  template: '{{ _spend 1 }}'", []string{`"template": function "_spend" not defined`}},
		"a template that calls itself":           {"- path: x\n  template: |\n    {{ define \"a\" }}\n    {{ template \"b\" }}{{ end }}{{ define \"b\" }}\n    {{ template \"a\" }}{{ end }}.\n", []string{`line 5, entry 1 ("x"), "template": the template "a" calls itself`}},
		"a template that is not defined":         {"- path: x\n  template: |\n    a\n    {{ template \"b\" }}", []string{`line 4, entry 1 ("x"), "template": the template "b" is not defined`}},
		"a template of definitions only":         {"- path: x\n  template: '{{ define \"a\" }}b{{ end }}'", []string{`"template": it makes nothing`}},
		"a template that is too long":            {"- path: x\n  template: " + strings.Repeat("x", maxTemplateBytes+1), []string{`"template": it has 65537 bytes, more than 65536`}},
		"an unknown format":                      {"- path: x\n  from: a\n  format: zip", []string{`line 3, entry 1 ("x"), "format": "zip" is none of pem, pkcs12, jks`}},
		"parts without a format":                 {"- path: x\n  from: a\n  parts: key\n  password: x", []string{`line 3, entry 1 ("x"), "parts": it has no part in a file without a "format"; give a format (pem, pkcs12, jks)`, `line 4`}},
		"a format without files":                 {"- path: x\n  format: pem", []string{`"from": it is missing; name the file`}},
		"unknown parts":                          {"- path: x\n  from: a\n  format: pem\n  parts: [key, key, leaf]", []string{`line 4, entry 1 ("x"), "parts": it names "key" twice`, `line 4, entry 1 ("x"), "parts": "leaf" is none of key, certificate, chain, intermediates, ca, bundle`}},
		"a password of PEM":                      {"- path: x\n  from: a\n  format: pem\n  password: x\n  alias: y", []string{`line 4, entry 1 ("x"), "password": PEM text has none`, `line 5, entry 1 ("x"), "alias": PEM text has none`}},
		"a store without a password":             {"- path: x\n  from: a\n  format: pkcs12", []string{`"password": it is missing; write what opens the store, such as "changeit"`}},
		"two passwords":                          {"- path: x\n  from: a\n  format: jks\n  password: a\n  passwordFrom: b\n  sourcePassword: c\n  sourcePasswordFrom: d", []string{`line 5, entry 1 ("x"), "passwordFrom": it excludes password`, `line 7, entry 1 ("x"), "sourcePasswordFrom": it excludes sourcePassword`}},
		"a password that Java cannot have":       {"- path: x\n  from: a\n  format: jks\n  password: pä\n  alias: ö\n  legacy: true", []string{`line 4, entry 1 ("x"), "password": it has characters that are not plain ASCII, which a jks cannot have`, `line 5, entry 1 ("x"), "alias": it has characters`, `line 6, entry 1 ("x"), "legacy": a jks has one form only`}},
		"a key alone in a store":                 {"- path: x\n  from: a\n  format: jks\n  password: p\n  parts: [key, ca]", []string{`line 5, entry 1 ("x"), "parts": a key in a store comes with its certificate or its chain, and no others`}},
		"the same path twice":                    {"- {path: x, from: a}\n- {path: y, from: a}\n- {path: x, from: b}", []string{`line 3, entry 3 ("x"), "path": entry 1 ("x") has a file path that excludes it; give one of them another path`}},
		"a file that is a folder":                {"- {path: x/y, from: a}\n- {path: x, from: b}", []string{`line 2, entry 2 ("x"), "path": entry 1 ("x/y") has a file path that excludes it`}},
		"the same path, replaced":                {"- {path: x, from: a}\n- {path: x, from: x, replace: true}", nil},
		"the same path, replaced by a template":  {"- {path: x, from: a}\n- {path: y, template: '{{ with file \"x\" | trim }}{{ . }}{{ end }}', replace: true}\n- {path: x, from: b}", nil},
		"too many":                               {many("- {path: x%d, from: a}\n", maxEntries+1), []string{`it lists 101 files, more than 100; derive fewer`}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, p := range Problems(map[string]string{provider.DerivedFilesKey: tc.entries, "other": "x"}) {
				got = append(got, p.Error())
			}
			if len(got) != len(tc.want) {
				t.Fatalf("got %d problems, want %d:\n%s", len(got), len(tc.want), strings.Join(got, "\n"))
			}
			for i := range got {
				if !strings.Contains(got[i], tc.want[i]) {
					t.Errorf("got  %s\nwant %s", got[i], tc.want[i])
				}
			}
			// What is wrong, and not merely unknown, fails a mount with the same words.
			if _, err := apply(tc.entries, nil); len(tc.want) > 0 && name != "an unknown field" {
				wantError(t, err, provider.Invalid, tc.want[0])
			}
		})
	}
}

func many(format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func TestDerivedFilesAreBoundedTogether(t *testing.T) {
	var entries strings.Builder
	for i := range 5 {
		fmt.Fprintf(&entries, "- {path: f%d, from: large}\n", i)
	}
	began := time.Now()
	_, err := apply(entries.String(), map[string]string{"large": strings.Repeat(canary, (16<<20)/len(canary))})
	wantError(t, err, provider.TooLarge, `derived file "f4": with it, derived files have more than 67108864 bytes; derive fewer files`)
	t.Logf("in %v", time.Since(began))
}

// Whatever the class, decoding ends and what it accepts can be made without a
// panic; errors show no value.
func FuzzApply(f *testing.F) {
	f.Add("- {path: x, from: a, extractJSONKey: k, encoding: hex, replace: true}\n- {path: y, from: [x, b], format: pem, parts: [ca, key]}")
	f.Add("- path: x\n  optional: true\n  template: |\n    {{ range $k, $v := fromJson (file \"a\") }}{{ $k }}={{ $v | quote }}{{ end }}\n")
	f.Add("- {path: a/b, from: a, format: jks, password: x, alias: y, replace: yes}")
	f.Add("- {path: a, from: b, format: pkcs12, passwordFrom: a, sourcePassword: z, legacy: true, parts: ca}\n- &x {path: b, from: c}\n- *x")
	f.Fuzz(func(t *testing.T, entries string) {
		parameters := map[string]string{provider.DerivedFilesKey: entries}
		problems := Problems(parameters)
		for _, p := range problems {
			if lines := strings.Count(entries, "\n") + 1; p.Line < 0 || p.Line > lines {
				t.Errorf("line %d of %d", p.Line, lines)
			}
		}
		got, err := apply(entries, map[string]string{"a": `{"k": "` + canary + `"}`, "b": canary})
		if err != nil {
			if !strings.Contains(entries, "canary") {
				wantNoCanary(t, err)
			}
			return
		}
		var paths []string
		for _, f := range got {
			paths = append(paths, f.Path)
			if provider.CheckPath(f.Path) != nil || f.Mode > 0o777 {
				t.Errorf("%q, %v", f.Path, f.Mode)
			}
		}
		if err := provider.CheckPaths(paths); err != nil {
			t.Error(err)
		}
		again, _ := apply(entries, map[string]string{"a": `{"k": "` + canary + `"}`, "b": canary})
		if shown(got) != shown(again) {
			t.Errorf("the same input makes\n%sand\n%s", shown(got), shown(again))
		}
	})
}
