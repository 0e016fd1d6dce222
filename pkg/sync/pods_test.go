package sync

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// node is a node's Pods with the volumes that they hear of.
type node struct {
	*Pods
	t    *testing.T
	s    *server
	skew time.Duration // of its clock
	done chan struct{}
	end  context.CancelFunc

	mu    sync.Mutex
	files map[string]map[string]string // by target
	since map[string]time.Time
	told  map[string]string // the last of each target
	// lists are those of the Secrets that were told last, by target.
	lists map[string][]Told
	errs  int // of attempts
}

// classes are those of a cluster.
type classes struct {
	mu  sync.Mutex
	all map[class.Ref]*class.SecretProviderClass
}

func (c *classes) set(name string, objects ...class.SecretObject) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ref := class.Ref{Namespace: "shop", Name: name}
	next := &class.SecretProviderClass{Spec: class.Spec{Provider: "vault", SecretObjects: objects}}
	next.Namespace, next.Name, next.Generation = "shop", name, 1
	if before := c.all[ref]; before != nil {
		next.Generation = before.Generation + 1
	}
	c.all[ref] = next
}

func (c *classes) Get(_ context.Context, ref class.Ref) (*class.SecretProviderClass, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.all[ref]; found != nil {
		return found, nil
	}
	return nil, &provider.Error{Kind: provider.NotFound, Err: errors.New("there is none")}
}

func (c *classes) Watch(context.Context, func(class.Ref)) error { return nil }

func newClasses() *classes { return &classes{all: map[class.Ref]*class.SecretProviderClass{}} }

// start begins a node. It must be called in a bubble of synctest.
func start(t *testing.T, s *server, of class.Source) *node {
	t.Helper()
	n := &node{t: t, s: s, done: make(chan struct{}), files: map[string]map[string]string{}, since: map[string]time.Time{}, told: map[string]string{}, lists: map[string][]Told{}}
	pods, err := build(s.client, Config{Classes: of, Files: n.read, Teller: n, Recorder: n})
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	n.Pods, n.end = pods, end
	go func() { defer close(n.done); n.Run(ctx) }()
	return n
}

func (n *node) stop() {
	n.end()
	<-n.done
}

func (n *node) read(target string) ([]provider.File, time.Time, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	set, ok := n.files[target]
	if !ok {
		return nil, time.Time{}, fmt.Errorf("%w at %s", volume.ErrNotPublished, target)
	}
	return filesOf(set), n.since[target], nil
}

func (n *node) Synced(v volume.Info, secrets []Told, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told[v.TargetPath] = fmt.Sprintf("%d %v", len(secrets), err)
	n.lists[v.TargetPath] = secrets
}

func (n *node) SecretSynced(_, errorType string, _ bool, _ time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if errorType != "" {
		n.errs++
	}
}

// says returns what was told of a pod's volume last.
func (n *node) says(pod, class string) string {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.told[pod+"/"+class]
}

func (n *node) volume(pod, name string) volume.Info {
	target := pod + "/" + name
	n.mu.Lock()
	defer n.mu.Unlock()
	return volume.Info{
		TargetPath: target, Class: class.Ref{Namespace: "shop", Name: name}, Provider: "vault", Pod: provider.Pod{Namespace: "shop", Name: pod, UID: "uid-" + pod},
		Changed: n.since[target], Refreshed: time.Now(),
	}
}

// set gives a volume files, as of now by the node's clock.
func (n *node) set(pod, class string, files map[string]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.files[pod+"/"+class], n.since[pod+"/"+class] = files, time.Now().Add(n.skew)
}

// publish has a pod of a Deployment start.
func (n *node) publish(pod, deployment, class string, files map[string]string) {
	n.s.add("replicasets/shop/"+deployment+"-rs", "deployments/shop/"+deployment)
	n.s.add("pods/shop/"+pod, "replicasets/shop/"+deployment+"-rs")
	n.mount(pod, class, files)
}

// mount publishes a volume of a pod that there is.
func (n *node) mount(pod, class string, files map[string]string) {
	n.set(pod, class, files)
	n.Published(n.volume(pod, class))
	n.pass(0)
}

// refresh has a refresh end; files are nil where nothing has changed.
func (n *node) refresh(pod, class string, files map[string]string) {
	if files != nil {
		n.set(pod, class, files)
	}
	n.Refreshed(n.volume(pod, class), files != nil)
	n.pass(0)
}

// pass lets time pass.
func (n *node) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// remove ends a volume.
func (n *node) remove(pod, class string) {
	v := n.volume(pod, class)
	n.mu.Lock()
	delete(n.files, v.TargetPath)
	n.mu.Unlock()
	n.Unpublished(v)
}

func (n *node) expectText(at place, key, want string) {
	n.t.Helper()
	if got, ok := n.s.text(at, key); got != want || !ok && want != "" {
		n.t.Errorf("%s of %s is %q (%v), want %q", key, at, got, ok, want)
	}
}

// expectOwners checks who has a Secret; none means that it is not there.
func (n *node) expectOwners(at place, want ...string) {
	n.t.Helper()
	has := n.s.secret(at)
	if has == nil {
		has = &corev1.Secret{}
	}
	var got []string
	for _, o := range has.OwnerReferences {
		if o.Controller != nil || o.BlockOwnerDeletion != nil {
			n.t.Errorf("the owner %+v wants too much", o)
		}
		got = append(got, o.APIVersion+" "+o.Kind+" "+o.Name)
	}
	slices.Sort(got)
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		n.t.Errorf("the owners are %q, want %q", got, want)
	}
}

func deployed(name string) string { return "apps/v1 Deployment " + name }

// userFile is a set of one file.
func userFile(user string) map[string]string { return map[string]string{"user": user} }

// bubble runs a test with one node and a class db that wants the Secret login.
func bubble(t *testing.T, test func(t *testing.T, s *server, of *classes, n *node)) {
	typeConverter()
	synctest.Test(t, func(t *testing.T) {
		s, of := newServer(t), newClasses()
		of.set("db", object("login", "Opaque", "user", "user"))
		n := start(t, s, of)
		defer n.stop()
		test(t, s, of, n)
	})
}

func TestTheSecretOfAPodIsThereAndFollowsItsFiles(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		n.publish("web-1", "web", "db", userFile("ann"))
		s.expect("apply shop/login", "own shop/login")
		n.expectText(login, "user", "ann")
		n.expectOwners(login, deployed("web"))
		if got := n.says("web-1", "db"); got != "1 <nil>" {
			t.Errorf("told was %q", got)
		}
		n.pass(time.Minute)
		n.refresh("web-1", "db", userFile("bob"))
		s.expect("apply shop/login")
		n.expectText(login, "user", "bob")
	})
}

// Nodes that only see the Secret tell the same, so that one write is one change.
func TestEveryNodeTellsWhenTheSecretWasWritten(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		tell := func(n *node, pod string, want time.Time) {
			t.Helper()
			synctest.Wait()
			n.mu.Lock()
			defer n.mu.Unlock()
			if got := n.lists[pod+"/db"]; len(got) != 1 || got[0].Name != "login" || !got[0].WrittenAt.Equal(want) {
				t.Errorf("%s tells of %v, want %v", pod, got, want)
			}
		}
		made := time.Now().Truncate(time.Second)
		n.publish("web-1", "web", "db", userFile("ann"))
		tell(n, "web-1", made)
		n.pass(time.Hour)
		other := start(t, s, of)
		defer other.stop()
		other.publish("api-1", "api", "db", userFile("ann"))
		s.expect("apply shop/login", "own shop/login", "own shop/login")
		tell(other, "api-1", made)

		n.pass(time.Hour)
		changed := time.Now().Truncate(time.Second)
		n.refresh("web-1", "db", userFile("bob"))
		tell(n, "web-1", changed)
		n.pass(time.Minute)
		other.refresh("api-1", "db", userFile("bob"))
		tell(other, "api-1", changed)
		s.expect("apply shop/login")
	})
}

// Replicas, republishes, refreshes without news, and hours cost no write.
func TestWhatHasNotChangedIsNotWritten(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		for i := range 50 {
			n.publish(fmt.Sprint("web-", i), "web", "db", userFile("ann"))
		}
		s.expect("apply shop/login", "own shop/login")
		n.pass(time.Minute)
		s.mu.Lock()
		s.reads, s.looks = 0, 0
		s.mu.Unlock()
		for range 60 {
			for i := range 50 {
				n.Published(n.volume(fmt.Sprint("web-", i), "db"))
				n.Refreshed(n.volume(fmt.Sprint("web-", i), "db"), false)
			}
			n.pass(time.Minute)
		}
		s.expect()
		if s.reads < 4 || s.reads > 8 || s.looks > 0 {
			t.Errorf("an hour took %d reads of the Secret, and %d of others", s.reads, s.looks)
		}
		for i := range 50 {
			n.refresh(fmt.Sprint("web-", i), "db", userFile("bob"))
		}
		s.expect("apply shop/login")
		if s.looks > 0 {
			t.Errorf("a change took %d looks at others", s.looks)
		}
	})
}

func TestTheSecretOfManyWorkloadsGoesWithTheLast(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		other := start(t, s, of)
		defer other.stop()
		n.publish("web-1", "web", "db", userFile("ann"))
		other.publish("api-1", "api", "db", userFile("ann"))
		n.expectOwners(login, deployed("api"), deployed("web"))
		s.expect("apply shop/login", "own shop/login", "own shop/login")

		// A Deployment goes at once, its pods a little later.
		s.collect("uid-web")
		s.terminate("pods/shop/web-1")
		n.refresh("web-1", "db", userFile("ann"))
		n.expectOwners(login, deployed("api"))
		n.pass(30 * time.Minute)
		n.expectOwners(login, deployed("api"))
		s.expect("collect shop/login")

		s.collect("uid-api")
		s.terminate("pods/shop/api-1")
		n.pass(30 * time.Minute)
		n.expectOwners(login)
		s.expect()
		n.remove("web-1", "db")
		other.remove("api-1", "db")
		n.pass(time.Hour)
		if s.secret(login) != nil {
			t.Error("it is there again")
		}
	})
}

// A workload keeps its Secret while it has no pods, and through rolling updates.
func TestTheSecretStaysForAsLongAsItsWorkload(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		n.publish("web-1", "web", "db", userFile("ann"))
		n.remove("web-1", "db") // scaled down, or moved to another node
		n.pass(time.Hour)
		n.expectText(login, "user", "ann")
		s.add("replicasets/shop/next-rs", "deployments/shop/web")
		s.add("pods/shop/web-2", "replicasets/shop/next-rs")
		s.collect("uid-web-rs")
		n.mount("web-2", "db", userFile("ann"))
		n.expectOwners(login, deployed("web"))
		s.expect("apply shop/login", "own shop/login")
	})
}

func TestASecretBelongsToWhatStaysWhenPodsGo(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		for controller, want := range map[string]string{
			"":                       "v1 Pod pod",
			"statefulsets/shop/set":  "apps/v1 StatefulSet set",
			"jobs/shop/alone":        "batch/v1 Job alone",
			"jobs/shop/nightly":      "batch/v1 CronJob backup",
			"replicasets/shop/argo":  "argoproj.io/v1alpha1 Rollout web",
			"replicasets/shop/alone": "apps/v1 ReplicaSet alone",
			"nodes//node-1":          "v1 Pod pod",
		} {
			s.add("jobs/shop/alone", "")
			s.add("jobs/shop/nightly", "cronjobs/shop/backup")
			s.add("replicasets/shop/argo", "rollouts/shop/web")
			s.add("replicasets/shop/alone", "")
			pod := s.add("pods/shop/pod", controller)
			if strings.HasPrefix(controller, "nodes") {
				// A static pod has another UID on its node.
				pod.UID, pod.Annotations = "uid-mirror", map[string]string{corev1.MirrorPodAnnotationKey: "uid-pod"}
			}
			n.mount("pod", "db", userFile("ann"))
			n.expectOwners(login, want)
			n.remove("pod", "db")
			s.mu.Lock()
			clear(s.secrets)
			s.mu.Unlock()
		}
	})
}

func TestADeletedSecretIsMadeAgain(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		n.publish("web-1", "web", "db", userFile("ann"))
		n.pass(time.Minute)
		s.mu.Lock()
		clear(s.secrets)
		s.mu.Unlock()
		n.pass(13 * time.Minute)
		n.expectText(login, "user", "ann")
		n.expectOwners(login, deployed("web"))
	})
}

// What two that create at the same time have undone of each other is found soon.
func TestItIsLookedAgainSoonAfterAWrite(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		n.publish("web-1", "web", "db", userFile("new"))
		older := wanted(time.Now().Add(-time.Hour), "user", "old")
		s.mu.Lock()
		clear(s.secrets)
		s.mu.Unlock()
		if _, err := s.writer().Ensure(t.Context(), older); err != nil {
			t.Fatal(err)
		}
		n.pass(10 * time.Second)
		n.expectText(login, "user", "new")
		n.expectOwners(login, deployed("web"))
	})
}

func TestAClassThatChangesIsFollowed(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		files := map[string]string{"user": "ann", "pass": "1"}
		n.publish("web-1", "web", "db", files)
		of.set("db", object("login", "Opaque", "pass", "password"), object("second", "Opaque", "user", "user"))
		n.refresh("web-1", "db", nil)
		n.expectText(login, "password", "1")
		n.expectText(login, "user", "")
		n.expectText(place{Namespace: "shop", Name: "second"}, "user", "ann")
		if got := n.says("web-1", "db"); got != "2 <nil>" {
			t.Errorf("told was %q", got)
		}
		of.set("db", object("third", "Opaque", "pass", "password"))
		n.refresh("web-1", "db", nil)
		if s.secret(login) != nil || s.secret(place{Namespace: "shop", Name: "second"}) != nil || s.secret(place{Namespace: "shop", Name: "third"}) == nil {
			t.Errorf("there are %v", s.secrets)
		}
		of.set("db")
		n.refresh("web-1", "db", nil)
		if got := n.says("web-1", "db"); got != "0 <nil>" || len(s.secrets) > 0 {
			t.Errorf("told was %q, and there are %v", got, s.secrets)
		}
	})
}

func TestASecretThatAnotherClassWantsStays(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		n.publish("web-1", "web", "db", userFile("ann"))
		of.set("next", object("login", "Opaque", "user", "user"))
		n.pass(time.Second)
		n.publish("web-2", "web", "next", userFile("bob"))
		n.expectText(login, "user", "bob")
		n.pass(time.Hour) // the older class does not take it back
		n.expectText(login, "user", "bob")
		of.set("db")
		n.refresh("web-1", "db", nil)
		n.expectText(login, "user", "bob")
		of.set("db", object("login", "Opaque", "user", "user"))
		n.refresh("web-1", "db", nil)
		of.mu.Lock()
		delete(of.all, class.Ref{Namespace: "shop", Name: "next"})
		of.mu.Unlock()
		n.refresh("web-2", "next", nil)
		n.expectText(login, "user", "bob")
		s.expect("apply shop/login", "own shop/login", "apply shop/login")
	})
}

func TestAClassLeavesASecretThatAnotherHasTakenOver(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		other := start(t, s, of)
		defer other.stop()
		n.publish("web-1", "web", "db", userFile("ann"))
		of.set("next", object("login", "Opaque", "user", "user"))
		n.pass(time.Second)
		other.publish("web-2", "web", "next", userFile("bob"))
		of.set("db")
		n.refresh("web-1", "db", nil)
		n.expectText(login, "user", "bob")
		if len(n.secrets) > 0 {
			t.Errorf("it is kept in mind: %v", n.secrets)
		}
	})
}

func TestAFailureIsToldAndTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		s.edit(login, "somebody", func(has *corev1.Secret) { has.Type = "Opaque" })
		n.publish("web-1", "web", "db", userFile(canary))
		if got := n.says("web-1", "db"); !strings.HasPrefix(got, "1 Secret shop/login: it exists, and csi-secrets does not manage it") {
			t.Errorf("told was %q", got)
		}
		n.pass(time.Hour)
		s.mu.Lock()
		reads := s.reads
		delete(s.secrets, login)
		s.mu.Unlock()
		if reads > 30 || n.errs < 10 {
			t.Errorf("an hour of failure took %d reads, and %d attempts", reads, n.errs)
		}
		n.pass(6 * time.Minute)
		n.expectText(login, "user", canary)
		if got := n.says("web-1", "db"); got != "1 <nil>" {
			t.Errorf("told was %q", got)
		}

		of.set("db", object("login", "Opaque", "user", "user"), object("", "Opaque", "user", "user"), object("lost", "Opaque", "gone", "user"))
		n.refresh("web-1", "db", nil)
		got := n.says("web-1", "db")
		if !strings.Contains(got, `secretObject "": secretName is missing`) || !strings.Contains(got, `secretObject "lost", key "user": file matching objectName gone not found`) || strings.Contains(got, canary) {
			t.Errorf("told was %q", got)
		}
	})
}

func TestASecretThatMayNotBeWrittenIsTriedLessAndLess(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		s.before = func(method, _ string) *metav1.Status {
			if method == http.MethodPatch {
				return status(403, metav1.StatusReasonForbidden, "no")
			}
			return nil
		}
		n.publish("web-1", "web", "db", userFile("ann"))
		n.pass(time.Hour)
		if n.errs > 22 {
			t.Errorf("there were %d attempts in an hour", n.errs)
		}
	})
}

func TestPodsThatMayNotBeReadAreTold(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		s.before = func(_, what string) *metav1.Status {
			if strings.HasPrefix(what, "pods/") {
				return status(403, metav1.StatusReasonForbidden, "no")
			}
			return nil
		}
		n.publish("web-1", "web", "db", userFile("ann"))
		if got := n.says("web-1", "db"); !strings.Contains(got, "look at pods shop/web-1 for the owner of its Secrets: the driver may not read pods; let it (chart: syncSecret.enabled=true)") {
			t.Errorf("told was %q", got)
		}
	})
}

func TestAnOutageOfTheAPIServerIsSatOut(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		s.before = func(string, string) *metav1.Status { return status(503, metav1.StatusReasonServiceUnavailable, "away") }
		n.publish("web-1", "web", "db", userFile("ann"))
		n.pass(3 * time.Minute)
		n.refresh("web-1", "db", userFile("bob"))
		s.mu.Lock()
		s.before = nil
		s.mu.Unlock()
		n.pass(6 * time.Minute)
		n.expectText(login, "user", "bob")
		s.expect("apply shop/login", "own shop/login")
	})
}

// A node that is behind with its files does not undo what another has written, and
// one whose clock is behind is heard nevertheless.
func TestClocksThatDifferDoNotHoldNewFilesUp(t *testing.T) {
	for _, skew := range []time.Duration{0, -time.Hour, time.Hour} {
		bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
			other := start(t, s, of)
			defer other.stop()
			other.skew = skew
			n.publish("web-1", "web", "db", userFile("1"))
			other.publish("web-2", "web", "db", userFile("1"))
			for i := 2; i < 20; i++ {
				n.pass(2 * time.Minute)
				next := userFile(fmt.Sprint(i))
				first, second := n, other
				pods := []string{"web-1", "web-2"}
				if i%3 == 0 {
					first, second, pods = other, n, []string{"web-2", "web-1"}
				}
				first.refresh(pods[0], "db", next)
				n.pass(30 * time.Second)
				n.expectText(login, "user", fmt.Sprint(i))
				n.pass(30 * time.Second)
				second.refresh(pods[1], "db", next)
				n.expectText(login, "user", fmt.Sprint(i))
			}
			if writes := len(s.writes); writes > 2+18+2 {
				t.Errorf("with %s: %d writes", skew, writes)
			}
		})
	}
}

// The node that wrote last is gone, and its clock was ahead.
func TestAPodOnANodeWithASlowClockGetsItsFilesAcross(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		n.skew = time.Hour
		n.publish("web-1", "web", "db", userFile("old"))
		n.remove("web-1", "db")
		other := start(t, s, of)
		defer other.stop()
		n.pass(time.Minute)
		other.publish("web-2", "web", "db", userFile("new"))
		n.pass(2 * time.Minute)
		other.refresh("web-2", "db", nil)
		n.expectText(login, "user", "new")
	})
}

// Pods to which the store gives different values do not take turns for ever.
func TestPodsThatDifferDoNotTakeTurns(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		other := start(t, s, of)
		defer other.stop()
		n.publish("web-1", "web", "db", userFile("one"))
		n.pass(time.Second)
		other.publish("web-2", "web", "db", userFile("two"))
		for range 60 {
			n.pass(time.Minute)
			n.refresh("web-1", "db", nil)
			other.refresh("web-2", "db", nil)
		}
		if s.reads > 50 || s.looks > 20 || len(s.writes) > 4 {
			t.Errorf("%d reads of the Secret, %d of others and %d writes", s.reads, s.looks, len(s.writes))
		}
	})
}

// A restarted driver looks at its volumes and writes nothing.
func TestARestartWritesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		n.publish("web-1", "web", "db", userFile("ann"))
		n.publish("api-1", "api", "db", userFile("ann"))
		n.stop()
		s.expect("apply shop/login", "own shop/login", "own shop/login")
		again := start(t, s, of)
		defer again.stop()
		again.mount("web-1", "db", userFile("ann"))
		again.mount("api-1", "db", userFile("ann"))
		again.pass(time.Hour)
		s.expect()
		if got := again.says("api-1", "db"); got != "1 <nil>" {
			t.Errorf("told was %q", got)
		}
	})
}

func TestAPodThatGoesWhileItsFilesAreReadLeavesTheSecretToOthers(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		n.s.add("pods/shop/gone", "")
		n.mu.Lock()
		n.since["gone/db"] = time.Now().Add(time.Minute)
		n.mu.Unlock()
		n.Published(n.volume("gone", "db")) // whose files are not there any more
		n.publish("web-1", "web", "db", userFile("ann"))
		if s.secret(login) != nil {
			t.Error("it is there already")
		}
		n.remove("gone", "db")
		n.pass(2 * time.Second)
		n.expectText(login, "user", "ann")
		if n.errs > 0 {
			t.Errorf("%d errors", n.errs)
		}
	})
}

func TestNothingIsKeptOfVolumesThatAreGone(t *testing.T) {
	bubble(t, func(t *testing.T, s *server, of *classes, n *node) {
		for i := range 20 {
			n.publish(fmt.Sprint("web-", i), "web", "db", userFile("ann"))
		}
		for i := range 20 {
			n.remove(fmt.Sprint("web-", i), "db")
		}
		n.pass(time.Hour)
		if len(n.volumes)+len(n.wishes)+len(n.secrets)+len(n.owners.known) > 0 {
			t.Errorf("there are %d volumes, %d classes, %d Secrets and %d owners", len(n.volumes), len(n.wishes), len(n.secrets), len(n.owners.known))
		}
	})
}

func TestConfigurationIsChecked(t *testing.T) {
	if _, err := build(newServer(t).client, Config{}); err == nil {
		t.Error("there is no error")
	}
}
