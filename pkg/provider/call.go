package provider

import (
	"context"
	"errors"
)

// ErrNotCalled says that a store was not called, because it wants to be left alone.
var ErrNotCalled = errors.New("it was not called")

// Caller makes one call to a store when that may be called. See Call.
type Caller func(ctx context.Context, call func() error) error

type callerKey struct{}

// WithCaller has the calls that are made with ctx go through caller.
func WithCaller(ctx context.Context, caller Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

// Call makes one call to the store that a fetch with ctx asks. Every call that a
// Located provider makes goes through it: it waits while the store wants to be
// left alone, and may make a call again that was refused for being one too many.
// For such a refusal, and for nothing else, call returns an *Error of kind
// Throttled; for any other answer it returns nil, and for none why there is none.
// A call that is not made, because the store wants to be left alone for longer
// than the fetch can wait, fails with an *Error of kind Throttled that wraps
// ErrNotCalled.
func Call(ctx context.Context, call func() error) error {
	if caller, ok := ctx.Value(callerKey{}).(Caller); ok {
		return caller(ctx, call)
	}
	return call()
}
