package vault

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

func wantError(t *testing.T, err error, kind provider.Kind, words ...string) {
	t.Helper()
	if err == nil || provider.KindOf(err) != kind {
		t.Fatalf("got %v of kind %v, want %v", err, provider.KindOf(err), kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\ndoes not say %q", err, w)
		}
	}
	for _, hidden := range []string{canary, "signature-of", "hvs.token"} {
		if strings.Contains(err.Error(), hidden) {
			t.Errorf("%v shows %q", err, hidden)
		}
	}
}

func TestOneLoginServesTheVolumesOfAnIdentityAndNobodyElse(t *testing.T) {
	for name, tc := range map[string]struct {
		kubernetes bool
		logins     int
	}{
		"under the auth method kubernetes, that of a service account": {true, 2},
		"under any other, that of a pod":                              {false, 4},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			if !tc.kubernetes {
				s.metadata = map[string]string{"role": "app"}
			}
			s.text("GET secret/data/app", kv("x", 1))
			p := New(Vault, s.defaults())
			for _, who := range [][2]string{{"web", "web-1"}, {"web", "web-2"}, {"web", "web-2"}, {"admin", "admin-1"}, {"web", "web-3"}} {
				if _, _, err := s.volume(who[0], who[1], oneSecret).fetch(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			if len(s.logins) != tc.logins {
				t.Errorf("4 pods of 2 service accounts logged in %d times, want %d", len(s.logins), tc.logins)
			}
			for i, token := range []string{"hvs.token-1", fmt.Sprint("hvs.token-", len(s.logins))} {
				if s.count("GET secret/data/app "+token) == 0 {
					t.Errorf("login %d was never used", i)
				}
			}
		})
	}
}

// The first pod that logs in under a role which may know one pod only keeps what it
// has when another comes.
func TestAPodKeepsItsSessionWhenAnotherComes(t *testing.T) {
	s := newStandIn(t)
	s.text("GET secret/data/app", kv("x", 1))
	p := New(Vault, s.defaults())
	fetch := func(v *volume) {
		t.Helper()
		if _, _, err := v.fetch(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	fetch(s.volume("admin", "admin-1", oneSecret, "roleName", "admin")) // that shows that there is no lease
	s.metadata = map[string]string{"role": "app"}
	first, second := s.volume("web", "web-1", oneSecret), s.volume("web", "web-2", oneSecret)
	for _, v := range []*volume{first, second, first, second} {
		fetch(v)
	}
	if n := len(s.logins) - 1; n != 2 {
		t.Errorf("two pods logged in %d times", n)
	}
}

func TestManyVolumesAtOnceTakeOneLogin(t *testing.T) {
	s := newStandIn(t)
	s.text("GET secret/data/app", kv("x", 1))
	p := New(Vault, s.defaults())
	if _, _, err := s.volume("web", "web-0", oneSecret).fetch(t.Context(), p); err != nil { // learns the path
		t.Fatal(err)
	}
	s.text("GET secret/data/app", kv("x", 2))
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			if _, _, err := s.volume("other", fmt.Sprint("other-", i), oneSecret).fetch(t.Context(), p); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(s.logins) != 2 {
		t.Errorf("50 volumes of one identity logged in %d times", len(s.logins)-1)
	}
}

func TestATokenThatTheServerForgotIsReplacedOnce(t *testing.T) {
	for name, reasons := range map[string][]string{"as Vault says it": {"permission denied", "invalid token"}, "as OpenBao says it": {"permission denied"}} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			s.text("GET secret/data/app", kv("x", 1))
			p := New(Vault, s.defaults())
			v := s.volume("web", "web", oneSecret)
			if _, _, err := v.fetch(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			s.mu.Lock()
			clear(s.valid)
			s.mu.Unlock()
			if files, _, err := v.fetch(t.Context(), p); err != nil || files["a"] != "x" || len(s.logins) != 2 {
				t.Errorf("got %v, %v after %d logins", files, err, len(s.logins))
			}
			// What is denied to a good token takes no login.
			s.answer("GET secret/data/app", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 403, reasons[0]) })
			_, _, err := v.fetch(t.Context(), p)
			wantError(t, err, provider.Denied, `object "a"`, "permission denied", `capability read on "secret/data/app"`)
			if len(s.logins) != 2 {
				t.Errorf("a denied read took a login: %d", len(s.logins))
			}
		})
	}
}

func TestEveryStrangeAnswerHasItsError(t *testing.T) {
	type answer = func(http.ResponseWriter, *http.Request)
	text := func(body string) answer {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
	}
	status := func(code int, body string) answer {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	truncated := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"data":{"a":"`+canary)
	}
	for name, tc := range map[string]struct {
		read, login answer
		kind        provider.Kind
		says        []string
	}{
		"a page":               {text("<html>" + canary), nil, provider.Internal, []string{`object "a"`, "not the JSON of Vault"}},
		"an error page":        {status(500, "<html>"+canary), nil, provider.Unavailable, []string{"500"}},
		"a broken answer":      {text(`{"data":{"a":"` + canary), nil, provider.Internal, []string{"not the JSON"}},
		"a truncated answer":   {truncated, nil, provider.Unavailable, []string{"ended early"}},
		"nothing":              {status(204, ""), nil, provider.NotFound, []string{"empty"}},
		"no data":              {text(`{}`), nil, provider.NotFound, []string{`key "a" does not exist`}},
		"data that is a list":  {text(`{"data":["` + canary + `"]}`), nil, provider.NotFound, []string{`key "a" does not exist`}},
		"too much":             {text(`{"data":{"a":"` + strings.Repeat("x", maxAnswerBytes) + `"}}`), nil, provider.TooLarge, nil},
		"throttled":            {status(429, `{"errors":["request path \"x\" exceeded quota"]}`), nil, provider.Throttled, []string{"429"}},
		"sealed":               {status(503, `{"errors":["Vault is sealed"]}`), nil, provider.Unavailable, []string{"Vault is sealed", "unseal it"}},
		"a deleted version":    {status(404, `{"data":{"data":null,"metadata":{"version":3,"deletion_time":"2026-01-01T00:00:00Z","destroyed":false}}}`), nil, provider.NotFound, []string{"its version 3 was deleted"}},
		"a destroyed version":  {status(404, `{"data":{"data":null,"metadata":{"version":3,"deletion_time":"","destroyed":true}}}`), nil, provider.NotFound, []string{"its version 3 was destroyed"}},
		"a warning":            {status(404, `{"errors":[],"warnings":["Invalid path for a versioned K/V secrets engine"]}`), nil, provider.NotFound, []string{"Invalid path for a versioned K/V"}},
		"a login without auth": {nil, text(`{"data":null}`), provider.Internal, []string{"no token"}},
		"an empty login":       {nil, status(204, ""), provider.Internal, []string{"no token"}},
		"a login that echoes": {nil, func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			refuse(w, 400, "cannot parse "+string(b))
		}, provider.Denied, []string{"[redacted]"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			if tc.read != nil {
				s.answer("GET secret/data/app", tc.read)
			}
			if tc.login != nil {
				s.answer("PUT auth/kubernetes/login", tc.login)
			}
			_, _, err := s.volume("web", "web", oneSecret).fetch(t.Context(), New(Vault, s.defaults()))
			wantError(t, err, tc.kind, tc.says...)
			var known *provider.Error
			if tc.kind == provider.Throttled && (!errors.As(err, &known) || known.RetryAfter != 7*time.Second) {
				t.Errorf("the wait is %v", known.RetryAfter)
			}
		})
	}
}

func TestAServerThatHangsEndsWithTheDeadline(t *testing.T) {
	s := newStandIn(t)
	block := make(chan struct{})
	s.answer("GET secret/data/app", func(http.ResponseWriter, *http.Request) { <-block })
	defer close(block)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, _, err := s.volume("web", "web", oneSecret).fetch(ctx, New(Vault, s.defaults()))
	wantError(t, err, provider.Unavailable, `object "a"`, "does not answer in time")
}

func TestEachRequestIsMadeOnceAndAllAtTheSameTime(t *testing.T) {
	s := newStandIn(t)
	var objects strings.Builder
	var waiting sync.WaitGroup
	waiting.Add(20)
	for i := range 20 {
		fmt.Fprintf(&objects, "- {objectName: a%d, secretPath: secret/data/%d, secretKey: a}\n- {objectName: b%d, secretPath: secret/data/%d, secretKey: a}\n", i, i, i, i)
		s.answer(fmt.Sprint("GET secret/data/", i), func(w http.ResponseWriter, _ *http.Request) {
			waiting.Done()
			waiting.Wait() // none is answered before all are there
			_, _ = io.WriteString(w, kv("x", 1))
		})
	}
	files, _, err := s.volume("web", "web", objects.String()).fetch(t.Context(), New(Vault, s.defaults()))
	if err != nil || len(files) != 40 || s.count("GET secret/data/") != 20 {
		t.Errorf("%d files by %d requests, %v", len(files), s.count("GET secret/data/"), err)
	}
}

func TestAnAnswerIsTheSameBytesUntilItsDataChanges(t *testing.T) {
	s := newStandIn(t)
	p, v := New(Vault, s.defaults()), s.volume("web", "web", "- {objectName: whole, secretPath: kv/app}\n- {objectName: a, secretPath: kv/app, secretKey: a}")
	var whole, version string
	for i, value := range []string{"same", "same", "other"} {
		s.text("GET kv/app", fmt.Sprintf(`{"request_id":"r-%d","lease_id":"","lease_duration":2764800,"renewable":false,"data":{"a":%q,"certificate":"none"},"warnings":null,"mount_type":"kv"}`, i, value))
		files, r, err := v.fetch(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if changed := files["whole"] != whole || r.Versions[1].Version != version; changed != (i != 1) {
			t.Errorf("answer %d: changed %v\n%s\n%s", i, changed, whole, files["whole"])
		}
		whole, version = files["whole"], r.Versions[1].Version
		if strings.Contains(version, value) || !strings.Contains(whole, `"lease_duration":2764800,"renewable":false,"data":{"a":"`+value+`","certificate":"none"},"warnings":null,"mount_type":"kv"}`) {
			t.Errorf("got %s, %s", version, whole)
		}
	}
}

// The classes of the vendors' own documentation.
func TestTheVendorsClassesAreGood(t *testing.T) {
	for _, flavour := range []Flavour{Vault, OpenBao} {
		paths, err := filepath.Glob(filepath.Join("testdata", flavour.name, "*.yaml"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("%v, %v", paths, err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var class struct {
				Spec struct{ Parameters map[string]string }
			}
			if err := yaml.Unmarshal(text, &class); err != nil {
				t.Fatal(err)
			}
			p := New(flavour, Defaults{Address: "https://vault.example.com"})
			if problems := p.Validate(class.Spec.Parameters); len(problems) > 0 {
				t.Errorf("%s: %v", path, problems)
			}
		}
	}
}

func TestMistakesOfAClass(t *testing.T) {
	good := map[string]string{"roleName": "app", "vaultAddress": "https://v:8200", "objects": oneSecret}
	object := func(fields string) map[string]string {
		return map[string]string{"objects": "- {objectName: a, secretPath: p, " + fields + "}"}
	}
	for want, change := range map[string]map[string]string{
		`"roleName": it is missing`:                                   {"roleName": ""},
		`"vaultAddress": it is missing`:                               {"vaultAddress": ""},
		`"ftp://x" is not the URL of a server`:                        {"vaultAddress": "ftp://x"},
		`has a user name or password`:                                 {"vaultAddress": "https://u:" + canary + "@x"},
		`"objects": it is missing`:                                    {"objects": ""},
		`"objectName": it is missing`:                                 {"objects": "- secretPath: p"},
		`"secretPath": it is missing`:                                 {"objects": "- objectName: a"},
		`each objectName within a SecretProviderClass must be unique`: {"objects": oneSecret + "\n" + oneSecret},
		`"../a" contains ".."`:                                        {"objects": "- {objectName: ../a, secretPath: p}"},
		`"DELETE" is none of`:                                         object("method: delete"),
		`"secretArgs": it is not a map`:                               object("method: PUT, secretArgs: [a]"),
		`a key that is no string`:                                     object("method: PUT, secretArgs: {1: a}"),
		`"filePermission": "512"`:                                     object("filePermission: 512"),
		`"rot13" is none of utf-8, base64 and hex`:                    object("secretKey: a, encoding: rot13"),
		`it excludes secretKey`:                                       object("secretKey: a, allKeys: true"),
		`"optional": "maybe" is not a boolean`:                        object("optional: maybe"),
		`"colour": this provider does not know it`:                    object("colour: red"),
		`cannot set both vaultKubernetesMountPath`:                    {"vaultAuthMountPath": "a", "vaultKubernetesMountPath": "b"},
		`the client's certificate and its key go together`:            {"vaultTLSClientCertPath": "/a"},
		`"perhaps" is not a boolean`:                                  {"vaultSkipTLSVerify": "perhaps"},
		`"soon" is not a duration`:                                    {"leaseOverlap": "soon"},
		`parameter "vaultAddres": this provider does not`:             {"vaultAddres": "x"},
	} {
		parameters := maps.Clone(good)
		maps.Copy(parameters, change)
		found := ""
		for _, problem := range New(Vault, Defaults{}).Validate(parameters) {
			found += problem.Error() + "\n"
		}
		if !strings.Contains(found, want) || strings.Contains(found, canary) {
			t.Errorf("%v: found %q, want %q", change, found, want)
		}
	}
	if problems := New(Vault, Defaults{}).Validate(good); len(problems) > 0 {
		t.Errorf("a good class has %v", problems)
	}
}

func TestModesAreThoseOfYAML(t *testing.T) {
	s := newStandIn(t)
	s.text("GET kv/a", `{"data":{"a":"x"}}`)
	objects := "- {objectName: a, secretPath: kv/a, filePermission: 0600}\n- {objectName: b, secretPath: kv/a, filePermission: 416}\n- {objectName: c, secretPath: kv/a, filePermission: \"0640\"}\n- {objectName: d, secretPath: kv/a}\n- {objectName: e, secretPath: kv/a, filePermission: 0}"
	_, r, err := s.volume("web", "web", objects).fetch(t.Context(), New(Vault, s.defaults()))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint32{0o600, 0o640, 0o640, 0o644, 0o644} {
		if got := uint32(r.Files[i].Mode); got != want {
			t.Errorf("%s has the mode %o, want %o", r.Files[i].Path, got, want)
		}
	}
}

// A volume keeps what it was given until it is seen to hold something else.
func TestAnAnswerIsOutOfUseOnceAnotherIsMounted(t *testing.T) {
	versions := func(list ...string) (all []provider.ObjectVersion) {
		for _, v := range list {
			all = append(all, provider.ObjectVersion{ID: "o", Version: v})
		}
		return all
	}
	now := time.Now()
	for name, tc := range map[string]struct {
		delivered []string
		mounted   []provider.ObjectVersion
		old       bool // whether "old" is out of use
		next      bool
	}{
		"nothing is mounted":                          {[]string{"new"}, nil, false, false},
		"killed before the new set was mounted":       {[]string{"new"}, versions("old"), false, false},
		"killed before it was recorded, and after":    {[]string{"new"}, versions("old", "static"), false, false},
		"killed before either was recorded":           {[]string{"new"}, versions("static"), false, false},
		"the new set is mounted":                      {[]string{"new"}, versions("new"), true, false},
		"the object left the class, not yet mounted":  {nil, versions("old"), false, true},
		"the object left the class, and that is seen": {nil, versions("static"), true, true},
	} {
		s := &state{Delivered: tc.delivered, DeliveredAt: now, Answers: []*issued{{Version: "old"}, {Version: "new"}}}
		s.confirm(tc.mounted)
		if out := !s.Answers[0].Superseded.IsZero(); out != tc.old {
			t.Errorf("%s: the old answer is out of use: %v", name, out)
		}
		if out := !s.Answers[1].Superseded.IsZero(); out != (tc.next && len(tc.mounted) > 0) {
			t.Errorf("%s: the new answer is out of use: %v", name, out)
		}
	}
}

func TestALeaseIsNeverMadeThatCannotBeGivenBack(t *testing.T) {
	s := newStandIn(t)
	s.text("GET database/creds/app", `{"lease_id":"database/creds/app/1","lease_duration":3600,"renewable":true,"data":{"username":"u","password":"`+canary+`"}}`)
	p := New(Vault, s.defaults())
	v := s.volume("web", "web", "- {objectName: u, secretPath: database/creds/app, secretKey: username}")
	v.Keep = func(secret.Value) error { return errors.New("there is no room") }
	if _, _, err := v.fetch(t.Context(), p); err == nil || s.count("GET database/creds/app") != 0 || s.count("PUT auth/token/revoke-self") != 1 {
		t.Errorf("%v, with the requests %q", err, s.requests)
	}
	// Where nothing is kept at all, it is given back at once.
	v.Keep = nil
	if files, _, err := v.fetch(t.Context(), p); err != nil || files["u"] != "u" || s.count("PUT auth/token/revoke-self") != 2 {
		t.Errorf("%v, with the requests %q", err, s.requests)
	}
}

// What a renewal answers decides whether the lease goes on, is replaced, or is
// asked for again later.
func TestWhatARenewalAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		status  int
		body    string
		asked   int // for a new credential
		says    string
		renewed bool
	}{
		"as long as before":          {200, `{"lease_id":"l/1","lease_duration":3600,"renewable":true}`, 0, "", true},
		"less than before":           {200, `{"lease_id":"l/1","lease_duration":60,"renewable":true}`, 0, "", true},
		"not renewable":              {400, `{"errors":["lease is not renewable"]}`, 1, "", false},
		"revoked by somebody":        {400, `{"errors":["lease not found"]}`, 1, "", false},
		"not allowed":                {403, `{"errors":["permission denied"]}`, 1, "", false},
		"the database is away":       {400, `{"errors":["failed to renew entry: resp: (*logical.Response)(nil) err: failed to connect"]}`, 0, `the lease of object "u": renew it`, false},
		"the server is overwhelmed":  {429, `{"errors":["patience"]}`, 0, "renew it", false},
		"the server cannot be asked": {503, `{"errors":["Vault is sealed"]}`, 0, "renew it", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			made := 0
			s.answer("GET creds", func(w http.ResponseWriter, _ *http.Request) {
				made++
				fmt.Fprintf(w, `{"lease_id":"l/%d","lease_duration":3600,"renewable":true,"data":{"username":"u%d"}}`, made, made)
			})
			s.answer("PUT sys/leases/renew", func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, tc.body)
			})
			p, v := New(Vault, s.defaults()), s.volume("web", "web", "- {objectName: u, secretPath: creds, secretKey: username}")
			if _, _, err := v.fetch(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			v.change(t, func(s *state) { s.Answers[0].Due = time.Now() }) // two thirds of an hour later
			files, r, err := v.fetch(t.Context(), p)
			if (err != nil) != (tc.says != "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("got %v, want it to say %q", err, tc.says)
			}
			if made != 1+tc.asked {
				t.Errorf("there were %d credentials", made)
			}
			if err != nil {
				return
			}
			if want := fmt.Sprint("u", 1+tc.asked); files["u"] != want {
				t.Errorf("the file holds %q, want %q", files["u"], want)
			}
			if !r.RefreshAt.After(time.Now()) || !r.ValidUntil.After(r.RefreshAt) {
				t.Errorf("it is to be refreshed at %v and ends at %v", r.RefreshAt, r.ValidUntil)
			}
			if tc.asked > 0 && s.count("PUT auth/token/revoke-self") != 0 {
				t.Error("the old token was revoked before the new password was mounted")
			}
		})
	}
}

// The old lease is revoked once the new one is mounted and the overlap is over,
// with its token where the policy does not allow it by itself.
func TestAReplacedLeaseIsRevokedAfterTheOverlap(t *testing.T) {
	for name, denied := range map[string]bool{"by itself": false, "with its token": true} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			made := 0
			s.answer("GET creds", func(w http.ResponseWriter, _ *http.Request) {
				made++
				fmt.Fprintf(w, `{"lease_id":"l/%d","lease_duration":3600,"renewable":false,"data":{"username":"u%d"}}`, made, made)
			})
			s.answer("PUT sys/leases/revoke", func(w http.ResponseWriter, _ *http.Request) {
				if denied {
					refuse(w, 403, "permission denied")
				} else {
					w.WriteHeader(204)
				}
			})
			p, v := New(Vault, s.defaults()), s.volume("web", "web", "- {objectName: u, secretPath: creds, secretKey: username}", "leaseOverlap", "1h")
			fetch := func(want string, revoked int) {
				t.Helper()
				files, _, err := v.fetch(t.Context(), p)
				if err != nil || files["u"] != want {
					t.Fatalf("got %v, %v", files, err)
				}
				if n := s.count("PUT sys/leases/revoke hvs.token-1"); n != revoked {
					t.Errorf("the first lease was revoked %d times, want %d", n, revoked)
				}
				if n := s.count("PUT auth/token/revoke-self hvs.token-1"); n != revoked {
					t.Errorf("the first token was revoked %d times, want %d", n, revoked)
				}
			}
			fetch("u1", 0)
			v.change(t, func(s *state) { s.Answers[0].Due = time.Now() })
			fetch("u2", 0)
			fetch("u2", 0) // mounted, within the overlap
			v.change(t, func(s *state) { s.Answers[0].Superseded = time.Now().Add(-2 * time.Hour) })
			fetch("u2", 1)
			asks, _ := p.Store(v.Parameters)
			if at, ok := p.StoreOf(v.kept); !ok || at != asks || at == "" {
				t.Errorf("it is to be given back to %q, want %q", at, asks)
			}
			if err := p.Release(t.Context(), v.kept); err != nil || s.count("PUT auth/token/revoke-self hvs.token-2") != 1 {
				t.Errorf("released: %v, with the requests %q", err, s.requests)
			}
		})
	}
}

func TestAPathThatBeginsToLeaseIsAskedWithATokenOfTheVolumesOwn(t *testing.T) {
	s := newStandIn(t)
	s.text("GET thing/app", `{"data":{"a":"x"}}`)
	p := New(Vault, s.defaults())
	objects := "- {objectName: a, secretPath: thing/app, secretKey: a}"
	first, second := s.volume("web", "web-1", objects), s.volume("web", "web-2", objects)
	for _, v := range []*volume{first, second} {
		if _, _, err := v.fetch(t.Context(), p); err != nil || !v.kept.IsEmpty() {
			t.Fatalf("kept %d bytes, %v", v.kept.Len(), err)
		}
	}
	s.text("GET thing/app", `{"lease_id":"thing/app/1","lease_duration":3600,"renewable":true,"data":{"a":"y"}}`)
	_, _, err := second.fetch(t.Context(), p)
	wantError(t, err, provider.Unavailable, "it brings a lease now")
	if s.count("PUT sys/leases/revoke hvs.token-1") != 1 {
		t.Errorf("the stray lease was not revoked: %q", s.requests)
	}
	if files, _, err := second.fetch(t.Context(), p); err != nil || files["a"] != "y" || second.kept.IsEmpty() || s.count("GET thing/app hvs.token-2") != 1 {
		t.Errorf("got %v, %v with the requests %q", files, err, s.requests)
	}
}

// What is made for the volume is made again when it is due, and not before; what is
// stored is read at each refresh, whatever it looks like.
func TestAnswersThatEndAreMadeAnewWhenTheyAreDue(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	certificate := func(life time.Duration) map[string]any {
		end := time.Now().Add(life)
		der, err := x509.CreateCertificate(nil, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: end}, &x509.Certificate{}, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return map[string]any{"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), "expiration": end.Unix()}
	}
	token := map[string]any{"certificate": "none", "token": "t", "token_ttl": 3599, "expires_at_seconds": time.Now().Add(time.Hour).Unix()}
	for name, tc := range map[string]struct {
		method string
		data   map[string]any
		due    []time.Duration // from now on, at least and at most; nil where it is read at each refresh
	}{
		"a certificate is issued":           {"PUT", certificate(time.Hour), []time.Duration{35 * time.Minute, 40 * time.Minute}},
		"and signed":                        {"POST", certificate(time.Hour), []time.Duration{35 * time.Minute, 40 * time.Minute}},
		"and is over when it comes":         {"PUT", certificate(-time.Hour), []time.Duration{20 * time.Second, retryOver}},
		"a certificate is stored":           {"GET", certificate(time.Hour), nil},
		"and is over":                       {"GET", certificate(-time.Hour), nil},
		"a token of the engine gcp is made": {"GET", token, []time.Duration{35 * time.Minute, 40 * time.Minute}},
		"a number of that name is stored":   {"GET", map[string]any{"certificate": "none", "expires_at_seconds": time.Now().Add(time.Hour).Unix()}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			s.answer(tc.method+" thing", func(w http.ResponseWriter, _ *http.Request) {
				if err := json.NewEncoder(w).Encode(map[string]any{"data": tc.data}); err != nil {
					t.Error(err)
				}
			})
			p := New(Vault, s.defaults())
			v := s.volume("web", "web", "- {objectName: a, secretPath: thing, secretKey: certificate, method: "+tc.method+"}")
			_, r, err := v.fetch(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			wait := time.Until(r.RefreshAt)
			switch {
			case tc.due == nil:
				if !r.RefreshAt.IsZero() || !r.ValidUntil.IsZero() {
					t.Errorf("it is due in %v, and over at %v", wait, r.ValidUntil)
				}
			case wait < tc.due[0] || wait > tc.due[1]:
				t.Errorf("it is due in %v", wait)
			}
			if _, _, err := v.fetch(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			want := 2
			if time.Now().Before(r.ValidUntil) {
				want = 1
			}
			if n := s.count(tc.method + " thing"); n != want {
				t.Errorf("two refreshes asked %d times, want %d", n, want)
			}
		})
	}
}

func TestNothingIsDueAtOnce(t *testing.T) {
	now := time.Now()
	for ttl, due := range map[time.Duration][2]time.Duration{
		time.Hour: {36 * time.Minute, 40 * time.Minute}, 2 * time.Second: {1200 * time.Millisecond, 1334 * time.Millisecond},
		time.Second: {time.Second, time.Second}, time.Nanosecond: {time.Second, time.Second}, 0: {retryOver, retryOver}, -time.Hour: {retryOver, retryOver},
	} {
		if s := lasting(now, ttl); s.Due.Before(now.Add(due[0])) || s.Due.After(now.Add(due[1])) || !s.Ends.Equal(now.Add(ttl)) {
			t.Errorf("what lasts %v is due after %v and ends after %v", ttl, s.Due.Sub(now), s.Ends.Sub(now))
		}
	}
}

// A refresh just before something is due does not put that off.
func TestARefreshDoesNotPutOffWhatIsDueSoon(t *testing.T) {
	s := newStandIn(t)
	s.answer("GET creds", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"lease_id":"l/1","lease_duration":3600,"renewable":false,"data":{"username":"u"}}`)
	})
	p, v := New(Vault, s.defaults()), s.volume("web", "web", "- {objectName: u, secretPath: creds, secretKey: username}")
	if _, _, err := v.fetch(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	soon := time.Now().Add(500 * time.Millisecond).Round(0)
	v.change(t, func(s *state) { s.Answers[0].Due = soon })
	if _, r, err := v.fetch(t.Context(), p); err != nil || r.RefreshAt.After(soon) {
		t.Errorf("what is due at %v is due at %v, %v", soon, r.RefreshAt, err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(kv("x", 1)), "a")
	f.Add([]byte(`{"data":{"certificate":"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----","expiration":"99999999999"}}`), "certificate")
	f.Add([]byte(`{"data":{"ttl":5,"rotation_period":6}}`), "ttl")
	f.Fuzz(func(t *testing.T, body []byte, key string) {
		a, err := parse(body)
		if err != nil {
			return
		}
		now := time.Now()
		_, _, _ = a.version(), a.expires("PUT", now), a.rotates(now)
		for _, o := range []object{{key: key}, {all: true}, {}} {
			o.Object = provider.Object{Name: "o", Path: "o", Mode: 0o600}
			files, err := o.files(a, provider.Request{})
			for _, file := range files {
				if err != nil || provider.CheckPath(file.Path) != nil {
					t.Errorf("%q: %q, %v", body, file.Path, err)
				}
			}
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"tokens":[{"id":"a"}],"answers":[{"token":"a"}]}`))
	f.Add([]byte(`{"tokens":[null],"answers":[null]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := loadState(secret.New(text))
		if err != nil {
			return
		}
		s.confirm([]provider.ObjectVersion{{Version: "x"}})
		_ = s.latest("x")
		_ = s.dropTokens()
	})
}

// What brings no leases may be shared, by a service account's pods if the server
// looked at nothing else.
func TestWhoMayShareAnAnswer(t *testing.T) {
	for name, byPod := range map[string]bool{"of the service account": false, "of the pod": true} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			if byPod {
				s.metadata = map[string]string{"role": "app"}
			}
			s.text("GET secret/data/app", kv("x", 1))
			p := New(Vault, s.defaults())
			v := s.volume("web", "web-1", oneSecret)
			if _, ok := p.Identity(t.Context(), v.Request); ok {
				t.Error("a path is taken for one without leases that was never read")
			}
			if _, _, err := v.fetch(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			v.State = secret.Value{}
			second := s.volume("web", "web-2", oneSecret) // which finds the session
			if _, _, err := second.fetch(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			keys := map[string]string{}
			for of, v := range map[string]*volume{"web-1": v, "web-2": second, "another": s.volume("other", "other-1", oneSecret), "another role": s.volume("web", "web-1", oneSecret, "roleName", "b")} {
				key, ok := p.Identity(t.Context(), v.Request)
				if !ok {
					t.Errorf("%s: it is not known who asks", of)
				}
				keys[key] += of + " "
			}
			if shared := len(keys) == 3; shared == byPod || len(keys) < 3 {
				t.Errorf("the identities are %q", keys)
			}
			leased := s.volume("web", "web-1", oneSecret)
			leased.State = secret.FromString("{}")
			for _, v := range []*volume{leased, s.volume("web", "web-1", "- {}"), s.volume("web", "web-1", "- {objectName: a, secretPath: database/creds/app, secretKey: a}")} {
				if _, ok := p.Identity(t.Context(), v.Request); ok {
					t.Error("what is the volume's own is shared")
				}
			}
		})
	}
}
