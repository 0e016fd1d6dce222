package sync

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/managedfields/managedfieldstest"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/rest"
)

// server stands in for an API server: Secrets with server-side apply as Kubernetes
// has it (its own library), merge patches, optimistic locks and preconditions; and
// the metadata of what pods belong to. Its transport does not leave the process, so
// that time stands still while it works. The test of the whole against a real API
// server is in test/e2e.
type server struct {
	t      *testing.T
	fields *managedfields.FieldManager
	causes []metav1.StatusCause // for which it would not take another type

	mu      sync.Mutex
	secrets map[place]*corev1.Secret
	others  map[string]*metav1.PartialObjectMetadata // by path, such as pods/shop/web
	version int
	writes  []string // such as "apply shop/db"
	reads   int      // of Secrets
	looks   int      // at what pods belong to
	// before is called with each request, and may answer it with an error.
	before func(method, what string) *metav1.Status
}

// typeConverter knows the schema of a Secret. It takes a while to make.
var typeConverter = sync.OnceValue(func() managedfields.TypeConverter {
	scheme := runtime.NewScheme()
	_ = corev1.AddToScheme(scheme)
	return applyconfigurations.NewTypeConverter(scheme)
})

func newServer(t *testing.T) *server {
	return &server{
		t: t, fields: managedfieldstest.NewFakeFieldManager(typeConverter(), corev1.SchemeGroupVersion.WithKind("Secret")),
		secrets: map[place]*corev1.Secret{}, others: map[string]*metav1.PartialObjectMetadata{},
	}
}

// client makes clients that reach the server.
func (s *server) client(version schema.GroupVersion, add func(*runtime.Scheme)) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, version)
	add(scheme)
	config := &rest.Config{Host: "http://api.test", QPS: -1, APIPath: "/apis"}
	if version.Group == "" {
		config.APIPath = "/api"
	}
	config.GroupVersion, config.NegotiatedSerializer = &version, serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientForConfigAndClient(config, &http.Client{Transport: s})
}

func (s *server) writer() *Writer {
	s.t.Helper()
	w, err := newWriter(s.client, FieldManager)
	if err != nil {
		s.t.Fatal(err)
	}
	return w
}

func status(code int, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message}
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	_, path, _ := strings.Cut(r.URL.Path, "/namespaces/")
	parts := strings.Split(path, "/") // namespace, resource, name
	if r.Method == http.MethodPost && r.URL.Query().Get("dryRun") == "All" {
		parts = append(parts, "tried")
	}
	if len(parts) != 3 {
		s.t.Errorf("%s %s is a list, or of no namespace", r.Method, r.URL)
		parts = make([]string, 3)
	}
	at, resource := place{Namespace: parts[0], Name: parts[2]}, parts[1]
	s.mu.Lock()
	before := s.before
	s.mu.Unlock()
	var object any
	var failure *metav1.Status
	if before != nil {
		failure = before(r.Method, resource+"/"+at.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case failure != nil:
	case resource != "secrets":
		s.looks++
		if found := s.others[resource+"/"+at.String()]; found != nil && r.Header.Get("Accept") == "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1" {
			object = found
		} else {
			failure = status(404, metav1.StatusReasonNotFound, "there is none")
		}
	case r.Method == http.MethodGet:
		s.reads++
		if found := s.secrets[at]; found != nil {
			object = found
		} else {
			failure = status(404, metav1.StatusReasonNotFound, "there is none")
		}
	case r.Method == http.MethodPost:
		object = status(200, "", "")
	case r.Method == http.MethodDelete:
		failure = s.delete(at, body)
		object = status(200, "", "")
	case r.URL.Query().Get("dryRun") == "All":
		var sent corev1.Secret
		if err := json.Unmarshal(body, &sent); err != nil || r.Header.Get("Content-Type") != string(types.ApplyPatchType) {
			s.t.Errorf("%s: %v", r.URL, err)
		}
		object = status(200, "", "")
		if has := s.secrets[at]; has != nil && has.Type != sent.Type {
			failure = status(422, metav1.StatusReasonInvalid, "")
			failure.Details = &metav1.StatusDetails{Causes: append([]metav1.StatusCause{{Type: metav1.CauseTypeFieldValueInvalid, Field: "type"}}, s.causes...)}
		}
	default:
		kind := types.PatchType(r.Header.Get("Content-Type"))
		if manager := r.URL.Query().Get("fieldManager"); manager != FieldManager {
			s.t.Errorf("the field manager is %q", manager)
		}
		var made *corev1.Secret
		if made, failure = s.patch(at, kind, body); failure == nil {
			object = metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}, ObjectMeta: made.ObjectMeta}
		}
	}
	code := http.StatusOK
	if failure != nil {
		code, object = int(failure.Code), failure
	}
	answer, err := json.Marshal(object)
	if err != nil {
		s.t.Error(err)
	}
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(answer)), Request: r}, nil
}

// patch changes a Secret. Callers hold s.mu.
func (s *server) patch(at place, kind types.PatchType, body []byte) (*corev1.Secret, *metav1.Status) {
	var sent corev1.Secret
	if err := json.Unmarshal(body, &sent); err != nil {
		s.t.Errorf("%s: %v", body, err)
	}
	has := s.secrets[at]
	switch {
	case has == nil && (kind != types.ApplyPatchType || sent.ResourceVersion != ""):
		return nil, status(404, metav1.StatusReasonNotFound, "there is none")
	case has != nil && (sent.ResourceVersion != "" && sent.ResourceVersion != has.ResourceVersion || sent.UID != "" && sent.UID != has.UID):
		return nil, status(409, metav1.StatusReasonConflict, "it has changed")
	}
	if kind == types.ApplyPatchType {
		live := &corev1.Secret{}
		if has != nil {
			live = has.DeepCopy()
		}
		live.APIVersion, live.Kind = "v1", "Secret"
		sent.ResourceVersion, sent.APIVersion, sent.Kind = "", "v1", "Secret"
		live.ResourceVersion = ""
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&sent)
		if err != nil {
			s.t.Fatal(err)
		}
		delete(content["metadata"].(map[string]any), "creationTimestamp")
		merged, err := s.fields.Apply(live, &unstructured.Unstructured{Object: content}, FieldManager, true)
		if err != nil {
			s.t.Fatal(err)
		}
		return s.store("apply", at, has, s.typed(merged))
	}
	original, _ := json.Marshal(has)
	patched, err := strategicpatch.StrategicMergePatch(original, body, corev1.Secret{})
	if err != nil {
		s.t.Fatal(err)
	}
	var next corev1.Secret
	if err := json.Unmarshal(patched, &next); err != nil {
		s.t.Fatal(err)
	}
	verb := "merge"
	if kind == types.StrategicMergePatchType {
		verb = "own"
	}
	return s.update(verb, at, &next, FieldManager)
}

// update stores a Secret as a manager has changed it. Callers hold s.mu.
func (s *server) update(verb string, at place, next *corev1.Secret, manager string) (*corev1.Secret, *metav1.Status) {
	has := s.secrets[at]
	live := has
	if live == nil {
		live = &corev1.Secret{}
	}
	live, next = live.DeepCopy(), next.DeepCopy()
	live.APIVersion, live.Kind, next.APIVersion, next.Kind = "v1", "Secret", "v1", "Secret"
	merged, err := s.fields.Update(live, next, manager)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.store(verb, at, has, s.typed(merged))
}

// typed returns what the library made, as a Secret.
func (s *server) typed(merged runtime.Object) *corev1.Secret {
	if made, ok := merged.(*corev1.Secret); ok {
		return made
	}
	made := &corev1.Secret{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(merged.(*unstructured.Unstructured).Object, made); err != nil {
		s.t.Fatal(err)
	}
	return made
}

func (s *server) store(verb string, at place, has, next *corev1.Secret) (*corev1.Secret, *metav1.Status) {
	s.version++
	if has != nil && has.Type != next.Type {
		return nil, status(422, metav1.StatusReasonInvalid, "type: field is immutable")
	}
	next.Namespace, next.Name, next.ResourceVersion = at.Namespace, at.Name, strconv.Itoa(s.version)
	if has == nil {
		next.UID = types.UID(fmt.Sprintf("secret-%d", s.version))
	} else {
		next.UID = has.UID
	}
	s.secrets[at] = next
	s.writes = append(s.writes, verb+" "+at.String())
	return next, nil
}

func (s *server) delete(at place, body []byte) *metav1.Status {
	var options metav1.DeleteOptions
	if err := json.Unmarshal(body, &options); err != nil || options.Preconditions == nil {
		s.t.Errorf("a delete without preconditions: %s", body)
		return status(400, metav1.StatusReasonBadRequest, "")
	}
	has := s.secrets[at]
	switch {
	case has == nil:
		return status(404, metav1.StatusReasonNotFound, "there is none")
	case *options.Preconditions.UID != has.UID || *options.Preconditions.ResourceVersion != has.ResourceVersion:
		return status(409, metav1.StatusReasonConflict, "it has changed")
	}
	delete(s.secrets, at)
	s.writes = append(s.writes, "delete "+at.String())
	return nil
}

// edit changes a Secret as somebody else would, one that is made where change is of
// none.
func (s *server) edit(at place, manager string, change func(*corev1.Secret)) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	next := &corev1.Secret{}
	if has := s.secrets[at]; has != nil {
		next = has.DeepCopy()
	}
	change(next)
	next.Namespace, next.Name = at.Namespace, at.Name
	if _, failure := s.update("edit", at, next, manager); failure != nil {
		s.t.Fatal(failure.Message)
	}
}

func (s *server) secret(at place) *corev1.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	if has := s.secrets[at]; has != nil {
		return has.DeepCopy()
	}
	return nil
}

// text returns what a Secret has, false where there is none.
func (s *server) text(at place, key string) (string, bool) {
	has := s.secret(at)
	if has == nil {
		return "", false
	}
	value, ok := has.Data[key]
	return string(value), ok
}

// expect checks what was written since the last call.
func (s *server) expect(writes ...string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.writes, writes) {
		s.t.Errorf("written was %q, want %q", s.writes, writes)
	}
	s.writes = nil
}

// add makes an object that controls pods, or is one; controller is its path, or "".
func (s *server) add(path, controller string) *metav1.PartialObjectMetadata {
	parts := strings.Split(path, "/")
	made := &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"},
		ObjectMeta: metav1.ObjectMeta{Namespace: parts[1], Name: parts[2], UID: types.UID("uid-" + parts[2])},
	}
	if controller != "" {
		yes, parts := true, strings.Split(controller, "/")
		kind := map[string][2]string{
			"replicasets": {"apps/v1", "ReplicaSet"}, "deployments": {"apps/v1", "Deployment"}, "statefulsets": {"apps/v1", "StatefulSet"},
			"jobs": {"batch/v1", "Job"}, "cronjobs": {"batch/v1", "CronJob"}, "rollouts": {"argoproj.io/v1alpha1", "Rollout"}, "nodes": {"v1", "Node"},
		}[parts[0]]
		made.OwnerReferences = []metav1.OwnerReference{{APIVersion: kind[0], Kind: kind[1], Name: parts[2], UID: types.UID("uid-" + parts[2]), Controller: &yes, BlockOwnerDeletion: &yes}}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.others[path] = made
	return made
}

// terminate says that a pod is about to go.
func (s *server) terminate(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := metav1.Now()
	s.others[path].DeletionTimestamp = &now
}

// collect does what Kubernetes' garbage collector does when an owner is gone.
func (s *server) collect(owner types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, has := range s.secrets {
		next := has.DeepCopy()
		next.OwnerReferences = slices.DeleteFunc(next.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == owner })
		switch {
		case len(next.OwnerReferences) == len(has.OwnerReferences):
		case len(next.OwnerReferences) == 0:
			delete(s.secrets, at)
		default:
			_, _ = s.update("collect", at, next, "kube-controller-manager")
		}
	}
}
