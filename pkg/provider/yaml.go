package provider

import (
	"bytes"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxTraced bounds the text in which the line of a syntax error is looked for,
// in bytes.
const maxTraced = 256 << 10

// ExplainYAML tells where data is not YAML, given the parser's error, why, and
// what to do. The line is 0 where it is not known.
func ExplainYAML(data []byte, err error) (line int, what, remedy string) {
	line, what = traceSyntaxError(data, err)
	remedy = "correct the line, or one of those just above it"
	if lines := bytes.SplitN(data, []byte("\n"), line+1); line > 0 && line <= len(lines) {
		text := lines[line-1]
		if indent := text[:len(text)-len(bytes.TrimLeft(text, " \t"))]; bytes.ContainsRune(indent, '\t') {
			remedy = "indent with spaces, not with tabs"
		}
	}
	return line, what, remedy
}

// SplitYAMLError takes the line, 0 where there is none, out of an error of the
// YAML parser and returns the rest of its text.
func SplitYAMLError(err error) (line int, what string) {
	what = strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(what, "line "); ok {
		if number, rest, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				return n, rest
			}
		}
	}
	return 0, what
}

// traceSyntaxError finds the line of a syntax error: the first one with which
// the text, cut off behind it, is wrong in the same way. The parser itself
// often names only the line where the surrounding map begins.
func traceSyntaxError(data []byte, err error) (line int, what string) {
	line, what = SplitYAMLError(err)
	if len(data) > maxTraced {
		return line, what
	}
	ends := []int{0}
	for i, b := range data {
		if b == '\n' {
			ends = append(ends, i+1)
		}
	}
	if ends[len(ends)-1] != len(data) {
		ends = append(ends, len(data))
	}
	right, wrong := 0, len(ends)-1
	for wrong-right > 1 {
		middle := (right + wrong) / 2
		if _, same := SplitYAMLError(syntaxError(data[:ends[middle]])); same == what {
			wrong = middle
		} else {
			right = middle
		}
	}
	return wrong, what
}

// syntaxError returns the first syntax error of text, or io.EOF.
func syntaxError(text []byte) error {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var root yaml.Node
		if err := decoder.Decode(&root); err != nil {
			return err
		}
	}
}
