package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// load is what a number of calls took.
type load struct {
	latencies []time.Duration // sorted
	elapsed   time.Duration
}

// measure makes the calls 0 to n-1, parallel of them at a time, and times each.
// It ends at the first that fails.
func measure(ctx context.Context, parallel, n int, call func(ctx context.Context, i int) error) (load, error) {
	l := load{latencies: make([]time.Duration, n)}
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	var ready sync.WaitGroup
	ready.Add(1)
	for range min(parallel, n) {
		group.Go(func() error {
			ready.Wait()
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				began := time.Now()
				if err := call(ctx, i); err != nil {
					return fmt.Errorf("call %d of %d: %w", i+1, n, err)
				}
				l.latencies[i] = time.Since(began)
			}
		})
	}
	began := time.Now()
	ready.Done()
	err := group.Wait()
	l.elapsed = time.Since(began)
	slices.Sort(l.latencies)
	return l, err
}

// rate is in calls a second.
func (l load) rate() float64 { return float64(len(l.latencies)) / l.elapsed.Seconds() }

// percentile is in milliseconds; p is from 0 to 100.
func (l load) percentile(p float64) float64 {
	return percentile(l.latencies, p).Seconds() * 1e3
}

// percentile returns the least element that p percent of them do not exceed.
// sorted must not be empty.
func percentile[T any](sorted []T, p float64) T {
	at := int(p/100*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(at, 0), len(sorted)-1)]
}
