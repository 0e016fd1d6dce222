// The command sidecar does what the programs in the pods of
// secrets-store-csi-driver do beside it: with --http-endpoint it is
// livenessprobe, without it node-driver-registrar. It takes the flags that
// secrets-store-csi-driver's manifests give to these.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-secrets/csi-secrets/pkg/driver"
)

func main() {
	address := flag.String("csi-address", "/csi/csi.sock", "the driver's socket")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket as kubelet sees it")
	folder := flag.String("plugin-registration-path", "/registration", "kubelet's folder for sockets of drivers")
	health := flag.String("http-endpoint", "", "address to serve /healthz on")
	timeout := flag.Duration("probe-timeout", time.Second, "how long the driver may take to answer")
	flag.Int("v", 0, "ignored")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	conn, err := grpc.NewClient("unix:"+*address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	identity := csi.NewIdentityClient(conn)
	if *health != "" {
		err = serveHealth(ctx, identity, *health, *timeout)
	} else {
		err = register(ctx, identity, *folder, *endpoint)
	}
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

// register registers the driver with kubelet until ctx ends.
func register(ctx context.Context, identity csi.IdentityClient, folder, endpoint string) error {
	info, err := identity.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("ask the driver for its name: %w", err)
	}
	r := driver.Registration{Folder: folder, Name: info.GetName(), Endpoint: endpoint}
	return r.Serve(ctx)
}

func serveHealth(ctx context.Context, identity csi.IdentityClient, address string, timeout time.Duration) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		if _, err := identity.Probe(ctx, &csi.ProbeRequest{}); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: timeout}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	return server.ListenAndServe()
}
