package provider

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// findIn returns the find of the only entry of a list.
func findIn(t *testing.T, text string) (*Find, []Problem) {
	t.Helper()
	p := NewParams(map[string]string{"objects": text})
	items := p.Objects("objects")
	if len(items) != 1 {
		t.Fatalf("%d entries", len(items))
	}
	return items[0].Find(), p.Problems()
}

func TestWhatIsFound(t *testing.T) {
	all := map[string]map[string]string{
		"prod/db": {"team": "web", "tier": "1"}, "prod/api": {"team": "web"}, "prod/a.b": {"team": ""}, "test/db": {"team": "web"}, "": nil,
	}
	for text, want := range map[string]string{
		`{prefix: prod/}`:                       "prod/a.b prod/api prod/db",
		`{pattern: ".*/db"}`:                    "prod/db test/db",
		`{pattern: "db"}`:                       "",
		`{pattern: "prod/db|x"}`:                "prod/db",
		`{tags: {team: web}}`:                   "prod/api prod/db test/db",
		`{tags: {team: web, tier: "1"}}`:        "prod/db",
		`{tags: {team: ""}}`:                    "prod/a.b",
		`{tags: {other: ""}}`:                   "",
		`{prefix: prod/, tags: {team: web}}`:    "prod/api prod/db",
		`{prefix: prod/, pattern: ".*\\..*"}`:   "prod/a.b",
		`{prefix: prod/, limit: 3}`:             "prod/a.b prod/api prod/db",
		`{prefix: prod/, limit: 2}`:             "there are more than 2 such objects",
		`{prefix: prod/db, trimPrefix: "true"}`: "prod/db",
	} {
		f, problems := findIn(t, "- find: "+text)
		if len(problems) > 0 {
			t.Errorf("%s: %v", text, problems)
			continue
		}
		got, err := f.Gather(func(offer func(string, map[string]string) error) error {
			for range 2 { // as pages may overlap
				for name, tags := range all {
					if err := offer(name, tags); err != nil {
						return err
					}
				}
			}
			return nil
		})
		switch {
		case want == "":
			if KindOf(err) != NotFound || !strings.HasPrefix(err.Error(), "find ") {
				t.Errorf("%s: got %v, %v", text, got, err)
			}
		case strings.HasPrefix(want, "there"):
			if KindOf(err) != TooLarge || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, %v", text, got, err)
			}
		case err != nil || strings.Join(got, " ") != want:
			t.Errorf("%s: got %v, %v, want %s", text, got, err, want)
		}
	}
}

func TestAnEndlessListEnds(t *testing.T) {
	f := &Find{Prefix: "x", Limit: 1}
	_, err := f.Gather(func(offer func(string, map[string]string) error) error {
		for i := 0; ; i++ {
			if err := offer(fmt.Sprint(i), nil); err != nil {
				return err
			}
		}
	})
	if KindOf(err) != TooLarge {
		t.Errorf("got %v", err)
	}
	away := errors.New("the store is away")
	if _, err := f.Gather(func(func(string, map[string]string) error) error { return away }); !errors.Is(err, away) {
		t.Errorf("got %v", err)
	}
}

func TestFilesOfFoundObjects(t *testing.T) {
	f, _ := findIn(t, "- find: {prefix: /prod/, trimPrefix: true}")
	if got := f.FileName("/prod/db/user"); got != "db/user" {
		t.Errorf("got %q", got)
	}
	f.TrimPrefix = false
	if got := f.FileName("/prod/db/user"); got != "prod/db/user" {
		t.Errorf("got %q", got)
	}
	for _, folder := range []string{"conf", "conf/"} {
		if got, err := f.Path(folder, "/prod/db"); got != "conf/prod/db" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
	f.TrimPrefix = true
	for _, name := range []string{"/prod/", "/prod/../x", "/prod/a\x00"} {
		if got, err := f.Path("", name); KindOf(err) != Invalid || !strings.Contains(err.Error(), `find prefix "/prod/": the object`) {
			t.Errorf("%q: got %q, %v", name, got, err)
		}
	}
}

func TestAnEntryThatNamesItsObjectFindsNothing(t *testing.T) {
	if f, problems := findIn(t, "- x: y"); f != nil || len(problems) != 1 {
		t.Errorf("got %v, %v", f, problems)
	}
}

func TestMistakesInFind(t *testing.T) {
	for text, want := range map[string]string{
		"- find: prod":                           `line 1, entry 1, "find": it is not a map`,
		"- find: {}":                             "it would take every object",
		"- find: {limit: 5}":                     "it would take every object",
		"- find:\n    pattern: '('":              `line 2, entry 1, "find": "(" is not a regular expression`,
		"- find: {pattern: 'a)|(b'}":             `"a)|(b" is not a regular expression`,
		"- find: {prefix: a, limit: 0}":          `the limit "0" is not a number from 1 to 1000`,
		"- find: {prefix: a, limit: 1001}":       `the limit "1001"`,
		"- find: {prefix: a, limit: many}":       `the limit "many"`,
		"- find: {prefix: [a]}":                  `"prefix" is not a plain value`,
		"- find: {tags: a}":                      `"tags" is not a map of texts`,
		"- find: {prefix: a, trimPrefix: maybe}": `"trimPrefix" is "maybe", not a boolean`,
		"- find: {prefix: a, name: b}":           `it has no "name"; it may have prefix, pattern`,
	} {
		_, problems := findIn(t, text)
		if !slices.ContainsFunc(problems, func(p Problem) bool { return strings.Contains(p.Error(), want) }) {
			t.Errorf("%s: got %v, want %s", text, problems, want)
		}
	}
}
