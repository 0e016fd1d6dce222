package main

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// store is a secret store of one secret, as its callers see it: it takes its time,
// answers so many calls a second, and is down at times. It notes every call. It is
// safe for concurrent use.
type store struct {
	latency, jitter time.Duration // of each call

	mu         sync.Mutex
	bucket     *rate.Limiter // nil where no call is one too many
	retryAfter time.Duration // what a call that is one too many is told; 0 for nothing
	outage     []spell
	secret     version
	calls      calls
}

// version is the secret at some time.
type version struct {
	value   string
	number  int
	created time.Time
}

// spell is a time in which every call comes to the same.
type spell struct {
	from, until time.Time
	outcome     outcome
}

// outcome is what comes of a call.
type outcome int

const (
	answered  outcome = iota
	throttled         // it was one too many
	failed            // the store says that it cannot
	cut               // the connection ends
	hanging           // so it does, when the spell is over
)

// call is one call, when it arrived.
type call struct {
	at      time.Time
	kind    string
	outcome outcome
}

type calls []call

// The kinds of calls.
const (
	login = "login"
	read  = "read"
	other = "other"
)

// answer is what a caller gets.
type answer struct {
	outcome    outcome
	secret     version
	retryAfter time.Duration // for one that was throttled
}

// ask takes as long as the store does, or until ctx ends.
func (s *store) ask(ctx context.Context, kind string) answer {
	wait := s.latency + rand.N(s.jitter+1)
	s.mu.Lock()
	now := time.Now()
	a := answer{retryAfter: s.retryAfter}
	for _, spell := range s.outage {
		if !now.Before(spell.from) && now.Before(spell.until) {
			if a.outcome = spell.outcome; a.outcome == hanging {
				wait = spell.until.Sub(now)
			}
		}
	}
	if a.outcome == answered && s.bucket != nil && !s.bucket.Allow() {
		a.outcome = throttled
	}
	s.calls = append(s.calls, call{now, kind, a.outcome})
	s.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a.secret = s.secret
	return a
}

// limit has the store take so many calls a second, and as many at once after a
// second without; no limit where perSecond is 0.
func (s *store) limit(perSecond int, retryAfter time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bucket, s.retryAfter = nil, retryAfter; perSecond > 0 {
		s.bucket = rate.NewLimiter(rate.Limit(perSecond), perSecond)
	}
}

// set gives the secret a value.
func (s *store) set(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret = version{value, s.secret.number + 1, time.Now()}
}

// down has the store be down from now on: the time is parted among the outcomes.
func (s *store) down(lasts time.Duration, outcomes ...outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outage = nil
	from, each := time.Now(), lasts/time.Duration(len(outcomes))
	for _, came := range outcomes {
		s.outage = append(s.outage, spell{from, from.Add(each), came})
		from = from.Add(each)
	}
}

// since returns the calls that arrived at a time or later.
func (s *store) since(at time.Time) calls {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, _ := slices.BinarySearchFunc(s.calls, at, func(c call, at time.Time) int { return c.at.Compare(at) })
	return slices.Clone(s.calls[first:])
}

// came returns the calls that came to that.
func (c calls) came(to outcome) calls {
	return slices.DeleteFunc(slices.Clone(c), func(each call) bool { return each.outcome != to })
}

// of returns the calls of a kind.
func (c calls) of(kind string) calls {
	return slices.DeleteFunc(slices.Clone(c), func(each call) bool { return each.kind != kind })
}

// most returns how many calls arrived within some stretch of time of this length
// at most.
func (c calls) most(within time.Duration) (n int) {
	first := 0
	for i, each := range c {
		for each.at.Sub(c[first].at) >= within {
			first++
		}
		n = max(n, i+1-first)
	}
	return n
}
