package local

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"filippo.io/age"
	"filippo.io/age/armor"
	"go.yaml.in/yaml/v3"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

var update = flag.Bool("update", false, "write golden files")

// seal writes plain to an age file in dir, with a new identity beside it.
func seal(t testing.TB, dir, plain string, armored bool) (path, identityFile string) {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	must(t, err)
	path, identityFile = filepath.Join(dir, "secrets.age"), filepath.Join(dir, "key.txt")
	must(t, os.WriteFile(identityFile, []byte("# created: now\n# public key: "+identity.Recipient().String()+"\n"+identity.String()+"\n"), 0o600))
	must(t, os.WriteFile(path, encrypt(t, plain, armored, identity.Recipient()), 0o600))
	return path, identityFile
}

func encrypt(t testing.TB, plain string, armored bool, recipients ...age.Recipient) []byte {
	t.Helper()
	var b bytes.Buffer
	var out io.Writer = &b
	var armorer io.WriteCloser
	if armored {
		armorer = armor.NewWriter(&b)
		out = armorer
	}
	w, err := age.Encrypt(out, recipients...)
	must(t, err)
	_, err = io.WriteString(w, plain)
	must(t, err)
	must(t, w.Close())
	if armored {
		must(t, armorer.Close())
	}
	return b.Bytes()
}

func TestAnAgeFileBringsItsKeys(t *testing.T) {
	const plain = `# a comment
password: "p ä"
tls/key: |
  -----BEGIN KEY-----
  abc
  -----END KEY-----
number: 0777
float: 1.0
big: 123456789012345678901234567890
bool: yes
date: 2026-01-02
binary: !!binary |
  aGVsbG8A
  /w==
empty: ""
`
	const want = "big 0644 123456789012345678901234567890\nbinary 0644 hello\x00\xff\nbool 0644 yes\ndate 0644 2026-01-02\nempty 0644 \nfloat 0644 1.0\nnumber 0644 0777\npassword 0644 p ä\n" +
		"tls/key 0644 -----BEGIN KEY-----\nabc\n-----END KEY-----\n\n"
	for _, armored := range []bool{false, true} {
		t.Run(fmt.Sprintf("armored is %v", armored), func(t *testing.T) {
			path, key := seal(t, t.TempDir(), plain, armored)
			r := wantFiles(t, class("path", path, "identityFile", key), want)
			if len(r.Versions) != 9 || r.Versions[0].ID != "big" || r.Versions[0].Version != r.Versions[8].Version {
				t.Errorf("got the versions %v", r.Versions)
			}
			wantFiles(t, class("path", path, "identityFile", key, "objects", "- objectName: tls/key\n  objectAlias: k\n  filePermission: '0400'\n- objectName: bool\n"),
				"k 0400 -----BEGIN KEY-----\nabc\n-----END KEY-----\n\nbool 0644 yes\n")
		})
	}
}

func TestAPostQuantumIdentityOpensAnAgeFile(t *testing.T) {
	dir := t.TempDir()
	identity, err := age.GenerateHybridIdentity()
	must(t, err)
	write(t, dir, map[string]string{"s": string(encrypt(t, "a: b", false, identity.Recipient())), "k": identity.String() + "\n"})
	wantFiles(t, class("path", dir+"/s", "identityFile", dir+"/k"), "a 0644 b\n")
}

func TestAnAgeFileMayHoldJSON(t *testing.T) {
	path, key := seal(t, t.TempDir(), "{\n\t\"a\": \"\\ud83d\\ude00 \\/\",\n\t\"b\": 1.50, \"c\": true, \"d\": {\"e\": [1]}, \"f\": \"x\"\n}\n", false)
	wantFiles(t, class("path", path, "identityFile", key, "objects", "[{objectName: a}, {objectName: b}, {objectName: c}, {objectName: f}]"),
		"a 0644 😀 /\nb 0644 1.50\nc 0644 true\nf 0644 x\n")
	wantError(t, class("path", path, "identityFile", key), provider.Invalid, "line 3", "a map or a list", "several keys")
}

func TestAnAgeFileThatCannotBeOpened(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	path, key := seal(t, dir, "db: "+canary, true)
	_, otherKey := seal(t, other, "db: x", false)
	passphrase, err := age.NewScryptRecipient("canary")
	must(t, err)
	passphrase.SetWorkFactor(2)
	binary, _ := seal(t, t.TempDir(), "db: "+canary, false)
	whole, err := os.ReadFile(binary)
	must(t, err)
	armored, err := os.ReadFile(path)
	must(t, err)
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-1] ^= 1
	write(t, dir, map[string]string{
		"plain.yaml":        canary + ": " + canary,
		"cut.age":           string(whole[:len(whole)-3]),
		"flipped.age":       string(flipped),
		"armor-cut.age":     string(armored[:len(armored)-40]),
		"armor-text.age":    armor.Header + "\n" + canary + "\n" + armor.Footer,
		"header.age":        "age-encryption.org/v1\n-> " + canary + "\n" + canary + "\n--- x\n",
		"passphrase.age":    string(encrypt(t, "db: "+canary, false, passphrase)),
		"key-pass.age":      string(encrypt(t, canary, false, passphrase)),
		"key-pass-armor":    string(encrypt(t, canary, true, passphrase)),
		"key-text":          "# key\n" + canary + "\n",
		"key-broken":        "AGE-SECRET-KEY-1" + strings.ToUpper(canary) + "\n",
		"key-empty":         "# nothing\n",
		"large.age":         strings.Repeat(canary, (33<<20)/len(canary)),
		"identity-in-place": canary,
	})
	binaryKey := filepath.Join(filepath.Dir(binary), "key.txt")
	for name, tc := range map[string]struct {
		path, key string
		kind      provider.Kind
		texts     []string
	}{
		"with the wrong identity":        {path, otherKey, provider.Denied, []string{path, otherKey, "none of them fits", "age-keygen -y"}},
		"with a passphrase":              {dir + "/passphrase.age", key, provider.Denied, []string{"passphrase.age", "encrypted with a passphrase", "to a recipient"}},
		"without an identity":            {path, "", provider.Invalid, []string{`parameter "identityFile"`, path, "age-keygen"}},
		"in plain text":                  {dir + "/plain.yaml", key, provider.Invalid, []string{"plain.yaml", "no age file"}},
		"cut short":                      {dir + "/cut.age", binaryKey, provider.Invalid, []string{"cut.age", "damaged"}},
		"damaged":                        {dir + "/flipped.age", binaryKey, provider.Invalid, []string{"flipped.age", "damaged"}},
		"cut short in its armor":         {dir + "/armor-cut.age", key, provider.Invalid, []string{"armor-cut.age", "damaged"}},
		"with text in its armor":         {dir + "/armor-text.age", key, provider.Invalid, []string{"armor-text.age", "damaged"}},
		"with a broken header":           {dir + "/header.age", key, provider.Invalid, []string{"header.age", "damaged"}},
		"that is missing":                {dir + "/gone.age", key, provider.NotFound, []string{"gone.age", "no such file"}},
		"that is too large":              {dir + "/large.age", key, provider.TooLarge, []string{"large.age", "33554432"}},
		"with a missing identity file":   {path, dir + "/gone", provider.NotFound, []string{dir + "/gone", "identity file", "age-keygen"}},
		"with a folder of identities":    {path, dir, provider.Invalid, []string{dir, "it is a folder"}},
		"with a protected identity":      {path, dir + "/key-pass.age", provider.Invalid, []string{"key-pass.age", "passphrase"}},
		"with an armored identity":       {path, dir + "/key-pass-armor", provider.Invalid, []string{"key-pass-armor", "passphrase"}},
		"with text for an identity":      {path, dir + "/key-text", provider.Invalid, []string{"key-text", "line 2", "AGE-SECRET-KEY"}},
		"with a broken identity":         {path, dir + "/key-broken", provider.Invalid, []string{"key-broken", "line 1"}},
		"with an empty identity file":    {path, dir + "/key-empty", provider.Invalid, []string{"key-empty", "no identity"}},
		"with the secrets as identities": {path, path, provider.Invalid, []string{path, "passphrase"}},
	} {
		t.Run(name, func(t *testing.T) {
			parameters := class("path", tc.path)
			if tc.key != "" {
				parameters["identityFile"] = tc.key
			}
			wantError(t, parameters, tc.kind, tc.texts...)
		})
	}
}

// plaintexts that cannot be mounted: the canary stands where a parser would
// quote it.
var brokenPlaintexts = map[string]string{
	"broken YAML":                      "db: [" + canary + "\n",
	"an unknown anchor":                "db: *" + canary + "\n",
	"a tab":                            "a: b\n\t" + canary + ": x",
	"a line out of place":              "key: |\n  one\n" + canary + "\nend\n",
	"two colons":                       "db: x: " + canary,
	"broken JSON":                      `{"a": "` + canary + `"` + "\n" + `"b": 1}`,
	"not UTF-8":                        "a: " + canary + "\xff",
	"a list":                           "- " + canary,
	"a string":                         canary,
	"a number":                         "7",
	"a map for a value":                "a: x\nb:\n  c: " + canary,
	"a list for a value":               "a: [" + canary + "]",
	"no value":                         "a: x\nb:\n",
	"an anchor for a value":            "a: &" + canary,
	"a tag for a value":                "a: !" + canary,
	"a comma in a flow map":            "{a: x," + canary + "}",
	"a value that reads as a key":      "a: |\n  x\n../" + canary + ": y\n",
	"a key that is a list":             "[" + canary + "]: x",
	"a broken base64":                  "a: !!binary " + canary,
	"the same key twice":               canary + ": x\nb: y\n" + canary + ": z\n",
	"the same key twice in JSON":       `{"` + canary + `": 1,` + "\n" + ` "` + canary + `": 2}`,
	"two documents":                    "a: b\n---\nc: " + canary,
	"a broken second document":         "a: b\n---\n[" + canary,
	"a file that is a folder":          canary + ": x\n" + canary + "/b: y\n",
	"a lone surrogate in JSON":         `{"a": "` + canary + `\ud800"}`,
	"a null in JSON":                   `{"` + canary + `": null}`,
	"a key that is no file path":       "'../" + canary + "': x",
	"a deep map":                       strings.Repeat("{"+canary+": ", 20000),
	"a deep list":                      "a: " + strings.Repeat("[", 20000) + canary,
	"an alias of a map":                "a: &x {b: " + canary + "}\nc: *x\n",
	"an alias within itself":           "a: &x [*x, " + canary + "]",
	"a merge":                          "<<: {a: " + canary + "}\n",
	"a directive":                      "%" + canary + "\n---\na: b",
	"an unfinished string":             "a: '" + canary,
	"an unknown escape":                `a: "\` + canary + `"`,
	"no keys at all":                   "{}",
	"comments only":                    "# " + canary + "\n",
	"nothing":                          "",
	"an object that is too large":      "a: " + strings.Repeat(canary, 5<<20/len(canary)),
	"a plaintext that is too large":    "a: x\n#" + strings.Repeat(canary, 17<<20/len(canary)),
	"more keys than a volume can hold": lines(maxObjects+1, canary+"-%d: "+canary+"\n"),
}

// Every error about a plaintext says where the fault is and quotes nothing.
// What they say is kept in testdata/errors.txt.
func TestNoErrorQuotesAPlaintext(t *testing.T) {
	var report strings.Builder
	for _, name := range slices.Sorted(maps.Keys(brokenPlaintexts)) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, key := seal(t, dir, brokenPlaintexts[name], false)
			_, err := fetch(class("path", path, "identityFile", key))
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "; ") {
				t.Errorf("the file or the remedy is missing: %v", err)
			}
			wantNoCanary(t, err)
			fmt.Fprintf(&report, "%s\n\t%s: %s\n", name, provider.KindOf(err), strings.ReplaceAll(err.Error(), dir, "DIR"))
			// The same with an object that is named.
			if _, err := fetch(class("path", path, "identityFile", key, "objects", "- objectName: zz")); err == nil {
				t.Error("no error for an object that is not there")
			} else {
				wantNoCanary(t, err)
			}
		})
	}
	golden(t, "testdata/errors.txt", report.String())
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	if err != nil || got != string(want) {
		t.Errorf("%s differs, or is missing (%v); go test -update writes it. Got\n%s", path, err, got)
	}
}

func TestAKeyThatTheClassNamesIsNamedInItsErrors(t *testing.T) {
	path, key := seal(t, t.TempDir(), "ok: x\ndb:\n  password: "+canary+"\n", false)
	wantError(t, class("path", path, "identityFile", key, "objects", "- objectName: db"), provider.Invalid, `object "db"`, "line 2", path, "a map or a list")
	wantError(t, class("path", path, "identityFile", key, "objects", "- objectName: gone"), provider.NotFound, `object "gone"`, path, "no such key")
	wantFiles(t, class("path", path, "identityFile", key, "objects", "- objectName: ok"), "ok 0644 x\n")
}

// Whatever the plaintext, the parser ends, names no key twice, gives lines that
// are there, and its errors quote nothing.
func FuzzPlaintext(f *testing.F) {
	for _, plain := range brokenPlaintexts {
		if len(plain) < 1000 {
			f.Add([]byte(plain))
		}
	}
	f.Add([]byte("a: b\nc: !!binary aGVsbG8=\nd: |\n  x\n"))
	f.Add([]byte(`{"a": "b", "c": [1, {"d": null}], "e": 1e3}`))
	f.Fuzz(func(t *testing.T, plain []byte) {
		entries, err := parsePlaintext(plain)
		if err != nil {
			wantStandardText(t, err.Error())
			return
		}
		seen := map[string]bool{}
		for _, e := range entries {
			if seen[e.name] || e.line < 1 || e.line > len(plain)+1 {
				t.Errorf("line %d holds key %q, which was seen: %v", e.line, e.name, seen[e.name])
			}
			seen[e.name] = true
			if _, err := e.contents(); err != nil {
				wantStandardText(t, err.Error())
			}
		}
		// A flat JSON map of strings comes out as encoding/json has it.
		var flat map[string]string
		if json.Unmarshal(plain, &flat) == nil && utf8.Valid(plain) && !bytes.Contains(plain, []byte("null")) && len(flat) == len(entries) {
			for _, e := range entries {
				if e.fault == "" && !e.binary && flat[e.name] != e.value {
					t.Errorf("key %q: got %q, want %q", e.name, e.value, flat[e.name])
				}
			}
		}
	})
}

// wantStandardText fails where an error about a plaintext holds more than
// fixed words and numbers.
func wantStandardText(t *testing.T, text string) {
	t.Helper()
	text = strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, text)
	switch text {
	case "it is not YAML", "line : it is not YAML", "line : it is not a map of keys to values", "line : a key is not a plain string",
		`there is a second document after "---"`, "lines  and  hold the same key", "its value is a map or a list",
		`it has no value (an empty one is "")`, `its value has a tag, or begins with "!" without quotes`,
		"its value has an escape that is not Unicode text", "its !!binary value is not base":
	default:
		t.Errorf("an error may quote the plaintext: %q", text)
	}
}

// The manual's classes have no problem, and its tables list what is read.
func TestTheManualHolds(t *testing.T) {
	text, err := os.ReadFile("README.md")
	must(t, err)
	classes := 0
	for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		var class struct {
			Spec struct {
				Provider   string
				Parameters map[string]string
			}
		}
		must(t, yaml.Unmarshal([]byte(block), &class))
		if problems := New().Validate(class.Spec.Parameters); len(problems) > 0 || class.Spec.Provider != "local" {
			t.Errorf("%v in\n%s", problems, block)
		}
		classes++
	}
	if classes != 2 {
		t.Errorf("%d classes", classes)
	}
	for _, key := range []string{"path", "identityFile", "objects", "objectName", "objectAlias", "filePermission", "optional", "extractJSONKey", "encoding"} {
		if !strings.Contains(string(text), "\n| `"+key+"`") {
			t.Errorf("%s stands in no table", key)
		}
	}
}
