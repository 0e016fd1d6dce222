package main

import (
	"strings"

	"github.com/csi-secrets/csi-secrets/internal/standalone"
)

// The drivers, by the names of their programs.
const (
	theirsName = "secrets-store-csi-driver"
	oursName   = "csi-secrets"
	// sidecarName is the program that stands in for the two beside theirsName.
	sidecarName = "sidecar"
)

// arguments are those of a driver, with what its chart gives it: metrics, and
// for this project's driver health, which the other one leaves to another program.
func arguments(driver, kubeconfig string, l standalone.Layout) []string {
	common := []string{
		"--endpoint=unix://" + l.Socket(), "--nodeid=" + nodeName, "--kubeconfig=" + kubeconfig, "--metrics-addr=127.0.0.1:0",
		"--provider-volume=" + l.Providers(), "--additional-provider-volume-paths=" + l.Providers(),
	}
	if driver == theirsName {
		return common
	}
	return append([]string{"node", "--state-dir=" + l.State(), "--health-addr=127.0.0.1:0"}, common...)
}

// requestsOf tells whether a user agent is that of a driver under test. The
// harness uses the client of this project too.
func requestsOf(userAgent string) bool {
	return (strings.HasPrefix(userAgent, "csi-secrets") || strings.HasPrefix(userAgent, theirsName)) && !strings.HasPrefix(userAgent, harnessAgent)
}

const (
	harnessVersion = "peer-harness"
	harnessAgent   = "csi-secrets/" + harnessVersion
)

// sidecars are the arguments of the programs beside a driver.
func sidecars(driver string, l standalone.Layout) [][]string {
	if driver == oursName {
		return nil
	}
	return [][]string{
		{"--csi-address=" + l.Socket(), "--plugin-registration-path=" + l.Root, "--kubelet-registration-path=" + l.Socket()},
		{"--csi-address=" + l.Socket(), "--probe-timeout=3s", "--http-endpoint=127.0.0.1:0"},
	}
}
