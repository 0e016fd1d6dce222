package launch

import (
	"encoding/json"
	"strings"
	"testing"
)

func FuzzEnvFile(f *testing.F) {
	for _, seed := range []string{
		"", "A=1\nB=2\r\n# c\n\n export D='e f'\n", "A=\"b\"", "A='", "A=\"$b\"", "=1", "A", "\ufeffA=1",
		"{}", `{"a": "b", "c": 1e3, "d": true, "e": null}`, `{"a": {"b": 1}}`, `{"a": [1]}`, `{"a": "\ud800"}`, "{\"a\": \"\xff\"}",
		`{"a": 1} x`, `{"a" 1}`, `{"a": 1, "a": 2}`, `{"a": 1,}`, "{", " \n{\"a\": \"\\u0000\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		variables, err := parseEnvFile(data)
		text := strings.TrimPrefix(string(data), "\ufeff")
		if object := map[string]json.RawMessage{}; strings.HasPrefix(strings.TrimSpace(text), "{") {
			if err == nil && json.Unmarshal([]byte(text), &object) != nil {
				t.Errorf("%q is no JSON object", data)
			}
			for _, v := range variables {
				want := string(object[v.name])
				if strings.HasPrefix(want, `"`) {
					_ = json.Unmarshal(object[v.name], &want)
				}
				if v.value != want {
					t.Errorf("%q: %s is %q, not %q", data, v.name, v.value, want)
				}
			}
			return
		}
		for _, v := range variables {
			if !strings.Contains(text, v.name+"=") || !strings.Contains(text, v.value) || strings.Contains(v.value, "\n") {
				t.Errorf("%q makes %q = %q", data, v.name, v.value)
			}
		}
		if err != nil && !strings.HasPrefix(err.Error(), "line ") {
			t.Errorf("%q: %v", data, err)
		}
	})
}

func FuzzVariableName(f *testing.F) {
	for _, seed := range []string{"a", "database/url", "1st", "ü.ß", "\xff", "A_B-c"} {
		f.Add("", seed)
		f.Add("P_", seed)
	}
	f.Fuzz(func(t *testing.T, prefix, path string) {
		if path == "" || prefix != "" && !validName(prefix) {
			return
		}
		name := variableName(prefix, path)
		if !validName(name) || !strings.Contains(name, prefix) {
			t.Fatalf("%q and %q make %q", prefix, path, name)
		}
		if own := strings.TrimPrefix(name, prefix); strings.ToUpper(own) != own || strings.ContainsAny(own, ".-") {
			t.Errorf("%q and %q make %q", prefix, path, name)
		}
	})
}
