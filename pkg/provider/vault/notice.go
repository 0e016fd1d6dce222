package vault

import (
	"slices"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

var _ provider.Concerned = (*Provider)(nil)

// Concerns reports whether a hint names a path that the class reads, with or
// without v1/ and the namespace before it, and with data/, metadata/ or neither
// after its mount. Its Store is not looked at: a server has many addresses.
func (v *Provider) Concerns(parameters map[string]string, hints []provider.Hint) bool {
	d := v.decode(provider.NewParams(parameters))
	for _, h := range hints {
		if slices.ContainsFunc(d.objects, func(o object) bool { return o.concerned(h.Object, d.conn.Namespace) }) {
			return true
		}
	}
	return false
}

func (o object) concerned(changed, namespace string) bool {
	if changed == "" {
		return true
	}
	changed, _, _ = strings.Cut(strings.TrimPrefix(strings.Trim(changed, "/"), "v1/"), "?")
	inside := strings.TrimPrefix(changed, strings.Trim(namespace, "/")+"/")
	for _, mine := range spellings(strings.TrimPrefix(o.request.path, "v1/")) {
		for _, its := range append(spellings(changed), spellings(inside)...) {
			if its == mine {
				return true
			}
			if name, below := strings.CutPrefix(its, mine+"/"); below && o.find != nil && o.find.MayMatch(name, false) {
				return true
			}
		}
	}
	return false
}

// spellings returns a path as it is and, where a segment of it may be that which
// KV version 2 has after its mount, without that.
func spellings(path string) []string {
	all := []string{path}
	segments := strings.Split(path, "/")
	i := slices.IndexFunc(segments, func(s string) bool { return s == "data" || s == "metadata" })
	if i > 0 {
		all = append(all, strings.Join(slices.Delete(segments, i, i+1), "/"))
	}
	return all
}
