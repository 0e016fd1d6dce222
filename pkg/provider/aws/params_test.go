package aws

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// classOf reads the parameters of the class in a YAML text.
func classOf(t *testing.T, text string) map[string]string {
	t.Helper()
	var class struct {
		Spec struct {
			Provider   string
			Parameters map[string]string
		}
	}
	if err := yaml.Unmarshal([]byte(text), &class); err != nil || class.Spec.Provider != "aws" {
		t.Fatalf("this is no class of aws, %v:\n%s", err, text)
	}
	return class.Spec.Parameters
}

func classFile(t *testing.T, path string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return classOf(t, string(text))
}

func problems(parameters map[string]string) string {
	p, err := New(Config{})
	if err != nil {
		return err.Error()
	}
	var all []string
	for _, problem := range p.Validate(parameters) {
		all = append(all, problem.Error())
	}
	return strings.Join(all, "\n")
}

func TestClassesOfTheDocumentsHaveNoMistake(t *testing.T) {
	for _, pattern := range []string{"testdata/*.yaml", "../../../examples/aws/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("there are no %s, %v", pattern, err)
		}
		for _, file := range files {
			got, mistakes := problems(classFile(t, file)), map[string]int{
				// The volume's first folder cannot be "..mypath", whoever writes the files.
				"testdata/traversal.yaml": 9, "testdata/not-traversal.yaml": 1,
			}[file]
			if n := strings.Count(got, "parameter "); n != mistakes {
				t.Errorf("%s: there are %d mistakes, not %d:\n%s", file, n, mistakes, got)
			}
		}
	}
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) == 0 {
		t.Error("README.md shows no class")
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		if strings.Contains(block, "kind: SecretProviderClass") {
			if got := problems(classOf(t, block)); got != "" {
				t.Errorf("README.md: %s", got)
			}
		}
	}
}

// The mistakes of secret_descriptor_test.go and more. want is the line and words.
func TestMistakesAreToldWithTheirLine(t *testing.T) {
	const arns = "arn:aws:secretsmanager:us-west-2:123456789012:secret:x-ABCdef"
	two := []string{regionKey, "us-west-1", failoverRegionKey, "us-west-2"}
	for name, test := range map[string]struct {
		objects string
		want    string
		others  []string
	}{
		"no name":                        {"- objectType: ssmparameter", `"objectName": it is missing`, nil},
		"a broken ARN":                   {`- {objectName: "arn::"}`, "is not an ARN", nil},
		"another service":                {"- objectName: arn:aws:sts:us-west-2:123456789012:parameter/feaw", `service "sts"`, nil},
		"neither type nor ARN":           {"- objectName: SomeSecret", `"objectType": it is missing`, nil},
		"an unknown type":                {"- {objectName: x, objectType: sts}", `"sts" is neither secretsmanager nor ssmparameter`, nil},
		"ssm as a type":                  {"- {objectName: x, objectType: ssm}", `"ssm" is neither`, nil},
		"a type that is not the ARN's":   {"- {objectName: '" + arns + "', objectType: ssmparameter}", "it is an ARN of the service", nil},
		"version and label":              {"- {objectName: x, objectType: ssmparameter, objectVersion: 1, objectVersionLabel: a}", "excludes objectVersionLabel", nil},
		"a name twice":                   {"- {objectName: x, objectType: ssmparameter}\n- {objectName: x, objectType: ssmparameter}", "line 2", nil},
		"an alias twice":                 {"- {objectName: x, objectType: ssmparameter, objectAlias: a}\n- {objectName: y, objectType: ssmparameter, objectAlias: a}", `the file "a" is another object's too`, nil},
		"an alias of jmesPath twice":     {"- {objectName: x, objectType: ssmparameter, objectAlias: a}\n- {objectName: y, objectType: ssmparameter, jmesPath: [{path: a, objectAlias: a}]}", `the file "a"`, nil},
		"jmesPath without alias":         {"- {objectName: y, objectType: ssmparameter, jmesPath: [{path: a}]}", "an entry lacks", nil},
		"jmesPath without path":          {"- {objectName: y, objectType: ssmparameter, jmesPath: [{objectAlias: a}]}", "an entry lacks", nil},
		"no expression":                  {"- {objectName: y, objectType: ssmparameter, jmesPath: [{path: .a, objectAlias: a}]}", "is not a JMESPath expression", nil},
		"an expression that panics":      {"- {objectName: y, objectType: ssmparameter, jmesPath: [{path: aé, objectAlias: a}]}", "is not a JMESPath expression", nil},
		"an endless expression":          {"- {objectName: y, objectType: ssmparameter, jmesPath: [{path: '" + strings.Repeat("(", 5000) + "', objectAlias: a}]}", "has more than 4096 bytes", nil},
		"doubled lists":                  {"- {objectName: y, objectType: ssmparameter, jmesPath: [{path: 'to_string(" + strings.Repeat("[@,@]|", 40) + "@)', objectAlias: a}]}", "would multiply", nil},
		"doubled maps":                   {"- {objectName: y, objectType: ssmparameter, jmesPath: [{path: 'to_string(" + strings.Repeat("{a: @, b: @}|", 9) + "@)', objectAlias: a}]}", "would multiply", nil},
		"jmesPath no list":               {"- {objectName: y, objectType: ssmparameter, jmesPath: {path: a}}", "it is not a list", nil},
		"jmesPath no map":                {"- {objectName: y, objectType: ssmparameter, jmesPath: [a]}", "it is not a map", nil},
		"a mode of jmesPath":             {"- {objectName: y, objectType: ssmparameter, jmesPath: [{path: a, objectAlias: a, filePermission: 'abcd'}]}", `"abcd" is not a file mode`, nil},
		"a mode without quotes":          {"- {objectName: y, objectType: ssmparameter, jmesPath: [{path: a, objectAlias: a, filePermission: 0600}]}", "is not a text", nil},
		"an unknown field of jmesPath":   {"- {objectName: y, objectType: ssmparameter, jmesPath: [{path: a, objectAlias: a, fileMode: '1'}]}", `it has no "fileMode"`, nil},
		"a mode":                         {"- {objectName: y, objectType: ssmparameter, filePermission: abc9}", `"abc9" is not a file mode`, nil},
		"a translation":                  {"- {objectName: y, objectType: ssmparameter}", "neither False nor one character", []string{translationKey, "--"}},
		"not YAML":                       {"- objectName: y\n- {", "line 2", nil},
		"no objects":                     {" ", "it is missing", nil},
		"an unknown field":               {"- {objectName: y, objectType: ssmparameter, objectNam: z}", "does not know it", nil},
		"failover without alias":         {"- {objectName: y, objectType: ssmparameter, failoverObject: {objectName: z}}", "has no objectAlias", two},
		"failover of no ARN and no type": {"- {objectName: 'arn:aws:secretsmanager:us-west-1:123456789012:secret:x', objectAlias: a, failoverObject: {objectName: z}}", `"objectType": it is missing`, two},
		"failover of another service":    {"- {objectName: x, objectType: secretsmanager, objectAlias: a, failoverObject: {objectName: 'arn:aws:bad:us-west-2:123456789012:secret:x'}}", `service "bad"`, two},
		"an ARN of another region":       {"- {objectName: '" + arns + "'}", `not of "us-west-1"`, two},
		"failover to another region":     {"- {objectName: x, objectType: secretsmanager, objectAlias: a, failoverObject: {objectName: 'arn:aws:secretsmanager:eu-west-1:123456789012:secret:x'}}", `region "eu-west-1", not of "us-west-2"`, two},
		"failover without region":        {"- {objectName: y, objectType: ssmparameter, objectAlias: a, failoverObject: {objectName: z}}", "has no failoverRegion", nil},
		"failover of version and label":  {"- {objectName: y, objectType: ssmparameter, objectAlias: a, objectVersion: 1, failoverObject: {objectName: z, objectVersion: '1', objectVersionLabel: b}}", "excludes objectVersionLabel", two},
		"failover of another version":    {"- {objectName: y, objectType: ssmparameter, objectAlias: a, objectVersion: 1, failoverObject: {objectName: z, objectVersion: '2'}}", "its objectVersion is not that of the object", two},
		"failover to itself":             {"- {objectName: y, objectType: ssmparameter}", "it is the region itself", []string{regionKey, west, failoverRegionKey, west}},
		"no region":                      {"- {objectName: y, objectType: ssmparameter}", "is not a region", []string{regionKey, "evil.example.com/#"}},
		"no boolean":                     {"- {objectName: y, objectType: ssmparameter}", "is not a boolean", []string{podIdentityKey, "yes please"}},
		"no address type":                {"- {objectName: y, objectType: ssmparameter}", "none of ipv4, ipv6 and auto", []string{addressTypeKey, "ipx"}},
		"find and a name":                {"- {objectName: y, find: {prefix: a}, objectType: ssmparameter}", "it excludes find", nil},
		"find and a version":             {"- {find: {prefix: a}, objectType: ssmparameter, objectVersion: 1}", "it excludes find", nil},
		"find without type":              {"- {find: {prefix: a}}", `"objectType": it is missing`, nil},
	} {
		parameters := map[string]string{objectsKey: test.objects}
		for i := 0; i < len(test.others); i += 2 {
			parameters[test.others[i]] = test.others[i+1]
		}
		if got := problems(parameters); !strings.Contains(got, test.want) {
			t.Errorf("%s: got\n%s\nwithout %q", name, got, test.want)
		}
	}
}

func TestWhatAWSsProviderTakesIsTaken(t *testing.T) {
	for name, parameters := range map[string]map[string]string{
		"one name, by alias":    {objectsKey: "- {objectName: x, objectType: ssmparameter}\n- {objectName: x, objectType: ssmparameter, objectAlias: a, objectVersionLabel: b}"},
		"equal versions":        {regionKey: west, failoverRegionKey: east, objectsKey: "- {objectName: y, objectType: ssmparameter, objectAlias: a, objectVersion: v, failoverObject: {objectName: z, objectVersion: v}}"},
		"a failover label":      {regionKey: west, failoverRegionKey: east, objectsKey: "- {objectName: y, objectType: secretsmanager, objectAlias: a, objectVersionLabel: v, failoverObject: {objectName: z, objectVersionLabel: w}}"},
		"ARNs of both":          {regionKey: "us-west-1", failoverRegionKey: west, objectsKey: "- {objectName: 'arn:aws:secretsmanager:us-west-1:123456789012:secret:secret1', objectAlias: a, failoverObject: {objectName: 'arn:aws:secretsmanager:us-west-2:123456789012:secret:secret1'}}"},
		"an unknown region":     {failoverRegionKey: west, objectsKey: "- {objectName: 'arn:aws:ssm:eu-west-1:123456789012:parameter/x'}"},
		"addresses in capitals": {podIdentityKey: "T", addressTypeKey: "IPv6", objectsKey: "- {objectName: x, objectType: ssmparameter}"},
		"one long list":         {objectsKey: "- {objectName: x, objectType: ssmparameter, jmesPath: [{path: \"join('', ['postgres://', user, ':', password, '@', host, ':', port, '/', db, to_string({a: b, c: d})])\", objectAlias: a}]}"},
		"the oldest grammar":    {objectsKey: "array:\n  - |\n    objectName: x\n    objectType: ssmparameter"},
	} {
		if got := problems(parameters); got != "" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestTooManyObjects(t *testing.T) {
	if got := problems(map[string]string{objectsKey: list("ssmparameter", "p", maxObjects+1)}); !strings.Contains(got, "more than 1024") {
		t.Errorf("got %s", got)
	}
}

func TestEndpointsAreURLs(t *testing.T) {
	for _, wrong := range []Config{{STSURL: "sts.example.com"}, {SecretsManagerURL: "ftp://x"}, {ParameterStoreURL: ":"}, {Region: "a.b"}} {
		if _, err := New(wrong); err == nil {
			t.Errorf("%+v was taken", wrong)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("- {objectName: x, objectType: ssmparameter, jmesPath: [{path: a, objectAlias: b}], failoverObject: {objectName: z}}", "us-west-2", "_")
	f.Add("- {find: {prefix: a}, objectType: secretsmanager}", "", "False")
	f.Fuzz(func(t *testing.T, objects, region, translation string) {
		reader := provider.NewParams(map[string]string{objectsKey: objects, regionKey: region, failoverRegionKey: "eu-west-1", translationKey: translation})
		c := decode(reader, "")
		if reader.Err() != nil {
			return
		}
		for _, o := range c.objects {
			for _, path := range o.paths() {
				if o.find == nil && provider.CheckPath(path) != nil {
					t.Errorf("%q is the path of a file", path)
				}
			}
			if len(o.refs) != 2 || o.refs[0].service == "" || o.refs[1].service == "" {
				t.Errorf("%+v lacks a region", o.refs)
			}
		}
	})
}

func FuzzExtracts(f *testing.F) {
	f.Add(`{"a":{"b":"c"}}`, "a.b")
	f.Add(`[1,"\ud800",null]`, "[1]")
	f.Fuzz(func(_ *testing.T, document, expression string) {
		reader := provider.NewParams(map[string]string{objectsKey: fmt.Sprintf("- {objectName: x, objectType: ssmparameter, jmesPath: [{path: %q, objectAlias: a}]}", expression)})
		c := decode(reader, west)
		if reader.Err() == nil && len(c.objects) == 1 {
			_, _ = c.objects[0].extracts(provider.Request{}, []byte(document))
		}
	})
}
