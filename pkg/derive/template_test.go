package derive

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// template makes an entry of a template, which is written as a YAML string.
func templateEntry(text string) string {
	return fmt.Sprintf("- path: out\n  template: %s\n", quoted(text))
}

func quoted(text string) string { return must((&run{}).toJSON(text)).(string) }

func TestATemplateJoinsFiles(t *testing.T) {
	brought := map[string]string{
		"user": "app", "password": "p&ss \"<wörd>\"\n", "db/host": "db.example", "empty": "", "binary": "\xff\x00",
		"json":  `{"user": "app", "port": 5432, "big": 12345678901234567890, "float": 1.50, "on": true, "none": null, "list": ["a", "b"], "map": {"b": 2, "a": 1}}`,
		"yaml":  "user: app\nport: 5432\nfloat: 1.50\noctal: 0o17\non: true\nnone:\nday: 2026-01-02\nlist: [a, b]\n",
		"lines": "a\nb\n\nc",
	}
	for name, tc := range map[string]struct{ template, want string }{
		"text as it is":                {"a\n b\n", "a\n b\n"},
		"files by name":                {`{{ file "user" }}@{{ file "db/host" }}`, "app@db.example"},
		"bytes that are no text":       {`{{ file "binary" }}`, "\xff\x00"},
		"a file that may be missing":   {`{{ if has "gone" }}a{{ else if has "user" }}b{{ end }}`, "b"},
		"base64":                       {`{{ b64enc (file "user") }} {{ "YXBw" | b64dec }} {{ b64dec "YX Bw" }}`, "YXBw app app"},
		"case and white space":         {`{{ upper "ä" }}{{ lower "Ä" }}{{ trim "\n a b " }}`, "Ääa b"},
		"quotes":                       {`{{ file "password" | trim | quote }} {{ squote "a" 1 nil }} {{ quote "a" "b" }}`, `"p&ss \"<wörd>\"" 'a' '1' "a" "b"`},
		"replace":                      {`{{ file "db/host" | replace "." "-" }}`, "db-example"},
		"join and split":               {`{{ splitList "," "a,b" | join "; " }} {{ (split "." "x.y")._1 }} {{ join "," (fromJson "[1, true, \"z\"]") }}`, "a; b y 1,true,z"},
		"indent":                       {"x:{{ file \"lines\" | nindent 2 }}\n{{ indent 1 \"a\\nb\" }}", "x:\n  a\n  b\n  \n  c\n a\n b"},
		"default":                      {`{{ file "empty" | default "d" }}{{ default "d" "v" }}{{ index (fromJson "{}") "k" | default 7 }}`, "dv7"},
		"fields of JSON":               {`{{ $j := file "json" | fromJson }}{{ $j.user }}:{{ $j.port }} {{ $j.big }} {{ $j.float }} {{ $j.on }}`, "app:5432 12345678901234567890 1.50 true"},
		"fields of YAML":               {`{{ with file "yaml" | fromYaml }}{{ .user }}:{{ .port }} {{ .float }} {{ .octal }} {{ .on }} {{ .day }} {{ index .list 1 }}{{ end }}`, "app:5432 1.50 0o17 true 2026-01-02 b"},
		"a map in the order of keys":   {`{{ range $k, $v := (fromJson (file "json")).map }}{{ $k }}={{ $v }};{{ end }}`, "a=1;b=2;"},
		"a list":                       {`{{ range (fromJson (file "json")).list }}[{{ . }}]{{ end }}{{ len (fromJson "[1]") }}`, "[a][b]1"},
		"a loop that ends early":       {`{{ range fromJson "[1,2,3]" }}{{ if eq . 2 }}{{ continue }}{{ end }}{{ . }}{{ if ge . 3 }}{{ break }}{{ end }}{{ end }}`, "13"},
		"JSON again":                   {`{{ file "json" | fromJson | toJson }} {{ file "password" | toJson }}`, `{"big":12345678901234567890,"float":1.50,"list":["a","b"],"map":{"a":1,"b":2},"none":null,"on":true,"port":5432,"user":"app"} "p&ss \"<wörd>\"\n"`},
		"comparisons":                  {`{{ eq 1 1 }}{{ eq "a" "b" "a" }}{{ ne true false }}{{ lt 1 2.5 }}{{ gt "b" "a" }}{{ le 2 2 }}{{ eq (fromJson "5432") 5432 }}{{ eq (fromJson "null") nil }}{{ eq (fromJson "null") "a" }}`, "truetruetruetruetruetruetruetruefalse"},
		"what text/template has":       {`{{ printf "%s=%5d|%-3s|%q|%v%%" "a" 7 "b" "c" true }}{{ print 1 "a" }}{{ and 1 0 }}{{ not true }}{{ slice "abc" 1 2 }}{{ urlquery "a b&ä" }}{{ html "<" }}{{ println "x" }}`, "a=    7|b  |\"c\"|true%1a0falseba+b%26%C3%A4&lt;x\n"},
		"definitions":                  {`{{ define "line" }}{{ .k }}={{ .v }}{{ end }}{{ range fromJson "[{\"k\":\"a\",\"v\":1},{\"k\":\"b\",\"v\":2}]" }}{{ template "line" . }} {{ end }}`, "a=1 b=2 "},
		"white space that is left out": {"a {{- /* comment */ -}} b", "ab"},
		"numbers of a list's places":   {`{{ range $i, $v := splitList "," "x,y" }}{{ $i }}{{ $v }}{{ end }}{{ range 3 }}{{ . }}{{ end }}`, "0x1y012"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := derived(t, templateEntry(tc.template), brought); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestATemplateThatFailsSaysWhereAndShowsNoValue(t *testing.T) {
	brought := map[string]string{"a": canary, "json": `{"canary": "` + canary + `", "list": ["` + canary + `"]}`, "binary": canary + "\xff", "large": strings.Repeat(canary, maxTextBytes/len(canary)+1)}
	for name, tc := range map[string]struct {
		template string
		kind     provider.Kind
		says     string
	}{
		"a file that is not there":              {"\n{{ file \"gone\" }}", provider.NotFound, `template, line 2, file: there is no file "gone"; the volume has a, `},
		"a file that is too large":              {`{{ file "large" }}`, provider.TooLarge, `template, line 1, file: the file "large" has more than 1048576 bytes; make it shorter`},
		"a range over a text":                   {`{{ range file "a" }}{{ end }}`, provider.Invalid, "template, line 1: what range goes over is no list and no map; correct the template"},
		"a field of a text":                     {`{{ (file "a").x }}`, provider.Invalid, "a value has no such field"},
		"a key that a map lacks":                {"\n\n{{ (fromJson (file \"json\")).gone }}", provider.Invalid, "template, line 3: a map has no such key"},
		"a field of nothing":                    {`{{ .x }}`, provider.Invalid, "there is nothing that has such a field"},
		"a field of a field that is nothing":    {`{{ (fromJson "{\"a\": null}").a.b }}`, provider.Invalid, "there is nothing that has such a field"},
		"what is not JSON":                      {`{{ file "a" | fromJson }}`, provider.Invalid, "template, line 1, fromJson: it is not JSON; correct the template"},
		"JSON with more behind it":              {`{{ "{} {}" | fromJson }}{{ "1]" | fromJson }}`, provider.Invalid, "fromJson: it is not JSON"},
		"what is not YAML":                      {`{{ "a: [" | fromYaml }}`, provider.Invalid, "fromYaml: it is not YAML"},
		"YAML with aliases":                     {`{{ "a: &x [1]\nb: *x" | fromYaml }}`, provider.Invalid, "fromYaml: its YAML has aliases"},
		"YAML with a list for a key":            {`{{ "[a]: b" | fromYaml }}`, provider.Invalid, "fromYaml: its YAML has a key that is no text"},
		"what is not base64":                    {`{{ file "json" | b64dec }}`, provider.Invalid, "b64dec: it is not base64"},
		"an index with a value":                 {`{{ index (fromJson "[1]") (file "a") }}`, provider.Invalid, "index: a list has no such place"},
		"an index beyond the list":              {`{{ index (fromJson (file "json")).list 1 }}`, provider.Invalid, "index: a list has no such place"},
		"an index into a text":                  {`{{ index (file "a") 0 }}`, provider.Invalid, "index: it goes into what is no map and no list"},
		"a slice beyond the text":               {`{{ slice (file "a") 1000 }}`, provider.Invalid, "slice: there is no such part"},
		"a comparison of different types":       {`{{ eq (file "a") 1 }}`, provider.Invalid, "eq: it is given values of different types"},
		"an order of what has none":             {`{{ lt (fromJson (file "json")) 1 }}`, provider.Invalid, "lt: it is given values that have no order"},
		"a list where text belongs":             {`{{ upper (fromJson "[1]") }}`, provider.Invalid, "upper: it is given something that is no text"},
		"too few arguments":                     {`{{ replace (file "a") }}`, provider.Invalid, "replace: it is given 1 arguments"},
		"an argument to a value":                {`{{ (file "a") 1 }}`, provider.Invalid, "it gives an argument to what is no function"},
		"nil as a command":                      {`{{ nil | print }}`, provider.Invalid, "nil is not a command"},
		"a number that is too large":            {`{{ 18446744073709551615 }}`, provider.Invalid, "it has a number that is too large"},
		"a complex number":                      {`{{ 1i }}`, provider.Invalid, "it has a complex number"},
		"two variables of a number":             {`{{ range $i, $v := 3 }}{{ end }}`, provider.Invalid, "a range over a number has one variable"},
		"a length of nothing":                   {`{{ len nil }}`, provider.Invalid, "len: it is given what has no length"},
		"a slice of a map":                      {`{{ slice (fromJson "{}") }}`, provider.Invalid, "slice: it is given no text or list"},
		"bytes in JSON":                         {`{{ file "binary" | toJson }}`, provider.Invalid, "toJson: it is given text that is not UTF-8"},
		"a verb that does not fit":              {`{{ printf "%d" (file "a") }}`, provider.Invalid, "printf: its format has a verb that is not for such an argument"},
		"a verb without an argument":            {`{{ printf "%s %s" (file "a") }}`, provider.Invalid, "printf: its format has more verbs"},
		"an argument without a verb":            {`{{ printf "x" (file "a") }}`, provider.Invalid, "printf: its format has fewer verbs"},
		"a format that ends early":              {`{{ printf "%" (file "a") }}`, provider.Invalid, "printf: its format ends within a verb"},
		"a width of a million":                  {`{{ printf "%1000000s" (file "a") }}`, provider.Invalid, "printf: its format has a width of more than 999"},
		"a width from an argument":              {`{{ printf "%*d" 1000000 1 }}`, provider.Invalid, "printf: its format has a verb"},
		"an argument that is used again":        {`{{ printf "%[1]s%[1]s" (file "a") }}`, provider.Invalid, "printf: its format has a verb"},
		"an indent of a million":                {`{{ indent 1000000 (file "a") }}`, provider.Invalid, "indent: it is given no number from 0 to 1000 and text"},
		"a text that a function makes too long": {`{{ file "a" | replace "" (printf "%999d" 1) | replace "" (printf "%999d" 1) }}`, provider.TooLarge, "replace: what it returns has more than 1048576 bytes"},
		"an output that is too long":            {`{{ range 5000 }}{{ printf "%999d" 1 }}{{ end }}`, provider.TooLarge, "template, line 1: what it makes has more than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := apply(templateEntry(tc.template), brought)
			wantError(t, err, tc.kind, `derived file "out": template`, tc.says)
		})
	}
}

func TestATemplateCannotRunForLong(t *testing.T) {
	brought := map[string]string{"large": strings.Repeat("a", maxTextBytes), "other": strings.Repeat("a", maxTextBytes-1) + "b", "json": "[" + strings.Repeat("[],", 100_000) + "[]]",
		"slashes": strings.Repeat(`\`, 1000)}
	for name, text := range map[string]string{
		"an endless loop":                  `{{ range 1000000000000 }}{{ end }}`,
		"loops in loops":                   `{{ range 100000 }}{{ range 100000 }}{{ range 100000 }}{{ end }}{{ end }}{{ end }}`,
		"a loop that goes on":              `{{ range 1000000000000 }}{{ continue }}{{ end }}`,
		"a long body":                      `{{ range 1000000000000 }}{{ if false }}` + strings.Repeat("{{ 1 }}", 5000) + `{{ end }}{{ end }}`,
		"templates that call two each":     doubling(40),
		"a loop in a template":             `{{ define "a" }}{{ range 1000000 }}{{ end }}{{ end }}{{ range 1000000 }}{{ template "a" }}{{ end }}`,
		"comparisons of long texts":        `{{ $a := file "large" }}{{ $b := file "other" }}{{ range 1000000 }}{{ if eq $a $b }}{{ end }}{{ end }}`,
		"comparisons in one call":          `{{ $a := file "large" }}{{ $b := file "other" }}{{ if eq $a` + strings.Repeat(" $b", 20000) + `}}{{ end }}`,
		"a search for what is there often": `{{ $a := file "large" }}{{ range 1000000 }}{{ if replace "a" "a" $a }}{{ end }}{{ end }}`,
		"a doubling of quotes":             `{{ $a := file "slashes" }}{{ $a` + strings.Repeat(" | quote", 5000) + `}}`,
		"a chain of functions":             `{{ $a := file "large" }}{{ $a` + strings.Repeat(" | upper", 8000) + ` | len }}`,
		"documents that are read often":    `{{ $a := file "json" }}{{ range 100000 }}{{ $b := fromJson $a }}{{ end }}`,
		"YAML that is read often":          `{{ $a := file "json" }}{{ range 100000 }}{{ $b := fromYaml $a }}{{ end }}`,
		"texts that are kept":              `{{ $a := file "large" }}` + keeping(2500),
		"a long key":                       `{{ $a := file "large" }}{{ $m := fromJson "{}" }}{{ range 1000000 }}{{ if index $m $a }}{{ end }}{{ end }}`,
		"a split into letters":             `{{ $a := file "large" }}{{ range 100000 }}{{ if splitList "" $a }}{{ end }}{{ end }}`,
		"a document that is printed often": `{{ $a := file "json" | fromJson }}{{ range 100000 }}{{ if print $a }}{{ end }}{{ end }}`,
		"deep parentheses":                 `{{ ` + strings.Repeat("(", 20000) + "1" + strings.Repeat(")", 20000) + ` }}`,
		"deep conditions":                  strings.Repeat("{{if 1}}", 4000) + strings.Repeat("{{end}}", 4000),
		"deep loops":                       strings.Repeat("{{range 2}}", 3500) + strings.Repeat("{{end}}", 3500),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			_, err := apply(templateEntry(text), brought)
			took := time.Since(began)
			runtime.ReadMemStats(&after)
			t.Logf("%v, %d MiB: %.200v", took, (after.TotalAlloc-before.TotalAlloc)>>20, err)
			if err == nil && name != "deep conditions" {
				t.Error("no error")
			}
			if err != nil && provider.KindOf(err) != provider.TooLarge && name != "deep parentheses" {
				t.Errorf("the kind is %v", provider.KindOf(err))
			}
		})
	}
}

func doubling(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{{ define "t%d" }}{{ template "t%d" }}{{ template "t%d" }}{{ end }}`, i, i+1, i+1)
	}
	fmt.Fprintf(&b, `{{ define "t%d" }}{{ end }}{{ template "t0" }}`, n)
	return b.String()
}

func keeping(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{{ $v%d := upper $a }}`, i)
	}
	return b.String()
}

// byTextTemplate runs a template with package text/template and the functions of this
// one, those excepted that it has itself.
func byTextTemplate(t *testing.T, text string, s *set) (string, error) {
	t.Helper()
	r := &run{compiled: must(parsed(text)), files: s}
	own := template.FuncMap{}
	for name, f := range functions() {
		if slices.Contains([]string{"and", "or", "not", "len", "slice", "html", "urlquery", "print", "println"}, name) {
			continue
		}
		own[name] = func(args ...any) (any, error) {
			if len(args) < f.least || f.most >= 0 && len(args) > f.most {
				return nil, errors.New("arguments")
			}
			args = slices.Clone(args)
			for i, arg := range args {
				if n, ok := arg.(int); ok {
					args[i] = int64(n)
				}
			}
			return f.call(r, args)
		}
	}
	var out buffer
	err := template.Must(template.New(templateName).Option("missingkey=error").Funcs(own).Parse(text)).Execute(&out, nil)
	return string(out.bytes), err
}

func parsed(text string) (*compiled, error) {
	c, _, err := compile(text)
	return c, err
}

// Whatever the template and the files, it ends, does the same again, and an error
// shows nothing that a file holds. What it makes, text/template makes too; what
// that makes, it makes, or says why not.
func FuzzTemplate(f *testing.F) {
	for _, text := range []string{
		`{{ range $k, $v := fromJson (file "a") }}{{ $k }}={{ $v | quote }}{{ else }}none{{ end }}`, `{{ with fromYaml (file "a") }}{{ .x }}{{ end }}{{ (split "," (file "a"))._0 }}`,
		`{{ printf "%s %q %x %5.3s" (file "a") "b" "c" "d" }}{{ index (splitList "c" (file "a")) 1 }}`, `{{ define "x" }}{{ . | upper }}{{ $ }}{{ end }}{{ template "x" file "a" }}{{ block "y" 1 }}{{ . }}{{ end }}`,
		`{{ file "a" | b64enc | b64dec | toJson | indent 2 | nindent 3 | default "x" }}`, `{{ if eq (file "a") "x" "y" }}{{ else if lt (len (file "a")) 3 }}{{ else }}{{ not true }}{{ end }}`,
		`{{ slice (file "a") 2 1 }}{{ html (file "a") | urlquery }}{{ range file "a" }}{{ end }}{{ (file "a").x }}`,
		`{{ $x := 1 }}{{ range $i, $x := splitList "," "a,b" }}{{ $i }}{{ $x }}{{ end }}{{ $x }}{{ range 3 }}{{ $x = . }}{{ if eq . 1 }}{{ break }}{{ end }}{{ end }}{{ $x }}`,
		`{{ $a := 0 }}{{ $b := 0 }}{{ range $a, $b = fromJson "{\"k\": [1, {}, null, 1.50, true]}" }}{{ $b }}{{ end }}{{ $a }}{{ print $b 1 nil "x" }}{{ println nil }}`,
		`{{ and 1 0 (file "gone") }}{{ or "" 0 nil }}{{ 1 | and "x" }}{{ 0x10 }}{{ 'a' }}{{ 1e3 }}{{ .5 }}{{- /* x */ -}} {{ with $x := "y" }}{{ $x }}{{ . }}{{ else with 1 }}{{ end }}`,
		`{{ range $v := 2 }}{{ $v }}{{ continue }}x{{ else }}{{ end }}{{ range 0 }}{{ else }}zero{{ end }}{{ (index (fromJson "[[1]]") 0 0) }}{{ true }}{{ nil }}`,
	} {
		f.Add(text, canary)
		f.Add(text, `{"x": ["`+canary+`", 1.5, null]}`)
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		c, _, err := compile(text)
		if err != nil {
			return
		}
		s := newSet(files(map[string]string{"a": value, "b": canary}))
		made, _, err := c.execute(s) // which ends: a fuzzer tells of what does not
		if err != nil && !strings.Contains(text, "canary") {
			wantNoCanary(t, err)
		}
		if len(made) > maxTextBytes {
			t.Errorf("it makes %d bytes", len(made))
		}
		if again, _, againErr := c.execute(s); string(again) != string(made) || (err == nil) != (againErr == nil) {
			t.Errorf("it makes %q, then %q", made, again)
		}
		if provider.KindOf(err) == provider.TooLarge || hasLargeNumber(text) || err != nil && strings.Contains(err.Error(), "complex") {
			return // text/template might go on for ever, and knows complex numbers
		}
		got, theirErr := byTextTemplate(t, text, s)
		switch {
		case err == nil && theirErr != nil:
			t.Errorf("it makes %q; text/template says %v", made, theirErr)
		case err == nil && got != string(made):
			t.Errorf("it makes  %q\nand theirs %q", made, got)
		case err != nil && theirErr == nil:
			t.Errorf("it says %v; text/template makes %q", err, got)
		}
	})
}

// hasLargeNumber tells whether text/template could take long over a range.
func hasLargeNumber(text string) bool {
	digits := 0
	for _, c := range text {
		if digits++; c < '0' || c > '9' {
			digits = 0
		}
		if digits > 4 || c == 'e' && digits > 0 {
			return true
		}
	}
	return strings.Contains(text, "0x")
}
