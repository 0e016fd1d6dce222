package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

const uid, other = "5c8f6d0e-1b2a-4c3d-8e4f-9a0b1c2d3e4f", "5c8f6d0e-1b2a-4c3d-8e4f-9a0b1c2d3e40"

// program is one that runs, as /proc shows it.
type program struct {
	pid, parent            int
	group, comm, arguments string
}

// at returns a Signaller that sees these processes.
func at(t *testing.T, all ...program) *Signaller {
	t.Helper()
	s := New(nil)
	s.proc = t.TempDir()
	for _, p := range all {
		dir := filepath.Join(s.proc, fmt.Sprint(p.pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"cgroup": "0::" + p.group + "\n", "comm": p.comm + "\n", "cmdline": strings.ReplaceAll(p.arguments, " ", "\x00") + "\x00",
			"stat": fmt.Sprintf("%d (a) b) S %d 1 1", p.pid, p.parent),
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

func TestWhichProcessesAreMeant(t *testing.T) {
	const byKubelet, bySystemd = "/kubepods/burstable/pod" + uid + "/0123", "/../../kubepods-besteffort-pod5c8f6d0e_1b2a_4c3d_8e4f_9a0b1c2d3e4f.slice/cri-containerd-0123.scope"
	s := at(t,
		program{10, 1, byKubelet, "nginx", "nginx: master"},
		program{11, 10, byKubelet, "nginx", "nginx: worker"},
		program{12, 11, byKubelet, "nginx", "nginx: worker"}, // whose parent is a worker
		program{20, 1, bySystemd, "nginx", "nginx: master"},
		program{21, 1, bySystemd, "a-program-with-", "/usr/bin/a-program-with-a-long-name -v"},
		program{22, 1, bySystemd, "a-program-with-", "a-program-with-another-name"},
		program{23, 1, bySystemd, "main", "/app/server --port 80"},
		program{30, 1, "/kubepods/pod" + other + "/0123", "nginx", "nginx: master"},
		program{31, 1, "/kubepods-podx" + strings.ReplaceAll(uid, "-", "_") + ".slice", "nginx", "nginx: master"},
		program{32, 1, "/pod" + uid + "x/0123", "nginx", "nginx: master"},
		program{33, 1, "/system.slice/nginx.service", "nginx", "nginx: master"},
	)
	for name, want := range map[string]string{"nginx": "[10 20]", "a-program-with-a-long-name": "[21]", "server": "[23]", "main": "[23]", "other": "[]"} {
		found, seen, err := s.find(uid, name)
		if fmt.Sprint(found) != want || !seen || err != nil {
			t.Errorf("%q: found %v, %v, %v, want %s", name, found, seen, err, want)
		}
	}
	if _, seen, _ := s.find("unknown", "nginx"); seen {
		t.Error("a pod is seen that is not there")
	}
	if _, seen, _ := s.find("", "nginx"); seen {
		t.Error("a pod without a UID is seen")
	}
}

// told keeps what a Teller hears.
type told chan string

func (c told) Signalled(v volume.Info, s class.Signal, processes int, err error) {
	c <- fmt.Sprintf("%s %s %s %d %v", v.Pod.Name, s.Process, unix.SignalName(s.Number), processes, err)
}

func TestAProcessHearsOfAChange(t *testing.T) {
	trap := exec.CommandContext(t.Context(), "sh", "-c", `trap 'echo USR1' USR1; echo ready; while :; do sleep 0.05; done`)
	out, err := trap.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := trap.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = trap.Process.Kill(); _ = trap.Wait() })
	lines := bufio.NewScanner(out)
	lines.Scan()

	s := at(t, program{trap.Process.Pid, 1, "/kubepods/pod" + uid + "/0123", "sh", "sh"}, program{1 << 30, 1, "/kubepods/pod" + uid + "/0123", "gone", "gone"})
	heard := make(told, 10)
	s.teller = heard
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	v := volume.Info{Pod: provider.Pod{Namespace: "ns", Name: "web", UID: uid}, Signals: []class.Signal{{Process: "sh", Number: unix.SIGUSR1}, {Process: "gone", Number: unix.SIGTERM}}}
	s.Published(v)
	s.Refreshed(v, false)
	s.Refreshed(v, true)
	if got := <-heard; got != "web sh SIGUSR1 1 <nil>" {
		t.Errorf("told: %s", got)
	}
	if got := <-heard; got != `web gone SIGTERM 0 no process of the pod is called "gone"` {
		t.Errorf("told: %s", got)
	}
	if lines.Scan(); lines.Text() != "USR1" {
		t.Errorf("the process printed %q", lines.Text())
	}
	v.Pod.UID, v.Signals = other, v.Signals[:1]
	s.Refreshed(v, true)
	if got := <-heard; !strings.Contains(got, errUnseen.Error()) {
		t.Errorf("told: %s", got)
	}
	cancel()
	<-done
	if len(heard) > 0 {
		t.Errorf("told too much: %s", <-heard)
	}
}

func TestAProcessThatIsAnotherByNowGetsNothing(t *testing.T) {
	s := at(t, program{os.Getpid(), 1, "/kubepods/pod" + other + "/0123", "sh", "sh"})
	if sent, err := s.send(os.Getpid(), uid, class.Signal{Process: "sh", Number: unix.SIGTERM}); sent || err != nil {
		t.Errorf("sent %v, %v", sent, err)
	}
	s.proc = t.TempDir() + "/none"
	if _, err := s.signal(uid, class.Signal{Process: "sh"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
