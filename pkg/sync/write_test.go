package sync

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

var (
	login = place{Namespace: "shop", Name: "login"}
	noon  = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
)

// wanted returns the Secret login with these pairs of a key and its value.
func wanted(at time.Time, pairs ...string) Wanted {
	w := Wanted{Namespace: "shop", Name: "login", Type: "Opaque", Source: "db", Generation: 1, Changed: at, Data: map[string]secret.Value{},
		Owners: []metav1.OwnerReference{owner("web")}}
	for i := 0; i < len(pairs); i += 2 {
		w.Data[pairs[i]] = secret.FromString(pairs[i+1])
	}
	return w
}

func owner(name string) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "apps/v1", Kind: "Deployment", Name: name, UID: types.UID("uid-" + name)}
}

// ensure checks whether bringing a Secret about takes a write.
func ensure(t *testing.T, w *Writer, want Wanted, writes bool) {
	t.Helper()
	if st, err := w.Look(t.Context(), want); err != nil || st.Holds == writes {
		t.Errorf("it stands %+v, %v", st, err)
	}
	done, err := w.Ensure(t.Context(), want)
	if err != nil || done.Wrote != writes {
		t.Errorf("wrote: %v, %v; want %v", done, err, writes)
	}
	if st, err := w.Look(t.Context(), want); err != nil || !st.Holds {
		t.Errorf("it stands %+v then, %v", st, err)
	}
}

func TestASecretIsWrittenOnceAndAgainWhenItChanges(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	want := wanted(noon, "user", "ann", "none", "")
	want.Labels, want.Annotations = map[string]string{"app": "shop"}, map[string]string{"note": "mine"}
	ensure(t, w, want, true)
	s.expect("apply shop/login", "own shop/login")
	has := s.secret(login)
	if has.Type != "Opaque" || string(has.Data["user"]) != "ann" || len(has.Data) != 2 || has.Labels["app"] != "shop" || has.Labels[ManagedLabel] != "true" ||
		has.Annotations["note"] != "mine" || has.Annotations[SourceAnnotation] != "db" || has.Annotations[ChangedAnnotation] != "2026-11-21T12:00:00Z" || has.Annotations[GenerationAnnotation] != "1" ||
		!slices.Equal(has.OwnerReferences, want.Owners) {
		t.Errorf("it is %+v", has)
	}
	want.Changed = noon.Add(time.Hour) // another pod with the same files
	ensure(t, w, want, false)
	s.expect()

	want.Data = wanted(noon, "user", "bob", "more", "1").Data
	want.Labels = map[string]string{"tier": "1"}
	want.Annotations = nil
	ensure(t, w, want, true)
	s.expect("apply shop/login")
	has = s.secret(login)
	if string(has.Data["user"]) != "bob" || len(has.Data) != 2 || len(has.Labels) != 2 || has.Labels["tier"] != "1" || len(has.Annotations) != 3 || has.Annotations[ChangedAnnotation] != "2026-11-21T13:00:00Z" {
		t.Errorf("it is %+v", has)
	}
}

func TestWhatOthersHaveAddedStays(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	ensure(t, w, wanted(noon, "user", "ann"), true)
	s.edit(login, "somebody", func(has *corev1.Secret) {
		has.Labels["team"], has.Annotations["seen"] = "a", "yes"
		has.OwnerReferences = append(has.OwnerReferences, owner("theirs"))
	})
	s.expect("apply shop/login", "own shop/login", "edit shop/login")
	ensure(t, w, wanted(noon, "user", "ann"), false)
	ensure(t, w, wanted(noon.Add(time.Hour), "user", "bob"), true)
	has := s.secret(login)
	if has.Labels["team"] != "a" || has.Annotations["seen"] != "yes" || !slices.Equal(has.OwnerReferences, []metav1.OwnerReference{owner("web"), owner("theirs")}) {
		t.Errorf("it is %+v", has)
	}
	// And they can take their own away again.
	s.edit(login, "somebody", func(has *corev1.Secret) {
		delete(has.Labels, "team")
		has.OwnerReferences = has.OwnerReferences[:1]
	})
	ensure(t, w, wanted(noon.Add(2*time.Hour), "user", "carl"), true)
	if has := s.secret(login); has.Labels["team"] != "" || len(has.OwnerReferences) != 1 {
		t.Errorf("it is %+v", has)
	}
}

func TestWhatOthersHaveChangedIsPutRight(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	want := wanted(noon, "user", "ann", "pass", "1")
	want.Labels = map[string]string{"app": "shop"}
	ensure(t, w, want, true)
	for what, change := range map[string]func(*corev1.Secret){
		"a value":   func(has *corev1.Secret) { has.Data["user"] = []byte("eve") },
		"a new key": func(has *corev1.Secret) { has.Data["more"] = []byte("eve") },
		"a key":     func(has *corev1.Secret) { delete(has.Data, "user") },
		"a label":   func(has *corev1.Secret) { has.Labels["app"] = "eve" },
		"an owner":  func(has *corev1.Secret) { has.OwnerReferences = nil },
		"the mark":  func(has *corev1.Secret) { has.Annotations = nil },
	} {
		t.Run(what, func(t *testing.T) {
			s.edit(login, "eve", change)
			ensure(t, w, want, true)
			has := s.secret(login)
			if len(has.Data) != 2 || string(has.Data["user"]) != "ann" || has.Labels["app"] != "shop" || len(has.OwnerReferences) != 1 {
				t.Errorf("it is %+v", has)
			}
		})
	}
}

func TestASecretOfSomebodyElseIsLeftAlone(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	s.edit(login, "somebody", func(has *corev1.Secret) {
		has.Type, has.Data, has.Labels = "Opaque", map[string][]byte{"user": []byte("theirs")}, map[string]string{ManagedLabel: "false"}
	})
	before := s.secret(login)
	done, err := w.Ensure(t.Context(), wanted(noon, "user", canary))
	if done.Wrote || !errors.Is(err, ErrForeign) || provider.KindOf(err) != provider.Invalid || !strings.HasPrefix(err.Error(), "Secret shop/login: it exists, and csi-secrets does not manage it; choose another name") {
		t.Errorf("wrote %v, %v", done, err)
	}
	if err := w.Remove(t.Context(), "shop", "login", "db"); !errors.Is(err, ErrForeign) {
		t.Errorf("removed: %v", err)
	}
	if after := s.secret(login); after.ResourceVersion != before.ResourceVersion {
		t.Errorf("it is %+v", after)
	}
}

func TestASecretThatSomethingControlsIsForThatOnly(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	yes, own := true, wanted(noon, "user", "ann")
	own.Owners = []metav1.OwnerReference{{APIVersion: "secret-sync.x-k8s.io/v1alpha1", Kind: "SecretSync", Name: "login", UID: "uid-sync", Controller: &yes}}
	ensure(t, w, own, true)
	done, err := w.Ensure(t.Context(), wanted(noon.Add(time.Hour), "user", "eve"))
	if done.Wrote || !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), `it belongs to SecretSync "login"; choose another name`) {
		t.Errorf("wrote %v, %v", done, err)
	}
	own.Data = wanted(noon, "user", "bob").Data
	own.Changed = noon.Add(time.Minute)
	ensure(t, w, own, true)
}

// Any node sees by the field managers that it was no other node.
func TestAnEditIsPutRightByAPodWithOlderFilesToo(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	ensure(t, w, wanted(noon, "user", "ann"), true)
	older := wanted(noon.Add(-time.Hour), "user", "ann")
	ensure(t, w, older, false)
	s.edit(login, "eve", func(has *corev1.Secret) { has.Data["user"] = []byte("eve") })
	ensure(t, w, older, true)
	if text, _ := s.text(login, "user"); text != "ann" {
		t.Errorf("it is %q", text)
	}
}

// What secrets-store-csi-driver has made is taken over whole, without what it left
// there, and keeps its owners.
func TestASecretOfTheOldDriverIsTakenOver(t *testing.T) {
	for _, data := range []map[string][]byte{{"user": []byte("ann")}, {"user": []byte("old"), "left": []byte("over")}} {
		s := newServer(t)
		s.edit(login, "secrets-store-csi", func(has *corev1.Secret) {
			has.Type, has.Data, has.Labels = "Opaque", data, map[string]string{ManagedLabel: "true"}
			has.OwnerReferences = []metav1.OwnerReference{owner("replicas")}
		})
		ensure(t, s.writer(), wanted(noon, "user", "ann"), true)
		has := s.secret(login)
		if len(has.Data) != 1 || string(has.Data["user"]) != "ann" || len(has.OwnerReferences) != 2 || has.Annotations[SourceAnnotation] != "db" {
			t.Errorf("it is %+v", has)
		}
	}
}

func TestOlderContentsNeverTakeThePlaceOfNewerOnes(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	ensure(t, w, wanted(noon, "user", "new"), true)
	old := wanted(noon.Add(-time.Minute), "user", "old")
	old.Owners = []metav1.OwnerReference{owner("other")}
	var newer *NewerError
	for _, writes := range []bool{true, false} {
		if st, err := w.Look(t.Context(), old); st.Holds || st.Owned == writes || err != nil || !st.Since.Equal(noon) {
			t.Errorf("it stands %+v, %v", st, err)
		}
		if done, err := w.Ensure(t.Context(), old); done.Wrote != writes || !errors.As(err, &newer) || !newer.Changed.Equal(noon) {
			t.Errorf("wrote %v, %v", done, err)
		}
	}
	if has := s.secret(login); string(has.Data["user"]) != "new" || len(has.OwnerReferences) != 2 {
		t.Errorf("it is %+v", has)
	}
	// A class that has changed since is newer than any files.
	old.Generation = 2
	ensure(t, w, old, true)
	// Nodes that have not heard of that do not undo it.
	if _, err := w.Ensure(t.Context(), wanted(noon.Add(-time.Minute), "user", "new")); !errors.As(err, &newer) {
		t.Errorf("got %v", err)
	}
	if text, _ := s.text(login, "user"); text != "old" {
		t.Errorf("it is %q", text)
	}
	// Of the same class as it is now, files count again.
	newest := wanted(noon, "user", "newest")
	newest.Generation = 2
	ensure(t, w, newest, true)
}

func TestATypeThatChangesMakesTheSecretAnew(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	ensure(t, w, wanted(noon, "password", "1"), true)
	s.edit(login, "somebody", func(has *corev1.Secret) { has.OwnerReferences = append(has.OwnerReferences, owner("theirs")) })
	before := s.secret(login)
	want := wanted(noon, "password", "1")
	want.Type = "kubernetes.io/basic-auth"
	var newer *NewerError
	older := want
	older.Changed = noon.Add(-time.Minute)
	if _, err := w.Ensure(t.Context(), older); !errors.As(err, &newer) || s.secret(login).UID != before.UID {
		t.Errorf("got %v", err)
	}
	want.Generation = 2
	s.before = func(method, _ string) *metav1.Status {
		if method == http.MethodPost {
			return status(422, metav1.StatusReasonInvalid, "")
		}
		return nil
	}
	if _, err := w.Ensure(t.Context(), want); provider.KindOf(err) != provider.Invalid || s.secret(login).UID != before.UID {
		t.Errorf("got %v; the Secret must stay until there can be another", err)
	}
	s.before = nil
	ensure(t, w, want, true)
	s.expect("apply shop/login", "own shop/login", "edit shop/login", "delete shop/login", "apply shop/login", "own shop/login")
	if has := s.secret(login); has.Type != corev1.SecretTypeBasicAuth || len(has.OwnerReferences) != 2 || has.UID == before.UID {
		t.Errorf("it is %+v", has)
	}
}

// A Role that names the Secrets allows none to be tried whose name is made.
func TestATypeChangesWithTheRightsToOneSecretToo(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	ensure(t, w, wanted(noon, "password", "1"), true)
	before := s.secret(login)
	want := wanted(noon, "password", "1")
	want.Type, want.Generation = "kubernetes.io/basic-auth", 2
	s.before = func(method, _ string) *metav1.Status {
		if method == http.MethodPost {
			return status(403, metav1.StatusReasonForbidden, `secrets is forbidden: User "controller" cannot create resource "secrets" in API group "" in the namespace "shop"`)
		}
		return nil
	}
	s.causes = []metav1.StatusCause{{Type: metav1.CauseTypeFieldValueRequired, Field: "data[tls.crt]"}}
	if _, err := w.Ensure(t.Context(), want); provider.KindOf(err) != provider.Invalid || s.secret(login).UID != before.UID || !strings.Contains(fmt.Sprint(err), "data[tls.crt]") {
		t.Errorf("got %v; the Secret must stay until there can be another", err)
	}
	s.causes = nil
	ensure(t, w, want, true)
	if has := s.secret(login); has.Type != corev1.SecretTypeBasicAuth || has.UID == before.UID {
		t.Errorf("it is %+v", has)
	}
}

// What somebody else owns too stays after an apply without it.
func TestWhatLeavesTheClassGoesWhoeverElseHasWrittenIt(t *testing.T) {
	for _, manager := range append([]string{"somebody"}, predecessors...) {
		s := newServer(t)
		w := s.writer()
		s.edit(login, manager, func(has *corev1.Secret) {
			has.Type, has.Labels = "Opaque", map[string]string{ManagedLabel: "true", "tier": "1"}
			has.Data = map[string][]byte{"user": []byte("ann"), "more": []byte("1"), "foreign": []byte("2")}
		})
		want := wanted(noon, "user", "ann", "more", "1")
		want.Labels = map[string]string{"tier": "1"}
		ensure(t, w, want, true)
		s.expect("edit shop/login", "apply shop/login", "merge shop/login", "own shop/login")
		if has := s.secret(login); len(has.Data) != 2 || inherited(has) {
			t.Errorf("after %s it has %d keys, and its fields are those of %v", manager, len(has.Data), has.ManagedFields)
		}
		next := wanted(noon.Add(time.Minute), "user", "ann")
		next.Generation = 2
		ensure(t, w, next, true)
		has := s.secret(login)
		if _, ok := has.Data["more"]; ok {
			t.Errorf("a key that %s owned too has stayed", manager)
		}
		if _, stays := has.Labels["tier"]; stays != (manager == "somebody") {
			t.Errorf("the labels are %v after %s", has.Labels, manager)
		}
	}
}

// A predecessor may write while both run, or have been there before this was seen to.
func TestWhatAPredecessorWritesMeanwhileIsOursInTheEnd(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	want := wanted(noon, "user", "ann")
	ensure(t, w, want, true)
	s.edit(login, predecessors[0], func(has *corev1.Secret) { has.Labels["tier"] = "1" })
	ensure(t, w, want, true)
	if has := s.secret(login); inherited(has) || has.Labels["tier"] != "1" {
		t.Errorf("it is %+v", has.ObjectMeta)
	}
	ensure(t, w, want, false)
}

func TestAnImmutableSecretIsLeftWithWords(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	ensure(t, w, wanted(noon, "user", "ann"), true)
	yes := true
	s.edit(login, "somebody", func(has *corev1.Secret) { has.Immutable = &yes })
	ensure(t, w, wanted(noon, "user", "ann"), false)
	if _, err := w.Ensure(t.Context(), wanted(noon.Add(time.Hour), "user", "bob")); provider.KindOf(err) != provider.Invalid || !strings.Contains(fmt.Sprint(err), "Secret shop/login: it is immutable, and the files have changed; delete it") {
		t.Errorf("got %v", err)
	}
}

func TestASecretGoesForTheSourceThatHasItOnly(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	if err := w.Remove(t.Context(), "shop", "login", "db"); err != nil {
		t.Errorf("of none: %v", err)
	}
	ensure(t, w, wanted(noon, "user", "ann"), true)
	if err := w.Remove(t.Context(), "shop", "login", "other"); !errors.Is(err, ErrForeign) || s.secret(login) == nil {
		t.Errorf("of another class: %v", err)
	}
	if err := w.Remove(t.Context(), "shop", "login", "db"); err != nil || s.secret(login) != nil {
		t.Errorf("of its own: %v", err)
	}
}

// Two writers that act at once, and others that edit, end in the newest contents
// with the owners of both.
func TestWritersThatActAtOnceEndInTheNewest(t *testing.T) {
	for round := range 50 {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(t)
			s.before = func(string, string) *metav1.Status {
				time.Sleep(rand.N(10 * time.Millisecond)) // so that they come in any order
				return nil
			}
			want := []Wanted{wanted(noon, "crt", "old", "key", "old"), wanted(noon.Add(time.Second), "crt", "new", "key", "new")}
			want[1].Owners = []metav1.OwnerReference{owner("other")}
			bring := func() {
				var all sync.WaitGroup
				for _, want := range want {
					all.Go(func() {
						var newer *NewerError
						if _, err := s.writer().Ensure(t.Context(), want); err != nil && !errors.As(err, &newer) {
							t.Error(err)
						}
					})
				}
				all.Wait()
				has := s.secret(login)
				if string(has.Data["crt"]) != string(has.Data["key"]) || len(has.OwnerReferences) != 2 {
					t.Errorf("round %d: it is %+v", round, has)
				}
			}
			bring()
			bring() // they look again
			if text, _ := s.text(login, "crt"); text != "new" {
				t.Errorf("round %d: it is %q", round, text)
			}
			s.mu.Lock()
			n := len(s.writes)
			s.mu.Unlock()
			if n > 6 {
				t.Errorf("round %d: %d writes", round, n)
			}
		})
	}
}

func TestASecretThatIsWrittenAllTheTimeIsGivenUpForNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		w := s.writer()
		ensure(t, w, wanted(noon, "user", "ann"), true)
		tries := 0
		s.before = func(method, _ string) *metav1.Status {
			if method == http.MethodPatch {
				tries++
				return status(409, metav1.StatusReasonConflict, canary)
			}
			return nil
		}
		_, err := w.Ensure(t.Context(), wanted(noon.Add(time.Hour), "user", "bob"))
		if provider.KindOf(err) != provider.Unavailable || !strings.Contains(err.Error(), "others write it all the time") || tries != attempts {
			t.Errorf("after %d: %v", tries, err)
		}
	})
}

// The API server's own words may quote what it was sent.
func TestRefusalsAreToldWithoutTheServersWords(t *testing.T) {
	invalid := status(422, metav1.StatusReasonInvalid, "Secret is invalid: data: Invalid value: "+canary)
	invalid.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "FieldValueRequired", Message: canary, Field: "data[password]"}}}
	ending := status(403, metav1.StatusReasonForbidden, canary)
	ending.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}}
	for name, test := range map[string]struct {
		status *metav1.Status
		kind   provider.Kind
		says   string
	}{
		"no right":      {status(403, metav1.StatusReasonForbidden, `secrets "login" is forbidden: User "x" cannot patch `+canary), provider.Denied, `this program may not read and write it; let it get, create, patch and delete secrets in the namespace "shop" (chart: syncSecret.enabled and syncSecret.namespaces`},
		"a quota":       {status(403, metav1.StatusReasonForbidden, `exceeded quota: q `+canary), provider.Denied, "the namespace's quota does not allow it"},
		"a policy":      {status(403, metav1.StatusReasonForbidden, `ValidatingAdmissionPolicy denied `+canary), provider.Denied, "an admission policy of the cluster refuses it"},
		"a bad field":   {invalid, provider.Invalid, "the API server does not accept it: data[password] (FieldValueRequired); correct the type"},
		"its end":       {ending, provider.NotFound, "the namespace is gone, or about to be"},
		"no namespace":  {status(404, metav1.StatusReasonNotFound, canary), provider.NotFound, "the namespace is gone, or about to be"},
		"some webhook":  {status(400, metav1.StatusReasonBadRequest, canary), provider.Unavailable, "the API server refuses it: BadRequest (code 400)"},
		"a failure":     {status(500, metav1.StatusReasonInternalError, canary), provider.Unavailable, "the API server refuses it: InternalError (code 500)"},
		"another shape": {&metav1.Status{Code: 200, TypeMeta: metav1.TypeMeta{Kind: canary}}, provider.Unavailable, "the answer of the API server cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.before = func(method, _ string) *metav1.Status {
				if method == http.MethodPatch {
					return test.status
				}
				return nil
			}
			_, err := s.writer().Ensure(t.Context(), wanted(noon, "user", canary))
			if provider.KindOf(err) != test.kind || !strings.Contains(fmt.Sprint(err), "Secret shop/login: "+test.says) || strings.Contains(err.Error(), canary) {
				t.Errorf("got %v of kind %v", err, provider.KindOf(err))
			}
		})
	}
}

// client-go logs what it sends and gets, where the level is high.
func TestNoValueIsLoggedAtAnyLevel(t *testing.T) {
	s := newServer(t)
	log := &bytes.Buffer{}
	ctx := klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(log), textlogger.Verbosity(10))))
	w := s.writer()
	for _, value := range []string{canary + "1", canary + "2"} {
		if _, err := w.Ensure(ctx, wanted(noon, "user", value)); err != nil && value != canary+"2" {
			t.Fatal(err)
		}
	}
	if _, err := w.Look(ctx, wanted(noon, "user", canary)); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(ctx, "shop", "login", "db"); err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{canary, base64.StdEncoding.EncodeToString([]byte(canary))[:7]} {
		if strings.Contains(log.String(), form) {
			t.Errorf("the log has a value:\n%s", log)
		}
	}
}

func TestAWriteBetweenAReadAndAWriteIsSeen(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	ensure(t, w, wanted(noon, "user", "first"), true)
	first := true
	s.before = func(method, _ string) *metav1.Status {
		if method == http.MethodPatch && first {
			first = false
			if _, err := s.writer().Ensure(t.Context(), wanted(noon.Add(2*time.Hour), "user", "third")); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	var newer *NewerError
	if _, err := w.Ensure(t.Context(), wanted(noon.Add(time.Hour), "user", "second")); !errors.As(err, &newer) {
		t.Errorf("got %v", err)
	}
	if text, _ := s.text(login, "user"); text != "third" {
		t.Errorf("it is %q", text)
	}
}

func TestASecretThatIsDeletedBetweenAReadAndAWriteIsMadeAnew(t *testing.T) {
	s := newServer(t)
	w := s.writer()
	ensure(t, w, wanted(noon, "user", "ann"), true)
	s.before = func(method, _ string) *metav1.Status {
		if method == http.MethodPatch {
			s.mu.Lock()
			defer s.mu.Unlock()
			clear(s.secrets)
			s.before = nil
		}
		return nil
	}
	want := wanted(noon, "user", "ann")
	want.Owners = append(want.Owners, owner("other"))
	if done, err := w.Ensure(t.Context(), want); err != nil || !done.Wrote || len(s.secret(login).OwnerReferences) != 2 {
		t.Errorf("wrote %v, %v", done, err)
	}
}
