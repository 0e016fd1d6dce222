package gcp

import (
	"crypto/x509"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
	gcptest "github.com/csi-secrets/csi-secrets/test/gcp"
)

func TestMistakesInAClassAreTold(t *testing.T) {
	const good = "projects/shop/secrets/db/versions/latest"
	for name, c := range map[string]struct {
		parameters map[string]string
		words      []string
	}{
		"nothing":                        {map[string]string{}, []string{`parameter "secrets": it is missing`, "resourceName"}},
		"an empty list":                  {map[string]string{secretsKey: "[]"}, []string{"it lists nothing"}},
		"no name":                        {map[string]string{secretsKey: "- path: a"}, []string{`entry 1, "resourceName": it is missing`}},
		"no path":                        {map[string]string{secretsKey: "- resourceName: " + good}, []string{`line 1`, `"path": it is missing`}},
		"no version":                     {map[string]string{secretsKey: "- {resourceName: projects/shop/secrets/db, path: a}"}, []string{"it is not the name of a secret version or parameter version"}},
		"a parameter without a location": {map[string]string{secretsKey: "- {resourceName: projects/shop/parameters/db/versions/1, path: a}"}, []string{"it is not the name"}},
		"a location that leads away":     {map[string]string{secretsKey: "- {resourceName: \"projects/shop/locations/evil.com:1?/secrets/db/versions/1\", path: a}"}, []string{"it is not the name"}},
		"a name that leads away":         {map[string]string{secretsKey: "- {resourceName: projects/../locations/global/parameters/db/versions/1, path: a}"}, []string{"it is not the name"}},
		"a path that leads away":         {map[string]string{secretsKey: "- {resourceName: " + good + ", path: ../a}"}, []string{`contains ".."`}},
		"two of one path":                {map[string]string{secretsKey: "- {resourceName: " + good + ", path: a}\n- {resourceName: " + good + ", fileName: ./a}"}, []string{`two objects have the same file path "a"`}},
		"both kinds of keys":             {map[string]string{secretsKey: "- {resourceName: " + good + ", path: a, extractJSONKey: a, extractYAMLKey: b}"}, []string{`"extractYAMLKey": it excludes extractJSONKey`}},
		"a mode that is none":            {map[string]string{secretsKey: "- {resourceName: " + good + ", path: a, mode: -rw-------}"}, []string{`"mode"`, "is not a file mode"}},
		"a mode that is too large":       {map[string]string{secretsKey: "- {resourceName: " + good + ", path: a, mode: 512}"}, []string{"from 0000 to 0777"}},
		"an unknown way to log in":       {map[string]string{authKey: "super-good-auth", secretsKey: "- {resourceName: " + good + ", path: a}"}, []string{`"super-good-auth" is neither pod-adc nor provider-adc`}},
		"a provider that is none":        {map[string]string{providerKey: "https://example.com", secretsKey: "- {resourceName: " + good + ", path: a}"}, []string{"names no provider of a workload identity pool"}},
		"find and a name":                {map[string]string{secretsKey: "- {resourceName: " + good + ", parent: projects/shop, find: {prefix: a}}"}, []string{`"resourceName": it excludes find`}},
		"a secret of all locations":      {map[string]string{secretsKey: "- {resourceName: projects/shop/locations/global/secrets/db/versions/1, path: a}"}, []string{"it is not the name"}},
		"find nowhere":                   {map[string]string{secretsKey: "- find: {prefix: a}"}, []string{`"parent": it is missing`}},
		"find in a folder":               {map[string]string{secretsKey: "- {parent: folders/1, find: {prefix: a}}"}, []string{"is not the name of a project or location"}},
		"keys that nobody knows":         {map[string]string{"objects": "x", secretsKey: "- {resourceName: " + good + ", path: a, fileMode: 0400, extractJsonKey: user}"}, []string{`parameter "objects": this provider does not know it`, `"fileMode": this provider does not know it`, `"extractJsonKey": this provider does not know it`}},
	} {
		t.Run(name, func(t *testing.T) {
			var all []string
			for _, problem := range new(Provider).Validate(c.parameters) {
				all = append(all, problem.Error())
			}
			for _, word := range c.words {
				if !strings.Contains(strings.Join(all, "\n"), word) {
					t.Errorf("got %v, want %q", all, word)
				}
			}
		})
	}
}

func TestResourceNames(t *testing.T) {
	for name, want := range map[string]resource{
		"projects/shop/secrets/db/versions/latest":                                  {},
		"projects/123/secrets/db_1-A/versions/7":                                    {},
		"projects/example.com:shop/secrets/db/versions/an_alias":                    {},
		"projects/shop/locations/europe-west1/secrets/db/versions/1":                {location: "europe-west1"},
		"projects/shop/locations/europe-west1/parameters/app/versions/v1":           {location: "europe-west1", parameter: true},
		"projects/shop/locations/global/parameters/app/versions/2026-01-01_release": {parameter: true},
	} {
		want.name = name
		if got, ok := parseResource(name); !ok || got != want {
			t.Errorf("%s: got %+v, %v", name, got, ok)
		}
	}
}

func TestProvidersOfPoolsMayBeWrittenInSeveralWays(t *testing.T) {
	const full = "//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/pool/providers/kube"
	for text, want := range map[string][]string{
		full: {full, full, "https:" + full},
		strings.TrimPrefix(full, "//iam.googleapis.com/"): {full, full, "https:" + full},
		gcptest.ClusterAudience:                           {gcptest.ClusterAudience, "shop.svc.id.goog"},
		"identitynamespace:example.com:shop.svc.id.goog:https://gkehub.googleapis.com/projects/shop/locations/global/memberships/one": {
			"identitynamespace:example.com:shop.svc.id.goog:https://gkehub.googleapis.com/projects/shop/locations/global/memberships/one", "example.com:shop.svc.id.goog"},
	} {
		audience, ok := parseAudience(text)
		if got := append([]string{audience}, tokenAudiences(audience)...); !ok || !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

// classesIn returns the parameters of the classes of a YAML file, or of the YAML
// in a Markdown file.
func classesIn(t *testing.T, file string) []map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := []string{string(text)}
	if strings.HasSuffix(file, ".md") {
		parts = strings.Split(string(text), "```yaml\n")[1:]
	}
	var found []map[string]string
	for _, part := range parts {
		part, _, _ = strings.Cut(part, "```")
		for document := range strings.SplitSeq(part, "\n---\n") {
			var class struct {
				Kind string
				Spec struct {
					Provider   string
					Parameters map[string]string
				}
			}
			if err := yaml.Unmarshal([]byte(document), &class); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if class.Kind == "SecretProviderClass" {
				found = append(found, class.Spec.Parameters)
			}
		}
	}
	return found
}

func TestTheManualsClassesAreRight(t *testing.T) {
	examples, err := filepath.Glob("../../../examples/gcp/*.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatal("there are no examples")
	}
	for _, file := range append(examples, "README.md") {
		classes := classesIn(t, file)
		if len(classes) == 0 {
			t.Errorf("%s has no class", file)
		}
		for _, parameters := range classes {
			if problems := new(Provider).Validate(parameters); problems != nil {
				t.Errorf("%s: %v", file, problems)
			}
		}
	}
}

// The proxy of the environment is read once in a process: so this is one of its
// own.
func TestByTheProxyOfTheEnvironment(t *testing.T) {
	if ca := os.Getenv("GCP_TEST_CA"); ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(text)
		p, err := New(Config{Roots: roots, Project: "shop", ClusterLocation: "europe-west1", ClusterName: "main"})
		if err != nil {
			t.Fatal(err)
		}
		req := provider.Request{Parameters: map[string]string{secretsKey: latest("db")}, Tokens: map[string]provider.Token{gcptest.Pool: {Value: secret.FromString(os.Getenv("GCP_TEST_TOKEN"))}}}
		result, err := p.Fetch(t.Context(), req)
		if err != nil || shownResult(result) == "" {
			t.Error(err)
		}
		return
	}
	w := withRights(t)
	w.google.Put(project+"/secrets/db", "x")
	child := exec.Command(os.Args[0], "-test.run=^TestByTheProxyOfTheEnvironment$")
	child.Env = append(os.Environ(), "HTTPS_PROXY="+w.net.ProxyURL(), "NO_PROXY=", "GCP_TEST_CA="+w.net.CAFile(), "GCP_TEST_TOKEN="+w.issuer.Token(web1, gcptest.Pool))
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	w.wantCalls("sts=1 AccessSecretVersion=1")
}

func FuzzClass(f *testing.F) {
	f.Add("- {resourceName: projects/shop/locations/europe-west1/secrets/db/versions/latest, path: a}", "projects/1/locations/global/workloadIdentityPools/a/providers/b")
	f.Add("- {parent: projects/shop, find: {prefix: a}}", gcptest.ClusterAudience)
	f.Fuzz(func(t *testing.T, list, identityProvider string) {
		reader := provider.NewParams(map[string]string{secretsKey: list, providerKey: identityProvider})
		c := decode(reader)
		if reader.Err() != nil {
			return
		}
		if c.audience != "" && len(tokenAudiences(c.audience)) == 0 {
			t.Errorf("%q has no audiences", c.audience)
		}
		network := newNetwork(Config{})
		for _, o := range c.objects {
			if host := network.host(secretManager, o.location); strings.ContainsAny(host, "/:@?# ") || !strings.HasSuffix(host, ".googleapis.com") {
				t.Errorf("%q leads to %q", o.name, host)
			}
			if strings.Contains(o.name, "/../") {
				t.Errorf("the name %q is taken", o.name)
			}
		}
	})
}

func FuzzRefusal(f *testing.F) {
	f.Add(403, []byte(`{"error":{"code":403,"message":"no","status":"PERMISSION_DENIED","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"SERVICE_DISABLED","metadata":{"service":"x"}}]}}`))
	f.Add(502, []byte(`<html>`))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		e := failure("call", refusedBy(&http.Response{StatusCode: code}, body))
		if e.Err == nil || len(e.Error()) > 4*maxShownBytes {
			t.Errorf("got %v", e)
		}
	})
}
