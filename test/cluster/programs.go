package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockTimeout is enough for another process to build everything.
const lockTimeout = 30 * time.Minute

// source is where a program comes from.
type source struct {
	module  string // a folder below programs, whose go.mod has the version and a tool line
	path    string // the package
	version string // the module whose version is the program's
	stamp   string // linker flags, with VERSION for the version
	system  bool   // see orSystem
}

const kubernetesStamp = "-X k8s.io/component-base/version.gitVersion=VERSION -X k8s.io/client-go/pkg/version.gitVersion=VERSION"

const upstream = "sigs.k8s.io/secrets-store-csi-driver"

func kubernetes(name string) source {
	return source{module: "kubernetes", path: "k8s.io/kubernetes/cmd/" + name, version: "k8s.io/kubernetes", stamp: kubernetesStamp}
}

// orSystem takes this machine's program where there is one.
func orSystem(s source) source {
	s.system = true
	return s
}

// sources are all programs that can be built.
func sources() map[string]source {
	return map[string]source{
		"etcd":                    {module: "etcd", path: "go.etcd.io/etcd/server/v3", version: "go.etcd.io/etcd/server/v3"},
		"kube-apiserver":          kubernetes("kube-apiserver"),
		"kube-controller-manager": kubernetes("kube-controller-manager"),
		"kube-scheduler":          kubernetes("kube-scheduler"),
		"kubelet":                 kubernetes("kubelet"),
		"kubectl":                 orSystem(kubernetes("kubectl")),
		"helm": orSystem(source{module: "helm", path: "helm.sh/helm/v3/cmd/helm", version: "helm.sh/helm/v3",
			stamp: "-X helm.sh/helm/v3/internal/version.version=VERSION"}),
		"secrets-store-csi-driver": {module: "upstream", path: upstream + "/cmd/secrets-store-csi-driver", version: upstream,
			stamp: "-X " + upstream + "/pkg/version.BuildVersion=VERSION"},
		"rollouts-controller": {module: "rollouts", path: "github.com/argoproj/argo-rollouts/cmd/rollouts-controller", version: "github.com/argoproj/argo-rollouts",
			stamp: "-X github.com/argoproj/argo-rollouts/utils/version.version=VERSION"},
		// A test tool, never shipped: its licence is BUSL-1.1. It embeds its version
		// itself; some of its plugins refuse to work where it has no date, any will do.
		"vault": {module: "vault", path: "github.com/hashicorp/vault", version: "github.com/hashicorp/vault",
			stamp: "-X github.com/hashicorp/vault/version.BuildDate=2025-11-18T21:04:32Z"},
	}
}

// clusterPrograms are those that every cluster needs.
func clusterPrograms() []string {
	return []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "helm"}
}

// programs builds programs and knows where they are.
type programs struct {
	root  string // of this module
	cache string
	log   io.Writer
}

// CacheDir is the folder of built programs: that in the environment variable
// CSI_SECRETS_CACHE, or csi-secrets in the user's cache.
func CacheDir() (string, error) {
	if dir := os.Getenv("CSI_SECRETS_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("where built programs are kept: %w; set CSI_SECRETS_CACHE", err)
	}
	return filepath.Join(dir, "csi-secrets"), nil
}

// Program builds a program, if the cache does not have it, and returns its path.
// The names are those of sources, see the README for how to add one.
func (c *Cluster) Program(ctx context.Context, name string) (string, error) {
	if err := c.programs.buildAll(ctx, name); err != nil {
		return "", err
	}
	return c.programs.path(name), nil
}

// BuildProgram builds a program, if the cache does not have it, and returns its
// path. It needs no root, and no cluster. Only Cache and Log of o count.
func BuildProgram(ctx context.Context, o Options, name string) (string, error) {
	p, err := newPrograms(&o)
	if err != nil {
		return "", err
	}
	if err := p.buildAll(ctx, name); err != nil {
		return "", err
	}
	return p.path(name), nil
}

// newPrograms fills in what o leaves open.
func newPrograms(o *Options) (*programs, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.Cache == "" {
		dir, err := CacheDir()
		if err != nil {
			return nil, err
		}
		o.Cache = dir
	}
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	return &programs{root: root, cache: o.Cache, log: o.Log}, nil
}

// path is where a program is or will be. It is empty for one that is not known.
func (p *programs) path(name string) string {
	s, ok := sources()[name]
	if !ok {
		return ""
	}
	if s.system {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	version, key, err := p.version(s)
	if err != nil {
		return ""
	}
	return filepath.Join(p.cache, s.module+"-"+version+"-"+key, name)
}

// version is a program's version, and a key of everything that it is built from.
func (p *programs) version(s source) (version, key string, err error) {
	folder := p.folder(s)
	mod, err := os.ReadFile(filepath.Join(folder, "go.mod"))
	if err != nil {
		return "", "", err
	}
	sum, err := os.ReadFile(filepath.Join(folder, "go.sum"))
	if err != nil {
		return "", "", err
	}
	found := regexp.MustCompile(`(?m)^(?:require)?\s+` + regexp.QuoteMeta(s.version) + ` (v\S+)`).FindSubmatch(mod)
	if found == nil {
		return "", "", fmt.Errorf("%s/go.mod does not require %s", folder, s.version)
	}
	hash := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s", mod, sum, s.stamp, runtime.GOARCH))
	return string(found[1]), hex.EncodeToString(hash[:4]), nil
}

func (p *programs) folder(s source) string {
	return filepath.Join(p.root, "test/cluster/programs", s.module)
}

// buildAll builds the programs that the cache does not have. Only one process
// builds at a time.
func (p *programs) buildAll(ctx context.Context, names ...string) error {
	if err := os.MkdirAll(p.cache, 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(ctx, filepath.Join(p.cache, "build.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	for _, name := range names {
		if err := p.build(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (p *programs) build(ctx context.Context, name string) error {
	s, ok := sources()[name]
	if !ok {
		return fmt.Errorf("no program %q is known, see sources in test/cluster", name)
	}
	version, _, err := p.version(s)
	if err != nil {
		return err
	}
	path := p.path(name)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// Modules first: a slow network is not to be mistaken for a slow compiler.
	fmt.Fprintf(p.log, "download the modules of %s\n", name)
	if err := p.run(ctx, s, "go", "list", "-deps", s.path); err != nil {
		return err
	}
	fmt.Fprintf(p.log, "build %s %s, once: this takes up to a few minutes\n", name, version)
	stamp := "-s -w " + strings.ReplaceAll(s.stamp, "VERSION", version)
	if err := p.run(ctx, s, "go", "build", "-trimpath", "-ldflags", stamp, "-o", path+".new", s.path); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// run runs a go command in a program's module. It gives way to others: it has
// no haste, and the machine may be small.
func (p *programs) run(ctx context.Context, s source, command ...string) error {
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "10"}, command...)...)
	cmd.Dir = p.folder(s)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOOS=linux")
	var output strings.Builder
	cmd.Stderr = &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(output.String()))
	}
	return nil
}

// moduleRoot is the folder of this module, at or above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), "module github.com/csi-secrets/csi-secrets\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("a cluster is brought up from within the source tree of csi-secrets: its programs' versions are there")
		}
	}
}

// lock keeps others from bringing a cluster of this name up or down. The file is
// in the cache, so that nothing is left where the cluster was.
func (c *Cluster) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(c.options.Cache, 0o755); err != nil {
		return nil, err
	}
	return lockFile(ctx, filepath.Join(c.options.Cache, c.options.Name+".lock"))
}

// lockFile locks a file, which it makes if need be, until unlock or the end of
// this process.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := poll(ctx, lockTimeout, "wait for another process, which holds "+path, func(context.Context) error {
		return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
