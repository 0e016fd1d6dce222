// Package standalone runs the driver of a node without Kubernetes, as a process
// of its own, and calls it as kubelet would. The demo, the tests and the
// benchmark stand on it.
package standalone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// startTimeout is how long a driver may take until it answers.
const startTimeout = 20 * time.Second

// Layout is where a node of its own keeps its things, all below one folder.
type Layout struct{ Root string }

// NewLayout makes the folders of a node below root, which must exist. A Unix
// socket's path has 107 bytes at most: root must be short.
func NewLayout(root string) (Layout, error) {
	l := Layout{root}
	for _, dir := range []string{l.Classes(), l.State(), l.Providers(), l.Pods()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return l, err
		}
	}
	return l, nil
}

// Classes is the folder of SecretProviderClass files.
func (l Layout) Classes() string { return filepath.Join(l.Root, "classes") }

// State is the driver's state folder.
func (l Layout) State() string { return filepath.Join(l.Root, "state") }

// Providers is the folder of external providers' sockets.
func (l Layout) Providers() string { return filepath.Join(l.Root, "providers") }

// Pods is what /var/lib/kubelet/pods is on a real node.
func (l Layout) Pods() string { return filepath.Join(l.Root, "pods") }

// Socket is the driver's CSI socket.
func (l Layout) Socket() string { return filepath.Join(l.Root, "csi.sock") }

// Records returns what the driver keeps of the volumes that it knows, a line of
// JSON each, by target path. Blank lines, and one that is cut short, do not count.
func (l Layout) Records() (map[string]string, error) {
	data, err := os.ReadFile(filepath.Join(l.State(), "volumes.jsonl"))
	if err != nil {
		return nil, err
	}
	records := map[string]string{}
	for line := range strings.Lines(string(data)) {
		var r struct {
			TargetPath string `json:"targetPath"`
		}
		if json.Unmarshal([]byte(line), &r) == nil {
			records[r.TargetPath] = strings.TrimSpace(line)
		}
	}
	return records, nil
}

// Arguments are those of the node command for this layout, followed by more.
func (l Layout) Arguments(more ...string) []string {
	return append([]string{
		"node", "--endpoint", "unix://" + l.Socket(), "--node-id", "standalone", "--classes", l.Classes(), "--state-dir", l.State(),
		"--provider-volume", l.Providers(), "--additional-provider-volume-paths", "",
	}, more...)
}

// Node is a running driver and a connection to it.
type Node struct {
	csi.NodeClient
	csi.IdentityClient

	Layout  Layout
	Process *os.Process

	conn   *grpc.ClientConn
	exited chan struct{}
	err    error // of the process; valid once exited is closed
}

// Start runs command, which must be or become a driver with l's arguments, and
// waits until it answers. Its output goes to log. The process dies with this one.
func Start(ctx context.Context, l Layout, log io.Writer, command string, arguments ...string) (*Node, error) {
	cmd := exec.Command(command, arguments...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the driver: %w", err)
	}
	n := &Node{Layout: l, Process: cmd.Process, exited: make(chan struct{})}
	go func() {
		n.err = cmd.Wait()
		close(n.exited)
	}()
	if err := n.connect(ctx); err != nil {
		n.Kill()
		return nil, err
	}
	return n, nil
}

func (n *Node) connect(ctx context.Context) error {
	conn, err := grpc.NewClient("unix:"+n.Layout.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		return err
	}
	n.conn, n.NodeClient, n.IdentityClient = conn, csi.NewNodeClient(conn), csi.NewIdentityClient(conn)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if _, err = n.Probe(ctx, &csi.ProbeRequest{}); err == nil {
			return nil
		}
		select {
		case <-n.exited:
			return fmt.Errorf("the driver ended at once: %v", n.err)
		case <-ctx.Done():
			return fmt.Errorf("the driver does not answer: %w", errors.Join(ctx.Err(), err))
		case <-time.After(5 * time.Millisecond):
			conn.ResetConnectBackoff()
		}
	}
}

// Kill ends the driver with SIGKILL.
func (n *Node) Kill() { _ = n.end(syscall.SIGKILL) }

// Stop asks the driver to end, waits, and returns how it did.
func (n *Node) Stop() error { return n.end(syscall.SIGTERM) }

// Exited is closed when the driver has ended.
func (n *Node) Exited() <-chan struct{} { return n.exited }

func (n *Node) end(s syscall.Signal) error {
	if n.conn != nil {
		_ = n.conn.Close()
	}
	select {
	case <-n.exited:
		return n.err
	default:
	}
	// Its whole group, for a driver that runs under another program.
	_ = syscall.Kill(-n.Process.Pid, s)
	<-n.exited
	return n.err
}
