package provider

import (
	"fmt"
	"strings"
	"time"
)

// The bounds of an interval of refreshes.
const (
	MinRotationInterval = 5 * time.Second
	MaxRotationInterval = 30 * 24 * time.Hour
)

// never is how an interval of none is written; ParseInterval returns -1 for it.
const never = "never"

// IntervalRemedy says what ParseInterval reads.
const IntervalRemedy = `write a duration from 5s to 720h, as in "10m", or "never"`

// ParseInterval reads how often something is refreshed; -1 stands for never.
func ParseInterval(text string) (time.Duration, error) {
	text = strings.TrimSpace(text)
	if text == never {
		return -1, nil
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

// listKeys are the parameters in which classes list objects, one for each provider.
var listKeys = []string{"objects", "secrets"}

// ObjectIntervals returns the intervals that the objects of a class have of their
// own, and how many objects have none. It leaves it to the provider to tell what
// is wrong with them.
func ObjectIntervals(parameters map[string]string) (own []time.Duration, others int) {
	for _, key := range listKeys {
		if !strings.Contains(parameters[key], RotationIntervalKey) {
			continue
		}
		for _, it := range NewParams(parameters).Objects(key) {
			if interval := it.interval(); interval != 0 {
				own = append(own, interval)
			} else {
				others++
			}
		}
	}
	return own, others
}

// interval returns how often the object is refreshed, 0 where the field is absent.
func (it *Item) interval() time.Duration {
	text := it.Optional(RotationIntervalKey)
	if text == "" {
		return 0
	}
	interval, err := ParseInterval(text)
	if err != nil {
		it.Report(RotationIntervalKey, err.Error(), IntervalRemedy)
	}
	return interval
}
