package class

import (
	"fmt"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// The bounds of how long an answer may be kept sealed.
const (
	MinSealedCache = 10 * time.Minute
	MaxSealedCache = 7 * 24 * time.Hour
)

// SealedCache returns for how long the class's answers may be kept sealed on a
// node, which the parameter provider.SealedCacheKey sets as a duration such as
// "4h"; 0 for not at all. A node may keep them for less. An error is a
// *provider.Error of kind Invalid.
func (c *SecretProviderClass) SealedCache() (time.Duration, error) {
	text, ok := c.Spec.Parameters[provider.SealedCacheKey]
	if !ok {
		return 0, nil
	}
	lasts, err := parseSealedCache(text)
	if err != nil {
		return 0, &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("class %s: parameter %q", c.Ref(), provider.SealedCacheKey), Err: err, Remedy: sealedCacheRemedy}
	}
	return lasts, nil
}

const sealedCacheRemedy = `write a duration from 10m to 168h, as in "4h", or remove it`

func parseSealedCache(text string) (time.Duration, error) {
	d, err := time.ParseDuration(strings.TrimSpace(text))
	if err != nil {
		return 0, fmt.Errorf("%.40q is not a duration", text)
	}
	if d < MinSealedCache || d > MaxSealedCache {
		return 0, fmt.Errorf("%q is not from 10m to 168h", text)
	}
	return d, nil
}
