// Package crds holds the custom resource definitions of the driver, for the
// program to install. They are the ones that the Helm chart ships, and that of
// SecretSync.
package crds

import (
	"embed"
	"io/fs"
)

//go:embed secrets-store.csi.x-k8s.io_*.yaml
var files embed.FS

//go:embed secret-sync.x-k8s.io_secretsyncs.yaml
var secretSyncs []byte

// Documents returns the definitions that every driver needs, one YAML document
// each.
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

// SecretSyncs returns the definition of SecretSync as a YAML document. Helm would
// install it with every driver, so .helmignore keeps it out of the chart.
func SecretSyncs() []byte { return secretSyncs }
