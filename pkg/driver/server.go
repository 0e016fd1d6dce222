package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// shutdownTimeout is how long calls may take to end when the driver stops.
const shutdownTimeout = 20 * time.Second

// connectionBuffer is the size of a connection's buffers in bytes.
const connectionBuffer = 4 << 10

// Serve answers CSI calls on listener until ctx ends, and then lets those that
// run end. It closes listener.
func (d *Driver) Serve(ctx context.Context, listener net.Listener) error {
	logger := klog.FromContext(ctx)
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(withLogger(logger), logCall, recoverCall),
		// kubelet makes a connection for every call: small buffers do for it.
		grpc.ReadBufferSize(connectionBuffer), grpc.WriteBufferSize(connectionBuffer),
	)
	csi.RegisterIdentityServer(server, d)
	csi.RegisterNodeServer(server, d)

	stopped := make(chan struct{})
	defer func() { <-stopped }()
	served, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(stopped)
		<-served.Done()
		timer := time.AfterFunc(shutdownTimeout, server.Stop)
		defer timer.Stop()
		server.GracefulStop()
	}()
	if err := server.Serve(listener); err != nil {
		return fmt.Errorf("serve CSI: %w", err)
	}
	return nil
}

// Listen opens the Unix socket of an endpoint, as in unix:///csi/csi.sock, and
// takes the place of one that nobody listens on any more.
func Listen(endpoint string) (net.Listener, error) {
	file, err := SocketFile(endpoint)
	if err != nil {
		return nil, err
	}
	if conn, err := net.DialTimeout("unix", file, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("endpoint %s: %w", endpoint, errInUse)
	}
	if info, err := os.Lstat(file); err == nil && info.Mode()&os.ModeSocket == 0 {
		return nil, fmt.Errorf("endpoint %s: the file exists and is no socket", endpoint)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("endpoint %s: remove the old socket: %w", endpoint, err)
	}
	listener, err := net.Listen("unix", file)
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	own := &ownSocket{UnixListener: listener.(*net.UnixListener), file: file}
	own.SetUnlinkOnClose(false)
	err = os.Chmod(file, 0o600)
	if err == nil {
		own.info, err = os.Lstat(file)
	}
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	return own, nil
}

// errInUse: another process listens on the socket.
var errInUse = errors.New("another process listens on it")

// ownSocket is a Unix socket whose file goes with it, unless somebody else has
// put another there: a driver that takes this one's place may be up already.
type ownSocket struct {
	*net.UnixListener
	file string
	info os.FileInfo
}

// there tells whether the file is still this socket's.
func (s *ownSocket) there() bool {
	info, err := os.Lstat(s.file)
	return err == nil && os.SameFile(info, s.info)
}

func (s *ownSocket) Close() error {
	if s.there() {
		_ = os.Remove(s.file)
	}
	return s.UnixListener.Close()
}

// SocketFile returns the absolute path of an endpoint's socket. As in
// secrets-store-csi-driver, unix://tmp/csi.sock means /tmp/csi.sock.
func SocketFile(endpoint string) (string, error) {
	file, ok := strings.CutPrefix(endpoint, "unix:")
	if ok {
		file = path.Join("/", file)
	} else if file = endpoint; !path.IsAbs(file) {
		return "", fmt.Errorf("endpoint %q is not a Unix socket; write it as in unix:///csi/csi.sock", endpoint)
	}
	if file == "/" {
		return "", fmt.Errorf("endpoint %q names no file", endpoint)
	}
	return file, nil
}

func withLogger(logger klog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return handler(klog.NewContext(ctx, logger), req)
	}
}

// logCall logs each call that fails, once. Requests carry tokens and secrets:
// of them it logs what volume and target they name, and nothing else.
func logCall(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	started := time.Now()
	response, err := handler(ctx, req)
	logger := klog.FromContext(ctx)
	if err == nil && !logger.V(5).Enabled() {
		return response, nil
	}
	call := []any{"method", path.Base(info.FullMethod), "code", status.Code(err).String(), "took", time.Since(started)}
	if v, ok := req.(interface{ GetVolumeId() string }); ok {
		call = append(call, "volume", v.GetVolumeId())
	}
	if v, ok := req.(interface{ GetTargetPath() string }); ok {
		call = append(call, "target", v.GetTargetPath())
	}
	if err != nil {
		logger.Error(errors.New(status.Convert(err).Message()), "Call failed", call...)
	} else {
		logger.V(5).Info("Call", call...)
	}
	return response, err
}

// recoverCall keeps a fault in one call from ending the driver and with it
// every other call.
func recoverCall(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	defer func() {
		if r := recover(); r != nil {
			klog.FromContext(ctx).Error(nil, "A call panicked", "method", info.FullMethod, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s failed by a fault in the driver; its log has the details", path.Base(info.FullMethod))
		}
	}()
	return handler(ctx, req)
}
