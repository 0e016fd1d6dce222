package class

import (
	"reflect"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestRotationInterval(t *testing.T) {
	of := func(text string) *SecretProviderClass {
		return &SecretProviderClass{Spec: Spec{Parameters: map[string]string{provider.RotationIntervalKey: text}}}
	}
	for text, want := range map[string]time.Duration{"5s": 5 * time.Second, " 1h30m ": 90 * time.Minute, "720h": 720 * time.Hour, "never": Never} {
		if got, err := of(text).RotationInterval(); !reflect.DeepEqual(got, Interval{Class: want}) || err != nil {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "10", "0s", "4s", "-1m", "721h", "often"} {
		if got, err := of(text).RotationInterval(); provider.KindOf(err) != provider.Invalid {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	if got, err := (&SecretProviderClass{}).RotationInterval(); !reflect.DeepEqual(got, Interval{}) || err != nil {
		t.Errorf("without it: got %v, %v", got, err)
	}
}

func TestObjectsMayHaveIntervalsOfTheirOwn(t *testing.T) {
	const list, others = "- {objectName: a, rotationInterval: 30s}\n- {objectName: b, rotationInterval: 1h}", "\n- objectName: c"
	both := []time.Duration{30 * time.Second, time.Hour}
	for name, c := range map[string]struct {
		parameters map[string]string
		want       Interval
		every      time.Duration // where drivers have 2m
	}{
		"all of them":               {map[string]string{"objects": list}, Interval{Class: Never, Own: both}, 30 * time.Second},
		"all, and the class":        {map[string]string{"objects": list, "rotationInterval": "10s"}, Interval{Class: Never, Own: both}, 30 * time.Second},
		"some":                      {map[string]string{"objects": list + others}, Interval{Own: both}, 30 * time.Second},
		"some, rarely":              {map[string]string{"objects": "- {objectName: a, rotationInterval: 1h}" + others}, Interval{Own: []time.Duration{time.Hour}}, 2 * time.Minute},
		"some, and the class never": {map[string]string{"objects": list + others, "rotationInterval": "never"}, Interval{Class: Never, Own: both, Idle: true}, 30 * time.Second},
		"all never":                 {map[string]string{"objects": "- {objectName: a, rotationInterval: never}"}, Interval{Class: Never, Idle: true}, 0},
		"of the oldest form":        {map[string]string{"objects": "array:\n- |\n  objectName: a\n  rotationInterval: 30s"}, Interval{Class: Never, Own: both[:1]}, 30 * time.Second},
		"of Google":                 {map[string]string{"secrets": "- {resourceName: a, rotationInterval: 30s}"}, Interval{Class: Never, Own: both[:1]}, 30 * time.Second},
		"told":                      {map[string]string{"objects": others[1:], "changeNotices": "true"}, Interval{Noticed: true}, 2 * time.Minute},
	} {
		got, err := (&SecretProviderClass{Spec: Spec{Parameters: c.parameters}}).RotationInterval()
		if !reflect.DeepEqual(got, c.want) || err != nil {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
		if every := got.Of(2 * time.Minute); every != c.every {
			t.Errorf("%s: every %v, want %v", name, every, c.every)
		}
	}
	_, err := (&SecretProviderClass{Spec: Spec{Parameters: map[string]string{"changeNotices": "often"}}}).RotationInterval()
	if provider.KindOf(err) != provider.Invalid {
		t.Errorf("got %v", err)
	}
}
