package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A process is told of a change by a signal, by a file, and not at all of one that
// is none. Its pod has itself refreshed by an annotation.
func TestAProcessIsToldOfAChange(t *testing.T) {
	t.Cleanup(func() { _ = install(context.Background()) })
	if err := install(t.Context(), "--set", "changeSignals.enabled=true", "--set", "refreshByPod=true"); err != nil {
		t.Fatal(err)
	}
	n := newNamespace(t)
	onChange := "- action: touch\n- {action: signal, process: sh, signal: USR1}"
	n.classOf("told", "e2e", map[string]string{"objects": "- objectName: signalled", "onChange": onChange, "rotationInterval": "never"})
	n.classOf("lost", "e2e", map[string]string{"objects": "- objectName: signalled", "onChange": "- {action: signal, process: nginx, signal: HUP}", "rotationInterval": "never"})
	// Each signal makes it note what it then reads.
	n.pod("web", template(`trap 'exit 0' TERM; trap 'cat /mnt/told/signalled >> /tmp/heard; echo >> /tmp/heard' USR1; touch /tmp/heard; while :; do sleep 1 & wait || true; done`, "told", "lost"))
	n.ready("pod/web")
	changed := n.kubectl("exec", "web", "--", "stat", "-c", "%i", "/mnt/told/..changed") + n.cat("web", "/mnt/told/..changed")
	refresh := func() {
		n.kubectl("annotate", "pod", "web", "--overwrite", "secrets-store.csi.x-k8s.io/refresh="+fmt.Sprint(time.Now().UnixNano()))
	}
	requests := provider(t, http.MethodGet, "/requests", "")
	refresh()
	eventually(t, func() error {
		if now := provider(t, http.MethodGet, "/requests", ""); now == requests {
			return fmt.Errorf("the pod was not refreshed: %s requests", now)
		}
		return nil
	})
	if got := n.kubectl("exec", "web", "--", "stat", "-c", "%i", "/mnt/told/..changed") + n.cat("web", "/mnt/told/..changed"); got != changed {
		t.Errorf("nothing has changed, and it is told that at %s after %s", got, changed)
	}
	provider(t, http.MethodPost, "/objects/signalled", "second value")
	began := time.Now()
	refresh()
	eventually(t, func() error {
		if got := n.cat("web", "/tmp/heard"); got != "second value\n" {
			return fmt.Errorf("the process heard %q", got)
		}
		return nil
	})
	t.Logf("signalled %v after the annotation, as kubectl exec sees it", time.Since(began).Round(10*time.Millisecond))
	got := n.kubectl("exec", "web", "--", "stat", "-c", "%i", "/mnt/told/..changed") + n.cat("web", "/mnt/told/..changed")
	if inode, rest, _ := strings.Cut(got, "\n"); !strings.HasPrefix(changed, inode+"\n") || got <= changed || rest == "" {
		t.Errorf("the file says %s after %s", got, changed)
	}
	eventually(t, func() error {
		if events := n.events("web"); !strings.Contains(events, `Warning ChangeSignalFailed: the files of SecretProviderClass `+n.name+`/lost have changed, but SIGHUP was not sent to "nginx": no process of the pod is called "nginx"`) {
			return fmt.Errorf("nobody hears that there is no such process:\n%s", events)
		}
		return nil
	})
}
