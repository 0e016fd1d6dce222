package azure

import (
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

var _ provider.Concerned = (*Provider)(nil)

// Concerns reports whether a hint names an object of the class, in capitals or
// not. Its kind is not looked at: a certificate is also a key and a secret of the
// same name.
func (p *Provider) Concerns(parameters map[string]string, hints []provider.Hint) bool {
	c := decode(provider.NewParams(parameters))
	for _, h := range hints {
		for _, o := range c.objects {
			switch {
			case h.Store != "" && !strings.EqualFold(h.Store, o.vault):
			case h.Object == "",
				o.find != nil && o.find.MayMatch(h.Object, true),
				o.find == nil && strings.EqualFold(h.Object, o.name):
				return true
			}
		}
	}
	return false
}
