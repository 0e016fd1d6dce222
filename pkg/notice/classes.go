package notice

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Lister has all classes. What List returns is shared and must not be changed. It
// waits until the classes are known, as long as ctx lasts.
type Lister interface {
	List(ctx context.Context) ([]*class.SecretProviderClass, error)
}

// Finder finds the classes that hints are about. It is safe for concurrent use.
type Finder struct {
	Classes Lister
	// Provider returns the provider of that name, as provider.Registry.Get does.
	Provider func(name string) (provider.Provider, error)
}

// Find returns the classes that one of the hints may be about. A provider that
// does not know what its classes name is taken to name what is part of a
// parameter's text.
func (f Finder) Find(ctx context.Context, hints []provider.Hint) ([]*class.SecretProviderClass, error) {
	classes, err := f.Classes.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the classes that a notice is about: %w", err)
	}
	providers := map[string]provider.Provider{}
	for _, h := range hints {
		if h.Provider != provider.AnyProvider {
			providers[h.Provider], _ = f.Provider(h.Provider)
		}
	}
	var found []*class.SecretProviderClass
	for _, c := range classes {
		name := c.Spec.Provider
		of, known := providers[name]
		if !known {
			of, _ = f.Provider(name)
			providers[name] = of
		}
		var its []provider.Hint
		for _, h := range hints {
			// A provider may have two names.
			if h.Provider == provider.AnyProvider || h.Provider == name || of != nil && providers[h.Provider] == of {
				its = append(its, h)
			}
		}
		if len(its) > 0 && concerns(of, c.Spec.Parameters, its) {
			found = append(found, c)
		}
	}
	return found, nil
}

func concerns(of provider.Provider, parameters map[string]string, hints []provider.Hint) bool {
	if knows, ok := of.(provider.Concerned); ok {
		return knows.Concerns(parameters, hints)
	}
	return slices.ContainsFunc(hints, func(h provider.Hint) bool {
		for _, text := range parameters {
			if strings.Contains(text, h.Object) {
				return true
			}
		}
		return false
	})
}
