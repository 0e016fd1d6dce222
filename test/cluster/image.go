package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Images that every node has. Pods use them with imagePullPolicy Never.
const (
	// BusyboxImage has busybox with all its applets in /bin.
	BusyboxImage = "localhost/busybox:latest"
	// ProjectImage is the image that BuildImage builds.
	ProjectImage = "localhost/csi-secrets:cluster"

	pauseImage = "localhost/pause:latest"
)

// loadBaseImages gives all nodes the sandbox's image and busybox.
func (c *Cluster) loadBaseImages(ctx context.Context) error {
	for _, image := range []struct {
		name    string
		command []string
	}{
		{pauseImage, []string{"/bin/sleep", "2147483647"}},
		{BusyboxImage, []string{"/bin/sh"}},
	} {
		tar := filepath.Join(c.dir, "image.tar")
		if err := writeBusyboxImage(tar, image.name, image.command); err != nil {
			return fmt.Errorf("make image %s: %w", image.name, err)
		}
		if err := errors.Join(c.importImage(ctx, tar), os.Remove(tar)); err != nil {
			return err
		}
	}
	return nil
}

// LoadImage gives all nodes an image: a file of `docker save`, or an OCI archive
// whose manifest is named by the annotation io.containerd.image.name; or else
// the name of one that docker or buildah has.
func (c *Cluster) LoadImage(ctx context.Context, image string) error {
	if info, err := os.Stat(image); err == nil && info.Mode().IsRegular() {
		return c.importImage(ctx, image)
	}
	if _, err := exec.LookPath("docker"); err == nil {
		return c.saveImage(ctx, func(tar string) []string { return []string{"docker", "save", "-o", tar, image} })
	}
	return c.saveImage(ctx, func(tar string) []string {
		return []string{"buildah", "push", image, "docker-archive:" + tar + ":" + image}
	})
}

// saveImage runs a command that writes an image to a file, and gives it to all nodes.
func (c *Cluster) saveImage(ctx context.Context, command func(tar string) []string) error {
	dir, err := os.MkdirTemp(c.dir, "image")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tar := filepath.Join(dir, "image.tar")
	if err := c.help(ctx, command(tar)...); err != nil {
		return fmt.Errorf("load an image that is no file: %w", err)
	}
	return c.importImage(ctx, tar)
}

// help runs a command on this host for the cluster, in the source tree.
func (c *Cluster) help(ctx context.Context, command ...string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = c.programs.root
	// Flags of a make that called this program are not for one that it calls.
	cmd.Env = append(os.Environ(), helperMark+"="+c.dir, "MAKEFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// BuildImage builds the project's image from the source tree, as `make image`
// does, and gives it to all nodes as ProjectImage.
func (c *Cluster) BuildImage(ctx context.Context) error {
	if _, err := exec.LookPath("buildah"); err != nil {
		if err := c.install(ctx, "buildah"); err != nil {
			return err
		}
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	c.logf("build the project's image")
	// What buildah keeps goes with the cluster.
	store := filepath.Join(c.dir, "buildah")
	buildah := []string{"buildah", "--root", store, "--runroot", store + ".run", "--storage-driver", "vfs"}
	if err := c.help(ctx, "make", "image", "IMAGE="+ProjectImage, "ARCHES="+runtime.GOARCH, "PLATFORM=linux/"+runtime.GOARCH, "CONTAINER="+strings.Join(buildah, " ")); err != nil {
		return err
	}
	return c.saveImage(ctx, func(tar string) []string {
		return append(buildah, "push", ProjectImage, "docker-archive:"+tar+":"+ProjectImage)
	})
}

// importImage gives all nodes the images of an archive.
func (c *Cluster) importImage(ctx context.Context, path string) error {
	for _, n := range c.nodes {
		if err := n.importImage(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

// importImage reads the archive here: the node may not see the path.
func (n *Node) importImage(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd, err := n.machine.command(ctx, "ctr", "--namespace", "k8s.io", "images", "import", "-")
	if err != nil {
		return err
	}
	var output strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = io.Reader(f), &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("load %s on %s: %w: %s", path, n.Name, err, strings.TrimSpace(output.String()))
	}
	return nil
}
