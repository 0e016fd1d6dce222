package driver

//lint:file-ignore ST1005 some errors begin with the phrases that users of secrets-store-csi-driver know

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// The keys of a volume context: the user's own, and those that kubelet sets for
// a CSIDriver with podInfoOnMount and tokenRequests
// (k8s.io/kubernetes/pkg/volume/csi).
const (
	keyClass          = "secretProviderClass"
	keyPodName        = "csi.storage.k8s.io/pod.name"
	keyPodNamespace   = "csi.storage.k8s.io/pod.namespace"
	keyPodUID         = "csi.storage.k8s.io/pod.uid"
	keyServiceAccount = "csi.storage.k8s.io/serviceAccount.name"
	keyTokens         = "csi.storage.k8s.io/serviceAccount.tokens"
)

// The phrases by which users of secrets-store-csi-driver know these mistakes.
const (
	noCapability = "Volume capability missing in request"
	noVolumeID   = "Volume ID missing in request"
	noAttributes = "Volume attributes missing in request"
	notReadOnly  = "Readonly is not true in request"
)

// maxIDBytes bounds a volume ID: the CSI specification's size limit for
// strings is 128 bytes, and SHOULD be taken as the least.
const maxIDBytes = 1024

// publishRequest turns a CSI request into the volume that it asks for. Its
// errors say which field is wrong and never quote a secret.
func publishRequest(req *csi.NodePublishVolumeRequest) (volume.Request, error) {
	context := req.GetVolumeContext()
	capability := req.GetVolumeCapability()
	if capability == nil {
		return volume.Request{}, errors.New(noCapability)
	}
	if err := checkVolume(req.GetVolumeId(), "Target path", req.GetTargetPath()); err != nil {
		return volume.Request{}, err
	}
	switch mode := capability.GetAccessMode().GetMode(); {
	case len(context) == 0:
		return volume.Request{}, errors.New(noAttributes)
	case capability.GetBlock() != nil:
		return volume.Request{}, errors.New("the volume capability asks for a block device; this driver makes file systems only")
	case capability.GetAccessType() == nil:
		return volume.Request{}, errors.New("the volume capability has no access type")
	case mode == csi.VolumeCapability_AccessMode_UNKNOWN:
		return volume.Request{}, errors.New("the volume capability has no access mode")
	case !req.GetReadonly():
		return volume.Request{}, errors.New(notReadOnly + "; set readOnly: true in the pod's csi volume")
	case context[keyClass] == "":
		return volume.Request{}, errors.New("secretProviderClass is not set; name a SecretProviderClass in the pod's volumeAttributes")
	case context[keyPodNamespace] == "":
		return volume.Request{}, fmt.Errorf("the volume context has no %s; the CSIDriver object must say podInfoOnMount: true", keyPodNamespace)
	}
	group, err := fsGroup(capability.GetMount().GetVolumeMountGroup())
	if err != nil {
		return volume.Request{}, err
	}
	credentials, err := credentials(req.GetSecrets(), context)
	if err != nil {
		return volume.Request{}, err
	}
	attributes := make(map[string]string, len(context))
	for k, v := range context {
		if k != keyTokens {
			attributes[k] = v
		}
	}
	return volume.Request{
		VolumeID:   req.GetVolumeId(),
		TargetPath: req.GetTargetPath(),
		Shared:     isMultiNode(capability.GetAccessMode().GetMode()),
		Class:      class.Ref{Namespace: context[keyPodNamespace], Name: context[keyClass]},
		Pod: provider.Pod{
			Namespace: context[keyPodNamespace], Name: context[keyPodName], UID: context[keyPodUID], ServiceAccount: context[keyServiceAccount],
		},
		Attributes:  attributes,
		FSGroup:     group,
		Credentials: credentials,
	}, nil
}

func isMultiNode(mode csi.VolumeCapability_AccessMode_Mode) bool {
	switch mode {
	case csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER,
		csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER:
		return true
	}
	return false
}

// checkVolume checks what every call that changes a volume names.
func checkVolume(id, pathName, path string) error {
	if err := checkNamed(id, pathName, path); err != nil {
		return err
	}
	return volume.CheckTarget(path)
}

// checkNamed checks that a call names a volume and a path at all.
func checkNamed(id, pathName, path string) error {
	switch {
	case id == "":
		return errors.New(noVolumeID)
	case len(id) > maxIDBytes:
		return fmt.Errorf("the volume ID has %d bytes, more than %d", len(id), maxIDBytes)
	case strings.ContainsRune(id, 0):
		return fmt.Errorf("the volume ID %q contains a NUL byte", id)
	case path == "":
		return fmt.Errorf("%s missing in request", pathName)
	}
	return nil
}

// fsGroup reads the volume_mount_group of a capability, in which kubelet passes
// the pod's fsGroup on to a driver with the capability VOLUME_MOUNT_GROUP.
func fsGroup(text string) (*int64, error) {
	if text == "" {
		return nil, nil
	}
	group, err := strconv.ParseInt(text, 10, 64)
	if err != nil || group < 0 || group > 1<<32-2 {
		return nil, fmt.Errorf("the volume mount group %q is not the number of a group", text)
	}
	return &group, nil
}

// credentials takes the pod's tokens from the secrets, where kubelet puts them
// for a CSIDriver with serviceAccountTokenInSecrets, else from the context.
func credentials(secrets, context map[string]string) (volume.Credentials, error) {
	var c volume.Credentials
	raw := secrets[keyTokens]
	if raw == "" {
		raw = context[keyTokens]
	}
	if len(secrets) > 0 {
		c.Secrets = make(map[string]secret.Value, len(secrets))
		for k, v := range secrets {
			c.Secrets[k] = secret.FromString(v)
		}
	}
	if raw == "" {
		return c, nil
	}
	var byAudience map[string]struct {
		Token               string    `json:"token"`
		ExpirationTimestamp time.Time `json:"expirationTimestamp"`
	}
	// The parser's error may quote a token.
	if json.Unmarshal([]byte(raw), &byAudience) != nil {
		return c, fmt.Errorf("%s is not the JSON that kubelet sends: an object of audiences, each with token and expirationTimestamp", keyTokens)
	}
	c.RawTokens = secret.FromString(raw)
	c.Tokens = make(map[string]provider.Token, len(byAudience))
	for audience, t := range byAudience {
		c.Tokens[audience] = provider.Token{Value: secret.FromString(t.Token), Expires: t.ExpirationTimestamp}
	}
	return c, nil
}
