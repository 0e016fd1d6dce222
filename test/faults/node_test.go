package faults

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
)

// patience is how long anything may take. Nothing takes that long, unless it is
// wrong.
const patience = 60 * time.Second

// noInterval refreshes on changes only.
const noInterval = "--rotation-poll-interval=0"

var nodes atomic.Int64

// node is a node of its own: folders, classes, secrets, and a driver that is
// started and killed.
type node struct {
	t       *testing.T
	ctx     context.Context
	layout  standalone.Layout
	secrets string // the folder of the sources; it is not below the layout's root
	report  string // of the tracer
	log     *os.File
	sources int
	driver  *standalone.Node
	traced  bool
	volume  standalone.Volume
}

// newNode makes a node without a driver, and of these volumes what kubelet makes
// before it publishes them. At the end of the test nothing else may be left.
func newNode(t *testing.T, more ...standalone.Volume) *node {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	root := filepath.Join(base, fmt.Sprintf("n%d", nodes.Add(1)))
	n := &node{t: t, ctx: ctx, report: root + ".report", volume: standalone.Volume{Pod: "web", Class: "app"}}
	must(t, os.Mkdir(root, 0o755))
	var err error
	n.secrets, err = os.MkdirTemp("/tmp", "css")
	must(t, err)
	n.layout, err = standalone.NewLayout(root)
	must(t, err)
	n.log, err = os.OpenFile(root+".log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	must(t, err)
	for _, v := range append(more, n.volume) {
		must(t, os.MkdirAll(filepath.Dir(v.Target(n.layout)), 0o750))
	}
	before := n.tree()
	t.Cleanup(func() {
		defer cancel()
		n.kill()
		if !t.Failed() {
			n.nothingLeft(before)
		}
		if t.Failed() {
			text, _ := os.ReadFile(n.log.Name())
			t.Logf("log of the driver:\n%s", text[max(0, len(text)-8<<10):])
		}
		n.log.Close()
		n.sweep()
	})
	return n
}

// sweep removes what a failed test left, so that it fails alone.
func (n *node) sweep() {
	for range 1000 {
		mounts, err := mountsBelow(n.layout.Root)
		if err != nil || len(mounts) == 0 {
			break
		}
		path, _, _ := strings.Cut(mounts[len(mounts)-1], " ")
		_ = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	for _, path := range []string{n.layout.Root, n.secrets, n.log.Name(), n.report} {
		_ = os.RemoveAll(path)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) must(err error) { n.t.Helper(); must(n.t, err) }

func (n *node) target() string { return n.volume.Target(n.layout) }

// start starts the driver and waits until it answers.
func (n *node) start(more ...string) {
	n.t.Helper()
	n.traced = false
	driver, err := standalone.Start(n.ctx, n.layout, n.log, binary, n.layout.Arguments(more...)...)
	n.must(err)
	n.driver = driver
}

// requireTracer skips the test, or in CI fails it, where a process may not be
// traced: in containers with a seccomp profile of old, and with Yama's
// ptrace_scope 3.
func requireTracer(t *testing.T) {
	t.Helper()
	switch err := tracerWorks(); {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

var tracerWorks = sync.OnceValue(func() error {
	out, err := exec.Command("/proc/self/exe", tracerCommand, "--report", os.DevNull, "--", binary, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("no process can be traced here, see ptrace(2): %w: %s", err, out)
	}
	return nil
})

// startTraced starts the driver under a tracer that kills it at that moment.
// The steps of its own start count where armed is set, and the driver may be
// killed before it answers; else arm must be called.
func (n *node) startTraced(kill moment, armed bool, more ...string) {
	n.t.Helper()
	requireTracer(n.t)
	n.traced = true
	_ = os.Remove(n.report)
	arguments := []string{tracerCommand, "--report", n.report, "--root", n.layout.Root,
		"--kill", kill.step, "--nth", fmt.Sprint(kill.nth), fmt.Sprintf("--armed=%t", armed), "--", binary}
	driver, err := standalone.Start(n.ctx, n.layout, n.log, "/proc/self/exe", append(arguments, n.layout.Arguments(more...)...)...)
	if err != nil && n.killed() {
		n.driver = nil
		return
	}
	n.must(err)
	n.driver = driver
}

// arm makes the tracer count steps from now on.
func (n *node) arm() {
	n.t.Helper()
	n.must(n.driver.Process.Signal(unix.SIGUSR1))
	n.must(eventually(func() error {
		if slices.Contains(n.reported(), lineArmed) {
			return nil
		}
		return errors.New("the tracer does not answer")
	}))
}

// reported returns the lines of the tracer's report.
func (n *node) reported() (lines []string) {
	f, err := os.Open(n.report)
	if err != nil {
		return nil
	}
	defer f.Close()
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		lines = append(lines, scanner.Text())
	}
	return lines
}

// reportedAs returns what follows the prefix in the lines that have it.
func (n *node) reportedAs(prefix string) (rest []string) {
	for _, line := range n.reported() {
		if text, ok := strings.CutPrefix(line, prefix); ok {
			rest = append(rest, text)
		}
	}
	return rest
}

// steps returns the names of the steps that the tracer saw.
func (n *node) steps() []string { return n.reportedAs(lineStep) }

// kill kills the driver, if there is one, and waits for its end.
func (n *node) kill() {
	if n.driver == nil {
		return
	}
	if n.traced {
		// Its tracer ends after it.
		for _, id := range n.reportedAs(lineDriver) {
			if pid, err := strconv.Atoi(id); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		<-n.driver.Exited()
	}
	n.driver.Kill()
	n.driver = nil
}

// awaitKill waits until the tracer has killed the driver.
func (n *node) awaitKill() {
	n.t.Helper()
	if n.driver == nil {
		return
	}
	select {
	case <-n.driver.Exited():
		n.kill()
	case <-time.After(patience):
		n.t.Fatalf("the driver was not killed; its steps were %q", n.steps())
	}
	if !n.killed() {
		n.t.Fatalf("the driver ended, and not by the tracer; its steps were %q", n.steps())
	}
}

// killed tells whether the tracer has killed the driver.
func (n *node) killed() bool { return slices.Contains(n.reported(), lineKilled) }

func (n *node) publish() error {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.ctx, patience)
	defer cancel()
	return n.driver.Publish(ctx, n.volume)
}

// awaitPublish publishes until it succeeds, as kubelet does: the driver may not
// have seen yet that the class has changed.
func (n *node) awaitPublish() {
	n.t.Helper()
	n.must(eventually(n.publish))
}

func (n *node) unpublish() error {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.ctx, patience)
	defer cancel()
	return n.driver.Unpublish(ctx, n.volume)
}

// refused checks that a publish fails with this code and these words, and mounts
// nothing.
func (n *node) refused(code codes.Code, words ...string) {
	n.t.Helper()
	err := n.publish()
	if status.Code(err) != code {
		n.t.Errorf("publish: %v, want %v", err, code)
	}
	for _, w := range words {
		if !strings.Contains(fmt.Sprint(err), w) {
			n.t.Errorf("publish: %v, which does not say %q", err, w)
		}
	}
	if strings.Contains(fmt.Sprint(err), canary) {
		n.t.Error("the error of the publish holds a secret value")
	}
	if v := n.look(); v.mounts != 0 || !v.withdrawn() {
		n.t.Errorf("after a publish that failed: %s", v)
	}
	n.noValues()
}

// awaitLog waits until the driver's log has these words.
func (n *node) awaitLog(words string) {
	n.t.Helper()
	n.must(eventually(func() error {
		text, err := os.ReadFile(n.log.Name())
		if err == nil && !bytes.Contains(text, []byte(words)) {
			err = fmt.Errorf("the log does not say %q", words)
		}
		return err
	}))
}

// follow makes the class of the volumes serve whatever folder was last given to
// point, by a link that is replaced in one step.
func (n *node) follow() {
	n.t.Helper()
	n.writeClass("local", "path: "+filepath.Join(n.secrets, "current"))
}

// point makes s the set of the class that follow made.
func (n *node) point(s set) {
	n.t.Helper()
	n.must(n.tryPoint(s))
}

func (n *node) tryPoint(s set) error {
	dir, err := n.trySource(s)
	if err != nil {
		return err
	}
	link := filepath.Join(n.secrets, "next")
	if err := os.Symlink(dir, link); err != nil {
		return err
	}
	return os.Rename(link, filepath.Join(n.secrets, "current"))
}

// source writes the set to a folder of its own, and returns that.
func (n *node) source(s set) string {
	n.t.Helper()
	dir, err := n.trySource(s)
	n.must(err)
	return dir
}

func (n *node) trySource(s set) (dir string, err error) {
	n.sources++
	dir = filepath.Join(n.secrets, fmt.Sprint(n.sources))
	return dir, writeFiles(dir, s)
}

func writeFiles(dir string, s set) error {
	for path, f := range s {
		name := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(f.text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// serve makes s the set of the volume's class, in one step: the class is
// replaced by one that names another folder and other objects.
func (n *node) serve(s set) {
	n.t.Helper()
	var objects strings.Builder
	for _, path := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&objects, "      - {objectName: %q, filePermission: \"%04o\"}\n", path, s[path].mode)
	}
	n.writeClass("local", fmt.Sprintf("path: %s\n    objects: |\n%s", n.source(s), objects.String()))
}

// writeClass replaces the volume's class in one step. Parameters are lines of
// YAML, indented by four.
func (n *node) writeClass(provider, parameters string) {
	n.t.Helper()
	text := fmt.Sprintf(`apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: %s
spec:
  provider: %s
  parameters:
    %s
`, n.volume.Class, provider, strings.TrimSpace(parameters))
	hidden := filepath.Join(n.layout.Classes(), ".new")
	n.must(os.WriteFile(hidden, []byte(text), 0o644))
	n.must(os.Rename(hidden, filepath.Join(n.layout.Classes(), n.volume.Class+".yaml")))
}

// look returns what a reader sees.
func (n *node) look() view {
	n.t.Helper()
	v, err := look(n.target(), oldSet, newSet)
	n.must(err)
	return v
}

// shows tells what a reader sees, and why that is not just this set, mounted once.
func (n *node) shows(s set) (view, error) {
	v, err := look(n.target(), s)
	if err != nil {
		return v, err
	}
	if v.mounts != 1 {
		return v, fmt.Errorf("there are %d mounts: %s", v.mounts, v)
	}
	_, err = v.whole(s)
	return v, err
}

// holds tells why the volume does not hold just this set, tidily, mounted once.
func (n *node) holds(s set) error {
	v, err := n.shows(s)
	if err != nil {
		return err
	}
	return v.tidy(s)
}

// awaitSet waits until the volume holds just this set.
func (n *node) awaitSet(s set) {
	n.t.Helper()
	n.must(eventually(func() error { return n.holds(s) }))
}

// tree lists all files and folders of pods and of the state.
func (n *node) tree() (names []string) {
	for _, dir := range []string{n.layout.Pods(), n.layout.State()} {
		_ = filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
			switch rest, _ := filepath.Rel(n.layout.Root, name); {
			case err != nil, rest == "state/lock", rest == "state/key", rest == "state/volumes.jsonl": // they stay
			default:
				names = append(names, rest)
			}
			return nil
		})
	}
	return names
}

// nothingLeft checks that nothing is mounted, and that pods and state are as
// they were before.
func (n *node) nothingLeft(before []string) {
	n.t.Helper()
	mounts, err := mountsBelow(n.layout.Root)
	n.must(err)
	if len(mounts) > 0 {
		n.t.Errorf("mounts are left: %q", mounts)
	}
	if after := n.tree(); !slices.Equal(after, before) {
		n.t.Errorf("the files of the node were %q, and now are %q", before, after)
	}
	n.noValues()
}

// noValues checks that no value is on a disk, and none in the driver's log.
func (n *node) noValues() {
	n.t.Helper()
	if err := noValues(n.layout.Root); err != nil {
		n.t.Error(err)
	}
	for _, name := range []string{n.log.Name(), n.report} {
		if err := noValues(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.t.Error(err)
		}
	}
}

// stateMatches tells why there is not a record for each mounted volume and for
// no other, or what an earlier driver left half-written.
func (n *node) stateMatches() error {
	mounts, err := mountsBelow(n.layout.Pods())
	if err != nil {
		return err
	}
	return eventually(func() error { // the driver may be writing a record
		records, err := n.layout.Records()
		if err != nil {
			return err
		}
		if len(records) != len(mounts) {
			return fmt.Errorf("there are %d records for %d mounts: %v", len(records), len(mounts), records)
		}
		files, err := os.ReadDir(n.layout.State())
		for _, f := range files {
			if !slices.Contains([]string{"lock", "key", "volumes.jsonl"}, f.Name()) {
				return fmt.Errorf("the state folder holds more than its records, its lock and its key: %v", files)
			}
		}
		return err
	})
}
