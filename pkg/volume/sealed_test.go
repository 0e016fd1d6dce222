package volume

import (
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func TestAVolumeTellsThatItBeganWithASealedAnswer(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	f.parameters = map[string]string{provider.SealedCacheKey: "4h"}
	f.sealedAt = time.Now().Add(-time.Hour)
	if err := f.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if first := f.requests[0]; !first.Starting || first.Sealable != 4*time.Hour {
		t.Errorf("a publish asks with %v, %v", first.Starting, first.Sealable)
	}
	for range 2 {
		if v, _ := f.Manager.Get(r.TargetPath); !v.SealedAt.Equal(f.sealedAt) || !v.Refreshed.Equal(f.sealedAt) {
			t.Errorf("it is sealed at %v and current at %v, want %v", v.SealedAt, v.Refreshed, f.sealedAt)
		}
		f.restart(t)
	}
	f.sealedAt = time.Time{}
	for _, f.unmodified = range []bool{true, false} {
		if _, err := f.Refresh(t.Context(), r.TargetPath, time.Now(), nil); err != nil {
			t.Fatal(err)
		}
		if v, _ := f.Manager.Get(r.TargetPath); !v.SealedAt.IsZero() || time.Since(v.Refreshed) > time.Minute {
			t.Errorf("after a refresh it is sealed at %v and current at %v", v.SealedAt, v.Refreshed)
		}
		if last := f.requests[len(f.requests)-1]; last.Starting || last.Sealable != 4*time.Hour {
			t.Errorf("a refresh asks with %v, %v", last.Starting, last.Sealable)
		}
	}
}

func TestASealedAnswerIsNotForAMountOfWhichNothingIsKnown(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	tr, err := newTree(tmpfsOptions{size: class.DefaultVolumeSize})
	if err != nil {
		t.Fatal(err)
	}
	target, err := makeTarget(r.TargetPath)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := tr.attach(target, true); err != nil {
		t.Fatal(err)
	}
	if err := f.Publish(t.Context(), r); err != nil || f.requests[0].Starting {
		t.Errorf("it would get one, %v", err)
	}
}

func TestAClassWithAWrongSealedCacheIsNotMounted(t *testing.T) {
	f := newFixture(t)
	r := f.request("web")
	f.parameters = map[string]string{provider.SealedCacheKey: "for ever"}
	if err := f.Publish(t.Context(), r); provider.KindOf(err) != provider.Invalid {
		t.Errorf("got %v", err)
	}
	f.assertNothing(t, r)
}
