package akeyless

// The tests of this file hold the provider to the vendor's documents, its OpenAPI
// document and its classes, by a stand-in: no real Akeyless was met.

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const allTypes = `
- {secretPath: /db/password, fileName: db/password, filePermission: "0400"}
- {secretPath: /db/user}
- {secretPath: /db/rotated, fileName: rotated.json}
- {secretPath: /tls/web, fileName: web.json}
- {secretPath: /db/dynamic, fileName: dynamic.json}
`

func TestContractOfEachTypeOfItem(t *testing.T) {
	g := newGateway(t)
	v := shop(t, g, allTypes)
	r, err := v.fetch()
	if err != nil {
		t.Fatal(err)
	}
	version := r.Versions[4].Version
	if len(version) < 16 {
		t.Errorf("the version of credentials is %q", version)
	}
	want := `db/password 0400 "canary-value-of-a-secret"
user 0644 "app"
rotated.json 0644 "{\n  \"password\": \"canary-value-of-a-secret\\u003c1\\u003e\",\n  \"pin\": 12345678901234567890,\n  \"username\": \"app\"\n}"
web.json 0644 "{\"certificate_pem\":\"-----BEGIN CERTIFICATE-----\\nAA+/==\\n-----END CERTIFICATE-----\\n\",\"private_key_pem\":\"canary-value-of-a-secret\\n\"}"
dynamic.json 0644 "{\"id\":\"tmp.1\",\"password\":\"canary-value-of-a-secret\",\"ttl_in_minutes\":\"60\",\"user\":\"tmp.p-1\"}"
db/password:/db/password = 7
user:/db/user = 1
rotated.json:/db/rotated = 3
web.json:/tls/web = 2
dynamic.json:/db/dynamic = ` + version + "\n"
	if got := shown(r); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	slices.Sort(g.asked)
	if got, want := strings.Join(g.asked, " "), "/auth /describe-item /describe-item /describe-item /describe-item /describe-item /get-certificate-value /get-dynamic-secret-value /get-rotated-secret-value /get-secret-value"; got != want {
		t.Errorf("the requests are %s, want %s", got, want)
	}
}

func TestContractOfTheLogins(t *testing.T) {
	pods := jwt("web-1", "akeyless")
	for name, tc := range map[string]struct {
		parameters []string
		secrets    map[string]secret.Value
		auth       map[string]any // what /auth is asked; nil where it is not
		token      string         // the field of other requests
	}{
		"k8s": {nil, nil, map[string]any{"access-type": "k8s", "access-id": "p-123456", "k8s-auth-config-name": "cluster",
			"k8s-service-account-token": base64.StdEncoding.EncodeToString([]byte(pods))}, "token"},
		"jwt": {[]string{"akeylessAccessType", "jwt"}, nil, map[string]any{"access-type": "jwt", "access-id": "p-123456", "jwt": pods}, "token"},
		"access_key, which is the default": {[]string{"akeylessAccessType", "", "akeylessAccessKey", accessKey}, nil,
			map[string]any{"access-type": "access_key", "access-id": "p-123456", "access-key": accessKey}, "token"},
		"access_key in the volume's Secret": {[]string{"akeylessAccessType", "access_key"}, map[string]secret.Value{"akeylessAccessKey": secret.FromString(accessKey + "\n")},
			map[string]any{"access-type": "access_key", "access-id": "p-123456", "access-key": accessKey}, "token"},
		"universal_identity": {[]string{"akeylessAccessType", "universal_identity", "akeylessAccessID", "", "akeylessUIDInitToken", uidToken}, nil, nil, "uid-token"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			v := shop(t, g, allTypes).with(tc.parameters...)
			v.req.Secrets = tc.secrets
			v.mount()
			if err := v.p.Release(t.Context(), v.req.State); err != nil || g.alive() != "" {
				t.Errorf("Release: %v; alive: %q", err, g.alive())
			}
			for n, op := range g.asked {
				body := g.bodies[n]
				if op == opAuth {
					if tc.auth == nil || len(body) != len(tc.auth) {
						t.Fatalf("the login has the fields %v", body)
					}
					for field, want := range tc.auth {
						if body[field] != want {
							t.Errorf("the login has %s %q, want %q", field, body[field], want)
						}
					}
					continue
				}
				if token, _ := body[tc.token].(string); token == "" || body["token"] != nil && body["uid-token"] != nil {
					t.Errorf("%s has no %s, or two: %v", op, tc.token, body)
				}
			}
			if want := min(len(tc.auth), 1); g.logins != want {
				t.Errorf("there were %d logins, want %d", g.logins, want)
			}
		})
	}
}

func TestTheStandInRefusesWhatTheDocumentDoesNotKnow(t *testing.T) {
	for body, want := range map[string]string{
		`{}`:                           `the field "names" is missing`,
		`{"names":"/a"}`:               "and not array",
		`{"names":[1]}`:                "names[0]",
		`{"names":["/a"],"nom":"/a"}`:  `no field "nom"`,
		`{"names":["/a"],"version":1}`: "",
	} {
		err := checkText(vendors().Schemas["GetSecretValue"], body)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", body, err, want)
		}
	}
}

func TestTheVendorsClassesAreUnderstood(t *testing.T) {
	files, err := filepath.Glob("testdata/classes/*.yaml")
	if err != nil || len(files) != 6 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		documents, problems := class.Decode(file, data)
		if len(documents) != 1 {
			t.Fatalf("%s: %d classes", file, len(documents))
		}
		p := New()
		problems = append(problems, class.Check(documents[0], func(string) (provider.Provider, error) { return p, nil })...)
		var said []string
		for _, problem := range problems {
			said = append(said, problem.Error())
		}
		switch all := strings.Join(said, "\n"); filepath.Base(file) {
		case "aws-iam.yaml", "azure-ad.yaml", "gcp.yaml":
			if len(said) != 1 || !strings.Contains(all, "proves who the node is") || !strings.Contains(all, "use k8s, or jwt") {
				t.Errorf("%s: %s", file, all)
			}
		default:
			if all != "" {
				t.Errorf("%s: %s", file, all)
			}
		}
		d := decode(provider.NewParams(documents[0].Class.Spec.Parameters))
		if len(d.objects) != 2 || !strings.HasPrefix(d.objects[0].of.path, "/") || d.objects[0].Path == "" || d.access.Login[idField] == "" {
			t.Errorf("%s: read as %+v", file, d)
		}
	}
}

func TestTheClassesOfTheManualHaveNoMistake(t *testing.T) {
	manual, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../../../examples/akeyless/class.yaml")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(manual), "```")
	if len(blocks) != 3 {
		t.Fatalf("the manual has %d parts", len(blocks))
	}
	for name, text := range map[string]string{"README.md": strings.TrimPrefix(blocks[1], "yaml\n"), "class.yaml": string(example)} {
		documents, problems := class.Decode(name, []byte(text))
		for _, d := range documents {
			problems = append(problems, class.Check(d, func(string) (provider.Provider, error) { return New(), nil })...)
		}
		if len(documents) != 1 || len(problems) > 0 {
			t.Errorf("%s: %d classes, %v", name, len(documents), problems)
		}
	}
}

func TestTheManualHasEveryParameter(t *testing.T) {
	manual, _ := os.ReadFile("README.md")
	for _, known := range []string{"objects", "akeylessAccessID", "akeylessAccessType", "akeylessGatewayURL", "akeylessK8sAuthConfigName", "akeylessAccessKey",
		"akeylessUIDInitToken", "audience", "akeylessCACert", "akeylessAzureObjectID", "akeylessGCPAudience", "vaultKubernetesMountPath"} {
		if !strings.Contains(string(manual), "`"+known+"`") {
			t.Errorf("%s is not there", known)
		}
		for _, problem := range New().Validate(map[string]string{known: "x"}) {
			if problem.Key == known && problem.Unknown {
				t.Errorf("%s is not known", known)
			}
		}
	}
}

func TestContractOfErrors(t *testing.T) {
	g := newGateway(t)
	g.denied["/db/user"] = true
	_, err := shop(t, g, "- {secretPath: /db/user}").fetch()
	wantError(t, err, provider.Denied, `object "/db/user": /describe-item of https://gateway.example:8080/v2: the gateway answers 403 Forbidden: "access denied: /db/user"; give the auth method a role`)
	_, err = shop(t, g, "- {secretPath: /nowhere}").fetch()
	wantError(t, err, provider.NotFound, `object "/nowhere"`, "404 Not Found", "was not found", "correct secretPath")
	_, err = shop(t, g, "- {secretPath: /nowhere, secretType: rotated}").fetch()
	wantError(t, err, provider.NotFound, `object "/nowhere": /get-rotated-secret-value`)
	_, err = shop(t, g, "- {secretPath: /key/rsa}").fetch()
	wantError(t, err, provider.Invalid, `object "/key/rsa": its type is "CLASSIC_KEY"; static, dynamic`)
	if v := shop(t, newGateway(t), "- {secretPath: /db/user, secretType: whatever the peer ignores, secretArgs: {a: [b]}}"); shown(v.mount()) != "user 0644 \"app\"\nuser:/db/user = 1\n" {
		t.Error("an unknown secretType is no hint")
	}
}
