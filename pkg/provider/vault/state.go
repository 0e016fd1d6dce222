package vault

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"math"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// state is what a volume keeps of its leases, so that a driver that was killed
// neither loses nor leaks one (provider.Request.State).
type state struct {
	Tokens  []*token  `json:"tokens,omitempty"`
	Answers []*issued `json:"answers,omitempty"`
	// Delivered are the versions of the answers in the set of files that was
	// returned last, and DeliveredAt when another set than before was.
	Delivered   []string  `json:"delivered,omitempty"`
	DeliveredAt time.Time `json:"deliveredAt,omitzero"`
}

// token is a store token of the volume's own, on which leases hang. It is logged
// in for before they are made, and revoked with the last of them.
type token struct {
	ID        string        `json:"id"`
	Conn      connection    `json:"conn"`
	Login     string        `json:"login"` // the way it was logged in for: see params.loginKey
	Token     string        `json:"token"`
	Renewable bool          `json:"renewable,omitempty"`
	TTL       time.Duration `json:"ttl"`
	span
}

// issued is an answer that must not be asked for again at each refresh: it has a
// lease, or was made for this volume and ends some time.
type issued struct {
	Key     string          `json:"key"` // of the request, see params.issueKey
	Version string          `json:"version"`
	Token   string          `json:"token,omitempty"` // ID of that on which it hangs
	LeaseID string          `json:"leaseID,omitempty"`
	Lease   time.Duration   `json:"lease,omitempty"` // that was given at first
	Renews  bool            `json:"renews,omitempty"`
	Body    json.RawMessage `json:"body"`
	// Superseded is when the volume was known to hold another in its place; zero
	// while it may be in use.
	Superseded time.Time `json:"superseded,omitzero"`
	span
}

// span is the time for which something is valid, and when to do something about it.
type span struct {
	Since time.Time `json:"since"` // or since when it was renewed last
	Ends  time.Time `json:"ends"`
	// Due is when to renew it, or else to replace it: before two thirds of its life.
	Due time.Time `json:"due"`
}

// lasting returns the span of something that is valid for ttl from now on. It is
// due at 0.6 to two thirds of that, so that volumes do not go in step, and not within
// the next second. What is over already, as where clocks differ, is due in a while:
// the next would be over, too.
func lasting(now time.Time, ttl time.Duration) span {
	part := 0.6 + mathrand.Float64()*(2.0/3-0.6)
	wait := max(time.Duration(math.Round(float64(ttl)*part)), time.Second)
	if ttl <= 0 {
		wait = retryOver
	}
	return span{now, now.Add(ttl), now.Add(wait)}
}

func (s span) due(now time.Time) bool  { return !now.Before(s.Due) }
func (s span) over(now time.Time) bool { return !now.Before(s.Ends) }

func loadState(from secret.Value) (*state, error) {
	var s state
	if from.IsEmpty() {
		return &s, nil
	}
	if json.Unmarshal(from.Reveal(), &s) != nil {
		return nil, &provider.Error{Kind: provider.Internal, Op: "read what is kept of the volume's leases", Err: errors.New("it is broken")}
	}
	s.Tokens = slices.DeleteFunc(s.Tokens, func(t *token) bool { return t == nil })
	s.Answers = slices.DeleteFunc(s.Answers, func(a *issued) bool { return a == nil })
	return &s, nil
}

// save keeps the state, or nothing where there is nothing in it.
func (s *state) save(keep func(secret.Value) error) error {
	if len(s.Tokens) == 0 && len(s.Answers) == 0 {
		return keep(secret.Value{})
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return keep(secret.New(text))
}

// token returns that of an ID, nil where it is gone.
func (s *state) token(id string) *token {
	for _, t := range s.Tokens {
		if t.ID == id {
			return t
		}
	}
	return nil
}

// usable returns the newest token for a login that can still carry a lease.
func (s *state) usable(login string, now time.Time) *token {
	for _, t := range slices.Backward(s.Tokens) {
		if t.Login == login && !t.over(now) {
			return t
		}
	}
	return nil
}

// latest returns the newest answer to a request, nil where there is none.
func (s *state) latest(key string) *issued {
	for _, a := range slices.Backward(s.Answers) {
		if a.Key == key && a.Superseded.IsZero() {
			return a
		}
	}
	return nil
}

// confirm notes which answers are out of use, given what the volume holds. A set
// that was returned counts as mounted once the volume says so, and not before: a
// driver may be killed in between.
func (s *state) confirm(mounted []provider.ObjectVersion) {
	holds := func(version string) bool {
		return slices.ContainsFunc(mounted, func(m provider.ObjectVersion) bool { return m.Version == version })
	}
	if len(mounted) == 0 || slices.ContainsFunc(s.Delivered, func(version string) bool { return !holds(version) }) {
		return
	}
	for _, a := range s.Answers {
		if a.Superseded.IsZero() && !slices.Contains(s.Delivered, a.Version) && !holds(a.Version) {
			a.Superseded = s.DeliveredAt
		}
	}
}

// deliver notes which answers the set holds that is about to be returned.
func (s *state) deliver(versions []string, now time.Time) {
	slices.Sort(versions)
	if versions = slices.Compact(versions); !slices.Equal(versions, s.Delivered) {
		s.Delivered, s.DeliveredAt = versions, now
	}
}

// ends returns when an answer ends, its token's end included.
func (s *state) ends(a *issued) time.Time {
	if t := s.token(a.Token); t != nil && t.Ends.Before(a.Ends) {
		return t.Ends
	}
	return a.Ends
}

// dropTokens removes the tokens on which nothing hangs any more, and returns them.
func (s *state) dropTokens() (gone []*token) {
	s.Tokens = slices.DeleteFunc(s.Tokens, func(t *token) bool {
		used := slices.ContainsFunc(s.Answers, func(a *issued) bool { return a.Token == t.ID })
		if !used {
			gone = append(gone, t)
		}
		return !used
	})
	return gone
}

func newID() string { return rand.Text()[:16] }
