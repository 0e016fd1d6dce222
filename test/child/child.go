// Package child runs the servers that tests need as processes that end with the
// test's own, however that ends, in folders that the next run removes where this
// one was killed.
package child

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a running server.
type Process struct {
	// PID stays the server's until it has exited.
	PID int

	exited chan struct{}
	err    error // valid once exited is closed
}

// Start starts a command that the kernel kills as soon as this process ends. Its
// SysProcAttr, if it has one, may be changed.
func Start(command *exec.Cmd) (*Process, error) {
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	command.SysProcAttr.Setpgid = true // Ctrl-C is for the test, which then ends it.
	p := &Process{exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel ties the death signal to the thread that starts the
		// child: this one does nothing else until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		if err == nil {
			p.PID = command.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = command.Wait()
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(command.Path), err)
	}
	return p, nil
}

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Await calls ready until it returns nil. It fails when the process ends first, or
// ctx does.
func (p *Process) Await(ctx context.Context, ready func(context.Context) error) error {
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("it ended at once: %w", errors.Join(p.err, err))
		case <-ctx.Done():
			return fmt.Errorf("it is not ready: %w: %w", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Wait waits for the end of the process and returns how it ended. It kills the
// process when ctx ends.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.exited:
		return p.err
	case <-ctx.Done():
		p.Kill()
		return context.Cause(ctx)
	}
}

// End sends the process a signal that should end it, and waits. It returns how the
// process ended. One that takes longer than patience is killed, an error as well.
func (p *Process) End(signal syscall.Signal, patience time.Duration) error {
	if p.Running() {
		_ = syscall.Kill(p.PID, signal) // It may just have ended.
	}
	select {
	case <-p.exited:
		return p.err
	case <-time.After(patience):
		p.Kill()
		return fmt.Errorf("it did not end within %v of %v, and was killed", patience, signal)
	}
}

// Kill ends the process with SIGKILL.
func (p *Process) Kill() {
	if p.Running() {
		_ = syscall.Kill(p.PID, syscall.SIGKILL) // It may just have ended.
	}
	<-p.exited
}

// Folder makes a folder for a server's files, and returns what removes it again.
// First it removes those of this name whose process was killed. All users may
// pass through it.
func Folder(name string) (path string, remove func() error, err error) {
	prefix := "csi-secrets-" + name + "-"
	removeLeft(filepath.Join(os.TempDir(), prefix+"*"))
	// It gets its name once it is locked: who sees it can tell whose it is.
	temporary, err := os.MkdirTemp("", "."+prefix)
	if err != nil {
		return "", nil, err
	}
	unlock, err := lock(temporary)
	if err == nil {
		err = os.Chmod(temporary, 0o711)
	}
	if err == nil {
		path = filepath.Join(filepath.Dir(temporary), filepath.Base(temporary)[1:])
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(temporary))
	}
	return path, func() error {
		defer unlock()
		return os.RemoveAll(path)
	}, nil
}

func removeLeft(pattern string) {
	left, _ := filepath.Glob(pattern)
	for _, path := range left {
		if unlock, err := lock(path); err == nil {
			_ = os.RemoveAll(path) // It is the next run's otherwise.
			unlock()
		}
	}
}

// lock locks a folder until unlock or the end of this process.
func lock(path string) (unlock func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// FreePort is a TCP port of an address of this machine that nobody listens on.
func FreePort(host string) (int, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}

// Tail is the end of a file, for messages.
func Tail(path string) string {
	const limit = 4 << 10
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-limit):])
}
