// Package crds holds the custom resource definitions of the driver, for the
// program to install. They are the ones that the Helm chart ships.
package crds

import (
	"embed"
	"io/fs"
)

//go:embed *.yaml
var files embed.FS

// Documents returns the definitions, one YAML document each.
func Documents() ([][]byte, error) {
	names, err := fs.Glob(files, "*.yaml")
	if err != nil {
		return nil, err
	}
	documents := make([][]byte, len(names))
	for i, name := range names {
		if documents[i], err = files.ReadFile(name); err != nil {
			return nil, err
		}
	}
	return documents, nil
}
