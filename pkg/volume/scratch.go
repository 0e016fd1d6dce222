package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/mount-utils"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// scratchName is the folder beside a target in which an external provider that
// writes its files by itself may do so.
const scratchName = ".csi-secrets-scratch"

// scratch is an empty tmpfs beside a target, in the folder of the volume that
// external providers see. It is made when a provider asks for it. Pods do not
// see it.
type scratch struct {
	mounter mount.Interface
	dir     string
	options tmpfsOptions
	made    bool
}

func (m *Manager) scratchFor(target string, size int64) *scratch {
	return &scratch{mounter: m.mounter, dir: filepath.Join(filepath.Dir(target), scratchName), options: tmpfsOptions{size: size, noswap: m.noswap}}
}

// Open makes the scratch and returns its path.
func (s *scratch) Open() (string, error) {
	if err := s.remove(); err != nil {
		return "", err
	}
	t, err := newTree(s.options)
	if err != nil {
		return "", err
	}
	dir, err := makeTarget(s.dir)
	if err != nil {
		t.close()
		return "", err
	}
	defer dir.Close()
	s.made = true // in part, if what follows fails
	if err := t.attach(dir, true); err != nil {
		return "", err
	}
	return s.dir, nil
}

// Files returns what a provider wrote there.
func (s *scratch) Files() ([]provider.File, error) {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var files []provider.File
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("the provider made %q, which is neither a file nor a folder", path)
		}
		if err := provider.CheckPath(path); err != nil {
			return err
		}
		content, err := root.ReadFile(path)
		files = append(files, provider.File{Path: path, Mode: info.Mode().Perm(), Contents: secret.New(content)})
		return err
	})
	if err != nil {
		provider.Result{Files: files}.Clear()
		return nil, fmt.Errorf("read what the provider wrote: %w", err)
	}
	if len(files) == 0 {
		return nil, errors.New("the provider answered without files and wrote none; is kubelet's folder mounted into its container, with mountPropagation: HostToContainer?")
	}
	return files, nil
}

// close removes the scratch, if it was made.
func (s *scratch) close() error {
	if !s.made {
		return nil
	}
	return s.remove()
}

// remove removes the scratch with all that it holds, or what a crash left of it.
func (s *scratch) remove() error {
	for range maxStacked {
		mounted, err := isMounted(s.mounter, s.dir)
		if err != nil {
			return err
		}
		if !mounted {
			break
		}
		if err := unmount(s.dir); err != nil {
			return err
		}
	}
	// A provider that was given up may still write: whatever it wrote since the
	// unmount goes too.
	if err := removeTarget(s.dir); err != nil {
		return fmt.Errorf("remove the folder that a provider wrote to: %w", err)
	}
	return nil
}
