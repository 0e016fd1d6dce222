package vault

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// version is a version of a secret, as metadata shows it.
type version struct {
	number           int
	created, deleted string
	destroyed        bool
}

func (s *standIn) keep(path, value string, v version) {
	s.text("GET secret/data/"+path, fmt.Sprintf(`{"data":{"data":{"a":%q},"metadata":{"version":%d,"created_time":%q}}}`, value, v.number, v.created))
	s.describe(path, v)
}

func (s *standIn) describe(path string, v version) {
	s.text("GET secret/metadata/"+path, fmt.Sprintf(`{"data":{"current_version":%d,"versions":{"%d":{"created_time":%q,"deletion_time":%q,"destroyed":%v}}}}`, v.number, v.number, v.created, v.deleted, v.destroyed))
}

func TestARefreshAsksForMetadataAlone(t *testing.T) {
	const objects = "- {objectName: one, secretPath: secret/data/x, secretKey: a}\n- {objectName: two, secretPath: secret/data/y, secretKey: a}\n- {objectName: again, secretPath: secret/data/y, secretKey: a}"
	first := version{number: 1, created: "2026-01-01T00:00:00.1Z"}
	for name, c := range map[string]struct {
		change          func(s *standIn)
		metadata, reads int // of the refresh
		want            string
	}{
		"nothing has changed": {func(*standIn) {}, 2, 0, "not modified"},
		"another version":     {func(s *standIn) { s.keep("y", "new", version{number: 2, created: "2026-01-02T00:00:00Z"}) }, 2, 2, "old new new"},
		"the same number of a secret that was written anew": {func(s *standIn) { s.keep("y", "new", version{number: 1, created: "2026-01-02T00:00:00Z"}) }, 2, 2, "old new new"},
		"it will be deleted": {func(s *standIn) {
			s.describe("y", version{number: 1, created: first.created, deleted: time.Now().Add(time.Hour).Format(time.RFC3339Nano)})
		}, 2, 0, "not modified"},
		"it was deleted": {func(s *standIn) {
			s.answer("GET secret/data/y", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 404) })
			s.describe("y", version{number: 1, created: first.created, deleted: time.Now().Add(-time.Hour).Format(time.RFC3339Nano)})
		}, 2, 2, "not_found"},
		"it was destroyed": {func(s *standIn) { s.describe("y", version{number: 1, created: first.created, destroyed: true}) }, 2, 2, "old old old"},
		"that may not be read": {func(s *standIn) {
			s.answer("GET secret/metadata/x", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 403, "permission denied") })
		}, 1, 2, "old old old"},
		"that is something else": {func(s *standIn) { s.text("GET secret/metadata/x", `{"data":{"x":"y"}}`) }, 1, 2, "old old old"},
		"it throttles": {func(s *standIn) {
			s.answer("GET secret/metadata/x", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) })
		}, 1, 0, "throttled"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			s.keep("x", "old", first)
			s.keep("y", "old", first)
			p := New(Vault, s.defaults())
			v := s.volume("web", "web-1", objects)
			refresh := func() string {
				t.Helper()
				files, r, err := v.fetch(t.Context(), p)
				switch {
				case err != nil:
					return provider.KindOf(err).String()
				case r.NotModified:
					return "not modified"
				}
				return files["one"] + " " + files["two"] + " " + files["again"]
			}
			if got := refresh(); got != "old old old" {
				t.Fatalf("the mount: %s", got)
			}
			mounted := v.Mounted
			v.Current = func(string) (secret.Value, bool) { return secret.Value{}, false }
			c.change(s)
			reads, metadata := s.count("GET secret/data/"), s.count("GET secret/metadata/")
			if got := refresh(); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if reads, metadata = s.count("GET secret/data/")-reads, s.count("GET secret/metadata/")-metadata; metadata > c.metadata || metadata == 0 || reads != c.reads && (c.want != "not_found" || reads == 0) { // a failure ends the others
				t.Errorf("%d reads of metadata and %d of values, want %d and %d", metadata, reads, c.metadata, c.reads)
			}
			if c.metadata == 1 && c.reads > 0 { // it is not asked for again
				before := s.count("GET secret/metadata/")
				v.Mounted = mounted
				if refresh(); s.count("GET secret/metadata/") != before {
					t.Error("what was refused is asked for again")
				}
			}
		})
	}
}

// What a driver does not know of itself, it reads.
func TestWhatARestartedDriverFindsIsReadOnce(t *testing.T) {
	s := newStandIn(t)
	s.keep("x", "old", version{number: 1, created: "2026-01-01T00:00:00Z"})
	v := s.volume("web", "web-1", "- {objectName: one, secretPath: secret/data/x, secretKey: a}")
	if _, _, err := v.fetch(t.Context(), New(Vault, s.defaults())); err != nil {
		t.Fatal(err)
	}
	v.Current = func(string) (secret.Value, bool) { return secret.Value{}, false }
	p := New(Vault, s.defaults())
	for i, want := range []bool{false, true} {
		_, r, err := v.fetch(t.Context(), p)
		if r.NotModified != want || err != nil {
			t.Errorf("refresh %d: not modified is %v, %v", i, r.NotModified, err)
		}
	}
}

func TestOtherPathsHaveNoMetadata(t *testing.T) {
	s := newStandIn(t)
	s.text("GET kv/app", `{"data":{"a":"1"}}`)
	s.text("GET secret/data/app?version=1", kv("1", 1))
	s.answer("PUT transform/data/x", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, kv("1", 1)) })
	for _, object := range []string{"secretPath: kv/app", "secretPath: \"secret/data/app?version=1\"", "secretPath: transform/data/x, method: PUT"} {
		v := s.volume("web", "web-1", "- {objectName: one, "+object+", secretKey: a}")
		v.Current = func(string) (secret.Value, bool) { return secret.Value{}, false }
		p := New(Vault, s.defaults())
		for range 2 {
			if _, r, err := v.fetch(t.Context(), p); err != nil || r.NotModified {
				t.Errorf("%s: %v, %v", object, r.NotModified, err)
			}
		}
	}
	if n := s.count("GET secret/metadata/") + s.count("GET transform/metadata/"); n > 0 {
		t.Errorf("%d reads of metadata", n)
	}
}
