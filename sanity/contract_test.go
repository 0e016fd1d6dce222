package sanity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

// What follows holds the driver to the CSI specification 1.13.0 (spec.md) where
// csi-sanity does not look.

func start(t *testing.T) *harness.Node {
	t.Helper()
	node := harness.Start(t, harness.Options{Arguments: []string{"--rotation-poll-interval", "0"}})
	addClass(t, node, "one")
	addClass(t, node, "two")
	return node
}

func TestIdentityIsWhatKubeletRegisters(t *testing.T) {
	node := start(t)
	info, err := node.GetPluginInfo(harness.Timeout(t), &csi.GetPluginInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if info.GetName() != "secrets-store.csi.k8s.io" || info.GetVendorVersion() == "" {
		t.Errorf("plugin info is %v", info)
	}
	probe, err := node.Probe(harness.Timeout(t), &csi.ProbeRequest{})
	if err != nil || probe.GetReady() != nil && !probe.GetReady().GetValue() {
		t.Errorf("probe says %v, %v", probe, err)
	}
	self, err := node.NodeGetInfo(harness.Timeout(t), &csi.NodeGetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if self.GetNodeId() != "standalone" || self.GetMaxVolumesPerNode() != 0 || self.GetAccessibleTopology() != nil {
		t.Errorf("node info is %v", self)
	}
}

func TestCapabilities(t *testing.T) {
	node := start(t)
	plugin, err := node.GetPluginCapabilities(harness.Timeout(t), &csi.GetPluginCapabilitiesRequest{})
	if err != nil || len(plugin.GetCapabilities()) != 0 {
		t.Errorf("plugin capabilities are %v, %v; want none", plugin, err)
	}
	answer, err := node.NodeGetCapabilities(harness.Timeout(t), &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[csi.NodeServiceCapability_RPC_Type]bool{}
	for _, c := range answer.GetCapabilities() {
		got[c.GetRpc().GetType()] = true
	}
	if len(got) != 2 || !got[csi.NodeServiceCapability_RPC_GET_VOLUME_STATS] || !got[csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP] {
		t.Errorf("node capabilities are %v", got)
	}
}

// A call that no capability announces is UNIMPLEMENTED (spec.md, "RPC
// Interactions" and the capability RPCs).
func TestCallsWithoutCapabilityAreUnimplemented(t *testing.T) {
	conn := dial(t, start(t))
	implemented := map[string]bool{
		"NodePublishVolume": true, "NodeUnpublishVolume": true, "NodeGetVolumeStats": true, "NodeGetCapabilities": true, "NodeGetInfo": true,
	}
	for _, service := range []grpc.ServiceDesc{csi.Controller_ServiceDesc, csi.GroupController_ServiceDesc, csi.SnapshotMetadata_ServiceDesc, csi.Node_ServiceDesc} {
		var methods []string
		for _, m := range service.Methods {
			methods = append(methods, m.MethodName)
		}
		for _, s := range service.Streams {
			methods = append(methods, s.StreamName)
		}
		for _, method := range methods {
			name := "/" + service.ServiceName + "/" + method
			err := conn.Invoke(harness.Timeout(t), name, &emptypb.Empty{}, &emptypb.Empty{})
			unimplemented := status.Code(err) == codes.Unimplemented
			if want := service.ServiceName != csi.Node_ServiceDesc.ServiceName || !implemented[method]; unimplemented != want {
				t.Errorf("%s answers %v", name, err)
			}
		}
	}
}

var (
	multiNode = []csi.VolumeCapability_AccessMode_Mode{
		csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER,
		csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER,
	}
	singleNode = []csi.VolumeCapability_AccessMode_Mode{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
	}
)

// The first table under NodePublishVolume in spec.md: the driver has no
// capability SINGLE_NODE_MULTI_WRITER.
func TestSecondPublishOfAVolume(t *testing.T) {
	node := start(t)
	other := func(req *csi.NodePublishVolumeRequest) { req.TargetPath += "-2" }
	arguments := map[string]func(*csi.NodePublishVolumeRequest){
		"another class":     func(req *csi.NodePublishVolumeRequest) { req.VolumeContext["secretProviderClass"] = "two" },
		"another pod":       func(req *csi.NodePublishVolumeRequest) { req.VolumeContext["csi.storage.k8s.io/pod.uid"] = "uid-other" },
		"another attribute": func(req *csi.NodePublishVolumeRequest) { req.VolumeContext["mine"] = "another" },
		"a mount group": func(req *csi.NodePublishVolumeRequest) {
			req.VolumeCapability.GetMount().VolumeMountGroup = "2000"
		},
	}
	rows := 0
	check := func(mode csi.VolumeCapability_AccessMode_Mode, name string, want codes.Code, changes ...func(*csi.NodePublishVolumeRequest)) {
		rows++
		v := standalone.Volume{Pod: fmt.Sprintf("second-%d", rows), Class: "one"}
		t.Run(fmt.Sprintf("%v and %s", mode, name), func(t *testing.T) {
			request := func() *csi.NodePublishVolumeRequest {
				r := v.PublishRequest(node.Layout)
				r.VolumeCapability.AccessMode.Mode = mode
				return r
			}
			first, second := request(), request()
			for _, change := range changes {
				change(second)
			}
			makeParent(t, first.TargetPath)
			publish(t, node, first, codes.OK)
			before := fmt.Sprint(harness.Mounts(t))
			publish(t, node, second, want)
			if after := fmt.Sprint(harness.Mounts(t)); second.TargetPath == first.TargetPath && after != before {
				t.Errorf("the mounts were\n%s\nand are\n%s", before, after)
			}
			holds(t, first.TargetPath)
			if want == codes.OK {
				holds(t, second.TargetPath)
			} else if second.TargetPath != first.TargetPath {
				gone(t, second.TargetPath)
			}
			for _, target := range []string{second.TargetPath, first.TargetPath} {
				unpublish(t, node, first.VolumeId, target)
				gone(t, target)
			}
		})
	}
	for _, mode := range append(append([]csi.VolumeCapability_AccessMode_Mode(nil), singleNode...), multiNode...) {
		elsewhere := codes.FailedPrecondition
		for _, m := range multiNode {
			if m == mode {
				elsewhere = codes.OK
			}
		}
		check(mode, "the same target and arguments", codes.OK)
		check(mode, "another target", elsewhere, other)
		for name, change := range arguments {
			check(mode, "the same target, "+name, codes.AlreadyExists, change)
			check(mode, "another target, "+name, elsewhere, other, change)
		}
	}
}

// Secrets are no part of "other arguments" in that table, and neither is what
// kubelet itself says anew with each publish.
func TestFreshCredentialsAreTheSameArguments(t *testing.T) {
	node := start(t)
	v := standalone.Volume{Pod: "fresh", Class: "one"}
	for i := range 3 {
		v.Secrets = map[string]string{"key": fmt.Sprintf("secret %d", i)}
		v.Tokens = fmt.Sprintf(`{"vault":{"token":"token %d","expirationTimestamp":"2030-01-01T00:00:0%dZ"}}`, i, i)
		if err := node.Publish(harness.Timeout(t), v); err != nil {
			t.Fatal(err)
		}
	}
	holds(t, v.Target(node.Layout))
}

func TestUnpublishIsIdempotent(t *testing.T) {
	node := start(t)
	v := standalone.Volume{Pod: "gone", Class: "one"}
	target := v.Target(node.Layout)
	unpublish(t, node, v.ID(), target) // nothing was ever there
	makeParent(t, target)
	unpublish(t, node, v.ID(), target)
	if err := os.Mkdir(target, 0o750); err != nil {
		t.Fatal(err)
	}
	unpublish(t, node, v.ID(), target)
	gone(t, target)
	for range 2 {
		publish(t, node, v.PublishRequest(node.Layout), codes.OK)
		holds(t, target)
		for range 3 {
			unpublish(t, node, v.ID(), target)
			gone(t, target)
		}
	}
}

// A target belongs to the volume that was published there.
func TestUnpublishOfAnotherVolumeLeavesTheTargetAlone(t *testing.T) {
	node := start(t)
	v := standalone.Volume{Pod: "kept", Class: "one"}
	if err := node.Publish(harness.Timeout(t), v); err != nil {
		t.Fatal(err)
	}
	unpublish(t, node, "csi-another", v.Target(node.Layout))
	holds(t, v.Target(node.Layout))
}

func TestVolumeStats(t *testing.T) {
	node := start(t)
	v := standalone.Volume{Pod: "stats", Class: "one"}
	if err := node.Publish(harness.Timeout(t), v); err != nil {
		t.Fatal(err)
	}
	id, target := v.ID(), v.Target(node.Layout)
	for name, tc := range map[string]struct {
		id, path string
		want     codes.Code
	}{
		"without an ID":                          {"", target, codes.InvalidArgument},
		"without a path":                         {id, "", codes.InvalidArgument},
		"of an unknown volume":                   {"csi-unknown", target, codes.NotFound},
		"at another path":                        {id, target + "-2", codes.NotFound},
		"at a path that cannot be":               {id, "some/path", codes.NotFound},
		"at a folder that is a volume's no more": {id, filepath.Dir(target), codes.NotFound},
		"of the volume":                          {id, target, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := node.NodeGetVolumeStats(harness.Timeout(t), &csi.NodeGetVolumeStatsRequest{VolumeId: tc.id, VolumePath: tc.path})
			if status.Code(err) != tc.want {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if tc.want == codes.OK {
				plausible(t, got.GetUsage())
			}
		})
	}
	unpublish(t, node, id, target)
	if _, err := node.NodeGetVolumeStats(harness.Timeout(t), &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: target}); status.Code(err) != codes.NotFound {
		t.Errorf("after unpublish: %v, want NotFound", err)
	}
}

func plausible(t *testing.T, usage []*csi.VolumeUsage) {
	t.Helper()
	units := map[csi.VolumeUsage_Unit]*csi.VolumeUsage{}
	for _, u := range usage {
		units[u.GetUnit()] = u
		if u.GetUsed() <= 0 || u.GetAvailable() <= 0 || u.GetUsed()+u.GetAvailable() != u.GetTotal() {
			t.Errorf("implausible: %v", u)
		}
	}
	if len(usage) != 2 || len(units) != 2 {
		t.Fatalf("usage is %v", usage)
	}
	// Two files of one page each, in a volume of 8 MiB.
	if b := units[csi.VolumeUsage_BYTES]; b.GetTotal() != 8<<20 || b.GetUsed() != int64(2*os.Getpagesize()) {
		t.Errorf("bytes are %v", b)
	}
	// Root, the set's folder, its link, two files and their links.
	if i := units[csi.VolumeUsage_INODES]; i.GetUsed() != 7 {
		t.Errorf("inodes are %v", i)
	}
}

// A path and an ID have lengths that a plugin must accept: 128 bytes at least,
// and for a path SHOULD be all that the system allows (spec.md, "Size Limits").
func TestLongestTargetAndID(t *testing.T) {
	node := start(t)
	for _, parts := range []int{1, 14} {
		target := filepath.Join(node.Layout.Pods(), strings.Repeat("/"+strings.Repeat("d", 255), parts))
		req := (standalone.Volume{Pod: "long", Class: "one"}).PublishRequest(node.Layout)
		req.VolumeId = strings.Repeat("v", 128)
		req.TargetPath = target
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		publish(t, node, req, codes.OK)
		holds(t, target)
		unpublish(t, node, req.VolumeId, target)
		gone(t, target)
	}
}

func TestConcurrentPublishesOfOneVolume(t *testing.T) {
	node := start(t)
	v := standalone.Volume{Pod: "crowd", Class: "one"}
	makeParent(t, v.Target(node.Layout))
	atOnce(64, func(int) {
		if _, err := node.NodePublishVolume(harness.Timeout(t), v.PublishRequest(node.Layout)); err != nil {
			t.Error(err)
		}
	})
	holds(t, v.Target(node.Layout))
	if n := mountsAt(t, v.Target(node.Layout)); n != 1 {
		t.Errorf("%d mounts at the target, want 1", n)
	}
	atOnce(64, func(int) {
		if err := node.Unpublish(harness.Timeout(t), v); err != nil {
			t.Error(err)
		}
	})
	gone(t, v.Target(node.Layout))
}

// kubelet may give up on a call and make another one while the first runs on:
// whatever the order, the last publish after all of them is what counts.
func TestConcurrentPublishesAndUnpublishesOfOneVolume(t *testing.T) {
	node := start(t)
	v := standalone.Volume{Pod: "to-and-fro", Class: "one"}
	makeParent(t, v.Target(node.Layout))
	atOnce(64, func(i int) {
		var err error
		if i%2 == 0 {
			_, err = node.NodePublishVolume(harness.Timeout(t), v.PublishRequest(node.Layout))
		} else {
			err = node.Unpublish(harness.Timeout(t), v)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if n := mountsAt(t, v.Target(node.Layout)); n > 1 {
		t.Errorf("%d mounts at the target", n)
	}
	if err := node.Publish(harness.Timeout(t), v); err != nil {
		t.Fatal(err)
	}
	holds(t, v.Target(node.Layout))
	if err := node.Unpublish(harness.Timeout(t), v); err != nil {
		t.Fatal(err)
	}
	gone(t, v.Target(node.Layout))
	if left, err := node.Layout.Records(); len(left) > 0 || err != nil {
		t.Errorf("records are left: %v, %v", left, err)
	}
}

func TestOneOfManyTargetsGetsAVolume(t *testing.T) {
	node := start(t)
	v := standalone.Volume{Pod: "many-targets", Class: "one"}
	makeParent(t, v.Target(node.Layout))
	var mu sync.Mutex
	got := map[codes.Code]int{}
	atOnce(64, func(i int) {
		req := v.PublishRequest(node.Layout)
		req.TargetPath += fmt.Sprint("-", i)
		_, err := node.NodePublishVolume(harness.Timeout(t), req)
		mu.Lock()
		defer mu.Unlock()
		got[status.Code(err)]++
	})
	if got[codes.OK] != 1 || got[codes.FailedPrecondition] != 63 {
		t.Errorf("answers are %v, want one OK and 63 FailedPrecondition", got)
	}
}

func TestConcurrentPublishesOfManyVolumes(t *testing.T) {
	node := start(t)
	volumes := make([]standalone.Volume, 64)
	for i := range volumes {
		volumes[i] = standalone.Volume{Pod: fmt.Sprint("pod-", i), Class: "one"}
	}
	before := len(harness.Mounts(t))
	atOnce(len(volumes), func(i int) {
		if err := node.Publish(harness.Timeout(t), volumes[i]); err != nil {
			t.Error(err)
		}
	})
	for _, v := range volumes {
		holds(t, v.Target(node.Layout))
	}
	if n := len(harness.Mounts(t)) - before; n != len(volumes) {
		t.Errorf("%d mounts for %d volumes", n, len(volumes))
	}
	atOnce(len(volumes), func(i int) {
		if err := node.Unpublish(harness.Timeout(t), volumes[i]); err != nil {
			t.Error(err)
		}
	})
	if n := len(harness.Mounts(t)) - before; n != 0 {
		t.Errorf("%d mounts are left", n)
	}
}

func dial(t *testing.T, n *harness.Node) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+n.Layout.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func atOnce(n int, call func(i int)) {
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		all.Go(func() { <-begin; call(i) })
	}
	close(begin)
	all.Wait()
}

func makeParent(t *testing.T, target string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		t.Fatal(err)
	}
}

func publish(t *testing.T, n csi.NodeClient, req *csi.NodePublishVolumeRequest, want codes.Code) {
	t.Helper()
	if _, err := n.NodePublishVolume(harness.Timeout(t), req); status.Code(err) != want {
		t.Fatalf("publish to %.200s: got %v, want %v", req.TargetPath, err, want)
	}
}

func unpublish(t *testing.T, n csi.NodeClient, id, target string) {
	t.Helper()
	ctx, cancel := context.WithCancel(harness.Timeout(t))
	defer cancel()
	if _, err := n.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target}); err != nil {
		t.Fatalf("unpublish %.200s: %v", target, err)
	}
}

// holds checks that the target holds the files of addClass, and cannot be written.
func holds(t *testing.T, target string) {
	t.Helper()
	for name, want := range contents {
		got, err := os.ReadFile(filepath.Join(target, name))
		if err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
		}
	}
	if f, err := os.Create(filepath.Join(target, "mine")); err == nil {
		f.Close()
		t.Errorf("%s can be written", target)
	}
}

func gone(t *testing.T, target string) {
	t.Helper()
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%.200s is still there: %v", target, err)
	}
}

func mountsAt(t *testing.T, target string) int {
	t.Helper()
	n := 0
	for _, line := range harness.Mounts(t) {
		if strings.Fields(line)[4] == target {
			n++
		}
	}
	return n
}
