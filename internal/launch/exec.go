package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// defaultPath is where execvp looks where there is no PATH.
const defaultPath = "/bin:/usr/bin"

// start reads the files and has the program take the place of this process. It
// returns only if that fails.
func (c *config) start(environ []string) error {
	// While this process has the values, it leaves no core file, and no other
	// process of its user may look into it. The kernel ends that at execve.
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0)
	brought, err := c.read()
	if err != nil {
		return err
	}
	env, err := c.merge(environ, brought)
	if err != nil {
		return err
	}
	failed := execute(c.program, env, searchPath(environ))
	if errors.Is(failed, syscall.E2BIG) {
		failed.error = tooLarge(c.program, env, brought)
	}
	return failed
}

// searchPath is the container's own: files must not choose the program.
func searchPath(environ []string) string {
	for _, entry := range environ {
		if path, ok := strings.CutPrefix(entry, "PATH="); ok && path != "" {
			return path
		}
	}
	return defaultPath
}

// execError says why a program was not started.
type execError struct {
	error
	status int
}

func (e *execError) Unwrap() error { return e.error }

// execute replaces this process by a program, which it finds as execvp(3) does. It
// returns only if that fails.
func execute(args, env []string, path string) *execError {
	name := args[0]
	files := []string{name}
	direct := strings.Contains(name, "/")
	if !direct {
		files = nil
		for _, dir := range filepath.SplitList(path) {
			files = append(files, filepath.Join(dir, name))
		}
	}
	var found string
	var err error
	for _, file := range files {
		failure := syscall.Exec(file, args, env)
		absent := failure == syscall.ENOENT || failure == syscall.ENOTDIR
		if _, statErr := os.Stat(file); absent && statErr != nil {
			continue
		}
		found, err = file, failure
		if !absent && failure != syscall.EACCES {
			break
		}
	}
	switch {
	case found == "" && direct:
		return &execError{fmt.Errorf("%s does not exist", name), statusNotFound}
	case found == "":
		return &execError{fmt.Errorf("%s is not found in PATH, which is %s", name, path), statusNotFound}
	case err == syscall.ENOENT:
		return &execError{fmt.Errorf("%s is there, but not the interpreter or dynamic loader that it names", found), statusNotFound}
	case err == syscall.EACCES:
		return &execError{fmt.Errorf("%s may not be executed: look at its mode, at those of its folders, and whether its volume is mounted noexec", found), statusCannotRun}
	case err == syscall.ENOEXEC:
		return &execError{fmt.Errorf("%s is neither a program for this machine nor a script whose first line names an interpreter", found), statusCannotRun}
	}
	return &execError{fmt.Errorf("cannot execute %s: %w", found, err), statusCannotRun}
}

// tooLarge tells what makes an environment too large for the kernel: execve(2),
// "Limits on size of arguments and environment".
func tooLarge(args, env []string, brought map[string]variable) error {
	const pointer = 8 // which the kernel counts for each string
	total := 0
	for _, s := range slices.Concat(args, env) {
		total += len(s) + len("\x00") + pointer
	}
	var largest variable
	for _, v := range brought {
		if len(v.value) >= len(largest.value) {
			largest = v
		}
	}
	return fmt.Errorf("arguments and environment have %d bytes, more than the kernel takes, which is a quarter of the limit of the stack (ulimit -s) and at most 6 MiB; the largest file is %s with %d bytes", total, largest.origin, len(largest.value))
}

// copyTo copies this program into a folder, in one step.
func copyTo(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in, err := os.Open(self)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(dir, ".csi-secrets-")
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Chmod(0o555), out.Close())
	if err == nil {
		err = os.Rename(out.Name(), filepath.Join(dir, filepath.Base(self)))
	}
	if err != nil {
		return errors.Join(err, os.Remove(out.Name()))
	}
	return nil
}
