package provider

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// AtOnce is how many requests for the objects of one volume are made to its
// store at the same time.
const AtOnce = 32

// Together calls do for 0 to n-1, AtOnce of them at the same time, and returns
// when all calls have. The first error ends the context of the others, keeps
// those that have not begun from it, and is returned. A panic of do is an error,
// see Guarded: nobody above could recover it.
func Together(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	if n == 1 {
		return do(ctx, 0)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(AtOnce)
	for i := range n {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return Guarded(func() error { return do(ctx, i) })
		})
	}
	return group.Wait()
}

// UnsetMode is the mode of an object for which the class gives none.
const UnsetMode = fs.ModeIrregular

// The fields of an object that mean the same to every provider.
const (
	OptionalField    = "optional"
	EncodingField    = "encoding"
	ExtractJSONField = "extractJSONKey"
	ExtractYAMLField = "extractYAMLKey"
)

// Encoding is how the text of an object stands for its bytes.
type Encoding string

// The encodings. None, which a class may also write as utf-8, leaves the bytes
// as they are.
const (
	EncodingNone   Encoding = ""
	EncodingBase64 Encoding = "base64"
	EncodingHex    Encoding = "hex"
)

// ParseEncoding reads the name of an encoding, in letters of any case.
func ParseEncoding(name string) (Encoding, error) {
	switch e := Encoding(strings.ToLower(name)); e {
	case EncodingNone, EncodingBase64, EncodingHex:
		return e, nil
	case "utf-8", "utf8":
		return EncodingNone, nil
	}
	return EncodingNone, fmt.Errorf("%q is none of utf-8, base64 and hex", name)
}

// maxKeyDepth bounds a JSON pointer: each level reads all that lies below it.
const maxKeyDepth = 32

// Options are what a class may ask for each object of whatever provider: how
// its file is made of what the store holds.
type Options struct {
	// Optional: the object, or its key, may be missing; there is no file then.
	Optional bool
	// JSONKey and YAMLKey choose one value of a document; at most one is set. See
	// Contents.
	JSONKey, YAMLKey string
	Encoding         Encoding
}

// Options reads the fields of Options, and reports what is wrong with them.
func (it *Item) Options() Options {
	o := Options{Optional: it.Bool(OptionalField), JSONKey: it.Optional(ExtractJSONField), YAMLKey: it.Optional(ExtractYAMLField)}
	if o.JSONKey != "" && o.YAMLKey != "" {
		it.Report(ExtractYAMLField, "it excludes "+ExtractJSONField, "remove one of them")
	}
	for name, key := range map[string]string{ExtractJSONField: o.JSONKey, ExtractYAMLField: o.YAMLKey} {
		if strings.HasPrefix(key, "/") && strings.Count(key, "/") > maxKeyDepth {
			it.Report(name, fmt.Sprintf("it goes deeper than %d levels", maxKeyDepth), "correct it")
		}
	}
	it.interval() // which a layer above reads
	var err error
	if o.Encoding, err = ParseEncoding(it.Optional(EncodingField)); err != nil {
		it.Report(EncodingField, err.Error(), "correct it, or remove it")
	}
	return o
}

// Contents returns what the object's file holds, given what the store has:
// first the key is chosen, then the text is decoded. It may return raw itself.
//
// A key is one of the document's outermost map, or, where it begins with a
// slash and there is no such key, a JSON pointer (RFC 6901). Strings are taken
// as they are, numbers and booleans as the document writes them, lists and maps
// as compact JSON, or as YAML. A key whose value is null counts as missing.
//
// Errors are of kind NotFound for a missing key, Invalid otherwise, and quote
// nothing of raw, not even its keys: what reads as a key may be part of a value.
func (o Options) Contents(raw []byte) ([]byte, error) {
	value := raw
	var err error
	switch {
	case o.JSONKey != "":
		value, err = jsonValue(raw, o.JSONKey)
	case o.YAMLKey != "":
		value, err = yamlValue(raw, o.YAMLKey)
	}
	if err != nil {
		return nil, err
	}
	decoded, err := o.Encoding.Decode(value)
	if !sameBytes(value, raw) && !sameBytes(value, decoded) {
		clear(value)
	}
	return decoded, err
}

// sameBytes tells whether a and b begin at the same place in memory.
func sameBytes(a, b []byte) bool { return len(a) > 0 && len(b) > 0 && &a[0] == &b[0] }

// Decode returns the bytes that text stands for. Base64 may be of the standard or
// of the URL alphabet, padded or not; white space does not count.
func (e Encoding) Decode(text []byte) ([]byte, error) {
	if e == EncodingNone {
		return text, nil
	}
	packed := bytes.Join(bytes.Fields(text), nil)
	var decoded []byte
	var err error
	if e == EncodingHex {
		decoded = make([]byte, hex.DecodedLen(len(packed)))
		_, err = hex.Decode(decoded, packed)
	} else {
		decoded, err = decodeBase64(packed)
	}
	clear(packed)
	if err != nil {
		clear(decoded)
		return nil, &Error{Kind: Invalid, Err: fmt.Errorf("it is not %s", e), Remedy: fmt.Sprintf("correct the object's %s, or what the store holds", EncodingField)}
	}
	return decoded, nil
}

func decodeBase64(packed []byte) ([]byte, error) {
	packed = bytes.TrimRight(packed, "=")
	for i, b := range packed {
		switch b {
		case '-':
			packed[i] = '+'
		case '_':
			packed[i] = '/'
		}
	}
	decoded := make([]byte, base64.RawStdEncoding.DecodedLen(len(packed)))
	n, err := base64.RawStdEncoding.Decode(decoded, packed)
	return decoded[:n], err
}

// jsonValue returns the value of a key of a JSON document.
func jsonValue(raw []byte, key string) ([]byte, error) {
	if !json.Valid(raw) {
		return nil, notJSON("it is not JSON")
	}
	outer, isMap := jsonMap(raw)
	defer clearAll(outer)
	value, ok := outer[key]
	switch {
	case ok:
		return jsonText(value, key)
	case strings.HasPrefix(key, "/"):
		return jsonAt(raw, key)
	case !isMap:
		return nil, notJSON("it is not a JSON object")
	}
	return nil, missingKey(key, slices.Collect(maps.Keys(outer)))
}

// jsonAt follows a JSON pointer through a valid document.
func jsonAt(raw json.RawMessage, pointer string) ([]byte, error) {
	at := ""
	for token := range strings.SplitSeq(pointer[1:], "/") {
		token = pointerEscapes.Replace(token)
		at += "/" + token
		var list []json.RawMessage
		if object, ok := jsonMap(raw); ok {
			defer clearAll(object)
			if raw, ok = object[token]; !ok {
				return nil, missingKey(at, slices.Collect(maps.Keys(object)))
			}
			continue
		}
		if json.Unmarshal(raw, &list) != nil {
			return nil, missingKey(at, nil)
		}
		for _, value := range list {
			defer clear(value)
		}
		i, ok := listIndex(token, len(list))
		if !ok {
			return nil, missingKey(at, nil)
		}
		raw = list[i]
	}
	return jsonText(raw, pointer)
}

// jsonMap returns a map's values, each in a buffer of its own.
func jsonMap(raw []byte) (map[string]json.RawMessage, bool) {
	var object map[string]json.RawMessage
	err := json.Unmarshal(raw, &object)
	return object, err == nil && object != nil
}

func clearAll(object map[string]json.RawMessage) {
	for _, value := range object {
		clear(value)
	}
}

// pointerEscapes are those of RFC 6901.
var pointerEscapes = strings.NewReplacer("~1", "/", "~0", "~")

// listIndex reads an index as RFC 6901 has it: digits, without a needless zero.
func listIndex(token string, size int) (int, bool) {
	i, err := strconv.Atoi(token)
	return i, err == nil && i >= 0 && i < size && strconv.Itoa(i) == token
}

// jsonText returns a string's own bytes, and the compact JSON of anything else,
// in a new buffer.
func jsonText(value json.RawMessage, key string) ([]byte, error) {
	if string(value) == "null" {
		return nil, noValue(key)
	}
	if value[0] == '"' {
		var text string
		// The parser puts U+FFFD in the place of what is not Unicode, which would
		// mount another value than the store has.
		if err := json.Unmarshal(value, &text); err != nil || strings.ContainsRune(text, utf8.RuneError) {
			return nil, notJSON(fmt.Sprintf("the value of the key %q is not Unicode text", key))
		}
		return []byte(text), nil
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, value); err != nil {
		return nil, notJSON("it is not JSON")
	}
	return compact.Bytes(), nil
}

// yamlValue returns the value of a key of a YAML document.
func yamlValue(raw []byte, key string) ([]byte, error) {
	root, err := yamlRoot(raw)
	if err != nil {
		return nil, err
	}
	path, at := []string{key}, ""
	if strings.HasPrefix(key, "/") && (root.Kind != yaml.MappingNode || field(root, key) == nil) {
		path, at = strings.Split(key[1:], "/"), "/"
		for i := range path {
			path[i] = pointerEscapes.Replace(path[i])
		}
	} else if root.Kind != yaml.MappingNode {
		return nil, notYAML("it is not a YAML map")
	}
	node := root
	for i, token := range path {
		next, known, err := yamlChild(node, token)
		if err != nil {
			return nil, err
		}
		if next == nil {
			return nil, missingKey(at+strings.Join(path[:i+1], "/"), known)
		}
		node = next
	}
	return yamlText(node, key)
}

// yamlRoot returns what the only document of raw holds.
func yamlRoot(raw []byte) (*yaml.Node, error) {
	var doc yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	if err := decoder.Decode(&doc); err != nil || len(doc.Content) == 0 {
		return nil, notYAML("it is not YAML") // the parser's error may quote it
	}
	if err := decoder.Decode(&yaml.Node{}); err != io.EOF {
		return nil, notYAML("it is more than one YAML document")
	}
	return resolve(doc.Content[0]), nil
}

// yamlChild returns the value of a map's key or of a list's index, or nil and
// the keys that there are.
func yamlChild(node *yaml.Node, token string) (child *yaml.Node, known []string, err error) {
	switch node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			known = append(known, node.Content[i].Value)
			if node.Content[i].Value != token || node.Content[i].Kind != yaml.ScalarNode {
				continue
			}
			if child != nil {
				return nil, nil, notYAML(fmt.Sprintf("it has the key %q twice", token))
			}
			child = resolve(node.Content[i+1])
		}
	case yaml.SequenceNode:
		if i, ok := listIndex(token, len(node.Content)); ok {
			child = resolve(node.Content[i])
		}
	}
	return child, known, nil
}

func yamlText(node *yaml.Node, key string) ([]byte, error) {
	if node.Kind == yaml.ScalarNode {
		switch node.ShortTag() {
		case "!!null":
			return nil, noValue(key)
		case "!!binary":
			contents, err := EncodingBase64.Decode([]byte(node.Value))
			if err != nil {
				return nil, notYAML(fmt.Sprintf("the !!binary value of the key %q is not base64", key))
			}
			return contents, nil
		}
		return []byte(node.Value), nil
	}
	if hasAlias(node) {
		return nil, notYAML(fmt.Sprintf("the value of the key %q has YAML aliases", key))
	}
	text, err := yaml.Marshal(node)
	if err != nil {
		return nil, notYAML(fmt.Sprintf("the value of the key %q cannot be written as YAML again", key))
	}
	return text, nil
}

func hasAlias(node *yaml.Node) bool {
	return node.Kind == yaml.AliasNode || slices.ContainsFunc(node.Content, hasAlias)
}

func notJSON(what string) error {
	return &Error{Kind: Invalid, Err: errors.New(what), Remedy: "remove " + ExtractJSONField + ", or correct what the store holds"}
}

func notYAML(what string) error {
	return &Error{Kind: Invalid, Err: errors.New(what), Remedy: "remove " + ExtractYAMLField + ", or correct what the store holds"}
}

func noValue(key string) error {
	return &Error{Kind: NotFound, Err: fmt.Errorf("its key %q is null", key), Remedy: "correct the key in the class, or what the store holds"}
}

// missingKey says that there is no such key, and no more of those that there are
// than the class knows by itself.
func missingKey(key string, known []string) error {
	err := &Error{Kind: NotFound, Err: fmt.Errorf("it has no key %q", key), Remedy: "correct the key in the class"}
	name := key[strings.LastIndexByte(key, '/')+1:]
	for _, other := range known {
		if strings.EqualFold(other, name) {
			err.Remedy = fmt.Sprintf("it has one that differs in the case of letters only; %s", err.Remedy)
			break
		}
	}
	return err
}

// Object is one object as a class names it, with all that decides its file.
type Object struct {
	// Name is what errors call it, with its noun: `object "db"`.
	Name string
	// Path is its file's.
	Path string
	Mode fs.FileMode // UnsetMode for that of the request
	Options
}

// File returns the object's file, given what the store holds, of which it keeps
// nothing. It returns nil and no error for an optional object whose key is
// missing.
func (o Object) File(req Request, raw []byte) (*File, error) {
	contents, err := o.Contents(raw)
	if err != nil {
		return nil, o.Failure(err)
	}
	if sameBytes(contents, raw) {
		contents = slices.Clone(contents)
	}
	mode := o.Mode
	if mode == UnsetMode {
		mode = req.Mode
	}
	return &File{Path: o.Path, Mode: mode, Contents: secret.New(contents)}, nil
}

// Failure returns nil where err is of kind NotFound and the object is optional,
// and otherwise err with the object's name in it.
func (o Object) Failure(err error) error {
	if err == nil || o.Optional && KindOf(err) == NotFound {
		return nil
	}
	var named *Error
	if errors.As(err, &named) && named.Object != "" {
		return err
	}
	known, ok := err.(*Error)
	if !ok {
		return fmt.Errorf("%s: %w", o.Name, err)
	}
	copied := *known
	copied.Object = o.Name
	return &copied
}
