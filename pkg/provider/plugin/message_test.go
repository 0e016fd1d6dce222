package plugin

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

func TestNobodyReplacesWhatAnotherGave(t *testing.T) {
	for name, tc := range map[string]struct {
		req    provider.Request
		key    string
		remedy string
	}{
		"the pod a parameter": {
			provider.Request{Parameters: map[string]string{"role": "canary-class"}, Attributes: map[string]string{"role": "canary-pod"}},
			"role", "remove it from the pod's volumeAttributes"},
		"the class what kubelet gave": {
			provider.Request{Parameters: map[string]string{"csi.storage.k8s.io/pod.name": "canary-class"}, Attributes: map[string]string{"csi.storage.k8s.io/pod.name": "canary-pod"}},
			"csi.storage.k8s.io/pod.name", "from the class's parameters"},
		"the class the tokens": {
			provider.Request{Parameters: map[string]string{tokensKey: "canary-class"}, RawTokens: secret.FromString("canary-token")},
			tokensKey, "from the class's parameters"},
		"the pod the tokens": {
			provider.Request{Attributes: map[string]string{tokensKey: "canary-pod"}, RawTokens: secret.FromString("canary-token")},
			tokensKey, "volumeAttributes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := encode(tc.req)
			wantError(t, err, provider.Invalid, tc.key, tc.remedy)
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("%v shows a value", err)
			}
		})
	}
	same := provider.Request{
		Parameters: map[string]string{"role": "x", tokensKey: "t"}, Attributes: map[string]string{"role": "x", tokensKey: "t"},
		RawTokens: secret.FromString("t"),
	}
	if _, err := encode(same); err != nil {
		t.Errorf("equal values are refused: %v", err)
	}
}

func TestKeysAreSorted(t *testing.T) {
	req := provider.Request{Parameters: map[string]string{"c": "3", "a": "1"}, Attributes: map[string]string{"b": "2"}}
	for range 20 {
		m, err := encode(req)
		if err != nil {
			t.Fatal(err)
		}
		if want := `{"a":"1","b":"2","c":"3"}`; m.GetAttributes() != want {
			t.Fatalf("attributes are %s, want %s", m.GetAttributes(), want)
		}
	}
}

func TestRefusedAnswerIsCleared(t *testing.T) {
	contents := []byte("canary")
	answer := &v1alpha1.MountResponse{ObjectVersion: []*v1alpha1.ObjectVersion{{}}, Files: []*v1alpha1.File{{Path: "a", Contents: contents}, nil}}
	_, err := decode(answer, false, asItIs)
	wantError(t, err, provider.Internal, "entry 2 of its files is empty")
	if strings.Trim(string(contents), "\x00") != "" {
		t.Errorf("the contents are still %q", contents)
	}
}

func TestAcceptedAnswerIsTakenOver(t *testing.T) {
	contents := []byte("x")
	answer := &v1alpha1.MountResponse{ObjectVersion: []*v1alpha1.ObjectVersion{{}}, Files: []*v1alpha1.File{{Path: "a", Contents: contents}}}
	result, err := decode(answer, false, asItIs)
	if err != nil {
		t.Fatal(err)
	}
	if &result.Files[0].Contents.Reveal()[0] != &contents[0] {
		t.Error("the contents were copied")
	}
}

// Whatever object writes, encoding/json reads as it would have read its own.
func FuzzObject(f *testing.F) {
	f.Add("key", "value")
	f.Add("\x00\n\t\"\\", "\u2028\xff\xc0é\U0001F600</script>")
	f.Fuzz(func(t *testing.T, key, value string) {
		values := map[string]string{key: value, key + "2": "x"}
		raw := map[string][]byte{}
		for k, v := range values {
			raw[k] = []byte(v)
		}
		text, err := json.Marshal(values)
		if err != nil {
			t.Fatal(err)
		}
		var want, got map[string]string
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(object(raw)), &got); err != nil {
			t.Fatalf("%q: %v", object(raw), err)
		}
		for k, v := range want {
			if got[k] != v || len(got) != len(want) {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
	})
}

// Whatever a provider answers becomes a result that has files, versions and
// permission bits only, or an error of a known kind.
func FuzzDecode(f *testing.F) {
	for _, m := range []*v1alpha1.MountResponse{
		{},
		{Error: &v1alpha1.Error{Code: "X"}},
		{ObjectVersion: []*v1alpha1.ObjectVersion{{Id: "a", Version: "1"}}, Files: []*v1alpha1.File{{Path: "../a", Mode: -1, Contents: []byte("x")}}},
		{ObjectVersion: []*v1alpha1.ObjectVersion{{}}, Files: []*v1alpha1.File{{Path: "a/b", Mode: 0o644, Contents: []byte("x")}, {}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var answer v1alpha1.MountResponse
		if proto.Unmarshal(b, &answer) != nil {
			return
		}
		result, err := decode(&answer, false, asItIs)
		if err != nil {
			var known *provider.Error
			if !errors.As(err, &known) {
				t.Fatalf("%v is of no known kind", err)
			}
			if len(result.Files) != 0 || len(result.Versions) != 0 {
				t.Fatalf("a result comes with %v", err)
			}
			return
		}
		if len(result.Files) != len(answer.GetFiles()) || len(result.Files) == 0 || len(result.Versions) != len(answer.GetObjectVersion()) || len(result.Versions) == 0 {
			t.Fatalf("%d files and %d versions of %v", len(result.Files), len(result.Versions), &answer)
		}
		for i, file := range result.Files {
			if file.Mode&^0o777 != 0 || int32(file.Mode) != answer.GetFiles()[i].GetMode() {
				t.Fatalf("mode %o of %d", file.Mode, answer.GetFiles()[i].GetMode())
			}
		}
	})
}
