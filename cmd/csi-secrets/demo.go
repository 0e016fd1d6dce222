package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"k8s.io/mount-utils"

	"github.com/csi-secrets/csi-secrets/internal/sandbox"
	"github.com/csi-secrets/csi-secrets/internal/standalone"
)

func demoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show the life of a pod's secrets on this machine, in a few seconds",
		Long: `Show the life of a pod's secrets on this machine, without Kubernetes: the real
driver mounts them, follows a change, survives a kill -9, and takes them away.

It runs in a mount namespace of its own, for an ordinary user in a user
namespace too, and leaves nothing behind.`,
		RunE: func(c *cobra.Command, _ []string) error {
			status := sandbox.Run(func() int {
				ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
				defer stop()
				d := &demo{bold: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == ""}
				err := d.run(ctx)
				if d.node != nil {
					d.node.Kill()
				}
				if err == nil {
					return 0
				}
				if ctx.Err() != nil {
					fmt.Fprintln(os.Stderr, "\nInterrupted. Nothing is left behind.")
					return 130
				}
				fmt.Fprintf(os.Stderr, "\nThe demo failed: %v\nThe driver's log:\n%s", err, d.log.Bytes())
				return 1
			})
			if status == 0 {
				return nil
			}
			return exitStatus(status)
		},
	}
}

const demoClass = `apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: shop
spec:
  provider: local
  parameters:
    path: %s
    objects: |
      - objectName: username
      - objectName: password
        objectAlias: database/password
        filePermission: "0400"
`

// demo walks through the life of one volume. Everything it makes lies on a
// tmpfs that goes with its mount namespace.
type demo struct {
	bold   bool
	log    bytes.Buffer // read only once the driver has ended
	layout standalone.Layout
	node   *standalone.Node
	volume standalone.Volume
	steps  int
}

func (d *demo) run(ctx context.Context) error {
	started := time.Now()
	dir := os.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs for the demo on %s: %w", dir, err)
	}
	var err error
	if d.layout, err = standalone.NewLayout(filepath.Join(dir, "node")); err != nil {
		return err
	}
	d.volume = standalone.Volume{Pod: "web-1", Class: "shop"}
	for _, step := range []func(context.Context) error{d.start, d.publish, d.rotate, d.restart, d.unpublish} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.say("\nThat was all, in %.1f s. The namespace of this demo ends now, and with it its last file.", time.Since(started).Seconds())
	d.say("Next: `csi-secrets node --help`, and README.md.")
	return nil
}

func (d *demo) start(ctx context.Context) error {
	d.title("A secret store, a class and a driver")
	if err := d.setSource(1); err != nil {
		return err
	}
	text := fmt.Sprintf(demoClass, d.source())
	if err := os.WriteFile(filepath.Join(d.layout.Classes(), "shop.yaml"), []byte(text), 0o644); err != nil {
		return err
	}
	d.say("The store is a folder, %s, with the files username and password.", d.source())
	d.say("This SecretProviderClass says what a pod gets of it:\n\n%s", indent(text))
	if err := d.startDriver(ctx); err != nil {
		return err
	}
	info, err := d.node.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	if err != nil {
		return err
	}
	d.say("The driver %s runs as process %d and answers CSI on %s.", info.GetName(), d.node.Process.Pid, d.layout.Socket())
	return nil
}

func (d *demo) startDriver(ctx context.Context) error {
	node, err := standalone.Start(ctx, d.layout, &d.log, "/proc/self/exe", d.layout.Arguments()...)
	if err == nil {
		d.node = node
	}
	return err
}

func (d *demo) publish(ctx context.Context) error {
	d.title("A pod starts: kubelet calls NodePublishVolume")
	began := time.Now()
	if err := d.node.Publish(ctx, d.volume); err != nil {
		return err
	}
	d.say("It took %.1f ms. The pod's volume, %s, holds:\n", time.Since(began).Seconds()*1000, d.target())
	if err := d.list(); err != nil {
		return err
	}
	at, err := d.mountInfo()
	if err != nil {
		return err
	}
	if at == nil {
		return errors.New("the volume is not mounted")
	}
	super := slices.DeleteFunc(at.SuperOptions, func(o string) bool { return o == "rw" })
	d.say("It is a %s, in memory only, and the pod cannot change it: %s,%s", at.FsType, strings.Join(at.MountOptions, ","), strings.Join(super, ","))
	return nil
}

func (d *demo) rotate(ctx context.Context) error {
	d.title("The secret changes in the store while the pod keeps reading")
	r := startReader(d.target())
	defer r.stop()
	if err := r.await(ctx, 1); err != nil {
		return err
	}
	began := time.Now()
	if err := d.setSource(2); err != nil {
		return err
	}
	if err := r.await(ctx, 2); err != nil {
		return err
	}
	took := time.Since(began)
	r.stop()
	d.say("%d ms after the change the pod read the new pair:\n", took.Milliseconds())
	if err := d.list(); err != nil {
		return err
	}
	d.say("A reader that read both files all the while, %d times, saw %d mixed or missing pairs.", r.reads.Load(), r.torn.Load())
	return r.verdict()
}

func (d *demo) restart(ctx context.Context) error {
	d.title("The driver is killed and started again under the mounted volume")
	r := startReader(d.target())
	defer r.stop()
	d.node.Kill()
	d.say("kill -9. The pod still reads its files; nobody unmounted them.")
	if err := r.await(ctx, 2); err != nil {
		return err
	}
	if err := d.startDriver(ctx); err != nil {
		return err
	}
	d.say("The new driver, process %d, found the volume by its record, which holds no value:\n", d.node.Process.Pid)
	records, err := d.layout.Records()
	if err != nil || len(records) != 1 {
		return fmt.Errorf("there are %d records of volumes, not one: %v", len(records), err)
	}
	d.say("  %s\n", records[d.target()])
	if err := d.setSource(3); err != nil {
		return err
	}
	if err := r.await(ctx, 3); err != nil {
		return err
	}
	r.stop()
	d.say("The store changed once more, and the volume followed. The reader: %d reads, %d mixed or missing.", r.reads.Load(), r.torn.Load())
	return r.verdict()
}

func (d *demo) unpublish(ctx context.Context) error {
	d.title("The pod ends: kubelet calls NodeUnpublishVolume")
	if err := d.node.Unpublish(ctx, d.volume); err != nil {
		return err
	}
	at, err := d.mountInfo()
	if err != nil {
		return err
	}
	records, err := d.layout.Records()
	if err != nil {
		return err
	}
	if _, err := os.Stat(d.target()); at != nil || len(records) > 0 || !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("something is left: mount %v, records %q, folder: %v", at, records, err)
	}
	d.say("The files, the mount, its folder and the record are gone.")
	return d.node.Stop()
}

func (d *demo) source() string { return filepath.Join(d.layout.Root, "store") }

func (d *demo) target() string { return d.volume.Target(d.layout) }

// setSource makes the store hold generation n of both files, in one step.
func (d *demo) setSource(n int) error {
	dir := fmt.Sprintf("%s-%d", d.source(), n)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"username", "password"} {
		if err := os.WriteFile(filepath.Join(dir, name), fmt.Appendf(nil, "%s-%d", name, n), 0o600); err != nil {
			return err
		}
	}
	if err := os.Symlink(filepath.Base(dir), d.source()+".new"); err != nil {
		return err
	}
	return os.Rename(d.source()+".new", d.source())
}

// list prints the volume as a pod sees it.
func (d *demo) list() error {
	current, err := filepath.EvalSymlinks(filepath.Join(d.target(), "..data"))
	if err != nil {
		return err
	}
	err = filepath.WalkDir(current, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(current, path)
		content, err := os.ReadFile(filepath.Join(d.target(), name))
		if err != nil {
			return err
		}
		d.say("  %s  %-18s %s", info.Mode(), name, content)
		return nil
	})
	d.say("  (through %s -> %s, which one rename switches)\n", "..data", filepath.Base(current))
	return err
}

func (d *demo) mountInfo() (*mount.MountInfo, error) {
	all, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if m.MountPoint == d.target() {
			return &m, nil
		}
	}
	return nil, nil
}

func (d *demo) title(text string) {
	d.steps++
	text = fmt.Sprintf("%d. %s", d.steps, text)
	if d.bold {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	d.say("\n%s", text)
}

func (d *demo) say(format string, a ...any) { fmt.Printf(format+"\n", a...) }

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n"
}

// reader reads a pair of files over and over, as an application would that
// opens ..data once for each pair.
type reader struct {
	target string
	reads  atomic.Int64
	torn   atomic.Int64
	latest atomic.Int64
	quit   chan struct{}
	done   chan struct{}
}

func startReader(target string) *reader {
	r := &reader{target: target, quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		for {
			select {
			case <-r.quit:
				return
			default:
				r.read()
			}
		}
	}()
	return r
}

func (r *reader) read() {
	// A pair that was switched away under the reader is read again, once.
	for range 2 {
		current, err := os.OpenRoot(filepath.Join(r.target, "..data"))
		if err != nil {
			continue
		}
		username, err1 := current.ReadFile("username")
		password, err2 := current.ReadFile("database/password")
		current.Close()
		if err1 != nil || err2 != nil {
			continue
		}
		var u, p int64
		_, err1 = fmt.Sscanf(string(username), "username-%d", &u)
		_, err2 = fmt.Sscanf(string(password), "password-%d", &p)
		if err1 != nil || err2 != nil || u != p {
			break
		}
		r.latest.Store(u)
		r.reads.Add(1)
		return
	}
	r.torn.Add(1)
}

// await waits until the reader has seen generation n.
func (r *reader) await(ctx context.Context, n int64) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for r.latest.Load() < n {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the new files did not arrive: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func (r *reader) stop() {
	select {
	case <-r.quit:
	default:
		close(r.quit)
	}
	<-r.done
}

func (r *reader) verdict() error {
	if torn := r.torn.Load(); torn > 0 {
		return fmt.Errorf("the reader saw %d mixed or missing pairs", torn)
	}
	return nil
}
