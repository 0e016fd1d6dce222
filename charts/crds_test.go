package charts_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kube-openapi/pkg/validation/strfmt"
	"k8s.io/kube-openapi/pkg/validation/validate"
	"sigs.k8s.io/yaml"

	"github.com/csi-secrets/csi-secrets/charts/csi-secrets/crds"
)

// definition is a CustomResourceDefinition, as much as these tests look at.
type definition struct {
	Metadata struct {
		Name        string
		Annotations map[string]string
	}
	Spec struct {
		Group    string
		Scope    string
		Names    map[string]string
		Versions []version
	}
}

type version struct {
	Name               string
	Served, Storage    bool
	Deprecated         bool
	DeprecationWarning string
	Subresources       any
	Schema             struct{ OpenAPIV3Schema map[string]any }
}

func decodeDefinition(t *testing.T, document []byte) definition {
	t.Helper()
	var d definition
	if err := yaml.Unmarshal(document, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// definitions returns the CRDs of the chart by their plural.
func definitions(t *testing.T) map[string]definition {
	t.Helper()
	documents, err := crds.Documents()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]definition{}
	for _, document := range documents {
		d := decodeDefinition(t, document)
		all[d.Spec.Names["plural"]] = d
	}
	if got := slices.Sorted(maps.Keys(all)); !slices.Equal(got, []string{"secretproviderclasses", "secretproviderclasspodstatuses"}) {
		t.Fatalf("the CRDs are %v", got)
	}
	return all
}

func upstreamDefinition(t *testing.T, plural string) definition {
	t.Helper()
	document, err := os.ReadFile(filepath.Join(upstreamFolder(t, "deploy"), "secrets-store.csi.x-k8s.io_"+plural+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return decodeDefinition(t, document)
}

// Nothing converts between the versions, so they must not differ.
func TestCRDVersionsHaveTheSameSchema(t *testing.T) {
	for plural, d := range definitions(t) {
		v := d.Spec.Versions
		if len(v) != 2 || v[0].Name != "v1" || v[1].Name != "v1alpha1" {
			t.Fatalf("%s has the versions %v", plural, v)
		}
		if !reflect.DeepEqual(v[0].Schema, v[1].Schema) {
			t.Errorf("the schemas of %s v1 and v1alpha1 differ", plural)
		}
		if d.Metadata.Annotations["helm.sh/resource-policy"] != "keep" {
			t.Errorf("Helm may remove %s", plural)
		}
	}
}

func TestCRDsHaveWhatUpstreamsHave(t *testing.T) {
	for plural, ours := range definitions(t) {
		theirs := upstreamDefinition(t, plural)
		if ours.Metadata.Name != theirs.Metadata.Name || ours.Spec.Group != theirs.Spec.Group || ours.Spec.Scope != theirs.Spec.Scope || !maps.Equal(ours.Spec.Names, theirs.Spec.Names) {
			t.Errorf("%s is named otherwise than upstream's", plural)
		}
		for i, their := range theirs.Spec.Versions {
			our := ours.Spec.Versions[i]
			their.Schema, our.Schema = struct{ OpenAPIV3Schema map[string]any }{}, struct{ OpenAPIV3Schema map[string]any }{}
			if !reflect.DeepEqual(our, their) {
				t.Errorf("%s: version %+v, want %+v", plural, our, their)
			}
			covers(t, plural+"/"+their.Name, ours.Spec.Versions[i].Schema.OpenAPIV3Schema, theirs.Spec.Versions[i].Schema.OpenAPIV3Schema)
		}
	}
}

// covers checks that ours has every property of theirs, of the same type, and
// demands no more of it.
func covers(t *testing.T, path string, ours, theirs map[string]any) {
	t.Helper()
	demands := func(s map[string]any) map[string]any {
		s = maps.Clone(s)
		for _, key := range []string{"description", "properties", "items", "additionalProperties"} {
			delete(s, key)
		}
		return s
	}
	if !reflect.DeepEqual(demands(ours), demands(theirs)) {
		t.Errorf("%s: %v, want %v", path, demands(ours), demands(theirs))
	}
	for _, key := range []string{"items", "additionalProperties"} {
		their, ok := theirs[key].(map[string]any)
		our, ok2 := ours[key].(map[string]any)
		if ok != ok2 {
			t.Errorf("%s: only one has %s", path, key)
		} else if ok {
			covers(t, path+"/"+key, our, their)
		}
	}
	properties, _ := ours["properties"].(map[string]any)
	for name, their := range mapOf(theirs["properties"]) {
		our, ok := properties[name].(map[string]any)
		if !ok {
			t.Errorf("%s has no %s", path, name)
			continue
		}
		covers(t, path+"/"+name, our, their.(map[string]any))
	}
}

func mapOf(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func TestObjectsFitTheCRDs(t *testing.T) {
	read := func(name string) string {
		content, err := os.ReadFile(filepath.Join("testdata", "objects", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	class, status := read("class.yaml"), read("status.yaml")
	all := definitions(t)
	for _, c := range []struct{ name, plural, object, wrong string }{
		{"a class", "secretproviderclasses", class, ""},
		{"a class of v1alpha1 with its status", "secretproviderclasses", class + "status: {byPod: [{id: a, namespace: b}]}\n", ""},
		{"an empty class", "secretproviderclasses", "{}", ""},
		{"a class without parameters", "secretproviderclasses", "spec: {provider: vault}", ""},
		{"parameters that are no texts", "secretproviderclasses", "spec: {parameters: {a: [b]}}", "spec.parameters.a"},
		{"a status", "secretproviderclasspodstatuses", status, ""},
		{"a status as upstream writes it", "secretproviderclasspodstatuses", "status: {podName: p, secretProviderClassName: c, mounted: true, targetPath: /t, objects: [{id: a, version: '1'}]}", ""},
		{"an empty status", "secretproviderclasspodstatuses", "status: {}", ""},
		{"a time that is none", "secretproviderclasspodstatuses", "status: {mountedAt: yesterday}", "status.mountedAt"},
		{"a condition without reason", "secretproviderclasspodstatuses", "status: {conditions: [{type: Ready, status: 'True', message: '', lastTransitionTime: '2026-01-02T03:04:05Z'}]}", "status.conditions[0].reason"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var object any
			if err := yaml.Unmarshal([]byte(c.object), &object); err != nil {
				t.Fatal(err)
			}
			for _, v := range all[c.plural].Spec.Versions {
				err := fits(t, v, object)
				if c.wrong == "" && err != nil {
					t.Errorf("%s: %v", v.Name, err)
				}
				if c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
					t.Errorf("%s: got %v, want an error about %s", v.Name, err, c.wrong)
				}
			}
		})
	}
}

// fits validates an object with the validator of the API server.
func fits(t *testing.T, v version, object any) error {
	t.Helper()
	content, err := json.Marshal(v.Schema.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	var s spec.Schema
	if err := json.Unmarshal(content, &s); err != nil {
		t.Fatal(err)
	}
	return validate.NewSchemaValidator(&s, nil, "", strfmt.Default).Validate(object).AsError()
}
