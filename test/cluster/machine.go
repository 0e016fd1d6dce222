package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// endTimeout is how long processes may take to be gone after SIGKILL.
const endTimeout = 30 * time.Second

// machine is a set of namespaces, held by one process that is their PID 1. It is
// known by that process's arguments and by nothing on disk, so that a machine can
// be found however its maker ended.
type machine struct {
	name     string
	marker   string // an argument of the holder
	dir      string // files of the machine, by their path in it
	logs     string
	programs *programs
}

func (c *Cluster) newMachine(name string) *machine {
	return &machine{
		name:     name,
		marker:   c.dir + ":" + name,
		dir:      filepath.Join(c.dir, name),
		logs:     c.LogsDir(),
		programs: c.programs,
	}
}

// resolvConf makes look-ups fail at once: there is no name server in the
// cluster, and the host's is out of reach.
const resolvConf = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"

// kernelSettings are what kubelet wants of the kernel, and would set for the
// whole host.
var kernelSettings = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// holderScript makes the namespaces that it runs in a machine, and stays. The
// folders that are mounted are the machine's own; everything else it sees as the
// host has it. The programs are mounted beside, since their cache may be below one
// of those folders. Mounts are cut off from the host's, then shared: between the
// machine and its pods they propagate, as volumes with mountPropagation need it.
// The shell reaps what is left to it while it waits.
const holderScript = `set -eu
dir=$1 name=$2 programs=$3
cp -a /etc/. "$dir/etc"
rm -f "$dir/etc/resolv.conf"
cp "$dir/resolv.conf" "$dir/etc/resolv.conf"
mount --make-rprivate /
mount --bind "$programs" "$dir/programs"
for path in etc run var/lib var/log; do mount --bind "$dir/$path" "/$path"; done
mount -t proc proc /proc
cd "$dir/kernel"
find . -type f | while read -r setting; do
	[ ! -e "/proc/sys/$setting" ] || mount --bind "$setting" "/proc/sys/$setting"
done
cd /
mount --make-rshared /
hostname "$name"
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo ready
exec >&2
while :; do sleep infinity; done
`

// start makes the machine.
func (m *machine) start() error {
	if err := m.makeFolders(); err != nil {
		return fmt.Errorf("make the folders of machine %s: %w", m.name, err)
	}
	log, err := os.OpenFile(m.logFile("machine"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command("/bin/sh", "-c", holderScript, m.marker, m.dir, m.name, m.programs.cache)
	cmd.Env = cleanEnvironment()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = in, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Setsid:     true,
	}
	err = cmd.Start()
	_ = in.Close()
	if err != nil {
		return fmt.Errorf("start machine %s: %w", m.name, err)
	}
	// It is waited for as long as this process lives, so that it is no zombie once
	// it is killed.
	go func() { _ = cmd.Wait() }()
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return fmt.Errorf("start machine %s: %s", m.name, m.logTail("machine"))
	}
	return nil
}

func (m *machine) makeFolders() error {
	for _, dir := range []string{"programs", "etc", "run", "var/lib", "var/log"} {
		if err := os.MkdirAll(filepath.Join(m.dir, dir), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{"resolv.conf": resolvConf}
	for setting, value := range kernelSettings {
		files["kernel/"+setting] = value + "\n"
	}
	for name, text := range files {
		path := filepath.Join(m.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// program is the path of a built program in the machine.
func (m *machine) program(name string) string {
	path, err := filepath.Rel(m.programs.cache, m.programs.path(name))
	if err != nil || strings.HasPrefix(path, "..") {
		return m.programs.path(name)
	}
	return filepath.Join(m.dir, "programs", path)
}

// command is a command that runs in the machine.
func (m *machine) command(ctx context.Context, arguments ...string) (*exec.Cmd, error) {
	holder, err := m.holder()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--target", fmt.Sprint(holder), "--mount", "--pid", "--net", "--uts", "--ipc", "--"}, arguments...)...)
	cmd.Env = cleanEnvironment()
	cmd.Dir = "/"
	return cmd, nil
}

// run runs a command in the machine and returns its output.
func (m *machine) run(ctx context.Context, arguments ...string) (string, error) {
	cmd, err := m.command(ctx, arguments...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w: %s", m.name, strings.Join(arguments, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// spawn starts a program that outlives this process, as a child of the holder,
// with its output in the program's log. The shell in between is in the machine,
// or the kernel would give the orphan to the host's init.
func (m *machine) spawn(ctx context.Context, command ...string) error {
	name := filepath.Base(command[0])
	if m.runs(name) {
		return fmt.Errorf("start %s on %s: it runs already", name, m.name)
	}
	script := `log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 &`
	if _, err := m.run(ctx, append([]string{"/bin/sh", "-c", script, "sh", m.logFile(name)}, command...)...); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return poll(ctx, 5*time.Second, "start "+name+" on "+m.name, func(context.Context) error {
		if !m.runs(name) {
			return fmt.Errorf("it does not run: %s", m.logTail(name))
		}
		return nil
	})
}

// waitFor waits until ready returns nil, and no longer than the program runs.
func (m *machine) waitFor(ctx context.Context, program string, timeout time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return poll(ctx, timeout, "wait for "+program+" on "+m.name, func(ctx context.Context) error {
		err := ready(ctx)
		if err != nil && !m.runs(program) {
			cancel(fmt.Errorf("it ended: %s", m.logTail(program)))
		}
		return err
	})
}

// end sends a program of the machine a signal and waits until it is gone. It is
// no error if it does not run.
func (m *machine) end(ctx context.Context, program string, signal syscall.Signal) error {
	pid, err := m.find(program)
	if err != nil {
		return nil
	}
	if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end %s: %w", program, err)
	}
	return waitGone(ctx, pid, program+" on "+m.name)
}

func (m *machine) logFile(program string) string {
	return filepath.Join(m.logs, m.name+"-"+program+".log")
}

// logTail is the end of a program's log and where to find the rest, for errors.
func (m *machine) logTail(program string) string {
	const lines = 8
	data, _ := os.ReadFile(m.logFile(program))
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return "its log ends with\n" + strings.Join(all, "\n")
}

// cleanEnvironment is what programs of the cluster see of this process's
// environment. A proxy, for one, is nothing to them.
func cleanEnvironment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
}

// Enter is a command that runs in a machine of the cluster of this name, or a
// shell where it is empty. The machines are "control" and the nodes.
func Enter(ctx context.Context, o Options, name string, command ...string) (*exec.Cmd, error) {
	c, err := describe(o)
	if err != nil {
		return nil, err
	}
	if len(command) == 0 {
		command = []string{"/bin/sh"}
	}
	return c.newMachine(name).command(ctx, command...)
}
