package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

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

// How long Serve waits before it offers a driver again that kubelet has refused.
const firstOffer, lastOffer = time.Second, 30 * time.Second

// lookEvery is how often Serve looks whether its socket is there.
const lookEvery = 2 * time.Second

// Serve answers kubelet until ctx ends. kubelet asks a socket once. Where it then
// refuses the driver, as it does while it cannot reach the API server, there has
// to be a new socket for it to ask again.
func (r *Registration) Serve(ctx context.Context) error {
	for wait := firstOffer; ; wait = min(2*wait, lastOffer) {
		why, err := r.offer(ctx)
		if errors.Is(err, errInUse) { // by a driver that is about to end
			why, err = err, nil
		}
		if err != nil || ctx.Err() != nil {
			return err
		}
		klog.FromContext(ctx).Error(why, "The driver is not registered; it is offered to kubelet again", "driver", r.Name, "after", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// offer serves one socket, until kubelet refuses the driver, for which it returns
// the reason, or ctx ends.
func (r *Registration) offer(ctx context.Context) (refused, err error) {
	listener, err := Listen(filepath.Join(r.Folder, r.Name+"-reg.sock"))
	if err != nil {
		return nil, fmt.Errorf("register with kubelet: %w", err)
	}
	refusal := make(chan error, 1)
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &registrar{Registration: r, refused: refusal})
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case err := <-served:
			if ctx.Err() == nil {
				return nil, fmt.Errorf("register with kubelet: %w", err)
			}
			return nil, nil
		case refused = <-refusal:
		case <-look.C:
			if listener.(*ownSocket).there() {
				continue
			}
			// The driver before this one took it for its own when it ended.
			refused = errors.New("the socket is gone")
		}
		server.GracefulStop() // kubelet hears the answer
		<-served
		return refused, nil
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
	return nil, status.Error(codes.Aborted, "the driver is offered again, on a new socket")
}
