package cluster

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/csi-secrets/csi-secrets/pkg/class"
)

func TestAPodAsksForARefreshByItsAnnotation(t *testing.T) {
	var refreshed []string
	pods := &Pods{refresh: func(uid string) { refreshed = append(refreshed, uid) }, seen: map[place]asked{}}
	s := pods.store()
	pod := func(uid, value string) *metav1.PartialObjectMetadata {
		m := &metav1.PartialObjectMetadata{}
		m.Namespace, m.Name = "shop", uid[:1]
		if m.UID = types.UID(uid); value != "" {
			m.Annotations = map[string]string{class.RefreshAnnotation: value}
		}
		return m
	}
	for _, step := range []struct {
		what string
		do   func() error
		want string
	}{
		{"what is there at first", func() error { return s.Replace([]any{pod("a", ""), pod("b", "1")}, "") }, "[]"},
		{"a new pod", func() error { return s.Add(pod("c", "1")) }, "[]"},
		{"another change of the pod", func() error { return s.Update(pod("b", "1")) }, "[]"},
		{"a first annotation", func() error { return s.Update(pod("a", "1")) }, "[a]"},
		{"another value", func() error { return s.Update(pod("b", "2")) }, "[b]"},
		{"an annotation that goes", func() error { return s.Update(pod("b", "")) }, "[]"},
		{"what happened while the watch was broken", func() error { return s.Replace([]any{pod("a", "2"), pod("b", "")}, "") }, "[a]"},
		{"a pod of a name that came back", func() error { return s.Add(pod("c-again", "5")) }, "[]"},
		{"a pod of a name whose end was not seen", func() error { return s.Add(pod("c-once-more", "6")) }, "[]"},
		{"a pod that goes", func() error { return s.Delete(pod("a", "2")) }, "[]"},
	} {
		refreshed = nil
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(refreshed); got != step.want {
			t.Errorf("%s: %s asked, want %s", step.what, got, step.want)
		}
	}
	if len(pods.seen) != 2 {
		t.Errorf("%d pods are kept", len(pods.seen))
	}
	if err := s.Add(&PodStatus{}); err == nil {
		t.Error("another object is taken for a pod")
	}
}
