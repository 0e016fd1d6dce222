package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// memory is what a process has resident, in MB of 10^6 bytes.
type memory struct {
	resident  float64
	anonymous float64 // heap and stacks
	file      float64 // pages of the program, which the page cache shares
}

func memoryOf(pid int) (memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	return memory{statusMB(string(text), "VmRSS"), statusMB(string(text), "RssAnon"), statusMB(string(text), "RssFile")}, nil
}

// statusMB finds a line such as "VmRSS:  1234 kB" of proc_pid_status(5), whose
// kB are KiB.
func statusMB(status, key string) float64 {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			kib, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
			return kib * 1024 / 1e6
		}
	}
	return 0
}

// tick is the unit of times in proc_pid_stat(5): USER_HZ is 100 wherever Linux
// runs Go.
const tick = 10 * time.Millisecond

// processorTime is what a process has used in user space and in the kernel.
func processorTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return statTime(string(text))
}

func statTime(stat string) (time.Duration, error) {
	// The second field is the name in parentheses and may hold anything.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("%q is no line of /proc/PID/stat", stat)
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * tick, err
}
