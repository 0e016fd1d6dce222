package vault

import (
	"strings"
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestAHintConcernsTheClassesThatNameItsObject(t *testing.T) {
	const kv2 = "{objectName: db, secretPath: secret/data/prod/db, secretKey: password}"
	for name, c := range map[string]struct {
		objects, object string
		want            bool
	}{
		"a path of KV version 2 as the API has it":              {kv2, "secret/data/prod/db", true},
		"a path of KV version 2 as vault kv has it":             {kv2, "secret/prod/db", true},
		"the metadata of a path of KV version 2":                {kv2, "secret/metadata/prod/db", true},
		"a path with v1 and slashes before it":                  {kv2, "/v1/secret/data/prod/db", true},
		"a path of the class's namespace":                       {kv2, "team/shop/secret/data/prod/db", true},
		"another path":                                          {kv2, "secret/data/prod/db2", false},
		"a path above":                                          {kv2, "secret/data/prod", false},
		"a path of another mount":                               {kv2, "other/data/prod/db", false},
		"a version of a path":                                   {"{objectName: db, secretPath: 'secret/data/db?version=2'}", "secret/db", true},
		"a path with data in it, as vault kv has it":            {"{objectName: db, secretPath: kv/data/app/data/x}", "kv/app/data/x", true},
		"a path of KV version 1":                                {"{objectName: db, secretPath: kv/db}", "kv/db", true},
		"a path of another engine":                              {"{objectName: db, secretPath: database/creds/app}", "database/creds/app", true},
		"a path that is found":                                  {"{objectName: all, secretPath: secret/data/prod, find: {prefix: web/, tags: {team: web}}}", "secret/metadata/prod/web/db", true},
		"a path that is found, as vault kv has it":              {"{objectName: all, secretPath: secret/data/prod, find: {pattern: '.*db'}}", "secret/prod/web/db", true},
		"a path that is not found":                              {"{objectName: all, secretPath: secret/data/prod, find: {prefix: web/}}", "secret/metadata/prod/db", false},
		"a path beside that below which there is what is found": {"{objectName: all, secretPath: secret/data/prod, find: {prefix: w}}", "secret/data/production/web", false},
		"everything":                                            {kv2, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			v := New(Vault, Defaults{})
			parameters := map[string]string{"vaultAddress": "https://vault.example.com", "vaultNamespace": "team/shop", "roleName": "web", "objects": "- " + c.objects}
			for _, problem := range v.Validate(parameters) {
				t.Errorf("the class: %v", problem)
			}
			hints := []provider.Hint{{Object: "another/object"}, {Store: "https://10.0.0.1:8200", Object: c.object}}
			if got := v.Concerns(parameters, hints); got != c.want {
				t.Errorf("%q concerns %s: %v", c.object, c.objects, got)
			}
		})
	}
}

// FuzzHintedPath looks for paths that bring the comparison down, or that do not
// concern an object that is read there.
func FuzzHintedPath(f *testing.F) {
	for _, path := range []string{"secret/data/db", "v1/data/metadata/a", "data", "/", "a//data//b", "?version=2"} {
		f.Add(path, "team/shop")
	}
	f.Fuzz(func(t *testing.T, path, namespace string) {
		o := object{request: request{path: "v1/" + path}}
		if bare := strings.Trim(path, "/"); bare == path && !strings.HasPrefix(path, "v1/") && !strings.Contains(path, "?") && !o.concerned(path, namespace) {
			t.Errorf("%q does not concern itself", path)
		}
		o.concerned(namespace, path)
	})
}
