package cluster

import (
	"context"
	"debug/elf"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// busybox is the program of the small image.
const busybox = "/bin/busybox"

// installPackages installs what a cluster needs of the system and does not find.
// A containerd that the system then runs is another one, with other files.
func (c *Cluster) installPackages(ctx context.Context) error {
	var missing []string
	for _, p := range []struct{ program, name string }{
		{"containerd", "containerd"}, {"ctr", "containerd"}, {"runc", "runc"},
		{"ip", "iproute2"}, {"nsenter", "util-linux"}, {"mount", "mount"},
	} {
		if _, err := exec.LookPath(p.program); err != nil {
			missing = append(missing, p.name)
		}
	}
	if _, err := networkPlugins(); err != nil {
		missing = append(missing, "containernetworking-plugins")
	}
	if !isStatic(busybox) {
		missing = append(missing, "busybox-static")
	}
	return c.install(ctx, missing...)
}

// isStatic reports whether a program is there and needs no libraries, as in an
// image that has none.
func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// InstallPackages installs packages of this system, which needs root. Only Log of
// o counts.
func InstallPackages(ctx context.Context, o Options, packages ...string) error {
	p, err := newPrograms(&o)
	if err != nil {
		return err
	}
	return p.install(ctx, packages...)
}

func (c *Cluster) install(ctx context.Context, packages ...string) error {
	return c.programs.install(ctx, packages...)
}

// install installs packages of this system.
func (p *programs) install(ctx context.Context, packages ...string) error {
	if len(packages) == 0 {
		return nil
	}
	fmt.Fprintf(p.log, "install %s\n", strings.Join(packages, " "))
	out, err := exec.CommandContext(ctx, filepath.Join(p.root, "test/install.sh"), packages...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("install %s: %w: %s", strings.Join(packages, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
