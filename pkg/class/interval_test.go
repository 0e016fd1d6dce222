package class

import (
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestRotationInterval(t *testing.T) {
	of := func(text string) *SecretProviderClass {
		return &SecretProviderClass{Spec: Spec{Parameters: map[string]string{provider.RotationIntervalKey: text}}}
	}
	for text, want := range map[string]time.Duration{"5s": 5 * time.Second, " 1h30m ": 90 * time.Minute, "720h": 720 * time.Hour, "never": Never} {
		if got, err := of(text).RotationInterval(); got != want || err != nil {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "10", "0s", "4s", "-1m", "721h", "often"} {
		if got, err := of(text).RotationInterval(); provider.KindOf(err) != provider.Invalid {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	if got, err := (&SecretProviderClass{}).RotationInterval(); got != 0 || err != nil {
		t.Errorf("without it: got %v, %v", got, err)
	}
}
