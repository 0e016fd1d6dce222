// Package sandbox runs a program in a mount namespace of its own, and for an
// ordinary user in a user namespace of its own in which it is root, so that it
// may mount and leaves no mount behind, however it ends.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside marks the environment of a program that runs in a sandbox.
const inside = "CSI_SECRETS_SANDBOX"

// Run calls body in a sandbox and returns the exit status: within the sandbox
// body's own, outside it that of this same program, started again inside with
// the same arguments. SIGINT, SIGTERM and SIGHUP are passed on to it.
func Run(body func() int) int {
	if os.Getenv(inside) != "" {
		if err := isolate(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return body()
	}
	// The kernel ties the death signal to the thread that starts the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attributes()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "cannot start in a mount namespace of its own: %v\n", err)
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "this system lets no ordinary user make user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns, kernel.unprivileged_userns_clone): run it as root")
		}
		return 1
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s)
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	}
	fmt.Fprintf(os.Stderr, "%v\n", err)
	return 1
}

func attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
		// Out of the terminal's foreground group, Ctrl-C comes once, from Run.
		Setpgid: true,
	}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// isolate keeps every mount of this namespace within it.
func isolate() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts of this namespace private: %w", err)
	}
	return nil
}
