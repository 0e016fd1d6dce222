package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// report collects what rounds measure.
type report struct {
	names  []string // of measures, in order
	unit   map[string]string
	values map[string]map[string][]float64 // by measure and driver
}

func (r *report) add(driver, name, unit string, value float64) {
	if r.values == nil {
		r.unit, r.values = map[string]string{}, map[string]map[string][]float64{}
	}
	if r.values[name] == nil {
		r.names = append(r.names, name)
		r.values[name] = map[string][]float64{}
	}
	r.unit[name] = unit
	r.values[name][driver] = append(r.values[name][driver], value)
}

// target is what this project holds itself to, in one line of the report.
type target struct {
	text string
	met  func(theirs, ours float64) bool
}

func targetOf(name string) (target, bool) {
	switch {
	case strings.HasPrefix(name, "publish,") && strings.HasSuffix(name, "at a time, rate"):
		return target{"≥ 100 ×", func(theirs, ours float64) bool { return ours >= 100*theirs }}, true
	case strings.HasPrefix(name, "memory,") && strings.Contains(name, "sidecars"):
		return target{"≤ 0.5 ×", func(theirs, ours float64) bool { return ours <= theirs/2 }}, true
	case name == "API requests a publish, get":
		return target{"0", func(_, ours float64) bool { return ours == 0 }}, true
	case name == "API requests a publish, all":
		return target{"≤ 1", func(_, ours float64) bool { return ours <= 1 }}, true
	}
	return target{}, false
}

// write writes the table: medians, and for each driver the least and greatest.
func (r *report) write(w io.Writer, s settings) error {
	load, _ := os.ReadFile("/proc/loadavg")
	minute, _, _ := strings.Cut(string(load), " ")
	fmt.Fprintf(w, "%d cores, load %s; median of %d rounds (least–greatest); %d and %d calls %d at a time\n\n",
		runtime.NumCPU(), minute, s.rounds, s.count[theirsName], s.count[oursName], s.parallel)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "what\t%s\t%s\tratio\ttarget\n", theirsName, oursName)
	for _, name := range r.names {
		theirs, ours := r.values[name][theirsName], r.values[name][oursName]
		goal, hasGoal := targetOf(name)
		if slices.Max(theirs) == 0 && slices.Max(ours) == 0 && !hasGoal {
			continue // a verb that nobody uses
		}
		ratio := ""
		if m := median(theirs); m > 0 {
			ratio = number(median(ours)/m) + " ×"
		}
		verdict := ""
		if hasGoal {
			verdict = goal.text + " met"
			if !goal.met(median(theirs), median(ours)) {
				verdict = goal.text + " MISSED"
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", name, span(theirs, r.unit[name]), span(ours, r.unit[name]), ratio, verdict)
	}
	return t.Flush()
}

func span(values []float64, unit string) string {
	text := fmt.Sprintf("%s %s (%s–%s)", number(median(values)), unit, number(slices.Min(values)), number(slices.Max(values)))
	return strings.Replace(text, "  ", " ", 1)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// number writes three digits that mean something.
func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}
