package upstream

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/csi-secrets/csi-secrets/test/cluster"
)

// Image is an image of one program.
type Image struct {
	Name       string // with its tag
	Entrypoint string // may be empty
	// Files are the paths of files of this host by their path in the image, which
	// has no leading slash. All can be executed.
	Files map[string]string
}

// Load gives the image to all nodes.
func (i Image) Load(ctx context.Context, c *cluster.Cluster) error {
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return i.load(ctx, c, dir)
}

func (i Image) load(ctx context.Context, c *cluster.Cluster, dir string) error {
	archive := filepath.Join(dir, "image.tar")
	defer os.Remove(archive)
	if err := i.write(archive); err != nil {
		return fmt.Errorf("make image %s: %w", i.Name, err)
	}
	return c.LoadImage(ctx, archive)
}

// write writes the image as `docker save` does.
func (i Image) write(archive string) error {
	layer, err := i.layer()
	if err != nil {
		return err
	}
	process := map[string]any{"Env": []string{"PATH=/bin"}, "WorkingDir": "/"}
	if i.Entrypoint != "" {
		process["Entrypoint"] = []string{i.Entrypoint}
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": process,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{i.Name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range []struct {
		name string
		data []byte
	}{{"layer.tar", layer}, {"config.json", config}, {"manifest.json", manifest}} {
		if err := addFile(w, f.name, int64(len(f.data)), bytes.NewReader(f.data)); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(archive, out.Bytes(), 0o644)
}

// layer is the tar of the image's files.
func (i Image) layer() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}); err != nil {
		return nil, err
	}
	folders := map[string]bool{".": true}
	for _, name := range slices.Sorted(maps.Keys(i.Files)) {
		if dir := path.Dir(name); !folders[dir] {
			folders[dir] = true
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
				return nil, err
			}
		}
		f, err := os.Open(i.Files[name])
		if err != nil {
			return nil, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if err := addFile(w, name, info.Size(), f); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

func addFile(w *tar.Writer, name string, size int64, data io.Reader) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: size}); err != nil {
		return err
	}
	_, err := io.Copy(w, data)
	return err
}
