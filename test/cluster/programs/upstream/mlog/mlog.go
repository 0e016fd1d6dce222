// Package mlog stands in for monis.app/mlog, the logger of
// secrets-store-csi-driver, which not every module proxy has. It has what that
// driver calls, and writes by klog alone.
package mlog

import (
	"context"

	"k8s.io/klog/v2"
)

// LogFormat is the format of the log.
type LogFormat string

// Formats of the log. This package writes text only.
const (
	FormatText LogFormat = "text"
	FormatJSON LogFormat = "json"
)

// LogLevel is the verbosity, as the driver takes it from its flag -v.
type LogLevel = klog.Level

// Setup returns what writes out the log at the end.
func Setup() func() { return klog.Flush }

// ValidateAndSetKlogLevelAndFormatGlobally leaves klog as its flags have it.
func ValidateAndSetKlogLevelAndFormatGlobally(context.Context, LogLevel, LogFormat) error {
	return nil
}

// Error logs an error.
func Error(message string, err error, pairs ...any) { klog.ErrorS(err, message, pairs...) }

// Fatal logs an error and ends the program.
func Fatal(err error, pairs ...any) {
	klog.ErrorS(err, "fatal error", pairs...)
	klog.FlushAndExit(klog.ExitFlushTimeout, 1)
}
