package derive

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// function is what a template may call.
type function struct {
	least, most int // arguments; most is negative where there is no bound
	call        func(r *run, args []any) (any, error)
	// enough tells after which argument no others are evaluated, and that is what
	// the function returns.
	enough func(arg any) bool
}

// functions have the names and the arguments that they have in text/template, or
// in sprig and so in Helm, and are pure: no time, no chance, no environment, no
// file but those of the volume.
var functions = sync.OnceValue(func() map[string]function {
	return map[string]function{
		"file": texts(1, func(r *run, args []string) (any, error) { return r.file(args[0]) }),
		"has":  texts(1, func(r *run, args []string) (any, error) { return r.files.byPath[args[0]] != nil, nil }),

		"b64enc":    changed(func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }),
		"b64dec":    texts(1, func(r *run, args []string) (any, error) { return r.b64dec(args[0]) }),
		"trim":      changed(strings.TrimSpace),
		"upper":     changed(strings.ToUpper),
		"lower":     changed(strings.ToLower),
		"replace":   texts(3, func(r *run, args []string) (any, error) { return r.replace(args[0], args[1], args[2]) }),
		"join":      {2, 2, (*run).join, nil},
		"split":     texts(2, func(r *run, args []string) (any, error) { return r.split(args[0], args[1]) }),
		"splitList": texts(2, func(r *run, args []string) (any, error) { return r.splitList(args[0], args[1]) }),
		"indent":    {2, 2, func(r *run, args []any) (any, error) { return r.indent("", args) }, nil},
		"nindent":   {2, 2, func(r *run, args []any) (any, error) { return r.indent("\n", args) }, nil},
		"quote":     quoting("%q"),
		"squote":    quoting("'%s'"),
		"default":   {1, 2, otherwise, nil},
		"toJson":    {1, 1, func(r *run, args []any) (any, error) { return r.toJSON(args[0]) }, nil},
		"fromJson":  texts(1, func(r *run, args []string) (any, error) { return r.fromJSON(args[0]) }),
		"fromYaml":  texts(1, func(r *run, args []string) (any, error) { return r.fromYAML(args[0]) }),

		"and":      {1, -1, last, func(arg any) bool { return !truth(arg) }},
		"or":       {1, -1, last, truth},
		"not":      {1, 1, func(_ *run, args []any) (any, error) { return !truth(args[0]), nil }, nil},
		"len":      {1, 1, func(_ *run, args []any) (any, error) { return length(args[0]) }, nil},
		"index":    {1, -1, (*run).index, nil},
		"slice":    {1, 3, (*run).slice, nil},
		"print":    printing(fmt.Sprint),
		"println":  printing(fmt.Sprintln),
		"printf":   {1, -1, (*run).printf, nil},
		"html":     printing(func(args ...any) string { return strings.ReplaceAll(html.EscapeString(joined(args)), "\x00", "\uFFFD") }),
		"urlquery": printing(func(args ...any) string { return url.QueryEscape(joined(args)) }),
		"eq":       {2, -1, (*run).eq, nil},
		"ne": {2, 2, func(r *run, args []any) (any, error) {
			equal, err := r.eq(args)
			return equal != true, err
		}, nil},
		"lt": ordered(func(order int) bool { return order < 0 }),
		"le": ordered(func(order int) bool { return order <= 0 }),
		"gt": ordered(func(order int) bool { return order > 0 }),
		"ge": ordered(func(order int) bool { return order >= 0 }),
	}
})

// functionNames are for the parser.
var functionNames = sync.OnceValue(func() map[string]any {
	names := map[string]any{}
	for name := range functions() {
		names[name] = true
	}
	return names
})

// texts is a function of n texts.
func texts(n int, call func(r *run, args []string) (any, error)) function {
	return function{n, n, func(r *run, args []any) (any, error) {
		all := make([]string, n)
		for i, arg := range args {
			text, ok := arg.(string)
			if !ok {
				return nil, wrong("it is given something that is no text")
			}
			all[i] = text
		}
		return call(r, all)
	}, nil}
}

// changed is a function that changes a text.
func changed(change func(string) string) function {
	return texts(1, func(r *run, args []string) (any, error) { return r.done(len(args[0]), change(args[0])) })
}

// last returns the last argument, which nothing before it made needless.
func last(_ *run, args []any) (any, error) { return args[len(args)-1], nil }

// done counts the work of a call that handled so many bytes to return text.
func (r *run) done(handled int, text string) (any, error) {
	if len(text) > maxTextBytes {
		return nil, tooLong("what it returns")
	}
	return text, r.spend(handled + len(text))
}

func (r *run) file(name string) (any, error) {
	m, err := r.files.get(name)
	if err != nil && !slices.Contains(r.compiled.files, name) {
		// The name may be a value.
		err = &provider.Error{Kind: provider.NotFound, Err: errors.New("there is no file of the name that it is given"), Remedy: "correct the template"}
	}
	if err != nil {
		return nil, err
	}
	if m.Contents.Len() > maxTextBytes {
		return nil, tooLong(fmt.Sprintf("the file %q", name))
	}
	r.used = append(r.used, m)
	return r.done(0, string(m.Contents.Reveal()))
}

func (r *run) b64dec(s string) (any, error) {
	decoded, err := provider.EncodingBase64.Decode([]byte(s))
	if err != nil {
		return nil, wrong("it is not base64")
	}
	return r.done(len(s), string(decoded))
}

func (r *run) replace(old, replacement, s string) (any, error) {
	if n := strings.Count(s, old); len(s)+n*(len(replacement)-len(old)) > maxTextBytes {
		return nil, tooLong("what it returns")
	}
	return r.done(len(s)+len(old)+len(replacement), strings.ReplaceAll(s, old, replacement))
}

// join joins the texts of a list.
func (r *run) join(args []any) (any, error) {
	separator, isText := args[0].(string)
	list, isList := args[1].([]any)
	if !isText || !isList {
		return nil, wrong("it is given no text and list")
	}
	total := len(separator) * max(len(list)-1, 0)
	texts := make([]string, len(list))
	for i, value := range list {
		texts[i] = display(value)
		if total += len(texts[i]); total > maxTextBytes {
			return nil, tooLong("what it returns")
		}
	}
	return r.done(16*len(texts), strings.Join(texts, separator))
}

func (r *run) splitList(separator, s string) (any, error) {
	if err := r.spend(34*len(s) + len(separator)); err != nil {
		return nil, err
	}
	var list []any
	for part := range strings.SplitSeq(s, separator) {
		list = append(list, part)
	}
	return list, nil
}

// split returns a map of _0, _1 and so on.
func (r *run) split(separator, s string) (any, error) {
	if err := r.spend(128*len(s) + len(separator)); err != nil {
		return nil, err
	}
	parts := map[string]any{}
	for i, part := range strings.Split(s, separator) {
		parts["_"+strconv.Itoa(i)] = part
	}
	return parts, nil
}

func (r *run) indent(before string, args []any) (any, error) {
	spaces, isNumber := args[0].(int64)
	s, isText := args[1].(string)
	if !isNumber || !isText || spaces < 0 || spaces > 1000 {
		return nil, wrong("it is given no number from 0 to 1000 and text")
	}
	pad := strings.Repeat(" ", int(spaces))
	text, err := r.replace("\n", "\n"+pad, s)
	if err != nil {
		return nil, err
	}
	return r.done(0, before+pad+text.(string))
}

// quoting is a function that puts each of its arguments that is something in
// quotes.
func quoting(format string) function {
	return function{0, -1, func(r *run, args []any) (any, error) {
		if err := r.small(args...); err != nil {
			return nil, err
		}
		var quoted []string
		for _, arg := range args {
			if arg != nil {
				quoted = append(quoted, fmt.Sprintf(format, plain(arg)))
			}
		}
		return r.done(0, strings.Join(quoted, " "))
	}, nil}
}

func otherwise(_ *run, args []any) (any, error) {
	if len(args) == 2 && truth(args[1]) {
		return args[1], nil
	}
	return args[0], nil
}

// small fails where the texts of values have more bytes together than a text may.
func (r *run) small(values ...any) error {
	n := 0
	for _, v := range values {
		n += size(v)
	}
	if n > maxTextBytes {
		return tooLong("what it is given")
	}
	return r.spend(n)
}

// size is about how long a value's text is.
func size(value any) int {
	n := 8
	switch v := value.(type) {
	case string:
		n = len(v)
	case decimal:
		n = len(v)
	case []any:
		for _, inner := range v {
			n += size(inner) + 8
		}
	case map[string]any:
		for key, inner := range v {
			n += len(key) + size(inner) + 8
		}
	}
	return n
}

// plain returns a value's text.
func plain(value any) string {
	if text, ok := value.(string); ok {
		return text
	}
	return fmt.Sprint(value)
}

// joined is how text/template joins what it is to escape: a text as it is.
func joined(args []any) string {
	args = slices.Clone(args)
	for i := range args {
		if args[i] == nil {
			args[i] = "<no value>"
		}
	}
	return fmt.Sprint(args...)
}

func printing(print func(...any) string) function {
	return function{0, -1, func(r *run, args []any) (any, error) {
		if err := r.small(args...); err != nil {
			return nil, err
		}
		return r.done(0, print(args...))
	}, nil}
}

// printf is fmt.Sprintf without what makes much of little: widths of more than
// three digits, widths from arguments, and arguments that are used again. A verb
// that does not fit its argument is an error, not a text.
func (r *run) printf(args []any) (any, error) {
	if err := r.small(args...); err != nil {
		return nil, err
	}
	format, ok := args[0].(string)
	if !ok {
		return nil, wrong("its format is no text")
	}
	args = args[1:]
	var out strings.Builder
	for {
		before, after, found := strings.Cut(format, "%")
		out.WriteString(before)
		if out.Len() > maxTextBytes {
			return nil, tooLong("what it returns")
		}
		if !found {
			break
		}
		flags := after[:len(after)-len(strings.TrimLeft(after, "+-# 0123456789."))]
		if len(flags) == len(after) {
			return nil, wrong("its format ends within a verb")
		}
		verb := after[len(flags)]
		format = after[len(flags)+1:]
		switch {
		case verb == '%' && flags == "":
			out.WriteByte('%')
			continue
		case len(args) == 0:
			return nil, wrong("its format has more verbs than there are arguments")
		case tooWide(flags):
			return nil, wrong("its format has a width of more than 999")
		case !fits(verb, args[0]):
			return nil, wrong("its format has a verb that is not for such an argument")
		}
		fmt.Fprintf(&out, "%"+flags+string(verb), args[0])
		args = args[1:]
	}
	if len(args) > 0 {
		return nil, wrong("its format has fewer verbs than there are arguments")
	}
	return r.done(0, out.String())
}

func tooWide(flags string) bool {
	digits := strings.FieldsFunc(flags, func(c rune) bool { return c < '0' || c > '9' })
	return len(flags) > 12 || slices.ContainsFunc(digits, func(d string) bool { return len(d) > 3 })
}

// fits tells whether a verb of package fmt is for a value.
func fits(verb byte, value any) bool {
	switch value.(type) {
	case string, decimal:
		return strings.IndexByte("vsqxX", verb) >= 0
	case int64:
		return strings.IndexByte("vd", verb) >= 0
	case float64:
		return strings.IndexByte("vfeg", verb) >= 0
	case bool:
		return strings.IndexByte("vt", verb) >= 0
	}
	return verb == 'v'
}

func length(value any) (any, error) {
	switch v := value.(type) {
	case string:
		return int64(len(v)), nil
	case []any:
		return int64(len(v)), nil
	case map[string]any:
		return int64(len(v)), nil
	}
	return nil, wrong("it is given what has no length")
}

// index returns a value of a map or list, or of one within it; nothing for a key
// that a map does not have.
func (r *run) index(args []any) (any, error) {
	value := args[0]
	for _, key := range args[1:] {
		if err := r.small(key); err != nil {
			return nil, err
		}
		switch v := value.(type) {
		case map[string]any:
			name, ok := key.(string)
			if !ok {
				return nil, wrong("a map has keys that are texts")
			}
			value = v[name]
		case []any:
			i, ok := key.(int64)
			if !ok || i < 0 || i >= int64(len(v)) {
				return nil, wrong("a list has no such place")
			}
			value = v[i]
		default:
			return nil, wrong("it goes into what is no map and no list")
		}
	}
	return value, nil
}

// slice returns a part of a text or list.
func (r *run) slice(args []any) (any, error) {
	size, err := length(args[0])
	if _, isMap := args[0].(map[string]any); err != nil || isMap {
		return nil, wrong("it is given no text or list, with one or two places")
	}
	from, to := int64(0), size.(int64)
	for i, into := range []*int64{&from, &to}[:len(args)-1] {
		place, ok := args[i+1].(int64)
		if !ok {
			return nil, wrong("it is given a place that is no number")
		}
		*into = place
	}
	if from < 0 || from > to || to > size.(int64) {
		return nil, wrong("there is no such part")
	}
	if text, ok := args[0].(string); ok {
		return text[from:to], nil
	}
	return args[0].([]any)[from:to], nil
}

// number returns a value as a number.
func number(value any) (float64, bool) {
	switch v := value.(type) {
	case int64:
		return float64(v), true
	case float64:
		return v, true
	case decimal:
		f, err := strconv.ParseFloat(string(v), 64)
		return f, err == nil
	}
	return 0, false
}

// compare returns how a and b are ordered, 0 for equal; not ok where they cannot
// be compared.
func compare(a, b any) (order int, ok bool) {
	if x, isNumber := number(a); isNumber {
		y, isNumber := number(b)
		switch {
		case x < y:
			order = -1
		case x > y:
			order = 1
		}
		return order, isNumber
	}
	x, isText := a.(string)
	y, isTextToo := b.(string)
	return strings.Compare(x, y), isText && isTextToo
}

func (r *run) eq(args []any) (any, error) {
	if err := r.small(args...); err != nil {
		return nil, err
	}
	for _, other := range args[1:] {
		equal, ok := same(args[0], other)
		if !ok {
			return nil, wrong("it is given values of different types")
		}
		if equal {
			return true, nil
		}
	}
	return false, nil
}

// same tells whether a and b are equal; not ok where they are of different types.
func same(a, b any) (equal, ok bool) {
	if a == nil || b == nil {
		return a == nil && b == nil, true
	}
	if x, isBool := a.(bool); isBool {
		y, isBool := b.(bool)
		return isBool && x == y, isBool
	}
	order, ok := compare(a, b)
	return ok && order == 0, ok
}

func ordered(is func(order int) bool) function {
	return function{2, 2, func(r *run, args []any) (any, error) {
		if err := r.small(args...); err != nil {
			return nil, err
		}
		order, ok := compare(args[0], args[1])
		if !ok {
			return nil, wrong("it is given values that have no order")
		}
		return is(order), nil
	}, nil}
}

// toJSON leaves &, < and > as they are.
func (r *run) toJSON(value any) (any, error) {
	if err := r.small(value); err != nil {
		return nil, err
	}
	if !unicodeText(value) {
		return nil, wrong("it is given text that is not UTF-8, which JSON cannot hold; encode it with b64enc")
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, wrong("it is given what JSON cannot hold")
	}
	return r.done(0, strings.TrimSuffix(out.String(), "\n"))
}

func unicodeText(value any) bool {
	switch v := value.(type) {
	case string:
		return utf8.ValidString(v)
	case []any:
		return !slices.ContainsFunc(v, func(inner any) bool { return !unicodeText(inner) })
	case map[string]any:
		for key, inner := range v {
			if !utf8.ValidString(key) || !unicodeText(inner) {
				return false
			}
		}
	}
	return true
}

// What a document costs beside its own length, in memory above all.
const (
	jsonWork = 16
	yamlWork = 64
)

func (r *run) fromJSON(s string) (any, error) {
	if err := r.spend(jsonWork * len(s)); err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(strings.NewReader(s))
	decoder.UseNumber()
	var value any
	if !utf8.ValidString(s) || decoder.Decode(&value) != nil || decoder.More() || len(strings.TrimSpace(s[decoder.InputOffset():])) > 0 {
		return nil, wrong("it is not JSON")
	}
	return exact(value), nil
}

// exact makes integers of numbers where they are such, and keeps the text of
// others: floating point would change them.
func exact(value any) any {
	switch v := value.(type) {
	case json.Number:
		if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return n
		}
		return decimal(v)
	case []any:
		for i := range v {
			v[i] = exact(v[i])
		}
	case map[string]any:
		for key := range v {
			v[key] = exact(v[key])
		}
	}
	return value
}

// fromYAML reads one document without aliases, with which a short text can stand
// for a long one.
func (r *run) fromYAML(s string) (any, error) {
	if err := r.spend(yamlWork * len(s)); err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(s), &doc); err != nil {
		return nil, wrong("it is not YAML")
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	return fromNode(doc.Content[0])
}

func fromNode(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		return fromScalar(n), nil
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, inner := range n.Content {
			var err error
			if list[i], err = fromNode(inner); err != nil {
				return nil, err
			}
		}
		return list, nil
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode {
				return nil, wrong("its YAML has a key that is no text")
			}
			value, err := fromNode(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			m[key.Value] = value
		}
		return m, nil
	}
	return nil, wrong("its YAML has aliases")
}

func fromScalar(n *yaml.Node) any {
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!int":
		if i, err := strconv.ParseInt(n.Value, 10, 64); err == nil {
			return i
		}
	case "!!float":
		if json.Valid([]byte(n.Value)) {
			return decimal(n.Value)
		}
	}
	return n.Value
}
