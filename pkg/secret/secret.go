// Package secret holds the one type in which secret values and tokens travel
// through csi-secrets. A Value can be stored, compared and written to a file;
// it cannot be printed, logged or marshalled: every such path yields Redacted.
package secret

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
)

// Redacted is what a Value shows of itself, whatever it holds.
const Redacted = "[redacted]"

// Value is a secret value or a token. The zero Value is empty and ready to use.
//
// The bytes sit behind a function, so that a Value in an unexported field of a
// struct stays hidden too: package fmt reads such fields by reflection, without
// asking their methods, follows pointers for a verb that it does not expect,
// and prints a function as an address.
//
// Copies of a Value share the same bytes. A Value may be read by several
// goroutines; Clear must not run beside another use.
type Value struct {
	open func() *held
}

type held struct{ bytes []byte }

// New returns a Value that takes b over: the caller must not use b afterwards.
func New(b []byte) Value {
	if len(b) == 0 {
		return Value{}
	}
	h := &held{b}
	return Value{func() *held { return h }}
}

// FromString returns a Value with a copy of s.
func FromString(s string) Value { return New([]byte(s)) }

// Reveal returns the bytes themselves, not a copy. The caller must neither keep
// nor change them, and must not let them reach a log, an error or a disk.
func (v Value) Reveal() []byte {
	if v.open == nil {
		return nil
	}
	return v.open().bytes
}

// Len is the number of bytes.
func (v Value) Len() int { return len(v.Reveal()) }

// IsEmpty reports whether there are no bytes.
func (v Value) IsEmpty() bool { return v.Len() == 0 }

// Equal compares the bytes of two values, in a time that depends on their
// lengths only.
func (v Value) Equal(other Value) bool {
	return subtle.ConstantTimeCompare(v.Reveal(), other.Reveal()) == 1
}

// Clear overwrites the bytes with zeros and drops them, for this Value and
// every copy of it.
func (v Value) Clear() {
	if v.open == nil {
		return
	}
	h := v.open()
	clear(h.bytes)
	h.bytes = nil
}

// String returns Redacted.
func (Value) String() string { return Redacted }

// GoString returns Redacted.
func (Value) GoString() string { return Redacted }

// Format writes Redacted for every verb.
func (Value) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, Redacted) }

// LogValue returns Redacted.
func (Value) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalLog returns Redacted, for logr and klog.
func (Value) MarshalLog() any { return Redacted }

// MarshalText returns Redacted.
func (Value) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// MarshalJSON returns Redacted as a JSON string.
func (Value) MarshalJSON() ([]byte, error) { return json.Marshal(Redacted) }

// MarshalYAML returns Redacted.
func (Value) MarshalYAML() (any, error) { return Redacted, nil }

// MarshalBinary fails: a Value is not to be serialised. It also keeps
// encoding/gob away from the bytes.
func (Value) MarshalBinary() ([]byte, error) {
	return nil, fmt.Errorf("a secret value cannot be serialised")
}
