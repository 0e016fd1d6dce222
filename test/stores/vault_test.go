package stores

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/test/harness"
	"github.com/csi-secrets/csi-secrets/test/postgres"
)

const readAll = `path "*" { capabilities = ["read", "update"] }`

func TestWhateverCanBeReadFromVaultCanBeMounted(t *testing.T) {
	w := newWorld(t)
	must(t, w.Policy("app", readAll), w.EnableKV1("kv1"), w.EnableKV2("secret"), w.EnablePKI("pki", "web"), w.EnableTransit("transit", "key"))
	put(t, w, "kv1/db", map[string]any{"user": "app", "port": 5432, "hosts": []string{"a", "b"}, "bytes": "AAH/"})
	put(t, w, "kv1/tls", map[string]any{"certificate": string(w.CA()), "note": "first"}) // it has an end, and may change before
	put(t, w, "secret/data/db", map[string]any{"data": map[string]any{"password": "first<1>"}})
	put(t, w, "secret/data/db", map[string]any{"data": map[string]any{"password": "second<2>", "config": `{"a":{"b":"deep"}}`}})
	w.start(t)
	w.node.AddClass(t, "all", "vault", map[string]string{"roleName": "app", "objects": `
- {objectName: user, secretPath: kv1/db, secretKey: user, filePermission: 0600}
- {objectName: port, secretPath: /v1/kv1/db, secretKey: port}
- {objectName: hosts, secretPath: v1/kv1/db, secretKey: hosts}
- {objectName: bytes, secretPath: kv1/db, secretKey: bytes, encoding: base64}
- {objectName: stored.crt, secretPath: kv1/tls, secretKey: certificate}
- {objectName: note, secretPath: kv1/tls, secretKey: note}
- {objectName: db/password, secretPath: secret/data/db, secretKey: password}
- {objectName: db/pinned, secretPath: "secret/data/db?version=1", secretKey: password}
- {objectName: deep, secretPath: secret/data/db, secretKey: config, extractJSONKey: /a/b}
- {objectName: whole, secretPath: secret/data/db}
- {objectName: data, secretPath: secret/data/db, extractJSONKey: /data/data}
- {objectName: each, secretPath: secret/data/db, allKeys: true}
- {objectName: absent, secretPath: secret/data/nothing, secretKey: x, optional: true}
- {objectName: absent-key, secretPath: secret/data/db, secretKey: x, optional: true}
- {objectName: one.crt, secretPath: pki/issue/web, method: PUT, secretKey: certificate, secretArgs: {common_name: one.example.com, ttl: 1h}}
- {objectName: one.key, secretPath: pki/issue/web, method: PUT, secretKey: private_key, secretArgs: {common_name: one.example.com, ttl: 1h}}
- {objectName: two.crt, secretPath: pki/issue/web, method: PUT, secretKey: certificate, secretArgs: {common_name: two.example.com}}
- {objectName: cipher, secretPath: transit/encrypt/key, method: POST, secretKey: ciphertext, secretArgs: {plaintext: aGVsbG8=}}
`})
	v := w.volume(t, "web", "all")
	w.publish(t, v)
	first := w.files(t, v)
	wantFiles(t, first, map[string]string{
		"user": "app", "port": "5432", "stored.crt": string(w.CA()), "note": "first", "hosts": `["a","b"]`, "bytes": "\x00\x01\xff", "db/password": "second<2>", "db/pinned": "first<1>", "deep": "deep",
		"whole": `~"lease_id":"","lease_duration":0,"renewable":false,"data":{"data":{"config":"{\"a\":{\"b\":\"deep\"}}","password":"second\u003c2\u003e"}`,
		"data":  `{"config":"{\"a\":{\"b\":\"deep\"}}","password":"second\u003c2\u003e"}`, "each/password": "second<2>", "each/config": `{"a":{"b":"deep"}}`,
		"one.crt": "~BEGIN CERTIFICATE", "one.key": "~PRIVATE KEY", "two.crt": "~BEGIN CERTIFICATE", "cipher": "~vault:v1:",
	})
	if _, err := tls.X509KeyPair([]byte(first["one.crt"]), []byte(first["one.key"])); err != nil {
		t.Errorf("key and certificate of one request: %v", err)
	}
	if first["one.crt"] == first["two.crt"] {
		t.Error("requests with other arguments shared a certificate")
	}
	w.noneContains(t, nil, "first<1>", "second<2>")

	// A second pod of the same service account needs no login of its own, but for
	// certificates; and a certificate is not made again at a refresh.
	w.node.AddClass(t, "kv", "openbao", map[string]string{"baoRoleName": "app", "audience": "vault", "openbaoAddress": w.Address, "objects": "- {objectName: a, secretPath: secret/data/db, secretKey: password}"})
	logins := w.asked(t, "update auth/kubernetes/login")
	for i := range 5 {
		w.publish(t, w.volume(t, fmt.Sprint("kv-", i), "kv"))
	}
	if n := w.asked(t, "update auth/kubernetes/login") - logins; n != 1 {
		t.Errorf("five volumes of one identity took %d logins", n)
	}
	w.node.AddClass(t, "jwt", "vault", map[string]string{"roleName": "app", "vaultAuthMountPath": "jwt", "objects": "- {objectName: a, secretPath: secret/data/db, secretKey: password}"})
	for _, pod := range []string{"jwt-1", "jwt-2"} {
		byJWT := w.volume(t, pod, "jwt")
		w.publish(t, byJWT)
		wantFiles(t, w.files(t, byJWT), map[string]string{"a": "second<2>"})
	}
	if n := w.asked(t, "update auth/jwt/login"); n != 2 {
		t.Errorf("two pods, of whom a role may know one only, logged in %d times", n)
	}
	issued := w.asked(t, "update pki/issue/web")
	put(t, w, "secret/data/db", map[string]any{"data": map[string]any{"password": "third", "config": `{"a":{"b":"deep"}}`}})
	put(t, w, "kv1/tls", map[string]any{"certificate": string(w.CA()), "note": "second"})
	w.node.AddClass(t, "touched", "vault", map[string]string{}) // any change of classes
	w.refresh(t, v, "all", func(files map[string]string) bool {
		return files["db/password"] == "third" && files["note"] == "second"
	})
	second := w.files(t, v)
	if second["one.crt"] != first["one.crt"] || w.asked(t, "update pki/issue/web") != issued {
		t.Error("a refresh made another certificate")
	}
}

// refresh changes a class a little, so that its volumes are refreshed, and waits.
func (w *world) refresh(t *testing.T, v standalone.Volume, class string, done func(map[string]string) bool) {
	t.Helper()
	file := w.node.Layout.Classes() + "/" + class + ".yaml"
	text := readFile(t, file)
	w.node.AddClassFile(t, class, strings.Replace(text, "  parameters:\n", "  parameters:\n    leaseOverlap: "+fmt.Sprint(changes.Add(1))+"m\n", 1))
	harness.Eventually(t, "the volume has the new files", func() bool { return done(w.files(t, v)) })
}

var changes atomic.Int32

// users reads the password of a volume and logs in with it, again and again.
type users struct {
	stop   context.CancelFunc
	done   chan struct{}
	logins int
	names  map[string]bool // that were logged in with
	errs   []string
}

func logInForever(t *testing.T, pg *postgres.Server, layout standalone.Layout, v standalone.Volume) *users {
	ctx, cancel := context.WithCancel(t.Context())
	u := &users{stop: cancel, done: make(chan struct{}), names: map[string]bool{}}
	go func() {
		defer close(u.done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			files, err := set(layout, v)
			if u, ok := files["url"]; ok && u != url.QueryEscape(files["username"])+":"+url.QueryEscape(files["password"]) {
				err = errors.New("the derived file is of another set")
			}
			if err == nil {
				err = pg.Login(context.WithoutCancel(ctx), files["username"], files["password"])
			}
			u.logins++
			u.names[files["username"]] = true
			if err != nil {
				u.errs = append(u.errs, fmt.Sprintf("%s: %s: %v", time.Now().Format("15:04:05.000"), files["username"], err))
			}
		}
	}()
	return u
}

func (u *users) end(t *testing.T) {
	t.Helper()
	u.stop()
	<-u.done
	t.Logf("%d logins with %d users", u.logins, len(u.names))
	if len(u.errs) > 0 {
		t.Errorf("%d of %d logins failed:\n%s", len(u.errs), u.logins, strings.Join(u.errs, "\n"))
	}
}

const credsClass = `
- {objectName: username, secretPath: database/creds/app, secretKey: username}
- {objectName: password, secretPath: database/creds/app, secretKey: password}
- {objectName: static, secretPath: secret/data/static, secretKey: a}
`

// credsURL is made of the two.
const credsURL = "- {path: url, template: '{{ file \"username\" | urlquery }}:{{ file \"password\" | urlquery }}'}"

// A pod logs in all the time, while leases are renewed, end, and are replaced, and
// the driver is killed. When the pod goes, so does its user.
func TestADatabasePasswordIsGoodAtAnyTime(t *testing.T) {
	for name, policy := range map[string]string{
		"by the default policy":    `path "database/creds/app" { capabilities = ["read"] } path "secret/data/static" { capabilities = ["read"] }`,
		"with the right to revoke": `path "database/creds/app" { capabilities = ["read"] } path "secret/data/static" { capabilities = ["read"] } path "sys/leases/revoke" { capabilities = ["update"] }`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, pg := newWorld(t), postgres.New(t, postgres.Options{})
			must(t, w.Policy("app", policy), w.EnableKV2("secret"), w.EnableDatabase("database", pg), w.DatabaseRole("database", "app", 6*time.Second, 20*time.Second))
			put(t, w, "secret/data/static", map[string]any{"data": map[string]any{"a": "b"}})
			w.start(t)
			before := w.tokens(t)
			w.node.AddClass(t, "db", "vault", map[string]string{"roleName": "app", "objects": credsClass})
			v := w.volume(t, "web", "db")
			w.publish(t, v)
			u := logInForever(t, pg, w.node.Layout, v)
			time.Sleep(15 * time.Second)
			w.node.Kill()
			w.again(t)
			time.Sleep(5 * time.Second) // and no token from kubelet
			must(t, w.Stop())
			time.Sleep(time.Second)
			must(t, w.Server.Start(t.Context()))
			w.node.Kill()
			w.again(t)
			time.Sleep(10 * time.Second)
			w.publish(t, v)
			time.Sleep(20 * time.Second)
			u.end(t)
			if len(u.names) < 3 {
				t.Errorf("in 50 s there were %d users, each for 20 s at most", len(u.names))
			}
			if n := w.asked(t, "update sys/leases/renew"); n < 3 {
				t.Errorf("leases were renewed %d times", n)
			}
			must(t, w.node.Unpublish(harness.Timeout(t), v))
			gone := time.Now()
			harness.Eventually(t, "no user of the volume is left", func() bool {
				roles, err := pg.Roles(t.Context())
				return err == nil && len(roles) == 0
			})
			t.Logf("the last user was gone %v after the volume", time.Since(gone).Round(time.Millisecond))
			// What is static was read with a token that the identity shares, another for
			// each of the three drivers.
			harness.Eventually(t, "no lease of the volume is left, and no token but those of what is static", func() bool {
				leases, err := w.Leases("database/creds/")
				return err == nil && len(leases) == 0 && w.tokens(t) <= before+3
			})
			w.noneContains(t, nil, w.Token)
		})
	}
}

// A volume that went while the driver was away, or while Vault was, is given back
// later.
func TestLeasesAreGivenBackHoweverThePodWent(t *testing.T) {
	w, pg := newWorld(t), postgres.New(t, postgres.Options{})
	must(t, w.Policy("app", readAll), w.EnableKV2("secret"), w.EnableDatabase("database", pg), w.DatabaseRole("database", "app", time.Hour, 24*time.Hour))
	put(t, w, "secret/data/static", map[string]any{"data": map[string]any{"a": "b"}})
	w.start(t)
	w.node.AddClass(t, "db", "vault", map[string]string{"roleName": "app", "objects": credsClass})
	roles := func() int {
		all, err := pg.Roles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	web, other := w.volume(t, "web", "db"), w.volume(t, "other", "db")
	w.publish(t, web)
	w.publish(t, other)
	if n := roles(); n != 2 {
		t.Fatalf("two pods have %d users", n)
	}
	// Vault is away when a pod goes: kubelet does not wait, nor does another driver
	// forget.
	must(t, w.Stop())
	must(t, w.node.Unpublish(harness.Timeout(t), web))
	w.node.Kill()
	w.again(t)
	must(t, w.Start(t.Context()))
	harness.Eventually(t, "the user of the pod that went is gone", func() bool { return roles() == 1 })

	// A publish that fails in part leaves no user.
	w.node.AddClass(t, "half", "vault", map[string]string{"roleName": "app", "objects": credsClass + "- {objectName: x, secretPath: secret/data/absent, secretKey: x}\n"})
	err := w.node.Publish(harness.Timeout(t), w.volume(t, "half", "half"))
	if err == nil || !strings.Contains(err.Error(), `object "x"`) {
		t.Fatalf("got %v", err)
	}
	harness.Eventually(t, "the user of the failed publish is gone", func() bool { return roles() == 1 })
	must(t, w.node.Unpublish(harness.Timeout(t), other))
	harness.Eventually(t, "no user is left", func() bool { return roles() == 0 })
}

// Whenever the driver is killed, the volume keeps a password that is good, and no
// user is left of it.
func TestADriverThatIsKilledAllTheTimeLosesAndLeaksNothing(t *testing.T) {
	t.Parallel()
	w, pg := newWorld(t), postgres.New(t, postgres.Options{})
	must(t, w.Policy("app", readAll), w.EnableKV2("secret"), w.EnableDatabase("database", pg), w.DatabaseRole("database", "app", 8*time.Second, 12*time.Second))
	put(t, w, "secret/data/static", map[string]any{"data": map[string]any{"a": "b"}})
	w.start(t)
	// Without overlap, old users are revoked as soon as can be: more to get wrong.
	w.node.AddClass(t, "db", "vault", map[string]string{"roleName": "app", "objects": credsClass, "derivedFiles": credsURL, "leaseOverlap": "0s"})
	v := w.volume(t, "web", "db")
	w.publish(t, v)
	u := logInForever(t, pg, w.node.Layout, v)
	for i := range harness.Number(t, "CSI_SECRETS_KILLS", 30) {
		time.Sleep(rand.N(2 * time.Second))
		w.node.Kill()
		w.again(t)
		if i%3 == 0 {
			w.publish(t, v) // as kubelet does every now and then
		}
	}
	u.end(t)
	must(t, w.node.Unpublish(harness.Timeout(t), v))
	harness.Eventually(t, "no user of the volume is left", func() bool {
		roles, err := pg.Roles(t.Context())
		return err == nil && len(roles) == 0
	})
	leases, err := w.Leases("database/creds/")
	if err != nil || len(leases) > 0 {
		t.Errorf("left are the leases %q, %v", leases, err)
	}
}

// Certificate and key are always of one pair, and replaced before two thirds of
// their life.
func TestACertificateIsReplacedInTimeWithItsKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	must(t, w.Policy("app", readAll), w.EnablePKI("pki", "web"))
	w.start(t)
	w.node.AddClass(t, "tls", "vault", map[string]string{"roleName": "app", "objects": `
- {objectName: tls.crt, secretPath: pki/issue/web, method: PUT, secretKey: certificate, secretArgs: {common_name: a.example.com, ttl: 30s}}
- {objectName: tls.key, secretPath: pki/issue/web, method: PUT, secretKey: private_key, secretArgs: {common_name: a.example.com, ttl: 30s}}
- {objectName: chain, secretPath: pki/issue/web, method: PUT, secretKey: ca_chain, secretArgs: {common_name: a.example.com, ttl: 30s}}
`})
	v := w.volume(t, "web", "tls")
	w.publish(t, v)
	seen := map[string]bool{}
	for end := time.Now().Add(45 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		looked := time.Now()
		files := w.files(t, v)
		pair, err := tls.X509KeyPair([]byte(files["tls.crt"]), []byte(files["tls.key"]))
		if err != nil {
			t.Fatal(err)
		}
		seen[files["tls.crt"]] = true
		// Vault makes it valid half a minute before now.
		if left := pair.Leaf.NotAfter.Sub(looked); left < 7500*time.Millisecond {
			t.Fatalf("a certificate for 30 s has %v left", left)
		}
	}
	if len(seen) < 3 || len(seen) > 4 {
		t.Errorf("45 s took %d certificates", len(seen))
	}
}

func TestWhatVaultRefusesIsExplained(t *testing.T) {
	w := newWorld(t)
	must(t, w.Policy("app", `path "secret/data/app" { capabilities = ["read"] }`), w.EnableKV2("secret"), w.EnableKV1("kv1"))
	put(t, w, "secret/data/app", map[string]any{"data": map[string]any{"a": "canary-value"}})
	put(t, w, "secret/data/other", map[string]any{"data": map[string]any{"a": "canary-value"}})
	must(t, w.KubernetesRole("kubernetes", "elsewhere", roleOf("other", "other")), w.JWTRole("jwt", "strict", roleOf("other", "other")))
	w.start(t)
	object := "- {objectName: a, secretPath: secret/data/app, secretKey: a}"
	class := func(more ...string) map[string]string {
		p := map[string]string{"roleName": "app", "objects": object}
		for i := 0; i < len(more); i += 2 {
			p[more[i]] = more[i+1]
		}
		return p
	}
	for name, tc := range map[string]struct {
		parameters map[string]string
		audiences  []string
		says       []string
	}{
		"denied":             {class("objects", "- {objectName: a, secretPath: secret/data/other, secretKey: a}"), nil, []string{`object "a"`, "read secret/data/other", "permission denied", `capability read on "secret/data/other"`, "PermissionDenied"}},
		"absent":             {class("objects", "- {objectName: a, secretPath: secret/data/app2, secretKey: a}"), nil, []string{`object "a"`, "capability"}},
		"an absent key":      {class("objects", "- {objectName: a, secretPath: secret/data/app, secretKey: b}"), nil, []string{`{secret/data/app}: {key "b" does not exist at the secret path}`, "there are a"}},
		"an absent version":  {class("objects", `- {objectName: a, secretPath: "secret/data/app?version=9", secretKey: a}`), nil, []string{"there is nothing at this path"}},
		"the path of KV 1":   {class("objects", "- {objectName: a, secretPath: secret/app, secretKey: a}"), nil, []string{`object "a"`, "secret/app"}},
		"another's role":     {class("roleName", "elsewhere"), nil, []string{`as role "elsewhere"`, "not authorized", `subject "system:serviceaccount:default:default"`}},
		"an absent role":     {class("roleName", "nobody"), nil, []string{`invalid role name "nobody"`, "does the role exist"}},
		"another audience":   {class("audience", "other"), []string{"other"}, []string{"log in to", `audience "other"`, "403"}},
		"no such audience":   {class("audience", "other"), nil, []string{`no token of the pod for the audience "other"`, `those that there are have the audiences "vault"`}},
		"an absent mount":    {class("vaultAuthMountPath", "k8s"), nil, []string{"at auth/k8s", "403"}},
		"jwt, another's":     {class("vaultAuthMountPath", "jwt", "roleName", "strict"), nil, []string{"at auth/jwt", "subject"}},
		"a CA that is none":  {class("vaultCAPem", "nonsense"), nil, []string{"no PEM certificate"}},
		"another CA":         {class("vaultCACertPath", "/etc/ssl/certs/ca-certificates.crt"), nil, []string{"certificate signed by unknown authority", "vaultCAPem"}},
		"an absent CA":       {class("vaultCACertPath", "/nowhere/ca.crt"), nil, []string{"/nowhere/ca.crt"}},
		"another name":       {class("vaultTLSServerName", "vault.example.com"), nil, []string{"vault.example.com", "vaultTLSServerName"}},
		"nobody listens":     {class("vaultAddress", "https://127.0.0.1:1"), nil, []string{"https://127.0.0.1:1 does not answer", "connection refused", "Unavailable"}},
		"both mounts":        {class("vaultAuthMountPath", "a", "vaultKubernetesMountPath", "b"), nil, []string{"cannot set both vaultKubernetesMountPath and vaultAuthMountPath"}},
		"a method to delete": {class("objects", "- {objectName: a, secretPath: secret/data/app, method: DELETE}"), nil, []string{`"DELETE" is none of GET, PUT, POST, LIST`}},
	} {
		name := strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(name)
		t.Run(name, func(t *testing.T) {
			w.node.AddClass(t, strings.ToLower(name), "vault", tc.parameters)
			v := w.volume(t, strings.ToLower(name), strings.ToLower(name), tc.audiences...)
			var err error
			harness.Eventually(t, "the class is there", func() bool {
				err = w.node.Publish(harness.Timeout(t), v)
				return err == nil || !strings.Contains(err.Error(), "no SecretProviderClass")
			})
			if err == nil {
				t.Fatal("it was mounted")
			}
			for _, words := range tc.says {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%v\ndoes not say %q", err, words)
				}
			}
			w.noneContains(t, err, "canary-value", w.Token, jwtOf(v))
		})
	}
	w.node.AddClass(t, "good", "vault", class())
	w.node.AddClass(t, "by-jwt", "vault", class("vaultAuthMountPath", "jwt"))
	err := w.node.Publish(harness.Timeout(t), w.volumeFor(t, "expired", "by-jwt", -time.Minute, "vault"))
	if err == nil || !strings.Contains(err.Error(), "token is expired") || !strings.Contains(err.Error(), "valid until") {
		t.Errorf("a token that is over: %v", err)
	}
	must(t, w.Seal())
	err = w.node.Publish(harness.Timeout(t), w.volume(t, "sealed", "good"))
	if err == nil || !strings.Contains(err.Error(), "sealed") || !strings.Contains(err.Error(), "Unavailable") || !strings.Contains(err.Error(), "unseal it") {
		t.Errorf("sealed: %v", err)
	}
	must(t, w.Unseal())
	w.publish(t, w.volume(t, "sealed", "good"))
}
