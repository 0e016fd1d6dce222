package class

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// OnChange is what happens after the files of a volume have become others, beside
// that. It is not for the first files.
type OnChange struct {
	// Touch writes the time of the change to the volume's file ..changed.
	Touch bool
	// Signals are sent to processes of the pod.
	Signals []Signal
	// Restart rolls the workload that owns the pod, once for a change.
	Restart bool
}

// Signal is a signal to the processes of one name.
type Signal struct {
	// Process is the name of the program, as ps shows it.
	Process string
	Number  syscall.Signal
}

// What the field "action" of an entry can be.
const (
	actionTouch   = "touch"
	actionSignal  = "signal"
	actionRestart = "restart"
)

// signals are those that a class may name, without SIG. The others would stop
// processes for good.
var signals = []string{"HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "WINCH", "CONT", "URG", "ALRM"}

// OnChange returns what the parameter provider.OnChangeKey asks for: a YAML list
// of entries with the field "action". An error is a *provider.Error of kind
// Invalid.
func (c *SecretProviderClass) OnChange() (OnChange, error) {
	reader, o := readOnChange(c.Spec.Parameters)
	if err := reader.Err(); err != nil {
		return OnChange{}, fmt.Errorf("class %s: %w", c.Ref(), err)
	}
	return o, nil
}

// readOnChange leaves in reader what is wrong with the parameter.
func readOnChange(parameters map[string]string) (reader *provider.Params, o OnChange) {
	reader = provider.NewParams(map[string]string{provider.OnChangeKey: parameters[provider.OnChangeKey]})
	for i, it := range reader.List(provider.OnChangeKey, "action") {
		it.SetName(fmt.Sprintf("entry %d", i+1))
		switch action := it.Required("action", "write touch, signal or restart"); action {
		case actionTouch:
			o.Touch = true
		case actionRestart:
			o.Restart = true
		case actionSignal:
			s := Signal{Process: it.Required("process", "name the program, as ps shows it")}
			if strings.ContainsAny(s.Process, "/\x00") {
				it.Report("process", "it is a path", "write the program's name alone")
			}
			name := strings.TrimPrefix(strings.ToUpper(it.Required("signal", "write a signal such as HUP")), "SIG")
			if s.Number = unix.SignalNum("SIG" + name); name != "" && !slices.Contains(signals, name) {
				it.Report("signal", fmt.Sprintf("%.20q is none that can be sent", name), "write one of "+strings.Join(signals, ", "))
			}
			o.Signals = append(o.Signals, s)
		case "":
		default:
			it.Report("action", fmt.Sprintf("%.40q is none of touch, signal and restart", action), "correct it")
		}
	}
	return reader, o
}
