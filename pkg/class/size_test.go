package class

import (
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestVolumeSize(t *testing.T) {
	for text, want := range map[string]int64{"64Ki": 64 << 10, "1Gi": 1 << 30, "100000": 100000, " 16Mi ": 16 << 20} {
		c := &SecretProviderClass{Spec: Spec{Parameters: map[string]string{provider.VolumeSizeKey: text}}}
		if got, err := c.VolumeSize(); got != want || err != nil {
			t.Errorf("%q: got %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", "-1", "1", "2Gi", "1e30"} {
		c := &SecretProviderClass{Spec: Spec{Parameters: map[string]string{provider.VolumeSizeKey: text}}}
		if got, err := c.VolumeSize(); provider.KindOf(err) != provider.Invalid {
			t.Errorf("%q: got %d, %v", text, got, err)
		}
	}
	if got, err := (&SecretProviderClass{}).VolumeSize(); got != DefaultVolumeSize || err != nil {
		t.Errorf("got %d, %v", got, err)
	}
}
