// Package badinput gives the real driver everything wrong that a person, a
// kubelet or a provider can, one mistake at a time, and looks at what it says
// and at what it leaves.
package badinput

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// mistake is one thing that is wrong with a publish, and what comes of it.
type mistake struct {
	name    string
	class   string                              // the one to publish; "good" where empty
	request func(*csi.NodePublishVolumeRequest) // what to spoil
	// spoil spoils the target's surroundings; what it returns repairs them.
	spoil func(t *testing.T, target string) (repair func())
	// deadline bounds the publish where it is not zero.
	deadline time.Duration
	code     codes.Code
	says     []string // what the message must contain
	hides    []string // what it must not
}

// bed is a node on which every mistake is made, with a class that has none.
type bed struct {
	*harness.Node

	volumes int
}

func newBed(t *testing.T, arguments ...string) *bed {
	t.Helper()
	b := &bed{Node: harness.Start(t, harness.Options{Arguments: append([]string{"--rotation-poll-interval", "0"}, arguments...)})}
	harness.WriteFile(t, b.source("good/password"), "correct horse")
	b.AddClass(t, "good", "local", map[string]string{"path": b.source("good")})
	return b
}

// source is the path of a file or folder of secrets.
func (b *bed) source(name string) string { return filepath.Join(b.Layout.Root, "source", name) }

// try makes each mistake with a volume of its own, and then publishes the same
// volume well.
func (b *bed) try(t *testing.T, mistakes []mistake) {
	t.Helper()
	for _, m := range mistakes {
		b.volumes++
		v := standalone.Volume{Pod: fmt.Sprint("pod-", b.volumes), Class: m.class}
		if v.Class == "" {
			v.Class = "good"
		}
		t.Run(m.name, func(t *testing.T) { b.make(t, m, v) })
	}
}

func (b *bed) make(t *testing.T, m mistake, v standalone.Volume) {
	target := v.Target(b.Layout)
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		t.Fatal(err)
	}
	repair := func() {}
	if m.spoil != nil {
		repair = m.spoil(t, target)
	}
	request := v.PublishRequest(b.Layout)
	if m.request != nil {
		m.request(request)
	}

	mounts, traces := harness.Mounts(t), b.traces(t)
	ctx := harness.Timeout(t)
	if m.deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, m.deadline)
		defer cancel()
	}
	_, err := b.NodePublishVolume(ctx, request)
	b.unchanged(t, "the failed publish", mounts, traces)
	got := status.Convert(err)
	if got.Code() != m.code {
		t.Errorf("the code is %v, want %v", got.Code(), m.code)
	}
	for _, want := range m.says {
		if !strings.Contains(got.Message(), want) {
			t.Errorf("the message is\n\t%.1000s\nand does not contain\n\t%s", got.Message(), want)
		}
	}
	for _, hidden := range m.hides {
		if strings.Contains(got.Message(), hidden) {
			t.Errorf("the message quotes %q:\n\t%.1000s", hidden, got.Message())
		}
	}
	if len(got.Message()) > 8<<10 {
		t.Errorf("the message has %d bytes", len(got.Message()))
	}
	if len(got.Details()) > 0 {
		t.Errorf("the error has details: %v", got.Details())
	}
	t.Logf("%v: %.1000s", got.Code(), got.Message())

	repair()
	v.Class = "good"
	mounts, traces = harness.Mounts(t), b.traces(t)
	if err := b.Publish(harness.Timeout(t), v); err != nil {
		t.Fatalf("a good publish of the same volume: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(target, "password")); string(text) != "correct horse" {
		t.Errorf("the volume holds %q, %v", text, err)
	}
	if err := b.Unpublish(harness.Timeout(t), v); err != nil {
		t.Fatal(err)
	}
	b.unchanged(t, "unpublish", mounts, traces)
}

// traces are all files that a publish may leave.
func (b *bed) traces(t *testing.T) []string {
	t.Helper()
	return append(harness.Tree(t, b.Layout.Pods()), harness.Tree(t, b.Layout.State())...)
}

func (b *bed) unchanged(t *testing.T, after string, mounts, traces []string) {
	t.Helper()
	if now := harness.Mounts(t); !slices.Equal(now, mounts) {
		t.Errorf("after %s the mounts are\n%q\nand were\n%q", after, now, mounts)
	}
	if now := b.traces(t); !slices.Equal(now, traces) {
		t.Errorf("after %s there is\n%q\nand there was\n%q", after, now, traces)
	}
}

func TestRequests(t *testing.T) {
	b := newBed(t)
	b.AddClass(t, "elsewhere", "local", map[string]string{"path": "/none"})
	attribute := func(key, value string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) {
			if r.VolumeContext[key] = value; value == "" {
				delete(r.VolumeContext, key)
			}
		}
	}
	target := func(path string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { r.TargetPath = path }
	}
	group := func(text string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().VolumeMountGroup = text }
	}
	const tokens = "csi.storage.k8s.io/serviceAccount.tokens"
	notTokens := []string{tokens, "is not the JSON that kubelet sends"}
	long := strings.Repeat("n", 300)
	deep := b.Layout.Pods() + strings.Repeat("/"+strings.Repeat("d", 99), 50)

	b.try(t, []mistake{
		{name: "no volume capability", request: func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil },
			code: codes.InvalidArgument, says: []string{"Volume capability missing in request"}},
		{name: "no access type", request: func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessType = nil },
			code: codes.InvalidArgument, says: []string{"the volume capability has no access type"}},
		{name: "no access mode", request: func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode = nil },
			code: codes.InvalidArgument, says: []string{"the volume capability has no access mode"}},
		{name: "an unknown access mode", request: func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessMode.Mode = csi.VolumeCapability_AccessMode_UNKNOWN
		}, code: codes.InvalidArgument, says: []string{"the volume capability has no access mode"}},
		{name: "a block device", request: func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		}, code: codes.InvalidArgument, says: []string{"asks for a block device", "file systems only"}},
		{name: "not read-only", request: func(r *csi.NodePublishVolumeRequest) { r.Readonly = false },
			code: codes.InvalidArgument, says: []string{"Readonly is not true in request", "set readOnly: true"}},

		{name: "no volume ID", request: func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "" },
			code: codes.InvalidArgument, says: []string{"Volume ID missing in request"}},
		{name: "a NUL in the volume ID", request: func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "csi-\x00" },
			code: codes.InvalidArgument, says: []string{`the volume ID "csi-\x00" contains a NUL byte`}},
		{name: "a volume ID of 1025 bytes", request: func(r *csi.NodePublishVolumeRequest) { r.VolumeId = strings.Repeat("v", 1025) },
			code: codes.InvalidArgument, says: []string{"the volume ID has 1025 bytes, more than 1024"}},

		{name: "no target path", request: target(""), code: codes.InvalidArgument, says: []string{"Target path missing in request"}},
		{name: "a relative target", request: target("pods/mount"), code: codes.InvalidArgument, says: []string{`the target path "pods/mount" is not absolute`}},
		{name: "a target with ..", request: target(b.Layout.Pods() + "/../state"), code: codes.InvalidArgument, says: []string{"/../state", "not in its shortest form"}},
		{name: "a target that ends with a slash", request: target(b.Layout.Pods() + "/a/"), code: codes.InvalidArgument, says: []string{"not in its shortest form"}},
		{name: "the root as target", request: target("/"), code: codes.InvalidArgument, says: []string{"or is the root"}},
		{name: "a NUL in the target", request: target(b.Layout.Pods() + "/a\x00b"), code: codes.InvalidArgument, says: []string{`a\x00b" contains a NUL byte`}},
		{name: "300 bytes in a name of the target", request: target(b.Layout.Pods() + "/" + long), code: codes.InvalidArgument, says: []string{"has a component of 300 bytes, more than 255"}},
		{name: "5000 bytes in the target", request: target(deep), code: codes.InvalidArgument, says: []string{fmt.Sprintf("the target path has %d bytes, more than 4095", len(deep))}},
		{name: "a symbolic link as target", spoil: func(t *testing.T, target string) func() {
			return link(t, b.source("good"), target)
		}, code: codes.InvalidArgument, says: []string{"target path", "it is a symbolic link", "remove what is there"}},
		{name: "a symbolic link to nowhere as target", spoil: func(t *testing.T, target string) func() {
			return link(t, "/nowhere", target)
		}, code: codes.InvalidArgument, says: []string{"it is a symbolic link"}},
		{name: "a file as target", spoil: func(t *testing.T, target string) func() {
			harness.WriteFile(t, target, "")
			return func() { remove(t, target) }
		}, code: codes.InvalidArgument, says: []string{"it is a file", "remove what is there"}},
		{name: "a target below a file", spoil: func(t *testing.T, target string) func() {
			remove(t, filepath.Dir(target))
			harness.WriteFile(t, filepath.Dir(target), "")
			return func() {
				remove(t, filepath.Dir(target))
				if err := os.Mkdir(filepath.Dir(target), 0o750); err != nil {
					t.Fatal(err)
				}
			}
		}, code: codes.InvalidArgument, says: []string{"it is below something that is no folder"}},

		{name: "no volume context", request: func(r *csi.NodePublishVolumeRequest) { r.VolumeContext = nil },
			code: codes.InvalidArgument, says: []string{"Volume attributes missing in request"}},
		{name: "no class", request: attribute("secretProviderClass", ""),
			code: codes.InvalidArgument, says: []string{"secretProviderClass is not set", "volumeAttributes"}},
		{name: "no namespace", request: attribute("csi.storage.k8s.io/pod.namespace", ""),
			code: codes.InvalidArgument, says: []string{"csi.storage.k8s.io/pod.namespace", "podInfoOnMount: true"}},
		{name: "a class that does not exist", class: "missing",
			code: codes.NotFound, says: []string{"for pod default/pod-", "failed to get secretproviderclass default/missing", "not found", "put a file with a SecretProviderClass"}},
		{name: "a class of another namespace", class: "elsewhere", request: attribute("csi.storage.k8s.io/pod.namespace", "kube-system"),
			code: codes.NotFound, says: []string{"failed to get secretproviderclass kube-system/elsewhere"}},
		{name: "a class whose name is a path", class: "../classes/good",
			code: codes.NotFound, says: []string{"failed to get secretproviderclass default/../classes/good"}},
		{name: "an attribute that the class sets", request: attribute("path", "/etc"),
			code: codes.InvalidArgument, says: []string{`class default/good: parameter "path"`, "attribute of the same name", "remove the key"}},

		{name: "a mount group that is a name", request: group("staff"), code: codes.InvalidArgument, says: []string{`the volume mount group "staff" is not the number of a group`}},
		{name: "a negative mount group", request: group("-1"), code: codes.InvalidArgument, says: []string{`the volume mount group "-1"`}},
		{name: "a mount group that no system has", request: group("4294967295"), code: codes.InvalidArgument, says: []string{`the volume mount group "4294967295"`}},
		{name: "a mount group with a point", request: group("1.5"), code: codes.InvalidArgument, says: []string{`the volume mount group "1.5"`}},

		{name: "tokens cut short", request: attribute(tokens, `{"vault":{"token":"eyHidden`), code: codes.InvalidArgument, says: notTokens, hides: []string{"eyHidden"}},
		{name: "a token alone", request: attribute(tokens, `"eyHidden"`), code: codes.InvalidArgument, says: notTokens, hides: []string{"eyHidden"}},
		{name: "tokens in a list", request: attribute(tokens, `["eyHidden"]`), code: codes.InvalidArgument, says: notTokens, hides: []string{"eyHidden"}},
		{name: "a token where an object belongs", request: attribute(tokens, `{"vault":"eyHidden"}`), code: codes.InvalidArgument, says: notTokens, hides: []string{"eyHidden"}},
		{name: "a time that is none", request: attribute(tokens, `{"vault":{"token":"eyHidden","expirationTimestamp":"eyHidden"}}`), code: codes.InvalidArgument, says: notTokens, hides: []string{"eyHidden"}},
		{name: "broken tokens in the secrets", request: func(r *csi.NodePublishVolumeRequest) {
			r.Secrets = map[string]string{tokens: `{"vault":"eyHidden"}`}
		}, code: codes.InvalidArgument, says: notTokens, hides: []string{"eyHidden"}},
	})
}

func TestClassFiles(t *testing.T) {
	b := newBed(t)
	file := func(name string) string { return filepath.Join(b.Layout.Classes(), name+".yaml") }
	for name, text := range map[string]string{
		"broken":       "apiVersion: v1\nkind: [\n",
		"lists":        "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nmetadata:\n  name: lists\nspec:\n  provider: local\n  parameters:\n    path: [a]\n",
		"no-provider":  harness.Class(t, "no-provider", "", map[string]string{"path": "/a"}),
		"no-parameter": harness.Class(t, "no-parameter", "local", nil),
		"twice":        harness.Class(t, "twice", "local", map[string]string{"path": "/a"}) + "---\n" + harness.Class(t, "twice", "local", map[string]string{"path": "/b"}),
	} {
		b.AddClassFile(t, name, text)
	}
	for name, provider := range map[string]string{"unknown": "nosuch", "path": "../x", "long": strings.Repeat("p", 31), "dot": "local.sock", "space": "a b"} {
		b.AddClass(t, "provider-"+name, provider, map[string]string{"path": "/a"})
	}
	for name, size := range map[string]string{"word": "much", "small": "63Ki", "large": "2Gi", "negative": "-8Mi"} {
		b.AddClass(t, "size-"+name, "local", map[string]string{"path": b.source("good"), "volumeSize": size})
	}
	b.try(t, []mistake{
		{name: "broken YAML", class: "broken", code: codes.NotFound,
			says: []string{"failed to get secretproviderclass default/broken", "it may be in what cannot be read", file("broken") + ":", "it is not YAML"}},
		{name: "a list as a parameter", class: "lists", code: codes.InvalidArgument,
			says: []string{"failed to get secretproviderclass default/lists", file("lists") + ":8", "parameters.path", "csi-secrets validate"}},
		{name: "the same class twice", class: "twice", code: codes.InvalidArgument,
			says: []string{"failed to get secretproviderclass default/twice", "defined 2 times", file("twice") + ":", "keep one"}},
		{name: "no provider", class: "no-provider", code: codes.InvalidArgument, says: []string{"provider not set in default/no-provider", "name the store in spec.provider"}},
		{name: "no parameters", class: "no-parameter", code: codes.InvalidArgument, says: []string{"parameters not set in default/no-parameter", "spec.parameters"}},
		{name: "an unknown provider", class: "provider-unknown", code: codes.Unavailable,
			says: []string{"class default/provider-unknown", `provider not found: provider "nosuch"`, "nosuch.sock", b.Layout.Providers(), "DaemonSet"}},
		{name: "a provider that is a path", class: "provider-path", code: codes.InvalidArgument, says: []string{"class default/provider-path", `provider "../x": invalid provider`}},
		{name: "a provider of 31 letters", class: "provider-long", code: codes.InvalidArgument, says: []string{"class default/provider-long", "invalid provider", "1 to 30 letters"}},
		{name: "a provider with a dot", class: "provider-dot", code: codes.InvalidArgument, says: []string{`provider "local.sock": invalid provider`}},
		{name: "a provider with a space", class: "provider-space", code: codes.InvalidArgument, says: []string{`provider "a b": invalid provider`}},
		{name: "a size that is a word", class: "size-word", code: codes.InvalidArgument, says: []string{`class default/size-word: parameter "volumeSize"`, `"much" is not a quantity of bytes`, `"16Mi"`}},
		{name: "a size below the least", class: "size-small", code: codes.InvalidArgument, says: []string{`class default/size-small: parameter "volumeSize": "63Ki" is not from 64Ki to 1Gi`}},
		{name: "a size above the most", class: "size-large", code: codes.InvalidArgument, says: []string{`parameter "volumeSize": "2Gi" is not from 64Ki to 1Gi`}},
		{name: "a negative size", class: "size-negative", code: codes.InvalidArgument, says: []string{`parameter "volumeSize": "-8Mi" is not from 64Ki to 1Gi`}},
	})
}

func TestLocalObjects(t *testing.T) {
	b := newBed(t)
	folder := b.source("objects")
	harness.WriteFile(t, filepath.Join(folder, "db"), "1")
	harness.WriteFile(t, filepath.Join(folder, "web"), "2")
	harness.WriteFile(t, filepath.Join(folder, "large"), strings.Repeat("5", 5<<20))
	harness.WriteFile(t, filepath.Join(folder, "half"), strings.Repeat("4", 4<<20))
	harness.WriteFile(t, filepath.Join(folder, "folder/file"), "3")
	link(t, "/etc/passwd", filepath.Join(folder, "out"))
	harness.WriteFile(t, b.source("file"), "plain")
	if err := os.Mkdir(b.source("empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	long, path5000 := strings.Repeat("n", 300), strings.TrimSuffix(strings.Repeat("component/", 500), "/")

	var mistakes []mistake
	add := func(name, objects string, code codes.Code, says ...string) {
		class := fmt.Sprint("objects-", len(mistakes))
		b.AddClass(t, class, "local", map[string]string{"path": folder, "objects": objects})
		mistakes = append(mistakes, mistake{name: name, class: class, code: code, says: append(says, "class default/"+class)})
	}
	const invalid = codes.InvalidArgument
	add("objects that are no YAML", "- objectName: db\n  x: [", invalid, `parameter "objects", line 2`, "not YAML")
	add("objects that are a word", "db", invalid, `parameter "objects", line 1`, "not a list")
	add("objects that are none", "[]", invalid, `parameter "objects"`, "lists nothing")
	add("an object that is a number", "- 7", invalid, "entry 1", "not a map of fields")
	add("an object without a name", "- objectName: db\n- objectAlias: a", invalid, `line 2, entry 2, "objectName": it is missing`)
	add("an object that is not there", "- objectName: none", codes.NotFound, `object "none"`, "no such file", "create the file, or correct objectName")
	add("an object that is a folder", "- objectName: folder", invalid, `object "folder"`, "it is a folder", "name a file")
	add("an object that is a link out of the folder", "- objectName: out", invalid, `object "out"`, "leads out of the folder")
	add("an object above the folder", "- objectName: ../file", invalid, `entry 1 ("../file")`, `contains ".."`)
	add("an absolute object", "- objectName: /etc/passwd", invalid, `entry 1 ("/etc/passwd")`, "is absolute")
	add("an object name of 300 bytes", "- objectName: "+long, invalid, "component of 300 bytes, more than 255")
	add("an object name of 5000 bytes", "- objectName: "+path5000, invalid, "has 4999 bytes, more than 4096")
	add("a NUL in an object name", `- objectName: "d\0b"`, invalid, "contains a NUL byte")
	add("an alias of 300 bytes", "- objectName: db\n  objectAlias: "+long, invalid, `"objectAlias"`, "component of 300 bytes, more than 255")
	add("an alias of 5000 bytes", "- objectName: db\n  objectAlias: "+path5000, invalid, `"objectAlias"`, "has 4999 bytes, more than 4096")
	add("an alias above the volume", "- objectName: db\n  objectAlias: ../x", invalid, `line 2, entry 1 ("db"), "objectAlias"`, `contains ".."`)
	add("an alias that is the volume's own", "- objectName: db\n  objectAlias: ..data", invalid, "kept for the volume's own entries")
	add("an absolute alias", "- objectName: db\n  objectAlias: /x", invalid, "is absolute")
	add("the same file twice", "- objectName: db\n- objectName: db", invalid, `line 2, entry 2 ("db")`, `entry 1 ("db") has the file path "db" too`, "objectAlias")
	add("two objects for one file", "- objectName: db\n  objectAlias: a\n- objectName: web\n  objectAlias: a", invalid, `entry 2 ("web")`, `entry 1 ("db") has the file path "a" too`)
	add("a file and the same as a folder", "- objectName: db\n  objectAlias: a\n- objectName: web\n  objectAlias: a/b", invalid, `entry 2 ("web")`, `"a/b"`, `entry 1 ("db")`, "exclude each other")
	add("a sticky mode", "- objectName: db\n  filePermission: '01777'", invalid, `entry 1 ("db"), "filePermission"`, `"01777" is not a file mode`, `"0640"`)
	add("a mode of 9", "- objectName: db\n  filePermission: 9", invalid, `"9" is not a file mode`)
	add("a mode in letters", "- objectName: db\n  filePermission: rw", invalid, `"rw" is not a file mode`)
	add("a negative mode", "- objectName: db\n  filePermission: '-1'", invalid, `"-1" is not a file mode`)
	add("5 MiB in an object", "- objectName: large", codes.ResourceExhausted, `object "large"`, "it has 5242880 bytes, more than 4194304", "make it smaller")
	add("more than half of a volume", "- objectName: half\n- objectName: db", codes.ResourceExhausted, "2 files take 4198400 bytes", "volumeSize to at least 8200Ki")

	other := func(name string, parameters map[string]string, code codes.Code, says ...string) {
		class := fmt.Sprint("path-", len(mistakes))
		b.AddClass(t, class, "local", parameters)
		mistakes = append(mistakes, mistake{name: name, class: class, code: code, says: append(says, "class default/"+class)})
	}
	other("no path", map[string]string{"objects": "- objectName: db"}, invalid, `parameter "path": it is missing`)
	other("a relative path", map[string]string{"path": "source"}, invalid, `parameter "path": the path "source" is not absolute`)
	other("a path that is not there", map[string]string{"path": b.source("none")}, codes.NotFound, `parameter "path"`, b.source("none"), "create it, or correct")
	other("a path of 5000 bytes", map[string]string{"path": "/" + path5000}, invalid, `parameter "path"`)
	other("an empty folder", map[string]string{"path": b.source("empty")}, codes.NotFound, `parameter "path"`, "holds no file")
	other("a file that is not encrypted", map[string]string{"path": b.source("file")}, invalid, `parameter "identityFile": it is missing`, b.source("file"))
	other("an age file that is none", map[string]string{"path": b.source("file"), "identityFile": b.source("file")}, invalid, "identity file", "line 1 is no identity")
	other("an identity file that is not there", map[string]string{"path": b.source("file"), "identityFile": b.source("none")}, codes.NotFound, "identity file", "age-keygen")
	b.try(t, mistakes)
}

func link(t *testing.T, to, name string) (undo func()) {
	t.Helper()
	if err := os.Symlink(to, name); err != nil {
		t.Fatal(err)
	}
	return func() { remove(t, name) }
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}
