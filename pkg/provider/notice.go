package provider

import (
	"regexp"
	"strings"
)

// AnyProvider in a Hint stands for every provider.
const AnyProvider = "*"

// Hint says that an object may have changed at its store. It leads to a refresh
// and to nothing else, so that a false one does no harm. It holds no secret.
type Hint struct {
	// Provider is a provider's name as classes have it, or AnyProvider.
	Provider string `json:"provider"`
	// Store is where the object is: for azure the name of the key vault, for aws
	// ACCOUNT/REGION, for gcp the project; other providers do not look at it. It
	// may be empty for any.
	Store string `json:"store,omitempty"`
	// Object is the object's name, or its ARN or resource name; empty for every
	// object of the store.
	Object string `json:"object,omitempty"`
}

// Concerned is a Provider that knows which objects a class names. Concerns
// reports whether one of the hints, which are all for this provider, may be about
// an object that these parameters name or would find. It asks no store, and is true
// where it cannot be sure: a refresh too many is harmless, one too few is not.
type Concerned interface {
	Concerns(parameters map[string]string, hints []Hint) bool
}

// MayMatch is Match for an object whose tags are not known, and which its store
// may spell with other capitals where fold is true.
func (f *Find) MayMatch(name string, fold bool) bool {
	untagged := *f
	untagged.Tags = nil
	if fold {
		name, untagged.Prefix = strings.ToLower(name), strings.ToLower(f.Prefix)
		if f.Pattern != nil {
			untagged.Pattern = regexp.MustCompile("(?i)" + f.Pattern.String())
		}
	}
	return untagged.Match(name, nil)
}
