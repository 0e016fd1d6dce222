package restart

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/cluster"
	secretsync "github.com/csi-secrets/csi-secrets/pkg/sync/controller"
)

// interval is how far apart nodes see a change.
const interval = 2 * time.Minute

// world stands in for a cluster: for its API server, and for the controllers of
// workloads and the nodes as far as they concern a restart. It does not leave the
// process, so that time stands still while it works. test/e2e has a real one.
type world struct {
	t *testing.T
	// podTime is how long a rollout takes for each pod, and grace how long a pod
	// takes to end.
	podTime, grace time.Duration
	restarter      *Restarter // that ran last

	mu        sync.Mutex
	version   int
	workloads map[string]any // by path in the API
	sets      map[string]metav1.ObjectMeta
	pods      map[place]*livePod
	objects   map[string]map[place]any // what is watched, by resource
	watches   map[string][]chan string
	events    []corev1.Event
	patches   []patched
	rolling   map[string]int // rollouts under way, by workload
	most      int            // restarts under way at the same time

	requests map[string]int // by verb and resource
	// refuse is asked before a request is served, and answered by its status.
	refuse func(verb, path string) int
	// latency is how long an answer takes.
	latency func(path string) time.Duration
	// patched is called after a patch was applied; its error is that of the
	// connection on which the answer would go.
	patched func(path string) error
	// broken keeps rollouts from ending.
	broken bool
	// specs are those of pods that use Secrets, by workload.
	specs map[string]corev1.PodSpec
}

// livePod is a pod on its node.
type livePod struct {
	metav1.ObjectMeta
	workload string
	mounted  time.Time
	classes  []string
	spec     corev1.PodSpec
	began    map[string]time.Time // its containers, by name, as far as they run
	ended    bool                 // its containers
}

// patched is a restart.
type patched struct {
	path, body string
	at         time.Time
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, podTime: 3 * time.Second, grace: 30 * time.Second, workloads: map[string]any{}, sets: map[string]metav1.ObjectMeta{}, pods: map[place]*livePod{},
		specs:   map[string]corev1.PodSpec{},
		objects: map[string]map[place]any{statuses: {}, classes: {}, syncs: {}}, watches: map[string][]chan string{},
		rolling: map[string]int{}, requests: map[string]int{},
	}
}

const (
	statuses = "secretproviderclasspodstatuses"
	classes  = "secretproviderclasses"
	syncs    = "secretsyncs"
)

// run runs a Restarter until the test ends or stop is called.
func (w *world) run(config Config) (stop func()) {
	w.t.Helper()
	r, err := build(func(version schema.GroupVersion, add func(*apiruntime.Scheme)) (rest.Interface, error) {
		scheme := apiruntime.NewScheme()
		metav1.AddToGroupVersion(scheme, version)
		add(scheme)
		return rest.RESTClientForConfigAndClient(&rest.Config{
			Host: "http://api.test", APIPath: "/apis", QPS: -1,
			ContentConfig: rest.ContentConfig{GroupVersion: &version, NegotiatedSerializer: serializer.NewCodecFactory(scheme).WithoutConversion()},
		}, &http.Client{Transport: w})
	}, config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.restarter = r
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// RoundTrip implements http.RoundTripper.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if w.latency != nil {
		time.Sleep(w.latency(r.URL.Path))
	}
	path := strings.TrimPrefix(strings.Replace(r.URL.Path, "/apis/v1/", "/apis/core/v1/", 1), "/apis/")
	parts := strings.Split(path, "/") // group, version, namespaces, NAMESPACE, resource, name
	resource := parts[2]
	if resource == "namespaces" {
		resource = parts[4]
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests[r.Method+" "+resource]++
	if w.refuse != nil {
		if code := w.refuse(r.Method, path); code != 0 {
			return answer(r, code, nil), nil
		}
	}
	var name place
	if len(parts) == 6 {
		name = place{Namespace: parts[3], Name: parts[5]}
	}
	switch {
	case w.objects[resource] != nil && r.URL.Query().Get("sendInitialEvents") != "":
		return answer(r, http.StatusUnprocessableEntity, nil), nil
	case w.objects[resource] != nil && r.URL.Query().Get("watch") != "":
		return w.watch(r, resource), nil
	case w.objects[resource] != nil:
		return answer(r, http.StatusOK, map[string]any{
			"apiVersion": strings.Join(parts[:2], "/"), "kind": listKind[resource], "metadata": map[string]string{"resourceVersion": fmt.Sprint(w.version)},
			"items": slices.Collect(maps.Values(w.objects[resource])),
		}), nil
	case resource == "events":
		var e corev1.Event
		w.decode(r, &e)
		if slices.ContainsFunc(w.events, func(other corev1.Event) bool { return other.Namespace == e.Namespace && other.Name == e.Name }) {
			return answer(r, http.StatusConflict, "AlreadyExists"), nil
		}
		w.events = append(w.events, e)
		return answer(r, http.StatusCreated, e), nil
	case resource == "pods" && len(parts) == 5:
		return answer(r, http.StatusOK, w.page(parts[3], r.URL.Query())), nil
	case resource == "pods" && r.Header.Get("Accept") == "application/json, */*":
		if p := w.pods[name]; p != nil {
			return answer(r, http.StatusOK, p.object()), nil
		}
		return answer(r, http.StatusNotFound, "NotFound"), nil
	case resource == "pods" || resource == "replicasets":
		if !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata") {
			w.t.Errorf("%s is asked for as %s", path, r.Header.Get("Accept"))
		}
		found := metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}}
		if p := w.pods[name]; p != nil && resource == "pods" {
			found.ObjectMeta = p.ObjectMeta
		} else if set, ok := w.sets[path]; ok {
			found.ObjectMeta = set
		} else {
			return answer(r, http.StatusNotFound, "NotFound"), nil
		}
		return answer(r, http.StatusOK, found), nil
	}
	found := w.workloads[path]
	switch {
	case found == nil:
		return answer(r, http.StatusNotFound, "NotFound"), nil
	case r.Method == http.MethodPatch:
		return w.patch(r, path, found)
	}
	return answer(r, http.StatusOK, found), nil
}

var listKind = map[string]string{statuses: "SecretProviderClassPodStatusList", classes: "SecretProviderClassList", syncs: "SecretSyncList"}

func (w *world) decode(r *http.Request, into any) []byte {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		w.t.Error(err)
	}
	return body
}

// answer returns a response with a body, or with the reason of a failure.
func answer(r *http.Request, code int, body any) *http.Response {
	if code >= http.StatusBadRequest {
		body = map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": body, "message": "it is refused"}
	}
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(string(text))), Request: r}
}

func (w *world) watch(r *http.Request, resource string) *http.Response {
	events := make(chan string, 20_000)
	w.watches[resource] = append(w.watches[resource], events)
	reader, writer := io.Pipe()
	go func() {
		for {
			select {
			case <-r.Context().Done():
				_ = writer.CloseWithError(io.EOF)
				return
			case e := <-events:
				if _, err := io.WriteString(writer, e+"\n"); err != nil {
					return
				}
			}
		}
	}()
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: reader, Request: r}
}

// put makes an object one of those that are watched, and nil removes it. Callers
// hold w.mu.
func (w *world) put(resource string, at place, object metav1.Object) {
	w.version++
	kind := "MODIFIED"
	if object == nil {
		gone, ok := w.objects[resource][at]
		if !ok {
			return
		}
		kind, object = "DELETED", gone.(metav1.Object)
		delete(w.objects[resource], at)
	} else {
		w.objects[resource][at] = object
	}
	object.SetResourceVersion(fmt.Sprint(w.version))
	text, err := json.Marshal(map[string]any{"type": kind, "object": object})
	if err != nil {
		w.t.Error(err)
	}
	for _, events := range w.watches[resource] {
		events <- string(text)
	}
}

// patch applies what a restart writes, as far as a merge patch without null goes.
func (w *world) patch(r *http.Request, path string, found any) (*http.Response, error) {
	if got := r.Header.Get("Content-Type"); got != "application/merge-patch+json" || r.URL.Query().Get("fieldManager") != "csi-secrets-restart" {
		w.t.Errorf("the patch is a %s of %s", got, r.URL)
	}
	var sent struct{ Metadata metav1.ObjectMeta }
	body := w.decode(r, &sent)
	its := found.(metav1.Object)
	if sent.Metadata.ResourceVersion != its.GetResourceVersion() || sent.Metadata.UID != its.GetUID() {
		return answer(r, http.StatusConflict, "Conflict"), nil
	}
	if err := json.Unmarshal(body, found); err != nil {
		w.t.Error(err)
	}
	w.patches = append(w.patches, patched{path, string(body), time.Now()})
	w.roll(path)
	if w.patched != nil {
		if err := w.patched(path); err != nil {
			return nil, err
		}
	}
	return answer(r, http.StatusOK, found), nil
}

// touch gives a workload's object another version. Callers hold w.mu.
func (w *world) touch(path string) {
	w.version++
	w.workloads[path].(metav1.Object).SetResourceVersion(fmt.Sprint(w.version))
}

// roll begins a rollout of a workload whose template has changed. Callers hold
// w.mu.
func (w *world) roll(path string) {
	its := w.workloads[path].(metav1.Object)
	its.SetGeneration(its.GetGeneration() + 1)
	w.touch(path)
	w.rolling[path]++
	w.most = max(w.most, len(w.rolling))
	go func() {
		time.Sleep(w.podTime)
		var old []*livePod
		w.locked(func() {
			for _, p := range w.pods {
				if p.workload == path && p.DeletionTimestamp == nil {
					old = append(old, p)
				}
			}
			w.progress(path, 0, len(old))
		})
		for i, p := range old {
			time.Sleep(w.podTime)
			stop := false
			w.locked(func() {
				if stop = w.broken || w.pods[key(&p.ObjectMeta)] != p; stop {
					return
				}
				w.end(p)
				w.start(path, fmt.Sprintf("%s-r%d", strings.Split(p.Name, "-r")[0], its.GetGeneration()), p.classes...)
				if i < len(old)-1 {
					w.progress(path, i+1, len(old))
				}
			})
			if stop {
				return
			}
		}
		w.locked(func() {
			w.progress(path, len(old), len(old))
			if w.rolling[path]--; w.rolling[path] == 0 {
				delete(w.rolling, path)
			}
		})
	}()
}

// progress writes the status of a rollout that has replaced n of all pods. Callers
// hold w.mu.
func (w *world) progress(path string, n, all int) {
	updated, count := int32(n), int32(all)
	switch o := w.workloads[path].(type) {
	case *appsv1.Deployment:
		reason := "ReplicaSetUpdated"
		if n == all {
			reason = "NewReplicaSetAvailable"
		}
		o.Status = appsv1.DeploymentStatus{
			ObservedGeneration: o.Generation, Replicas: count, UpdatedReplicas: updated, AvailableReplicas: count,
			Conditions: []appsv1.DeploymentCondition{{Type: appsv1.DeploymentAvailable, Status: "True"}, {Type: appsv1.DeploymentProgressing, Status: "True", Reason: reason}},
		}
	case *appsv1.StatefulSet:
		o.Status.ObservedGeneration, o.Status.Replicas, o.Status.UpdatedReplicas = o.Generation, count, updated
		o.Status.UpdateRevision = fmt.Sprint(o.Generation)
		if n == all {
			o.Status.CurrentRevision = o.Status.UpdateRevision
		}
	case *appsv1.DaemonSet:
		o.Status = appsv1.DaemonSetStatus{ObservedGeneration: o.Generation, DesiredNumberScheduled: count, UpdatedNumberScheduled: updated}
	case *argoRollout:
		o.Status = map[string]any{"observedGeneration": fmt.Sprint(o.Generation), "phase": "Progressing", "updatedReplicas": all, "replicas": all, "currentPodHash": "new", "stableRS": "stable"}
		if n == all {
			o.Status["phase"], o.Status["restartedAt"] = "Healthy", o.Spec["restartAt"]
		}
	}
	w.touch(path)
}

// argoRollout is a Rollout, of which no type is linked.
type argoRollout struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              map[string]any `json:"spec"`
	Status            map[string]any `json:"status"`
}

func key(o *metav1.ObjectMeta) place { return place{Namespace: o.Namespace, Name: o.Name} }

func (w *world) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// add makes a workload of a kind in the namespace shop, with pods that mount
// classes.
func (w *world) add(kind, name string, pods int, mounts ...string) (path string) {
	resource := strings.ToLower(kind) + "s"
	meta := metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Generation: 1}
	w.mu.Lock()
	defer w.mu.Unlock()
	version := "apps/v1"
	n := int32(pods)
	var object any
	switch kind {
	case deployment:
		object = &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &n}}
	case statefulSet:
		object = &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Replicas: &n, UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: "RollingUpdate"}}}
	case daemonSet:
		object = &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: "RollingUpdate"}}}
	case rollout:
		version = "argoproj.io/v1alpha1"
		object = &argoRollout{ObjectMeta: meta, Spec: map[string]any{"replicas": n}}
	default:
		version = "batch/v1"
		object = &metav1.PartialObjectMetadata{ObjectMeta: meta}
	}
	path = version + "/namespaces/shop/" + resource + "/" + name
	w.workloads[path] = object
	w.progress(path, pods, pods)
	for i := range pods {
		w.start(path, fmt.Sprintf("%s-%d", name, i), mounts...)
	}
	return path
}

// start makes a pod, as its workload's controller and its node do. Callers hold
// w.mu.
func (w *world) start(path, name string, mounts ...string) *livePod {
	w.version++
	p := &livePod{workload: path, mounted: time.Now(), classes: mounts, spec: w.specs[path], began: map[string]time.Time{}}
	for _, c := range slices.Concat(p.spec.InitContainers, p.spec.Containers) {
		p.began[c.Name] = time.Now()
	}
	p.ObjectMeta = metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(fmt.Sprintf("pod-%d", w.version)), Labels: map[string]string{"rollouts-pod-template-hash": "stable"}}
	if path != "" {
		parts := strings.Split(path, "/")
		its := w.workloads[path].(metav1.Object)
		owner := controller(parts[0]+"/"+parts[1], kindOf[parts[4]], its.GetName(), its.GetUID())
		if parts[4] == "deployments" || parts[4] == "rollouts" {
			set := metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("%s-%d", its.GetName(), its.GetGeneration()), UID: types.UID(fmt.Sprintf("%s-%d", its.GetUID(), its.GetGeneration())), OwnerReferences: owner}
			w.sets["apps/v1/namespaces/shop/replicasets/"+set.Name] = set
			owner = controller("apps/v1", "ReplicaSet", set.Name, set.UID)
		}
		p.OwnerReferences = owner
	}
	w.pods[key(&p.ObjectMeta)] = p
	for _, c := range mounts {
		w.report(p, c, p.mounted)
	}
	return p
}

var kindOf = map[string]string{"deployments": deployment, "statefulsets": statefulSet, "daemonsets": daemonSet, "rollouts": rollout, "jobs": "Job", "replicasets": "ReplicaSet", "clonesets": "CloneSet"}

func controller(version, kind, name string, uid types.UID) []metav1.OwnerReference {
	yes := true
	return []metav1.OwnerReference{{APIVersion: version, Kind: kind, Name: name, UID: uid, Controller: &yes}}
}

// end has a pod end, after its grace period. Callers hold w.mu.
func (w *world) end(p *livePod) {
	now := metav1.Now()
	p.DeletionTimestamp = &now
	go func() {
		time.Sleep(w.grace)
		w.locked(func() {
			if w.pods[key(&p.ObjectMeta)] == p {
				delete(w.pods, key(&p.ObjectMeta))
			}
			for _, c := range p.classes {
				w.put(statuses, statusOf(p, c), nil)
			}
		})
	}()
}

func statusOf(p *livePod, className string) place {
	return place{Namespace: p.Namespace, Name: p.Name + "-shop-" + className}
}

// report writes a pod's status for a class, as the pod's node does. Callers hold
// w.mu.
func (w *world) report(p *livePod, className string, changed time.Time) {
	at := statusOf(p, className)
	mounted, rotated := metav1.NewTime(p.mounted.Truncate(time.Second)), metav1.NewTime(changed.Truncate(time.Second))
	s := &cluster.PodStatus{Status: cluster.Status{PodName: p.Name, SecretProviderClassName: className, MountedAt: &mounted, LastRotationTime: &rotated}}
	s.APIVersion, s.Kind, s.Namespace, s.Name = class.GroupVersion.String(), cluster.PodStatusKind, at.Namespace, at.Name
	s.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID}}
	w.put(statuses, at, s)
}

// class makes a class of the namespace shop, or changes whether it wants restarts.
func (w *world) class(name string, wants bool) {
	c := &class.SecretProviderClass{}
	c.APIVersion, c.Kind, c.Namespace, c.Name = class.GroupVersion.String(), class.Kind, "shop", name
	c.Spec.Parameters = map[string]string{"onChange": "- action: touch"}
	if wants {
		c.Spec.Parameters["onChange"] = "- action: restart"
	}
	w.locked(func() { w.put(classes, place{Namespace: "shop", Name: name}, c) })
}

// change changes the secret of a class. The nodes of its pods see that one after
// the other, within the interval; the pods that start from now on have it.
func (w *world) change(className string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, p := range slices.SortedFunc(maps.Values(w.pods), func(a, b *livePod) int { return strings.Compare(a.Name, b.Name) }) {
		if !slices.Contains(p.classes, className) {
			continue
		}
		seen := 1500*time.Millisecond + interval*time.Duration(i)/time.Duration(len(w.pods))
		go func() {
			time.Sleep(seen)
			w.locked(func() {
				if w.pods[key(&p.ObjectMeta)] == p {
					w.report(p, className, time.Now())
				}
			})
		}()
	}
}

// outdated returns how many pods that are not about to end have read what has
// changed since.
func (w *world) outdated() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.pods {
		for _, c := range p.classes {
			if s := w.objects[statuses][statusOf(p, c)].(*cluster.PodStatus); p.DeletionTimestamp == nil && s.Status.LastRotationTime.After(s.Status.MountedAt.Time) {
				n++
			}
		}
	}
	return n
}

// restarts returns the restarts of a workload so far, of all where path is empty.
func (w *world) restarts(path string) []patched {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.patches), func(p patched) bool { return path != "" && p.path != path })
}

// asked returns how many requests of a kind there were.
func (w *world) asked(kind string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests[kind]
}

// told returns the events so far.
func (w *world) told() []corev1.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// expect checks how many restarts a workload has had.
func (w *world) expect(path string, n int, when string) {
	w.t.Helper()
	if got := len(w.restarts(path)); got != n {
		w.t.Errorf("%s: %s has had %d restarts, want %d", when, path, got, n)
	}
}

// inBubble runs a test in which time passes when everybody waits.
func inBubble(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		f(t, newWorld(t))
		done() // of what stands in for controllers and nodes
	})
}

// page returns a part of the list of a namespace's pods, of three at most, so that
// there are several. Callers hold w.mu.
func (w *world) page(namespace string, query url.Values) any {
	if query.Get("limit") == "" {
		w.t.Error("the list of pods has no limit")
	}
	var names []string
	for at := range w.pods {
		if at.Namespace == namespace && at.Name > query.Get("continue") {
			names = append(names, at.Name)
		}
	}
	slices.Sort(names)
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	if len(names) > 3 {
		names, list.Continue = names[:3], names[2]
	}
	for _, name := range names {
		list.Items = append(list.Items, *w.pods[place{Namespace: namespace, Name: name}].object())
	}
	return list
}

// object returns the pod as the API server has it. Its init containers have ended.
func (p *livePod) object() *corev1.Pod {
	o := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: p.ObjectMeta, Spec: p.spec}
	o.Status.Phase = corev1.PodRunning
	for _, c := range p.spec.InitContainers {
		state := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: metav1.NewTime(p.began[c.Name].Truncate(time.Second))}}
		o.Status.InitContainerStatuses = append(o.Status.InitContainerStatuses, corev1.ContainerStatus{Name: c.Name, State: state})
	}
	for _, c := range p.spec.Containers {
		state := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CreateContainerConfigError"}}
		if at, runs := p.began[c.Name]; runs {
			state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(at.Truncate(time.Second))}}
			if p.ended {
				state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: state.Running.StartedAt}}
			}
		}
		o.Status.ContainerStatuses = append(o.Status.ContainerStatuses, corev1.ContainerStatus{Name: c.Name, State: state})
	}
	return o
}

// addUser makes a workload whose pods use Secrets as spec says.
func (w *world) addUser(kind, name string, pods int, spec corev1.PodSpec, mounts ...string) (path string) {
	w.locked(func() {
		version := "apps/v1"
		switch kind {
		case rollout:
			version = "argoproj.io/v1alpha1"
		case "Job":
			version = "batch/v1"
		}
		w.specs[version+"/namespaces/shop/"+strings.ToLower(kind)+"s/"+name] = spec
	})
	return w.add(kind, name, pods, mounts...)
}

// write changes the Secret login, as the driver of a node does of which a pod mounts
// a class, and as the others' drivers see it one after the other.
func (w *world) write(className string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := metav1.NewTime(time.Now().Truncate(time.Second))
	i := 0
	for _, p := range w.pods {
		if !slices.Contains(p.classes, className) {
			continue
		}
		seen := time.Second + time.Duration(i)*20*time.Second
		i++
		go func() {
			time.Sleep(seen)
			w.locked(func() {
				if s, ok := w.objects[statuses][statusOf(p, className)].(*cluster.PodStatus); ok {
					next := s.DeepCopyObject().(*cluster.PodStatus)
					next.Status.Secrets = []cluster.Secret{{Name: "login", WrittenAt: &at}}
					w.put(statuses, statusOf(p, className), next)
				}
			})
		}()
	}
}

// sync writes the Secret login as the controller does that serves a SecretSync.
func (w *world) sync(className string) {
	at := metav1.NewTime(time.Now().Truncate(time.Second))
	s := &secretsync.SecretSync{}
	s.APIVersion, s.Kind, s.Namespace, s.Name = secretsync.GroupVersion.String(), secretsync.Kind, "shop", "login"
	s.Spec.SecretProviderClassName, s.Status.LastSuccessfulSyncTime = className, &at
	w.locked(func() { w.put(syncs, place{Namespace: "shop", Name: "login"}, s) })
}
