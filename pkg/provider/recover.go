package provider

import (
	"fmt"
	"path"
	"runtime"
	"strings"
)

// Guarded calls do, and returns a panic of it as an error, see Recovered.
func Guarded(do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = Recovered(r)
		}
	}()
	return do()
}

// Recovered returns the error, of kind Internal, for what a deferred function got
// from recover. It tells where in the program the panic began. What the panic
// says is told only where the Go runtime says it, as of an index out of range:
// any other text may be a value.
func Recovered(r any) error {
	what := fmt.Sprintf("a panic of type %T", r)
	if fault, ok := r.(runtime.Error); ok {
		what = fault.Error()
	}
	if place := panicPlace(); place != "" {
		what += " in " + place
	}
	return &Error{Kind: Internal, Op: "a fault of the program", Err: fmt.Errorf("%s", what), Remedy: "report it"}
}

// panicPlace returns the function and line that panicked, of the goroutine whose
// deferred functions are running.
func panicPlace() string {
	var callers [64]uintptr
	frames := runtime.CallersFrames(callers[:runtime.Callers(0, callers[:])])
	for panicking := false; ; {
		frame, more := frames.Next()
		switch {
		case frame.Function == "runtime.gopanic":
			panicking = true
		case panicking && !strings.HasPrefix(frame.Function, "runtime."):
			return fmt.Sprintf("%s, %s:%d", path.Base(frame.Function), path.Base(frame.File), frame.Line)
		}
		if !more {
			return ""
		}
	}
}
