package main

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestExamplesHaveNoMistake(t *testing.T) {
	var o providerOptions
	all, err := o.stores()
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(all, atATerminal())
	registry := provider.NewRegistry(all, nil)
	classes := 0
	err = filepath.WalkDir("../../examples", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !class.IsFile(d.Name()) {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		documents, problems := class.Decode(path, data)
		for _, doc := range documents {
			problems = append(problems, class.Check(doc, registry.Get)...)
		}
		for _, p := range problems {
			t.Error(p)
		}
		classes += len(documents)
		return nil
	})
	if err != nil || classes == 0 {
		t.Errorf("%d classes, %v", classes, err)
	}
}
