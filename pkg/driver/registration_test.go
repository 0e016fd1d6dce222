package driver

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// register serves a registration and returns kubelet's end of it.
func register(t *testing.T) (kubelet registration.RegistrationClient, stop func() error) {
	t.Helper()
	kubelet, _, stop = registerIn(t)
	return kubelet, stop
}

func registerIn(t *testing.T) (kubelet registration.RegistrationClient, socket string, stop func() error) {
	t.Helper()
	folder, err := os.MkdirTemp("", "cs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	r := &Registration{Folder: folder, Name: "secrets-store.csi.k8s.io", Endpoint: "/host/csi.sock"}
	go func() { served <- r.Serve(ctx) }()
	conn, err := grpc.NewClient("unix:"+filepath.Join(folder, "secrets-store.csi.k8s.io-reg.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); cancel() })
	return registration.NewRegistrationClient(conn), filepath.Join(folder, "secrets-store.csi.k8s.io-reg.sock"), func() error { cancel(); return <-served }
}

func TestKubeletLearnsOfTheDriverEachTimeItAsks(t *testing.T) {
	kubelet, stop := register(t)
	for range 2 { // kubelet asks again when it was restarted
		info, err := kubelet.GetInfo(t.Context(), &registration.InfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if info.GetType() != "CSIPlugin" || info.GetName() != "secrets-store.csi.k8s.io" || info.GetEndpoint() != "/host/csi.sock" || info.GetSupportedVersions()[0] != "1.0.0" {
			t.Errorf("got %v", info)
		}
		if _, err := kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{PluginRegistered: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// kubelet does not ask again behind a socket of a driver that it has refused.
func TestARefusedDriverIsOfferedAgain(t *testing.T) {
	kubelet, stop := register(t)
	if _, err := kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{Error: "the API server is away"}); err == nil {
		t.Error("kubelet was told that all is well")
	}
	// The connection is to another socket now.
	if info, err := kubelet.GetInfo(t.Context(), &registration.InfoRequest{}); err != nil || info.GetName() != "secrets-store.csi.k8s.io" {
		t.Errorf("got %v, %v", info, err)
	}
	if _, err := kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{PluginRegistered: true}); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Two drivers may overlap when one takes the other's place: the one that ends
// leaves the other's socket, and one whose socket was taken away makes another.
func TestDriversThatOverlapKeepTheirSockets(t *testing.T) {
	kubelet, socket, stop := registerIn(t)
	if _, err := kubelet.GetInfo(t.Context(), &registration.InfoRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the socket did not come back")
		}
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	next, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Error("the driver that ended took the other's socket away")
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the last one has left its socket")
	}
}
