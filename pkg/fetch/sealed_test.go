package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/sealed"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const sealable = 4 * time.Hour

// granting is a provider whose store knows pods by their service account, and answers
// as a test says.
type granting struct {
	mu       sync.Mutex
	asks     int
	answers  func(ctx context.Context, req provider.Request) (provider.Result, error)
	identity func(req provider.Request) (string, bool)
}

func (g *granting) Fetch(ctx context.Context, req provider.Request) (provider.Result, error) {
	g.mu.Lock()
	g.asks++
	answers := g.answers
	g.mu.Unlock()
	return answers(ctx, req)
}

func (g *granting) Identity(_ context.Context, req provider.Request) (string, bool) {
	if g.identity != nil {
		return g.identity(req)
	}
	return req.Pod.ServiceAccount, true
}

func (g *granting) asked() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asks
}

func (g *granting) set(answers func(ctx context.Context, req provider.Request) (provider.Result, error)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answers = answers
}

const canary = "canary-77ae"

// gives is a store that answers each account alike.
func gives(_ context.Context, req provider.Request) (provider.Result, error) {
	return provider.Result{
		Files:    []provider.File{{Path: "a", Mode: 0o640, Contents: secret.FromString(canary + " for " + req.Pod.ServiceAccount)}},
		Versions: []provider.ObjectVersion{{ID: "a", Version: "1"}},
	}, nil
}

func failing(err error) func(context.Context, provider.Request) (provider.Result, error) {
	return func(context.Context, provider.Request) (provider.Result, error) { return provider.Result{}, err }
}

func hangs(ctx context.Context, _ provider.Request) (provider.Result, error) {
	<-ctx.Done()
	return provider.Result{}, ctx.Err()
}

func of(kind provider.Kind, err error) error { return &provider.Error{Kind: kind, Err: err} }

var unanswered = of(provider.Unavailable, errors.New("no route to host"))

// starts is a pod that starts, or a refresh of a volume that holds the version 1.
func starts(account string) provider.Request {
	req := request(account, "x")
	req.Urgent, req.Starting, req.Sealable = true, true, sealable
	req.Since = time.Now().Add(-2 * time.Second)
	req.Attributes = map[string]string{classAttribute: "db"}
	return req
}

func refreshes(account string) provider.Request {
	req := starts(account)
	req.Urgent, req.Starting, req.Since = false, false, time.Now()
	req.Current, req.Mounted = nothing, []provider.ObjectVersion{{ID: "a", Version: "1"}}
	return req
}

// counted counts starts with a sealed answer.
type counted struct{ atomic.Int32 }

func (*counted) Fetched(string, string, time.Duration) {}
func (*counted) Shared(string)                         {}
func (c *counted) StartedSealed(string)                { c.Add(1) }

// sealing is a fetcher with a sealed cache in a bubble of time, and what it logs.
type sealing struct {
	*granting
	*Fetcher
	t       *testing.T
	dir     string
	counted *counted
	log     *journal
}

// journal is what was logged, by several at the same time.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func withSealed(t *testing.T, body func(s *sealing)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &sealing{granting: &granting{answers: gives}, t: t, dir: t.TempDir(), counted: &counted{}, log: &journal{}}
		s.restart()
		body(s)
		time.Sleep(time.Minute)
		synctest.Wait()
		if strings.Contains(s.log.String(), canary) {
			t.Errorf("the log has a value: %s", s.log)
		}
		files, err := filepath.Glob(filepath.Join(s.dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if data, err := os.ReadFile(file); err != nil || bytes.Contains(data, []byte(canary)) {
				t.Errorf("a file of the cache has a value in it; %v", err)
			}
		}
	})
}

// restart is a driver that has just started.
func (s *sealing) restart() {
	cache, err := sealed.New(sealed.Config{Dir: s.dir, Key: secret.New(bytes.Repeat([]byte{7}, sealed.KeyBytes)), Max: 24 * time.Hour})
	if err != nil {
		s.t.Fatal(err)
	}
	s.Fetcher = New(provider.NewRegistry(map[string]provider.Provider{"store": s.granting, "twin": s.granting}, nil), 0)
	s.Sealed, s.Recorder = cache, s.counted
}

func (s *sealing) fetch(req provider.Request) (provider.Result, error) {
	return s.of("store", req)
}

func (s *sealing) of(name string, req provider.Request) (provider.Result, error) {
	ctx, cancel := context.WithTimeout(klog.NewContext(s.t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(s.log)))), 2*time.Minute)
	defer cancel()
	return s.Fetcher.Fetch(ctx, name, req)
}

// gets returns what a volume gets, or why it gets nothing.
func (s *sealing) gets(req provider.Request) string {
	r, err := s.fetch(req)
	defer r.Clear()
	switch {
	case err != nil:
		return err.Error()
	case r.NotModified:
		return "not modified"
	case !r.SealedAt.IsZero():
		return "sealed: " + string(r.Files[0].Contents.Reveal())
	}
	return string(r.Files[0].Contents.Reveal())
}

func (s *sealing) want(req provider.Request, text string) {
	s.t.Helper()
	if got := s.gets(req); !strings.Contains(got, text) || strings.Contains(got, "sealed") != strings.Contains(text, "sealed") {
		s.t.Errorf("got %q, want %q", got, text)
	}
}

func TestAPodStartsWithASealedAnswerWhileItsStoreIsAway(t *testing.T) {
	withSealed(t, func(s *sealing) {
		req := starts("web")
		req.Parameters[provider.DerivedFilesKey] = "- {path: b, from: a}"
		fresh, err := s.fetch(req)
		if err != nil || !fresh.SealedAt.IsZero() || len(fresh.Files) != 2 {
			t.Fatalf("got %+v, %v", fresh, err)
		}
		fresh.Clear()
		time.Sleep(time.Hour)
		s.restart()
		s.set(failing(unanswered))
		again := req
		again.Since, again.Pod.Name = time.Now().Add(-2*time.Second), "web-2"
		r, err := s.fetch(again)
		if err != nil || len(r.Files) != 2 || string(r.Files[1].Contents.Reveal()) != canary+" for web" || r.Files[0].Mode != 0o640 || len(r.Versions) != 1 {
			t.Fatalf("got %+v, %v", r, err)
		}
		if !r.SealedAt.Equal(req.Since) {
			t.Errorf("it is from %v after what it may be from", r.SealedAt.Sub(req.Since))
		}
		if wait := time.Until(r.RefreshAt); wait != sealedRefresh {
			t.Errorf("it is refreshed after %v", wait)
		}
		if n := s.counted.Load(); n != 1 {
			t.Errorf("%d were counted", n)
		}
		for _, told := range []string{"A pod starts with a sealed answer", `provider="store"`, `age="1h0m`, `no route to host`} {
			if !strings.Contains(s.log.String(), told) {
				t.Errorf("the log does not tell %s: %s", told, s.log)
			}
		}
		time.Sleep(sealable)
		s.want(again, "no route to host")

		// A refresh that was due long ago is no older than it can be.
		s.set(gives)
		late := starts("web")
		late.Since = time.Now().Add(-time.Hour)
		s.want(late, canary)
		time.Sleep(time.Minute)
		s.set(failing(unanswered))
		if r, err := s.fetch(starts("web")); err != nil || time.Since(r.SealedAt) != DefaultTimeout+sharedFor+time.Minute {
			t.Errorf("it is from %v ago, %v", time.Since(r.SealedAt), err)
		}
	})
}

func TestWhichErrorsASealedAnswerMakesUpFor(t *testing.T) {
	denied := of(provider.Denied, errors.New("no"))
	for name, tc := range map[string]struct {
		err  error
		want bool // it is used
		kept bool
	}{
		"no answer":                    {unanswered, true, true},
		"no answer, said by an object": {fmt.Errorf("object: %w", of(provider.Unavailable, fmt.Errorf("wrapped: %w", errors.New("reset")))), true, true},
		"no answer in time":            {context.DeadlineExceeded, true, true},
		"a store that throttles":       {of(provider.Throttled, errors.New("slow down")), true, true},
		"several such":                 {errors.Join(unanswered, of(provider.Throttled, nil)), true, true},
		"a refusal":                    {denied, false, false},
		"an object that is not there":  {of(provider.NotFound, errors.New("no such object")), false, false},
		"a refusal among others":       {errors.Join(unanswered, denied), false, false},
		"a refusal within another":     {of(provider.Unavailable, fmt.Errorf("log in: %w", denied)), false, false},
		"a mistake in the class":       {of(provider.Invalid, errors.New("wrong")), false, true},
		"a mistake within another":     {of(provider.Unavailable, fmt.Errorf("log in: %w", of(provider.Invalid, nil))), false, true},
		"a mistake among others":       {errors.Join(unanswered, of(provider.Invalid, nil)), false, true},
		"a fault":                      {of(provider.Internal, errors.New("panic")), false, true},
		"a fault after no answer":      {fmt.Errorf("%w, and %w", unanswered, errors.New("a fault")), false, true},
		"something of no kind":         {errors.New("who knows"), false, true},
		"what is too large":            {of(provider.TooLarge, errors.New("big")), false, true},
		"a caller that has given up":   {context.Canceled, false, true},
	} {
		withSealed(t, func(s *sealing) {
			s.want(starts("web"), canary)
			s.want(starts("other"), canary)
			time.Sleep(time.Minute)
			s.set(failing(tc.err))
			if r, err := s.fetch(starts("web")); (err == nil) != tc.want || err == nil && r.SealedAt.IsZero() {
				t.Errorf("%s: got %v, %v", name, r, err)
			}
			s.set(failing(unanswered))
			if _, err := s.fetch(starts("web")); (err == nil) != tc.kept {
				t.Errorf("%s: afterwards: %v", name, err)
			}
			if _, err := s.fetch(starts("other")); err != nil {
				t.Errorf("%s: another identity: %v", name, err)
			}
		})
	}
}

func TestARefusalOfARefreshRemovesTheSealedAnswer(t *testing.T) {
	for name, identity := range map[string]func(provider.Request) (string, bool){
		"of an identity that can be named": nil,
		"of one that cannot":               func(provider.Request) (string, bool) { return "", false },
	} {
		withSealed(t, func(s *sealing) {
			s.want(starts("web"), canary)
			time.Sleep(time.Minute)
			s.restart()
			s.set(failing(of(provider.Denied, errors.New("no"))))
			s.identity = identity
			s.want(refreshes("web"), "no")
			s.identity = nil
			s.set(failing(unanswered))
			if got := s.gets(starts("web")); !strings.Contains(got, "no route to host") {
				t.Errorf("%s: got %q", name, got)
			}
			if files, _ := filepath.Glob(filepath.Join(s.dir, "*")); len(files) > 0 {
				t.Errorf("%s: %q are left", name, files)
			}
		})
	}
}

func TestOnlyAPodThatStartsGetsASealedAnswer(t *testing.T) {
	for name, change := range map[string]func(s *sealing, req *provider.Request){
		"a refresh":                          func(_ *sealing, req *provider.Request) { *req = refreshes("web") },
		"a volume of which nothing is known": func(_ *sealing, req *provider.Request) { req.Starting = false },
		"a class that does not want it":      func(_ *sealing, req *provider.Request) { req.Sealable = 0 },
		"another service account":            func(_ *sealing, req *provider.Request) { req.Pod.ServiceAccount = "other" },
		"another namespace":                  func(_ *sealing, req *provider.Request) { req.Pod.Namespace = "other" },
		"another class":                      func(_ *sealing, req *provider.Request) { req.Attributes = map[string]string{classAttribute: "other"} },
		"a class that has changed":           func(_ *sealing, req *provider.Request) { req.Parameters = map[string]string{"objects": "y"} },
		"another mode":                       func(_ *sealing, req *provider.Request) { req.Mode = 0o400 },
		"a volume with leases":               func(_ *sealing, req *provider.Request) { req.State = secret.FromString("lease") },
		"an identity that cannot be named": func(s *sealing, _ *provider.Request) {
			s.identity = func(provider.Request) (string, bool) { return "", false }
		},
		"an identity that is another": func(s *sealing, _ *provider.Request) {
			s.identity = func(provider.Request) (string, bool) { return "other", true }
		},
		"an identity that changes meanwhile": func(s *sealing, _ *provider.Request) { s.identity = changing("web") },
		"a provider that panics when it tells": func(s *sealing, _ *provider.Request) {
			s.identity = func(provider.Request) (string, bool) { panic("x") }
		},
	} {
		withSealed(t, func(s *sealing) {
			s.want(starts("web"), canary)
			time.Sleep(time.Minute)
			s.set(failing(unanswered))
			req := starts("web")
			change(s, &req)
			if got := s.gets(req); !strings.Contains(got, "no route to host") {
				t.Errorf("%s: got %q", name, got)
			}
		})
	}
	withSealed(t, func(s *sealing) {
		s.want(starts("web"), canary)
		time.Sleep(time.Minute)
		s.set(failing(unanswered))
		if r, err := s.of("twin", starts("web")); err == nil {
			t.Errorf("another provider: got %v", r)
		}
		s.want(starts("web"), "sealed: "+canary+" for web")
	})
}

// recognizing is a provider that learns of its store whom an answer is for.
type recognizing struct{ *granting }

func (recognizing) Recognize(req provider.Request) []string {
	return []string{req.Pod.ServiceAccount, req.Pod.ServiceAccount + "/" + req.Pod.Name}
}

func TestADriverThatHasLearnedNothingYetRecognizesWhatIsKept(t *testing.T) {
	withSealed(t, func(s *sealing) {
		s.want(starts("web"), canary)
		s.restart()
		s.set(failing(unanswered))
		s.identity = func(provider.Request) (string, bool) { return "", false } // until the store answers
		if got := s.gets(starts("web")); !strings.Contains(got, "no route to host") {
			t.Errorf("a provider that cannot tell: got %q", got)
		}
		s.Fetcher.providers = provider.NewRegistry(map[string]provider.Provider{"store": recognizing{s.granting}}, nil)
		s.want(starts("web"), "sealed: "+canary+" for web")
		if got := s.gets(starts("other")); !strings.Contains(got, "no route to host") {
			t.Errorf("another identity: got %q", got)
		}
		leased := starts("web")
		leased.State = secret.FromString("lease")
		if got := s.gets(leased); !strings.Contains(got, "no route to host") {
			t.Errorf("a volume with leases: got %q", got)
		}
		s.set(failing(of(provider.Denied, errors.New("no"))))
		s.want(starts("web"), "no")
		s.set(failing(unanswered))
		if got := s.gets(starts("web")); !strings.Contains(got, "no route to host") {
			t.Errorf("after a refusal: got %q", got)
		}
	})
}

// changing returns an identity that is another when it is asked for again.
func changing(first string) func(provider.Request) (string, bool) {
	times := 0
	return func(provider.Request) (string, bool) {
		if times++; times > 2 {
			return "another", true
		}
		return first, true
	}
}

func TestWhatIsAVolumesOwnIsNotSealed(t *testing.T) {
	for name, first := range map[string]func(s *sealing) provider.Request{
		"with leases": func(*sealing) provider.Request {
			req := starts("web")
			req.State = secret.FromString("lease")
			return req
		},
		"that makes a lease": func(s *sealing) provider.Request {
			s.set(func(ctx context.Context, req provider.Request) (provider.Result, error) {
				if err := req.Keep(secret.FromString("lease")); err != nil {
					return provider.Result{}, err
				}
				return gives(ctx, req)
			})
			req := starts("web")
			req.Keep = func(secret.Value) error { return nil }
			return req
		},
		"of no identity": func(s *sealing) provider.Request {
			s.identity = func(provider.Request) (string, bool) { return "", false }
			return starts("web")
		},
		"of an identity that changes": func(s *sealing) provider.Request {
			s.identity = changing("web")
			return starts("web")
		},
		"that no volume can hold": func(s *sealing) provider.Request {
			s.set(func(context.Context, provider.Request) (provider.Result, error) {
				return provider.Result{Files: []provider.File{{Path: "../a"}}}, nil
			})
			return starts("web")
		},
		"of a class that does not want it": func(*sealing) provider.Request {
			req := starts("web")
			req.Sealable = 0
			return req
		},
	} {
		withSealed(t, func(s *sealing) {
			r, _ := s.fetch(first(s))
			r.Clear()
			if s.Sealed.Len() > 0 {
				t.Errorf("an answer %s is sealed", name)
			}
		})
	}
}

// Vault says so after each fetch.
func TestAnAnswerOfWhichNothingIsKeptIsSealed(t *testing.T) {
	withSealed(t, func(s *sealing) {
		s.set(func(ctx context.Context, req provider.Request) (provider.Result, error) {
			if err := req.Keep(secret.Value{}); err != nil {
				return provider.Result{}, err
			}
			return gives(ctx, req)
		})
		req := starts("web")
		req.Keep = func(secret.Value) error { return nil }
		s.want(req, canary)
		if s.Sealed.Len() != 1 {
			t.Errorf("%d answers are sealed", s.Sealed.Len())
		}
	})
}

func TestAPodDoesNotWaitLongForAStoreThatHangs(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(s *sealing)
		want  string
		after time.Duration
		asks  int
	}{
		"with a sealed answer":    {func(*sealing) {}, "sealed: " + canary, sealedPatience, 1},
		"without one":             {func(s *sealing) { time.Sleep(sealable) }, "deadline exceeded", DefaultTimeout, 1},
		"with one that is broken": {breakFiles, "deadline exceeded", DefaultTimeout, 2},
	} {
		withSealed(t, func(s *sealing) {
			s.want(starts("web"), canary)
			time.Sleep(time.Minute)
			tc.spoil(s)
			s.set(hangs)
			began, asked := time.Now(), s.asked()
			got := s.gets(starts("web"))
			if tc.asks != s.asked()-asked {
				t.Errorf("%s: the store was asked %d times", name, s.asked()-asked)
			}
			if took := time.Since(began); !strings.Contains(got, tc.want) || took != tc.after {
				t.Errorf("%s: got %q after %v, want %q after %v", name, got, took, tc.want, tc.after)
			}
		})
	}
}

// governed is a provider whose store is somewhere else.
type governed struct{ *granting }

func (governed) Store(map[string]string) (string, bool) { return "there", true }

// Of a store that is known not to answer only one pod at a time finds out whether it
// does again.
func TestPodsDoNotWaitForAStoreThatIsKnownNotToAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(s *sealing)
		want  string
		after time.Duration // at least, of all but a few
	}{
		"with a sealed answer":    {func(*sealing) {}, "sealed: " + canary, 0},
		"with one that is broken": {breakFiles, "answer", patience},
	} {
		withSealed(t, func(s *sealing) {
			s.Fetcher.providers = provider.NewRegistry(map[string]provider.Provider{"store": governed{s.granting}}, nil)
			const pods = 40
			account := func(i int) string { return fmt.Sprintf("web-%d", i) }
			for i := range pods {
				s.want(starts(account(i)), canary)
			}
			time.Sleep(time.Minute)
			tc.spoil(s)
			s.set(func(ctx context.Context, _ provider.Request) (provider.Result, error) {
				<-ctx.Done()
				return provider.Result{}, of(provider.Unavailable, ctx.Err())
			})
			var running sync.WaitGroup
			for i := range maxFailures {
				running.Go(func() { s.gets(starts(account(i))) })
			}
			running.Wait()
			synctest.Wait() // the circuit is open
			asked, slow := s.asked(), atomic.Int32{}
			for i := range pods {
				running.Go(func() {
					began := time.Now()
					if got := s.gets(starts(account(i))); !strings.Contains(got, tc.want) {
						t.Errorf("%s: got %q, want %q", name, got, tc.want)
					}
					if time.Since(began) > tc.after {
						slow.Add(1)
					}
				})
			}
			running.Wait()
			if n := slow.Load(); n > 1 {
				t.Errorf("%s: %d of %d pods waited for more than %v", name, n, pods, tc.after)
			}
			if n := s.asked() - asked; n > 3 {
				t.Errorf("%s: the store was asked %d times", name, n)
			}
		})
	}
}

// A store that answers again is found by those that start.
func TestAPodThatStartsFindsThatItsStoreAnswersAgain(t *testing.T) {
	withSealed(t, func(s *sealing) {
		s.Fetcher.providers = provider.NewRegistry(map[string]provider.Provider{"store": governed{s.granting}}, nil)
		s.want(starts("web"), canary)
		time.Sleep(time.Minute)
		s.set(failing(unanswered))
		for range maxFailures {
			s.want(starts("web"), "sealed: "+canary)
		}
		s.set(gives)
		time.Sleep(lastProbe)
		s.want(starts("web"), canary)
		s.want(starts("web"), canary)
	})
}

// breakFiles changes the last byte of each file of the cache.
func breakFiles(s *sealing) {
	files, err := filepath.Glob(filepath.Join(s.dir, "*"))
	if err != nil || len(files) == 0 {
		s.t.Fatal(files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			s.t.Fatal(err)
		}
		data[len(data)-1] ^= 1
		if err := os.WriteFile(file, data, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

func TestARefusalCountsForThoseWhoWait(t *testing.T) {
	withSealed(t, func(s *sealing) {
		s.want(starts("web"), canary)
		time.Sleep(time.Minute)
		s.set(hangs)
		var all sync.WaitGroup
		all.Go(func() { s.want(starts("web"), "deadline exceeded") })
		time.Sleep(5 * time.Second)
		s.set(failing(of(provider.Denied, errors.New("not any more"))))
		s.want(refreshes("web"), "not any more")
		s.set(hangs)
		all.Wait()
	})
}

// byVersions is a store that tells whether something has changed to whoever asks,
// and its values as values says.
func byVersions(values func(context.Context, provider.Request) (provider.Result, error)) func(context.Context, provider.Request) (provider.Result, error) {
	return func(ctx context.Context, req provider.Request) (provider.Result, error) {
		if req.Current != nil {
			return provider.Result{NotModified: true}, nil
		}
		return values(ctx, req)
	}
}

func TestARefreshBringsTheWholeAnswerNowAndThen(t *testing.T) {
	withSealed(t, func(s *sealing) {
		s.set(byVersions(gives))
		s.want(refreshes("web"), canary) // nothing is kept yet
		whole := 0
		for range 2 * 24 * 30 { // two days
			time.Sleep(2 * time.Minute)
			if s.gets(refreshes("web")) != "not modified" {
				whole++
			}
		}
		if whole < 40 || whole > 48 {
			t.Errorf("it was asked in full %d times in two days, want once an hour", whole)
		}
		off := refreshes("other")
		off.Sealable = 0
		s.want(off, "not modified")
		s.identity = func(provider.Request) (string, bool) { return "", false }
		s.want(refreshes("nobody"), "not modified")
		s.identity = nil
		time.Sleep(2 * time.Minute)
		s.want(refreshes("web"), "not modified")
		s.set(failing(unanswered))
		time.Sleep(2 * time.Hour)
		s.want(starts("web"), "sealed: "+canary)
	})
}

func TestWhatARefreshBringsIsKeptWithTheTimeOfTheLastWholeAnswer(t *testing.T) {
	withSealed(t, func(s *sealing) {
		first := starts("web")
		s.want(first, canary)
		time.Sleep(30 * time.Minute)
		s.set(func(ctx context.Context, req provider.Request) (provider.Result, error) {
			r, err := gives(ctx, req)
			r.Files[0].Contents = secret.FromString("new " + canary)
			return r, err
		})
		s.want(refreshes("web"), "new "+canary)
		s.want(refreshes("other"), "new "+canary)
		time.Sleep(time.Minute)
		s.set(failing(unanswered))
		r, err := s.fetch(starts("web"))
		if err != nil || !r.SealedAt.Equal(first.Since) || string(r.Files[0].Contents.Reveal()) != "new "+canary {
			t.Errorf("got %+v, %v", r, err)
		}
		time.Sleep(sealable - 31*time.Minute)
		s.want(starts("web"), "no route to host")
	})
}

func TestWhoMaySeeVersionsAndNoValuesLosesTheSealedAnswer(t *testing.T) {
	withSealed(t, func(s *sealing) {
		s.want(starts("web"), canary)
		s.set(byVersions(failing(of(provider.Denied, errors.New("values are not for you")))))
		refused := false
		for range 4 * 30 {
			time.Sleep(2 * time.Minute)
			refused = refused || strings.Contains(s.gets(refreshes("web")), "not for you")
		}
		s.set(failing(unanswered))
		if _, err := s.fetch(starts("web")); err == nil || !refused {
			t.Errorf("after four hours: %v", err)
		}
	})
}

func TestAFolderThatCannotBeWrittenHoldsNobodyUp(t *testing.T) {
	withSealed(t, func(s *sealing) {
		if err := os.RemoveAll(s.dir); err != nil {
			t.Fatal(err)
		}
		s.want(starts("web"), canary)
		if !strings.Contains(s.log.String(), "An answer is not kept sealed") {
			t.Errorf("the log does not tell: %s", s.log)
		}
	})
}

// No sealed answer reaches another identity or class than the one that it is of, nor
// one that was refused since, nor comes too late.
func FuzzNoSealedAnswerReachesAnotherIdentity(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, seed, more uint64) {
		withSealed(t, func(s *sealing) {
			random := rand.New(rand.NewPCG(seed, more))
			refusedAt := map[string]time.Time{}
			served := 0
			for range 300 {
				account, class := fmt.Sprint("account", random.IntN(3)), fmt.Sprint("class", random.IntN(2))
				who := account + " " + class
				req := starts(account)
				if random.IntN(2) == 0 {
					req = refreshes(account)
				}
				req.Parameters = map[string]string{"objects": class}
				req.Attributes = map[string]string{classAttribute: class}
				switch random.IntN(6) {
				case 0:
					s.set(failing(of(provider.Denied, errors.New("no"))))
				case 1, 2:
					unmodified := random.IntN(2) == 0
					s.set(func(_ context.Context, req provider.Request) (provider.Result, error) {
						if req.Current != nil && unmodified {
							return provider.Result{NotModified: true}, nil
						}
						text := fmt.Sprint(who, " ", time.Now().UnixNano())
						return provider.Result{Files: []provider.File{{Path: "a", Mode: 0o600, Contents: secret.FromString(text)}}, Versions: []provider.ObjectVersion{{ID: "a", Version: "1"}}}, nil
					})
				case 3:
					s.set(hangs)
				default:
					s.set(failing(unanswered))
				}
				if random.IntN(20) == 0 {
					s.restart()
				}
				r, err := s.fetch(req)
				if provider.KindOf(err) == provider.Denied {
					refusedAt[who] = time.Now()
				}
				if !r.SealedAt.IsZero() {
					served++
					var forAccount, forClass string
					var at int64
					if _, err := fmt.Sscan(string(r.Files[0].Contents.Reveal()), &forAccount, &forClass, &at); err != nil {
						t.Error(err)
					}
					if forAccount+" "+forClass != who || at < refusedAt[who].UnixNano() && !refusedAt[who].IsZero() || !req.Starting || time.Since(r.SealedAt) >= sealable {
						t.Errorf("%s, refused at %v, got what %s %s got at %d, as of %v", who, refusedAt[who], forAccount, forClass, at, r.SealedAt)
					}
				}
				r.Clear()
				time.Sleep(time.Duration(random.IntN(3600)) * time.Second)
			}
			if served == 0 {
				t.Skip("nothing was sealed in time")
			}
		})
	})
}
