package class

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// The bounds of a volume's tmpfs in bytes. DefaultVolumeSize is a bound too, and
// takes no memory by itself.
const (
	DefaultVolumeSize = 8 << 20
	MinVolumeSize     = 64 << 10
	MaxVolumeSize     = 1 << 30
)

// VolumeSize returns the bound of the class's volumes in bytes, which the
// parameter provider.VolumeSizeKey sets as a quantity such as "16Mi". An error
// is a *provider.Error of kind Invalid.
func (c *SecretProviderClass) VolumeSize() (int64, error) {
	text, ok := c.Spec.Parameters[provider.VolumeSizeKey]
	if !ok {
		return DefaultVolumeSize, nil
	}
	size, err := parseSize(text)
	if err != nil {
		return 0, &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("class %s: parameter %q", c.Ref(), provider.VolumeSizeKey), Err: err, Remedy: sizeRemedy}
	}
	return size, nil
}

const sizeRemedy = `write a quantity of bytes from 64Ki to 1Gi, as in "16Mi"`

func parseSize(text string) (int64, error) {
	q, err := resource.ParseQuantity(strings.TrimSpace(text))
	if err != nil {
		return 0, fmt.Errorf("%q is not a quantity of bytes", text)
	}
	if size := q.Value(); size >= MinVolumeSize && size <= MaxVolumeSize {
		return size, nil
	}
	return 0, fmt.Errorf("%q is not from 64Ki to 1Gi", text)
}
