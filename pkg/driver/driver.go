// Package driver is the CSI surface: the identity and node services of the
// Container Storage Interface 1.13 for ephemeral volumes. It turns a CSI
// request into a volume request, and an error into a gRPC status.
package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// DefaultName is the name under which users of secrets-store-csi-driver know
// their driver.
const DefaultName = "secrets-store.csi.k8s.io"

// maxNameBytes is the bound of the CSI specification, GetPluginInfo.
const maxNameBytes = 63

// Config is what a Driver works with.
type Config struct {
	Name    string // DefaultName where empty
	Version string
	NodeID  string
	Volumes *volume.Manager
	// Recorder may be nil.
	Recorder Recorder
}

// Recorder counts calls. An errorType is empty for a call that succeeded.
type Recorder interface {
	Published(provider, errorType string)
	Unpublished(errorType string)
}

type noRecorder struct{}

func (noRecorder) Published(string, string) {}
func (noRecorder) Unpublished(string)       {}

// Driver implements csi.IdentityServer and csi.NodeServer. It is safe for
// concurrent use.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer

	config Config
}

var (
	_ csi.IdentityServer = (*Driver)(nil)
	_ csi.NodeServer     = (*Driver)(nil)
)

// New returns a Driver, or tells what is wrong with its Config.
func New(c Config) (*Driver, error) {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.Recorder == nil {
		c.Recorder = noRecorder{}
	}
	switch {
	case len(c.Name) > maxNameBytes:
		return nil, fmt.Errorf("the driver name %q has more than %d bytes", c.Name, maxNameBytes)
	case c.NodeID == "":
		return nil, errors.New("the node ID is missing")
	case len(c.NodeID) > 256:
		return nil, fmt.Errorf("the node ID %q has more than 256 bytes", c.NodeID)
	case c.Volumes == nil:
		return nil, errors.New("a driver needs a volume manager")
	}
	return &Driver{config: c}, nil
}

// GetPluginInfo implements csi.IdentityServer.
func (d *Driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.config.Name, VendorVersion: d.config.Version}, nil
}

// GetPluginCapabilities implements csi.IdentityServer: there are none, since
// there is no controller service.
func (d *Driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{}, nil
}

// Probe implements csi.IdentityServer.
func (d *Driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

// NodeGetInfo implements csi.NodeServer.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.config.NodeID}, nil
}

// NodeGetCapabilities implements csi.NodeServer.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	response := &csi.NodeGetCapabilitiesResponse{}
	for _, c := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		// kubelet leaves the pod's fsGroup to us: by itself it would not apply
		// it to a read-only CSI volume.
		csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
	} {
		response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return response, nil
}

// NodePublishVolume implements csi.NodeServer.
func (d *Driver) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	wanted, err := publishRequest(req)
	if err != nil {
		d.config.Recorder.Published("", provider.Invalid.String())
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	ctx = logFor(ctx, wanted)
	if err := d.config.Volumes.Publish(ctx, wanted); err != nil {
		var of *volume.ClassError
		if !errors.As(err, &of) {
			of = &volume.ClassError{}
		}
		d.config.Recorder.Published(of.Provider, provider.KindOf(err).String())
		return nil, statusError(fmt.Errorf("failed to mount secrets store objects for pod %s/%s, err: %w", wanted.Pod.Namespace, wanted.Pod.Name, err))
	}
	if v, ok := d.config.Volumes.Get(wanted.TargetPath); ok {
		d.config.Recorder.Published(v.Provider, "")
	}
	klog.FromContext(ctx).V(4).Info("Published")
	return &csi.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume implements csi.NodeServer.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := checkVolume(req.GetVolumeId(), "Target path", req.GetTargetPath()); err != nil {
		d.config.Recorder.Unpublished(provider.Invalid.String())
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := d.config.Volumes.Unpublish(ctx, req.GetVolumeId(), req.GetTargetPath()); err != nil {
		d.config.Recorder.Unpublished(provider.KindOf(err).String())
		return nil, statusError(fmt.Errorf("failed to unpublish volume %s: %w", req.GetVolumeId(), err))
	}
	d.config.Recorder.Unpublished("")
	klog.FromContext(ctx).V(4).Info("Unpublished", "volume", req.GetVolumeId(), "target", req.GetTargetPath())
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeGetVolumeStats implements csi.NodeServer.
func (d *Driver) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if err := checkNamed(req.GetVolumeId(), "Volume path", req.GetVolumePath()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	u, err := d.config.Volumes.Usage(req.GetVolumeId(), req.GetVolumePath())
	if err != nil {
		return nil, statusError(err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: u.TotalBytes, Used: u.UsedBytes, Available: u.FreeBytes},
		{Unit: csi.VolumeUsage_INODES, Total: u.TotalInodes, Used: u.UsedInodes, Available: u.FreeInodes},
	}}, nil
}

// logFor names the volume in every line that is logged with ctx.
func logFor(ctx context.Context, v volume.Request) context.Context {
	return klog.NewContext(ctx, klog.FromContext(ctx).WithValues("pod", klog.KRef(v.Pod.Namespace, v.Pod.Name), "class", v.Class.Name, "volume", v.VolumeID))
}
