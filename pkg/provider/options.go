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

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// AtOnce is how many requests for the objects of one volume are made to its
// store at the same time.
const AtOnce = 32

// Together calls do for 0 to n-1, AtOnce of them at the same time. The first
// error ends the context of the others and is returned.
func Together(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	if n == 1 {
		return do(ctx, 0)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(AtOnce)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
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
// as they are, everything else as compact JSON, or as YAML.
//
// Errors are of kind NotFound for a missing key, Invalid otherwise, and quote
// nothing of raw.
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
	return o.Encoding.Decode(value)
}

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
	var outer map[string]json.RawMessage
	if err := json.Unmarshal(raw, &outer); err != nil {
		var other any
		if json.Unmarshal(raw, &other) == nil && strings.HasPrefix(key, "/") {
			return jsonAt(raw, key) // a list
		}
		return nil, &Error{Kind: Invalid, Err: errors.New("it is not a JSON object"), Remedy: "remove " + ExtractJSONField + ", or correct what the store holds"}
	}
	if value, ok := outer[key]; ok {
		return jsonText(value)
	}
	if !strings.HasPrefix(key, "/") {
		return nil, missingKey(key, slices.Sorted(maps.Keys(outer)))
	}
	return jsonAt(raw, key)
}

// jsonAt follows a JSON pointer.
func jsonAt(raw json.RawMessage, pointer string) ([]byte, error) {
	at := ""
	for token := range strings.SplitSeq(pointer[1:], "/") {
		token = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
		var object map[string]json.RawMessage
		var list []json.RawMessage
		switch {
		case json.Unmarshal(raw, &object) == nil && object != nil:
			value, ok := object[token]
			if !ok {
				return nil, missingKey(at+"/"+token, slices.Sorted(maps.Keys(object)))
			}
			raw = value
		case json.Unmarshal(raw, &list) == nil && list != nil:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(list) {
				return nil, missingKey(at+"/"+token, nil)
			}
			raw = list[i]
		default:
			return nil, missingKey(at+"/"+token, nil)
		}
		at += "/" + token
	}
	return jsonText(raw)
}

// jsonText returns a string's own bytes, and the compact JSON of anything else.
func jsonText(value json.RawMessage) ([]byte, error) {
	var text string
	if len(value) > 0 && value[0] == '"' && json.Unmarshal(value, &text) == nil {
		return []byte(text), nil
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, value); err != nil {
		return nil, &Error{Kind: Invalid, Err: errors.New("it is not JSON")}
	}
	return compact.Bytes(), nil
}

// yamlValue returns the value of a key of a YAML document.
func yamlValue(raw []byte, key string) ([]byte, error) {
	invalid := func(what string) error {
		return &Error{Kind: Invalid, Err: errors.New(what), Remedy: "remove " + ExtractYAMLField + ", or correct what the store holds"}
	}
	var doc yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	if err := decoder.Decode(&doc); err != nil || len(doc.Content) == 0 {
		return nil, invalid("it is not YAML") // the parser's error may quote it
	}
	if err := decoder.Decode(&yaml.Node{}); err != io.EOF {
		return nil, invalid("it is more than one YAML document")
	}
	node := resolve(doc.Content[0])
	path, at := []string{key}, ""
	if node.Kind != yaml.MappingNode && !strings.HasPrefix(key, "/") {
		return nil, invalid("it is not a YAML map")
	}
	if strings.HasPrefix(key, "/") && (node.Kind != yaml.MappingNode || field(node, key) == nil) {
		path = strings.Split(key[1:], "/")
		at = "/"
		for i := range path {
			path[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(path[i])
		}
	}
	for _, token := range path {
		next, known := yamlChild(node, token)
		if next == nil {
			return nil, missingKey(at+token, known)
		}
		node = next
		if at != "" {
			at += token + "/"
		}
	}
	if node.Kind == yaml.ScalarNode {
		if node.ShortTag() == "!!binary" {
			return EncodingBase64.Decode([]byte(node.Value))
		}
		return []byte(node.Value), nil
	}
	if hasAlias(node) {
		return nil, invalid(fmt.Sprintf("the value of the key %q has YAML aliases", key))
	}
	text, err := yaml.Marshal(node)
	if err != nil {
		return nil, invalid("it cannot be written as YAML again")
	}
	return text, nil
}

// yamlChild returns the value of a map's key or of a list's index, or nil and
// the keys that there are.
func yamlChild(node *yaml.Node, token string) (child *yaml.Node, known []string) {
	switch node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			known = append(known, node.Content[i].Value)
		}
		slices.Sort(known)
		return field(node, token), known
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(token); err == nil && i >= 0 && i < len(node.Content) {
			return resolve(node.Content[i]), nil
		}
	}
	return nil, nil
}

func hasAlias(node *yaml.Node) bool {
	return node.Kind == yaml.AliasNode || slices.ContainsFunc(node.Content, hasAlias)
}

// maxShownKeys bounds how many keys of a document an error names.
const maxShownKeys = 20

func missingKey(key string, known []string) error {
	err := &Error{Kind: NotFound, Err: fmt.Errorf("it has no key %q", key), Remedy: "correct the key in the class"}
	if len(known) > maxShownKeys {
		known = append(known[:maxShownKeys:maxShownKeys], "...")
	}
	if len(known) > 0 {
		err.Remedy = "it has " + strings.Join(known, ", ") + "; " + err.Remedy
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
	if len(contents) > 0 && len(raw) > 0 && &contents[0] == &raw[0] {
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
	var known *Error
	if !errors.As(err, &known) {
		return fmt.Errorf("%s: %w", o.Name, err)
	}
	if known.Object != "" {
		return err
	}
	named := *known
	named.Object = o.Name
	return &named
}
