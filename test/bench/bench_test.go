package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/internal/sandbox"
	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/fetch"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/local"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// Benchmarks mount: they, and with them all tests, run in a sandbox.
func TestMain(m *testing.M) { os.Exit(sandbox.Run(m.Run)) }

// BenchmarkFloor is what BenchmarkVolume cannot go below.
func BenchmarkFloor(b *testing.B) {
	folder := onTmpfs(b)
	inParallel(b, func(i int64) error {
		target := filepath.Join(folder, fmt.Sprint(i))
		if err := floorPublish(target, files); err != nil {
			return err
		}
		return floorUnpublish(target)
	})
}

// BenchmarkVolume publishes and unpublishes within one process, without gRPC:
// the way to see with -cpuprofile and -memprofile what the driver's own code
// takes.
func BenchmarkVolume(b *testing.B) {
	root := onTmpfs(b)
	folder, state, pods := filepath.Join(root, "source"), filepath.Join(root, "state"), filepath.Join(root, "pods")
	for _, dir := range []string{folder, pods} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	for name, contents := range files {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(contents), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	manager, err := volume.New(volume.Config{
		StateDir: state,
		Classes:  oneClass{&class.SecretProviderClass{Spec: class.Spec{Provider: "local", Parameters: map[string]string{"path": folder}}}},
		Fetcher:  fetch.New(provider.NewRegistry(map[string]provider.Provider{"local": local.New()}, nil), 0),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer manager.Close()
	inParallel(b, func(i int64) error {
		id := fmt.Sprint(i)
		request := volume.Request{
			VolumeID: id, TargetPath: filepath.Join(pods, id), Class: class.Ref{Namespace: "default", Name: localClass},
			Pod: provider.Pod{Namespace: "default", Name: id, UID: id},
		}
		if err := manager.Publish(b.Context(), request); err != nil {
			return err
		}
		return manager.Unpublish(b.Context(), id, request.TargetPath)
	})
}

// onTmpfs returns an empty folder that no disk's journal slows down.
func onTmpfs(b *testing.B) string {
	folder := b.TempDir()
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, ""); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = unix.Unmount(folder, unix.MNT_DETACH) })
	return folder
}

// inParallel calls body with numbers that never repeat: one at a time, and
// many at a time as kubelet does.
func inParallel(b *testing.B, body func(i int64) error) {
	var next atomic.Int64
	b.Run("1", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := body(next.Add(1)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("many", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(32)
		b.RunParallel(func(loop *testing.PB) {
			for loop.Next() {
				if err := body(next.Add(1)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

// oneClass is a class.Source of one class.
type oneClass struct{ class *class.SecretProviderClass }

func (c oneClass) Get(context.Context, class.Ref) (*class.SecretProviderClass, error) {
	return c.class, nil
}

func (oneClass) Watch(ctx context.Context, _ func(class.Ref)) error {
	<-ctx.Done()
	return nil
}

func TestAPercentileIsTheLeastThatSoManyDoNotExceed(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, c := range []struct {
		sorted []int
		p      float64
		want   int
	}{{hundred, 50, 50}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred, 0, 1}, {[]int{7}, 99, 7}, {[]int{1, 2, 3}, 50, 2}} {
		if got := percentile(c.sorted, c.p); got != c.want {
			t.Errorf("p%v of %d values is %d, want %d", c.p, len(c.sorted), got, c.want)
		}
	}
}

func TestTheMedianOfRoundsAndTheirRatioToTheFloorOfTheSameRound(t *testing.T) {
	r := newReport("", floor)
	for _, round := range []struct{ floor, local time.Duration }{{1, 4}, {2, 4}, {10, 30}} {
		r.addLoad(floor, "publish", 1, load{latencies: []time.Duration{round.floor * time.Millisecond}})
		r.addLoad(localClass, "publish", 1, load{latencies: []time.Duration{round.local * time.Millisecond}})
		r.endRound()
	}
	m := r.byName["local: publish, one at a time, p50"]
	if m.Median != 4 || m.Min != 4 || m.Max != 30 || !slices.Equal(m.ratios, []float64{4, 2, 3}) || m.Ratio != 3 {
		t.Errorf("got %+v", m)
	}
}

func TestLinesOfProcAreRead(t *testing.T) {
	if got, err := statTime("42 (a (b) c) S 1 1 1 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 5 0 100"); err != nil || got != 2*time.Second {
		t.Errorf("processor time is %v, %v; want 2s", got, err)
	}
	if got := statusMB("Name:\tx\nVmRSS:\t    1000 kB\nRssAnon:\t 1 kB\n", "VmRSS"); got != 1.024 {
		t.Errorf("VmRSS is %v MB, want 1.024", got)
	}
	if m, err := memoryOf(os.Getpid()); err != nil || m.resident <= 0 || m.anonymous <= 0 || m.file <= 0 {
		t.Errorf("memory of this process is %+v, %v", m, err)
	}
}

func TestNumbersHaveTheDigitsThatMeanSomething(t *testing.T) {
	for _, c := range []struct {
		value float64
		unit  string
		want  string
	}{
		{11266.4, perSecond, "11,266"}, {999, perSecond, "999"}, {1234567, perSecond, "1,234,567"},
		{0.1114, milliseconds, "0.111"}, {33.66, milliseconds, "33.7"}, {255.2, milliseconds, "255"}, {18.26, megabytes, "18.3"},
	} {
		if got := number(c.value, c.unit); got != c.want {
			t.Errorf("%v %s is written %s, want %s", c.value, c.unit, got, c.want)
		}
	}
}
