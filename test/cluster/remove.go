package cluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// remove removes what there is of the cluster, whether it is whole or not. It
// asks the kernel what there is, and no file.
func (c *Cluster) remove(ctx context.Context) error {
	if err := removeMachines(ctx, func(marker string) bool { return strings.HasPrefix(marker, c.dir+":") }); err != nil {
		return err
	}
	if err := c.killHelpers(ctx); err != nil {
		return err
	}
	if err := c.removeLink(ctx); err != nil {
		return err
	}
	if err := removeControlGroups(ctx, c.options.Name); err != nil {
		return err
	}
	if err := unmountBelow(c.dir); err != nil {
		return err
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("remove the cluster's files: %w", err)
	}
	_ = os.Remove(base) // The last one does it.
	return nil
}

// mount is a line of mountinfo.
type mount struct{ path, kind string }

// mounts are those of this process's mount namespace, in their order.
func mounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var all []mount
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 1 {
			return nil, fmt.Errorf("/proc/self/mountinfo: cannot read the line %q", lines.Text())
		}
		all = append(all, mount{unescape.Replace(fields[4]), kind[0]})
	}
	return all, lines.Err()
}

// unmountBelow removes mounts of this host at or below dir, which a cluster does
// not make: removing files would otherwise remove what is mounted.
func unmountBelow(dir string) error {
	all, err := mounts()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(all) {
		if m.path == dir || strings.HasPrefix(m.path, dir+"/") {
			if err := unix.Unmount(m.path, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", m.path, err)
			}
		}
	}
	return nil
}
