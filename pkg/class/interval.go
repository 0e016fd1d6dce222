package class

import (
	"fmt"
	"maps"
	"slices"
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
	// Own are the intervals that objects have of their own, in ascending order.
	Own []time.Duration `json:"own,omitempty"`
	// Idle says that some objects are refreshed on changes only.
	Idle bool `json:"idle,omitempty"`
	// Noticed says that the driver is told of changes.
	Noticed bool `json:"noticed,omitempty"`
}

// Kinds are the intervals of a class's objects, by how provider.Due names these objects.
type Kinds map[time.Duration]time.Duration

// Shortest returns the shortest interval, 0 for none.
func (k Kinds) Shortest() time.Duration {
	if len(k) == 0 {
		return 0
	}
	return slices.Min(slices.Collect(maps.Values(k)))
}

// Kinds returns the intervals of the class's objects, given that of classes which
// leave it to the driver, and whether those are all.
func (i Interval) Kinds(drivers time.Duration) (kinds Kinds, all bool) {
	kinds = Kinds{}
	for _, interval := range i.Own {
		kinds[interval] = interval
	}
	switch {
	case i.Class == Never:
	case i.Class > 0:
		kinds[0] = i.Class
	case drivers > 0:
		kinds[0] = drivers
	default:
		return kinds, false
	}
	return kinds, !i.Idle
}

// Of returns the shortest interval, given that of classes which leave it to the
// driver; 0 for none.
func (i Interval) Of(drivers time.Duration) time.Duration {
	kinds, _ := i.Kinds(drivers)
	return kinds.Shortest()
}

// RotationInterval returns how often the class's volumes are refreshed: as the
// parameter provider.RotationIntervalKey says, a duration such as "10m" or
// "never", and the fields of the same name of its objects. An error is a
// *provider.Error of kind Invalid.
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
	i.Idle = slices.Contains(own, Never) || i.Class == Never && others > 0
	slices.Sort(own)
	for _, interval := range slices.Compact(own) {
		if interval != Never {
			i.Own = append(i.Own, interval)
		}
	}
	if len(own) > 0 && others == 0 {
		i.Class = Never // no object is left that would have it
	}
	return i, nil
}

const noticesRemedy = `write "true" or "false"`

func errNotABoolean(text string) error { return fmt.Errorf("%.40q is not a boolean", text) }
