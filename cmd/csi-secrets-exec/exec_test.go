package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"csi-secrets-exec": main, "application": application})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true})
}

// application stands for a program that is started. It shows what it finds; with
// the argument "wait" it ends with status 7 at SIGTERM, and else at once.
func application() {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	for _, entry := range os.Environ() {
		fmt.Printf("env %q\n", entry)
	}
	cmdline, err := os.ReadFile("/proc/self/cmdline")
	fmt.Printf("cmdline %q, %v\n", cmdline, err)
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	fmt.Printf("dumpable %d, %v\n", dumpable, err)
	for fd := range 100 {
		if to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && strings.HasPrefix(to, "/") {
			fmt.Printf("open %d %s\n", fd, to)
		}
	}
	fmt.Printf("pid %d\n", os.Getpid())
	if slices.Contains(os.Args, "wait") {
		<-terminate
		os.Exit(7)
	}
}

// launcher returns a command that starts the launcher.
func launcher(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Args[0] = "csi-secrets-exec"
	cmd.Env = []string{"PATH=/nowhere"}
	return cmd
}

// applicationPath returns the path of the application.
func applicationPath(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "application")
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// secrets returns a folder that holds a password.
func secrets(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte("canary\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// inNamespaces has cmd run as process 1, with the rights that this takes.
func inNamespaces(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
}

// start starts cmd, or skips the test where its namespaces are not allowed.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	err := cmd.Start()
	if cmd.SysProcAttr != nil && errors.Is(err, syscall.EPERM) {
		t.Skip("this system lets no ordinary user make namespaces")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// exitStatus returns the status with which a command ended, and -1 for a signal.
func exitStatus(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// The application is the process that was started: it has that one's id, gets its
// signals, and its status is the one that a parent sees.
func TestTheApplicationTakesThePlaceOfTheLauncher(t *testing.T) {
	for _, first := range []bool{false, true} {
		t.Run(fmt.Sprintf("as process 1 %v", first), func(t *testing.T) {
			cmd := launcher(t, "--from", secrets(t), "--", applicationPath(t), "wait")
			if first {
				inNamespaces(cmd)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			start(t, cmd)
			want := cmd.Process.Pid
			if first {
				want = 1
			}
			pid := 0
			for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
				_, _ = fmt.Sscanf(lines.Text(), "pid %d", &pid)
			}
			if pid != want {
				t.Errorf("the application is process %d, and the launcher was %d", pid, want)
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if status := exitStatus(cmd.Wait()); status != 7 {
				t.Errorf("status %d, not that of the application", status)
			}
		})
	}
}

// Nothing of the launcher is left but the variables.
func TestTheApplicationFindsWhatItWouldWithoutTheLauncher(t *testing.T) {
	path := applicationPath(t)
	plain := exec.Command(path, "a", "b c")
	plain.Env = []string{"PATH=/nowhere"}
	launched := launcher(t, "--from", secrets(t), "--", path, "a", "b c")
	var found [2][]string
	for i, cmd := range []*exec.Cmd{plain, launched} {
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		found[i] = strings.Split(string(out), "\n")
		found[i] = slices.DeleteFunc(found[i], func(line string) bool { return strings.HasPrefix(line, "pid ") })
	}
	want := slices.Insert(found[0], 1, `env "PASSWORD=canary"`)
	if !slices.Equal(found[1], want) {
		t.Errorf("it found\n%s\nand not\n%s", strings.Join(found[1], "\n"), strings.Join(want, "\n"))
	}
}

func TestTheKernelTakesWhatTheLauncherTakes(t *testing.T) {
	limit := 32 * os.Getpagesize()
	dir := t.TempDir()
	write := func(name string, size int) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte("canary"), size/6+1)[:size], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) (int, string) {
		t.Helper()
		cmd := launcher(t, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		return exitStatus(cmd.Run()), stderr.String()
	}
	write("largest", limit-len("NAME=\x00"))
	if status, stderr := run("--env", "NAME="+dir+"/largest", "--", applicationPath(t)); status != 0 {
		t.Errorf("the largest variable: status %d, %s", status, stderr)
	}
	write("too-large", limit-len("NAME=\x00")+1)
	if status, stderr := run("--env", "NAME="+dir+"/too-large", "--", applicationPath(t)); status != 125 || !strings.Contains(stderr, dir+"/too-large makes ") {
		t.Errorf("a larger one: status %d, %s", status, stderr)
	}
	many := filepath.Join(dir, "many")
	if err := os.Mkdir(many, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range (6<<20)/limit + 1 {
		write(fmt.Sprintf("many/file-%d", i), limit-100-i)
	}
	status, stderr := run("--from", many, "--", applicationPath(t))
	want := fmt.Sprintf("the largest file is %s/file-0 with %d bytes\n", many, limit-100)
	if status != 126 || !strings.Contains(stderr, "arguments and environment have ") || !strings.HasSuffix(stderr, want) || strings.Contains(stderr, "canary") {
		t.Errorf("too many variables: status %d, %s", status, stderr)
	}
}

// image returns the root of an image in which there is nothing but the shipped
// program, which copied itself there, and two folders of secrets.
func image(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	program := filepath.Join(t.TempDir(), "csi-secrets-exec")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command(program, "--copy-to", root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, contents := range map[string]string{"secrets/password": "canary\n", "other/password": "another"} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(contents), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// inImage returns a command that runs the program of an image as process 1, and
// as another user where that is allowed.
func inImage(t *testing.T, root string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/csi-secrets-exec", args...)
	cmd.Dir, cmd.Env = "/", []string{}
	inNamespaces(cmd)
	cmd.SysProcAttr.Chroot = root
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	return cmd
}

func TestTheProgramIsSmallAndRunsInAnEmptyImage(t *testing.T) {
	root := image(t)
	info, err := os.Stat(filepath.Join(root, "csi-secrets-exec"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 2_500_000 {
		t.Errorf("it has %d bytes", info.Size())
	}
	// The second launcher tells what it finds.
	cmd := inImage(t, root, "--from", "/secrets", "--", "/csi-secrets-exec", "--from", "/other", "--", "/none")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start(t, cmd)
	status := exitStatus(cmd.Wait())
	want := "csi-secrets-exec: the container has the variable PASSWORD already, with another value than /other/password; remove it from the container, or say --override to let files win\n"
	if status != 125 || stderr.String() != want {
		t.Errorf("status %d, %s", status, stderr.String())
	}
}

// While the launcher waits, nobody of its user may look into it, and it ends at
// SIGTERM even as process 1, which the kernel spares signals without a handler.
func TestALauncherThatWaitsIsClosedAndCanBeEnded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to run it as somebody else")
	}
	cmd := inImage(t, image(t), "--wait", "1h", "--from", "/late", "--", "/none")
	start(t, cmd)
	proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	began := time.Now()
	for closed := false; !closed; {
		cmdline, err := os.ReadFile(proc + "cmdline")
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(proc + "environ")
		if err != nil {
			t.Fatal(err)
		}
		// The kernel gives a process that is closed to root.
		closed = bytes.HasPrefix(cmdline, []byte("/csi-secrets-exec")) && info.Sys().(*syscall.Stat_t).Uid == 0
		if time.Since(began) > time.Minute {
			t.Fatal("others of its user may look into the launcher")
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := exitStatus(cmd.Wait()); status != 2 {
		t.Errorf("status %d", status)
	}
}
