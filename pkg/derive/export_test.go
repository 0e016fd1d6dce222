package derive

import (
	"maps"
	"slices"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Vocabulary returns every word that the manual has to explain.
func Vocabulary() []string {
	words := slices.Concat(formats, parts, bundleFields, notForTemplates, []string{"path", "template", "filePermission", "replace", provider.OptionalField, provider.ExtractYAMLField})
	return slices.AppendSeq(words, maps.Keys(functions()))
}
