package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"sigs.k8s.io/yaml"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/test/canned"
)

// The classes that are measured: of files in a folder, and of an external
// provider behind a socket.
const (
	localClass  = "local"
	pluginClass = "plugin"
	pluginName  = "bench"
)

// files is what every volume holds.
var files = map[string]string{
	"username": "app",
	"password": "hunter2-hunter2-hunter2-hunter2-",
}

const (
	// settled is how long a driver is left alone before its idle memory is
	// read. It is longer than what a new watch of a source takes to catch up.
	settled = 1500 * time.Millisecond
	// patience bounds the wait for a refresh.
	patience = 30 * time.Second
)

// bench is one run. Its methods measure; they are called one after another.
type bench struct {
	settings

	report *report // of the part that is measured
	driver string  // the program
	layout standalone.Layout
	source string // the folder that localClass reads
	change int    // counts the values that were written there

	node *standalone.Node

	store       *store // the simulated one
	address, ca string // of the Vault that it is
}

// newBench lays out a node on a tmpfs: what is measured is the driver and the
// kernel, and not the journal of a disk.
func newBench(s settings, folder string) (*bench, error) {
	root := filepath.Join(folder, "node")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs for the node: %w", err)
	}
	layout, err := standalone.NewLayout(root)
	if err != nil {
		return nil, err
	}
	b := &bench{settings: s, driver: driverIn(folder), layout: layout, source: filepath.Join(root, "source")}
	if err := os.Mkdir(b.source, 0o755); err != nil {
		return nil, err
	}
	for name, contents := range files {
		if err := os.WriteFile(filepath.Join(b.source, name), []byte(contents), 0o644); err != nil {
			return nil, err
		}
	}
	return b, errors.Join(b.writeClass(localClass, "", "local", map[string]string{"path": b.source}),
		b.writeClass(pluginClass, "", pluginName, map[string]string{"key": "value"}))
}

// writeClass writes a class in one step. refresh is the value of the annotation
// that has its volumes refreshed.
func (b *bench) writeClass(name, refresh, provider string, parameters map[string]string) error {
	c := class.SecretProviderClass{Spec: class.Spec{Provider: provider, Parameters: parameters}}
	c.APIVersion, c.Kind, c.Name, c.Annotations = class.Group+"/"+class.Version, class.Kind, name, map[string]string{class.RefreshAnnotation: refresh}
	text, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	hidden := filepath.Join(b.layout.Classes(), ".new")
	if err := os.WriteFile(hidden, text, 0o644); err != nil {
		return err
	}
	return os.Rename(hidden, filepath.Join(b.layout.Classes(), name+".yaml"))
}

// rounds measures a part as often as is asked for.
func (b *bench) rounds(ctx context.Context, part string, n int, round func(context.Context) error) error {
	for i := range n {
		fmt.Fprintf(os.Stderr, "%s: round %d of %d\n", part, i+1, n)
		if err := round(ctx); err != nil {
			return fmt.Errorf("%s, round %d: %w%s", part, i+1, err, b.lastOfLog())
		}
		b.report.endRound()
	}
	return nil
}

// floor is the subject whose calls are the measure of all others'.
const floor = "floor"

// measureCalls measures the driver by itself: its calls, its memory, and refreshes
// from a source that tells of changes.
func (b *bench) measureCalls(ctx context.Context) error {
	b.report = newReport(fmt.Sprintf("median of %d rounds; a round makes %d calls one at a time and %d calls %d at a time",
		b.settings.rounds, b.single, b.count, b.parallel), floor)
	stop, err := canned.Serve(b.layout.Providers(), pluginName, files)
	if err != nil {
		return err
	}
	defer stop()
	return b.rounds(ctx, callsPart, b.settings.rounds, b.round)
}

// round measures everything once, with a driver of its own.
func (b *bench) round(ctx context.Context) error {
	if err := b.start(ctx, time.Hour); err != nil { // no refresh but the measured ones comes between
		return err
	}
	defer b.node.Kill()
	if err := b.memory("memory, idle"); err != nil {
		return err
	}
	// One volume of each class stays all the while: the driver watches what a
	// class names from its first volume to its last.
	var kept []batch
	for _, class := range []string{localClass, pluginClass} {
		one, err := b.newBatch(class, "kept-"+class, 1)
		if err != nil {
			return err
		}
		if _, err := b.publish(ctx, one, 1, b.node.NodeClient); err != nil {
			return err
		}
		kept = append(kept, one)
	}
	time.Sleep(settled)
	if err := b.refresh(kept[0]); err != nil {
		return err
	}
	if err := b.many(ctx); err != nil {
		return err
	}
	if err := b.calls(ctx); err != nil {
		return err
	}
	if err := b.memory("memory, after all of these calls"); err != nil {
		return err
	}
	for _, one := range kept { // the next driver shall find nothing to recover
		if _, err := b.unpublish(ctx, one, 1, b.node.NodeClient); err != nil {
			return err
		}
	}
	return b.node.Stop()
}

// start starts a driver with this interval of refreshes, and lets it settle.
func (b *bench) start(ctx context.Context, interval time.Duration) error {
	log, err := os.Create(filepath.Join(b.layout.Root, "driver.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	arguments := b.layout.Arguments("--rotation-poll-interval", interval.String())
	if b.node, err = standalone.Start(ctx, b.layout, log, b.driver, arguments...); err != nil {
		return err
	}
	time.Sleep(settled)
	return nil
}

// lastOfLog returns the end of what the driver logged, to go with an error.
func (b *bench) lastOfLog() string {
	text, err := os.ReadFile(filepath.Join(b.layout.Root, "driver.log"))
	if err != nil || len(text) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\nthe driver's log ends with:\n" + strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// many measures what a driver with many volumes takes, and how soon it
// refreshes them all.
func (b *bench) many(ctx context.Context) error {
	volumes, err := b.newBatch(localClass, "many", b.settings.volumes)
	if err != nil {
		return err
	}
	some := min(200, (b.settings.volumes+1)/2)
	first, rest := batch{volumes.requests[:some]}, batch{volumes.requests[some:]}
	if _, err := b.publish(ctx, first, b.parallel, b.node.NodeClient); err != nil {
		return err
	}
	if err := b.refresh(first); err != nil {
		return err
	}
	if _, err := b.publish(ctx, rest, b.parallel, b.node.NodeClient); err != nil {
		return err
	}
	mounted := fmt.Sprintf("memory, %d volumes mounted", b.settings.volumes)
	if err := b.memory(mounted); err != nil {
		return err
	}
	if err := b.refresh(volumes); err != nil {
		return err
	}
	if err := b.memory(mounted + " and refreshed"); err != nil {
		return err
	}
	_, err = b.unpublish(ctx, volumes, b.parallel, b.node.NodeClient)
	return err
}

// calls measures how long calls take and how many a second there are: the
// floor and each way to publish in turn, first one at a time and then many.
func (b *bench) calls(ctx context.Context) error {
	sizes := map[int]int{1: b.single, b.parallel: b.count}
	for _, parallel := range []int{1, b.parallel} {
		if err := b.floor(ctx, parallel, sizes[parallel]); err != nil {
			return err
		}
		if err := b.probe(ctx, parallel, sizes[parallel]); err != nil {
			return err
		}
		for _, class := range []string{localClass, pluginClass} {
			if err := b.class(ctx, class, parallel, sizes[parallel]); err != nil {
				return err
			}
		}
		if err := b.dialing(ctx, parallel, sizes[parallel]); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) floor(ctx context.Context, parallel, n int) error {
	volumes, err := b.newBatch(localClass, "floor", n)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		call func(target string) error
	}{
		{"publish", func(target string) error { return floorPublish(target, files) }},
		{"unpublish", floorUnpublish},
	} {
		l, err := measure(ctx, parallel, n, func(_ context.Context, i int) error { return step.call(volumes.requests[i].TargetPath) })
		if err != nil {
			return fmt.Errorf("the floor: %w", err)
		}
		b.report.addLoad(floor, step.name, parallel, l)
	}
	return nil
}

// probe measures a call that does nothing: what gRPC costs, here and there.
func (b *bench) probe(ctx context.Context, parallel, n int) error {
	return b.add("gRPC", "a call that does nothing", parallel, func() (load, error) {
		return measure(ctx, parallel, n, func(ctx context.Context, _ int) error {
			_, err := b.node.Probe(ctx, &csi.ProbeRequest{})
			return err
		})
	})
}

// class measures publish, republish and unpublish over one connection.
func (b *bench) class(ctx context.Context, class string, parallel, n int) error {
	volumes, err := b.newBatch(class, class, n)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		call func(context.Context, batch, int, csi.NodeClient) (load, error)
	}{
		{"publish", b.publish}, {"republish", b.publish}, {"unpublish", b.unpublish},
	} {
		err := b.add(class, step.name, parallel, func() (load, error) { return step.call(ctx, volumes, parallel, b.node.NodeClient) })
		if err != nil {
			return err
		}
	}
	return nil
}

// dialing measures what class does, with a new connection for every call as
// kubelet makes it.
func (b *bench) dialing(ctx context.Context, parallel, n int) error {
	volumes, err := b.newBatch(localClass, "dialing", n)
	if err != nil {
		return err
	}
	const subject = "local, new connection a call"
	client := dialer{target: "unix:" + b.layout.Socket()}
	err = b.add(subject, "publish", parallel, func() (load, error) { return b.publish(ctx, volumes, parallel, client) })
	if err != nil {
		return err
	}
	return b.add(subject, "unpublish", parallel, func() (load, error) { return b.unpublish(ctx, volumes, parallel, client) })
}

// add notes what the calls of body took, and what of it the driver's process
// did: the number that other programs on the machine disturb least.
func (b *bench) add(subject, call string, parallel int, body func() (load, error)) error {
	before, err := processorTime(b.node.Process.Pid)
	if err != nil {
		return err
	}
	l, err := body()
	if err != nil {
		return fmt.Errorf("%s, %s, %d at a time: %w", subject, call, parallel, err)
	}
	after, err := processorTime(b.node.Process.Pid)
	if err != nil {
		return err
	}
	b.report.addLoad(subject, call, parallel, l)
	if parallel > 1 { // fewer calls take too few ticks
		b.report.addProcessorTime(subject, call, (after-before)/time.Duration(len(l.latencies)))
	}
	return nil
}

// memory notes what the driver has resident.
func (b *bench) memory(name string) error {
	m, err := memoryOf(b.node.Process.Pid)
	if err == nil {
		b.report.addMemory(name, m)
	}
	return err
}

// refresh changes a secret at its source and notes how long it takes until the
// volumes have the new value.
func (b *bench) refresh(volumes batch) error {
	value := b.nextValue()
	if err := os.WriteFile(filepath.Join(b.source, ".new"), []byte(value), 0o644); err != nil {
		return err
	}
	began := time.Now()
	if err := os.Rename(filepath.Join(b.source, ".new"), filepath.Join(b.source, "password")); err != nil {
		return err
	}
	l, err := b.visible(volumes, value, began)
	if err != nil {
		return err
	}
	if n := len(volumes.requests); n > 1 {
		name := fmt.Sprintf("refresh of %d volumes, source to ", n)
		b.report.add(name+"pod, p50", milliseconds, l.percentile(50))
		b.report.add(name+"pod, p99", milliseconds, l.percentile(99))
		b.report.add(name+"last pod", milliseconds, l.percentile(100))
	} else {
		b.report.add("refresh of 1 volume, source to pod", milliseconds, l.percentile(100))
	}
	return nil
}

// nextValue returns a value that the secret never had.
func (b *bench) nextValue() string {
	b.change++
	return fmt.Sprintf("changed-%d", b.change)
}

// visible waits until the volumes have the value, and returns how long after began
// each of them had: the kernel notes when its ..data was renamed, to a tick.
func (b *bench) visible(volumes batch, value string, began time.Time) (load, error) {
	l := load{}
	for _, request := range volumes.requests {
		for {
			held, err := os.ReadFile(filepath.Join(request.TargetPath, "password"))
			if err != nil {
				return l, fmt.Errorf("a reader failed while its volume was refreshed: %w", err)
			}
			if string(held) == value {
				break
			}
			if time.Since(began) > patience {
				return l, fmt.Errorf("%s still has the old value after %v", request.VolumeId, patience)
			}
			time.Sleep(2 * time.Millisecond)
		}
		var data unix.Stat_t
		if err := unix.Lstat(filepath.Join(request.TargetPath, "..data"), &data); err != nil {
			return l, err
		}
		l.latencies = append(l.latencies, time.Unix(data.Ctim.Unix()).Sub(began))
	}
	slices.Sort(l.latencies)
	return l, nil
}

// batch is a number of volumes that are published together.
type batch struct {
	requests []*csi.NodePublishVolumeRequest
}

// newBatch returns n volumes of a class, whose targets' parents exist: kubelet
// makes these.
func (b *bench) newBatch(class, pods string, n int) (batch, error) {
	v := batch{make([]*csi.NodePublishVolumeRequest, n)}
	for i := range v.requests {
		pod := fmt.Sprintf("%s-%d", pods, i)
		volume := standalone.Volume{Pod: pod, Class: class, Tokens: tokens(pod)}
		v.requests[i] = volume.PublishRequest(b.layout)
		if err := os.MkdirAll(filepath.Dir(v.requests[i].TargetPath), 0o750); err != nil {
			return v, err
		}
	}
	return v, nil
}

// publish publishes the volumes and looks, once the time is taken, that they
// are there.
func (b *bench) publish(ctx context.Context, v batch, parallel int, client csi.NodeClient) (load, error) {
	l, err := measure(ctx, parallel, len(v.requests), func(ctx context.Context, i int) error {
		_, err := client.NodePublishVolume(ctx, v.requests[i])
		return err
	})
	if err != nil {
		return l, err
	}
	for _, request := range v.requests {
		held, err := os.ReadFile(filepath.Join(request.TargetPath, "username"))
		if err != nil || string(held) != files["username"] {
			return l, errors.Join(fmt.Errorf("volume %s was published without its files", request.VolumeId), err)
		}
	}
	return l, nil
}

// unpublish is the reverse of publish.
func (b *bench) unpublish(ctx context.Context, v batch, parallel int, client csi.NodeClient) (load, error) {
	l, err := measure(ctx, parallel, len(v.requests), func(ctx context.Context, i int) error {
		_, err := client.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.requests[i].VolumeId, TargetPath: v.requests[i].TargetPath})
		return err
	})
	if err != nil {
		return l, err
	}
	for _, request := range v.requests {
		if _, err := os.Lstat(request.TargetPath); !errors.Is(err, fs.ErrNotExist) {
			return l, errors.Join(fmt.Errorf("volume %s was unpublished and is still there", request.VolumeId), err)
		}
	}
	return l, nil
}

// dialer is a csi.NodeClient that makes a new connection for every call.
type dialer struct {
	csi.NodeClient // nil: other methods are not called
	target         string
}

func (d dialer) NodePublishVolume(ctx context.Context, request *csi.NodePublishVolumeRequest, options ...grpc.CallOption) (*csi.NodePublishVolumeResponse, error) {
	conn, err := d.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return csi.NewNodeClient(conn).NodePublishVolume(ctx, request, options...)
}

func (d dialer) NodeUnpublishVolume(ctx context.Context, request *csi.NodeUnpublishVolumeRequest, options ...grpc.CallOption) (*csi.NodeUnpublishVolumeResponse, error) {
	conn, err := d.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return csi.NewNodeClient(conn).NodeUnpublishVolume(ctx, request, options...)
}

func (d dialer) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient(d.target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
}
