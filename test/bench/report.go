package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report collects what the rounds of a part measure. Every round adds the same
// measures in the same order.
type report struct {
	title     string
	reference string // the subject that others are measured by, and comes before them
	measures  []*measurement
	byName    map[string]*measurement
}

// machine is what the numbers hold for.
type machine struct {
	Cores       int    `json:"cores"`
	Kernel      string `json:"kernel"`
	Load        string `json:"load"` // average of the last minute at the start
	Go          string `json:"go"`   // that built the driver
	DriverBytes int64  `json:"driverBytes"`
}

// measurement is one line of the report.
type measurement struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	Rounds []float64 `json:"rounds"`
	// Ratio is the median, over the rounds, of the value over that of the
	// report's reference in the same round.
	Ratio  float64 `json:"ratio,omitempty"`
	Target string  `json:"target,omitempty"`

	reference *measurement
	ratios    []float64
}

// The units of measurements.
const (
	milliseconds = "ms"
	seconds      = "s"
	perSecond    = "/s"
	perHour      = "/h"
	megabytes    = "MB"
	multiple     = "×"
	count        = ""
)

// targets are what the project holds itself to.
var targets = map[string]string{
	"local: publish, one at a time, p50":        "< 0.5 ms",
	"local: publish, 64 at a time, rate":        "≥ 3,000/s",
	"memory, 500 volumes mounted":               "< 30 MB",
	"memory, 500 volumes mounted and refreshed": "< 30 MB",
	"memory, idle": "< 30 MB",
}

func newReport(title, reference string) *report {
	return &report{title: title, reference: reference, byName: map[string]*measurement{}}
}

// thisMachine tells of the machine, and of the driver that is measured.
func thisMachine(driver string) (machine, error) {
	info, err := os.Stat(driver)
	if err != nil {
		return machine{}, err
	}
	build, err := buildinfo.ReadFile(driver)
	if err != nil {
		return machine{}, fmt.Errorf("read how the driver was built: %w", err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return machine{}, err
	}
	m := machine{
		Cores: runtime.NumCPU(), Kernel: string(bytes.TrimRight(name.Release[:], "\x00")), Go: build.GoVersion, DriverBytes: info.Size(),
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(load), " ")
	}
	return m, nil
}

// addLoad adds what calls took: one at a time their median against that of the
// reference, many at a time their rate. Calls without a floor, such as republish,
// which touches nothing, stand alone.
func (r *report) addLoad(subject, call string, parallel int, l load) {
	if parallel == 1 {
		name := call + ", one at a time, p"
		r.addOf(subject, name+"50", milliseconds, l.percentile(50))
		r.add(subject+": "+name+"90", milliseconds, l.percentile(90))
		r.add(subject+": "+name+"99", milliseconds, l.percentile(99))
		return
	}
	name := fmt.Sprintf("%s, %d at a time, ", call, parallel)
	r.addOf(subject, name+"rate", perSecond, l.rate())
	for _, p := range []float64{50, 90, 99} {
		r.add(fmt.Sprintf("%s: %sp%.0f", subject, name, p), milliseconds, l.percentile(p))
	}
}

// addOf adds a measure of a subject, against that of the reference.
func (r *report) addOf(subject, name, unit string, value float64) {
	m := r.add(subject+": "+name, unit, value)
	if subject != r.reference {
		m.reference = r.byName[r.reference+": "+name]
	}
}

func (r *report) addProcessorTime(subject, call string, each time.Duration) {
	r.add(fmt.Sprintf("%s: %s, processor time of the driver for each", subject, call), milliseconds, each.Seconds()*1e3)
}

func (r *report) addMemory(name string, m memory) {
	r.add(name, megabytes, m.resident)
	r.add(name+": of it heap and stacks", megabytes, m.anonymous)
	r.add(name+": of it the program's file", megabytes, m.file)
}

func (r *report) add(name, unit string, value float64) *measurement {
	m := r.byName[name]
	if m == nil {
		m = &measurement{Name: name, Unit: unit, Target: targets[name]}
		r.byName[name] = m
		r.measures = append(r.measures, m)
	}
	m.Rounds = append(m.Rounds, value)
	return m
}

// endRound sums up what is known after one more round.
func (r *report) endRound() {
	for _, m := range r.measures {
		m.Median, m.Min, m.Max = median(m.Rounds), slices.Min(m.Rounds), slices.Max(m.Rounds)
		if last := len(m.Rounds) - 1; m.reference != nil && m.reference.Rounds[last] > 0 {
			m.ratios = append(m.ratios, m.Rounds[last]/m.reference.Rounds[last])
			m.Ratio = median(m.ratios)
		}
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

func (m machine) writeText(w io.Writer) {
	fmt.Fprintf(w, "%d cores, Linux %s, load %s; driver of %.1f MB built with %s\n", m.Cores, m.Kernel, m.Load, float64(m.DriverBytes)/1e6, m.Go)
}

func (r *report) writeText(w io.Writer) error {
	fmt.Fprintf(w, "\n%s\n\n", r.title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "what\tmedian\tmin–max\t%s ×\ttarget\n", r.reference)
	group := ""
	for _, m := range r.measures {
		if now, _, _ := strings.Cut(m.Name, ","); now != group {
			if group != "" {
				fmt.Fprintln(t, "\t\t\t\t")
			}
			group = now
		}
		ratio := ""
		if m.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", m.Ratio)
		}
		fmt.Fprintf(t, "%s\t%s %s\t%s–%s\t%s\t%s\n", m.Name, number(m.Median, m.Unit), m.Unit, number(m.Min, m.Unit), number(m.Max, m.Unit), ratio, m.Target)
	}
	return t.Flush()
}

// number writes a value with the digits that mean something in its unit.
func number(value float64, unit string) string {
	switch {
	case unit == megabytes, unit == seconds, unit == multiple:
		return fmt.Sprintf("%.1f", value)
	case unit == milliseconds && value < 10:
		return fmt.Sprintf("%.3f", value)
	case unit == milliseconds && value < 100:
		return fmt.Sprintf("%.1f", value)
	}
	digits := strconv.FormatFloat(value, 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func writeJSON(w io.Writer, m machine, s settings, reports []*report) error {
	var measures []*measurement
	for _, r := range reports {
		measures = append(measures, r.measures...)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(struct {
		Machine  machine        `json:"machine"`
		Settings map[string]int `json:"settings"`
		Measures []*measurement `json:"measures"`
	}{
		m,
		map[string]int{"rounds": s.rounds, "single": s.single, "count": s.count, "parallel": s.parallel, "volumes": s.volumes, "pods": s.pods},
		measures,
	})
}
