// Package upstream runs secrets-store-csi-driver itself in a cluster of
// test/cluster: its program, its Helm chart and its manifests, of the version
// that go.mod names.
//
// Its image is made here, since there is no registry to pull from. The two
// programs beside it, node-driver-registrar and livenessprobe, are no part of it;
// the command sidecar takes their place.
package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/csi-secrets/csi-secrets/test/cluster"
)

const (
	module  = "sigs.k8s.io/secrets-store-csi-driver"
	program = "secrets-store-csi-driver"
	tag     = "v1.6.0"
)

// image is an image of upstream's.
type image struct {
	name  string // as its manifests have it
	value string // the chart's value that has it
	local string // without the tag
}

var images = []image{
	{"registry.k8s.io/csi-secrets-store/driver", "linux.image", "localhost/upstream-driver"},
	{"registry.k8s.io/csi-secrets-store/driver-crds", "linux.crds.image", "localhost/upstream-driver-crds"},
	{"registry.k8s.io/sig-storage/csi-node-driver-registrar", "linux.registrarImage", "localhost/upstream-registrar"},
	{"registry.k8s.io/sig-storage/livenessprobe", "linux.livenessProbeImage", "localhost/upstream-livenessprobe"},
}

// Driver builds upstream's program and returns its path.
func Driver(ctx context.Context, c *cluster.Cluster) (string, error) { return c.Program(ctx, program) }

// Folder returns upstream's source tree.
func Folder(ctx context.Context) (string, error) {
	command := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	out, err := command.Output()
	var found struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &found); err == nil {
		err = jsonErr
	}
	if found.Error != "" {
		err = errors.New(found.Error)
	}
	if err == nil && found.Dir == "" {
		err = errors.New("go mod download names no folder")
	}
	if err != nil {
		return "", fmt.Errorf("download %s: %w", module, err)
	}
	return found.Dir, nil
}

// Load gives all nodes the images of upstream.
func Load(ctx context.Context, c *cluster.Cluster) error {
	dir, err := os.MkdirTemp("", "upstream")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	source, err := Folder(ctx)
	if err != nil {
		return err
	}
	driver, err := Driver(ctx, c)
	if err != nil {
		return err
	}
	sidecar := filepath.Join(dir, "sidecar")
	if err := Build(ctx, "github.com/csi-secrets/csi-secrets/test/peer/upstream/sidecar", sidecar); err != nil {
		return err
	}
	crds, err := filepath.Glob(filepath.Join(source, "charts", program, "crds", "*.yaml"))
	if err != nil || len(crds) == 0 {
		return errors.Join(fmt.Errorf("upstream's chart has no CRDs"), err)
	}
	kubectl := map[string]string{"kubectl": c.Kubectl()}
	for _, path := range crds {
		kubectl["crds/"+filepath.Base(path)] = path
	}
	for i, contents := range []Image{
		{Entrypoint: "/secrets-store-csi", Files: map[string]string{"secrets-store-csi": driver, "bin/mount": "/bin/busybox", "bin/umount": "/bin/busybox"}},
		{Entrypoint: "/kubectl", Files: kubectl},
		{Entrypoint: "/registrar", Files: map[string]string{"registrar": sidecar}},
		{Entrypoint: "/livenessprobe", Files: map[string]string{"livenessprobe": sidecar}},
	} {
		contents.Name = images[i].local + ":" + tag
		if err := contents.load(ctx, c, dir); err != nil {
			return err
		}
	}
	return nil
}

// Build builds a package of this module as a static program.
func Build(ctx context.Context, pkg, path string) error {
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, bytes.TrimSpace(out))
	}
	return nil
}

// Chart returns the folder of upstream's Helm chart, and the arguments of helm
// that make it take the images of Load.
func Chart(ctx context.Context) (folder string, arguments []string, err error) {
	source, err := Folder(ctx)
	if err != nil {
		return "", nil, err
	}
	for _, i := range images {
		arguments = append(arguments, "--set", i.value+".repository="+i.local, "--set", i.value+".tag="+tag, "--set", i.value+".pullPolicy=Never")
	}
	return filepath.Join(source, "charts", program), arguments, nil
}

// Manifests returns upstream's static YAML, without what is for Windows and for
// synchronising Secrets, with the images of Load.
func Manifests(ctx context.Context) (string, error) {
	source, err := Folder(ctx)
	if err != nil {
		return "", err
	}
	paths, err := filepath.Glob(filepath.Join(source, "deploy", "*.yaml"))
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for _, path := range paths {
		if strings.Contains(path, "windows") || strings.Contains(path, "syncing") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		all.WriteString("---\n")
		all.Write(text)
	}
	text := strings.ReplaceAll(all.String(), "imagePullPolicy: IfNotPresent", "imagePullPolicy: Never")
	for _, i := range images {
		for {
			at := strings.Index(text, i.name+":")
			if at < 0 {
				break
			}
			end := at + strings.IndexAny(text[at:], "\r\n")
			text = text[:at] + i.local + ":" + tag + text[end:]
		}
	}
	return text, nil
}
