package class

import (
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestSealedCache(t *testing.T) {
	of := func(text string) *SecretProviderClass {
		return &SecretProviderClass{Spec: Spec{Parameters: map[string]string{provider.SealedCacheKey: text}}}
	}
	for text, want := range map[string]time.Duration{"10m": 10 * time.Minute, " 4h ": 4 * time.Hour, "168h": 7 * 24 * time.Hour} {
		if got, err := of(text).SealedCache(); got != want || err != nil {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "4", "0s", "9m59s", "-1h", "169h", "never", "true"} {
		if got, err := of(text).SealedCache(); provider.KindOf(err) != provider.Invalid {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	if got, err := (&SecretProviderClass{}).SealedCache(); got != 0 || err != nil {
		t.Errorf("without it: got %v, %v", got, err)
	}
}
