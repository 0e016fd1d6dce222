package provider

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const canary = "canary-value"

// wantNoCanary fails where err, in any form, shows a part of a value.
func wantNoCanary(t *testing.T, err error) {
	t.Helper()
	for ; err != nil; err = errors.Unwrap(err) {
		for _, form := range []string{"%v", "%+v", "%#v", "%q"} {
			if text := fmt.Sprintf(form, err); strings.Contains(text, "canary") {
				t.Errorf("an error shows a value: %s", text)
			}
		}
	}
}

func TestAKeyOfADocumentIsChosen(t *testing.T) {
	const (
		asJSON = `{"user": "app", "port": 5432, "big": 12345678901234567890.10, "tls": {"key": "k\nl", "names": ["a", {"b": true}]}, "/odd/key": "odd", "a/b": {"~": "tilde"}, "none": null, "empty": "", "no": false}`
		asYAML = "user: app\nport: 0o17\nbig: 12345678901234567890.10\ntls:\n  key: |\n    k\n    l\n  names: [a, {b: yes}]\n/odd/key: odd\na/b: {\"~\": tilde}\nnone:\nempty: ''\nbytes: !!binary aGk=\nagain: &x twice\nalias: *x\n7: seven\n"
	)
	for name, tc := range map[string]struct {
		o    Options
		raw  string
		want string
	}{
		"no key leaves the document as it is":                    {Options{}, asJSON, asJSON},
		"a string is taken without its quotes":                   {Options{JSONKey: "user"}, asJSON, "app"},
		"a number keeps the digits that the document has":        {Options{JSONKey: "big"}, asJSON, "12345678901234567890.10"},
		"a boolean is a word":                                    {Options{JSONKey: "no"}, asJSON, "false"},
		"an empty string is an empty file":                       {Options{JSONKey: "empty"}, asJSON, ""},
		"a map comes as compact JSON":                            {Options{JSONKey: "tls"}, asJSON, `{"key":"k\nl","names":["a",{"b":true}]}`},
		"a pointer leads into maps":                              {Options{JSONKey: "/tls/key"}, asJSON, "k\nl"},
		"a pointer leads into lists":                             {Options{JSONKey: "/tls/names/1/b"}, asJSON, "true"},
		"a pointer begins at a list too":                         {Options{JSONKey: "/1"}, ` ["x", "y"] `, "y"},
		"a key that looks like a pointer comes first":            {Options{JSONKey: "/odd/key"}, asJSON, "odd"},
		"a pointer escapes slashes and tildes":                   {Options{JSONKey: "/a~1b/~0"}, asJSON, "tilde"},
		"of a key that is there twice in JSON the last counts":   {Options{JSONKey: "a"}, `{"a": "1", "a": "2"}`, "2"},
		"an escape of JSON is resolved":                          {Options{JSONKey: "a"}, `{"a": "\ud83d\ude00\u0000"}`, "😀\x00"},
		"YAML: a string is taken without its quotes":             {Options{YAMLKey: "user"}, asYAML, "app"},
		"YAML: a number keeps the digits that the document has":  {Options{YAMLKey: "port"}, asYAML, "0o17"},
		"YAML: an empty string is an empty file":                 {Options{YAMLKey: "empty"}, asYAML, ""},
		"YAML: a block keeps its lines":                          {Options{YAMLKey: "/tls/key"}, asYAML, "k\nl\n"},
		"YAML: a pointer leads into lists":                       {Options{YAMLKey: "/tls/names/1/b"}, asYAML, "yes"},
		"YAML: a list comes as YAML":                             {Options{YAMLKey: "/tls/names"}, asYAML, "[a, {b: yes}]\n"},
		"YAML: a key that looks like a pointer comes first":      {Options{YAMLKey: "/odd/key"}, asYAML, "odd"},
		"YAML: a pointer escapes slashes and tildes":             {Options{YAMLKey: "/a~1b/~0"}, asYAML, "tilde"},
		"YAML: a binary value is decoded":                        {Options{YAMLKey: "bytes"}, asYAML, "hi"},
		"YAML: an alias stands for what it names":                {Options{YAMLKey: "alias"}, asYAML, "twice"},
		"YAML: a key that is a number is chosen by its digits":   {Options{YAMLKey: "7"}, asYAML, "seven"},
		"YAML: JSON is YAML":                                     {Options{YAMLKey: "/tls/names/0"}, asJSON, "a"},
		"a key is chosen first, and decoded then":                {Options{JSONKey: "a", Encoding: EncodingBase64}, `{"a": "aGk="}`, "hi"},
		"base64 of the standard alphabet":                        {Options{Encoding: EncodingBase64}, "+/+/", "\xfb\xff\xbf"},
		"base64 of the URL alphabet":                             {Options{Encoding: EncodingBase64}, "-_-_", "\xfb\xff\xbf"},
		"base64 without padding, with line breaks":               {Options{Encoding: EncodingBase64}, " aG\r\nk\t\n", "hi"},
		"hex of small and capital letters, with white space":     {Options{Encoding: EncodingHex}, "00 fF\n0A\n", "\x00\xff\n"},
		"no text decodes to nothing":                             {Options{Encoding: EncodingBase64}, " \n", ""},
		"what is no text at all passes where nothing is decoded": {Options{}, "\x00\xff\xfe", "\x00\xff\xfe"},
	} {
		t.Run(name, func(t *testing.T) {
			raw := []byte(tc.raw)
			got, err := tc.o.Contents(raw)
			if err != nil || string(got) != tc.want {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
			if string(raw) != tc.raw {
				t.Errorf("what the store gave was changed to %q", raw)
			}
		})
	}
}

func TestWhatCannotBeChosenOrDecodedIsSaidWithoutQuotingIt(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 20000) + `"` + canary + `"` + strings.Repeat("}", 20000)
	for name, tc := range map[string]struct {
		o    Options
		raw  string
		kind Kind
		says string
	}{
		"a key that is not there":                        {Options{JSONKey: "pass"}, `{"canary-value": "x"}`, NotFound, `it has no key "pass"; correct the key`},
		"a key that is there in other letters":           {Options{JSONKey: "PassWord"}, `{"password": "` + canary + `"}`, NotFound, `it has one that differs in the case of letters only`},
		"a key that is null":                             {Options{JSONKey: "a"}, `{"a": null, "b": "` + canary + `"}`, NotFound, `its key "a" is null`},
		"a key below a string":                           {Options{JSONKey: "/a/b"}, `{"a": "` + canary + `"}`, NotFound, `no key "/a/b"`},
		"an index beyond the list":                       {Options{JSONKey: "/a/1"}, `{"a": ["` + canary + `"]}`, NotFound, `no key "/a/1"`},
		"an index that is no number":                     {Options{JSONKey: "/a/x"}, `{"a": ["` + canary + `"]}`, NotFound, `no key "/a/x"`},
		"an index with a needless zero":                  {Options{JSONKey: "/a/00"}, `{"a": ["` + canary + `"]}`, NotFound, `no key "/a/00"`},
		"a text that is not JSON":                        {Options{JSONKey: "a"}, canary, Invalid, "it is not JSON; remove extractJSONKey"},
		"JSON with something behind it":                  {Options{JSONKey: "a"}, `{"a": "b"} ` + canary, Invalid, "it is not JSON"},
		"JSON that is a string":                          {Options{JSONKey: "a"}, `"` + canary + `"`, Invalid, "it is not a JSON object"},
		"JSON that is null":                              {Options{JSONKey: "a"}, "null", Invalid, "it is not a JSON object"},
		"JSON that is a list":                            {Options{JSONKey: "a"}, `["` + canary + `"]`, Invalid, "it is not a JSON object"},
		"half an emoji in JSON":                          {Options{JSONKey: "a"}, `{"a": "` + canary + `\ud83d"}`, Invalid, `the value of the key "a" is not Unicode text`},
		"bytes that are not UTF-8 in JSON":               {Options{JSONKey: "a"}, `{"a": "` + canary + "\xff" + `"}`, Invalid, `the value of the key "a" is not Unicode text`},
		"JSON of great depth":                            {Options{JSONKey: "a"}, deep, Invalid, "not JSON"},
		"YAML: a key that is not there":                  {Options{YAMLKey: "pass"}, canary + ": x", NotFound, `it has no key "pass"; correct the key`},
		"YAML: a key that is there in other letters":     {Options{YAMLKey: "PASS"}, "pass: " + canary, NotFound, `differs in the case of letters only`},
		"YAML: a key without a value":                    {Options{YAMLKey: "a"}, "a:\nb: " + canary, NotFound, `its key "a" is null`},
		"YAML: a key below a string":                     {Options{YAMLKey: "/a/b"}, "a: " + canary, NotFound, `no key "/a/b"`},
		"YAML: an index beyond the list":                 {Options{YAMLKey: "/a/1"}, "a: [" + canary + "]", NotFound, `no key "/a/1"`},
		"YAML: an index with a sign":                     {Options{YAMLKey: "/a/+0"}, "a: [" + canary + "]", NotFound, `no key "/a/+0"`},
		"YAML: a text that is not YAML":                  {Options{YAMLKey: "a"}, "a: [" + canary, Invalid, "it is not YAML; remove extractYAMLKey"},
		"YAML: a text that is a string":                  {Options{YAMLKey: "a"}, canary, Invalid, "it is not a YAML map"},
		"YAML: nothing":                                  {Options{YAMLKey: "a"}, "# " + canary, Invalid, "it is not YAML"},
		"YAML: two documents":                            {Options{YAMLKey: "a"}, "a: b\n---\nc: " + canary, Invalid, "it is more than one YAML document"},
		"YAML: a key that is there twice":                {Options{YAMLKey: "a"}, "a: " + canary + "\na: c", Invalid, `it has the key "a" twice`},
		"YAML: a map with aliases":                       {Options{YAMLKey: "b"}, "a: &x " + canary + "\nb: {c: *x}", Invalid, `the value of the key "b" has YAML aliases`},
		"YAML: an alias within itself":                   {Options{YAMLKey: "a"}, "a: &x [*x, " + canary + "]", Invalid, `has YAML aliases`},
		"YAML: a binary value that is not base64":        {Options{YAMLKey: "a"}, "a: !!binary " + canary + "!", Invalid, `the !!binary value of the key "a" is not base64`},
		"a text that is not base64":                      {Options{Encoding: EncodingBase64}, canary + "!", Invalid, "it is not base64; correct the object's encoding"},
		"a text of base64 that is cut short":             {Options{Encoding: EncodingBase64}, "canar", Invalid, "it is not base64"},
		"a text that is not hex":                         {Options{Encoding: EncodingHex}, canary, Invalid, "it is not hex"},
		"a text of hex that is cut short":                {Options{Encoding: EncodingHex}, "3f1c9", Invalid, "it is not hex"},
		"a value of a document that cannot be decoded":   {Options{JSONKey: "a", Encoding: EncodingHex}, `{"a": "` + canary + `"}`, Invalid, "it is not hex"},
		"a key of a document that is encoded as a whole": {Options{JSONKey: "a", Encoding: EncodingBase64}, base64.StdEncoding.EncodeToString([]byte(`{"a": "b"}`)), Invalid, "it is not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.o.Contents([]byte(tc.raw))
			if err == nil || KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %.100q, %v of kind %v, want %v, %q", got, err, KindOf(err), tc.kind, tc.says)
			}
			wantNoCanary(t, err)
		})
	}
}

func TestTheOptionsOfAnObjectAreRead(t *testing.T) {
	for text, want := range map[string]Options{
		"{}": {},
		`{optional: true, extractJSONKey: " a ", encoding: Base64}`: {Optional: true, JSONKey: "a", Encoding: EncodingBase64},
		`{optional: "false", extractYAMLKey: /a/b, encoding: HEX}`:  {YAMLKey: "/a/b", Encoding: EncodingHex},
		"{encoding: utf-8}": {},
		"{encoding: UTF8}":  {},
	} {
		p := NewParams(map[string]string{"objects": "- " + text})
		if got := p.Objects("objects")[0].Options(); got != want || len(p.Problems()) > 0 {
			t.Errorf("%s: got %+v, %v", text, got, p.Problems())
		}
	}
	for text, want := range map[string]string{
		"{optional: maybe}":                       `"optional": "maybe" is not a boolean`,
		"{encoding: rot13}":                       `"encoding": "rot13" is none of utf-8, base64 and hex; correct it`,
		"{extractJSONKey: a, extractYAMLKey: b}":  `"extractYAMLKey": it excludes extractJSONKey`,
		"{extractJSONKey: [a]}":                   `"extractJSONKey": it is not a plain value`,
		"{extractJSONKey: " + deepPointer() + "}": `"extractJSONKey": it goes deeper than 32 levels`,
		"{extractYAMLKey: " + deepPointer() + "}": `"extractYAMLKey": it goes deeper than 32 levels`,
	} {
		p := NewParams(map[string]string{"objects": "- " + text})
		p.Objects("objects")[0].Options()
		if err := p.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func deepPointer() string { return strings.Repeat("/a", maxKeyDepth+1) }

func TestAFileIsMadeOfAnObject(t *testing.T) {
	raw := []byte(`{"a": "b"}`)
	o := Object{Name: `object "db"`, Path: "db/file", Mode: UnsetMode}
	f, err := o.File(Request{Mode: 0o640}, raw)
	if err != nil || f.Path != "db/file" || f.Mode != 0o640 || string(f.Contents.Reveal()) != string(raw) {
		t.Fatalf("got %+v, %v", f, err)
	}
	clear(raw)
	if string(f.Contents.Reveal()) != `{"a": "b"}` {
		t.Error("the file keeps the buffer that the store's answer is in")
	}
	o.Mode, o.JSONKey = 0o400, "a"
	if f, err = o.File(Request{Mode: 0o640}, f.Contents.Reveal()); err != nil || f.Mode != 0o400 || string(f.Contents.Reveal()) != "b" {
		t.Errorf("got %+v, %v", f, err)
	}
}

func TestAFailureNamesItsObjectOnce(t *testing.T) {
	o := Object{Name: `object "db"`, Options: Options{JSONKey: "b"}}
	_, err := o.File(Request{}, []byte(`{"a": "`+canary+`"}`))
	if want := `object "db": it has no key "b"; correct the key in the class`; err == nil || err.Error() != want || KindOf(err) != NotFound {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	plain := errors.New("broken")
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"an error of no kind":               {plain, `object "db": broken`},
		"an error that names another thing": {&Error{Object: "login", Err: plain}, "login: broken"},
		"an error within a longer one":      {fmt.Errorf("the second try: %w", &Error{Kind: Denied, Err: plain}), `object "db": the second try: broken`},
		"an error of a kind":                {&Error{Kind: Denied, Op: "read it", Err: plain, Remedy: "ask"}, `object "db": read it: broken; ask`},
	} {
		before, kind := tc.err.Error(), KindOf(tc.err)
		got := o.Failure(tc.err)
		if got.Error() != tc.want || KindOf(got) != kind || !errors.Is(got, plain) {
			t.Errorf("%s: got %v, want %s", name, got, tc.want)
		}
		if tc.err.Error() != before {
			t.Errorf("%s: it was changed", name)
		}
	}
	if o.Failure(nil) != nil {
		t.Error("no error became one")
	}
}

func TestOnlyWhatIsMissingIsForgivenAnOptionalObject(t *testing.T) {
	o := Object{Name: `object "db"`, Options: Options{Optional: true, JSONKey: "b"}}
	for raw, kind := range map[string]Kind{`{"a": "b"}`: -1, `{"b": null}`: -1, "x": Invalid} {
		f, err := o.File(Request{}, []byte(raw))
		if f != nil || (err == nil) != (kind < 0) || err != nil && KindOf(err) != kind {
			t.Errorf("%s: got %v, %v", raw, f, err)
		}
	}
	for kind := Internal; kind <= TooLarge; kind++ {
		err := o.Failure(fmt.Errorf("wrapped: %w", &Error{Kind: kind}))
		if (err == nil) != (kind == NotFound) {
			t.Errorf("%v: got %v", kind, err)
		}
	}
}

func TestObjectsAreFetchedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var running, most, done atomic.Int32
		err := Together(t.Context(), 3*AtOnce, func(context.Context, int) error {
			if n := running.Add(1); n > most.Load() {
				most.Store(n)
			}
			time.Sleep(time.Second)
			running.Add(-1)
			done.Add(1)
			return nil
		})
		if err != nil || done.Load() != 3*AtOnce || most.Load() > AtOnce || time.Since(began) != 3*time.Second {
			t.Errorf("%d done, %d at the same time, in %v: %v", done.Load(), most.Load(), time.Since(began), err)
		}
	})
	if err := Together(t.Context(), 0, nil); err != nil {
		t.Errorf("nothing to do: %v", err)
	}
}

func TestTheFirstErrorEndsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		var began atomic.Int32
		err := Together(t.Context(), 10*AtOnce, func(ctx context.Context, i int) error {
			began.Add(1)
			if i == 3 {
				time.Sleep(time.Second)
				return broken
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if err != broken {
			t.Errorf("got %v", err)
		}
		if n := began.Load(); n > AtOnce {
			t.Errorf("%d began, most of them after the error", n)
		}
	})
}

func TestAPanicIsAnErrorThatTellsItsPlaceAndNoValue(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func()
		says string
	}{
		"of the Go runtime":     {func() { _ = []int{}[len(canary)] }, "index out of range [12] with length 0"},
		"of the program itself": {func() { panic("password " + canary) }, "a panic of type string"},
		"with an error":         {func() { panic(errors.New(canary)) }, "a panic of type *errors.errorString"},
		"with nil":              {func() { panic(nil) }, "nil"},
	} {
		for _, n := range []int{1, 2} {
			err := func() (err error) {
				defer func() {
					if r := recover(); r != nil {
						err = Recovered(r)
					}
				}()
				return Together(t.Context(), n, func(context.Context, int) error { tc.do(); return nil })
			}()
			if err == nil || KindOf(err) != Internal || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "options_test.go:") {
				t.Errorf("%s, of %d: got %v", name, n, err)
			}
			wantNoCanary(t, err)
		}
	}
}

func FuzzContents(f *testing.F) {
	f.Add([]byte(`{"a": {"b": ["x", 1.0, null]}, "/a": "y"}`), "a", "")
	f.Add([]byte(`["x", {"a": "aGk="}]`), "/1/a", "base64")
	f.Add([]byte("a: &x [b, {c: !!binary aGk=}]\nd: *x\n---\n"), "/a/1/c", "")
	f.Add([]byte("<<: {a: b}\n? [a]\n: c\n"), "a", "hex")
	f.Add([]byte("a: |\n  00ff\n"), "a", "hex")
	f.Add([]byte("\xef\xbb\xbfa: b"), "/", "utf-8")
	f.Fuzz(func(t *testing.T, raw []byte, key, encoding string) {
		e, err := ParseEncoding(encoding)
		if err != nil {
			return
		}
		if strings.Count(key, "/") > maxKeyDepth {
			return // Item.Options refuses it
		}
		before := bytes.Clone(raw)
		for _, o := range []Options{{JSONKey: key, Encoding: e}, {YAMLKey: key, Encoding: e}} {
			got, err := o.Contents(raw)
			if !bytes.Equal(raw, before) {
				t.Fatal("the input was changed")
			}
			if err != nil {
				if kind := KindOf(err); kind != NotFound && kind != Invalid || got != nil {
					t.Errorf("%v of kind %v, beside %q", err, kind, got)
				}
				wantOnlyFixedWords(t, err, key)
			}
		}
		// A flat map of strings is read as encoding/json does.
		var flat map[string]string
		if json.Valid(raw) && json.Unmarshal(raw, &flat) == nil && flat[key] != "" && e == EncodingNone && !strings.ContainsRune(flat[key], '\ufffd') {
			if got, err := (Options{JSONKey: key}).Contents(raw); err != nil || string(got) != flat[key] {
				t.Errorf("got %q, %v, want %q", got, err, flat[key])
			}
		}
	})
}

// wantOnlyFixedWords fails where an error holds more than fixed words and the
// key that the class itself gives.
func wantOnlyFixedWords(t *testing.T, err error, key string) {
	t.Helper()
	text := err.Error()
	// A pointer's error names the part of it that was followed, unescaped.
	for _, tail := range []string{"", key} {
		for i := len(tail); i >= 0; i-- {
			for _, part := range []string{tail[:i], pointerEscapes.Replace(tail[:i])} {
				text = strings.ReplaceAll(text, fmt.Sprintf("key %q", part), "key K")
			}
		}
	}
	for part := range strings.SplitSeq(key, "/") {
		text = strings.ReplaceAll(text, fmt.Sprintf("key %q", pointerEscapes.Replace(part)), "key K")
	}
	what, _, _ := strings.Cut(text, "; ")
	switch what {
	case "it has no key K", "its key K is null", "it is not JSON", "it is not a JSON object", "the value of the key K is not Unicode text", "it is not YAML",
		"it is more than one YAML document", "it is not a YAML map", "it has the key K twice", "the value of the key K has YAML aliases",
		"the !!binary value of the key K is not base64", "the value of the key K cannot be written as YAML again", "it is not base64", "it is not hex":
	default:
		t.Errorf("an error may quote the input: %q (%q)", text, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("hello"), 3)
	f.Add([]byte{0xfb, 0xff}, 1)
	f.Fuzz(func(t *testing.T, value []byte, every int) {
		for e, texts := range map[Encoding][]string{
			EncodingNone: {string(value)},
			EncodingBase64: {base64.StdEncoding.EncodeToString(value), base64.URLEncoding.EncodeToString(value),
				base64.RawStdEncoding.EncodeToString(value), base64.RawURLEncoding.EncodeToString(value)},
			EncodingHex: {hex.EncodeToString(value), strings.ToUpper(hex.EncodeToString(value))},
		} {
			for _, text := range texts {
				if e != EncodingNone {
					text = broken(text, every)
				}
				if got, err := e.Decode([]byte(text)); err != nil || !bytes.Equal(got, value) {
					t.Errorf("%s of %q: got %q, %v", e, text, got, err)
				}
			}
			if _, err := e.Decode(value); err != nil && (KindOf(err) != Invalid || !strings.HasPrefix(err.Error(), "it is not ")) {
				t.Errorf("%s: got %v", e, err)
			}
		}
	})
}

// broken puts white space into text.
func broken(text string, every int) string {
	if every < 1 || every > len(text) {
		return text + "\n"
	}
	return text[:every] + "\r\n " + text[every:]
}

func TestManyErrorsAreShownInPart(t *testing.T) {
	if err := Join([]error{nil, nil}); err != nil {
		t.Errorf("got %v", err)
	}
	var errs []error
	for i := range 10 {
		errs = append(errs, nil, &Error{Kind: NotFound, Err: fmt.Errorf("error %d", i)})
	}
	if err := Join(errs); KindOf(err) != NotFound || !strings.HasSuffix(err.Error(), "error 6\nerror 7\nand 2 more") {
		t.Errorf("got %v", err)
	}
}
