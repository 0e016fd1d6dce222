package class

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Never is the interval of volumes that are refreshed on changes only.
const Never time.Duration = -1

// Interval is how often the volumes of a class are refreshed.
type Interval struct {
	// Class is the class's own interval: 0 where it leaves that to the driver, or
	// Never.
	Class time.Duration `json:"class,omitempty"`
	// Objects is the shortest interval that an object has of its own, 0 for none.
	Objects time.Duration `json:"objects,omitempty"`
	// Noticed says that the driver is told of changes.
	Noticed bool `json:"noticed,omitempty"`
}

// Of returns the interval, given that of classes which leave it to the driver; 0
// for none.
func (i Interval) Of(drivers time.Duration) time.Duration {
	interval := i.Class
	switch interval {
	case 0:
		interval = drivers
	case Never:
		interval = 0
	}
	if i.Objects > 0 && (interval == 0 || i.Objects < interval) {
		return i.Objects
	}
	return interval
}

// RotationInterval returns how often the class's volumes are refreshed: as the
// parameter provider.RotationIntervalKey says, a duration such as "10m" or
// "never", and the fields of the same name of its objects. A volume is refreshed
// as a whole, whenever one of its objects is due. An error is a *provider.Error of
// kind Invalid.
func (c *SecretProviderClass) RotationInterval() (Interval, error) {
	var i Interval
	var err error
	fail := func(key, remedy string, err error) error {
		return &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("class %s: parameter %q", c.Ref(), key), Err: err, Remedy: remedy}
	}
	if text, ok := c.Spec.Parameters[provider.RotationIntervalKey]; ok {
		if i.Class, err = provider.ParseInterval(text); err != nil {
			return Interval{}, fail(provider.RotationIntervalKey, provider.IntervalRemedy, err)
		}
	}
	if text := strings.TrimSpace(c.Spec.Parameters[provider.ChangeNoticesKey]); text != "" {
		if i.Noticed, err = strconv.ParseBool(text); err != nil {
			return Interval{}, fail(provider.ChangeNoticesKey, noticesRemedy, errNotABoolean(text))
		}
	}
	own, others := provider.ObjectIntervals(c.Spec.Parameters)
	for _, interval := range own {
		if interval != Never && (i.Objects == 0 || interval < i.Objects) {
			i.Objects = interval
		}
	}
	if len(own) > 0 && others == 0 {
		i.Class = Never // no object is left that would have it
	}
	return i, nil
}

const noticesRemedy = `write "true" or "false"`

func errNotABoolean(text string) error { return fmt.Errorf("%.40q is not a boolean", text) }
