package aws

import (
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestAHintConcernsTheClassesThatNameItsObject(t *testing.T) {
	const (
		account = "arn:aws:secretsmanager:us-west-2:123456789012:secret:"
		params  = "arn:aws:ssm:us-west-2:123456789012:parameter/"
		store   = "123456789012/us-west-2"
	)
	for name, c := range map[string]struct {
		objects string
		hint    provider.Hint
		region  string
		want    bool
	}{
		"a secret by its name, told by its name":                   {objects: "{objectName: db, objectType: secretsmanager}", hint: provider.Hint{Store: store, Object: "db"}, want: true},
		"a secret by its name, told by its ARN":                    {objects: "{objectName: prod/db, objectType: secretsmanager}", hint: provider.Hint{Object: account + "prod/db-a1B2c3"}, want: true},
		"a secret by its whole ARN, told by its name":              {objects: "{objectName: '" + account + "db-a1B2c3'}", hint: provider.Hint{Object: "db"}, want: true},
		"a secret by its whole ARN, told by it":                    {objects: "{objectName: '" + account + "db-a1B2c3'}", hint: provider.Hint{Object: account + "db-a1B2c3"}, want: true},
		"a secret by a partial ARN, told by its whole ARN":         {objects: "{objectName: '" + account + "db'}", hint: provider.Hint{Object: account + "db-a1B2c3"}, want: true},
		"a secret that was made anew":                              {objects: "{objectName: '" + account + "db-a1B2c3'}", hint: provider.Hint{Object: account + "db-x9Y8z7"}},
		"a secret with a longer name":                              {objects: "{objectName: db, objectType: secretsmanager}", hint: provider.Hint{Object: account + "db-backup-a1B2c3"}},
		"a secret whose name only ends alike":                      {objects: "{objectName: db, objectType: secretsmanager}", hint: provider.Hint{Object: account + "prod/db-a1B2c3"}},
		"a secret of another account":                              {objects: "{objectName: '" + account + "db'}", hint: provider.Hint{Object: "arn:aws:secretsmanager:us-west-2:210987654321:secret:db-a1B2c3"}},
		"a replica, whose primary is in another region":            {objects: "{objectName: db, objectType: secretsmanager}", hint: provider.Hint{Object: "arn:aws:secretsmanager:us-east-1:123456789012:secret:db-a1B2c3"}, want: true},
		"a secret that takes the place of another":                 {objects: "{objectName: db, objectType: secretsmanager, objectAlias: db, failoverObject: {objectName: spare}}", region: "us-east-1", hint: provider.Hint{Object: "spare"}, want: true},
		"a secret behind a parameter":                              {objects: "{objectName: /aws/reference/secretsmanager/db, objectType: ssmparameter}", hint: provider.Hint{Object: account + "db-a1B2c3"}, want: true},
		"a parameter, told by its name":                            {objects: "{objectName: /prod/db, objectType: ssmparameter}", hint: provider.Hint{Store: store, Object: "/prod/db"}, want: true},
		"a parameter, told by its ARN":                             {objects: "{objectName: /prod/db, objectType: ssmparameter}", hint: provider.Hint{Object: params + "prod/db"}, want: true},
		"a parameter without a slash, told by its ARN":             {objects: "{objectName: db, objectType: ssmparameter}", hint: provider.Hint{Object: params + "db"}, want: true},
		"a parameter by its ARN, told by its name":                 {objects: "{objectName: '" + params + "prod/db'}", hint: provider.Hint{Object: "/prod/db"}, want: true},
		"a version of a parameter":                                 {objects: "{objectName: '/prod/db:3', objectType: ssmparameter, objectAlias: db}", hint: provider.Hint{Object: params + "prod/db"}, want: true},
		"a parameter of another region":                            {objects: "{objectName: /prod/db, objectType: ssmparameter}", hint: provider.Hint{Object: "arn:aws:ssm:eu-west-1:123456789012:parameter/prod/db"}},
		"a parameter of another region, told by its name":          {objects: "{objectName: /prod/db, objectType: ssmparameter}", hint: provider.Hint{Store: "123456789012/eu-west-1", Object: "/prod/db"}},
		"a secret and a parameter of one name":                     {objects: "{objectName: db, objectType: ssmparameter}", hint: provider.Hint{Object: account + "db-a1B2c3"}},
		"a name of which nobody tells whether it is a parameter's": {objects: "{objectName: db, objectType: ssmparameter}", hint: provider.Hint{Object: "db"}, want: true},
		"a secret that is found":                                   {objects: "{find: {prefix: prod/, tags: {team: web}}, objectType: secretsmanager}", hint: provider.Hint{Object: account + "prod/db-a1B2c3"}, want: true},
		"a secret that a pattern finds without its six characters": {objects: "{find: {pattern: 'prod/[a-z]+'}, objectType: secretsmanager}", hint: provider.Hint{Object: account + "prod/db-a1B2c3"}, want: true},
		"a secret that is not found":                               {objects: "{find: {prefix: prod/}, objectType: secretsmanager}", hint: provider.Hint{Object: account + "test/db-a1B2c3"}},
		"a parameter that is found":                                {objects: "{find: {prefix: /prod/}, objectType: ssmparameter}", hint: provider.Hint{Object: params + "prod/db"}, want: true},
		"all of a store":                                           {objects: "{objectName: db, objectType: secretsmanager}", hint: provider.Hint{Store: store}, want: true},
		"all of the account in which the object is not":            {objects: "{objectName: '" + account + "db'}", hint: provider.Hint{Store: "210987654321/us-west-2"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			parameters := map[string]string{"region": "us-west-2", "objects": "- " + c.objects}
			if c.region != "" {
				parameters["failoverRegion"] = c.region
			}
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

func TestAClassWithoutARegionIsConcernedByAnyRegion(t *testing.T) {
	p, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	parameters := map[string]string{"objects": "- {objectName: /prod/db, objectType: ssmparameter}"}
	if !p.Concerns(parameters, []provider.Hint{{Store: "123456789012/eu-west-1", Object: "/prod/db"}}) {
		t.Error("it was not")
	}
}

// FuzzHintedObject looks for names that bring the comparison down, or are not
// taken for themselves.
func FuzzHintedObject(f *testing.F) {
	for _, text := range []string{"db", "/prod/db:3", "arn:aws:secretsmanager:us-west-2:123456789012:secret:db-a1B2c3", "arn:aws:ssm:us-west-2:123456789012:parameter/prod/db", "/aws/reference/secretsmanager/db", "arn:::::", ""} {
		f.Add(text, "db-a1B2c3")
	}
	f.Fuzz(func(t *testing.T, one, other string) {
		for _, in := range []service{"", secretsManager, parameterStore} {
			a, b := identifyObject(one, identified{service: in}), identifyObject(other, identified{service: in})
			if !a.same(a) {
				t.Errorf("%q is not itself", one)
			}
			if a.service == b.service && a.same(b) != b.same(a) {
				t.Errorf("%q and %q are the same, and are not", one, other)
			}
		}
	})
}
