// Package harness lets tests of the whole driver share one build of its binary,
// and starts it on nodes of their own.
package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/csi-secrets/csi-secrets/internal/sandbox"
	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/pkg/class"
)

// Number is what a variable of the environment says, for runs that last or are large.
func Number(t testing.TB, variable string, fallback int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return fallback
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// binaryVariable names a binary to test instead of one built from this source.
const binaryVariable = "CSI_SECRETS_BIN"

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

var binary string

// Binary is the binary under test.
func Binary() string { return binary }

// Main is the body of TestMain: it runs the tests in a sandbox, where they may
// mount, beside a binary that was built once.
func Main(m *testing.M) {
	os.Exit(sandbox.Run(func() int {
		if binary = os.Getenv(binaryVariable); binary != "" {
			return m.Run()
		}
		folder, err := os.MkdirTemp("/tmp", "cs")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(folder)
		binary = filepath.Join(folder, "csi-secrets")
		build := exec.Command("go", "build", "-o", binary, "github.com/csi-secrets/csi-secrets/cmd/csi-secrets")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the binary to test: %v\n%s", err, output)
			return 1
		}
		return m.Run()
	}))
}

// noteSources looks at every source of the binary, so that go test, which keeps
// results until a file changes that a test looked at, knows what this one
// depends on.
var noteSources = sync.OnceValue(func() error {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	root := strings.TrimSpace(string(out))
	for _, part := range []string{"cmd", "internal", "pkg"} {
		err := filepath.WalkDir(filepath.Join(root, part), func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				_, err = os.Stat(path)
			}
			if errors.Is(err, fs.ErrNotExist) { // somebody is at work there
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
})

// Folder returns a new folder with a short path, for sockets, which goes with
// the test, and with it every mount below it.
func Folder(t testing.TB) string {
	t.Helper()
	folder, err := os.MkdirTemp("/tmp", "cs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, m := range mounts(t) {
			if strings.HasPrefix(m.point, folder+"/") {
				if err := unix.Unmount(m.point, unix.MNT_DETACH); err != nil {
					t.Errorf("unmount %s: %v", m.point, err)
				}
			}
		}
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	return folder
}

// Node is a driver on a node of its own, and what it wrote.
type Node struct {
	*standalone.Node

	Log *Log
}

// Options are how a driver is started.
type Options struct {
	// Arguments follow those that every driver of the tests has.
	Arguments []string
	// Under is a command that becomes the driver, as in env NAME=VALUE.
	Under []string
}

// Start starts a driver on a new node. It ends with the test, which fails if
// it does not end well.
func Start(t testing.TB, o Options) *Node {
	t.Helper()
	if err := noteSources(); err != nil {
		t.Fatal(err)
	}
	layout, err := standalone.NewLayout(Folder(t))
	if err != nil {
		t.Fatal(err)
	}
	command := append(append(append([]string(nil), o.Under...), Binary()), layout.Arguments(o.Arguments...)...)
	n := &Node{Log: &Log{}}
	if n.Node, err = standalone.Start(t.Context(), layout, n.Log, command[0], command[1:]...); err != nil {
		t.Fatalf("%v\n%s", err, n.Log.Bytes())
	}
	t.Cleanup(func() {
		select {
		case <-n.Exited():
			n.Kill() // for its connection
		default:
			if err := n.Stop(); err != nil {
				t.Errorf("the driver ended with %v\n%s", err, n.Log.Bytes())
			}
		}
	})
	return n
}

// Class is the YAML of a SecretProviderClass.
func Class(t testing.TB, name, provider string, parameters map[string]string) string {
	t.Helper()
	c := class.SecretProviderClass{Spec: class.Spec{Provider: provider, Parameters: parameters}}
	c.APIVersion, c.Kind, c.Name = class.Group+"/"+class.Version, class.Kind, name
	text, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "  creationTimestamp: null\n", "")
}

// AddClass gives the node a class in a file of its own name.
func (n *Node) AddClass(t testing.TB, name, provider string, parameters map[string]string) {
	t.Helper()
	n.AddClassFile(t, name, Class(t, name, provider, parameters))
}

// AddClassFile gives the node a file of classes, in one step.
func (n *Node) AddClassFile(t testing.TB, name, text string) {
	t.Helper()
	file := filepath.Join(n.Layout.Classes(), name+".yaml")
	WriteFile(t, file+".new", text)
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// WriteFile writes a file and the folders above it.
func WriteFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Timeout is a context for one call that must end soon.
func Timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// Eventually waits until done, and fails the test where that takes too long.
func Eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

type mountLine struct{ line, point string }

func mounts(t testing.TB) []mountLine {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var all []mountLine
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			// The kernel writes white space and backslashes in octal; the
			// folders of these tests have none.
			all = append(all, mountLine{strings.TrimSpace(line), fields[4]})
		}
	}
	return all
}

// Mounts returns every mount of this namespace, which is the driver's too, as
// /proc/self/mountinfo has it.
func Mounts(t testing.TB) []string {
	t.Helper()
	var lines []string
	for _, m := range mounts(t) {
		lines = append(lines, m.line)
	}
	return lines
}

// Tree returns the type, mode and path of all that is below folder, mounts
// included.
func Tree(t testing.TB, folder string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all = append(all, fmt.Sprintf("%v %s", info.Mode(), path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Log collects the output of a process. It is safe for concurrent use.
type Log struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.Write(p)
}

// Bytes returns a copy of all that was written so far.
func (l *Log) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buffer.Bytes())
}
