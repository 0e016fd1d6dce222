package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Kind says what a failure means to the caller: it decides the gRPC code, the
// retry and the label in metrics.
type Kind int

// The kinds of failure.
const (
	// Internal is a fault of the provider or of csi-secrets, and any failure of
	// unknown kind.
	Internal Kind = iota
	// Invalid is a mistake in the class, the volume's attributes or its secrets:
	// trying again does not help.
	Invalid
	// NotFound is a class, an object, a version or a key that does not exist.
	NotFound
	// Denied is an identity that was not accepted or lacks a permission.
	Denied
	// Throttled is a store that asks to be left alone for a while.
	Throttled
	// Unavailable is a store that cannot be reached or does not answer in time.
	Unavailable
	// TooLarge is content that exceeds a limit.
	TooLarge
)

var kindNames = [...]string{"internal", "invalid", "not_found", "denied", "throttled", "unavailable", "too_large"}

// String returns the kind's name as metrics show it, such as "not_found".
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return kindNames[Internal]
	}
	return kindNames[k]
}

// ErrNoCredentials is why a provider cannot prove who the pod is: kubelet sent no
// token. Right after a restart of the driver that is so until kubelet's next call
// for the volume.
var ErrNoCredentials = errors.New("kubelet sent no token of the pod")

// Error is a failure of known kind. Its text reads
// `OBJECT: OP: ERR; REMEDY`, each part left out where it is empty, and never
// holds a secret value or a token.
type Error struct {
	Kind   Kind
	Object string // the object, parameter or file that it is about, with its noun: `object "db"`
	Op     string // what was attempted, in words
	Err    error  // why it failed
	Remedy string // what a person can do
	// Code is the store's own code where it has one, for metrics and status.
	Code string
	// RetryAfter is the wait that the store asked for; zero where it did not.
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	var parts []string
	for _, part := range []string{e.Object, e.Op} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	text := strings.Join(parts, ": ")
	if e.Remedy != "" {
		text += "; " + e.Remedy
	}
	return text
}

// shownErrors is how many errors Join shows in words.
const shownErrors = 8

// Join returns the errors of several objects as one, or nil where there are none.
// It shows the first of them, and how many more there are.
func Join(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if more := len(errs) - shownErrors; more > 0 {
		errs = append(errs[:shownErrors:shownErrors], fmt.Errorf("and %d more", more))
	}
	return errors.Join(errs...)
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first *Error in err's chain. Without one, a
// passed deadline is Unavailable and everything else Internal.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable
	}
	return Internal
}
