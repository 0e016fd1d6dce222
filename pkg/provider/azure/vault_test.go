package azure

import (
	"context"
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/log"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	azuretest "github.com/csi-secrets/csi-secrets/test/azure"
)

// certificate puts a family's PFX or PEM into the vault, from leaf to root in an
// order that nobody wants, and returns what it put there.
func (w *world) certificate(f family, name, form string) string {
	value := inPEM(f.root, f.leaf) + f.keyPEM(w.t)
	if form == pfxForm {
		value = f.pfx(w.t, pkcs12.LegacyDES, f.root, f.leaf, f.intermediate)
	}
	key := newEC(w.t, elliptic.P256()) // in a test only the secret's key is of interest
	point, err := key.PublicKey.Bytes()
	if err != nil {
		w.t.Fatal(err)
	}
	w.vault.SetCertificate(name, f.leaf.Raw, form, value, &azkeys.JSONWebKey{Kty: to.Ptr(azkeys.KeyTypeEC), Crv: to.Ptr(azkeys.CurveNameP256), X: point[1:33], Y: point[33:]})
	return value
}

// lines are files with their contents, for a comparison.
func lines(files map[string]string) string {
	var all []string
	for _, path := range slices.Sorted(maps.Keys(files)) {
		all = append(all, fmt.Sprintf("%s 0644 %q\n", path, files[path]))
	}
	return strings.Join(all, "")
}

// Classes of Microsoft's documentation, as they are; certs.yaml is mounted below.
func TestDocumentedClassesMount(t *testing.T) {
	w := newWorld(t)
	w.vault = w.Vault("kvname")
	w.vault.GrantAll(w.client)
	w.vault.SetSecret("secret1", "one")
	var secrets, keys []string
	var pems []string
	for i := range 8 {
		secrets = append(secrets, w.vault.SetSecret("s", fmt.Sprint("value ", i)))
		key := newRSA(t)
		keys, pems = append(keys, w.vault.SetRSA("k", azkeys.KeyTypeRSA, &key.PublicKey)), append(pems, family{key: key}.publicPEM(t))
	}
	key1 := newRSA(t)
	w.vault.SetRSA("key1", azkeys.KeyTypeRSA, &key1.PublicKey)
	history := ""
	for i := range 6 { // one more than the class says, as with Microsoft's provider
		history += fmt.Sprintf("k/%d 0644 %q\n", i, pems[6-i])
	}
	for i := range 6 {
		history += fmt.Sprintf("secretalias/%d 0644 %q\n", i, fmt.Sprint("value ", 7-i))
	}
	for file, want := range map[string]string{
		"usage": fmt.Sprintf("SECRET_1 0755 \"one\"\nkey1 0644 %q\n", family{key: key1}.publicPEM(t)),
		"sync":  history,
	} {
		req := w.request(webAccount, "")
		maps.Copy(req.Parameters, parameters(t, "testdata/"+file+".yaml", `"tid"`, azuretest.Tenant, `"client_id"`, w.client,
			"$KEYVAULT_NAME", "kvname", "$SECRET_NAME", "s", "$SECRET_VERSION", secrets[7], "$KEY_NAME", "k", "$KEY_VERSION", keys[6]))
		r, err := w.provider(Config{}).Fetch(t.Context(), req)
		if must(t, r, err); shown(r) != want {
			t.Errorf("%s: got\n%s\nwant\n%s", file, shown(r), want)
		}
	}
}

func TestTheThreeShapesOfACertificate(t *testing.T) {
	w := newWorld(t)
	w.vault = w.Vault("kvname")
	w.vault.GrantAll(w.client)
	f := newFamily(t, newRSA(t))
	w.vault.SetCertificate("cert1", f.leaf.Raw, pfxForm, f.pfx(t, pkcs12.LegacyDES, f.root, f.leaf, f.intermediate),
		&azkeys.JSONWebKey{Kty: to.Ptr(azkeys.KeyTypeRSA), N: newRSA(t).N.Bytes(), E: []byte{1, 0, 1}})
	public := newRSA(t)
	w.vault.SetRSA("cert1", azkeys.KeyTypeRSA, &public.PublicKey)
	pfxText := w.certificate(f, "cert2-pfx", pfxForm)
	binary, err := base64.StdEncoding.DecodeString(pfxText)
	if err != nil {
		t.Fatal(err)
	}
	req := w.request(webAccount, "")
	maps.Copy(req.Parameters, parameters(t, "testdata/certs.yaml", `"tid"`, azuretest.Tenant))
	want := map[string]string{
		"cert1": inPEM(f.leaf), "cert1-pub-key": family{key: public}.publicPEM(t), "cert1-secret": f.keyPEM(t) + inPEM(f.leaf, f.intermediate, f.root),
		"cert2-secret-pfx": pfxText, "cert2-secret-pfx-binary": string(binary),
	}
	r, err := w.provider(Config{ConstructPEMChain: true}).Fetch(t.Context(), req)
	if must(t, r, err); shown(r) != lines(want) {
		t.Errorf("got\n%s\nwant\n%s", shown(r), lines(want))
	}
	w.wantCalls("get 4, login 1") // the PFX, which two files need, once

	// In the order of the PFX, and certificates and keys in files of their own too.
	want["cert1-secret"] = f.keyPEM(t) + inPEM(f.root, f.leaf, f.intermediate)
	want["cert1-secret.crt"], want["cert1-secret.key"] = inPEM(f.root, f.leaf, f.intermediate), f.keyPEM(t)
	for _, name := range []string{"cert2-secret-pfx", "cert2-secret-pfx-binary"} {
		want[name+".crt"], want[name+".key"] = "", "" // as Microsoft's provider has it
	}
	r, err = w.provider(Config{SeparateFiles: true}).Fetch(t.Context(), req)
	if must(t, r, err); shown(r) != lines(want) {
		t.Errorf("got\n%s\nwant\n%s", shown(r), lines(want))
	}
}

func TestTheSecretOfACertificateInPEMIsLeftAsItIs(t *testing.T) {
	w := newWorld(t)
	f := newFamily(t, newEC(t, elliptic.P256()))
	text := w.certificate(f, "a", pemForm)
	r, err := w.provider(Config{ConstructPEMChain: true, SeparateFiles: true}).Fetch(t.Context(), w.request(webAccount, oneSecret))
	want := map[string]string{"a": text, "a.crt": inPEM(f.root, f.leaf), "a.key": f.keyPEM(t)}
	if must(t, r, err); shown(r) != lines(want) {
		t.Errorf("got\n%s\nwant\n%s", shown(r), lines(want))
	}
	w.certificate(f, "a", "application/x-unknown")
	_, err = w.provider(Config{}).Fetch(t.Context(), w.request(webAccount, oneSecret))
	w.wantError(err, provider.Invalid, `secret "a"`, "neither PEM nor PKCS#12")
}

func TestHistories(t *testing.T) {
	w := newWorld(t)
	var ids []string
	for i := range 40 { // more than a page
		ids = append(ids, w.vault.SetSecret("a", fmt.Sprint("value ", i)))
	}
	w.vault.Disable(azuretest.Secrets, "a", ids[38])
	for i := range 2 {
		key := newRSA(t)
		w.vault.SetRSA("k", azkeys.KeyTypeRSA, &key.PublicKey)
		w.vault.SetSecret("few", fmt.Sprint("few ", i))
	}
	p := w.provider(Config{})
	for name, tc := range map[string]struct{ objects, files, versions string }{
		// The provider of Microsoft brings one more than the class says.
		"the newest": {"- {objectName: a, objectType: secret, objectAlias: f, objectVersionHistory: 2}",
			"f/0 0644 \"value 39\"\nf/1 0644 \"value 37\"\nf/2 0644 \"value 36\"\n", fmt.Sprintf("secret/a/0=%s\nsecret/a/1=%s\nsecret/a/2=%s\n", ids[39], ids[37], ids[36])},
		"from a version on": {"- {objectName: a, objectType: secret, objectVersionHistory: 2, objectVersion: " + ids[5] + "}",
			"a/0 0644 \"value 5\"\na/1 0644 \"value 4\"\na/2 0644 \"value 3\"\n", fmt.Sprintf("secret/a/0=%s\nsecret/a/1=%s\nsecret/a/2=%s\n", ids[5], ids[4], ids[3])},
		"fewer than asked for": {"- {objectName: few, objectType: secret, objectVersion: latest, objectVersionHistory: 5}",
			"few/0 0644 \"few 1\"\nfew/1 0644 \"few 0\"\n", ""},
		"of one it is no folder": {"- {objectName: few, objectType: secret, objectVersionHistory: 1}", "few 0644 \"few 1\"\n", ""},
	} {
		r, err := p.Fetch(t.Context(), w.request(webAccount, tc.objects))
		if must(t, r, err); shown(r) != tc.files || tc.versions != "" && versionsOf(r) != tc.versions {
			t.Errorf("%s: got\n%s%s", name, shown(r), versionsOf(r))
		}
	}
	r, err := p.Fetch(t.Context(), w.request(webAccount, "- {objectName: k, objectType: key, objectVersionHistory: 3}"))
	if must(t, r, err); len(r.Files) != 2 || r.Files[0].Path != "k/0" {
		t.Errorf("got %s", shown(r))
	}
	for name, objects := range map[string]string{
		"no such version": "- {objectName: a, objectType: secret, objectVersionHistory: 2, objectVersion: none}",
		"no such object":  "- {objectName: none, objectType: secret, objectVersionHistory: 2}",
	} {
		_, err := p.Fetch(t.Context(), w.request(webAccount, objects))
		w.wantError(err, provider.NotFound, "has none that is enabled")
		r, err := p.Fetch(t.Context(), w.request(webAccount, strings.Replace(objects, "}", ", optional: true}", 1)))
		if must(t, r, err); len(r.Files) != 0 {
			t.Errorf("%s: got %s", name, shown(r))
		}
	}

	// A new version moves the others on: it alone is read.
	var v volume
	req := w.request(webAccount, "- {objectName: a, objectType: secret, objectAlias: f, objectVersionHistory: 3}")
	r, err = v.mount(p, req)
	must(t, r, err)
	w.Calls()
	r, err = v.mount(p, req)
	if must(t, r, err); !r.NotModified {
		t.Error("nothing has changed")
	}
	w.wantCalls("versions 2")
	w.vault.SetSecret("a", "newer")
	r, err = v.mount(p, req)
	if must(t, r, err); shown(r) != "f/0 0644 \"newer\"\nf/1 0644 \"value 39\"\nf/2 0644 \"value 37\"\nf/3 0644 \"value 36\"\n" {
		t.Errorf("got\n%s", shown(r))
	}
	w.wantCalls("get 1, versions 2")
}

func TestTheNewestVersionOfATimePast(t *testing.T) {
	w := newWorld(t)
	day := func(n int) time.Time { return time.Date(2026, time.June, n, 12, 0, 0, 0, time.UTC) }
	var ids []string
	for i := range 4 {
		ids = append(ids, w.vault.SetSecretAt(day(i+1), "a", fmt.Sprint("of the day ", i+1)))
	}
	w.vault.Disable(azuretest.Secrets, "a", ids[1])
	p := w.provider(Config{})
	var v volume
	req := w.request(webAccount, "- {objectName: a, objectType: secret, objectNotAfter: 2026-06-03T12:00Z}\n- {objectName: a, objectType: secret, objectAlias: f, objectVersionHistory: 2, objectNotAfter: 2026-06-04}")
	r, err := v.mount(p, req)
	if must(t, r, err); shown(r) != "a 0644 \"of the day 3\"\nf/0 0644 \"of the day 3\"\nf/1 0644 \"of the day 1\"\n" {
		t.Errorf("got\n%s", shown(r))
	}
	w.wantCalls("get 2, login 1, versions 2")
	w.vault.SetSecret("a", "of now")
	r, err = v.mount(p, req)
	if must(t, r, err); !r.NotModified {
		t.Error("what came later has changed it")
	}
	w.wantCalls("versions 2")
	_, err = p.Fetch(t.Context(), w.request(webAccount, "- {objectName: a, objectType: secret, objectNotAfter: 2025-01-01}"))
	w.wantError(err, provider.NotFound, `secret "a"`, "none that is enabled and fits")
}

// listed is a class of so many secrets.
func (w *world) listed(count int) string {
	var b strings.Builder
	for i := range count {
		name := fmt.Sprintf("s%d", i)
		w.vault.SetSecret(name, canary)
		fmt.Fprintf(&b, "- {objectName: %s, objectType: secret}\n", name)
	}
	return b.String()
}

func TestCallsOfMountsAndRefreshes(t *testing.T) {
	for _, count := range []int{1, 20, 200} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			w := newWorld(t)
			p, req := w.provider(Config{}), w.request(webAccount, w.listed(count))
			var v volume
			r, err := v.mount(p, req)
			must(t, r, err)
			w.wantCalls(fmt.Sprintf("get %d, login 1", count))
			r, err = v.mount(p, req)
			if must(t, r, err); !r.NotModified {
				t.Error("nothing has changed")
			}
			w.wantCalls(fmt.Sprintf("versions %d", count))
			w.vault.SetSecret("s0", "newer")
			r, err = v.mount(p, req)
			if must(t, r, err); len(r.Files) != count || len(r.Versions) != count || v.files["s0"] != "newer" || count > 1 && v.files["s1"] != canary {
				t.Errorf("got %d files, %d versions", len(r.Files), len(r.Versions))
			}
			w.wantCalls(fmt.Sprintf("get 1, versions %d", count))
			delete(v.files, "s0") // somebody took it
			w.vault.SetSecret(fmt.Sprintf("s%d", count-1), "newer")
			r, err = v.mount(p, req)
			if must(t, r, err); v.files["s0"] != "newer" {
				t.Error("a file that is missing was not read again")
			}
			w.wantCalls(fmt.Sprintf("get %d, versions %d", min(count, 2), count))
		})
	}
}

func TestRefreshesOfWhatIsPublicOrNamesItsVersion(t *testing.T) {
	w := newWorld(t)
	first := w.vault.SetSecret("a", "old")
	w.vault.SetSecret("a", "new")
	key := newRSA(t)
	w.vault.SetRSA("k", azkeys.KeyTypeRSA, &key.PublicKey)
	w.certificate(newFamily(t, newEC(t, elliptic.P256())), "c", pemForm)
	p := w.provider(Config{})
	var v volume
	req := w.request(webAccount, `
- {objectName: a, objectType: secret, objectVersion: `+first+`}
- {objectName: k, objectType: key}
- {objectName: c, objectType: cert}
- {objectName: none, objectType: secret, optional: true}
`)
	r, err := v.mount(p, req)
	must(t, r, err)
	w.wantCalls("get 4, login 1")
	r, err = v.mount(p, req)
	if must(t, r, err); !r.NotModified {
		t.Error("nothing has changed")
	}
	w.wantCalls("get 3")
	w.vault.SetRSA("k", azkeys.KeyTypeRSA, &newRSA(t).PublicKey)
	r, err = v.mount(p, req)
	if must(t, r, err); len(r.Files) != 3 || v.files["a"] != "old" || v.files["k"] == (family{key: key}).publicPEM(t) {
		t.Errorf("got %s", shown(r))
	}
	w.wantCalls("get 3")
	w.vault.SetSecret("none", "is there now")
	r, err = v.mount(p, req)
	if must(t, r, err); v.files["none"] != "is there now" {
		t.Errorf("got %s", shown(r))
	}
	w.Calls()

	// All that names its version costs nothing, and another class is read anew.
	req.Parameters[objectsKey] = "- {objectName: a, objectType: secret, objectVersion: " + first + "}"
	v = volume{}
	r, err = v.mount(p, req)
	must(t, r, err)
	r, err = v.mount(p, req)
	if must(t, r, err); !r.NotModified {
		t.Error("nothing has changed")
	}
	w.wantCalls("get 1")
}

// A volume with the same object in two versions must not take one for the other.
func TestTwoVersionsOfOneObject(t *testing.T) {
	w := newWorld(t)
	first := w.vault.SetSecret("a", "old")
	w.vault.SetSecret("a", "new")
	p := w.provider(Config{})
	var v volume
	req := w.request(webAccount, oneSecret+"\n- {objectName: a, objectType: secret, objectAlias: old, objectVersion: "+first+"}\n- {objectName: a, objectType: secret, objectAlias: b}")
	for range 3 {
		r, err := v.mount(p, req)
		must(t, r, err)
		w.vault.SetSecret("a", "newer")
	}
	if v.files["a"] != "newer" || v.files["b"] != "newer" || v.files["old"] != "old" {
		t.Errorf("got %v", v.files)
	}
}

func TestWhereTheListOfVersionsDoesNotTell(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare      func(*world)
		first, later string // the calls of refreshes
		kind         provider.Kind
	}{
		"without the right to list": {func(w *world) { w.vault.Revoke(w.client, azuretest.Secrets, "list") }, "get 3, versions 1", "get 3", 0},
		"a long history": {func(w *world) {
			for range azuretest.PageSize {
				w.vault.SetSecret("s0", canary)
			}
		}, "get 1, versions 3", "get 1, versions 2", 0},
		"two versions of one second": {func(w *world) {
			at := time.Now()
			w.vault.SetSecretAt(at, "s0", canary)
			w.vault.SetSecretAt(at, "s0", canary)
		}, "get 1, versions 3", "get 1, versions 3", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p, req := w.provider(Config{}), w.request(webAccount, w.listed(3))
			var v volume
			tc.prepare(w)
			r, err := v.mount(p, req)
			must(t, r, err)
			w.Calls()
			for _, calls := range []string{tc.first, tc.later} {
				r, err := v.mount(p, req)
				if must(t, r, err); !r.NotModified {
					t.Error("nothing has changed")
				}
				w.wantCalls(calls)
			}
		})
	}
	// The newest version, disabled, is an error as ever it was.
	w := newWorld(t)
	p, req := w.provider(Config{}), w.request(webAccount, w.listed(1))
	var v volume
	r, err := v.mount(p, req)
	must(t, r, err)
	w.vault.Disable(azuretest.Secrets, "s0", v.mounted[0].Version)
	_, err = v.mount(p, req)
	w.wantError(err, provider.Denied, `secret "s0"`, "SecretDisabled", "enable that version")
}

func TestAnIDOfTwoVersionsTellsNoVersion(t *testing.T) {
	f := &fetch{req: provider.Request{Mounted: []provider.ObjectVersion{{ID: "secret/a", Version: "1"}, {ID: "secret/a", Version: "2"}, {ID: "secret/b", Version: "3"}}}}
	if got := f.mounted("secret/b"); got != "" {
		t.Errorf("on a first publish it tells %q", got)
	}
	f.req.Current = func(string) (secret.Value, bool) { return secret.Value{}, false }
	if got := f.mounted("secret/a") + f.mounted("secret/b") + f.mounted("secret/c"); got != "3" {
		t.Errorf("got %q", got)
	}
}

func TestAnOptionalObjectThatGoes(t *testing.T) {
	w := newWorld(t)
	pinned := w.vault.SetSecret("gone", canary)
	p, req := w.provider(Config{}), w.request(webAccount, w.listed(1)+"- {objectName: gone, objectType: secret, optional: true, objectVersion: "+pinned+"}")
	var v volume
	r, err := v.mount(p, req)
	must(t, r, err)
	delete(v.files, "gone")
	w.vault.Delete(azuretest.Secrets, "gone")
	w.vault.SetSecret("s0", "newer")
	r, err = v.mount(p, req)
	if must(t, r, err); len(r.Files) != 1 || len(r.Versions) != 1 {
		t.Errorf("got %s%s", shown(r), versionsOf(r))
	}
}

func TestAnswersAreBounded(t *testing.T) {
	w := newWorld(t)
	w.vault.SetSecret("a", strings.Repeat("x", maxAnswerBytes))
	_, err := w.provider(Config{}).Fetch(t.Context(), w.request(webAccount, oneSecret))
	w.wantError(err, provider.TooLarge, `secret "a"`, "more than 4194304 bytes")
}

func TestErrorsSayWhatAndWhy(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(*world, *provider.Request)
		kind    provider.Kind
		code    string
		says    []string
		calls   int // of the vault; 0 for one
	}{
		"not there": {func(w *world, _ *provider.Request) { w.vault.Delete(azuretest.Secrets, "s0") }, provider.NotFound, "SecretNotFound", []string{`secret "s0": read it`, "recover it if it was deleted"}, 0},
		"no such version": {func(_ *world, r *provider.Request) {
			r.Parameters[objectsKey] = "- {objectName: s0, objectType: secret, objectVersion: abc}"
		}, provider.NotFound, "SecretNotFound", nil, 0},
		"no such key":            {func(_ *world, r *provider.Request) { r.Parameters[objectsKey] = "- {objectName: s0, objectType: key}" }, provider.NotFound, "KeyNotFound", []string{`key "s0"`}, 0},
		"no such cert":           {func(_ *world, r *provider.Request) { r.Parameters[objectsKey] = "- {objectName: s0, objectType: cert}" }, provider.NotFound, "CertificateNotFound", []string{`certificate "s0"`}, 0},
		"no right":               {func(w *world, _ *provider.Request) { w.vault.Revoke(w.client, azuretest.Secrets, "get") }, provider.Denied, "ForbiddenByPolicy", []string{`the vault "kv1" answers 403`, "to the application ", "Key Vault Secrets User"}, 0},
		"a role is missing":      {func(w *world, _ *provider.Request) { w.vault.Close("ForbiddenByRbac") }, provider.Denied, "ForbiddenByRbac", []string{"Key Vault Secrets User"}, 0},
		"a firewall":             {func(w *world, _ *provider.Request) { w.vault.Close("ForbiddenByFirewall") }, provider.Denied, "ForbiddenByFirewall", []string{"the vault's firewall"}, 0},
		"private only":           {func(w *world, _ *provider.Request) { w.vault.Close("ForbiddenByConnection") }, provider.Denied, "ForbiddenByConnection", []string{"private endpoints"}, 0},
		"throttled":              {func(w *world, _ *provider.Request) { w.Fail(1, 429, "") }, provider.Throttled, "Throttled", []string{"429"}, 0},
		"throttled, with a time": {func(w *world, _ *provider.Request) { w.Fail(1, 429, "17") }, provider.Throttled, "Throttled", []string{"429"}, 0},
		"down":                   {func(w *world, _ *provider.Request) { w.Fail(9, 503, "") }, provider.Unavailable, "Throttled", []string{"503"}, 2},
		"down for a time":        {func(w *world, _ *provider.Request) { w.Fail(9, 503, "60") }, provider.Unavailable, "Throttled", []string{"503"}, 0},
		"an answer that ends":    {func(w *world, _ *provider.Request) { w.Fail(9, 0, "") }, provider.Unavailable, "", []string{`the vault "kv1" cannot be reached`}, 2},
		"an odd answer":          {func(w *world, _ *provider.Request) { w.Fail(9, 200, "") }, provider.Internal, "", []string{"holds nothing of it"}, 0},
		"a redirect":             {func(w *world, _ *provider.Request) { w.Fail(9, 302, "") }, provider.Internal, "Throttled", []string{"302"}, 0},
		"no such vault":          {func(_ *world, r *provider.Request) { r.Parameters[vaultKey] = "no-such" }, provider.Unavailable, "", []string{"404", "is it a key vault that answers?"}, -1},
		"a truncated TLS":        {func(w *world, _ *provider.Request) { w.net.Cut("kv1.vault.azure.net", 9) }, provider.Unavailable, "", []string{`the vault "kv1" cannot be reached`}, -1},
		"no such cloud here":     {func(w *world, r *provider.Request) { r.Parameters[cloudKey] = "AzureChinaCloud" }, provider.Unavailable, "", []string{"Microsoft Entra ID cannot be reached"}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			req := w.request(webAccount, w.listed(1))
			tc.prepare(w, &req)
			_, err := w.provider(Config{}).Fetch(t.Context(), req)
			w.wantError(err, tc.kind, tc.says...)
			var known *provider.Error
			if !errors.As(err, &known) || known.Code != tc.code || (known.RetryAfter > 0) != strings.Contains(name, "time") {
				t.Errorf("%v has the code %q and the wait %s", err, known.Code, known.RetryAfter)
			}
			if calls := w.Calls(); tc.calls >= 0 && calls[azuretest.Get] != max(tc.calls, 1) {
				t.Errorf("it was asked %d times", calls[azuretest.Get])
			}
		})
	}
}

func TestOneMoreTryAfterAFault(t *testing.T) {
	for name, fault := range map[string]func(*world){
		"of the server":     func(w *world) { w.Fail(1, 503, "") },
		"of the answer":     func(w *world) { w.Fail(1, 0, "") },
		"of the connection": func(w *world) { w.net.Cut("kv1.vault.azure.net", 1) },
	} {
		w := newWorld(t)
		req := w.request(webAccount, w.listed(1))
		fault(w)
		if _, err := w.provider(Config{}).Fetch(t.Context(), req); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAllThatIsMissingIsTold(t *testing.T) {
	w := newWorld(t)
	objects := w.listed(20)
	for i := range 12 {
		w.vault.Delete(azuretest.Secrets, fmt.Sprintf("s%d", i))
	}
	_, err := w.provider(Config{}).Fetch(t.Context(), w.request(webAccount, objects))
	w.wantError(err, provider.NotFound, `secret "s0"`, `secret "s7"`, "and 4 more")
}

func TestADeadlineIsKept(t *testing.T) {
	w := newWorld(t)
	req := w.request(webAccount, w.listed(3))
	w.Delay(time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := w.provider(Config{}).Fetch(ctx, req)
	w.wantError(err, provider.Unavailable, "does not answer in time")
}

func TestATokenThatIsNotAcceptedIsReplacedOnce(t *testing.T) {
	w := newWorld(t)
	p, req := w.provider(Config{}), w.request(webAccount, w.listed(1))
	fetch := func() error { _, err := p.Fetch(t.Context(), req); return err }
	if err := fetch(); err != nil {
		t.Fatal(err)
	}
	w.Calls()
	w.Revoke()
	if err := fetch(); err != nil {
		t.Fatal(err)
	}
	w.wantCalls("get 2, login 1")
	w.Expect(`{"access_token":{"nbf":{"essential":true,"value":"1700000000"}}}`)
	if err := fetch(); err != nil { // Continuous Access Evaluation
		t.Fatal(err)
	}
	w.wantCalls("get 2, login 1")
	w.Expect("{")
	w.wantError(fetch(), provider.Denied, "does not accept the token")
}

func TestAVaultOfAnotherTenant(t *testing.T) {
	w := newWorld(t)
	_, err := w.provider(Config{}).Fetch(t.Context(), w.request(webAccount, w.listed(1), tenantKey, azuretest.Elsewhere))
	w.wantError(err, provider.Denied, "it is of the tenant "+azuretest.Tenant, "correct tenantID")
	var known *provider.Error
	if !errors.As(err, &known) || known.Code != "AKV10032" {
		t.Errorf("got the code %q", known.Code)
	}
}

func TestTheTokenGoesToNoOtherHost(t *testing.T) {
	w := newWorld(t)
	w.listed(30)
	w.vault.LeadAstray()
	_, err := w.provider(Config{}).Fetch(t.Context(), w.request(webAccount, "- {objectType: secret, find: {prefix: s}}"))
	w.wantError(err, provider.Internal, "leads to another host")
	if refused := w.net.Refused(); len(refused) > 0 {
		t.Errorf("asked for were %s", refused)
	}
}

func TestFind(t *testing.T) {
	w := newWorld(t)
	for i := range 60 {
		name := fmt.Sprintf("prod-%02d", i)
		w.vault.SetSecret(name, "value of "+name)
		w.vault.Tag(azuretest.Secrets, name, map[string]string{"team": []string{"web", "data"}[i%2]})
	}
	w.vault.SetSecret("test-00", "")
	w.vault.Disable(azuretest.Secrets, "prod-06", w.vault.SetSecret("prod-06", ""))
	key := newRSA(t)
	w.vault.SetRSA("prod-key", azkeys.KeyTypeRSA, &key.PublicKey)
	f := newFamily(t, newEC(t, elliptic.P256()))
	w.certificate(f, "prod-cert", pemForm)
	p := w.provider(Config{})
	for name, tc := range map[string]struct{ objects, files string }{
		"a prefix, a pattern and tags": {`- {objectType: secret, objectAlias: db, filePermission: "0400", find: {prefix: prod-, pattern: ".*[0-9][02468]", tags: {team: web}, limit: 60, trimPrefix: true}}`, "29 db/00 0400"},
		"keys":                         {`- {objectType: key, find: {pattern: ".*-key"}}`, "1 prod-key 0644"},
		"certificates":                 {`- {objectType: cert, find: {prefix: prod}}`, "1 prod-cert 0644"},
		"histories":                    {`- {objectType: secret, objectVersionHistory: 2, find: {prefix: test-}}`, "1 test-00/0 0644"},
		"none, which may be":           {`- {objectType: secret, optional: true, find: {prefix: none}}`, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := p.Fetch(t.Context(), w.request(webAccount, tc.objects))
			must(t, r, err)
			got := fmt.Sprint(len(r.Files))
			if len(r.Files) > 0 {
				got += fmt.Sprintf(" %s %04o", r.Files[0].Path, r.Files[0].Mode)
			}
			if got != tc.files {
				t.Errorf("got %s, want %s\n%s", got, tc.files, shown(r))
			}
		})
	}
	for name, tc := range map[string]struct {
		objects string
		kind    provider.Kind
		says    string
	}{
		"none":              {`- {objectType: secret, find: {prefix: none}}`, provider.NotFound, `find prefix "none"`},
		"too many":          {`- {objectType: secret, find: {prefix: prod-, limit: 5}}`, provider.TooLarge, "more than 5"},
		"files of one name": {`- {objectType: secret, find: {prefix: test-}}` + "\n" + `- {objectType: secret, find: {pattern: test.*}}`, provider.Invalid, "two objects have the same file path"},
		"a name of nothing": {`- {objectType: secret, find: {prefix: test-00, trimPrefix: true}}`, provider.Invalid, "must not be empty"},
	} {
		_, err := p.Fetch(t.Context(), w.request(webAccount, tc.objects))
		w.wantError(err, tc.kind, tc.says)
		_ = name
	}
	w.vault.Revoke(w.client, azuretest.Secrets, "list")
	_, err := p.Fetch(t.Context(), w.request(webAccount, `- {objectType: secret, optional: true, find: {prefix: prod-}}`))
	w.wantError(err, provider.Denied, "list the secrets", "to find also list")

	// What was found is refreshed like what was named.
	w.vault.Grant(w.client, azuretest.Secrets, "list")
	var v volume
	req := w.request(webAccount, `- {objectType: secret, find: {prefix: test-}}`)
	r, err := v.mount(p, req)
	must(t, r, err)
	w.Calls()
	r, err = v.mount(p, req)
	if must(t, r, err); !r.NotModified {
		t.Error("nothing has changed")
	}
	w.wantCalls("list 3, versions 1")
	w.vault.SetSecret("test-01", "another")
	r, err = v.mount(p, req)
	if must(t, r, err); len(r.Files) != 2 {
		t.Errorf("got %s", shown(r))
	}
	w.wantCalls("get 1, list 3, versions 1")
}

func TestTheSDKsLogIsOff(t *testing.T) {
	log.SetListener(func(_ log.Event, text string) { t.Errorf("it says %q", text) })
	w := newWorld(t)
	req := w.request(webAccount, w.listed(1))
	w.Fail(1, 404, "")
	if _, err := w.provider(Config{}).Fetch(t.Context(), req); err == nil {
		t.Error("the test shows nothing")
	}
}

// BenchmarkMount measures a first mount of 20 secrets at 50 ms a call, with the
// login and all connections.
func BenchmarkMount(b *testing.B) {
	w := newWorld(b)
	objects := w.listed(20)
	w.Delay(50 * time.Millisecond)
	for b.Loop() {
		b.StopTimer()
		p, req := w.provider(Config{}), w.request(webAccount, objects)
		b.StartTimer()
		if _, err := p.Fetch(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/mount")
}
