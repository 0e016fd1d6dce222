package azure

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// parameters reads a class's from YAML, with replacements.
func parameters(t testing.TB, file string, replace ...string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	read := map[string]string{}
	if err := yaml.Unmarshal([]byte(strings.NewReplacer(replace...).Replace(string(text))), &read); err != nil {
		t.Fatal(err)
	}
	return read
}

func TestMistakesAreReportedWithLineAndRemedy(t *testing.T) {
	valid := map[string]string{vaultKey: "kv1", tenantKey: "t", clientKey: "c", objectsKey: "- {objectName: a, objectType: secret}"}
	for name, tc := range map[string]struct {
		key, value string
		want       string // none for a class without mistakes
	}{
		"a class without mistakes":            {"", "", ""},
		"no vault":                            {vaultKey, "", `parameter "keyvaultName": it is missing`},
		"a long vault name":                   {vaultKey, "longkeyvaultnamewhichisnotvalid", "it is no name of a key vault"},
		"a short vault name":                  {vaultKey, "kv", "it is no name of a key vault"},
		"a vault name with an underline":      {vaultKey, "kv_test", "it is no name of a key vault"},
		"a URL in place of a vault":           {vaultKey, "https://kv1", "write its name alone"},
		"no tenant":                           {tenantKey, "", `parameter "tenantID": it is missing`},
		"a tenant that leads elsewhere":       {tenantKey, "../x", "is no tenant"},
		"the older spelling of the tenant":    {oldTenantKey, "t", ""},
		"an unknown cloud":                    {cloudKey, "AzureWrongCloud", "there is no cloud"},
		"clouds in any case":                  {cloudKey, "azurechinaCLOUD", ""},
		"the stack without a file":            {cloudKey, "AzureStackCloud", `parameter "cloudEnvFileName": it is missing`},
		"pod identity":                        {podIdentityKey, "true", "change to workload identity"},
		"pod identity switched off":           {podIdentityKey, "false", ""},
		"not a boolean":                       {managedKey, "yes", "is not a boolean"},
		"the token proxy":                     {proxyKey, "true", ""},
		"no objects":                          {objectsKey, "", `parameter "objects": it is missing`},
		"objects that are no list":            {objectsKey, "a: b", `it is a map without "array"`},
		"an empty list, as it ever was":       {objectsKey, "array: []", ""},
		"no name":                             {objectsKey, "- objectType: secret", `line 1, entry 1, "objectName": it is missing`},
		"no type":                             {objectsKey, "- objectName: a", `entry 1 ("a"), "objectType": it is missing; write secret, key or cert`},
		"an unknown type":                     {objectsKey, "- {objectName: a, objectType: Secret}", "is none of secret, key and cert"},
		"a name that no vault takes":          {objectsKey, "- {objectName: a/b, objectType: secret}", "no name that a key vault takes"},
		"a version that is none":              {objectsKey, "- {objectName: a, objectType: secret, objectVersion: ../b}", "it is no version"},
		"a negative history":                  {objectsKey, "- {objectName: a, objectType: secret, objectVersionHistory: -1}", "is not a number from 0"},
		"a time that is none":                 {objectsKey, "- {objectName: a, objectType: secret, objectNotAfter: yesterday}", "is not a time"},
		"times in all forms":                  {objectsKey, `[{objectName: a, objectType: secret, objectNotAfter: 2026-06-05T19:41Z}, {objectName: b, objectType: key, objectNotAfter: "2026-06-05T19:41:30+02:00"}, {objectName: c, objectType: cert, objectNotAfter: 2026-06-05}]`, ""},
		"a time and a version":                {objectsKey, "- {objectName: a, objectType: secret, objectVersion: b, objectNotAfter: 2026-06-05}", "it excludes objectVersion"},
		"an absolute alias":                   {objectsKey, "- {objectName: a, objectType: secret, objectAlias: /a}", "absolute"},
		"an alias that climbs":                {objectsKey, "- {objectName: a, objectType: secret, objectAlias: b/../../a}", `".."`},
		"a key as pfx":                        {objectsKey, "- {objectName: a, objectType: key, objectFormat: pfx}", "only a secret can be had as pfx"},
		"a key as PFX, as it ever was":        {objectsKey, "- {objectName: a, objectType: key, objectFormat: PFX}", ""},
		"an unknown format":                   {objectsKey, "- {objectName: a, objectType: secret, objectFormat: der}", "is neither pem nor pfx"},
		"an unknown encoding":                 {objectsKey, "- {objectName: a, objectType: secret, objectEncoding: NOT_SUPPORTED}", "is none of utf-8, base64 and hex"},
		"a decoded certificate":               {objectsKey, "- {objectName: a, objectType: cert, objectEncoding: base64}", "only a secret can be decoded"},
		"two encodings":                       {objectsKey, "- {objectName: a, objectType: secret, objectEncoding: hex, encoding: base64}", "it excludes encoding"},
		"a mode that is none":                 {objectsKey, `- {objectName: a, objectType: secret, filePermission: "0888"}`, "is not a file mode"},
		"one file twice":                      {objectsKey, "- {objectName: a, objectType: secret}\n- {objectName: a, objectType: key}", "two objects have the same file path"},
		"a folder of versions that is a file": {objectsKey, "- {objectName: a, objectType: secret, objectVersionHistory: 2}\n- {objectName: b, objectType: key, objectAlias: a}", "two objects have the same file path"},
		"another vault":                       {objectsKey, "- {objectName: a, objectType: secret, keyvaultName: k_v}", "it is no name of a key vault"},
		"find beside a name":                  {objectsKey, "- {objectName: a, objectType: secret, find: {prefix: a}}", "it excludes find"},
		"find with a version":                 {objectsKey, "- {objectVersion: a, objectType: secret, find: {prefix: a}}", "it excludes find"},
		"an unknown field":                    {objectsKey, "- {objectName: a, objectType: secret, objectalias: b}", `"objectalias": this provider does not know it`},
		"an unknown parameter":                {"clientId", "a", `parameter "clientId": this provider does not know it`},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			given := maps.Clone(valid)
			if tc.key == oldTenantKey {
				delete(given, tenantKey)
			}
			given[tc.key] = tc.value
			if tc.key == "" {
				delete(given, "")
			}
			var all []string
			for _, problem := range p.Validate(given) {
				all = append(all, problem.Error())
			}
			text := strings.Join(all, "\n")
			if tc.want == "" && text != "" || !strings.Contains(text, tc.want) {
				t.Errorf("got %q, want %q", text, tc.want)
			}
		})
	}
}

func TestIdentitiesExcludeEachOther(t *testing.T) {
	for name, given := range map[string]map[string]string{
		"it excludes usePodIdentity":       {podIdentityKey: "true", managedKey: "true"},
		"it excludes useVMManagedIdentity": {managedKey: "true", proxyKey: "true", clientKey: "c"},
		"which useAzureTokenProxy needs":   {proxyKey: "true"},
	} {
		reader := provider.NewParams(given)
		decode(reader)
		if err := reader.Err(); !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
	for name, tc := range map[string]struct {
		given  map[string]string
		way    way
		client string
	}{
		"workload identity":         {map[string]string{clientKey: " c "}, byPod, "c"},
		"a service principal":       {nil, bySecret, ""},
		"the machine's own":         {map[string]string{managedKey: "true", clientKey: "c"}, byNode, ""},
		"one of the machine's":      {map[string]string{managedKey: "1", assignedKey: "m"}, byNode, "m"},
		"an identity binding":       {map[string]string{proxyKey: "true", clientKey: "c"}, byProxy, "c"},
		"the account's annotation":  {map[string]string{annotatedKey: "true"}, byAccount, ""},
		"an id without being asked": {map[string]string{assignedKey: "m", clientKey: "c"}, byPod, "c"},
	} {
		if c := decode(provider.NewParams(tc.given)); c.way != tc.way || c.client != tc.client {
			t.Errorf("%s: got %d, %q", name, c.way, c.client)
		}
	}
}

func TestFilesOfEndpoints(t *testing.T) {
	const good = `{"name": "AzureStackCloud", "activeDirectoryEndpoint": "https://login.example.com/", "keyVaultEndpoint": "https://vault.example.com/", "keyVaultDNSSuffix": "vault.example.com"}`
	if got, err := parseCloud([]byte(good)); err != nil || got != (environment{"https://login.example.com/", "https://vault.example.com", "vault.example.com"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"not JSON":         {canary, "not a JSON object"},
		"no login":         {strings.Replace(good, "activeDirectoryEndpoint", "x", 1), "its activeDirectoryEndpoint is not a URL"},
		"a login in clear": {strings.Replace(good, "https://login", "http://login", 1), "its activeDirectoryEndpoint is not a URL"},
		"no vault":         {strings.Replace(good, "keyVaultEndpoint", "x", 1), "its keyVaultEndpoint is not a URL"},
		"an odd suffix":    {strings.Replace(good, `"vault.example.com"`, `"`+canary+`/x"`, 1), "its keyVaultDNSSuffix is no domain"},
	} {
		if _, err := parseCloud([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := readCloud("/dev/null"); provider.KindOf(err) != provider.Invalid || !strings.Contains(err.Error(), "it is no file of 1 to") {
		t.Errorf("got %v", err)
	}
	if _, err := readCloud(filepath.Join(t.TempDir(), "none.json")); provider.KindOf(err) != provider.Invalid || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
}

// Every class of Microsoft's documentation is taken as it is.
func TestDocumentedClassesAreValid(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, file := range files {
		p, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		if problems := p.Validate(parameters(t, file, "$KEYVAULT_NAME", "kvname", "$SECRET_NAME", "s", "$KEY_NAME", "k", "$SECRET_VERSION", "1", "$KEY_VERSION", "2")); len(problems) > 0 {
			t.Errorf("%s: %v", file, problems)
		}
	}
}

func TestExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob("../../../examples/azure/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, file := range append(files, "README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if file == "README.md" {
			_, rest, _ := strings.Cut(string(text), "```yaml\n")
			example, _, _ := strings.Cut(rest, "```")
			text = []byte(example)
		}
		var class struct {
			Spec struct {
				Provider   string            `json:"provider"`
				Parameters map[string]string `json:"parameters"`
			} `json:"spec"`
		}
		p, newErr := New(Config{})
		if err := yaml.Unmarshal(text, &class); err != nil || newErr != nil || class.Spec.Provider != "azure" {
			t.Fatalf("%s: %v, %v", file, err, newErr)
		}
		for _, problem := range p.Validate(class.Spec.Parameters) {
			t.Errorf("%s: %v", file, problem)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("- {objectName: a, objectType: secret, objectVersionHistory: 2, objectFormat: pfx}", "AzureStackCloud")
	f.Add("array:\n- |\n  objectName: a", "")
	f.Fuzz(func(t *testing.T, objects, cloud string) {
		reader := provider.NewParams(map[string]string{vaultKey: "kv1", tenantKey: "t", objectsKey: objects, cloudKey: cloud})
		c := decode(reader)
		if reader.Err() != nil {
			return
		}
		for _, o := range c.objects {
			if o.find == nil && (provider.CheckPath(o.Path) != nil || !objectRule.MatchString(o.name)) || !slices.Contains([]string{secretKind, keyKind, certKind}, o.kind) {
				t.Errorf("%q was taken: %s", objects, fmt.Sprintf("%+v", o))
			}
		}
	})
}

func FuzzParseCloud(f *testing.F) {
	f.Add(`{"activeDirectoryEndpoint":"https://a/","keyVaultEndpoint":"https://b","keyVaultDNSSuffix":"c.d"}`)
	f.Fuzz(func(t *testing.T, text string) {
		if e, err := parseCloud([]byte(text)); err == nil && (!strings.HasPrefix(e.authority, "https://") || strings.ContainsAny(e.suffix, "/@:?#")) {
			t.Errorf("%q gave %+v", text, e)
		}
	})
}
