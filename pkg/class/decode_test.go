package class

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	sigsyaml "sigs.k8s.io/yaml"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

const head = "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n"

// strict is a provider that checks its parameters with what all providers share.
type strict struct{ provider.Provider }

func (strict) Validate(parameters map[string]string) []provider.Problem {
	p := provider.NewParams(parameters)
	p.Required("path", "write a path")
	for _, it := range p.Objects("objects") {
		it.SetName(it.Required("objectName", "name it"))
		it.Mode("filePermission", provider.DefaultMode)
	}
	return p.Problems()
}

// silent is a provider that cannot check anything.
type silent struct{ provider.Provider }

func find(name string) (provider.Provider, error) {
	return provider.NewRegistry(map[string]provider.Provider{"strict": strict{}, "silent": silent{}}, nil).Get(name)
}

// problems returns all that Decode and Check say about a file.
func problems(text string) []Problem {
	documents, problems := Decode("f.yaml", []byte(text))
	for _, d := range documents {
		problems = append(problems, Check(d, find)...)
	}
	return problems
}

func TestEveryMistakeNamesFileLineClassKeyAndRemedy(t *testing.T) {
	named := head + "metadata: {name: c, namespace: ns}\n" // three lines
	whole := named + "spec:\n  provider: strict\n  parameters:\n    path: /p\n"
	secret := whole + "  secretObjects:\n" // line 8
	for name, tc := range map[string]struct {
		text string
		want []string
	}{
		"no mistake": {whole, nil},
		"another version of the API": {strings.Replace(whole, "/v1\n", "/v2\n", 1),
			[]string{`f.yaml:1: class ns/c: apiVersion: "secrets-store.csi.x-k8s.io/v2" is not a version of SecretProviderClass; write secrets-store.csi.x-k8s.io/v1`}},
		"no version of the API": {strings.Replace(whole, "apiVersion", "apiversion", 1),
			[]string{`f.yaml:1: class ns/c: apiversion: a class has no such field; write one of apiVersion, kind`, `f.yaml:1: class ns/c: apiVersion: it is missing; write`}[1:]},
		"a kind that is misspelt": {strings.Replace(whole, "ProviderClass", "Providerclass", 1),
			[]string{`f.yaml:1: kind: "SecretProviderclass" is not a kind of secrets-store.csi.x-k8s.io; write SecretProviderClass`}},
		"no name":        {head + "metadata:\n  namespace: ns\nspec: {provider: strict, parameters: {path: /p}}\n", []string{`f.yaml:3: metadata.name: it is missing; give the class a name`}},
		"no metadata":    {head + "spec: {provider: strict, parameters: {path: /p}}\n", []string{`f.yaml:1: metadata.name: it is missing`}},
		"an empty name":  {head + "metadata:\n  name: ''\nspec: {provider: strict, parameters: {path: /p}}\n", []string{`f.yaml:4: metadata.name: it is empty`}},
		"a name in caps": {head + "metadata:\n  name: Db\nspec: {provider: strict, parameters: {path: /p}}\n", []string{`f.yaml:4: class default/Db: metadata.name: "Db" is not a legal name; a lowercase RFC 1123 subdomain`}},
		"a number as a name": {head + "metadata:\n  name: 12\nspec: {provider: strict, parameters: {path: /p}}\n",
			[]string{`f.yaml:4: metadata.name: 12 is a number, not a string; put it in quotes: "12"`}},
		"an interval that is none": {whole + "    rotationInterval: often\n", []string{`f.yaml:8: class ns/c: parameters.rotationInterval: "often" is not a duration; write a duration from 5s`}},
		"a sealed cache for ever":  {whole + "    sealedCache: 1000h\n", []string{`f.yaml:8: class ns/c: parameters.sealedCache: "1000h" is not from 10m to 168h; write a duration`}},
		"a size that is none":      {whole + "    volumeSize: 2Gi\n", []string{`f.yaml:8: class ns/c: parameters.volumeSize: "2Gi" is not from 64Ki to 1Gi; write a quantity`}},
		"no provider":              {named + "spec:\n  parameters: {path: /p}\n", []string{`f.yaml:4: class ns/c: provider: it is missing; name the store`}},
		"an illegal provider":      {named + "spec:\n  provider: a/b\n  parameters: {path: /p}\n", []string{`f.yaml:5: class ns/c: provider: provider "a/b": invalid provider; a provider's name has`}},
		"a provider that is not here": {named + "spec:\n  provider: other\n  parameters: {path: /p}\n",
			[]string{`f.yaml:5: notice: class ns/c: provider: its parameters were not checked: provider "other": provider not found`}},
		"a provider that cannot check": {named + "spec:\n  provider: silent\n  parameters: {path: /p}\n",
			[]string{`f.yaml:5: notice: class ns/c: provider: its parameters were not checked: provider "silent" cannot`}},
		"no parameters":    {named + "spec:\n  provider: strict\n  parameters: {}\n", []string{`f.yaml:6: class ns/c: parameters: there are none; tell the provider`}},
		"no spec":          {named, []string{`f.yaml:1: class ns/c: provider: it is missing`, `f.yaml:1: class ns/c: parameters: there are none`}},
		"parameters: list": {named + "spec:\n  provider: strict\n  parameters:\n  - path: /p\n", []string{`f.yaml:7: class ns/c: parameters: it is not a map of fields`}},
		"an unquoted boolean": {whole + "    usePodIdentity: false\n",
			[]string{`f.yaml:8: class ns/c: parameters.usePodIdentity: false is a boolean, not a string; put it in quotes: "false"`, `f.yaml:8`}[:1]},
		"a boolean of YAML 1.1": {strings.Replace(whole, "/p", "yes", 1), []string{`f.yaml:7: class ns/c: parameters.path: yes is a boolean, not a string; put it in quotes: "yes"`}},
		"an unquoted number":    {strings.Replace(whole, "/p", "0640", 1), []string{`f.yaml:7: class ns/c: parameters.path: 0640 is a number, not a string; put it in quotes: "0640"`}},
		"a parameter left open": {strings.Replace(whole, " /p", "", 1), []string{`f.yaml:7: class ns/c: parameters.path: it has no value; write "" for an empty one`}},
		"a list where its text belongs": {whole + "    objects:\n    - objectName: a\n",
			[]string{`f.yaml:8: class ns/c: parameters.objects: its value is a list, not a string; write "objects: |" and indent`}},
		"a date is a text":         {strings.Replace(whole, "/p", "2020-01-01", 1), nil},
		"a quoted number is text":  {strings.Replace(whole, "/p", `"7"`, 1), nil},
		"a number tagged as text":  {strings.Replace(whole, "/p", `!!str 7`, 1), nil},
		"a text tagged as number":  {strings.Replace(whole, "/p", `!!int "7"`, 1), []string{`f.yaml:7: class ns/c: parameters.path: it is a value tagged !!int, not a string; put it in quotes, without a tag: "7"`}},
		"the same key twice":       {whole + "    path: /q\n", []string{`f.yaml:8: class ns/c: parameters.path: it is given twice, first in line 7; remove one of them`}},
		"an unknown parameter":     {whole + "    pth: /q\n", []string{`f.yaml:8: class ns/c: parameters.pth: this provider does not know it; correct its spelling`}},
		"a parameter missing":      {named + "spec:\n  provider: strict\n  parameters:\n    objects: ''\n", []string{`f.yaml:6: class ns/c: parameters.path: it is missing; write a path`}},
		"an unknown field of spec": {whole + "  secretObject: []\n", []string{`f.yaml:8: class ns/c: spec.secretObject: a class has no such field; write one of provider, parameters, secretObjects`}},
		"parameters beside spec":   {whole + "parameters: {}\n", []string{`f.yaml:8: class ns/c: parameters: a class has no such field; indent it below spec`}},
		"an object in a literal block": {whole + "    objects: |\n      - objectName: a\n      - objectName: db\n        filePermission: 9\n",
			[]string{`f.yaml:11: class ns/c: parameters.objects entry 2 ("db"), "filePermission": "9" is not a file mode: it must be octal, from 0000 to 0777; write it in quotes`}},
		"a literal block that begins with empty lines": {whole + "    objects: |-  # a comment\n\n\n      - objectName: db\n        filePermission: 9\n",
			[]string{`f.yaml:12: class ns/c: parameters.objects entry 1 ("db"), "filePermission"`}},
		"an object in the oldest grammar": {whole + "    objects: |\n      array:\n        - |\n          objectName: db\n          filePermission: 9\n",
			[]string{`f.yaml:12: class ns/c: parameters.objects entry 1 ("db"), "filePermission"`}},
		"an object in a quoted text": {whole + "    objects: \"- objectName: db\\n  filePermission: 9\\n\"\n",
			[]string{`f.yaml:8: class ns/c: parameters.objects entry 1 ("db"), "filePermission"`}},
		"an object in a folded block": {whole + "    objects: >\n      - {objectName: db, filePermission: 9}\n",
			[]string{`f.yaml:8: class ns/c: parameters.objects entry 1 ("db"), "filePermission"`}},
		"broken YAML at the end of a literal block": {whole + "    objects: |\n      - objectName: 'x\n\n# end\n",
			[]string{`f.yaml:9: class ns/c: parameters.objects: it is not YAML`}},
		"derived files": {whole + "    derivedFiles: |\n      - path: a\n        template: |\n          x\n          {{ y }}\n      - path: a\n        form: z\n        from: b\n", []string{
			`f.yaml:12: class ns/c: parameters.derivedFiles entry 1 ("a"), "template": function "y" not defined; correct the template`,
			`f.yaml:13: class ns/c: parameters.derivedFiles entry 2 ("a"), "path": entry 1 ("a") has a file path that excludes it`,
			`f.yaml:14: class ns/c: parameters.derivedFiles entry 2 ("a"), "form": a derived file has no such field`}},
		"derived files of a provider that is not here": {named + "spec:\n  provider: other\n  parameters:\n    derivedFiles: |\n      - path: /a\n        from: b\n", []string{
			`f.yaml:5: notice: class ns/c: provider`, `f.yaml:8: class ns/c: parameters.derivedFiles entry 1 ("/a"), "path": the file path "/a" is absolute`}},
		"derived files that are no text": {whole + "    derivedFiles:\n    - path: /a\n",
			[]string{`f.yaml:8: class ns/c: parameters.derivedFiles: its value is a list, not a string; write "derivedFiles: |" and indent`}},
		"mistakes of all sorts in the order of lines": {strings.Replace(whole, "path:", "pth:", 1) + "    pth2: 1\n    pth3: x\n", []string{
			`f.yaml:6: class ns/c: parameters.path: it is missing`, `f.yaml:7: class ns/c: parameters.pth: this`, `f.yaml:8: class ns/c: parameters.pth2: 1 is a number`, `f.yaml:9: class ns/c: parameters.pth3: this`}},
		"mistakes in a second document": {whole + "---\n" + whole + "    pth: x\n", []string{`f.yaml:16: class ns/c: parameters.pth`}},
		"a JSON class": {`{"apiVersion":"secrets-store.csi.x-k8s.io/v1","kind":"SecretProviderClass",` + "\n" + `"metadata":{"name":"c"},"spec":{"provider":"strict",` + "\n" + `"parameters":{"path":true}}}`,
			[]string{`f.yaml:3: class default/c: parameters.path: true is a boolean, not a string; put it in quotes: "true"`}},

		"a Secret without name, type and data": {secret + "  - labels: {a: b}\n", []string{
			`f.yaml:9: class ns/c: secretObjects entry 1, "secretName": it is missing; name the Kubernetes Secret`,
			`f.yaml:9: class ns/c: secretObjects entry 1, "type": it is missing; write Opaque`,
			`f.yaml:9: class ns/c: secretObjects entry 1, "data": it is empty; list at least`}},
		"two Secrets of one name": {secret + strings.Repeat("  - secretName: s\n    type: Opaque\n    data:\n    - {objectName: a, key: b}\n", 2),
			[]string{`f.yaml:13: class ns/c: secretObjects entry 2 ("s"), "secretName": an entry above has the same name`}},
		"bad entries of a Secret": {secret + "  - secretName: s\n    type: Opaque\n    data:\n    - key: b\n    - objectName: ../a\n      key: b\n    - objectName: a\n    - objectName: a\n      key: b/c\n", []string{
			`f.yaml:12: class ns/c: secretObjects entry 1, data entry 1, "objectName": it is missing; write the path`,
			`f.yaml:13: class ns/c: secretObjects entry 1, data entry 2, "objectName": the file path "../a" contains ".."`,
			`f.yaml:14: class ns/c: secretObjects entry 1, data entry 2, "key": an entry above has the same key "b"`,
			`f.yaml:15: class ns/c: secretObjects entry 1, data entry 3, "key": it is missing; write the key`,
			`f.yaml:17: class ns/c: secretObjects entry 1, data entry 4, "key": "b/c" is not a legal key of a Secret`}},
		"an unknown field of a Secret": {secret + "  - secretName: s\n    type: Opaque\n    name: s\n    data:\n    - {objectName: a, key: b}\n",
			[]string{`f.yaml:11: class ns/c: secretObjects entry 1.name: a class has no such field; write one of secretName, type`}},
		"a label that is no text": {secret + "  - secretName: s\n    type: Opaque\n    labels: {a: 1}\n    data:\n    - {objectName: a, key: b}\n",
			[]string{`f.yaml:11: class ns/c: secretObjects entry 1, labels.a: 1 is a number, not a string`}},

		"a key that would colour a terminal": {whole + "    \"\\e[31mred\": x\n", []string{"f.yaml:8: class ns/c: parameters.\ufffd[31mred: this provider does not know it"}},
		"a tab":                              {whole + "\tx: y\n", []string{`f.yaml:8: it is not YAML: found a tab character that violates indentation; indent with spaces, not with tabs`}},
		"a key without a colon in the middle of a map": {whole + "    objects\n    other: x\n", []string{`f.yaml:8: it is not YAML: could not find expected ':'`}},
		"a tab before a value":                         {head + "metadata:\n\tname: c\n", []string{`f.yaml:4: it is not YAML: found character that cannot start any token; indent with spaces`}},
		"a wrong indentation":                          {whole + "   x: y\n", []string{`f.yaml:8: it is not YAML: did not find expected key`}},
		"a quote left open":                            {whole + "    x: 'y\nz: w\n", []string{`f.yaml:8: it is not YAML: found unexpected end of stream`}},
		"an alias of nothing":                          {whole + "    x: *y\n", []string{`f.yaml:8: it is not YAML: unknown anchor 'y'`}},
		"a file too large":                             {strings.Repeat("#", MaxFileBytes+1), []string{`f.yaml: it has 4194305 bytes, more than 4194304; split it`}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, p := range problems(tc.text) {
				got = append(got, p.Error())
			}
			if name == "no version of the API" || name == "an unquoted boolean" {
				got = got[:1] // the other says the same in other words
			}
			if len(got) != len(tc.want) {
				t.Fatalf("got %d problems, want %d:\n%s", len(got), len(tc.want), strings.Join(got, "\n"))
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tc.want[i]) {
					t.Errorf("got  %s\nwant %s", got[i], tc.want[i])
				}
			}
		})
	}
}

func TestDecodeReadsAClassAsAClusterDoes(t *testing.T) {
	for name, text := range map[string]string{
		"a whole class": head + `metadata:
  name: c
  namespace: ns
  labels: {app: a}
  annotations: {b: "1"}
  creationTimestamp: null
spec:
  provider: strict
  parameters:
    plain: a b
    date: 2020-01-01
    quoted: "a\nb"
    literal: |
      - a
      - b
    folded: >-
      a
      b
  secretObjects:
  - secretName: s
    type: Opaque
    labels: {l: m}
    annotations: {x: z}
    data:
    - objectName: a/b
      key: k
status: {}
`,
		"v1alpha1": strings.Replace(head, "v1", "v1alpha1", 1) + "metadata: {name: c, namespace: ns}\nspec: {provider: p, parameters: {a: b}}\n",
		"JSON":     `{"apiVersion":"secrets-store.csi.x-k8s.io/v1","kind":"SecretProviderClass","metadata":{"name":"c","namespace":"ns"},"spec":{"provider":"p","parameters":{"a":"b\nc"}}}`,
		"aliases and merges": head + "metadata: {name: &n c, namespace: *n}\nspec:\n  provider: p\n  parameters:\n    <<: &x {a: b, c: d}\n    c: e\n" +
			"  secretObjects:\n  - {<<: [*x, {type: t}], secretName: *n}\n",
	} {
		t.Run(name, func(t *testing.T) {
			documents, problems := Decode("f", []byte(text))
			if len(documents) != 1 || len(problems) > 0 || documents[0].Err() != nil {
				t.Fatalf("got %d documents, problems %v", len(documents), problems)
			}
			var want SecretProviderClass
			if err := sigsyaml.Unmarshal([]byte(text), &want); err != nil {
				t.Fatal(err)
			}
			if got := documents[0].Class; !reflect.DeepEqual(*got, want) {
				t.Errorf("got  %+v\nwant %+v", *got, want)
			}
		})
	}
}

func TestDecodePicksTheClassesOfAFile(t *testing.T) {
	class := func(name string) string { return head + "metadata: {name: " + name + "}\n" }
	text := "# a comment\n---\nkind: Pod\nkind: Pod\n---\n" + class("a") + "---\n---\n- a list\n---\na text\n...\n---\n" + class("b") +
		"---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod}\n- apiVersion: secrets-store.csi.x-k8s.io/v1\n  kind: SecretProviderClass\n  metadata: {name: c}\n" +
		"---\napiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClassPodStatus\n"
	documents, problems := Decode("f", []byte(text))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var got []string
	for _, d := range documents {
		got = append(got, fmt.Sprintf("%s:%d", d.Class.Ref(), d.Line))
	}
	if want := "default/a:6 default/b:16 default/c:24"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestAliasesCannotMultiplyADocument(t *testing.T) {
	var b strings.Builder
	b.WriteString(head + "metadata: {name: c}\nx:\n")
	fmt.Fprintf(&b, "  d: &d [%s]\n", strings.Repeat("{key: a},", 1000))
	fmt.Fprintf(&b, "spec:\n  secretObjects: [%s]\n", strings.Repeat("{data: *d},", 10000))
	documents, _ := Decode("f", []byte(b.String()))
	if err := documents[0].Err(); err == nil || !strings.Contains(err.Error(), "aliases multiply") || strings.Count(err.Error(), "\n") > 0 {
		t.Errorf("got %.300v", err)
	}
	merges := head + "metadata: {name: c}\nspec:\n  parameters: &p\n    <<: *p\n    a: b\n"
	documents, _ = Decode("f", []byte(merges))
	if err := documents[0].Err(); err == nil || !strings.Contains(err.Error(), `f:6: class default/c: parameters: "<<" does not name a map`) {
		t.Errorf("got %v", err)
	}
}

func TestUnreadableClassesAreInvalid(t *testing.T) {
	documents, _ := Decode("f", []byte(head+"metadata: {name: c}\nspec: {parameters: {a: 1}}\n"))
	err := documents[0].Err()
	if provider.KindOf(err) != provider.Invalid || !strings.Contains(err.Error(), "f:4: class default/c: parameters.a") {
		t.Errorf("got %v, kind %v", err, provider.KindOf(err))
	}
	var p Problem
	if !errors.As(err, &p) || p.Line != 4 {
		t.Errorf("the problem is %+v", p)
	}
}

func TestWhatCannotBeMounted(t *testing.T) {
	for name, tc := range map[string]struct {
		spec Spec
		want string
	}{
		"no provider":   {Spec{Parameters: map[string]string{"a": "b"}}, "provider not set in n/c; name the store in spec.provider"},
		"no parameters": {Spec{Provider: "p"}, "parameters not set in n/c; tell in spec.parameters what to fetch"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &SecretProviderClass{Spec: tc.spec}
			c.Namespace, c.Name = "n", "c"
			if err := c.Mountable(); err == nil || err.Error() != tc.want || provider.KindOf(err) != provider.Invalid {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

// FuzzDecode holds that no file makes Decode or Check panic, that every line
// they name is one of the file, and that a class which passes is the one that a
// cluster would read.
func FuzzDecode(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, seed := range seeds {
		data, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		documents, problems := Decode("f", data)
		clean := len(problems) == 0
		for _, d := range documents {
			found := Check(d, find)
			clean = clean && d.Err() == nil && len(d.mistakes) == 0
			problems = append(problems, found...)
		}
		// The parser also takes CR, NEL, LS and PS for line breaks.
		lines := 1 + bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")) + bytes.Count(data, []byte("\u0085")) +
			bytes.Count(data, []byte("\u2028")) + bytes.Count(data, []byte("\u2029")) + bytes.Count(data, []byte{0x85})
		for _, p := range problems {
			if p.What == "" || p.File != "f" || p.Line < 0 || p.Line > lines && !bytes.HasPrefix(data, []byte{0xff, 0xfe}) && !bytes.HasPrefix(data, []byte{0xfe, 0xff}) {
				t.Errorf("a file of %d lines has the problem %#v", lines, p)
			}
		}
		if !clean || len(documents) != 1 || bytes.Contains(data, []byte("---")) || bytes.Contains(data, []byte("<<")) {
			return
		}
		var want SecretProviderClass
		if err := sigsyaml.Unmarshal(data, &want); err != nil || want.Kind != Kind {
			return
		}
		if got := documents[0].Class; !reflect.DeepEqual(got.Spec.Parameters, want.Spec.Parameters) && len(got.Spec.Parameters)+len(want.Spec.Parameters) > 0 || got.Spec.Provider != want.Spec.Provider || got.Name != want.Name {
			t.Errorf("got  %+v\nwant %+v", *got, want)
		}
	})
}
