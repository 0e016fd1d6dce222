package driver

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// probeTimeout is how long a driver may take to answer, as the liveness probe
// of Kubernetes' CSI project has it.
const probeTimeout = 3 * time.Second

// Health is an http.Handler that asks a driver over its socket whether it
// lives: 200 if it answers Probe, 503 if not. It is safe for concurrent use.
type Health struct {
	conn     *grpc.ClientConn
	identity csi.IdentityClient
}

// NewHealth returns a Health for the driver at endpoint. The caller closes it.
func NewHealth(endpoint string) (*Health, error) {
	file, err := SocketFile(endpoint)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix:"+file, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &Health{conn, csi.NewIdentityClient(conn)}, nil
}

// Close ends the connection to the driver.
func (h *Health) Close() error { return h.conn.Close() }

func (h *Health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), probeTimeout)
	defer cancel()
	if _, err := h.identity.Probe(ctx, &csi.ProbeRequest{}); err != nil {
		http.Error(w, fmt.Sprintf("the driver does not answer: %v", err), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
