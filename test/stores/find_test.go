package stores

import (
	"fmt"
	"strings"
	"testing"

	"github.com/csi-secrets/csi-secrets/test/harness"
)

func TestSecretsOfVaultAreFound(t *testing.T) {
	w := newWorld(t)
	must(t, w.EnableKV1("kv1"), w.EnableKV2("secret"), w.Policy("app", `
path "secret/+/prod/*" { capabilities = ["read", "list"] }
path "secret/metadata/prod" { capabilities = ["list"] }
path "kv1/*" { capabilities = ["read", "list"] }
`))
	for name, team := range map[string]string{"prod/db": "web", "prod/db-old": "web", "prod/deep/er/key": "web", "prod/deep/other": "ops", "prod/gone": "web", "test/db": "web"} {
		put(t, w, "secret/data/"+name, map[string]any{"data": map[string]any{"password": "of " + name, "user": "app"}})
		put(t, w, "secret/metadata/"+name, map[string]any{"custom_metadata": map[string]any{"team": team}})
	}
	if _, err := w.Do("DELETE", "secret/data/prod/gone", nil); err != nil {
		t.Fatal(err)
	}
	put(t, w, "kv1/a/b", map[string]any{"password": "of kv1"})
	w.start(t)
	for name, tc := range map[string]struct {
		objects string
		files   map[string]string // nil for an error
		says    string
	}{
		"prefix":     {"- {find: {prefix: prod/db}, secretPath: secret/data, secretKey: password}", map[string]string{"prod/db": "of prod/db", "prod/db-old": "of prod/db-old"}, ""},
		"all-below":  {"- {find: {pattern: '.*'}, objectName: conf, secretPath: secret/data/prod, secretKey: password, filePermission: 0400}", map[string]string{"conf/db": "of prod/db", "conf/db-old": "of prod/db-old", "conf/deep/er/key": "of prod/deep/er/key", "conf/deep/other": "of prod/deep/other"}, ""},
		"trimmed":    {"- {find: {prefix: prod/deep/, trimPrefix: true}, secretPath: secret/data, secretKey: password}", map[string]string{"er/key": "of prod/deep/er/key", "other": "of prod/deep/other"}, ""},
		"tags":       {"- {find: {tags: {team: ops}}, secretPath: secret/data/prod, allKeys: true}", map[string]string{"deep/other/password": "of prod/deep/other", "deep/other/user": "app"}, ""},
		"pattern":    {"- {find: {pattern: '[^/]*'}, secretPath: secret/data/prod, secretKey: password}\n- {objectName: more, secretPath: secret/data/prod/db, secretKey: user}", map[string]string{"db": "of prod/db", "db-old": "of prod/db-old", "more": "app"}, ""},
		"kv1":        {"- {find: {prefix: a/}, secretPath: kv1, secretKey: password}", map[string]string{"a/b": "of kv1"}, ""},
		"optional":   {"- {find: {prefix: prod/nothing}, secretPath: secret/data, optional: true}", map[string]string{}, ""},
		"nothing":    {"- {find: {prefix: prod/nothing}, secretPath: secret/data}", nil, `find prefix "prod/nothing": there is no such object`},
		"too-many":   {"- {find: {pattern: '.*', limit: 2}, secretPath: secret/data/prod}", nil, "there are more than 2 such objects"},
		"denied":     {"- {find: {prefix: test/}, secretPath: secret/data}", nil, `list secret/metadata/test`},
		"no-tags":    {"- {find: {tags: {a: b}}, secretPath: kv1}", nil, "only KV version 2 has tags"},
		"wrong-key":  {"- {find: {prefix: prod/db}, secretPath: secret/data, secretKey: nope}", nil, `object "prod/db": {secret/data/prod/db}: {key "nope" does not exist`},
		"by-a-query": {"- {find: {prefix: prod/db}, secretPath: 'secret/data?version=1'}", nil, "what is found is read as it is"},
	} {
		t.Run(name, func(t *testing.T) {
			w.node.AddClass(t, name, "vault", map[string]string{"roleName": "app", "objects": tc.objects})
			v := w.volume(t, name, name)
			var err error
			harness.Eventually(t, "the class is there", func() bool {
				err = w.node.Publish(harness.Timeout(t), v)
				return err == nil || !strings.Contains(err.Error(), "no SecretProviderClass")
			})
			switch {
			case tc.files == nil && (err == nil || !strings.Contains(err.Error(), tc.says)):
				t.Errorf("got %v, want %s", err, tc.says)
			case tc.files != nil && err != nil:
				t.Error(err)
			case tc.files != nil:
				wantFiles(t, w.files(t, v), tc.files)
			}
			w.noneContains(t, err, "of prod/db")
		})
	}
	// What comes is found at the next refresh; what went is gone.
	v := w.volume(t, "later", "prefix")
	w.publish(t, v)
	put(t, w, "secret/data/prod/db-new", map[string]any{"data": map[string]any{"password": "new"}})
	if _, err := w.Do("DELETE", "secret/metadata/prod/db-old", nil); err != nil {
		t.Fatal(err)
	}
	w.refresh(t, v, "prefix", func(files map[string]string) bool {
		return fmt.Sprint(files) == "map[prod/db:of prod/db prod/db-new:new]"
	})
}
