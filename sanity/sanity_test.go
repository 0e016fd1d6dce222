// Package sanity runs csi-sanity, the conformance suite of Kubernetes' CSI
// project, and our own contract tests for what it leaves out, against the real
// binary over its socket.
package sanity

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	csisanity "github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"

	"github.com/csi-secrets/csi-secrets/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// skip is a set of csi-sanity's tests.
type skip struct {
	pattern string // found in the full name of each
	count   int
	reason  string
	// here says that we take them out; the others csi-sanity skips by itself.
	here bool
}

// skipped are the tests of csi-sanity that must not run, and why. README.md has
// the same table. What is skipped besides, or runs in spite of it, fails the
// test.
var skipped = []skip{
	{`\[Controller Server\]`, 67, "there is no controller service: kubelet makes ephemeral volumes up by itself", true},
	{`\[GroupController `, 6, "there is no group controller service, for the same reason", false},
	{`NodePublishVolume with single node multi writer capability`, 1, "a read-only volume of one pod has no writers: the capability SINGLE_NODE_MULTI_WRITER is not offered", false},
	{`NodeStageVolume|NodeUnstageVolume`, 5, "kubelet stages no ephemeral volume: the capability STAGE_UNSTAGE_VOLUME is not offered", false},
	{`NodeExpandVolume`, 4, "an ephemeral volume has no claim to expand: the capability EXPAND_VOLUME is not offered", false},
	{`NodeGetVolumeHealth`, 2, "alpha, and not called by kubelet: the capability GET_VOLUME_HEALTH is not offered", false},
	{`NodeGetStorageHealth`, 1, "alpha, and not called by kubelet: the capability GET_STORAGE_HEALTH is not offered", false},
}

// passed is how many tests of csi-sanity apply to the driver.
const passed = 17

func TestCSISanity(t *testing.T) {
	node := harness.Start(t, harness.Options{Arguments: []string{"--rotation-poll-interval", "0"}})
	addClass(t, node, "sanity")

	config := csisanity.NewTestConfig()
	config.TargetPath = filepath.Join(node.Layout.Pods(), "csi-mount")
	config.StagingPath = filepath.Join(node.Layout.Pods(), "csi-staging")
	config.Address = "unix:" + node.Layout.Socket()
	config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(asKubelet))
	config.ControllerAddress = "unix:" + serveStandIn(t, "sanity")
	sanity := csisanity.GinkgoTest(&config)
	defer sanity.Finalize()

	gomega.RegisterFailHandler(ginkgo.Fail)
	var report types.Report
	ginkgo.ReportAfterSuite("results", func(r types.Report) { report = r })
	suite, reporter := ginkgo.GinkgoConfiguration()
	for _, s := range skipped {
		if s.here {
			suite.SkipStrings = append(suite.SkipStrings, s.pattern)
		}
	}
	reporter.Succinct = true
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)

	ran := 0
	counts := make([]int, len(skipped))
	for _, spec := range report.SpecReports {
		name := spec.FullText()
		if spec.LeafNodeType != types.NodeTypeIt {
			continue
		}
		expected := slices.IndexFunc(skipped, func(s skip) bool { return regexp.MustCompile(s.pattern).MatchString(name) })
		switch {
		case spec.State == types.SpecStatePassed && expected < 0:
			ran++
			t.Logf("passed: %s", name)
		case spec.State == types.SpecStatePassed:
			t.Errorf("ran, although it should be skipped because %s: %s", skipped[expected].reason, name)
		case spec.State.Is(types.SpecStateSkipped|types.SpecStatePending) && expected < 0:
			t.Errorf("skipped without a reason of ours (%s): %s", spec.Failure.Message, name)
		case spec.State.Is(types.SpecStateSkipped | types.SpecStatePending):
			counts[expected]++
		default:
			t.Errorf("%v: %s: %s", spec.State, name, spec.Failure.Message)
		}
	}
	if ran != passed {
		t.Errorf("%d tests passed, want %d: if csi-sanity has new ones, correct the number here and in README.md", ran, passed)
	}
	for i, s := range skipped {
		if counts[i] != s.count {
			t.Errorf("%d tests skipped by %q, want %d", counts[i], s.pattern, s.count)
		}
	}
	if left, err := node.Layout.Records(); len(left) > 0 || err != nil {
		t.Errorf("records are left: %v, %v", left, err)
	}
}

// TestREADMENamesEverySkippedTest keeps the table of README.md and the one
// above the same.
func TestREADMENamesEverySkippedTest(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range skipped {
		line := fmt.Sprintf("| `%s` | %d | %s |", strings.ReplaceAll(s.pattern, "|", `\|`), s.count, s.reason)
		if !strings.Contains(string(text), line) {
			t.Errorf("README.md has no line\n%s", line)
		}
	}
	if want := fmt.Sprintf("%d tests run", passed); !strings.Contains(string(text), want) {
		t.Errorf("README.md does not say %q", want)
	}
}

// volumeContext is what kubelet adds to the attributes of a pod's volume.
func volumeContext(class string) map[string]string {
	return map[string]string{
		"secretProviderClass":                    class,
		"csi.storage.k8s.io/pod.name":            "sanity",
		"csi.storage.k8s.io/pod.namespace":       "default",
		"csi.storage.k8s.io/pod.uid":             "uid-sanity",
		"csi.storage.k8s.io/serviceAccount.name": "default",
		"csi.storage.k8s.io/ephemeral":           "true",
	}
}

// asKubelet makes csi-sanity's calls what kubelet's are for an inline volume
// with readOnly: true, and lets it believe that the driver has a controller
// service, so that it runs its tests of a volume's whole life. What the driver
// answers itself, TestCapabilities looks at.
func asKubelet(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if publish, ok := req.(*csi.NodePublishVolumeRequest); ok {
		publish.Readonly = true
	}
	err := invoke(ctx, method, req, reply, conn, options...)
	if capabilities, ok := reply.(*csi.GetPluginCapabilitiesResponse); ok {
		capabilities.Capabilities = append(capabilities.Capabilities, controllerService)
	}
	return err
}

var controllerService = &csi.PluginCapability{Type: &csi.PluginCapability_Service_{
	Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE},
}}

// standIn stands where a controller service would be, in which csi-sanity looks
// for volumes: like kubelet, it makes them up.
type standIn struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer

	class string
}

func (standIn) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: "kubelet.stand-in"}, nil
}

func (standIn) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{controllerService}}, nil
}

func (standIn) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (standIn) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{}, nil
}

func (s standIn) CreateVolume(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "csi-" + req.GetName(), VolumeContext: maps.Clone(volumeContext(s.class))}}, nil
}

func (standIn) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, nil
}

func serveStandIn(t *testing.T, class string) (socket string) {
	t.Helper()
	socket = filepath.Join(harness.Folder(t), "stand-in.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, standIn{class: class})
	csi.RegisterControllerServer(server, standIn{class: class})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// The files of every class that addClass makes.
var contents = map[string]string{"username": "admin", "password": "correct horse battery staple"}

// addClass gives the node a class of the local provider.
func addClass(t *testing.T, n *harness.Node, name string) {
	t.Helper()
	source := filepath.Join(n.Layout.Root, "source", name)
	for file, text := range contents {
		harness.WriteFile(t, filepath.Join(source, file), text)
	}
	n.AddClass(t, name, "local", map[string]string{"path": source})
}
