package launch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// variableName returns the name of the variable for the file at a path within its
// folder.
func variableName(prefix, path string) string {
	name := prefix + strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z' || '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, path)
	if '0' <= name[0] && name[0] <= '9' {
		return "_" + name
	}
	return name
}

// validName reports whether Kubernetes, before it was relaxed, would take name as
// that of a variable.
func validName(name string) bool {
	for i, r := range name {
		switch {
		case 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || r == '_' || r == '.' || r == '-':
		case '0' <= r && r <= '9' && i > 0:
		default:
			return false
		}
	}
	return name != ""
}

// parseEnvFile returns the variables of a file of KEY=value lines or of a JSON
// object, with their places in it as origins. Names are not checked. An error
// tells a line's number or a key, and nothing else of the file.
func parseEnvFile(data []byte) ([]variable, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return parseObject(data)
	}
	return parseLines(string(data))
}

// parseLines parses lines as `docker run --env-file` and `kubectl create secret
// --from-env-file` take them: a value is the rest of its line as it is. Beyond
// that a line may begin with "export ", and quotes around the whole of a value
// are removed.
func parseLines(text string) ([]variable, error) {
	var variables []variable
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line = strings.TrimLeft(strings.TrimSuffix(line, "\r"), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if !ok {
			return nil, fmt.Errorf("line %d has no =; a value of several lines takes a JSON object, or a file of its own", n)
		}
		value, err := unquote(value)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		variables = append(variables, variable{name, value, fmt.Sprintf("line %d", n)})
	}
	return variables, nil
}

// unquote removes quotes around a value. What programs would read differently
// between them is an error.
func unquote(value string) (string, error) {
	if value == "" || value[0] != '"' && value[0] != '\'' {
		return value, nil
	}
	quote := value[:1]
	inner, ok := strings.CutSuffix(value[1:], quote)
	if !ok || strings.Contains(inner, quote) || quote == `"` && strings.ContainsAny(inner, "\\$`") {
		return "", errors.New("the value begins with a quote; end it with the same quote, which must not stand within, and no \\ $ ` between double quotes; or write a JSON object")
	}
	return inner, nil
}

// parseObject parses a JSON object. A key that is null makes no variable.
func parseObject(data []byte) ([]variable, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	malformed := func() error { return fmt.Errorf("it is no JSON at byte %d", d.InputOffset()) }
	if _, err := d.Token(); err != nil {
		return nil, malformed()
	}
	var variables []variable
	seen := map[string]bool{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, malformed()
		}
		token, err := d.Token()
		if err != nil {
			return nil, malformed()
		}
		v := variable{name: key.(string), origin: fmt.Sprintf("key %q", key)}
		if seen[v.name] {
			return nil, fmt.Errorf("%s is there twice", v.origin)
		}
		seen[v.name] = true
		switch t := token.(type) {
		case string:
			v.value = t
		case json.Number:
			v.value = t.String()
		case bool:
			v.value = strconv.FormatBool(t)
		case nil:
			continue
		default:
			return nil, fmt.Errorf("%s is no string, number or boolean; choose values of it in the class, as by extractJSONKey", v.origin)
		}
		// The decoder puts this in the place of what is no Unicode.
		if strings.ContainsRune(v.value, utf8.RuneError) {
			return nil, fmt.Errorf("%s has a character that is no Unicode", v.origin)
		}
		variables = append(variables, v)
	}
	if _, err := d.Token(); err != nil {
		return nil, malformed()
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, malformed()
	}
	return variables, nil
}
