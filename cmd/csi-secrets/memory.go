package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// giveBack returns to the system what the heap does not use, and takes the
// program's own code and constants out of this process's resident memory: a good
// part of them serves the start of libraries only. What is needed comes back by
// minor page faults, within about a millisecond in all.
func giveBack() error {
	debug.FreeOSMemory()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	process, err := procfs.Self()
	if err != nil {
		return err
	}
	mappings, err := process.ProcMaps()
	if err != nil {
		return err
	}
	for _, m := range mappings {
		if m.Pathname != self || m.Perms.Write {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.StartAddr, m.EndAddr-m.StartAddr, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise: %w", errno)
		}
	}
	return nil
}

// giveBackPeriod is how often the memory of what was done is given back.
const giveBackPeriod = 10 * time.Second

// activity is a volume.Observer that knows whether anything was done. Between
// two storms the Go runtime would keep the memory of the first for minutes.
type activity struct{ done atomic.Bool }

var _ volume.Observer = (*activity)(nil)

// Published implements volume.Observer.
func (a *activity) Published(volume.Info) { a.done.Store(true) }

// Refreshed implements volume.Observer.
func (a *activity) Refreshed(volume.Info, bool) { a.done.Store(true) }

// Unpublished implements volume.Observer.
func (a *activity) Unpublished(volume.Info) { a.done.Store(true) }

// giveBack returns unused memory to the system, now and after activity, until
// ctx ends.
func (a *activity) giveBack(ctx context.Context) {
	ticker := time.NewTicker(giveBackPeriod)
	defer ticker.Stop()
	give := func() {
		if err := giveBack(); err != nil {
			klog.FromContext(ctx).V(2).Info("Unused memory stays resident", "reason", err.Error())
		}
	}
	give()
	for a.done.Store(true); ; { // the rest of the start
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if a.done.Swap(false) {
				give()
			}
		}
	}
}
