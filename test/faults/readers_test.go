package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
	"github.com/csi-secrets/csi-secrets/test/harness"
)

// changing is generation g of a set that differs from one to the next in its
// files, too.
func changing(g int) set {
	paths := []string{"a", "b", "nested/c"}
	if g%2 == 0 {
		paths = append(paths, "even", "folder/even")
	}
	return generation(g, paths...)
}

var generationText = regexp.MustCompile(` generation (\d+) of `)

func generationOf(text string) (int, error) {
	m := generationText.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%q is of no generation", text)
	}
	return strconv.Atoi(m[1])
}

// errPart is what a reader gets of a set that is being removed.
var errPart = errors.New("a part of a set")

// whileSwitching calls read until it succeeds: it may find a part of a set only,
// or nothing, where the set at target was replaced meanwhile. A set that ..data
// still leads to must be whole.
func whileSwitching(target string, read func() error) error {
	data := filepath.Join(target, "..data")
	for {
		before, err := os.Readlink(data)
		if err != nil {
			return err
		}
		err = read()
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errPart) {
			return err
		}
		if after, linkErr := os.Readlink(data); linkErr != nil || after == before {
			return errors.Join(err, linkErr)
		}
	}
}

// readGeneration reads the set at target by one resolution of ..data, and
// checks that it is a whole one of those that wanted makes.
func readGeneration(target string, wanted func(int) set) error {
	return whileSwitching(target, func() error {
		_, s, err := readSet(target)
		if err != nil {
			return err
		}
		g := 0
		for _, f := range s {
			if g, err = generationOf(f.text); err != nil {
				return err
			}
		}
		if whole := wanted(g); !s.equal(whole) {
			if s.partOf(whole) {
				return fmt.Errorf("%w: %v", errPart, s)
			}
			return fmt.Errorf("a torn set: %v", s)
		}
		return nil
	})
}

// readInOrder reads files one after another through the entries of the root. None may
// be missing, and a later one must not be of an earlier generation.
func readInOrder(target string, names ...string) error {
	last := 0
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(target, name))
		if err != nil {
			return err
		}
		g, err := generationOf(string(text))
		if err == nil && g < last {
			err = fmt.Errorf("%s is of generation %d, and a file that was read before it of %d", name, g, last)
		}
		last = g
		if err != nil {
			return err
		}
	}
	return nil
}

// entriesResolve checks that each entry of the root leads somewhere.
func entriesResolve(target string) error {
	list, err := os.ReadDir(target)
	if err != nil {
		return err
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		if err := whileSwitching(target, func() error { _, err := os.Stat(filepath.Join(target, e.Name())); return err }); err != nil {
			return fmt.Errorf("the entry %s dangles: %w", e.Name(), err)
		}
	}
	return nil
}

// refreshWhile refreshes a volume from generation 1 to the last, while each of
// the readers loops. Once a generation is at the source, happens is called.
func refreshWhile(t *testing.T, last int, sets func(int) set, happens func(n *node, g int), readers ...func(target string) error) {
	n := newNode(t)
	n.follow()
	n.point(sets(1))
	n.start(noInterval)
	n.must(n.publish())
	ctx, stop := context.WithCancel(n.ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	for i, read := range readers {
		group.Go(func() {
			for rounds := 0; ; rounds++ {
				if err := read(n.target()); err != nil {
					t.Errorf("reader %d: %v", i+1, err)
					return
				}
				if ctx.Err() != nil {
					t.Logf("reader %d: %d rounds", i+1, rounds+1)
					return
				}
			}
		})
	}
	for g := 2; g <= last && !t.Failed(); g++ {
		n.point(sets(g))
		happens(n, g)
		n.must(eventually(func() error { // the next may come while the old set is still there
			_, err := n.shows(sets(g))
			return err
		}))
	}
	n.awaitSet(sets(last))
	stop()
	group.Wait()
	n.must(n.stateMatches())
	n.must(n.unpublish())
}

func nothing(*node, int) {}

func TestReadersSeeOneGenerationWhileTheVolumeIsRefreshed(t *testing.T) {
	t.Parallel()
	refreshWhile(t, harness.Number(t, "CSI_SECRETS_ROTATIONS", 100), changing, nothing,
		func(target string) error { return readGeneration(target, changing) },
		func(target string) error { return readInOrder(target, "a", "nested/c", "b") })
}

// The driver is killed in the middle of every refresh, as near to the switch to the
// new set as can be. Readers see whole sets all the while, and the next driver
// brings the new one.
func TestReadersSeeOneGenerationWhileEachRefreshIsKilled(t *testing.T) {
	t.Parallel()
	kills, late := harness.Number(t, "CSI_SECRETS_KILLS", 15), 0
	wait := 60 * time.Millisecond
	refreshWhile(t, 1+kills, changing, func(n *node, g int) {
		time.Sleep(wait) // the random moment
		n.kill()
		_, s, err := readSet(n.target())
		n.must(err)
		step := rand.N(wait / 8)
		if s.equal(changing(g)) {
			wait -= step
			late++
		} else {
			wait += step
		}
		n.start(noInterval)
	},
		func(target string) error { return readGeneration(target, changing) },
		func(target string) error { return readInOrder(target, "a", "nested/c", "b") })
	t.Logf("%d kills, %d of them after the switch", kills, late)
}

func TestR10NoEntryDanglesWhileFilesAreAdded(t *testing.T) {
	t.Parallel()
	growing := func(g int) set {
		var paths []string
		for i := range g {
			paths = append(paths, fmt.Sprintf("file-%d", i), fmt.Sprintf("folder-%d/x", i))
		}
		return generation(g, paths...)
	}
	refreshWhile(t, 40, growing, nothing, entriesResolve, entriesResolve)
}

// 20 volumes are published, refreshed and unpublished, all at the same time,
// while the driver is killed 50 times.
func TestKillsAtRandomMoments(t *testing.T) {
	t.Parallel()
	const kills, pods = 50, 20
	volumes := make([]standalone.Volume, pods)
	for i := range volumes {
		volumes[i] = standalone.Volume{Pod: fmt.Sprintf("pod-%d", i), Class: "app"}
	}
	n := newNode(t, volumes...)
	n.follow()
	n.point(changing(1))
	n.start(noInterval)
	var driver atomic.Pointer[standalone.Node]
	driver.Store(n.driver)

	ctx, stop := context.WithCancel(n.ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	var lives atomic.Int64
	for _, v := range volumes {
		group.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				if err := live(n, &driver, v); err != nil {
					t.Errorf("%s: %v", v.Pod, err)
				}
				lives.Add(1)
			}
		})
	}
	group.Go(func() {
		for g := 2; ctx.Err() == nil; g++ {
			if err := n.tryPoint(changing(g)); err != nil {
				t.Errorf("change the source: %v", err)
			}
			time.Sleep(60 * time.Millisecond) // longer than the driver waits for it to be still
		}
	})
	for range kills {
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond) // the random moment
		n.kill()
		n.start(noInterval)
		driver.Store(n.driver)
	}
	stop()
	group.Wait()
	t.Logf("%d lives of volumes, %d generations", lives.Load(), n.sources)
	n.must(n.stateMatches())
}

// live publishes a volume, reads it for a while, and unpublishes it, as
// stubbornly as kubelet.
func live(n *node, driver *atomic.Pointer[standalone.Node], v standalone.Volume) error {
	target := v.Target(n.layout)
	err := insist(n, driver, func(ctx context.Context, d *standalone.Node) error { return d.Publish(ctx, v) })
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	for range 1 + rand.IntN(200) {
		if err := readGeneration(target, changing); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		time.Sleep(time.Millisecond) // a pod that reads now and then
	}
	err = insist(n, driver, func(ctx context.Context, d *standalone.Node) error { return d.Unpublish(ctx, v) })
	if err != nil {
		return fmt.Errorf("unpublish: %w", err)
	}
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("after the unpublish the target is there: %v", err)
	}
	return nil
}

// insist calls the driver that there is until one answers.
func insist(n *node, driver *atomic.Pointer[standalone.Node], call func(context.Context, *standalone.Node) error) error {
	ctx, cancel := context.WithTimeout(n.ctx, patience)
	defer cancel()
	for {
		err := call(ctx, driver.Load())
		switch status.Code(err) {
		case codes.Unavailable, codes.Canceled: // it was killed
		default:
			return err
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}
