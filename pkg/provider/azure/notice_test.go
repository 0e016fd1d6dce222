package azure

import (
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestAHintConcernsTheClassesThatNameItsObject(t *testing.T) {
	for name, c := range map[string]struct {
		objects string
		hint    provider.Hint
		want    bool
	}{
		"a secret":                                        {"{objectName: db, objectType: secret}", provider.Hint{Store: "shop-kv", Object: "db"}, true},
		"a secret in other capitals":                      {"{objectName: db, objectType: secret}", provider.Hint{Store: "SHOP-kv", Object: "DB"}, true},
		"the certificate of a secret":                     {"{objectName: site, objectType: secret}", provider.Hint{Store: "shop-kv", Object: "site"}, true},
		"a version of a secret, which may be disabled":    {"{objectName: db, objectType: secret, objectVersion: abc}", provider.Hint{Store: "shop-kv", Object: "db"}, true},
		"another secret":                                  {"{objectName: db, objectType: secret}", provider.Hint{Store: "shop-kv", Object: "db2"}, false},
		"a secret of another vault":                       {"{objectName: db, objectType: secret}", provider.Hint{Store: "other-kv", Object: "db"}, false},
		"a secret of the object's own vault":              {"{objectName: db, objectType: secret, keyvaultName: other-kv}", provider.Hint{Store: "other-kv", Object: "db"}, true},
		"a secret of the class's vault, not the object's": {"{objectName: db, objectType: secret, keyvaultName: other-kv}", provider.Hint{Store: "shop-kv", Object: "db"}, false},
		"a secret of any vault":                           {"{objectName: db, objectType: secret}", provider.Hint{Object: "db"}, true},
		"a whole vault":                                   {"{objectName: db, objectType: secret}", provider.Hint{Store: "shop-kv"}, true},
		"another whole vault":                             {"{objectName: db, objectType: secret}", provider.Hint{Store: "other-kv"}, false},
		"a secret that is found":                          {"{find: {prefix: Web-, tags: {team: web}}, objectType: secret}", provider.Hint{Store: "shop-kv", Object: "web-db"}, true},
		"a secret that a pattern finds":                   {"{find: {pattern: 'web-[a-z]+'}, objectType: secret}", provider.Hint{Store: "shop-kv", Object: "WEB-db"}, true},
		"a secret that is not found":                      {"{find: {prefix: web-}, objectType: secret}", provider.Hint{Store: "shop-kv", Object: "db"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			parameters := map[string]string{"keyvaultName": "shop-kv", "tenantID": "t", "clientID": "c", "objects": "- " + c.objects}
			for _, problem := range p.Validate(parameters) {
				t.Errorf("the class: %v", problem)
			}
			other := provider.Hint{Object: "another-object"}
			if got := p.Concerns(parameters, []provider.Hint{other, c.hint}); got != c.want {
				t.Errorf("%+v concerns %s: %v", c.hint, c.objects, got)
			}
		})
	}
}
