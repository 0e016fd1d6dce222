package aws

import (
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

var _ provider.Concerned = (*Provider)(nil)

// secretReference begins the names of parameters that stand for secrets
// (https://docs.aws.amazon.com/systems-manager/latest/userguide/integration-ps-secretsmanager.html).
const secretReference = "/aws/reference/secretsmanager/"

// randomSuffix is what Secrets Manager adds to a secret's name in its ARN.
var randomSuffix = regexp.MustCompile(`-[A-Za-z0-9]{6}$`)

// identified is a secret or parameter as far as a name or ARN tells which it is.
type identified struct {
	service         service // empty for either
	account, region string  // empty for any
	name            string
}

// identifyObject reads a name, or an ARN of which the six characters at its end
// may be missing.
func identifyObject(text string, known identified) identified {
	known.name = text
	if parsed, err := arn.Parse(text); err == nil {
		known = identified{services[parsed.Service], parsed.AccountID, parsed.Region, parsed.Resource}
		known.name = strings.TrimPrefix(known.name, "secret:")
		if known.service == parameterStore {
			known.name = strings.TrimPrefix(known.name, "parameter")
		}
	}
	if known.service != parameterStore {
		return known
	}
	if secret, ok := strings.CutPrefix(known.name, secretReference); ok {
		known.service, known.name = secretsManager, secret
		return known
	}
	known.name, _, _ = strings.Cut(known.name, ":") // a version or a label
	return known
}

// Concerns reports whether a hint names a secret or parameter of the class, by
// name or ARN. A secret's region is not looked at: replicas change with their
// primary, of which alone AWS tells.
func (p *Provider) Concerns(parameters map[string]string, hints []provider.Hint) bool {
	c := decode(provider.NewParams(parameters), p.config.Region)
	for _, h := range hints {
		account, region, _ := strings.Cut(h.Store, "/")
		changed := identifyObject(h.Object, identified{account: account, region: region})
		if slices.ContainsFunc(c.objects, func(o object) bool { return changed.concerns(o, c.regions) }) {
			return true
		}
	}
	return false
}

func (changed identified) concerns(o object, regions []string) bool {
	for i, r := range o.refs {
		named := identifyObject(r.name, identified{service: r.service, region: regions[min(i, len(regions)-1)]})
		switch {
		case differ(string(changed.service), string(named.service)), differ(changed.account, named.account):
		case named.service == parameterStore && differ(changed.region, named.region):
		case changed.name == "",
			o.find != nil && changed.found(named.service, o.find),
			o.find == nil && changed.same(named):
			return true
		}
	}
	return false
}

// differ reports whether two texts, of which an empty one is not known, are
// different.
func differ(a, b string) bool { return a != "" && b != "" && a != b }

// same compares the names. Either name of a secret may be without the six
// characters that the other has, and a parameter's without the first slash.
func (changed identified) same(named identified) bool {
	if named.service == parameterStore {
		return strings.TrimPrefix(changed.name, "/") == strings.TrimPrefix(named.name, "/")
	}
	return changed.name == named.name || withSuffix(changed.name, named.name) || withSuffix(named.name, changed.name)
}

func withSuffix(long, short string) bool {
	return strings.HasPrefix(long, short) && randomSuffix.FindString(long) == long[len(short):]
}

func (changed identified) found(in service, find *provider.Find) bool {
	names := []string{changed.name, randomSuffix.ReplaceAllString(changed.name, "")}
	if in == parameterStore {
		bare := strings.TrimPrefix(changed.name, "/")
		names = []string{bare, "/" + bare}
	}
	return slices.ContainsFunc(names, func(name string) bool { return find.MayMatch(name, false) })
}
