package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is what /proc tells of one.
type process struct {
	pid       int
	arguments []string
}

// processes are those of this host, machines' and pods' included.
func processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// One that ended meanwhile, and one of the kernel, has none.
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(line) == 0 {
			continue
		}
		var arguments []string
		for _, a := range bytes.Split(bytes.TrimSuffix(line, []byte{0}), []byte{0}) {
			arguments = append(arguments, string(a))
		}
		all = append(all, process{pid, arguments})
	}
	return all, nil
}

// status is a field of /proc/PID/status, or empty.
func (p process) status(field string) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// isHolder reports whether the process is PID 1 of a machine whose marker is
// wanted. Children of the holder look like it before they run a program.
func (p process) isHolder(wanted func(marker string) bool) bool {
	if len(p.arguments) < 4 || !wanted(p.arguments[3]) {
		return false
	}
	ids := strings.Fields(p.status("NSpid"))
	return len(ids) > 1 && ids[len(ids)-1] == "1"
}

// holder is the PID, on this host, of the process that holds the machine.
func (m *machine) holder() (int, error) {
	all, err := processes()
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if p.isHolder(func(marker string) bool { return marker == m.marker }) {
			return p.pid, nil
		}
	}
	return 0, fmt.Errorf("%s does not run", m.name)
}

// find is the PID, on this host, of a program that the machine itself runs, not
// one of its pods.
func (m *machine) find(program string) (int, error) {
	holder, err := m.holder()
	if err != nil {
		return 0, err
	}
	all, err := processes()
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if filepath.Base(p.arguments[0]) == program && p.status("PPid") == strconv.Itoa(holder) {
			return p.pid, nil
		}
	}
	return 0, fmt.Errorf("%s does not run on %s", program, m.name)
}

func (m *machine) runs(program string) bool {
	_, err := m.find(program)
	return err == nil
}

// removeMachines kills the machines whose marker is wanted. The kernel kills
// what runs in them, and removes their mounts and networks.
func removeMachines(ctx context.Context, wanted func(marker string) bool) error {
	all, err := processes()
	if err != nil {
		return err
	}
	var holders []process
	for _, p := range all {
		if p.isHolder(wanted) {
			holders = append(holders, p)
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill %s: %w", p.arguments[3], err)
			}
		}
	}
	for _, p := range holders {
		if err := waitGone(ctx, p.pid, p.arguments[3]); err != nil {
			return err
		}
	}
	return nil
}

// helperMark is an environment variable of programs that work for a cluster
// outside its machines, and of their children. Its value is the cluster's folder.
const helperMark = "CSI_SECRETS_CLUSTER_DIR"

// killHelpers kills what still works for the cluster though its maker was
// killed, until there is nobody who could have started more.
func (c *Cluster) killHelpers(ctx context.Context) error {
	mark := []byte(helperMark + "=" + c.dir + "\x00")
	return poll(ctx, endTimeout, "kill what still works for the cluster", func(context.Context) error {
		all, err := processes()
		if err != nil {
			return err
		}
		var alive []string
		for _, p := range all {
			environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
			if err == nil && bytes.Contains(environment, mark) {
				alive = append(alive, p.arguments[0])
				_ = syscall.Kill(p.pid, syscall.SIGKILL) // It may have ended.
			}
		}
		if alive != nil {
			return fmt.Errorf("still there: %v", alive)
		}
		return nil
	})
}

// waitGone waits for the end of a process. The first process of a PID namespace
// ends after all others in it.
func waitGone(ctx context.Context, pid int, name string) error {
	return poll(ctx, endTimeout, "wait for the end of "+name, func(context.Context) error {
		switch state := (process{pid: pid}).status("State"); {
		case state == "", state[0] == 'Z', state[0] == 'X':
			return nil
		default:
			return fmt.Errorf("process %d is in state %s", pid, state)
		}
	})
}

// poll calls try until it returns nil, the time is over or ctx is done.
func poll(ctx context.Context, timeout time.Duration, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
