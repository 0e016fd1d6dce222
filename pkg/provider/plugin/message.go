package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// kubeletPrefix begins every attribute that kubelet adds to a volume's own.
	kubeletPrefix = "csi.storage.k8s.io/"
	// tokensKey is the attribute in which kubelet hands over a pod's tokens, with
	// a JSON object as its text (CSIDriver.spec.tokenRequests).
	tokensKey = kubeletPrefix + "serviceAccount.tokens"
	// maxCodeBytes bounds a provider's error code, which becomes a metric's label.
	maxCodeBytes = 64
)

// encode writes req as the protocol has it. It fails, with kind Invalid, where
// parameters, attributes and tokens give one key different values.
func encode(req provider.Request) (*v1alpha1.MountRequest, error) {
	attributes, err := encodeAttributes(req)
	if err != nil {
		return nil, err
	}
	secrets := "null" // as encoding/json writes a map that is nil
	if len(req.Secrets) > 0 {
		values := make(map[string][]byte, len(req.Secrets))
		for key, value := range req.Secrets {
			values[key] = value.Reveal()
		}
		secrets = object(values)
	}
	mode := req.Mode
	if mode == 0 {
		mode = provider.DefaultMode
	}
	m := &v1alpha1.MountRequest{
		Attributes: attributes,
		Secrets:    secrets,
		TargetPath: req.TargetPath,
		Permission: strconv.FormatUint(uint64(mode), 10),
	}
	for _, v := range req.Mounted {
		m.CurrentObjectVersion = append(m.CurrentObjectVersion, &v1alpha1.ObjectVersion{Id: v.ID, Version: v.Version})
	}
	return m, nil
}

// encodeAttributes joins parameters, attributes and tokens in one JSON object.
// Neither the pod nor the class can replace what the other, or kubelet, gave.
func encodeAttributes(req provider.Request) (string, error) {
	values := make(map[string][]byte, len(req.Parameters)+len(req.Attributes)+1)
	for key, value := range req.Parameters {
		values[key] = []byte(value)
	}
	for _, key := range slices.Sorted(maps.Keys(req.Attributes)) {
		if set, ok := values[key]; ok && string(set) != req.Attributes[key] {
			return "", clash(key)
		}
		values[key] = []byte(req.Attributes[key])
	}
	if !req.RawTokens.IsEmpty() {
		if set, ok := values[tokensKey]; ok && string(set) != string(req.RawTokens.Reveal()) {
			return "", clash(tokensKey)
		}
		values[tokensKey] = req.RawTokens.Reveal()
	}
	return object(values), nil
}

// clash is the error for a key to which two sides give different values.
func clash(key string) error {
	e := &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("attribute %q", key),
		Err:    errors.New("the class's parameters and the pod's volumeAttributes give it different values, and a pod cannot change a class"),
		Remedy: "remove it from the pod's volumeAttributes"}
	if strings.HasPrefix(key, kubeletPrefix) {
		e.Err = errors.New("kubelet gives it a value, and so does the class or the pod")
		e.Remedy = "remove it from the class's parameters and from the pod's volumeAttributes"
	}
	return e
}

// object returns values as a JSON object of strings with sorted keys. Unlike
// encoding/json it leaves no further copy of a value in memory, be it in a
// buffer that is kept for reuse or in one that was outgrown.
func object(values map[string][]byte) string {
	room := len("{}")
	for key, value := range values {
		room += 2*(len(key)+len(value)) + len(`"":"",`)
	}
	var b strings.Builder
	b.Grow(room)
	b.WriteByte('{')
	for i, key := range slices.Sorted(maps.Keys(values)) {
		if i > 0 {
			b.WriteByte(',')
		}
		quote(&b, key)
		b.WriteByte(':')
		quote(&b, values[key])
	}
	b.WriteByte('}')
	return b.String()
}

// quote appends s as a JSON string (RFC 8259, section 7). What is not UTF-8
// becomes U+FFFD, as in encoding/json.
func quote[T string | []byte](b *strings.Builder, s T) {
	b.WriteByte('"')
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c < ' ':
			fmt.Fprintf(b, `\u%04x`, c)
		case c < utf8.RuneSelf:
			b.WriteByte(c)
		default:
			r, n := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			b.WriteRune(r)
			i += n
			continue
		}
		i++
	}
	b.WriteByte('"')
}

// decode reads a provider's answer and takes over its contents, which it
// clears where it fails. One that writes its files by itself may answer without
// any. Errors are *provider.Error without an Object.
// hide is applied to the provider's own words.
func decode(answer *v1alpha1.MountResponse, writes bool, hide func(string) string) (provider.Result, error) {
	result := provider.Result{InScratch: writes && len(answer.GetFiles()) == 0}
	for _, f := range answer.GetFiles() {
		result.Files = append(result.Files, provider.File{
			Path:     f.GetPath(),
			Mode:     fs.FileMode(f.GetMode()) & fs.ModePerm,
			Contents: secret.New(f.GetContents()),
		})
	}
	if err := check(answer, writes, hide); err != nil {
		result.Clear()
		return provider.Result{}, err
	}
	for _, v := range answer.GetObjectVersion() {
		result.Versions = append(result.Versions, provider.ObjectVersion{ID: v.GetId(), Version: v.GetVersion()})
	}
	return result, nil
}

// check tells why an answer cannot be used, or returns nil. Paths are left to
// whoever checks those of all providers.
func check(answer *v1alpha1.MountResponse, writes bool, hide func(string) string) error {
	if code := answer.GetError().GetCode(); code != "" {
		code = shorten(hide(code), maxCodeBytes)
		return &provider.Error{Kind: provider.Internal, Err: fmt.Errorf("mount request failed with provider error code %s", code),
			Remedy: "the provider's log on this node says more", Code: code}
	}
	if len(answer.GetObjectVersion()) == 0 {
		return &provider.Error{Kind: provider.Internal, Err: errors.New("missing object versions"),
			Remedy: "the protocol wants one for each object: look for a newer version of the provider"}
	}
	if len(answer.GetFiles()) == 0 && !writes {
		return &provider.Error{Kind: provider.Internal, Err: errors.New("it answered without files; perhaps it writes them into the target path by itself"),
			Remedy: "then name it in --legacy-providers, or let it return them (aws: --driver-writes-secrets=true)"}
	}
	for i, f := range answer.GetFiles() {
		if f == nil {
			return &provider.Error{Kind: provider.Internal, Err: fmt.Errorf("entry %d of its files is empty", i+1)}
		}
		if mode := f.GetMode(); mode < 0 || mode > int32(fs.ModePerm) {
			return &provider.Error{Kind: provider.Internal, Err: fmt.Errorf("it gives file %.100q the mode %d, which is not from 0 to 511 (0777)", f.GetPath(), mode)}
		}
	}
	return nil
}
