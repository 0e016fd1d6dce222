// Package process sends signals to the processes of pods, after their files have
// changed.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// Teller hears what became of a signal: to how many processes it went, or why it
// did not.
type Teller interface {
	Signalled(v volume.Info, s class.Signal, processes int, err error)
}

// Recorder counts signals by result: "sent" or "failed".
type Recorder interface {
	Signalled(result string)
}

// Signaller is a volume.Observer that sends the signals which classes ask for. It
// sees the processes that /proc shows: in a container, those of pods only if that
// has the PIDs of the node (hostPID). It is safe for concurrent use.
type Signaller struct {
	// Recorder may be nil; it is set before Run.
	Recorder Recorder

	proc   string
	teller Teller

	mu    sync.Mutex
	queue []volume.Info
	wake  chan struct{}
}

var _ volume.Observer = (*Signaller)(nil)

// New returns a Signaller that sends nothing before Run. teller may be nil.
func New(teller Teller) *Signaller {
	return &Signaller{proc: "/proc", teller: teller, wake: make(chan struct{}, 1)}
}

// Published implements volume.Observer: the first files are no change.
func (s *Signaller) Published(volume.Info) {}

// Unpublished implements volume.Observer.
func (s *Signaller) Unpublished(volume.Info) {}

// Refreshed implements volume.Observer.
func (s *Signaller) Refreshed(v volume.Info, changed bool) {
	if !changed || len(v.Signals) == 0 {
		return
	}
	s.mu.Lock()
	s.queue = append(s.queue, v)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run sends until ctx ends. It is called once.
func (s *Signaller) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		s.mu.Lock()
		due := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, v := range due {
			s.signalAll(ctx, v)
		}
	}
}

func (s *Signaller) signalAll(ctx context.Context, v volume.Info) {
	for _, signal := range v.Signals {
		n, err := s.signal(v.Pod.UID, signal)
		logger := klog.FromContext(ctx).WithValues("namespace", v.Pod.Namespace, "pod", v.Pod.Name, "process", signal.Process, "signal", unix.SignalName(signal.Number))
		result := "sent"
		if err != nil {
			result = "failed"
			logger.Error(err, "Cannot send a signal after a change")
		} else {
			logger.V(2).Info("Sent a signal after a change", "processes", n)
		}
		if s.Recorder != nil {
			s.Recorder.Signalled(result)
		}
		if s.teller != nil {
			s.teller.Signalled(v, signal, n, err)
		}
	}
}

// errUnseen says that no process of a pod is to be seen.
var errUnseen = errors.New("no process of the pod is to be seen; the driver needs the node's process IDs (changeSignals.enabled in the chart), and the pod a process that runs")

// signal sends a signal to the processes of a pod that are called so, without
// those whose parents are: these get it from them, if they are to. It returns how
// many there are.
func (s *Signaller) signal(uid string, signal class.Signal) (n int, err error) {
	found, seen, err := s.find(uid, signal.Process)
	switch {
	case err != nil:
		return 0, err
	case !seen:
		return 0, errUnseen
	}
	for _, pid := range found {
		sent, sendErr := s.send(pid, uid, signal)
		if err = errors.Join(err, sendErr); sent {
			n++
		}
	}
	if n == 0 && err == nil {
		err = fmt.Errorf("no process of the pod is called %q", signal.Process)
	}
	return n, err
}

// find returns the topmost processes of a pod that have a name, and whether there
// is any process of it.
func (s *Signaller) find(uid, name string) (found []int, seen bool, err error) {
	entries, err := os.ReadDir(s.proc)
	if err != nil {
		return nil, false, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !s.isOf(pid, uid) {
			continue
		}
		seen = true
		if s.isCalled(pid, name) {
			found = append(found, pid)
		}
	}
	all := slices.Clone(found)
	found = slices.DeleteFunc(found, func(pid int) bool { return slices.Contains(all, s.parent(pid)) })
	return found, seen, nil
}

// send sends a signal to a process, if it still is what it was: its number may be
// that of another by now. The descriptor stands for one process for good.
func (s *Signaller) send(pid int, uid string, signal class.Signal) (sent bool, err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if !s.isOf(pid, uid) || !s.isCalled(pid, signal.Process) {
		return false, nil
	}
	err = unix.PidfdSendSignal(fd, signal.Number, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("send %s to process %d: %w", unix.SignalName(signal.Number), pid, err)
	}
	return true, nil
}

// isOf reports whether a process belongs to a pod: kubelet gives each a control
// group, whose name ends with the pod's UID, written with hyphens or, by systemd,
// with underscores.
func (s *Signaller) isOf(pid int, uid string) bool {
	if uid == "" {
		return false
	}
	groups := s.read(pid, "cgroup")
	for line := range strings.Lines(string(groups)) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			if part == "pod"+uid {
				return true
			}
			slice, ok := strings.CutSuffix(part, ".slice")
			if ok && strings.HasSuffix("-"+slice, "-pod"+strings.ReplaceAll(uid, "-", "_")) {
				return true
			}
		}
	}
	return false
}

// isCalled reports whether a process has a name, be it the one that the kernel
// keeps 15 bytes of or that of the program which was started.
func (s *Signaller) isCalled(pid int, name string) bool {
	return strings.TrimSuffix(string(s.read(pid, "comm")), "\n") == name || s.program(pid) == name
}

// program returns the name under which a process was started.
func (s *Signaller) program(pid int) string {
	first, _, _ := bytes.Cut(s.read(pid, "cmdline"), []byte{0})
	return path.Base(string(first))
}

// parent returns the number of the parent of a process, 0 for none. See proc(5).
func (s *Signaller) parent(pid int) int {
	stat := s.read(pid, "stat")
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(string(fields[1]))
	return parent
}

// read returns a file of a process, nothing if that has ended.
func (s *Signaller) read(pid int, name string) []byte {
	text, err := os.ReadFile(s.proc + "/" + strconv.Itoa(pid) + "/" + name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
		klog.Background().V(5).Info("Cannot read of a process", "file", name, "reason", err.Error())
	}
	return text
}
