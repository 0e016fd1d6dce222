package canary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/csi-secrets/csi-secrets/pkg/provider/plugin/plugintest"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

// allowCores lets processes that this one starts leave core files, if they do
// not see to it themselves.
func allowCores(t *testing.T) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max == 0 {
		t.Log("no process may leave a core file here, so that it proves less that the driver leaves none")
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: limit.Max, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
			t.Error(err)
		}
	})
}

// full publishes a volume of each kind and returns what is told apart in
// memory, by the name of the kind.
func (c *cage) full(t *testing.T) map[string]string {
	t.Helper()
	file, tokenSent, secretSent, plugin := canary("mem file"), tokens(), canary("mem secret"), canary("mem plugin")
	v := c.volume(c.class(t, map[string]string{"path": c.folder(t, map[string]string{"a": file})}))
	c.works(t, v)
	sealed := half("mem age")
	path, identity := c.age(t, "a: "+sealed)
	c.works(t, c.volume(c.class(t, map[string]string{"path": path, "identityFile": identity})))
	name := c.name()
	plugintest.Serve(t, c.Layout.Providers(), name, func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		return plugintest.Files(map[string]string{"a": plugin}), nil
	})
	c.AddClass(t, name, name, map[string]string{"objects": "any"})
	v = c.volume(name)
	v.Tokens, v.Secrets = tokenSent, map[string]string{"key": secretSent}
	c.works(t, v)
	key, err := os.ReadFile(identity)
	if err != nil {
		t.Fatal(err)
	}
	cut := func(s string) string { return s[:len(marker)+30] }
	return map[string]string{
		"file of a folder": cut(file), "value of an age file": cut(sealed), "age identity": strings.TrimSpace(string(key)),
		"token": regexp.MustCompile(marker + `\w{30}`).FindString(tokenSent), "secret": cut(secretSent), "file of a plugin": cut(plugin),
	}
}

func TestNoCoreFile(t *testing.T) {
	allowCores(t)
	for _, s := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGSEGV} {
		for _, traceback := range []string{"all", "crash"} {
			t.Run(fmt.Sprintf("after %v with GOTRACEBACK=%s", s, traceback), func(t *testing.T) {
				c := newCage(t, harness.Options{Under: []string{"env", "GOTRACEBACK=" + traceback}})
				c.full(t)
				limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", c.Process.Pid))
				if err != nil {
					t.Fatal(err)
				}
				if !regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
					t.Errorf("the limits are\n%s", limits)
				}
				if err := c.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
				<-c.Exited()
				var exit *exec.ExitError
				if !errors.As(c.Stop(), &exit) {
					t.Fatalf("the driver ended with %v", err)
				}
				if exit.Sys().(syscall.WaitStatus).CoreDump() {
					t.Error("the kernel took a core file")
				}
				log := c.Log.Bytes()
				if !bytes.Contains(log, []byte("goroutine ")) {
					t.Errorf("there is no goroutine dump:\n%s", log)
				}
				hits := look("the log", log)
				for _, folder := range []string{c.Layout.Root, c.work} {
					more, _ := lookInFiles(t, folder)
					hits = append(hits, more...)
				}
				report(t, hits)
				if left := harness.Tree(t, c.work); len(left) != 1 {
					t.Errorf("the driver left %q", left)
				}
			})
		}
	}
}

// The test above proves something only if another program does leave one here.
func TestAnotherProgramLeavesACoreFile(t *testing.T) {
	allowCores(t)
	command := exec.Command("sleep", "60")
	command.Dir = harness.Folder(t)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "sleep runs", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", command.Process.Pid))
		return err == nil && string(text) == "sleep\n"
	})
	if err := command.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	_ = command.Wait()
	if !command.ProcessState.Sys().(syscall.WaitStatus).CoreDump() {
		t.Skip("no program leaves a core file on this machine, whatever it does (see /proc/sys/kernel/core_pattern, ulimit -Hc)")
	}
}

// A process of the same user, with all the rights that the driver has, does not
// get at the memory of the driver, and does get at that of another program.
func TestMemoryIsClosedToItsOwnUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to give up CAP_SYS_PTRACE and keep the rest")
	}
	// This thread, and what it starts, loses CAP_SYS_PTRACE, which opens every
	// process. The thread ends with the test.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_PTRACE, 0, 0, 0); err != nil {
		t.Skipf("cannot give up CAP_SYS_PTRACE: %v", err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&head, &caps[0]); err != nil {
		t.Fatal(err)
	}
	for _, set := range []*uint32{&caps[0].Effective, &caps[0].Permitted, &caps[0].Inheritable} {
		*set &^= 1 << unix.CAP_SYS_PTRACE
	}
	if err := unix.Capset(&head, &caps[0]); err != nil {
		t.Fatal(err)
	}

	another := exec.Command("sleep", "60")
	if err := another.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = another.Process.Kill(); _ = another.Wait() }()
	harness.Eventually(t, "the memory of sleep is open", func() bool { return openMemory(another.Process.Pid) == nil })

	c := newCage(t, harness.Options{})
	c.full(t)
	if err := openMemory(c.Process.Pid); !errors.Is(err, os.ErrPermission) {
		t.Errorf("the driver's memory: %v, want permission denied", err)
	}
}

func openMemory(pid int) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err == nil {
		f.Close()
	}
	return err
}

// What the driver no longer needs should not stay in its memory. Of what passes
// through gRPC, YAML or age some does, until the memory is used again: the test
// tells how much. The contents of a plain file go through our own hands only.
func TestMemoryAfterPublishes(t *testing.T) {
	c := newCage(t, harness.Options{Arguments: []string{"--rotation-poll-interval", "0"}})
	if err := openMemory(c.Process.Pid); err != nil {
		t.Skipf("it takes CAP_SYS_PTRACE: %v", err)
	}
	values := c.full(t)
	for second := range 3 {
		time.Sleep(time.Duration(second) * time.Second) // it measures, and waits for nothing
		counts := copies(t, c.Process.Pid, values)
		for _, kind := range slices.Sorted(maps.Keys(values)) {
			t.Logf("reading %d: %d copies of a %s", second+1, counts[kind], kind)
		}
		if counts["token"] == 0 {
			t.Error("no token is found, which the driver keeps for the next refresh: the search is wrong")
		}
		if n := counts["file of a folder"]; n != 0 {
			t.Errorf("%d copies of a plain file's contents are left", n)
		}
	}
}

// copies counts each value in the writable memory of a process.
func copies(t *testing.T, pid int, values map[string]string) map[string]int {
	t.Helper()
	regions, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	counts := map[string]int{}
	for line := range strings.Lines(string(regions)) {
		var from, to int64
		var rights string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &rights); err != nil || !strings.HasPrefix(rights, "rw") {
			continue
		}
		region, err := io.ReadAll(io.NewSectionReader(memory, from, to-from))
		if err != nil {
			continue // such as [vvar]; what could be read counts
		}
		for kind, value := range values {
			counts[kind] += bytes.Count(region, []byte(value))
		}
	}
	return counts
}
