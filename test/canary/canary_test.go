// Package canary publishes values that nobody can guess, in every way that
// succeeds and every way that fails, and looks for them wherever they must not
// be: in the log at its highest level, in errors, on disk, in /proc.
package canary

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/pkg/provider/plugin/plugintest"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const tokensKey = "csi.storage.k8s.io/serviceAccount.tokens"

// cage is a node on which canaries are published.
type cage struct {
	*harness.Node

	source string // the folder of secrets, which is not below the node's root
	work   string // where the driver was started and keeps temporary files
	health string
	names  int
	hits   []hit // in errors
}

// newCage starts a driver that says all it can.
func newCage(t *testing.T, o harness.Options) *cage {
	t.Helper()
	c := &cage{source: harness.Folder(t), work: harness.Folder(t), health: freeAddress(t)}
	// A package may ask the environment how much to say.
	o.Under = append(o.Under, "env", "-C", c.work, "TMPDIR="+c.work, "GRPC_GO_LOG_VERBOSITY_LEVEL=99", "GRPC_GO_LOG_SEVERITY_LEVEL=info")
	o.Arguments = append([]string{"-v=10", "--health-addr", c.health, "--rotation-poll-interval", "300ms", "--legacy-providers", "writer"}, o.Arguments...)
	c.Node = harness.Start(t, o)
	return c
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// name returns a new name for a class, pod or provider.
func (c *cage) name() string { c.names++; return fmt.Sprint("n", c.names) }

// class makes a class of the local provider.
func (c *cage) class(t *testing.T, parameters map[string]string) string {
	t.Helper()
	name := c.name()
	c.AddClass(t, name, "local", parameters)
	return name
}

// folder makes a folder of secrets.
func (c *cage) folder(t *testing.T, files map[string]string) (path string) {
	t.Helper()
	path = filepath.Join(c.source, c.name())
	for name, text := range files {
		harness.WriteFile(t, filepath.Join(path, name), text)
	}
	return path
}

// age makes an age file of a plaintext, and the file of an identity for it.
func (c *cage) age(t *testing.T, plaintext string) (path, identityFile string) {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, plaintext); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	folder := c.folder(t, map[string]string{"sealed.age": sealed.String(), "identity": identity.String() + "\n"})
	return filepath.Join(folder, "sealed.age"), filepath.Join(folder, "identity")
}

// with gives a volume tokens and secrets that are canaries.
func with(v standalone.Volume) standalone.Volume {
	v.Tokens = tokens()
	v.Secrets = map[string]string{"clientid": canary("secret one"), "clientsecret": canary("secret two"), tokensKey: tokens()}
	return v
}

func tokens() string {
	text, _ := json.Marshal(map[string]any{
		"vault": map[string]string{"token": token("token vault"), "expirationTimestamp": "2099-01-01T00:00:00Z"},
		"":      map[string]string{"token": token("token api"), "expirationTimestamp": "2099-01-01T00:00:00Z"},
	})
	return string(text)
}

func (c *cage) volume(class string) standalone.Volume {
	return standalone.Volume{Pod: c.name(), Class: class}
}

// works publishes, and checks that canaries do arrive where they belong.
func (c *cage) works(t *testing.T, v standalone.Volume) {
	t.Helper()
	if err := c.Publish(harness.Timeout(t), v); err != nil {
		t.Fatalf("a publish that should work: %v", err)
	}
	if out, err := exec.Command("grep", "-rlF", marker, v.Target(c.Layout)).Output(); err != nil || len(out) == 0 {
		t.Fatalf("there is no canary in the volume: %v", err)
	}
}

// fails publishes, and keeps the error for the search.
func (c *cage) fails(t *testing.T, name string, v standalone.Volume) {
	t.Helper()
	request := v.PublishRequest(c.Layout)
	if err := os.MkdirAll(filepath.Dir(request.TargetPath), 0o750); err != nil {
		t.Fatal(err)
	}
	c.refused(t, harness.Timeout(t), name, request)
}

func (c *cage) refused(t *testing.T, ctx context.Context, name string, request *csi.NodePublishVolumeRequest) {
	t.Helper()
	_, err := c.NodePublishVolume(ctx, request)
	if err == nil {
		t.Errorf("%s: the publish worked", name)
		return
	}
	text, _ := proto.Marshal(status.Convert(err).Proto())
	c.hits = append(c.hits, look("the error of "+name, append(text, err.Error()...))...)
}

// logged waits until the log says so about a target.
func (c *cage) logged(t *testing.T, what string, v standalone.Volume) {
	t.Helper()
	harness.Eventually(t, what+" is logged", func() bool {
		for line := range bytes.Lines(c.Log.Bytes()) {
			if bytes.Contains(line, []byte(what)) && bytes.Contains(line, []byte(v.Target(c.Layout))) {
				return true
			}
		}
		return false
	})
}

const keeps = "A refresh failed; what was fetched before stays"

func TestNoCanaryShows(t *testing.T) {
	for name, arguments := range map[string][]string{"text log": nil, "JSON log": {"--log-format-json"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCage(t, harness.Options{Arguments: arguments})
			c.local(t)
			c.sealed(t)
			c.requests(t)
			c.plugins(t)
			c.look(t)
			if err := c.Stop(); err != nil {
				t.Errorf("the driver ended with %v", err)
			}
			c.look(t)
		})
	}
}

// look searches everything.
func (c *cage) look(t *testing.T) {
	t.Helper()
	log := c.Log.Bytes()
	// A driver that says nothing says no canary either.
	for _, said := range []string{"Published", "Call failed", keeps, "Call", "grpc"} {
		if !bytes.Contains(log, []byte(said)) {
			t.Errorf("the log does not say %q", said)
		}
	}
	hits := append(c.hits, look("the log", log)...)
	for _, folder := range []string{c.Layout.Root, c.work} {
		more, files := lookInFiles(t, folder)
		if folder == c.Layout.Root && files == 0 {
			t.Error("there are no files to search")
		}
		hits = append(hits, more...)
	}
	select {
	case <-c.Exited():
	default:
		hits = append(hits, lookInProcess(t, c.Process.Pid)...)
		for _, path := range []string{"/healthz", "/", "/metrics", "/debug/pprof/goroutine?debug=2", "/debug/vars"} {
			answer, err := http.Get("http://" + c.health + path)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if err != nil || path == "/healthz" && answer.StatusCode != http.StatusOK {
				t.Errorf("%s answers %v, %v", path, answer.Status, err)
			}
			hits = append(hits, look(path, fmt.Append(text, answer.Header))...)
		}
	}
	report(t, hits)
}

// local is the life and failures of volumes from folders.
func (c *cage) local(t *testing.T) {
	folder := c.folder(t, map[string]string{"password": canary("file one"), "deep/key": canary("file two"), "raw": "\x00\xff" + half("binary")})
	v := with(c.volume(c.class(t, map[string]string{"path": folder})))
	c.works(t, v)
	c.works(t, with(v)) // once more, with new credentials

	next := canary("file next")
	harness.WriteFile(t, filepath.Join(folder, "password"), next)
	harness.Eventually(t, "the volume is refreshed", func() bool {
		text, err := os.ReadFile(filepath.Join(v.Target(c.Layout), "password"))
		return err == nil && string(text) == next
	})
	c.logged(t, "Refreshed a volume", v)
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	c.logged(t, keeps, v)
	if err := c.Unpublish(harness.Timeout(t), v); err != nil {
		t.Error(err)
	}

	large := strings.Repeat(canary("large"), 5<<20/80)
	folder = c.folder(t, map[string]string{"large": large, "some": large[:3<<20], "more": large[:3<<20], "small": canary("small")})
	for name, objects := range map[string]string{
		"a large file":     "- objectName: large",
		"a full volume":    "- objectName: some\n- objectName: more",
		"a missing object": "- objectName: small\n- objectName: none",
		"a clash of paths": "- objectName: small\n- objectName: some\n  objectAlias: small/x",
	} {
		c.fails(t, name, with(c.volume(c.class(t, map[string]string{"path": folder, "objects": objects}))))
	}
	c.fails(t, "a secret as its own folder", with(c.volume(c.class(t, map[string]string{"path": filepath.Join(folder, "small")}))))
	c.fails(t, "a secret as identity", with(c.volume(c.class(t, map[string]string{"path": filepath.Join(folder, "some"), "identityFile": filepath.Join(folder, "small")}))))
}

// sealed is the life and failures of volumes from age files.
func (c *cage) sealed(t *testing.T) {
	good, err := json.Marshal(map[string]string{"user": canary("age one"), "pass": canary("age two")})
	if err != nil {
		t.Fatal(err)
	}
	path, identity := c.age(t, string(good))
	v := with(c.volume(c.class(t, map[string]string{"path": path, "identityFile": identity})))
	c.works(t, v)
	broken, other := c.age(t, "user: "+half("broken refresh")+"\n  pass: [")
	for from, to := range map[string]string{broken: path, other: identity} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	c.logged(t, keeps, v)

	h := func() string { return half("age broken") }
	for name, plaintext := range map[string]string{
		"an open list":           "user: " + h() + "\n  pass: [",
		"an open string":         `{"user": "` + h(),
		"a list":                 "- " + h(),
		"a word":                 h(),
		"a tag":                  "user: !" + h(),
		"an unknown alias":       "user: *" + h(),
		"an anchor in an anchor": "user: &" + h() + " &" + h() + " x",
		"a directive":            "%" + h() + "\nuser: x",
		"a directive of YAML":    "%YAML " + h() + "\n---\nuser: x",
		"a tag's handle":         "user: !" + h() + "!x y",
		"a key twice":            h() + "x: 1\n" + strings.Repeat("same"+marker+": x\n", 2),
		"a key that is a path":   "/" + h() + ": x",
		"keys in one another":    marker + "k: x\n" + marker + "k/y: z",
		"bad base64":             "user: !!binary " + h() + "*",
		"a map as value":         "user: {" + h() + ": " + h() + "}",
		"a map as key":           "? {" + h() + ": x}\n: y",
		"a null":                 h() + ":",
		"two documents":          "user: " + h() + "\n---\n" + h() + ": x",
		"a tab":                  "user:\n\t" + h() + ": x",
		"bad indent":             "user: |\n   " + h() + "\n  " + h() + "\n x",
		"a bad escape":           `user: "\q` + h() + `"`,
		"a lone surrogate":       `{"user": "\ud800` + h() + `"}`,
		"a control character":    "user: \x01" + h(),
		"not UTF-8":              "user: \xff" + h(),
		"too much":               "user: " + strings.Repeat(h(), 5<<20/50),
	} {
		path, identity := c.age(t, plaintext)
		c.fails(t, name, with(c.volume(c.class(t, map[string]string{"path": path, "identityFile": identity}))))
		c.fails(t, name+", by name", with(c.volume(c.class(t, map[string]string{"path": path, "identityFile": identity, "objects": "- objectName: user\n- objectName: none"}))))
	}
	_, stranger := c.age(t, "a: b")
	sealed, identity := c.age(t, string(good))
	c.fails(t, "a stranger's identity", with(c.volume(c.class(t, map[string]string{"path": sealed, "identityFile": stranger}))))
	text, err := os.ReadFile(sealed)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"a plain file":      canary("plain"),
		"a damaged header":  "age-encryption.org/v1\n-> X25519 " + canary("header"),
		"a damaged armor":   "-----BEGIN AGE ENCRYPTED FILE-----\n" + canary("armor"),
		"a damaged age":     string(text[:len(text)-4]) + canary("tail"),
		"a plain YAML file": "user: " + canary("plain yaml"),
	} {
		folder := c.folder(t, map[string]string{"file": text})
		c.fails(t, name, with(c.volume(c.class(t, map[string]string{"path": filepath.Join(folder, "file"), "identityFile": identity}))))
	}
	for name, text := range map[string]string{
		"a secret among identities": "# comment\nAGE-SECRET-KEY-" + strings.ToUpper(marker) + "\n" + half("identity") + "\n",
		"an armored identity":       "-----BEGIN AGE ENCRYPTED FILE-----\n" + half("identity"),
		"an SSH key":                "-----BEGIN OPENSSH PRIVATE KEY-----\n" + half("identity"),
	} {
		folder := c.folder(t, map[string]string{"identity": text})
		c.fails(t, name, with(c.volume(c.class(t, map[string]string{"path": sealed, "identityFile": filepath.Join(folder, "identity")}))))
	}
}

// requests are those that the driver refuses by themselves.
func (c *cage) requests(t *testing.T) {
	good := c.class(t, map[string]string{"path": c.folder(t, map[string]string{"a": canary("request")})})
	for name, spoil := range map[string]func(*csi.NodePublishVolumeRequest){
		"no capability":      func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil },
		"no ID":              func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "" },
		"no target":          func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "" },
		"a relative target":  func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "a" },
		"not read-only":      func(r *csi.NodePublishVolumeRequest) { r.Readonly = false },
		"a bad group":        func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().VolumeMountGroup = "x" },
		"no class":           func(r *csi.NodePublishVolumeRequest) { delete(r.VolumeContext, "secretProviderClass") },
		"an unknown class":   func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["secretProviderClass"] = "none" },
		"a clash":            func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["path"] = "/x" },
		"too long a request": func(r *csi.NodePublishVolumeRequest) { r.Secrets["large"] = strings.Repeat(canary("huge"), 5<<20/80) },
		"cut tokens": func(r *csi.NodePublishVolumeRequest) {
			r.VolumeContext[tokensKey] = tokens()[:150]
			delete(r.Secrets, tokensKey)
		},
		"cut tokens in the secrets": func(r *csi.NodePublishVolumeRequest) { r.Secrets[tokensKey] = tokens()[:150] },
		"a token for an object": func(r *csi.NodePublishVolumeRequest) {
			r.Secrets[tokensKey] = `{"vault":"` + token("token alone") + `"}`
		},
		"a token for all": func(r *csi.NodePublishVolumeRequest) { r.Secrets[tokensKey] = token("token bare") },
		"a token for a time": func(r *csi.NodePublishVolumeRequest) {
			r.Secrets[tokensKey] = `{"vault":{"token":"x","expirationTimestamp":"` + token("token time") + `"}}`
		},
		"a token for an audience": func(r *csi.NodePublishVolumeRequest) {
			r.Secrets[tokensKey] = `{"` + token("token audience") + `":1}`
		},
	} {
		request := with(c.volume(good)).PublishRequest(c.Layout)
		spoil(request)
		c.refused(t, harness.Timeout(t), name, request)
	}
	v := with(c.volume(good))
	c.works(t, v)
	request := v.PublishRequest(c.Layout)
	request.VolumeContext["csi.storage.k8s.io/pod.uid"] = "another"
	c.refused(t, harness.Timeout(t), "another pod", request)
	request = v.PublishRequest(c.Layout)
	request.TargetPath += "2"
	c.refused(t, harness.Timeout(t), "another target", request)
}

// plugins are external providers, which see tokens and secrets and may say
// anything.
func (c *cage) plugins(t *testing.T) {
	serve := func(mount func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error)) (class string) {
		name := c.name()
		plugintest.Serve(t, c.Layout.Providers(), name, mount)
		c.AddClass(t, name, name, map[string]string{"objects": "any"})
		return name
	}
	answer := func(path string, mode int32) *v1alpha1.MountResponse {
		r := plugintest.Files(map[string]string{path: canary("plugin file")})
		r.Files[0].Mode = mode
		return r
	}
	fine := func() *v1alpha1.MountResponse { return answer("a", 0o600) }

	// The forms in which a provider may quote what it was sent.
	forms := map[string]func(string) string{
		"as it is": func(s string) string { return s },
		"quoted":   func(s string) string { return fmt.Sprintf("%q", s) },
		"JSON":     func(s string) string { b, _ := json.Marshal(s); return string(b) },
		"base64":   func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"URL":      url.QueryEscape,
		"cut":      func(s string) string { return s[:2*len(s)/3] },
	}
	// What it may quote of a request: all of it, or each token and secret.
	quotes := map[string]func(*v1alpha1.MountRequest) []string{
		"attributes": func(r *v1alpha1.MountRequest) []string { return []string{r.GetAttributes()} },
		"secrets":    func(r *v1alpha1.MountRequest) []string { return []string{r.GetSecrets()} },
		"values": func(r *v1alpha1.MountRequest) []string {
			var attributes, secrets map[string]string
			_ = json.Unmarshal([]byte(r.GetAttributes()), &attributes)
			_ = json.Unmarshal([]byte(r.GetSecrets()), &secrets)
			var tokens map[string]struct{ Token string }
			_ = json.Unmarshal([]byte(attributes[tokensKey]), &tokens)
			values := []string{attributes[tokensKey]}
			for _, t := range tokens {
				values = append(values, t.Token)
			}
			for _, s := range secrets {
				values = append(values, s)
			}
			return values
		},
	}
	echo := func(r *v1alpha1.MountRequest, quote, form string) string {
		text := "I was sent"
		for _, s := range quotes[quote](r) {
			text += " <" + forms[form](s) + ">"
		}
		return text
	}
	all := []codes.Code{codes.PermissionDenied, codes.ResourceExhausted, codes.Unavailable, codes.Internal, codes.NotFound, codes.InvalidArgument, codes.Unauthenticated}
	i := 0
	for quote := range quotes {
		for form := range forms {
			code := all[i%len(all)]
			i++
			c.fails(t, fmt.Sprintf("a provider that quotes %s, %s, with %v", quote, form, code), with(c.volume(serve(
				func(_ context.Context, r *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
					return nil, status.Error(code, echo(r, quote, form))
				}))))
			c.fails(t, fmt.Sprintf("a provider whose error code quotes %s, %s", quote, form), with(c.volume(serve(
				func(_ context.Context, r *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
					return &v1alpha1.MountResponse{Error: &v1alpha1.Error{Code: echo(r, quote, form)}}, nil
				}))))
		}
	}
	c.fails(t, "a provider whose error has details", with(c.volume(serve(func(_ context.Context, r *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		st, err := status.New(codes.Internal, "see the details").WithDetails(wrapperspb.String(r.String()), wrapperspb.String(canary("detail")))
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}))))

	for name, spoil := range map[string]func(*v1alpha1.MountResponse){
		"a bad mode":    func(r *v1alpha1.MountResponse) { r.Files[0].Mode = 512 },
		"a bad path":    func(r *v1alpha1.MountResponse) { r.Files[0].Path = "../x" },
		"a path twice":  func(r *v1alpha1.MountResponse) { r.Files = append(r.Files, answer("a", 0).Files...) },
		"no versions":   func(r *v1alpha1.MountResponse) { r.ObjectVersion = nil },
		"an error code": func(r *v1alpha1.MountResponse) { r.Error = &v1alpha1.Error{Code: "Half"} },
		"too much":      func(r *v1alpha1.MountResponse) { r.Files[0].Contents = bytes.Repeat(r.Files[0].Contents, 5<<20/80) },
		"a full volume": func(r *v1alpha1.MountResponse) {
			r.Files[0].Contents = bytes.Repeat(r.Files[0].Contents, 4100<<10/len(r.Files[0].Contents))
		},
		"a path, NUL in": func(r *v1alpha1.MountResponse) { r.Files[0].Path = "a\x00" },
	} {
		c.fails(t, "an answer with "+name, with(c.volume(serve(func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
			r := fine()
			spoil(r)
			return r, nil
		}))))
	}

	// A store that writes its files by itself, and may fail afterwards.
	plugintest.Serve(t, c.Layout.Providers(), "writer", func(_ context.Context, r *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		if err := os.WriteFile(filepath.Join(r.GetTargetPath(), "a"), []byte(canary("plugin writes")), 0o600); err != nil {
			return nil, err
		}
		switch {
		case strings.Contains(r.GetAttributes(), "fail"):
			return nil, status.Error(codes.Internal, echo(r, "values", "as it is"))
		case strings.Contains(r.GetAttributes(), "link"):
			return &v1alpha1.MountResponse{ObjectVersion: fine().ObjectVersion}, os.Symlink("x", filepath.Join(r.GetTargetPath(), "b"))
		}
		return &v1alpha1.MountResponse{ObjectVersion: fine().ObjectVersion}, nil
	})
	for _, does := range []string{"work", "fail", "link"} {
		c.AddClass(t, does, "writer", map[string]string{"objects": does})
	}
	c.works(t, with(c.volume("work")))
	c.fails(t, "a provider that writes, and fails", with(c.volume("fail")))
	c.fails(t, "a provider that writes a link", with(c.volume("link")))

	// A store that works, is refreshed, and then fails.
	var calls atomic.Int64
	var failure atomic.Pointer[error]
	class := serve(func(_ context.Context, r *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		calls.Add(1)
		if err := failure.Load(); err != nil {
			return nil, status.Error(status.Code(*err), status.Convert(*err).Message()+echo(r, "values", "as it is")+echo(r, "attributes", "quoted"))
		}
		return fine(), nil
	})
	for _, code := range []codes.Code{codes.ResourceExhausted, codes.Unavailable, codes.PermissionDenied} {
		failure.Store(nil)
		v := with(c.volume(class))
		c.works(t, v)
		c.logged(t, "Refreshed a volume", v)
		err := status.Error(code, "sorry: ")
		failure.Store(&err)
		c.logged(t, keeps, v)
		c.works(t, with(v)) // new credentials, which make it due at once
		now := calls.Load()
		harness.Eventually(t, "the provider is asked again", func() bool { return calls.Load() > now })
		c.fails(t, fmt.Sprintf("a first publish beside, with %v", code), with(c.volume(class)))
		if err := c.Unpublish(harness.Timeout(t), v); err != nil {
			t.Error(err)
		}
	}

	// A store that takes its time, while others wait for the same volume.
	request := with(c.volume(serve(func(ctx context.Context, _ *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}))).PublishRequest(c.Layout)
	ctx, cancel := context.WithTimeout(harness.Timeout(t), time.Second)
	defer cancel()
	c.refused(t, ctx, "a provider that hangs", request)

	request = with(c.volume(class)).PublishRequest(c.Layout)
	request.VolumeContext[tokensKey] += " "
	request.VolumeContext["objects"] = "mine"
	c.refused(t, harness.Timeout(t), "an attribute that clashes", request)
	name := c.name()
	plugintest.Serve(t, c.Layout.Providers(), name, func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) { return fine(), nil })
	c.AddClass(t, name, name, map[string]string{tokensKey: "of the class"})
	c.fails(t, "a class with tokens of its own", with(c.volume(name)))
	c.AddClass(t, "gone", "gone", map[string]string{"a": "b"})
	c.fails(t, "a provider that is not there", with(c.volume("gone")))
}

// render and validate show no value unless asked to.
func TestCommandsShowNoCanary(t *testing.T) {
	c := newCage(t, harness.Options{})
	good, _ := json.Marshal(map[string]string{"user": canary("age one")})
	sealed, identity := c.age(t, string(good))
	broken, brokenIdentity := c.age(t, "user: "+half("broken")+"\n  pass: [")
	folder := c.folder(t, map[string]string{"password": canary("file"), "deep/key": canary("file")})
	plugintest.Serve(t, c.Layout.Providers(), "store", func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		return plugintest.Files(map[string]string{"a": canary("plugin file")}), nil
	})
	file := filepath.Join(c.source, "classes.yaml")
	harness.WriteFile(t, file, strings.Join([]string{
		harness.Class(t, "folder", "local", map[string]string{"path": folder}),
		harness.Class(t, "sealed", "local", map[string]string{"path": sealed, "identityFile": identity}),
		harness.Class(t, "broken", "local", map[string]string{"path": broken, "identityFile": brokenIdentity}),
		harness.Class(t, "plain", "local", map[string]string{"path": filepath.Join(folder, "password"), "identityFile": filepath.Join(folder, "password")}),
		harness.Class(t, "mistaken", "local", map[string]string{"path": filepath.Join(folder, "password"), "objects": "- objectName: ["}),
		harness.Class(t, "store", "store", map[string]string{"objects": "any"}),
	}, "---\n"))
	run := func(arguments ...string) []byte {
		out, err := exec.Command(harness.Binary(), arguments...).CombinedOutput()
		t.Logf("%s: %v\n%s", strings.Join(arguments, " "), err, out)
		return out
	}
	providers := []string{"--provider-volume", c.Layout.Providers(), "--additional-provider-volume-paths", ""}
	var hits []hit
	for _, command := range [][]string{
		append([]string{"render", "-f", file}, providers...),
		append([]string{"render", "-f", file, "-o", "json"}, providers...),
		append([]string{"render", "-f", filepath.Join(c.source, "none.yaml")}, providers...),
		{"validate", "-f", file},
		{"validate", "-f", file, "-o", "json"},
	} {
		out := run(command...)
		if len(out) == 0 {
			t.Errorf("%v says nothing", command)
		}
		hits = append(hits, look(strings.Join(command, " "), out)...)
	}
	report(t, hits)
	if len(look("render", run(append([]string{"render", "--show-values", "-f", file}, providers...)...))) == 0 {
		t.Error("render --show-values shows no canary, so that nothing else proves anything")
	}
}
