package main

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
)

func TestTheTableTellsWhatIsMissed(t *testing.T) {
	var r report
	for _, v := range []struct{ theirs, ours float64 }{{20, 1900}, {21, 2300}, {19, 2100}} {
		r.add(theirsName, "publish, 64 at a time, rate", "/s", v.theirs)
		r.add(oursName, "publish, 64 at a time, rate", "/s", v.ours)
		r.add(theirsName, "memory, idle: with its sidecars", "MB", 60)
		r.add(oursName, "memory, idle: with its sidecars", "MB", 31)
		r.add(theirsName, "API requests a publish, get", "", 0)
		r.add(oursName, "API requests a publish, get", "", 0)
		r.add(theirsName, "API requests a publish, list", "", 0)
		r.add(oursName, "API requests a publish, list", "", 0)
	}
	var b strings.Builder
	if err := r.write(&b, settings{rounds: 3, count: map[string]int{}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"20.0 /s (19.0–21.0)", "2100 /s (1900–2300)", "105 ×", "≥ 100 × met", "31.0 MB (31.0–31.0)", "0.52 ×", "≤ 0.5 × MISSED", "0 met",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("there is no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "list") {
		t.Errorf("a verb that nobody uses is in\n%s", b.String())
	}
}

func TestEveryCallIsMadeOnce(t *testing.T) {
	var made [100]atomic.Int64
	l, err := measure(7, len(made), func(i int) error { made[i].Add(1); return nil })
	if err != nil || len(l.latencies) != len(made) {
		t.Fatalf("%d latencies, %v", len(l.latencies), err)
	}
	for i := range made {
		if n := made[i].Load(); n != 1 {
			t.Errorf("call %d was made %d times", i, n)
		}
	}
	wrong := errors.New("wrong")
	if _, err := measure(7, 100, func(i int) error {
		if i == 50 {
			return wrong
		}
		return nil
	}); !errors.Is(err, wrong) {
		t.Errorf("the error of a call is %v", err)
	}
}

func TestTheHarnessIsNotCounted(t *testing.T) {
	for agent, want := range map[string]bool{
		"csi-secrets-store/controller/v1.6.0 (linux/amd64) /": true,
		"csi-secrets/v0.1 (linux/amd64)":                      true,
		harnessAgent + " (linux/amd64)":                       false,
		"kubelet/v1.36.3 (linux/amd64)":                       false,
	} {
		if got := requestsOf(agent); got != want {
			t.Errorf("requests of %q count: %v", agent, got)
		}
	}
}
