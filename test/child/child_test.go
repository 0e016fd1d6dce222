package child

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asVictim has the test binary be a process that TestKilledProcess kills.
const asVictim = "CSI_SECRETS_CHILD_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(asVictim) == "" {
		os.Exit(m.Run())
	}
	folder, _, err := Folder("child")
	if err != nil {
		panic(err)
	}
	p, err := Start(exec.Command("sleep", "1000"))
	if err != nil {
		panic(err)
	}
	fmt.Println(p.PID, folder)
	select {}
}

func TestKilledProcess(t *testing.T) {
	victim := exec.Command("/proc/self/exe")
	victim.Env = append(os.Environ(), asVictim+"=1")
	victim.Stderr = t.Output()
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = victim.Process.Kill() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	var folder string
	if _, err := fmt.Sscan(line, &pid, &folder); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	if !alive(pid) {
		t.Fatal("the child does not run")
	}
	another := func() {
		_, remove, err := Folder("child")
		if err != nil {
			t.Fatal(err)
		}
		if err := remove(); err != nil {
			t.Error(err)
		}
	}
	another()
	if _, err := os.Stat(folder); err != nil {
		t.Errorf("another process removed the folder of one that lives: %v", err)
	}

	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait() // it was killed
	for end := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the child outlives the process that started it")
		}
	}
	another()
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of a process that was killed stays: %v", err)
	}
}

// alive is false for a zombie too, which nobody may be there to wait for.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return state != "" && state[0] != 'Z' && state[0] != 'X'
}

func TestChildOutlivesTheThreadThatStartedIt(t *testing.T) {
	var p *Process
	var err error
	onThreadThatEnds(t, func() { p, err = Start(exec.Command("sleep", "1000")) })
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	// The death signal is there as soon as the thread is gone.
	if !p.Running() || !alive(p.PID) {
		t.Error("the child ended with the thread")
	}
}

// onThreadThatEnds returns once the thread has ended that f ran on.
func onThreadThatEnds(t *testing.T, f func()) {
	t.Helper()
	threads := make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		if syscall.Gettid() == os.Getpid() { // The main thread never ends.
			defer runtime.UnlockOSThread()
			onThreadThatEnds(t, f)
			threads <- 0
			return
		}
		f()
		threads <- syscall.Gettid() // It is still locked, and ends with this.
	}()
	thread := fmt.Sprintf("/proc/self/task/%d", <-threads)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(thread); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the thread does not end")
		}
	}
}

func TestAwait(t *testing.T) {
	never := errors.New("never")
	notReady := func(context.Context) error { return never }

	p, err := Start(exec.Command("false"))
	if err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := p.Await(t.Context(), notReady); !errors.As(err, &exit) || !errors.Is(err, never) {
		t.Errorf("a process that ends: %v", err)
	}

	p, err = Start(exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Await(ctx, notReady); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, never) {
		t.Errorf("a process that is never ready: %v", err)
	}
	if err := p.End(0, 50*time.Millisecond); err == nil || p.Running() {
		t.Errorf("a process that does not end was not killed: %v", err)
	}
	if _, err := Start(exec.Command("/there/is/no/program")); err == nil {
		t.Error("a program that is not there was started")
	}
}
