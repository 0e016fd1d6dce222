package restart

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/csi-secrets/csi-secrets/pkg/cluster"
)

// fromEnv is what uses the Secret login as variables.
func fromEnv() corev1.PodSpec {
	return corev1.PodSpec{Containers: []corev1.Container{
		{Name: "beside"},
		{Name: "app", EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "login"}}}}},
	}}
}

// fromVolume is what uses the Secret login in a volume.
func fromVolume(volume corev1.VolumeSource) corev1.PodSpec {
	return corev1.PodSpec{
		Containers: []corev1.Container{{Name: "app", VolumeMounts: []corev1.VolumeMount{{Name: "secrets", MountPath: "/secrets"}}}},
		Volumes:    []corev1.Volume{{Name: "secrets", VolumeSource: volume}},
	}
}

// uses are the ways in which a pod uses the Secret login.
func uses() map[string]corev1.PodSpec {
	login := corev1.LocalObjectReference{Name: "login"}
	byKey := corev1.Container{Name: "app", Env: []corev1.EnvVar{
		{Name: "MODE", Value: "fast"},
		{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
		{Name: "PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: login, Key: "password"}}},
	}}
	return map[string]corev1.PodSpec{
		"envFrom":      fromEnv(),
		"secretKeyRef": {Containers: []corev1.Container{byKey}},
		"a volume":     fromVolume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "login"}}),
		"a projected volume": fromVolume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}, {Secret: &corev1.SecretProjection{LocalObjectReference: login}}}}}),
		"an init container": {InitContainers: []corev1.Container{byKey}, Containers: []corev1.Container{{Name: "main"}}},
	}
}

// forgotten checks that nothing is kept in mind of what is over.
func (w *world) forgotten() {
	w.t.Helper()
	synctest.Wait()
	if r := w.restarter; len(r.jobs) > 0 {
		w.t.Errorf("kept in mind is %v", r.jobs)
	}
}

func TestAWorkloadThatUsesASecretIsRestartedOnceForAChange(t *testing.T) {
	for way, spec := range uses() {
		for _, by := range []string{"pods", "a SecretSync"} {
			t.Run(way+" of a Secret by "+by, func(t *testing.T) {
				inBubble(t, func(t *testing.T, w *world) {
					var counts counter
					w.class("db", true)
					w.add(deployment, "web", 5, "db")
					api, other := w.addUser(deployment, "api", 7, spec), w.addUser(statefulSet, "other", 3, corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}}})
					stop := w.run(Config{Recorder: &counts, SecretSyncs: true})
					defer stop()
					started()
					write := w.write
					if by == "a SecretSync" {
						write = w.sync
					}
					changed := time.Now()
					write("db")
					done()
					w.expect(api, 1, "after a change")
					w.expect("", 1, "of all after a change")
					w.expect(other, 0, "without the Secret")
					if t.Failed() {
						return
					}
					restart := w.restarts(api)[0]
					if wait := restart.at.Sub(changed); wait < DefaultSettle || wait > DefaultSettle+5*time.Second {
						t.Errorf("the restart began after %s", wait)
					}
					if !strings.Contains(restart.body, `restartedFor":"Secret login"`) {
						t.Errorf("written was %s", restart.body)
					}
					says := "restarted the pods: Secret login changed at " + changed.UTC().Format(time.RFC3339)
					if events := w.told(); len(events) != 1 || events[0].Reason != "Restarted" || events[0].InvolvedObject.Name != "api" || events[0].Message != says {
						t.Errorf("the events are %+v, want %q", events, says)
					}
					counts.expect(t, map[string]int{resultStarted: 1, resultFinished: 1})
					w.forgotten()

					write("db")
					done()
					w.expect(api, 2, "after another change")
					w.forgotten()
				})
			})
		}
	}
}

func TestEveryKindOfWorkloadThatUsesASecretIsRestarted(t *testing.T) {
	for _, kind := range []string{deployment, statefulSet, daemonSet, rollout} {
		t.Run(kind, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.class("db", true)
				api := w.addUser(kind, "api", 4, fromEnv())
				defer w.run(Config{SecretSyncs: true})()
				started()
				for n := range 2 {
					w.sync("db")
					done()
					w.expect(api, n+1, "after a change")
				}
			})
		})
	}
}

// A pod that has the files and the Secret is restarted for both at once.
func TestAPodWithTheFilesAndTheSecretIsRestartedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		web := w.addUser(deployment, "web", 6, fromEnv(), "db")
		defer w.run(Config{})()
		started()
		w.change("db")
		w.write("db")
		done()
		w.expect(web, 1, "after a change")
	})
}

func TestOnlyPodsThatReadTheOldSecretCount(t *testing.T) {
	for name, c := range map[string]struct {
		began func(p *livePod)
		want  int
	}{
		"all are as they were":   {func(*livePod) {}, 1},
		"containers waited":      {func(p *livePod) { clear(p.began) }, 0},
		"containers have ended":  {func(p *livePod) { p.ended = true }, 0},
		"containers began later": {func(p *livePod) { p.began["app"] = time.Now().Add(3 * time.Second) }, 0},
		"another began later":    {func(p *livePod) { p.began["beside"] = time.Now().Add(3 * time.Second) }, 1},
		"all but one began later": {func(p *livePod) {
			p.began["app"] = p.began["app"].Add(time.Hour * time.Duration(strings.Count(p.Name, "1")))
		}, 1},
		"they are about to end": {func(p *livePod) { now := metav1.Now(); p.DeletionTimestamp = &now }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.class("db", true)
				api := w.addUser(deployment, "api", 2, fromEnv())
				defer w.run(Config{SecretSyncs: true})()
				started()
				w.locked(func() {
					for _, p := range w.pods {
						c.began(p)
					}
				})
				w.sync("db")
				done()
				w.expect(api, c.want, "after a change")
				w.forgotten()
			})
		})
	}
}

// While a workload waits for its turn its pods may begin anew by themselves.
func TestAPodThatBeganAnewMeanwhileNeedsNoRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		api := w.addUser(deployment, "api", 3, fromEnv())
		defer w.run(Config{SecretSyncs: true})()
		started()
		w.sync("db")
		time.Sleep(time.Minute)
		w.expect(api, 1, "after a change")
		time.Sleep(time.Minute)
		w.sync("db")
		time.Sleep(time.Minute)
		w.locked(func() {
			for _, p := range w.pods {
				p.began["app"] = time.Now()
			}
		})
		done()
		w.expect(api, 1, "after they began anew")
		w.forgotten()
	})
}

func TestWhoseWorkloadsAreRestartedForASecret(t *testing.T) {
	for _, c := range []struct {
		name       string
		class      bool
		annotation string
		want       int
	}{
		{name: "of a class that wants it", class: true, want: 1},
		{name: "of a class that does not", want: 0},
		{name: "against the class", class: true, annotation: "false", want: 0},
		{name: "without the class", annotation: "true", want: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.class("db", c.class)
				api := w.addUser(deployment, "api", 3, fromEnv())
				if c.annotation != "" {
					w.workloads[api].(*appsv1.Deployment).Annotations = map[string]string{Annotation: c.annotation}
				}
				defer w.run(Config{SecretSyncs: true})()
				started()
				w.sync("db")
				done()
				w.expect(api, c.want, "after a change")
				w.forgotten()
			})
		})
	}
}

func TestAClassThatBeginsToWantRestartsHasThemForItsSecretsToo(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", false)
		api := w.addUser(deployment, "api", 3, fromEnv())
		defer w.run(Config{SecretSyncs: true})()
		started()
		w.sync("db")
		done()
		w.expect(api, 0, "before")
		w.class("db", true)
		done()
		w.expect(api, 1, "after")
	})
}

// A Secret that two classes make changes hands, and wants restarts if one does.
func TestASecretOfTwoClassesIsThatOfBoth(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		w.class("new", false)
		w.add(deployment, "web", 1, "db")
		w.add(deployment, "next", 1, "new")
		api := w.addUser(deployment, "api", 3, fromEnv())
		defer w.run(Config{})()
		started()
		w.write("db")
		done()
		w.expect(api, 1, "after a change by the one")
		w.write("new")
		done()
		w.expect(api, 2, "after a change by the other")
	})
}

func TestANewLeaderKnowsWhichPodsReadASecret(t *testing.T) {
	for _, when := range []time.Duration{0, 2 * time.Second, DefaultSettle + 3*time.Second, time.Minute, time.Hour} {
		t.Run(when.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.class("db", true)
				w.add(deployment, "web", 2, "db")
				api := w.addUser(deployment, "api", 5, fromEnv())
				stop := w.run(Config{})
				started()
				w.write("db")
				time.Sleep(when)
				stop()
				time.Sleep(time.Minute)
				defer w.run(Config{})()
				done()
				w.expect(api, 1, "after a change")
				w.forgotten()
			})
		})
	}
}

func TestPodsThatCannotBeListedAreListedLater(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		api := w.addUser(deployment, "api", 5, fromEnv())
		away, lists := true, 0
		w.refuse = func(verb, path string) int {
			if strings.HasSuffix(path, "/pods") {
				// The second part of a list expires, and nothing is known of the others then.
				if lists++; away && lists%2 == 0 {
					return http.StatusGone
				}
			}
			return 0
		}
		defer w.run(Config{SecretSyncs: true})()
		started()
		w.sync("db")
		time.Sleep(10 * time.Minute)
		w.expect(api, 0, "while they cannot be")
		if lists < 10 || lists > 30 {
			t.Errorf("it was tried %d times", lists)
		}
		w.forgotten()
		w.locked(func() { away = false })
		done()
		w.expect(api, 1, "after they can")
	})
}

func TestAPodOfNoWorkloadThatUsesASecretIsTold(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		w.class("config", false)
		w.add(deployment, "web", 1, "config")
		w.addUser("Job", "nightly", 1, fromEnv())
		w.addUser("Job", "gone", 1, fromEnv())
		w.locked(func() {
			now := metav1.Now()
			w.pods[place{Namespace: "shop", Name: "gone-0"}].DeletionTimestamp = &now
		})
		defer w.run(Config{SecretSyncs: true})()
		started()
		w.write("config")
		done()
		if events := w.told(); len(events) > 0 {
			t.Errorf("of a class that wants no restarts is told: %+v", events)
		}
		for range 2 {
			w.sync("db")
			done()
		}
		events := w.told()
		if len(events) != 1 || events[0].Reason != "CannotRestart" || events[0].InvolvedObject.Name != "nightly-0" || !strings.HasPrefix(events[0].Message, "Secret login has changed, and this cannot be restarted: Job nightly controls it") {
			t.Errorf("the events are %+v", events)
		}
		w.forgotten()
	})
}

// What is listed costs nothing as long as no Secret changes.
func TestPodsAreListedForChangesOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.class("db", true)
		w.add(deployment, "web", 30, "db")
		defer w.run(Config{})()
		started()
		w.write("db")
		done()
		before := w.asked("GET pods")
		w.write("db") // of many nodes
		time.Sleep(20 * time.Minute)
		if n := w.asked("GET pods") - before; n != 10 {
			t.Errorf("30 pods took %d requests, want one list of 10 parts", n)
		}
		time.Sleep(24 * time.Hour)
		if n := w.asked("GET pods") - before; n != 10 {
			t.Errorf("there were %d requests a day later", n)
		}
	})
}

// Statuses come late, and go.
func TestWhatManyTellOfASecretIsItsLastChange(t *testing.T) {
	v := newView()
	tells := func(pod string, changed ...time.Duration) {
		s := status(pod, "db", 0)
		for _, at := range changed {
			written := metav1.NewTime(s.Status.MountedAt.Add(at))
			s.Status.Secrets = append(s.Status.Secrets, cluster.Secret{Name: "login", WrittenAt: &written})
		}
		must(t, v.statusStore().Update(s))
	}
	must(t, v.classStore().Replace(nil, "1"))
	must(t, v.statusStore().Replace(nil, "1"))
	for _, step := range []struct {
		name string
		tell func()
		news bool
	}{
		{"a Secret", func() { tells("a", time.Minute) }, true},
		{"the same of another", func() { tells("b", time.Minute) }, false},
		{"a change", func() { tells("b", time.Hour) }, true},
		{"what was before, of one that is late", func() { tells("c", time.Minute) }, false},
		{"one that is not made yet", func() {
			s := status("d", "db", 0)
			s.Status.Secrets = []cluster.Secret{{Name: "tls"}}
			must(t, v.statusStore().Update(s))
		}, false},
		{"those that tell no more of it", func() { tells("a"); tells("b") }, false},
	} {
		step.tell()
		if _, namespaces, _ := v.take(); len(namespaces) > 0 != step.news {
			t.Errorf("%s: there is news of %q", step.name, namespaces)
		}
		if len(v.secrets) != 1 {
			t.Errorf("%s: the Secrets are %v", step.name, v.secrets)
		}
	}
	if got := v.written("shop")["login"]; got.Sub(status("a", "db", 0).Status.MountedAt.Time) != time.Hour {
		t.Errorf("it was written at %s", got)
	}
	must(t, v.statusStore().Replace(nil, "2"))
	if len(v.secrets) > 0 || len(v.told) > 0 {
		t.Errorf("known are still %v, %v", v.secrets, v.told)
	}
}

// Whatever a pod is like, it has read only Secrets that are looked for, each once.
func FuzzPod(f *testing.F) {
	for _, spec := range uses() {
		pod := corev1.Pod{Spec: spec}
		for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
			pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{
				Name: c.Name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Unix(1, 0)}},
			})
		}
		pod.Status.InitContainerStatuses = pod.Status.ContainerStatuses
		body, err := json.Marshal(pod)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	changed := time.Unix(2, 0)
	f.Fuzz(func(t *testing.T, body []byte) {
		var pod podObject
		if json.Unmarshal(body, &pod) != nil {
			return
		}
		switch read := pod.readers(map[string]time.Time{"login": changed}); {
		case len(read) > 1, len(read) == 1 && read[0] != change{secretKind, "login", changed}:
			t.Errorf("it has read %v", read)
		case (len(read) > 0) != pod.outdated(read):
			t.Errorf("that it has read %v does not concern it", read)
		}
		if other := pod.readers(map[string]time.Time{}); len(other) > 0 {
			t.Errorf("it has read %v, of which nobody asks", other)
		}
	})
}
