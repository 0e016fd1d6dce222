package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/test/canned"
	"github.com/csi-secrets/csi-secrets/test/cluster"
)

// settled is how long a driver is left alone before its memory is read.
const settled = 2 * time.Second

// comparison measures both drivers, one after the other in each round.
type comparison struct {
	settings

	folder  string
	cluster *cluster.Cluster
	objects *objects
	report  report
}

// measureAll runs inside the sandbox.
func measureAll(ctx context.Context, s settings, folder string) error {
	c, err := cluster.Up(ctx, options()) // which is up
	if err != nil {
		return err
	}
	o, err := makeObjects(ctx, c.Kubeconfig())
	if err != nil {
		return err
	}
	m := &comparison{settings: s, folder: folder, cluster: c, objects: o}
	for i := range s.rounds {
		drivers := []string{theirsName, oursName}
		if i%2 == 1 {
			slices.Reverse(drivers)
		}
		for _, driver := range drivers {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", i+1, s.rounds, driver)
			if err := m.measure(ctx, driver, i); err != nil {
				return fmt.Errorf("%s: %w; its log ends with\n%s", driver, err, m.logTail(driver))
			}
		}
	}
	return m.report.write(os.Stdout, s)
}

func (m *comparison) logPath(driver string) string { return filepath.Join(m.folder, driver+".log") }

func (m *comparison) logTail(driver string) string {
	text, _ := os.ReadFile(m.logPath(driver))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}

// measure measures one driver once, on a node of its own on a tmpfs.
func (m *comparison) measure(ctx context.Context, driver string, round int) error {
	root := filepath.Join(m.folder, fmt.Sprintf("n%d%c", round, driver[0]))
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount a tmpfs for the node: %w", err)
	}
	defer func() { _ = unix.Unmount(root, unix.MNT_DETACH) }()
	layout, err := standalone.NewLayout(root)
	if err != nil {
		return err
	}
	stop, err := canned.Serve(layout.Providers(), providerName, files)
	if err != nil {
		return err
	}
	defer stop()
	defer func() {
		if err := m.objects.removeAll(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	// Memory is that of a driver without a past.
	if err := m.withDriver(ctx, driver, layout, m.measureMemory); err != nil {
		return err
	}
	return m.withDriver(ctx, driver, layout, m.measureCalls)
}

// withDriver runs a driver while body runs, with what runs beside it.
func (m *comparison) withDriver(ctx context.Context, driver string, l standalone.Layout, body func(context.Context, string, *standalone.Node, []int) error) error {
	log, err := os.OpenFile(m.logPath(driver), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	node, err := standalone.Start(ctx, l, log, filepath.Join(m.folder, driver), arguments(driver, m.cluster.Kubeconfig(), l)...)
	if err != nil {
		return err
	}
	defer node.Kill()
	var beside []int
	for _, arguments := range sidecars(driver, l) {
		command := exec.CommandContext(ctx, filepath.Join(m.folder, sidecarName), arguments...)
		command.Stdout, command.Stderr = log, log
		command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := command.Start(); err != nil {
			return err
		}
		defer func() { _ = command.Process.Kill(); _ = command.Wait() }()
		beside = append(beside, command.Process.Pid)
	}
	return body(ctx, driver, node, beside)
}

func (m *comparison) measureMemory(ctx context.Context, driver string, node *standalone.Node, beside []int) error {
	kept, err := m.objects.newBatch(ctx, node.Layout, m.volumes)
	if err != nil {
		return err
	}
	time.Sleep(settled)
	if err := m.memory(driver, "memory, idle", node, beside); err != nil {
		return err
	}
	if _, err := publish(ctx, node, kept, m.parallel); err != nil {
		return err
	}
	if err := m.objects.haveStatuses(ctx, kept); err != nil {
		return err
	}
	time.Sleep(settled)
	if err := m.memory(driver, fmt.Sprintf("memory, %d volumes", m.volumes), node, beside); err != nil {
		return err
	}
	_, _, err = unpublish(ctx, node, kept, m.parallel)
	return err
}

func (m *comparison) measureCalls(ctx context.Context, driver string, node *standalone.Node, _ []int) error {
	single, err := m.objects.newBatch(ctx, node.Layout, m.single)
	if err != nil {
		return err
	}
	many, err := m.objects.newBatch(ctx, node.Layout, m.count[driver])
	if err != nil {
		return err
	}
	if err := m.lifecycle(ctx, driver, node, single, 1); err != nil {
		return err
	}
	// What a driver asks at its start is behind it; here is what a publish takes.
	before, err := m.requests()
	if err != nil {
		return err
	}
	if err := m.lifecycle(ctx, driver, node, many, m.parallel); err != nil {
		return err
	}
	after, err := m.requests()
	if err != nil {
		return err
	}
	all := 0
	for _, verb := range verbs {
		all += after[verb] - before[verb]
		m.report.add(driver, "API requests a publish, "+verb, "", float64(after[verb]-before[verb])/float64(len(many.requests)))
	}
	m.report.add(driver, "API requests a publish, all", "", float64(all)/float64(len(many.requests)))
	return nil
}

// lifecycle publishes and unpublishes a batch.
func (m *comparison) lifecycle(ctx context.Context, driver string, node *standalone.Node, b *batch, parallel int) error {
	began := time.Now()
	published, err := publish(ctx, node, b, parallel)
	if err != nil {
		return err
	}
	if err := m.objects.haveStatuses(ctx, b); err != nil {
		return err
	}
	told := time.Since(began)
	removed, failures, err := unpublish(ctx, node, b, parallel)
	if err != nil {
		return err
	}
	if parallel == 1 {
		m.report.add(driver, "publish, one at a time, p50", "ms", published.p50())
		m.report.add(driver, "unpublish, one at a time, p50", "ms", removed.p50())
		return nil
	}
	many := fmt.Sprintf("%d at a time", parallel)
	m.report.add(driver, "publish, "+many+", rate", "/s", published.rate())
	m.report.add(driver, "publish, "+many+", p50", "ms", published.p50())
	m.report.add(driver, "publish, "+many+", with all status objects, rate", "/s", float64(len(b.requests))/told.Seconds())
	m.report.add(driver, "unpublish, "+many+", rate", "/s", removed.rate())
	m.report.add(driver, "unpublish, "+many+", failures of 1,000", "", 1000*float64(failures)/float64(len(b.requests)))
	return nil
}

// publish publishes a batch, and looks, once the time is taken, that its files
// are there.
func publish(ctx context.Context, node *standalone.Node, b *batch, parallel int) (load, error) {
	l, err := measure(parallel, len(b.requests), func(i int) error {
		_, err := node.NodePublishVolume(ctx, b.requests[i])
		return err
	})
	if err != nil {
		return l, err
	}
	for _, request := range b.requests {
		for name, contents := range files {
			held, err := os.ReadFile(filepath.Join(request.TargetPath, name))
			if err != nil || string(held) != contents {
				return l, errors.Join(fmt.Errorf("volume %s was published without its files", request.VolumeId), err)
			}
		}
	}
	return l, nil
}

// unpublish is the reverse. A call that fails is made once more, as kubelet
// does; how many did is returned.
func unpublish(ctx context.Context, node *standalone.Node, b *batch, parallel int) (load, int, error) {
	var failures atomic.Int64
	l, err := measure(parallel, len(b.requests), func(i int) error {
		request := &csi.NodeUnpublishVolumeRequest{VolumeId: b.requests[i].VolumeId, TargetPath: b.requests[i].TargetPath}
		_, err := node.NodeUnpublishVolume(ctx, request)
		for range 10 {
			if err == nil {
				return nil
			}
			failures.Add(1)
			_, err = node.NodeUnpublishVolume(ctx, request)
		}
		return err
	})
	if err != nil {
		return l, 0, err
	}
	for _, request := range b.requests {
		if _, err := os.Lstat(request.TargetPath); !errors.Is(err, os.ErrNotExist) {
			return l, 0, errors.Join(fmt.Errorf("volume %s was unpublished and is still there", request.VolumeId), err)
		}
	}
	return l, int(failures.Load()), nil
}

// load is what a number of calls took.
type load struct {
	latencies []time.Duration // sorted
	elapsed   time.Duration
}

func (l load) rate() float64 { return float64(len(l.latencies)) / l.elapsed.Seconds() }
func (l load) p50() float64  { return l.latencies[len(l.latencies)/2].Seconds() * 1e3 }

// measure makes n calls, parallel of them at a time, and times each.
func measure(parallel, n int, call func(i int) error) (load, error) {
	l := load{latencies: make([]time.Duration, n)}
	errs := make([]error, min(parallel, n))
	var next atomic.Int64
	var group sync.WaitGroup
	began := time.Now()
	for worker := range errs {
		group.Go(func() {
			for errs[worker] == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				began := time.Now()
				errs[worker] = call(i)
				l.latencies[i] = time.Since(began)
			}
		})
	}
	group.Wait()
	l.elapsed = time.Since(began)
	slices.Sort(l.latencies)
	return l, errors.Join(errs...)
}

// verbs are what requests are counted by: those of HTTP that change an object
// are told apart by the API server.
var verbs = []string{"get", "list", "watch", "create", "update", "patch", "delete"}

// requests returns how many requests of drivers the API server has had, by verb.
func (m *comparison) requests() (map[string]int, error) {
	all, err := m.cluster.Requests()
	if err != nil {
		return nil, err
	}
	count := map[string]int{}
	for _, r := range all {
		if requestsOf(r.UserAgent) {
			count[r.Verb]++
		}
	}
	return count, nil
}

// memory notes what a driver has resident, alone and with what runs beside it.
func (m *comparison) memory(driver, name string, node *standalone.Node, beside []int) error {
	sum, err := resident(node.Process.Pid)
	if err != nil {
		return err
	}
	m.report.add(driver, name+": the driver's process", "MB", sum)
	for _, pid := range beside {
		more, err := resident(pid)
		if err != nil {
			return err
		}
		sum += more
	}
	m.report.add(driver, name+": with its sidecars (stand-ins)", "MB", sum)
	return nil
}

// resident is what a process has resident, in 10^6 bytes.
func resident(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
			return kib * 1024 / 1e6, err
		}
	}
	return 0, errors.New("proc_pid_status(5) has no VmRSS")
}
