package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDemo(t *testing.T) {
	dir, err := os.MkdirTemp("", "demo-program") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "csi-secrets")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, ordinary := range map[string]bool{"shows a whole life": false, "as an ordinary user": true} {
		t.Run(name, func(t *testing.T) { testWholeDemo(t, program, ordinary) })
	}
	for _, step := range []string{"1. A secret store", "answers CSI on", "2. A pod starts", "holds:", "3. The secret changes", "4. The driver is killed", "kill -9.", "The new driver", "5. The pod ends"} {
		for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
			t.Run(signal.String()+" at "+step, func(t *testing.T) { testInterruptedDemo(t, program, step, signal) })
		}
	}
}

// demoProcess returns the demo as a process of its own, as this user or, if
// asked and possible, as an ordinary one, with a fresh folder for temporary
// files.
func demoProcess(t *testing.T, program string, ordinary bool) (cmd *exec.Cmd, tmp string) {
	t.Helper()
	tmp, err := os.MkdirTemp("", "demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	cmd = exec.Command(program, "demo")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	if ordinary && os.Geteuid() == 0 {
		if err := os.Chmod(tmp, 0o777); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	return cmd, tmp
}

// assertNothingLeft checks that no process, mount or file of a demo is left.
func assertNothingLeft(t *testing.T, tmp string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for left := []string{"?"}; len(left) > 0; {
		left = nil
		environments, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, name := range environments {
			if env, err := os.ReadFile(name); err == nil && bytes.Contains(env, []byte("TMPDIR="+tmp+"\x00")) {
				left = append(left, filepath.Dir(name))
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes are left: %v", left)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(tmp)) {
		t.Errorf("a mount is left: %v", err)
	}
	if list, err := os.ReadDir(tmp); err != nil || len(list) > 0 {
		t.Errorf("files are left: %v, %v", list, err)
	}
}

func testWholeDemo(t *testing.T, program string, ordinary bool) {
	cmd, tmp := demoProcess(t, program, ordinary)
	var out, problems strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), problems.String())
	}
	for _, want := range []string{
		"-r--------  database/password  password-1", "ro,nosuid,nodev,noexec", "database/password  password-2",
		"saw 0 mixed or missing pairs", "kill -9", "0 mixed or missing.", "The files, the mount, its folder and the record are gone.",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
	assertNothingLeft(t, tmp)
}

func testInterruptedDemo(t *testing.T, program, step string, signal syscall.Signal) {
	cmd, tmp := demoProcess(t, program, false)
	seen := &trigger{text: step, fire: func() { _ = cmd.Process.Signal(signal) }}
	cmd.Stdout = seen
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if signal == syscall.SIGINT && err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 130) {
		t.Errorf("got %v", err) // no error: it was faster than the signal
	}
	if !seen.fired {
		t.Errorf("it never said %q:\n%s", step, seen.out.String())
	}
	assertNothingLeft(t, tmp)
}

// trigger is a writer that fires once a text has been written.
type trigger struct {
	text  string
	fire  func()
	out   bytes.Buffer
	fired bool
}

func (w *trigger) Write(p []byte) (int, error) {
	w.out.Write(p)
	if !w.fired && bytes.Contains(w.out.Bytes(), []byte(w.text)) {
		w.fired = true
		w.fire()
	}
	return len(p), nil
}
