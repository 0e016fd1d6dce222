// Package stores tests the driver against real secret stores: Vault and, behind
// it, PostgreSQL.
package stores

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"encoding/pem"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/test/harness"
	"github.com/csi-secrets/csi-secrets/test/issuer"
	"github.com/csi-secrets/csi-secrets/test/vault"
)

func TestMain(m *testing.M) { harness.Main(m) }

// world is a Vault that pods can log in to, and a node.
type world struct {
	*vaulttest.Server
	issuer *issuer.Issuer
	node   *harness.Node
}

// newWorld starts a Vault whose auth method kubernetes asks an API server's
// TokenReview, with the issuer's keys, and whose auth method jwt checks them
// itself. Roles "app" of both give the policy "app".
func newWorld(t testing.TB) *world {
	t.Helper()
	pods := issuer.New(t)
	reviews := httptest.NewTLSServer(pods.TokenReviews())
	t.Cleanup(reviews.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: reviews.Certificate().Raw})
	w := &world{Server: vaulttest.New(t, vaulttest.Options{}), issuer: pods}
	role := vaulttest.Role{Namespace: "default", ServiceAccount: "default", Audience: "vault", Policies: []string{"app"}}
	must(t, w.AuthKubernetes("kubernetes", reviews.URL, ca, ""), w.AuthJWT("jwt", pods),
		w.KubernetesRole("kubernetes", "app", role), w.JWTRole("jwt", "app", role))
	return w
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// start starts a node whose driver knows this Vault.
func (w *world) start(t testing.TB) {
	t.Helper()
	w.node = harness.Start(t, harness.Options{Arguments: w.arguments()})
}

func (w *world) arguments() []string {
	return []string{"--vault-addr", w.Address, "--vault-tls-ca-cert", w.CAFile()}
}

// again starts another driver in the place of one that was killed.
func (w *world) again(t testing.TB, more ...string) {
	t.Helper()
	layout := w.node.Layout
	n, err := standalone.Start(t.Context(), layout, w.node.Log, harness.Binary(), layout.Arguments(append(w.arguments(), more...)...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, w.node.Log.Bytes())
	}
	w.node.Node = n
}

// volume is one of a pod with tokens for these audiences.
func (w *world) volume(t testing.TB, pod, class string, audiences ...string) standalone.Volume {
	t.Helper()
	if len(audiences) == 0 {
		audiences = []string{"vault"}
	}
	return w.volumeFor(t, pod, class, time.Hour, audiences...)
}

// volumeFor is a volume of a pod with tokens that are valid for so long, or were.
func (w *world) volumeFor(t testing.TB, pod, class string, lifetime time.Duration, audiences ...string) standalone.Volume {
	t.Helper()
	type token struct {
		Token   string    `json:"token"`
		Expires time.Time `json:"expirationTimestamp"`
	}
	v := standalone.Volume{Pod: pod, Class: class}
	uid := v.PublishRequest(w.node.Layout).VolumeContext["csi.storage.k8s.io/pod.uid"]
	account := issuer.Account{Namespace: "default", Name: "default", Pod: pod, PodUID: uid}
	from := time.Now()
	if lifetime < 0 { // it was valid
		from = from.Add(2 * lifetime)
	}
	tokens := map[string]token{}
	for _, audience := range audiences {
		text := w.issuer.TokenUntil(from, from.Add(max(lifetime, -lifetime)), account, audience)
		tokens[audience] = token{text, time.Now().Add(time.Hour)}
	}
	text, err := json.Marshal(tokens)
	if err != nil {
		t.Fatal(err)
	}
	v.Tokens = string(text)
	return v
}

func (w *world) publish(t testing.TB, v standalone.Volume) {
	t.Helper()
	if err := w.node.Publish(harness.Timeout(t), v); err != nil {
		t.Fatalf("%v\n%s", err, w.node.Log.Bytes())
	}
}

// set returns the files of one set of the volume, by path: all of the same moment.
func set(layout standalone.Layout, v standalone.Volume) (map[string]string, error) {
	for range 100 {
		folder, err := filepath.EvalSymlinks(filepath.Join(v.Target(layout), "..data"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files := map[string]string{}
		err = filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			rel, _ := filepath.Rel(folder, path)
			files[rel] = string(text)
			return err
		})
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return files, err
		}
	}
	return nil, errors.New("the set does not hold still")
}

func (w *world) files(t testing.TB, v standalone.Volume) map[string]string {
	t.Helper()
	files, err := set(w.node.Layout, v)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// asked counts the requests of pods whose operation and path begin so.
func (w *world) asked(t testing.TB, prefix string) (n int) {
	t.Helper()
	requests, err := w.Requests()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range requests {
		if !r.Root && strings.HasPrefix(r.Operation+" "+r.Path, prefix) {
			n++
		}
	}
	return n
}

// tokens returns how many tokens the server knows, root's included.
func (w *world) tokens(t testing.TB) int {
	t.Helper()
	all, err := w.Accessors()
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func put(t testing.TB, w *world, path string, data map[string]any) {
	t.Helper()
	if _, err := w.Do("PUT", path, data); err != nil {
		t.Fatal(err)
	}
}

// wantFiles compares files, where a value that begins with ~ is a part.
func wantFiles(t testing.TB, got, want map[string]string) {
	t.Helper()
	for name, text := range want {
		have, ok := got[name]
		if part, isPart := strings.CutPrefix(text, "~"); !ok || isPart && !strings.Contains(have, part) || !isPart && have != text {
			t.Errorf("%s is %q, want %q", name, have, text)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("there is a file %s", name)
		}
	}
}

// noneContains fails the test where the driver's log or an error shows a value.
func (w *world) noneContains(t testing.TB, err error, values ...string) {
	t.Helper()
	text := string(w.node.Log.Bytes()) + fmt.Sprint(err)
	for _, value := range slices.DeleteFunc(values, func(v string) bool { return v == "" }) {
		if strings.Contains(text, value) {
			t.Errorf("%q shows in the log or an error", value)
		}
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func roleOf(namespace, serviceAccount string) vaulttest.Role {
	return vaulttest.Role{Namespace: namespace, ServiceAccount: serviceAccount, Audience: "vault", Policies: []string{"app"}}
}

// jwtOf returns the signed part of the volume's token, which must show nowhere.
func jwtOf(v standalone.Volume) string {
	parts := strings.Split(v.Tokens, ".")
	if len(parts) < 3 {
		return ""
	}
	signature, _, _ := strings.Cut(parts[2], `"`)
	return signature
}
