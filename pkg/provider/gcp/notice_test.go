package gcp

import (
	"context"
	"strings"
	"testing"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/test/cloud"
	gcptest "github.com/csi-secrets/csi-secrets/test/gcp"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

func TestAHintConcernsTheClassesThatNameItsObject(t *testing.T) {
	const (
		global   = "{resourceName: projects/shop/secrets/db/versions/latest, path: db}"
		numbered = "{resourceName: projects/123456789012/secrets/db/versions/latest, path: db}"
		regional = "{resourceName: projects/shop/locations/europe-west1/secrets/db/versions/3, path: db}"
	)
	for name, c := range map[string]struct {
		objects string
		hint    provider.Hint
		want    bool
	}{
		"a secret, by the project's name":               {global, provider.Hint{Object: "projects/shop/secrets/db"}, true},
		"a secret, by the project's number":             {global, provider.Hint{Object: "projects/123456789012/secrets/db"}, true},
		"a version of a secret":                         {global, provider.Hint{Object: "projects/123456789012/secrets/db/versions/4"}, true},
		"a secret of the class's number":                {numbered, provider.Hint{Object: "projects/123456789012/secrets/db"}, true},
		"a secret of another number":                    {numbered, provider.Hint{Object: "projects/210987654321/secrets/db"}, false},
		"a secret of another project":                   {global, provider.Hint{Object: "projects/other/secrets/db"}, false},
		"another secret":                                {global, provider.Hint{Object: "projects/shop/secrets/db2"}, false},
		"a secret by its id":                            {global, provider.Hint{Object: "db"}, true},
		"a secret by its id and project":                {global, provider.Hint{Store: "shop", Object: "db"}, true},
		"a secret by its id and another project":        {global, provider.Hint{Store: "other", Object: "db"}, false},
		"a regional secret":                             {regional, provider.Hint{Object: "projects/123456789012/locations/europe-west1/secrets/db"}, true},
		"a regional secret by its id":                   {regional, provider.Hint{Object: "db"}, true},
		"the global secret of the same name":            {regional, provider.Hint{Object: "projects/shop/secrets/db"}, false},
		"a whole project":                               {global, provider.Hint{Store: "shop"}, true},
		"another whole project":                         {global, provider.Hint{Store: "other"}, false},
		"a secret that is found":                        {"{parent: projects/shop, find: {prefix: web-, tags: {team: web}}}", provider.Hint{Object: "projects/123456789012/secrets/web-db"}, true},
		"a secret that is not found":                    {"{parent: projects/shop, find: {prefix: web-}}", provider.Hint{Object: "projects/123456789012/secrets/db"}, false},
		"a regional secret where global ones are found": {"{parent: projects/shop, find: {prefix: db}}", provider.Hint{Object: "projects/shop/locations/europe-west1/secrets/db"}, false},
		"a secret to which a parameter may refer":       {"{resourceName: projects/shop/locations/global/parameters/app/versions/v1, path: app}", provider.Hint{Object: "projects/other/secrets/db"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			parameters := map[string]string{"secrets": "- " + c.objects}
			for _, problem := range p.Validate(parameters) {
				t.Errorf("the class: %v", problem)
			}
			hints := []provider.Hint{c.hint}
			if !strings.Contains(c.objects, "parameters") {
				hints = append([]provider.Hint{{Object: "another-object"}}, hints...)
			}
			if got := p.Concerns(parameters, hints); got != c.want {
				t.Errorf("%+v concerns %s: %v", c.hint, c.objects, got)
			}
		})
	}
}

func TestTheDriversOwnIdentityCallsGoogle(t *testing.T) {
	n := cloud.New(t)
	google := gcptest.New(t, n, issuer.New(t).Verifier())
	google.Put("projects/shop/secrets/db", "v")
	google.Grant("serviceAccount:"+gcptest.NodeAccount, "projects/shop", "secretmanager.versions.access")
	p, err := New(Config{Roots: n.Pool(), DialContext: n.DialContext})
	if err != nil {
		t.Fatal(err)
	}
	const name = "projects/shop/secrets/db/versions/latest"
	read := func() error {
		ctx := metadata.AppendToOutgoingContext(context.Background(), "x-goog-request-params", "name=projects%2Fshop%2Fsecrets%2Fdb%2Fversions%2Flatest")
		_, err := secretmanagerpb.NewSecretManagerServiceClient(p.Own("secretmanager")).AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: name})
		return err
	}
	for range 3 {
		if err := read(); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := google.Calls(), "metadata=1 AccessSecretVersion=3"; got != want {
		t.Errorf("the calls are %q, want %q", got, want)
	}
	google.RevokeTokens()
	if err := read(); provider.KindOf(err) != provider.Denied {
		t.Errorf("with a token that is not accepted: %v", err)
	}
	if err := read(); err != nil {
		t.Errorf("after that: %v", err)
	}
	google.Fail(gcptest.Access, 1, codes.NotFound, "no such thing", 0)
	if err := read(); provider.KindOf(err) != provider.NotFound || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("of what is not there: %v", err)
	}
}
