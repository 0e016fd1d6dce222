package faults

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tracerCommand, as the first argument, makes the test binary a tracer. It is
// a process of its own because the kernel would hand a tracee's stops to any
// thread of its tracer that waits for children, such as those of os/exec.
//
//	faults.test trace --report FILE --root DIR [--kill STEP --nth N] [--armed] -- COMMAND...
//
// It runs COMMAND and, once it got SIGUSR1 (from the start with --armed), adds
// a line to the report for each step, and kills COMMAND at the Nth of that
// name. It ends after COMMAND has.
const tracerCommand = "trace"

// The lines of a report.
const (
	lineArmed  = "armed"
	lineKilled = "killed"
	lineStep   = "step\t"   // and its name
	lineDriver = "driver\t" // and its process ID
)

type tracer struct {
	report *os.File
	root   string // of the node
	kill   moment
	armed  atomic.Bool
	seen   map[string]int // steps by name
}

// moment is the entry of the nth step of a name, from 1; no moment has nth 0.
// Steps that follow no order of their own, such as the removal of files, come
// in another one each time: that is why their number among all does not do.
type moment struct {
	step string
	nth  int
}

func (m moment) String() string {
	if m.nth > 1 {
		return fmt.Sprintf("%s (%d)", m.step, m.nth)
	}
	return m.step
}

func runTracer(args []string) int {
	flags := flag.NewFlagSet(tracerCommand, flag.ExitOnError)
	report := flags.String("report", "", "")
	root := flags.String("root", "", "")
	kill := flags.String("kill", "", "")
	nth := flags.Int("nth", 0, "")
	armed := flags.Bool("armed", false, "")
	_ = flags.Parse(args)
	f, err := os.OpenFile(*report, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	t := &tracer{report: f, root: *root, kill: moment{*kill, *nth}, seen: map[string]int{}}
	t.armed.Store(*armed)
	signals := make(chan os.Signal, 4)
	// SIGTERM is for COMMAND, which is in the same process group.
	signal.Notify(signals, unix.SIGUSR1, unix.SIGTERM, unix.SIGINT)
	go func() {
		for s := range signals {
			if s == unix.SIGUSR1 {
				t.armed.Store(true)
				t.line(lineArmed)
			}
		}
	}()
	if err := t.run(flags.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "trace %s: %v\n", flags.Args(), err)
		return 1
	}
	return 0
}

func (t *tracer) line(format string, args ...any) {
	_, _ = fmt.Fprintf(t.report, format+"\n", args...)
}

func (t *tracer) run(command []string) error {
	runtime.LockOSThread() // a tracee obeys one thread
	pid, err := syscall.ForkExec(command[0], command, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || !ws.Stopped() {
		return fmt.Errorf("it did not stop at its exec: status %#x, %v", ws, err)
	}
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACEFORK|unix.PTRACE_O_TRACEVFORK|unix.PTRACE_O_EXITKILL); err != nil {
		return fmt.Errorf("set ptrace options: %w", err)
	}
	if err := unix.PtraceSyscall(pid, 0); err != nil {
		return err
	}
	t.line(lineDriver+"%d", pid)
	known := map[int]bool{pid: true}
	for {
		tid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD:
			return nil
		case err != nil:
			return err
		case !ws.Stopped():
			continue
		}
		deliver := 0
		switch s := ws.StopSignal(); {
		case s == unix.SIGTRAP|0x80:
			t.syscallStop(pid, tid)
		case s == unix.SIGTRAP && ws.TrapCause() > 0:
		case s == unix.SIGSTOP && !known[tid]: // a new thread
		default:
			deliver = int(s)
		}
		known[tid] = true
		_ = unix.PtraceSyscall(tid, deliver) // ESRCH once it is killed
	}
}

// syscallStop kills pid if its thread tid is about to take the step that was
// asked for.
func (t *tracer) syscallStop(pid, tid int) {
	if !t.armed.Load() {
		return
	}
	c, ok := enteredCall(pid, tid)
	if !ok {
		return
	}
	name, ok := c.step(t.root)
	if !ok {
		return
	}
	t.seen[name]++
	t.line(lineStep+"%s", name)
	if (moment{name, t.seen[name]}) == t.kill {
		// A call that is killed at its entry does not begin.
		_ = unix.Kill(pid, unix.SIGKILL)
		t.line(lineKilled)
	}
}

// call is a system call that a thread is about to make.
type call struct {
	pid  int
	nr   uint64
	args [6]uint64
}

// enteredCall tells which call a stopped thread enters; it is not ok where it
// leaves one.
func enteredCall(pid, tid int) (call, bool) {
	// struct ptrace_syscall_info of Linux 5.3, the same on all architectures.
	var info struct {
		op   uint8
		_    [3]uint8
		_    uint32
		_    [2]uint64
		nr   uint64
		args [6]uint64
		_    [4]uint64
	}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	return call{pid, info.nr, info.args}, errno == 0 && info.op == unix.PTRACE_SYSCALL_INFO_ENTRY
}

// step names what the call changes, in words without numbers that differ from
// run to run. It is not ok for a call that changes no file system.
func (c call) step(root string) (name string, ok bool) {
	a := c.args
	path := func(dir, text int) string { return place(root, c.path(a[dir], a[text])) }
	here := func(text int) string { return place(root, c.path(atCWD, a[text])) }
	file := func(fd int) string { return place(root, c.fd(a[fd])) }
	switch c.nr {
	case unix.SYS_OPENAT:
		if a[2]&(unix.O_CREAT|unix.O_TRUNC) == 0 {
			return "", false
		}
		return inside("create", path(0, 1))
	case unix.SYS_OPENAT2:
		how := c.read(a[2], 8)
		if len(how) < 8 || *(*uint64)(unsafe.Pointer(&how[0]))&(unix.O_CREAT|unix.O_TRUNC) == 0 {
			return "", false
		}
		return inside("create", path(0, 1))
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV:
		if a[0] <= 2 || !c.regular(a[0]) {
			return "", false
		}
		return inside("write", file(0))
	case unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE:
		return inside("truncate", file(0))
	case unix.SYS_FCHMOD:
		return inside("chmod", file(0))
	case unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2:
		return inside("chmod", path(0, 1))
	case unix.SYS_FCHOWN:
		return inside("chown", file(0))
	case unix.SYS_FCHOWNAT:
		return inside("chown", path(0, 1))
	case unix.SYS_MKDIRAT:
		return inside("mkdir", path(0, 1))
	case unix.SYS_SYMLINKAT:
		return inside("symlink", path(1, 2))
	case unix.SYS_LINKAT:
		return inside("link", path(2, 3))
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return inside("rename", path(0, 1)+" to "+path(2, 3))
	case unix.SYS_UNLINKAT:
		if a[2]&unix.AT_REMOVEDIR != 0 {
			return inside("rmdir", path(0, 1))
		}
		return inside("unlink", path(0, 1))
	case unix.SYS_FSOPEN:
		return "fsopen " + c.text(a[0]), true
	case unix.SYS_FSPICK:
		return "fspick", true
	case unix.SYS_FSCONFIG:
		switch a[1] {
		case unix.FSCONFIG_CMD_CREATE:
			return "fsconfig create", true
		case unix.FSCONFIG_CMD_RECONFIGURE:
			return "fsconfig reconfigure", true
		}
		return "fsconfig " + c.text(a[2]), true
	case unix.SYS_FSMOUNT:
		return "fsmount", true
	case unix.SYS_OPEN_TREE:
		return inside("open_tree", path(0, 1))
	case unix.SYS_MOUNT_SETATTR:
		return "mount_setattr", true
	case unix.SYS_MOVE_MOUNT:
		return inside("move_mount to", file(2))
	case unix.SYS_MOUNT:
		return inside("mount", here(1))
	case unix.SYS_UMOUNT2:
		return inside("umount", here(0))
	case unix.SYS_BIND:
		return "bind the socket", true
	}
	return "", false
}

// atCWD is AT_FDCWD as it stands in a register.
const atCWD = uint64(1<<32 - 100)

// inside drops what happens neither to the node's folder nor to a volume.
func inside(verb, where string) (string, bool) {
	return verb + " " + where, !strings.HasPrefix(where, "/")
}

var (
	setName    = regexp.MustCompile(`\.\.\d{4}(_\d\d){5}\.\d+`)
	recordName = regexp.MustCompile(`[0-9a-f]{32}\.json`)
)

// place names a path by what it is: below the node's folder, or in a tmpfs that
// no path leads to, whose own root the kernel shows as "/". What is elsewhere
// keeps its absolute path.
func place(root, path string) string {
	path = recordName.ReplaceAllString(setName.ReplaceAllString(path, "..SET"), "RECORD")
	if rest, ok := strings.CutPrefix(path, root+"/"); ok {
		if strings.HasPrefix(rest, "pods/") && strings.HasSuffix(rest, "/mount") {
			return "target"
		}
		return rest
	}
	for _, system := range []string{"/proc", "/sys", "/dev", "/tmp", "/etc", "/root", "/home", "/usr", "/var", "/run"} {
		if path == system || strings.HasPrefix(path, system+"/") {
			return path
		}
	}
	return "volume:" + path
}

func (c call) path(dir, text uint64) string {
	path := c.text(text)
	switch {
	case strings.HasPrefix(path, "/"):
		return path
	case dir&0xffffffff == atCWD:
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", c.pid))
		return filepath.Join(cwd, path)
	}
	return filepath.Join(c.fd(dir), path)
}

func (c call) fd(fd uint64) string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.pid, int32(fd)))
	return path
}

func (c call) regular(fd uint64) bool {
	info, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", c.pid, int32(fd)))
	return err == nil && info.Mode().IsRegular() && strings.HasPrefix(c.fd(fd), "/") // an eventfd has no path
}

// text reads a string that ends in NUL.
func (c call) text(addr uint64) string {
	var all []byte
	for len(all) < unix.PathMax {
		// Not beyond a page at a time: the next one may not be there.
		part := c.read(addr, 4096-int(addr%4096))
		if end := bytes.IndexByte(part, 0); end >= 0 {
			return string(append(all, part[:end]...))
		}
		if len(part) == 0 {
			break
		}
		all, addr = append(all, part...), addr+uint64(len(part))
	}
	return string(all)
}

func (c call) read(addr uint64, size int) []byte {
	if addr == 0 {
		return nil
	}
	buf := make([]byte, size)
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(size)
	n, err := unix.ProcessVMReadv(c.pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: size}}, 0)
	if err != nil {
		return nil
	}
	return buf[:n]
}
