package class

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

func onChange(text string) (OnChange, error) {
	c := &SecretProviderClass{Spec: Spec{Parameters: map[string]string{provider.OnChangeKey: text}}}
	c.Namespace, c.Name = "ns", "c"
	return c.OnChange()
}

func TestWhatHappensAfterAChange(t *testing.T) {
	for text, want := range map[string]OnChange{
		"":                                     {},
		"- action: touch":                      {Touch: true},
		"- {action: restart}\n- action: touch": {Touch: true, Restart: true},
		"- action: signal\n  process: nginx\n  signal: HUP\n- {action: signal, process: x, signal: sigusr1}": {Signals: []Signal{{"nginx", syscall.SIGHUP}, {"x", syscall.SIGUSR1}}},
	} {
		if got, err := onChange(text); fmt.Sprint(got) != fmt.Sprint(want) || err != nil {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	for text, words := range map[string]string{
		"action: touch":                      `it is a map without "array"`,
		"- touch":                            "entry 1",
		"- action: reboot":                   `"reboot" is none of touch, signal and restart`,
		"- process: nginx":                   `"action"`,
		"- action: signal":                   `"process"`,
		"- {action: signal, process: nginx}": `"signal"`,
		"- {action: signal, process: nginx, signal: KILL}": `"KILL" is none that can be sent`,
		"- {action: signal, process: nginx, signal: 1}":    `"1" is none that can be sent`,
		"- {action: signal, process: /bin/x, signal: HUP}": "it is a path",
	} {
		_, err := onChange(text)
		if provider.KindOf(err) != provider.Invalid || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "class ns/c") {
			t.Errorf("%q: got %v", text, err)
		}
	}
	reader, _ := readOnChange(map[string]string{provider.OnChangeKey: "- action: touch\n  file: x"})
	if all := reader.Problems(); len(all) != 1 || all[0].Line != 2 || !all[0].Unknown {
		t.Errorf("got %v", all)
	}
}
