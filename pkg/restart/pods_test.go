package restart

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/cluster"
)

func status(pod, className string, changed time.Duration) *cluster.PodStatus {
	mounted := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	s := &cluster.PodStatus{Status: cluster.Status{PodName: pod, SecretProviderClassName: className, MountedAt: &metav1.Time{Time: mounted}, LastRotationTime: &metav1.Time{Time: mounted.Add(changed)}}}
	s.Namespace, s.Name = "shop", pod+"-shop-"+className
	s.OwnerReferences = []metav1.OwnerReference{{Kind: "Pod", Name: pod, UID: types.UID("uid-" + pod)}}
	return s
}

func wanting(name, onChange string) *class.SecretProviderClass {
	c := &class.SecretProviderClass{}
	c.Namespace, c.Name, c.Spec.Parameters = "shop", name, map[string]string{"onChange": onChange}
	return c
}

// takes checks of which pods there is news.
func takes(t *testing.T, v *view, step string, want ...types.UID) {
	t.Helper()
	got, _, _ := v.take()
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("%s: there is news of %v, want %v", step, got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func TestNothingIsKnownBeforeEverythingWasListed(t *testing.T) {
	for _, first := range []string{"statuses", "classes"} {
		v := newView()
		lists := map[string]func(){
			"statuses": func() { must(t, v.statusStore().Replace([]any{status("web", "db", time.Hour)}, "1")) },
			"classes":  func() { must(t, v.classStore().Replace(nil, "1")) },
		}
		lists[first]()
		if _, _, ok := v.take(); ok {
			t.Errorf("with %s alone there is news", first)
		}
		lists["statuses"]()
		lists["classes"]()
		takes(t, v, "with both", "uid-web")
	}
}

func TestAListReplacesWhatWasKnown(t *testing.T) {
	v := newView()
	must(t, v.statusStore().Replace([]any{status("a", "db", time.Hour), status("b", "db", time.Hour), status("c", "db", 0)}, "1"))
	must(t, v.classStore().Replace([]any{wanting("db", "- action: restart"), wanting("tls", "- action: touch"), wanting("bad", "- action: dance")}, "1"))
	takes(t, v, "at first", "uid-a", "uid-b")
	if len(v.classes) != 1 {
		t.Errorf("the classes that want restarts are %v", v.classes)
	}
	must(t, v.statusStore().Replace([]any{status("b", "db", time.Hour), status("c", "db", time.Minute)}, "2"))
	takes(t, v, "after another list", "uid-a", "uid-c")
	if _, ok := v.get("uid-a", true); ok {
		t.Error("a pod of which no status tells is known")
	}
	must(t, v.classStore().Replace(nil, "2"))
	if p, ok := v.get("uid-b", false); !ok || len(p.changes) != 0 {
		t.Errorf("without the class got %v, %v", p, ok)
	}
}

func TestThereIsNewsOfAPodWhenItsFilesChange(t *testing.T) {
	v := newView()
	must(t, v.statusStore().Replace(nil, "1"))
	must(t, v.classStore().Replace([]any{wanting("db", "- action: restart")}, "1"))
	for _, step := range []struct {
		name string
		to   *cluster.PodStatus
		want []types.UID
	}{
		{"a mount", status("web", "db", 0), nil},
		{"a change", status("web", "db", time.Minute), []types.UID{"uid-web"}},
		{"the same in other words", status("web", "db", time.Minute), nil},
		{"another change", status("web", "db", time.Hour), []types.UID{"uid-web"}},
		{"a status without times", &cluster.PodStatus{ObjectMeta: status("web", "db", 0).ObjectMeta}, []types.UID{"uid-web"}},
		{"a status without a pod", &cluster.PodStatus{Status: status("lone", "db", time.Hour).Status}, nil},
	} {
		must(t, v.statusStore().Update(step.to))
		takes(t, v, step.name, step.want...)
	}
	must(t, v.statusStore().Add(status("web", "tls", time.Hour)))
	must(t, v.statusStore().Add(status("web", "db", time.Hour)))
	takes(t, v, "changes of two classes", "uid-web")
	if p, _ := v.get("uid-web", false); len(p.changes) != 1 || p.changes[0].name != "db" {
		t.Errorf("the reasons are %v", p.changes)
	}
	if p, _ := v.get("uid-web", true); len(p.changes) != 2 {
		t.Errorf("the reasons are %v", p.changes)
	}
	if err := v.statusStore().Update(wanting("db", "")); err == nil {
		t.Error("a class is taken for a status")
	}
}
