package standalone

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// Volume is an inline volume of a pod, as a pod's spec has it.
type Volume struct {
	Pod        string
	Namespace  string // "default" where empty
	Name       string // of the volume; "secrets" where empty
	Class      string
	FSGroup    *int64
	Attributes map[string]string // besides secretProviderClass
	Secrets    map[string]string
	Tokens     string // the JSON of the pod's tokens by audience
}

func (v Volume) namespace() string {
	if v.Namespace == "" {
		return "default"
	}
	return v.Namespace
}

func (v Volume) uid() string { return "uid-" + v.namespace() + "-" + v.Pod }

func (v Volume) name() string {
	if v.Name == "" {
		return "secrets"
	}
	return v.Name
}

// ID is the volume ID that kubelet makes up for an inline volume.
func (v Volume) ID() string {
	sum := sha256.Sum256([]byte(v.uid() + v.name()))
	return "csi-" + hex.EncodeToString(sum[:])
}

// Target is the volume's target path on a node.
func (v Volume) Target(l Layout) string {
	return filepath.Join(l.Pods(), v.uid(), "volumes", "kubernetes.io~csi", v.name(), "mount")
}

// PublishRequest is what kubelet sends for the volume.
func (v Volume) PublishRequest(l Layout) *csi.NodePublishVolumeRequest {
	attributes := map[string]string{
		"secretProviderClass":                    v.Class,
		"csi.storage.k8s.io/pod.name":            v.Pod,
		"csi.storage.k8s.io/pod.namespace":       v.namespace(),
		"csi.storage.k8s.io/pod.uid":             v.uid(),
		"csi.storage.k8s.io/serviceAccount.name": "default",
		"csi.storage.k8s.io/ephemeral":           "true",
	}
	for k, value := range v.Attributes {
		attributes[k] = value
	}
	if v.Tokens != "" {
		attributes["csi.storage.k8s.io/serviceAccount.tokens"] = v.Tokens
	}
	mount := &csi.VolumeCapability_MountVolume{}
	if v.FSGroup != nil {
		mount.VolumeMountGroup = strconv.FormatInt(*v.FSGroup, 10)
	}
	return &csi.NodePublishVolumeRequest{
		VolumeId:   v.ID(),
		TargetPath: v.Target(l),
		Readonly:   true,
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: mount},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		Secrets:       v.Secrets,
		VolumeContext: attributes,
	}
}

// Publish makes the target's parent, as kubelet does, and publishes the volume.
func (n *Node) Publish(ctx context.Context, v Volume) error {
	request := v.PublishRequest(n.Layout)
	if err := os.MkdirAll(filepath.Dir(request.TargetPath), 0o750); err != nil {
		return err
	}
	_, err := n.NodePublishVolume(ctx, request)
	return err
}

// Unpublish unpublishes the volume.
func (n *Node) Unpublish(ctx context.Context, v Volume) error {
	_, err := n.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.ID(), TargetPath: v.Target(n.Layout)})
	return err
}
