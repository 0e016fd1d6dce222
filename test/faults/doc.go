// Package faults kills the real driver with SIGKILL at every step of a publish,
// a refresh, an unpublish and a restart, fills its disks, and puts things in its
// way. It holds tests only: they need no Kubernetes, and no hook in the driver.
//
// A step is a system call that changes a file system or a mount. A tracer
// (tracer_test.go) follows the driver with ptrace(2), counts the steps of all
// its threads, and kills it at the entry of the one that a test asks for, so
// that this step and all after it do not happen.
//
// The tests run in a mount namespace of their own and, for an ordinary user, in
// a user namespace of their own. CSI_SECRETS_BIN names the binary to test;
// without it the one of this module is built. CSI_SECRETS_ROTATIONS is how often a
// volume is refreshed under its readers, and CSI_SECRETS_KILLS how often the driver
// is killed while it refreshes one; 10000 and 200 take a quarter of an hour.
package faults
