package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

func TestEveryErrorGetsItsCode(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want codes.Code
	}{
		{volume.ErrPending, codes.Aborted},
		{fmt.Errorf("%w: %w", volume.ErrPending, context.DeadlineExceeded), codes.Aborted},
		{volume.ErrIncompatible, codes.AlreadyExists},
		{volume.ErrElsewhere, codes.FailedPrecondition},
		{volume.ErrForeign, codes.FailedPrecondition},
		{volume.ErrNotPublished, codes.NotFound},
		{&provider.Error{Kind: provider.Invalid}, codes.InvalidArgument},
		{&provider.Error{Kind: provider.NotFound}, codes.NotFound},
		{&provider.Error{Kind: provider.Denied}, codes.PermissionDenied},
		{&provider.Error{Kind: provider.Throttled}, codes.ResourceExhausted},
		{&provider.Error{Kind: provider.TooLarge}, codes.ResourceExhausted},
		{&provider.Error{Kind: provider.Unavailable}, codes.Unavailable},
		{&provider.Error{Kind: provider.Unavailable, Err: context.DeadlineExceeded}, codes.DeadlineExceeded},
		{&provider.Error{Kind: provider.Internal}, codes.Internal},
		{&provider.Error{Kind: provider.Denied, Err: status.Error(codes.Unauthenticated, "x")}, codes.Unauthenticated},
		{context.Canceled, codes.Canceled},
		{errors.New("x"), codes.Internal},
		{nil, codes.OK},
	} {
		err := tc.err
		if err != nil {
			err = fmt.Errorf("wrapped: %w", err)
		}
		if got := status.Code(statusError(err)); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.err, got, tc.want)
		}
	}
}

func validRequest() *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{
		VolumeId: "v", TargetPath: "/t/mount", Readonly: true,
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: "2000"}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{keyClass: "c", keyPodNamespace: "ns", keyPodName: "web", keyPodUID: "u", keyServiceAccount: "sa", "mine": "x"},
	}
}

func TestTokensComeFromTheSecretsFirst(t *testing.T) {
	req := validRequest()
	req.VolumeContext[keyTokens] = `{"vault":{"token":"from-context","expirationTimestamp":"2026-11-21T08:00:00Z"}}`
	got, err := publishRequest(req)
	if err != nil || string(got.Tokens["vault"].Value.Reveal()) != "from-context" || got.Tokens["vault"].Expires.IsZero() {
		t.Fatalf("got %v, %v", got, err)
	}
	if _, ok := got.Attributes[keyTokens]; ok {
		t.Error("the tokens are among the attributes, which are recorded on a disk")
	}
	req.Secrets = map[string]string{keyTokens: `{"vault":{"token":"from-secrets"}}`, "k": "v"}
	got, err = publishRequest(req)
	if err != nil || string(got.Tokens["vault"].Value.Reveal()) != "from-secrets" || string(got.Secrets["k"].Reveal()) != "v" {
		t.Fatalf("got %v, %v", got, err)
	}
	if *got.FSGroup != 2000 || got.Pod.ServiceAccount != "sa" || got.Class.String() != "ns/c" || got.Attributes["mine"] != "x" {
		t.Errorf("got %+v", got)
	}
}

func TestBrokenTokensAreNotQuoted(t *testing.T) {
	for _, broken := range []string{`canary`, `{"a":"canary"}`, `{"a":{"token":["canary"]}}`, `{"a":{"token":"canary","expirationTimestamp":"canary"}}`} {
		req := validRequest()
		req.VolumeContext[keyTokens] = broken
		if _, err := publishRequest(req); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: got %v", broken, err)
		}
	}
}

func FuzzTokens(f *testing.F) {
	f.Add(`{"vault":{"token":"t","expirationTimestamp":"2026-11-21T08:00:00Z"}}`)
	f.Add(`null`)
	f.Add(`{"":{}}`)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := credentials(map[string]string{keyTokens: text}, nil)
		if err == nil && text != "" && got.RawTokens.Len() != len(text) {
			t.Error("tokens were lost")
		}
	})
}

func TestAPanicEndsItsCallOnly(t *testing.T) {
	_, err := recoverCall(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/csi.v1.Node/NodePublishVolume"}, func(context.Context, any) (any, error) {
		panic("canary")
	})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v", err)
	}
}

func TestSocketFile(t *testing.T) {
	for endpoint, want := range map[string]string{
		"unix:///csi/csi.sock": "/csi/csi.sock", "unix://tmp/csi.sock": "/tmp/csi.sock", "unix:/csi.sock": "/csi.sock", "/csi.sock": "/csi.sock",
		"tcp://127.0.0.1:1": "", "csi.sock": "", "unix://": "", "": "",
	} {
		if got, err := SocketFile(endpoint); got != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %q, %v", endpoint, got, err)
		}
	}
}

func TestListenTakesTheSocketOfADeadDriverOnly(t *testing.T) {
	dir, err := os.MkdirTemp("", "cs")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "s")
	dead, err := net.Listen("unix", file)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	live, err := Listen("unix://" + file)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	if second, err := Listen("unix://" + file); err == nil {
		second.Close()
		t.Error("it took the socket of a driver that lives")
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen("unix://" + filepath.Join(dir, "file")); err == nil {
		l.Close()
		t.Error("it removed a file")
	}
}
