package class

import (
	"fmt"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// The bounds of an interval of refreshes.
const (
	MinRotationInterval = 5 * time.Second
	MaxRotationInterval = 30 * 24 * time.Hour
)

// RotationInterval returns how often the class's volumes are refreshed, which the
// parameter provider.RotationIntervalKey sets as a duration such as "10m" or
// "never". It is 0 where the class leaves that to the driver, and Never for
// changes only. An error is a *provider.Error of kind Invalid.
func (c *SecretProviderClass) RotationInterval() (time.Duration, error) {
	text, ok := c.Spec.Parameters[provider.RotationIntervalKey]
	if !ok {
		return 0, nil
	}
	interval, err := parseInterval(text)
	if err != nil {
		return 0, &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("class %s: parameter %q", c.Ref(), provider.RotationIntervalKey), Err: err, Remedy: intervalRemedy}
	}
	return interval, nil
}

// Never is the interval of volumes that are refreshed on changes only.
const Never time.Duration = -1

const intervalRemedy = `write a duration from 5s to 720h, as in "10m", or "never"`

func parseInterval(text string) (time.Duration, error) {
	text = strings.TrimSpace(text)
	if text == "never" {
		return Never, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%.40q is not a duration", text)
	}
	if d < MinRotationInterval || d > MaxRotationInterval {
		return 0, fmt.Errorf("%q is not from 5s to 720h", text)
	}
	return d, nil
}
