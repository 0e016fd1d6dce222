package provider

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// nameRule is secrets-store-csi-driver's rule for the name of a provider,
// which is also the base name of an external provider's socket.
var nameRule = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,30}$`)

// CheckName tells why name cannot name a provider, or returns nil.
func CheckName(name string) error {
	if !nameRule.MatchString(name) {
		return &Error{Kind: Invalid, Object: fmt.Sprintf("provider %q", name),
			Err:    fmt.Errorf("invalid provider"),
			Remedy: "a provider's name has 1 to 30 letters, digits, - or _"}
	}
	return nil
}

// Registry finds a provider by the name that a class gives. It is filled
// before use and safe for concurrent reading.
type Registry struct {
	embedded map[string]Provider
	external func(name string) (Provider, error)
}

// NewRegistry returns a registry of the embedded providers. A name that is not
// among them is asked of external, which may be nil.
func NewRegistry(embedded map[string]Provider, external func(name string) (Provider, error)) *Registry {
	return &Registry{embedded: maps.Clone(embedded), external: external}
}

// Get returns the provider of that name, or an *Error that names those there are.
func (r *Registry) Get(name string) (Provider, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if p, ok := r.embedded[name]; ok {
		return p, nil
	}
	if r.external != nil {
		return r.external(name)
	}
	return nil, &Error{Kind: NotFound, Object: fmt.Sprintf("provider %q", name),
		Err:    fmt.Errorf("provider not found"),
		Remedy: "embedded here: " + strings.Join(slices.Sorted(maps.Keys(r.embedded)), ", ")}
}
