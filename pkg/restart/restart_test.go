package restart

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// started is when everything of a test is some time ago.
func started() { time.Sleep(time.Hour) }

// done is when everything that a change may cause is over.
func done() { time.Sleep(time.Hour) }

// counter is a Recorder.
type counter struct {
	mu     sync.Mutex
	counts map[string]int
}

func (c *counter) Restart(result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[result]++
}

func (c *counter) expect(t *testing.T, want map[string]int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if fmt.Sprint(c.counts) != fmt.Sprint(want) {
		t.Errorf("counted is %v, want %v", c.counts, want)
	}
}

func TestAWorkloadIsRestartedOnceForAChange(t *testing.T) {
	for kind, want := range map[string]string{
		deployment:  `{"metadata":{"resourceVersion":"RV","uid":"uid-web"},"spec":{"template":{"metadata":{"annotations":{"secrets-store.csi.x-k8s.io/restartedAt":"TIME","secrets-store.csi.x-k8s.io/restartedFor":"SecretProviderClass db"}}}}}`,
		statefulSet: `{"metadata":{"resourceVersion":"RV","uid":"uid-web"},"spec":{"template":{"metadata":{"annotations":{"secrets-store.csi.x-k8s.io/restartedAt":"TIME","secrets-store.csi.x-k8s.io/restartedFor":"SecretProviderClass db"}}}}}`,
		daemonSet:   `{"metadata":{"resourceVersion":"RV","uid":"uid-web"},"spec":{"template":{"metadata":{"annotations":{"secrets-store.csi.x-k8s.io/restartedAt":"TIME","secrets-store.csi.x-k8s.io/restartedFor":"SecretProviderClass db"}}}}}`,
		rollout:     `{"metadata":{"annotations":{"secrets-store.csi.x-k8s.io/restartedAt":"TIME","secrets-store.csi.x-k8s.io/restartedFor":"SecretProviderClass db"},"resourceVersion":"RV","uid":"uid-web"},"spec":{"restartAt":"TIME"}}`,
	} {
		t.Run(kind, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				var counts counter
				w.class("db", true)
				web, other := w.add(kind, "web", 20, "db"), w.add(kind, "zoo", 3, "tls")
				stop := w.run(Config{Recorder: &counts})
				defer stop()
				started()
				w.expect(web, 0, "before a change")
				changed := time.Now()
				w.change("db")
				done()
				w.expect(web, 1, "after a change")
				w.expect(other, 0, "after the change of a class that it has not")
				if n := w.outdated(); n != 0 {
					t.Errorf("%d pods have read what has changed since", n)
				}
				if t.Failed() {
					return
				}
				restart := w.restarts(web)[0]
				if wait := restart.at.Sub(changed); wait < DefaultSettle || wait > DefaultSettle+5*time.Second {
					t.Errorf("the restart began after %s", wait)
				}
				var sent struct{ Metadata metav1.ObjectMeta }
				if err := json.Unmarshal([]byte(restart.body), &sent); err != nil {
					t.Error(err)
				}
				want := strings.NewReplacer("TIME", restart.at.UTC().Format(time.RFC3339), "RV", sent.Metadata.ResourceVersion).Replace(want)
				if restart.body != want {
					t.Errorf("written was\n%s\nwant\n%s", restart.body, want)
				}
				// The third pod of 23 has seen the change by then.
				says := "restarted the pods: SecretProviderClass db changed at " + changed.Add(11*time.Second).UTC().Format(time.RFC3339)
				if events := w.told(); len(events) != 1 || events[0].Reason != "Restarted" || events[0].InvolvedObject.Kind != kind || events[0].InvolvedObject.UID != "uid-web" || events[0].Message != says {
					t.Errorf("the events are %+v, want %q", events, says)
				}
				counts.expect(t, map[string]int{resultStarted: 1, resultFinished: 1})

				w.change("db")
				done()
				w.expect(web, 2, "after another change")
			})
		})
	}
}

func TestClassesThatChangeTogetherAreOneRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		w.class("tls", true)
		w.class("config", false)
		web := w.add(deployment, "web", 3, "config", "db", "tls")
		defer w.run(Config{})()
		started()
		for _, name := range []string{"config", "tls", "db"} {
			w.change(name)
			time.Sleep(3 * time.Second)
		}
		done()
		w.expect(web, 1, "after all")
		if got := w.restarts(web)[0].body; !strings.Contains(got, `restartedFor":"SecretProviderClass db, SecretProviderClass tls"`) {
			t.Errorf("written was %s", got)
		}
	})
}

func TestChangesWithinTheSpacingAreOneRestartAtItsEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		web := w.add(deployment, "web", 3, "db")
		defer w.run(Config{Spacing: 20 * time.Minute})()
		started()
		w.change("db")
		time.Sleep(4 * time.Minute)
		w.expect(web, 1, "after the first change")
		for range 5 {
			w.change("db")
			time.Sleep(3 * time.Minute)
		}
		w.expect(web, 1, "before the spacing has passed")
		done()
		w.expect(web, 2, "after it")
		if apart := w.restarts(web)[1].at.Sub(w.restarts(web)[0].at); apart < 20*time.Minute || apart > 20*time.Minute+5*time.Second {
			t.Errorf("the restarts are %s apart", apart)
		}
		if n := w.outdated(); n != 0 {
			t.Errorf("%d pods have read what has changed since", n)
		}
	})
}

func TestAClassThatFlapsRestartsNoMoreThanTheSpacingAllows(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		web := w.add(deployment, "web", 3, "db")
		defer w.run(Config{})()
		started()
		for range 120 {
			w.change("db")
			time.Sleep(time.Minute)
		}
		its := w.restarts(web)
		for i := range its[1:] {
			if apart := its[i+1].at.Sub(its[i].at); apart < DefaultSpacing {
				t.Errorf("two restarts are %s apart", apart)
			}
		}
		if len(its) < 15 {
			t.Errorf("there are %d restarts in two hours", len(its))
		}
	})
}

func TestAnnotationsSayMoreThanClasses(t *testing.T) {
	for _, c := range []struct {
		name               string
		class              bool
		workload, template string
		restarted          int
	}{
		{name: "of a class that wants it", class: true, restarted: 1},
		{name: "of a class that does not", class: false, restarted: 0},
		{name: "against a class, on the workload", class: true, workload: "false", restarted: 0},
		{name: "against a class, on the template", class: true, template: "false", restarted: 0},
		{name: "without a class, on the workload", workload: "true", restarted: 1},
		{name: "without a class, on the template", template: "true", restarted: 1},
		{name: "against each other", class: true, workload: "true", template: "false", restarted: 0},
		{name: "against each other, the other way", class: true, workload: "false", template: "true", restarted: 0},
		{name: "with a class", class: true, workload: "true", template: "true", restarted: 1},
		{name: "that nobody knows", class: true, workload: "False", restarted: 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.class("db", c.class)
				web := w.add(deployment, "web", 3, "db")
				d := w.workloads[web].(*appsv1.Deployment)
				if c.workload != "" {
					d.Annotations = map[string]string{Annotation: c.workload}
				}
				if c.template != "" {
					d.Spec.Template.Annotations = map[string]string{Annotation: c.template}
				}
				defer w.run(Config{})()
				started()
				w.change("db")
				done()
				w.expect(web, c.restarted, "after a change")
			})
		})
	}
}

func TestAClassThatWantsRestartsLaterHasThem(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", false)
		web := w.add(deployment, "web", 3, "db")
		defer w.run(Config{})()
		started()
		w.change("db")
		done()
		w.expect(web, 0, "without onChange")
		w.class("db", true)
		done()
		w.expect(web, 1, "with onChange")
		w.locked(func() { w.put(classes, place{Namespace: "shop", Name: "db"}, nil) })
		w.change("db")
		done()
		w.expect(web, 1, "without the class")
	})
}

func TestWhatCannotBeRestartedIsToldOnce(t *testing.T) {
	for _, c := range []struct {
		kind, says string
		make       func(w *world) string
	}{
		{"Pod", "nothing controls it", func(w *world) string {
			w.locked(func() { w.start("", "web", "db") })
			return ""
		}},
		{"Pod", "Job web controls it", func(w *world) string { return w.add("Job", "web", 1, "db") }},
		{"Pod", "CloneSet web controls it", func(w *world) string { return w.add("CloneSet", "web", 1, "db") }},
		{"Pod", "ReplicaSet bare controls it", func(w *world) string {
			w.locked(func() {
				w.start("", "web", "db").OwnerReferences = controller("apps/v1", "ReplicaSet", "bare", "uid-bare")
				w.sets["apps/v1/namespaces/shop/replicasets/bare"] = metav1.ObjectMeta{Namespace: "shop", Name: "bare", UID: "uid-bare"}
			})
			return ""
		}},
		{statefulSet, "its update strategy is OnDelete", func(w *world) string {
			path := w.add(statefulSet, "web", 1, "db")
			w.workloads[path].(*appsv1.StatefulSet).Spec.UpdateStrategy.Type = "OnDelete"
			return path
		}},
		{daemonSet, "its update strategy is OnDelete", func(w *world) string {
			path := w.add(daemonSet, "web", 1, "db")
			w.workloads[path].(*appsv1.DaemonSet).Spec.UpdateStrategy.Type = "OnDelete"
			return path
		}},
	} {
		t.Run(c.kind+", "+c.says, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.class("db", true)
				path := c.make(w)
				for range 2 { // leaders
					stop := w.run(Config{})
					started()
					for range 3 {
						w.change("db")
						time.Sleep(10 * time.Minute)
					}
					stop()
				}
				w.expect(path, 0, "after changes")
				if len(w.events) == 0 {
					t.Fatal("there is no event")
				}
				e := w.events[0]
				if sent := w.requests["POST events"]; sent != 2 {
					t.Errorf("%d events were sent by 2 leaders", sent)
				}
				if len(w.events) != 1 || e.Reason != "CannotRestart" || e.Type != corev1.EventTypeWarning || e.InvolvedObject.Kind != c.kind ||
					e.InvolvedObject.Namespace != "shop" || e.InvolvedObject.UID == "" || !strings.Contains(e.Message, "SecretProviderClass db has changed") || !strings.Contains(e.Message, c.says) {
					t.Errorf("the events are %+v", w.events)
				}
			})
		})
	}
}

func TestOfAPodThatIsKeptFromRestartsNothingIsTold(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		w.class("tls", false)
		w.locked(func() {
			w.start("", "kept", "db").Annotations = map[string]string{Annotation: "false"}
			w.start("", "asked", "tls")
		})
		defer w.run(Config{})()
		started()
		w.change("db")
		w.change("tls")
		done()
		if events := w.told(); len(events) != 0 {
			t.Errorf("the events are %+v", events)
		}
	})
}

func TestAWorkloadThatIsNotAtRestIsWaitedFor(t *testing.T) {
	for _, c := range []struct {
		name, kind string
		hold, free func(o any)
	}{
		{
			"a Deployment that is paused", deployment,
			func(o any) { o.(*appsv1.Deployment).Spec.Paused = true },
			func(o any) { o.(*appsv1.Deployment).Spec.Paused = false },
		},
		{
			"a Rollout that is paused", rollout,
			func(o any) { o.(*argoRollout).Spec["paused"] = true },
			func(o any) { o.(*argoRollout).Spec["paused"] = false },
		},
		{
			"a StatefulSet that is rolled by hand", statefulSet,
			func(o any) {
				n := int32(1)
				o.(*appsv1.StatefulSet).Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: &n}
			},
			func(o any) { o.(*appsv1.StatefulSet).Spec.UpdateStrategy.RollingUpdate = nil },
		},
		{
			"a Deployment whose last change was not seen yet", deployment,
			func(o any) { o.(*appsv1.Deployment).Status.ObservedGeneration-- },
			func(o any) { o.(*appsv1.Deployment).Status.ObservedGeneration++ },
		},
		{
			"a Deployment whose rollout is stuck", deployment,
			func(o any) {
				s := &o.(*appsv1.Deployment).Status
				s.Replicas, s.Conditions[1].Status, s.Conditions[1].Reason = 4, "False", "ProgressDeadlineExceeded"
			},
			func(o any) {
				s := &o.(*appsv1.Deployment).Status
				s.Replicas, s.Conditions[1].Status, s.Conditions[1].Reason = 3, "True", "NewReplicaSetAvailable"
			},
		},
		{
			"a Deployment whose new pods do not become available", deployment,
			func(o any) {
				s := &o.(*appsv1.Deployment).Status
				s.AvailableReplicas, s.Conditions[1].Reason = 0, "ReplicaSetUpdated"
			},
			func(o any) { o.(*appsv1.Deployment).Status.AvailableReplicas = 3 },
		},
		{
			"a StatefulSet that is being rolled", statefulSet,
			func(o any) { o.(*appsv1.StatefulSet).Status.UpdateRevision = "2" },
			func(o any) { o.(*appsv1.StatefulSet).Status.CurrentRevision = "2" },
		},
		{
			"a StatefulSet that is being rolled back", statefulSet,
			func(o any) { o.(*appsv1.StatefulSet).Status.UpdatedReplicas = 1 },
			func(o any) { o.(*appsv1.StatefulSet).Status.UpdatedReplicas = 3 },
		},
		{
			"a DaemonSet that is being rolled", daemonSet,
			func(o any) { o.(*appsv1.DaemonSet).Status.UpdatedNumberScheduled = 2 },
			func(o any) { o.(*appsv1.DaemonSet).Status.UpdatedNumberScheduled = 3 },
		},
		{
			"a Rollout whose canary advances", rollout,
			func(o any) { o.(*argoRollout).Status["phase"] = "Progressing" },
			func(o any) { o.(*argoRollout).Status["phase"] = "Paused" },
		},
		{
			"a Rollout that somebody else restarts", rollout,
			func(o any) { o.(*argoRollout).Spec["restartAt"] = "2000-01-01T00:30:00Z" },
			func(o any) { o.(*argoRollout).Status["restartedAt"] = "2000-01-01T00:30:00Z" },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.class("db", true)
				web := w.add(c.kind, "web", 3, "db")
				defer w.run(Config{})()
				started()
				w.locked(func() { c.hold(w.workloads[web]); w.touch(web) })
				w.change("db")
				done()
				w.expect(web, 0, "meanwhile")
				w.locked(func() { c.free(w.workloads[web]); w.touch(web) })
				done()
				w.expect(web, 1, "after that")
			})
		})
	}
}

// A pod that fails because of what it has read needs the restart most.
func TestPodsThatFailAfterTheirRolloutAreRestarted(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		web := w.add(deployment, "web", 3, "db")
		w.workloads[web].(*appsv1.Deployment).Status.AvailableReplicas = 0
		defer w.run(Config{})()
		w.change("db")
		done()
		w.expect(web, 1, "after a change")
	})
}

func TestPodsThatEndAreNoReason(t *testing.T) {
	for _, c := range []struct {
		name, kind string
		change     func(w *world, p *livePod)
	}{
		{"a pod that is about to end", deployment, func(w *world, p *livePod) {
			now := metav1.Now()
			p.DeletionTimestamp = &now
			w.report(p, "db", time.Now())
		}},
		{"a pod that is another of that name by now", statefulSet, func(w *world, p *livePod) {
			w.report(p, "db", time.Now())
			p.UID = "another"
		}},
		{"a pod that soon is another of that name", statefulSet, func(w *world, p *livePod) {
			w.report(p, "db", time.Now())
			go func() {
				time.Sleep(5 * time.Second)
				w.locked(func() { p.UID = "another" })
			}()
		}},
		{"a pod that is gone", deployment, func(w *world, p *livePod) {
			w.report(p, "db", time.Now())
			delete(w.pods, key(&p.ObjectMeta))
		}},
		{"a pod of an older ReplicaSet of a Rollout", rollout, func(w *world, p *livePod) {
			p.Labels["rollouts-pod-template-hash"] = "older"
			w.report(p, "db", time.Now())
		}},
		{"a pod that was mounted with the change", deployment, func(w *world, p *livePod) {
			w.report(p, "db", p.mounted.Add(time.Millisecond))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.class("db", true)
				web := w.add(c.kind, "web", 3, "db")
				defer w.run(Config{})()
				started()
				w.locked(func() { c.change(w, w.pods[place{Namespace: "shop", Name: "web-0"}]) })
				done()
				w.expect(web, 0, "after that")
				if events := w.told(); len(events) != 0 {
					t.Errorf("the events are %+v", events)
				}
			})
		})
	}
}

func TestManyWorkloadsAreRestartedAFewAtATimeEachOnce(t *testing.T) {
	for _, c := range []struct {
		name           string
		config         Config
		podTime, grace time.Duration
		most           int
	}{
		{"that take long", Config{}, 6 * time.Second, 30 * time.Second, DefaultParallel},
		{"that are quick", Config{Parallel: 50}, 10 * time.Millisecond, 10 * time.Millisecond, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				var counts counter
				c.config.Recorder, w.podTime, w.grace = &counts, c.podTime, c.grace
				w.class("db", true)
				var all []string
				for i := range 50 {
					kind := []string{deployment, statefulSet, daemonSet, rollout}[i%4]
					all = append(all, w.add(kind, fmt.Sprintf("web%d", i), 10, "db"))
				}
				stop := w.run(c.config)
				started()
				w.change("db")
				done()
				stop()
				for _, path := range all {
					w.expect(path, 1, "after a change")
				}
				if n := w.outdated(); n != 0 {
					t.Errorf("%d pods have read what has changed since", n)
				}
				counts.expect(t, map[string]int{resultStarted: 50, resultFinished: 50})
				if w.most != c.most {
					t.Errorf("up to %d were under way at the same time, want %d", w.most, c.most)
				}
				for i := range w.patches[DefaultPerMinute:] {
					if took := w.patches[i+DefaultPerMinute].at.Sub(w.patches[i].at); took < time.Minute {
						t.Errorf("%d began within %s", DefaultPerMinute+1, took)
					}
				}
				r := w.restarter
				if left := len(r.jobs) + len(r.of) + len(r.view.pods) + len(r.view.statuses) + len(r.view.news); left != 0 {
					t.Errorf("%d things are remembered", left)
				}
			})
		})
	}
}

func TestWhoeverHasWaitedForLongestIsFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		names := []string{"mid", "last", "first"}
		w.podTime = time.Minute
		for _, name := range names {
			w.class(name, true)
			w.add(deployment, name, 10, name)
		}
		defer w.run(Config{Parallel: 1})()
		started()
		for _, name := range names {
			w.change(name)
			time.Sleep(interval)
		}
		done()
		its := w.restarts("")
		for i, name := range names {
			if len(its) != 3 || !strings.HasSuffix(its[i].path, "/"+name) {
				t.Errorf("number %d was not %s: %v", i, name, its)
			}
		}
	})
}

func TestALongRestartIsNotTakenForOneThatDoesNotFinish(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var counts counter
		w.podTime = 2 * time.Minute
		w.class("db", true)
		for _, kind := range []string{deployment, statefulSet, daemonSet} {
			w.add(kind, kind, 20, "db")
		}
		defer w.run(Config{Recorder: &counts})()
		started()
		w.change("db")
		done()
		counts.expect(t, map[string]int{resultStarted: 3, resultFinished: 3})
	})
}

func TestARolloutThatTheClusterGivesUpLeavesItsPlaceAtOnce(t *testing.T) {
	for kind, fail := range map[string]func(any){
		deployment: func(o any) {
			o.(*appsv1.Deployment).Status.Conditions[1].Reason = "ProgressDeadlineExceeded"
		},
		rollout: func(o any) { o.(*argoRollout).Status["phase"] = "Degraded" },
	} {
		t.Run(kind, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				var counts counter
				w.class("db", true)
				web, other := w.add(kind, "a", 3, "db"), w.add(kind, "b", 3, "db")
				defer w.run(Config{Parallel: 1, Recorder: &counts})()
				started()
				w.locked(func() { w.broken = true })
				w.change("db")
				time.Sleep(3 * time.Minute)
				w.expect(other, 0, "at first")
				w.locked(func() { fail(w.workloads[web]); w.touch(web) })
				time.Sleep(10 * time.Second)
				w.expect(other, 1, "after the cluster has given up")
				done()
				counts.expect(t, map[string]int{resultStarted: 2, resultUnfinished: 2})
			})
		})
	}
}

func TestALeaderThatIsKilledAfterAPatchIsFollowedWithoutAnotherRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		var all []string
		for i := range 12 {
			kind := []string{deployment, statefulSet, daemonSet, rollout}[i%4]
			all = append(all, w.add(kind, fmt.Sprintf("web%d", i), 10, "db"))
		}
		w.podTime = 20 * time.Second
		killed := make(chan struct{}, 1)
		w.patched = func(string) error {
			killed <- struct{}{}
			return errors.New("the process is gone")
		}
		started()
		w.change("db")
		time.Sleep(interval)
		for range all { // each leader gets as far as one patch
			stop := w.run(Config{})
			<-killed
			stop()
		}
		stop := w.run(Config{})
		done()
		stop()
		for _, path := range all {
			w.expect(path, 1, "after a change")
		}
		if n := w.outdated(); n != 0 {
			t.Errorf("%d pods have read what has changed since", n)
		}
		if w.most > DefaultParallel {
			t.Errorf("up to %d were under way at the same time, want %d", w.most, DefaultParallel)
		}
	})
}

func TestAnotherLeaderKeepsThePlacesThatAreTaken(t *testing.T) {
	for range 10 { // the order in which pods are heard of differs
		inBubble(t, func(t *testing.T, w *world) {
			w.podTime = 2 * time.Minute
			w.class("db", true)
			web, other := w.add(deployment, "web", 2, "db"), w.add(deployment, "zoo", 6, "db")
			stop := w.run(Config{Parallel: 1})
			started()
			w.change("db")
			time.Sleep(interval)
			stop()
			w.expect(web, 1, "by the first leader")
			w.latency = func(path string) time.Duration {
				if strings.Contains(path, "/web-") {
					return 9 * time.Second
				}
				return 0
			}
			defer w.run(Config{Parallel: 1})()
			time.Sleep(3 * time.Minute)
			w.expect(other, 0, "while the first is under way")
			done()
			w.expect(web, 1, "after all")
			w.expect(other, 1, "after all")
		})
	}
}

func TestAnotherLeaderKeepsTheSpacing(t *testing.T) {
	for _, kind := range []string{deployment, rollout} {
		inBubble(t, func(t *testing.T, w *world) {
			w.class("db", true)
			web := w.add(kind, "web", 3, "db")
			stop := w.run(Config{})
			started()
			w.change("db")
			time.Sleep(2 * time.Minute)
			stop()
			w.change("db")
			defer w.run(Config{})()
			done()
			w.expect(web, 2, "after two changes")
			if apart := w.restarts(web)[1].at.Sub(w.restarts(web)[0].at); apart < DefaultSpacing {
				t.Errorf("the restarts are %s apart", apart)
			}
		})
	}
}

func TestARolloutThatIsNoRestartTakesNoPlace(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		web, other := w.add(deployment, "web", 3, "db"), w.add(deployment, "zoo", 3, "db")
		d := w.workloads[web].(*appsv1.Deployment)
		d.Spec.Template.Annotations = map[string]string{RestartedAtAnnotation: time.Now().UTC().Format(time.RFC3339)}
		started()
		w.change("db")
		time.Sleep(interval)
		w.locked(func() { w.progress(web, 1, 3) })
		defer w.run(Config{Parallel: 1})()
		time.Sleep(time.Minute)
		w.expect(web, 0, "meanwhile")
		w.expect(other, 1, "meanwhile")
	})
}

func TestALeaderThatComesLaterFindsWhatHasChangedBefore(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		web := w.add(deployment, "web", 3, "db")
		w.change("db")
		done()
		defer w.run(Config{})()
		done()
		w.expect(web, 1, "after the start")
	})
}

func TestARestartThatDoesNotFinishIsNotRepeatedAndLeavesItsPlace(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var counts counter
		w.class("db", true)
		w.class("tls", true)
		web, other := w.add(deployment, "web", 3, "db"), w.add(deployment, "zoo", 3, "tls")
		defer w.run(Config{Parallel: 1, Recorder: &counts})()
		started()
		w.locked(func() { w.broken = true })
		w.change("db")
		time.Sleep(20 * time.Second)
		w.change("tls")
		time.Sleep(5 * time.Minute)
		w.expect(web, 1, "at first")
		w.expect(other, 0, "while the other is under way")
		for range 5 {
			w.change("db")
			done()
		}
		w.expect(web, 1, "after more changes")
		w.expect(other, 1, "after the other has taken too long")
		counts.expect(t, map[string]int{resultStarted: 2, resultUnfinished: 2})
	})
}

// A GitOps controller that takes the annotation off has the pods replaced by others
// of the old template. Those that were not replaced yet are restarted again, after
// the spacing.
func TestARestartThatIsRevertedIsNotRepeatedBeforeTheSpacing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		web := w.add(deployment, "web", 5, "db")
		w.patched = func(path string) error {
			go func() {
				time.Sleep(time.Minute)
				w.locked(func() {
					w.workloads[path].(*appsv1.Deployment).Spec.Template.Annotations = nil
					w.progress(path, 5, 5)
				})
			}()
			return nil
		}
		w.broken = true
		defer w.run(Config{})()
		started()
		w.change("db")
		time.Sleep(16 * time.Minute)
		its := w.restarts(web)
		if len(its) < 2 || len(its) > 4 {
			t.Fatalf("there are %d restarts", len(its))
		}
		for i := range its[1:] {
			if apart := its[i+1].at.Sub(its[i].at); apart < DefaultSpacing {
				t.Errorf("two restarts are %s apart", apart)
			}
		}
	})
}

func TestWhatTheAPIServerRefusesIsTriedAgainAndHoldsNothingElseUp(t *testing.T) {
	for name, refused := range map[string]func(verb, path string) bool{
		"the patch":          func(verb, path string) bool { return verb == http.MethodPatch },
		"the workload":       func(verb, path string) bool { return strings.HasSuffix(path, "deployments/web") },
		"the owner of a pod": func(verb, path string) bool { return strings.HasSuffix(path, "replicasets/web-1") },
		"its pods":           func(verb, path string) bool { return strings.Contains(path, "pods/web-") },
	} {
		for _, code := range []int{http.StatusForbidden, http.StatusInternalServerError, http.StatusConflict} {
			t.Run(fmt.Sprintf("%s, %d", name, code), func(t *testing.T) {
				inBubble(t, func(t *testing.T, w *world) {
					w.class("db", true)
					web, other := w.add(deployment, "web", 3, "db"), w.add(deployment, "zoo", 3, "db")
					defer w.run(Config{})()
					started()
					w.locked(func() {
						w.refuse = func(verb, path string) int {
							if refused(verb, path) && strings.Contains(path, "web") {
								return code
							}
							return 0
						}
					})
					w.change("db")
					done()
					w.expect(web, 0, "meanwhile")
					w.expect(other, 1, "meanwhile")
					w.locked(func() { w.refuse = nil })
					done()
					w.expect(web, 1, "after that")
					w.expect(other, 1, "after that")
				})
			})
		}
	}
}

func TestAWorkloadThatWasReplacedIsAnother(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		web := w.add(deployment, "web", 3, "db")
		defer w.run(Config{})()
		started()
		w.change("db")
		time.Sleep(5 * time.Second)
		w.locked(func() { w.workloads[web].(*appsv1.Deployment).UID = "another" })
		done()
		w.expect(web, 0, "after that")
	})
}

func TestAConfigurationIsChecked(t *testing.T) {
	for _, c := range []Config{{Settle: -1}, {Spacing: -1}, {Parallel: -1}, {PerMinute: -1}} {
		if _, err := build(nil, c); err == nil {
			t.Errorf("%+v is no error", c)
		}
	}
}

// Whatever a workload looks like, it is read.
func FuzzObject(f *testing.F) {
	for _, seed := range []string{
		`{"metadata":{"generation":2,"annotations":{"secrets-store.csi.x-k8s.io/restart":"true"}},"spec":{"replicas":3,"template":{"metadata":{"annotations":{"secrets-store.csi.x-k8s.io/restartedAt":"2026-11-21T08:00:00Z"}}}},"status":{"observedGeneration":2,"conditions":[{"type":"Progressing","reason":"NewReplicaSetAvailable"}]}}`,
		`{"metadata":{"generation":2},"spec":{"restartAt":"2026-11-21T08:00:00Z"},"status":{"observedGeneration":"2","phase":"Healthy","restartedAt":"2026-11-21T08:00:00Z"}}`,
		`{"spec":{"template":{"metadata":{"annotations":{"secrets-store.csi.x-k8s.io/restartedAt":"yesterday"}}}},"status":{"observedGeneration":"69d8b5"}}`,
		`{"spec":null,"status":{"restartedAt":null}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var o object
		if json.Unmarshal(text, &o) != nil {
			return
		}
		for kind := range restartable {
			_, _, _ = o.finished(kind.Kind), o.held(), o.manual()
			_, _ = wish(o.Metadata.Annotations, o.Spec.Template.Metadata.Annotations)
			at := o.restartedAt(kind.Kind)
			body, err := o.patch(kind.Kind, at, "it")
			var sent map[string]map[string]any
			if err = cmp.Or(err, json.Unmarshal(body, &sent)); err != nil || sent["metadata"]["resourceVersion"] != o.Metadata.ResourceVersion {
				t.Errorf("the patch is %s, %v", body, err)
			}
		}
	})
}
