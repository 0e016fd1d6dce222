package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Registration tells kubelet of a driver, as k8s.io/kubelet's plugin
// registration asks for it: kubelet watches a folder for sockets, and asks the
// server behind each who it is, again whenever kubelet itself is restarted.
type Registration struct {
	registration.UnimplementedRegistrationServer

	// Folder is the one that kubelet watches, plugins_registry.
	Folder string
	// Name is the driver's.
	Name string
	// Endpoint is the path of the driver's socket as kubelet sees it.
	Endpoint string
	// Registered is called whenever kubelet has registered the driver, and must
	// return at once; it may be nil.
	Registered func()
}

// Serve answers kubelet until ctx ends. It fails where kubelet refuses the
// driver, so that a restart can try again.
func (r *Registration) Serve(ctx context.Context) error {
	listener, err := Listen(filepath.Join(r.Folder, r.Name+"-reg.sock"))
	if err != nil {
		return fmt.Errorf("register with kubelet: %w", err)
	}
	refused := make(chan error, 1)
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &registrar{Registration: r, refused: refused})
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		if ctx.Err() == nil {
			return fmt.Errorf("register with kubelet: %w", err)
		}
		return nil
	case err := <-refused:
		server.Stop()
		<-served
		return fmt.Errorf("kubelet refuses the driver: %w", err)
	}
}

type registrar struct {
	*Registration
	refused chan<- error
}

// GetInfo implements registration.RegistrationServer.
func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: r.Name, Endpoint: r.Endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus implements registration.RegistrationServer.
func (r *registrar) NotifyRegistrationStatus(ctx context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if s.GetPluginRegistered() {
		klog.FromContext(ctx).Info("Registered with kubelet", "driver", r.Name)
		if r.Registration.Registered != nil {
			r.Registration.Registered()
		}
		return &registration.RegistrationStatusResponse{}, nil
	}
	select {
	case r.refused <- errors.New(s.GetError()):
	default:
	}
	return nil, status.Error(codes.Aborted, "the driver ends, to be started again")
}
