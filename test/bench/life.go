package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"time"
)

// How the volumes of a life ask: alone by an auth method that may look at the pod,
// so that each logs in and asks for itself, and shared by one that looks at the
// service account only.
const (
	alone  = "alone"
	shared = "shared"
)

var mounts = map[string]string{alone: "jwt", shared: "kubernetes"}

const (
	// storeRounds is how often lives are measured at most: they take their time.
	storeRounds = 3
	// pollInterval is that of the driver, and defaultInterval what calls are
	// extrapolated to.
	pollInterval, defaultInterval = 4 * time.Second, 2 * time.Minute
	// startRate is how many calls a second the store takes while pods start.
	startRate = 600
	// outage is how long the store is down.
	outage = 5 * time.Second
	// quiet is how long no call came when a round of refreshes is over.
	quiet = 300 * time.Millisecond
)

// measureStore measures a driver with many volumes of a simulated store.
func (b *bench) measureStore(ctx context.Context) error {
	n := min(b.settings.rounds, storeRounds)
	b.report = newReport(fmt.Sprintf("median of %d rounds; %d pods with a volume each of a simulated Vault, refreshed every %v", n, b.pods, pollInterval), alone)
	b.store = &store{latency: 5 * time.Millisecond, jitter: 5 * time.Millisecond}
	server := standIn{b.store}.serve()
	defer server.Close()
	b.address = server.URL
	b.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	return b.rounds(ctx, storePart, n, func(ctx context.Context) error {
		for _, way := range []string{alone, shared} {
			if err := b.life(ctx, way); err != nil {
				return fmt.Errorf("%s: %w", way, err)
			}
		}
		return nil
	})
}

// vaultParameters are those of a class of volumes that ask one way.
func vaultParameters(way, address, ca string) map[string]string {
	return map[string]string{
		"vaultAddress": address, "vaultCAPem": ca, "vaultAuthMountPath": mounts[way], "roleName": "app",
		"objects": "- {objectName: username, secretPath: " + secretPath + ", secretKey: username}\n- {objectName: password, secretPath: " + secretPath + ", secretKey: password}",
	}
}

func (b *bench) writeVaultClass(way, refresh string) error {
	return b.writeClass(way, refresh, "vault", vaultParameters(way, b.address, b.ca))
}

// life measures the volumes of a driver that ask one way, from their start to
// their end.
func (b *bench) life(ctx context.Context, way string) error {
	b.store.set(b.nextValue())
	if err := b.writeVaultClass(way, ""); err != nil {
		return err
	}
	if err := b.start(ctx, pollInterval); err != nil {
		return err
	}
	defer b.node.Kill()
	if err := b.memory(way + ": memory, idle"); err != nil {
		return err
	}
	volumes, err := b.newBatch(way, way, b.pods)
	if err != nil {
		return err
	}
	if err := b.startPods(ctx, way, volumes); err != nil {
		return err
	}
	if err := b.memory(fmt.Sprintf("%s: memory, %d volumes mounted", way, b.pods)); err != nil {
		return err
	}
	for _, step := range []func(string, batch) error{b.rest, b.poll, b.announce, b.fall} {
		if err := step(way, volumes); err != nil {
			return err
		}
	}
	if err := b.memory(fmt.Sprintf("%s: memory, %d volumes after all of this", way, b.pods)); err != nil {
		return err
	}
	if _, err := b.unpublish(ctx, volumes, b.parallel, b.node.NodeClient); err != nil {
		return err
	}
	return b.node.Stop()
}

// startPods publishes all volumes at once, at a store that throttles.
func (b *bench) startPods(ctx context.Context, way string, volumes batch) error {
	b.store.limit(startRate, time.Second)
	defer b.store.limit(0, 0)
	began := time.Now()
	l, err := b.publish(ctx, volumes, b.pods, b.node.NodeClient)
	if err != nil {
		return err
	}
	calls := b.store.since(began)
	name := fmt.Sprintf("%d pods start at a store that takes %d calls a second, ", b.pods, startRate)
	b.report.addOf(way, name+"p50", milliseconds, l.percentile(50))
	b.report.addOf(way, name+"p99", milliseconds, l.percentile(99))
	b.report.addOf(way, name+"calls", count, float64(len(calls)))
	b.report.addOf(way, name+"of them logins", count, float64(len(calls.of(login))))
	b.report.addOf(way, name+"of them refused", count, float64(len(calls.came(throttled))))
	return nil
}

// rest measures what is asked while nothing changes.
func (b *bench) rest(way string, _ batch) error {
	b.quiet()
	began := time.Now()
	for len(b.store.since(began)) == 0 {
		time.Sleep(quiet / 10)
	}
	b.quiet()
	calls := float64(len(b.store.since(began)))
	b.report.addOf(way, "refresh without a change, calls", count, calls)
	b.report.addOf(way, fmt.Sprintf("refresh without a change, calls at an interval of %v", defaultInterval), perHour, calls*float64(time.Hour/defaultInterval))
	return nil
}

// poll measures what comes of a change that nobody tells of, made right after a
// refresh, and what the refresh of all that finds it takes.
func (b *bench) poll(way string, volumes batch) error {
	value, began := b.nextValue(), time.Now()
	b.store.set(value)
	l, err := b.visible(volumes, value, began)
	if err != nil {
		return err
	}
	calls := b.store.since(began)
	b.report.add(way+": change that nobody tells of, to pod, p50", milliseconds, l.percentile(50))
	b.report.add(way+": change that nobody tells of, to pod, p99", milliseconds, l.percentile(99))
	b.report.addOf(way, "change that nobody tells of, first pod to last", milliseconds, l.percentile(100)-l.percentile(0))
	b.report.addOf(way, "change that nobody tells of, calls", count, float64(len(calls)))
	return nil
}

// announce measures what comes of a change that is told of by an annotation of the
// class.
func (b *bench) announce(way string, volumes batch) error {
	b.quiet()
	value, began := b.nextValue(), time.Now()
	b.store.set(value)
	if err := b.writeVaultClass(way, value); err != nil {
		return err
	}
	l, err := b.visible(volumes, value, began)
	if err != nil {
		return err
	}
	calls := b.store.since(began)
	b.report.addOf(way, "change that is announced, to pod, p50", milliseconds, l.percentile(50))
	b.report.addOf(way, "change that is announced, to pod, p99", milliseconds, l.percentile(99))
	b.report.addOf(way, "change that is announced, calls", count, float64(len(calls)))
	return nil
}

// fall measures what comes of a store that is down for a while, in each way in turn.
func (b *bench) fall(way string, volumes batch) error {
	b.quiet()
	value, began := b.nextValue(), time.Now()
	b.store.set(value)
	b.store.down(outage, hanging, cut, failed)
	time.Sleep(outage)
	back, asked := time.Now(), b.store.since(began)
	l, err := b.visible(volumes, value, back)
	if err != nil {
		return err
	}
	calls := b.store.since(back)
	name := fmt.Sprintf("outage of %v, ", outage)
	b.report.addOf(way, name+"calls in it", count, float64(len(asked)))
	b.report.addOf(way, name+"until the last pod is fresh again", milliseconds, l.percentile(100))
	b.report.addOf(way, name+"calls until then", count, float64(len(calls)))
	b.report.addOf(way, name+"most calls in a second", perSecond, float64(calls.most(time.Second)))
	return nil
}

// quiet waits until no refresh is under way.
func (b *bench) quiet() {
	for len(b.store.since(time.Now().Add(-quiet))) > 0 {
		time.Sleep(quiet / 10)
	}
}
