package faults

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

// operation is something during which the driver is killed.
type operation struct {
	// fromBirth counts the steps of the driver's own start too.
	fromBirth bool
	flags     []string
	// before runs without a driver, setUp with one whose steps do not count yet.
	before, setUp func(*node)
	// act begins the operation. It fails or not, depending on the kill.
	act func(*node) error
	// done tells whether the operation has ended, where act does not wait for it.
	done func(*node) error
	// shows are the sets of which a reader may see one, at any time.
	shows []set
	// comesOrGoes allows that nothing is mounted.
	comesOrGoes bool
	// withdraws allows that readers get nothing any more.
	withdraws bool
	// noRecord: the driver does not know of the volume until it is published.
	noRecord bool
	// retry is what kubelet does next, and what has to come of it.
	retry func(*node)
}

// served is a node whose pod's class serves the old set. It is served before
// the driver starts, which else would refresh the volume for it.
func served(n *node) { n.serve(oldSet) }

// published is a volume of such a class.
func published(n *node) {
	n.t.Helper()
	n.must(n.publish())
	n.must(n.holds(oldSet))
}

// publishedBefore is a volume that holds the old set, of a driver that is dead.
func publishedBefore(n *node) {
	n.t.Helper()
	served(n)
	n.start(noInterval)
	published(n)
	n.kill()
}

// refreshed tells whether the new set is there, and recorded.
func refreshed(n *node) error {
	if upToRefresh(n.steps()) == nil {
		return errors.New("the refresh has not ended")
	}
	return n.holds(newSet)
}

// upToRefresh returns the steps up to the end of the refresh that switched to
// another set, or of the first one where none did; nil where none has ended.
func upToRefresh(steps []string) []string {
	begin := max(0, slices.Index(steps, stepSwitch))
	records := 0
	for i, step := range steps[begin:] {
		if step == stepRecord {
			records++
		}
		if records == 2 { // the new record is written, and the old one blanked
			return steps[:begin+i+1]
		}
	}
	return nil
}

const (
	stepSwitch = "rename volume:/..data_tmp to volume:/..data"
	stepRecord = "write state/volumes.jsonl"
)

// publishedAgain is kubelet's retry of a publish, and the end of the pod.
func publishedAgain(s set) func(*node) {
	return func(n *node) {
		n.t.Helper()
		n.serve(s)
		n.must(n.publish())
		n.awaitSet(s)
		n.must(n.stateMatches())
		n.must(n.unpublish())
	}
}

func unpublishedAgain(n *node) {
	n.t.Helper()
	n.must(n.unpublish())
}

var (
	opPublish = operation{
		flags: []string{noInterval}, before: served,
		act:   (*node).publish,
		shows: []set{oldSet}, comesOrGoes: true, retry: publishedAgain(oldSet),
	}
	opRefresh = operation{
		flags: []string{noInterval}, before: served, setUp: published,
		act:  func(n *node) error { n.serve(newSet); return nil },
		done: refreshed, shows: []set{oldSet, newSet}, retry: publishedAgain(newSet),
	}
	opUnpublish = operation{
		flags: []string{noInterval}, before: served, setUp: published,
		act:   (*node).unpublish,
		shows: []set{oldSet}, comesOrGoes: true, withdraws: true, retry: unpublishedAgain,
	}
	opRepublish = operation{
		flags: []string{noInterval}, before: served, setUp: published,
		act:   (*node).publish,
		shows: []set{oldSet}, retry: publishedAgain(oldSet),
	}
	// The state folder was lost, and the class has changed: the publish of a
	// mounted volume fills it in place.
	opTakeOver = operation{
		flags: []string{noInterval},
		before: func(n *node) {
			publishedBefore(n)
			n.must(os.RemoveAll(n.layout.State()))
			n.serve(newSet)
		},
		act:   (*node).publish,
		shows: []set{oldSet, newSet}, noRecord: true, retry: publishedAgain(newSet),
	}
	// The class has changed while there was no driver.
	opRestart = operation{
		fromBirth: true, flags: []string{"--rotation-poll-interval=100ms"},
		before: func(n *node) { publishedBefore(n); n.serve(newSet) },
		act:    func(*node) error { return nil },
		done:   refreshed, shows: []set{oldSet, newSet}, retry: publishedAgain(newSet),
	}
)

func TestAKillAtAnyStepOfAPublish(t *testing.T)    { killAtEveryStep(t, opPublish) }
func TestAKillAtAnyStepOfARefresh(t *testing.T)    { killAtEveryStep(t, opRefresh) }
func TestAKillAtAnyStepOfAnUnpublish(t *testing.T) { killAtEveryStep(t, opUnpublish) }
func TestAKillAtAnyStepOfATakeOver(t *testing.T)   { killAtEveryStep(t, opTakeOver) }

// A repeated publish changes nothing, so that there is nothing to tear.
func TestARepeatedPublishTakesNoStep(t *testing.T) {
	t.Parallel()
	if steps := rehearse(t, opRepublish); len(steps) > 0 {
		t.Errorf("the steps of a repeated publish: %q", steps)
	}
}

func TestAKillAtAnyStepOfARestartAndItsFirstRefresh(t *testing.T) { killAtEveryStep(t, opRestart) }

// The driver is killed again while it tidies up after a kill.
func TestAKillAtAnyStepOfARestartAfterAKill(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]moment{
		"before the switch to the new set": {stepSwitch, 1},
		"behind the switch to the new set": {"symlink volume:/added", 1},
	} {
		t.Run(name, func(t *testing.T) {
			op := opRestart
			op.before = func(n *node) {
				served(n)
				n.startTraced(first, false, noInterval)
				published(n)
				n.arm()
				n.serve(newSet)
				n.awaitKill()
			}
			killAtEveryStep(t, op)
		})
	}
}

// killAtEveryStep rehearses the operation to learn its steps, and then kills the
// driver at each of them, on a node of its own.
func killAtEveryStep(t *testing.T, op operation) {
	t.Parallel()
	steps := rehearse(t, op)
	if len(steps) == 0 {
		t.Fatal("the operation has no steps: the tracer sees nothing")
	}
	t.Logf("%d steps:\n%s", len(steps), strings.Join(steps, "\n"))
	seen := map[string]int{}
	for _, step := range steps {
		seen[step]++
		at := moment{step, seen[step]}
		t.Run(strings.ReplaceAll(at.String(), "/", "|"), func(t *testing.T) {
			t.Parallel()
			const attempts = 3
			for range attempts {
				if killAt(t, op, at) {
					return
				}
			}
			t.Errorf("the operation ended %d times without this step", attempts)
		})
	}
}

// rehearse lets the operation end, then kills the driver, and returns the steps
// that the operation took.
func rehearse(t *testing.T, op operation) []string {
	t.Helper()
	n := newNode(t)
	n.begin(op, moment{})
	n.must(op.act(n))
	if op.done != nil {
		n.must(eventually(func() error { return op.done(n) }))
	}
	steps := n.steps()
	if op.done != nil {
		steps = upToRefresh(steps)
	}
	n.kill()
	n.end(op)
	return steps
}

// killAt kills the driver at that moment of the operation, or after its end
// where the moment does not come, which it reports.
func killAt(t *testing.T, op operation, at moment) (killed bool) {
	t.Helper()
	n := newNode(t)
	n.begin(op, at)
	switch err := op.act(n); {
	case op.done != nil:
		n.must(eventually(func() error {
			if n.killed() {
				return nil
			}
			return op.done(n)
		}))
	case err != nil:
		n.awaitKill()
	}
	n.kill()
	killed = n.killed()
	n.end(op)
	return killed
}

// begin brings the node to where the operation begins, with the steps counted.
func (n *node) begin(op operation, kill moment) {
	n.t.Helper()
	if op.before != nil {
		op.before(n)
	}
	n.startTraced(kill, op.fromBirth, op.flags...)
	if op.fromBirth {
		return
	}
	if op.setUp != nil {
		op.setUp(n)
	}
	n.arm()
}

// end checks what the dead driver left, before the next one starts and then.
func (n *node) end(op operation) {
	n.t.Helper()
	before := n.shown(op, "after the kill")
	n.noValues()
	if before != nil {
		n.serve(before) // so that the next driver has nothing to refresh
	}
	n.start(noInterval)
	after := n.shown(op, "after the restart")
	switch {
	case before != nil && !after.equal(before):
		n.t.Errorf("the restart has changed the set")
	case after != nil && !op.noRecord:
		if err := n.look().tidy(after); err != nil {
			n.t.Errorf("after the restart: %v", err)
		}
	case after == nil && !op.withdraws:
		if _, err := os.Lstat(n.target()); err == nil {
			n.t.Errorf("after the restart the target is left, and holds nothing")
		}
	}
	if !op.noRecord {
		n.must(n.stateMatches())
	}
	n.noValues()
	op.retry(n)
	n.kill()
}

// shown returns the set that readers see, nil where nothing is mounted or was
// withdrawn, and fails where the operation does not allow what they see.
func (n *node) shown(op operation, when string) set {
	n.t.Helper()
	v := n.look()
	switch {
	case v.mounts == 0 && op.comesOrGoes && v.withdrawn(), v.mounts == 1 && op.withdraws && v.withdrawn():
		return nil
	case v.mounts != 1:
		n.t.Fatalf("%s there are %d mounts: %s", when, v.mounts, v)
	}
	s, err := v.whole(op.shows...)
	if err != nil {
		n.t.Fatalf("%s: %v", when, err)
	}
	return s
}
