package conjur

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// good returns the parameters of a class without mistakes, changed.
func good(t *testing.T, parameters ...string) map[string]string {
	_, certificate := newStandIn().serve(t)
	all := map[string]string{accountKey: "myorg", urlKey: "https://conjur.example.com/", authnKey: "authn-jwt/kube", certificateKey: certificate, secretsKey: "- a: b"}
	for i := 0; i < len(parameters); i += 2 {
		all[parameters[i]] = parameters[i+1]
	}
	return all
}

func problems(parameters map[string]string) string {
	var b strings.Builder
	for _, problem := range New().Validate(parameters) {
		b.WriteString(problem.Error() + "\n")
	}
	return b.String()
}

func TestMistakesOfAClass(t *testing.T) {
	for name, tc := range map[string]struct {
		key, value, want string
	}{
		"no account":               {accountKey, "", `parameter "account": it is missing`},
		"no address":               {urlKey, "", `parameter "applianceUrl": it is missing`},
		"an address in the clear":  {urlKey, "http://conjur", "in the clear"},
		"an address with password": {urlKey, "https://user:pass@conjur", "more than a host"},
		"an address with a query":  {urlKey, "https://conjur?", "more than a host"},
		"an address without host":  {urlKey, "https:///x", "https://"},
		"an address of no sense":   {urlKey, "https://%zz", "not a URL"},
		"no authenticator":         {authnKey, "", `parameter "authnId": it is missing`},
		"no service":               {authnKey, "authn-jwt/", "no authn-jwt authenticator"},
		"another kind":             {authnKey, "authn-k8s/prod", "no authn-jwt authenticator"},
		"a broken certificate":     {certificateKey, "garbage", `parameter "sslCertificate": it holds no certificate in PEM`},
		"an unknown version":       {versionKey, "0.3.0", `"0.3.0" is neither 0.1.0 nor 0.2.0`},
		"an unknown key":           {"secret", "x", "this provider does not know it"},
		"no list":                  {secretsKey, "a: b", `without "array"`},
		"not YAML":                 {secretsKey, "- a: b\n  - c", "not YAML"},
		"an empty list":            {secretsKey, "[]", "it lists nothing"},
		"an entry without value":   {secretsKey, "- a: ''", `"a": it is missing`},
		"a list for a value":       {secretsKey, "- a: [b]", "not a plain value"},
		"a path upwards":           {secretsKey, "- a/../b: c", `a/../b`},
		"an absolute path":         {secretsKey, "- /a: c", "absolute"},
		"a reserved path":          {secretsKey, "- ..data: c", "..data"},
		"no path":                  {secretsKey, "- '': c", "it names no file"},
		"a path twice":             {secretsKey, "- a: b\n- ./a: c", `the same file path "a"`},
		"a file for a folder":      {secretsKey, "- a: b\n- a/b: c", `needs a folder "a"`},
		"a key twice":              {secretsKey, "- {a: b, a: c}", "given twice"},
		"our name alone":           {secretsKey, "- objectName: b", `alone, it is the file "objectName" of the variable "b"`},
		"our form with a slip":     {secretsKey, "- {objectName: b, objectAlais: c}", `"objectAlais": an entry with objectName has no such field`},
		"our form without name":    {secretsKey, "- {objectName: '', objectAlias: c}", `"objectName": it is missing`},
		"our form, odd path":       {secretsKey, "- {objectName: /b, optional: true}", "name the file with objectAlias"},
		"our form, odd mode":       {secretsKey, "- {objectName: b, filePermission: 9}", "filePermission"},
		"our form, two keys":       {secretsKey, "- {objectName: b, extractJSONKey: a, extractYAMLKey: b}", "excludes"},
		"too many":                 {secretsKey, manyEntries(maxObjects + 1), "more than 1024"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := problems(good(t, tc.key, tc.value)); !strings.Contains(got, tc.want) || strings.Contains(got, "user:pass") {
				t.Errorf("found %q, want %q", got, tc.want)
			}
		})
	}
	if got := problems(good(t, versionKey, "0.1.0", secretsKey, "")); !strings.Contains(got, `"secrets": it is missing`) {
		t.Errorf("0.1.0 without a list has %q", got)
	}
	for name, parameters := range map[string]map[string]string{
		"one":                     good(t),
		"by annotation":           good(t, secretsKey, "", versionKey, "0.2.0"),
		"of a public CA":          good(t, certificateKey, ""),
		"of the service":          good(t, urlKey, "https://acme.secretsmgr.cyberark.cloud/api", accountKey, "", certificateKey, ""),
		"with a whole entry":      good(t, secretsKey, `- {objectName: b, objectAlias: c, filePermission: "0400", optional: true, encoding: hex, extractYAMLKey: k}`),
		"with entries of several": good(t, secretsKey, "- {a: b, c: d}\n- e: 5"),
	} {
		if got := problems(parameters); got != "" {
			t.Errorf("a good class, %s, has %s", name, got)
		}
	}
}

func manyEntries(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("- f" + strings.Repeat("x", i%100) + "/" + strings.Repeat("y", i/100) + "z: v\n")
	}
	return b.String()
}

func TestAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"https://conjur.example.com":                         "https://conjur.example.com myorg",
		"https://conjur.example.com:8443/sub/path//":         "https://conjur.example.com:8443/sub/path myorg",
		"https://acme.secretsmgr.cyberark.cloud":             "https://acme.secretsmgr.cyberark.cloud/api conjur",
		"https://acme.secretsmgr.cyberark.cloud/":            "https://acme.secretsmgr.cyberark.cloud/api conjur",
		"https://acme.secretsmgr.cyberark.cloud/api":         "https://acme.secretsmgr.cyberark.cloud/api conjur",
		"https://acme-secretsmanager.CyberArk.cloud/api/":    "https://acme-secretsmanager.CyberArk.cloud/api conjur",
		"https://secretsmgr.cyberark.cloud.example.com/conj": "https://secretsmgr.cyberark.cloud.example.com/conj myorg",
	} {
		account := ""
		if strings.HasSuffix(want, "myorg") {
			account = "myorg"
		}
		p := provider.NewParams(good(t, urlKey, address, accountKey, account))
		c := decode(p)
		if got := c.address + " " + c.account; got != want || p.Err() != nil {
			t.Errorf("%s: got %s, %v, want %s", address, got, p.Err(), want)
		}
	}
	if c := decode(provider.NewParams(good(t, urlKey, "https://acme.cyberark.cloud", accountKey, "own"))); c.account != "own" {
		t.Errorf("the account is %q", c.account)
	}
}

// classes returns the parameters of all classes in a text of YAML documents, or
// in the blocks of YAML in Markdown.
func classes(t *testing.T, file string) []map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	documents := []string{string(text)}
	if strings.HasSuffix(file, ".md") {
		documents = nil
		for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			documents = append(documents, block[1])
		}
	}
	var all []map[string]string
	for _, document := range documents {
		decoder := yaml.NewDecoder(strings.NewReader(document))
		for {
			var class struct {
				Kind string `yaml:"kind"`
				Spec struct {
					Parameters map[string]string `yaml:"parameters"`
				} `yaml:"spec"`
			}
			if err := decoder.Decode(&class); err != nil {
				break
			}
			if class.Kind == "SecretProviderClass" {
				all = append(all, class.Spec.Parameters)
			}
		}
	}
	return all
}

func TestOurOwnExamplesHaveNoMistakes(t *testing.T) {
	for _, file := range []string{"README.md", "../../../examples/conjur/class.yaml"} {
		all := classes(t, file)
		if len(all) == 0 {
			t.Errorf("%s has no class", file)
		}
		for _, parameters := range all {
			if got := problems(parameters); got != "" {
				t.Errorf("%s: %s", file, got)
			}
		}
	}
}

// TestClassesOfCyberArksProviderDecodeUnchanged reads the classes that its
// documents show, see testdata/README.md. What they leave out for brevity, the
// text of a certificate, is a mistake here too; http://, which they show, is told
// and taken.
func TestClassesOfCyberArksProviderDecodeUnchanged(t *testing.T) {
	const elided, clear = "it holds no certificate in PEM", "in the clear"
	for file, tc := range map[string]struct {
		mistakes   []string
		identity   string
		annotated  bool
		variables  []string
		files      []string
		annotation string
	}{
		"0.0.yaml":     {[]string{clear}, "botApp", true, []string{"conjur/path/varA", "conjur/path/varB"}, []string{"relative/path/fileA.txt", "relative/path/fileB.txt"}, ""},
		"0.2.yaml":     {[]string{elided, clear}, "host/workload-host", true, nil, nil, "0.2-annotation.yaml"},
		"chart.yaml":   {nil, "host/workload-host", false, []string{"db-credentials/url", "db-credentials/username", "db-credentials/password"}, []string{"relative/path/fileA.txt", "relative/path/fileB.txt", "relative/path/fileC.txt"}, ""},
		"no-host.yaml": {nil, "", true, nil, nil, "0.2-annotation.yaml"},
	} {
		t.Run(file, func(t *testing.T) {
			all := classes(t, filepath.Join("testdata", file))
			if len(all) != 1 {
				t.Fatalf("%d classes", len(all))
			}
			reader := provider.NewParams(all[0])
			c := decode(reader)
			found := reader.Problems()
			if len(found) != len(tc.mistakes) {
				t.Errorf("its mistakes are %q, want %q", found, tc.mistakes)
			}
			for _, want := range tc.mistakes {
				if !strings.Contains(problems(all[0]), want) {
					t.Errorf("its mistakes are %q, want %q", found, want)
				}
			}
			if err := reader.Err(); (err != nil) != slices.Contains(tc.mistakes, elided) {
				t.Errorf("a mount would fail with %v", err)
			}
			if c.identity != tc.identity || c.annotated != tc.annotated || c.service == "" || c.account == "" {
				t.Errorf("got %+v", c)
			}
			objects := c.objects
			if tc.annotation != "" {
				text, err := os.ReadFile(filepath.Join("testdata", tc.annotation))
				if err != nil {
					t.Fatal(err)
				}
				if objects, err = decodeAnnotation(string(text)); err != nil {
					t.Fatal(err)
				}
				tc.variables = []string{"db-credentials/url", "db-credentials/username", "db-credentials/password"}
				tc.files = []string{"relative/path/fileA.txt", "relative/path/fileB.txt", "relative/path/fileC.txt"}
			}
			if len(objects) != len(tc.variables) {
				t.Fatalf("got %v", objects)
			}
			for i, o := range objects {
				if o.variable != tc.variables[i] || o.Path != tc.files[i] || o.Mode != provider.UnsetMode {
					t.Errorf("entry %d is %+v", i+1, o)
				}
			}
		})
	}
}

func FuzzMapping(f *testing.F) {
	f.Add("- \"relative/file\": \"policy/path/var\"")
	f.Add(`- {objectName: a, objectAlias: b, filePermission: "0400", optional: true, encoding: base64, extractJSONKey: k}`)
	f.Add("array:\n- |\n  a: b\n")
	f.Add("- &a {x: y}\n- *a\n- <<: *a")
	f.Fuzz(func(t *testing.T, text string) {
		objects, err := decodeAnnotation(text)
		if err != nil {
			var known *provider.Error
			if errors.As(err, &known) || !strings.Contains(err.Error(), annotation) {
				t.Errorf("%v does not name the annotation", err)
			}
			return
		}
		if len(objects) == 0 && strings.TrimSpace(text) != "" {
			t.Error("nothing is listed, and that is no mistake")
		}
		var paths []string
		for _, o := range objects {
			if err := provider.CheckPath(o.Path); err != nil || o.variable == "" {
				t.Errorf("%+v: %v", o, err)
			}
			paths = append(paths, o.Path)
		}
		if err := provider.CheckPaths(paths); err != nil {
			t.Error(err)
		}
		all, singles := batches("myorg", variables(objects))
		n := len(singles)
		for _, b := range all {
			if n += len(b.variables); len(b.variables) > maxBatch || len(b.variables) > 1 && len(b.query) > maxQueryBytes {
				t.Errorf("a batch has %d variables and %d bytes", len(b.variables), len(b.query))
			}
		}
		if n != len(variables(objects)) {
			t.Errorf("%d variables are asked for", n)
		}
	})
}
