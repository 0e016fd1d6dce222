package aws

import (
	"testing"
)

func TestWhoMayShareAnAnswer(t *testing.T) {
	w := newWorld(t)
	w.roles["other"] = appRole
	replica, other := frontend, frontend
	replica.Pod, replica.PodUID = "web-2", "p2"
	other.Name, other.UID = "other", "s2"
	const objects = "- {objectName: db, objectType: secretsmanager}"
	key := func(v *volume) string {
		t.Helper()
		key, ok := v.Identity(t.Context(), v.request)
		if !ok {
			t.Error("it is not known who asks")
		}
		return key
	}
	if a, b := key(w.mount(frontend, objectsKey, objects)), key(w.mount(replica, objectsKey, objects)); a != b {
		t.Error("replicas are two identities")
	}
	different := map[string]string{}
	for name, v := range map[string]*volume{
		"a pod":                            w.mount(frontend, objectsKey, objects),
		"another service account":          w.mount(other, objectsKey, objects),
		"another region":                   w.mount(frontend, objectsKey, objects, regionKey, "eu-west-1"),
		"two regions":                      w.mount(frontend, objectsKey, objects, failoverRegionKey, "us-east-1"),
		"Pod Identity":                     w.mount(frontend, objectsKey, objects, podIdentityKey, "true"),
		"Pod Identity, of another replica": w.mount(replica, objectsKey, objects, podIdentityKey, "true"),
	} {
		k := key(v)
		if same, taken := different[k]; taken {
			t.Errorf("%s and %s are one identity", name, same)
		}
		different[k] = name
	}
	before := key(w.mount(frontend, objectsKey, objects))
	w.roles[frontend.Name] = appRole + "2"
	if key(w.mount(frontend, objectsKey, objects)) == before {
		t.Error("with another role it is the same identity")
	}
	w.roles[frontend.Name] = ""
	for _, v := range []*volume{w.mount(frontend, objectsKey, objects), w.mount(other, objectsKey, "- {}")} {
		if _, ok := v.Identity(t.Context(), v.request); ok {
			t.Error("nobody can say who that is")
		}
	}
}
