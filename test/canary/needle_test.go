package canary

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-secrets/csi-secrets/test/harness"
)

// marker begins both halves of every canary of this process: whatever shows
// some of a canary, in whatever form, shows the marker in that form.
var marker = "Cn" + strings.ToLower(rand.Text()[:14])

// canary returns a value that is found nowhere but where it was put, with
// characters in its middle that every encoding treats in its own way.
func canary(name string) string { return half(name) + "\"\\<&é%\n\t" + half(name) }

// token returns a canary that could be a service-account token.
func token(name string) string { return half(name) + "." + half(name) }

func half(name string) string { return marker + strings.ReplaceAll(name, " ", "") + rand.Text() }

// needles are the marker in every form in which a program may show bytes, by
// the name of the form.
var needles = formsOf(marker)

func formsOf(text string) map[string][]byte {
	forms := map[string][]byte{"as it is": []byte(text)}
	add := func(name, format, separator string) {
		parts := make([]string, len(text))
		for i := range len(text) {
			parts[i] = fmt.Sprintf(format, text[i])
		}
		forms[name] = []byte(strings.Join(parts, separator))
	}
	add("hex", "%02x", "")
	add("upper hex", "%02X", "")
	add("hex bytes", "%02x", " ")
	add("Go bytes", "%d", " ")
	add("JSON bytes", "%d", ",")
	add("list of bytes", "%d", ", ")
	add("Go syntax", "0x%x", ", ")
	add("escapes", `\x%02x`, "")
	add("octal escapes", `\%03o`, "")
	add("URL escapes", "%%%02X", "")
	for shift := range 3 {
		// Of a text that begins anywhere in what is encoded, the characters that
		// depend on its neighbours are left out.
		encoded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + text))
		from := []int{0, 2, 3}[shift]
		to := (shift + len(text)) / 3 * 4
		forms[fmt.Sprintf("base64, shifted by %d", shift)] = []byte(encoded[from:to])
	}
	forms["a word in a register"] = fmt.Appendf(nil, "%x", binary.LittleEndian.Uint64([]byte(text)))
	return forms
}

// hit is a place where a canary shows.
type hit struct{ where, form, context string }

func (h hit) String() string { return fmt.Sprintf("%s, %s: ...%s...", h.where, h.form, h.context) }

// look returns the first hit of each form in text.
func look(where string, text []byte) []hit {
	var hits []hit
	for form, needle := range needles {
		if i := bytes.Index(text, needle); i >= 0 {
			context := text[max(0, i-300):min(len(text), i+len(needle)+100)]
			hits = append(hits, hit{where, form, fmt.Sprintf("%q", context)})
		}
	}
	return hits
}

// lookInFiles looks in the names and contents of all files below folder that
// are on the same file system: not in a tmpfs that is mounted there.
func lookInFiles(t *testing.T, folder string) (hits []hit, files int) {
	t.Helper()
	// find, and not fs.WalkDir, since it stays on one file system.
	out, err := exec.Command("find", folder, "-xdev", "-printf", `%y %p %l\0`).Output()
	if err != nil {
		t.Fatal(err)
	}
	for entry := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		hits = append(hits, look("the name "+entry, []byte(entry))...)
		kind, path, _ := strings.Cut(entry, " ")
		if path = strings.TrimSuffix(path, " "); kind != "f" {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files++
		hits = append(hits, look("the file "+path, text)...)
	}
	return hits, files
}

// lookInProcess looks in what other processes see of one.
func lookInProcess(t *testing.T, pid int) []hit {
	t.Helper()
	var hits []hit
	for _, name := range []string{"cmdline", "environ", "comm", "status", "stat", "maps", "mountinfo", "wchan", "stack", "cgroup"} {
		path := fmt.Sprintf("/proc/%d/%s", pid, name)
		text, err := os.ReadFile(path)
		if os.IsNotExist(err) && (name == "wchan" || name == "stack" || name == "cgroup") {
			continue // kernels may do without
		}
		if err != nil {
			t.Fatal(err)
		}
		hits = append(hits, look(path, text)...)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("the process has no threads: %v", err)
	}
	for _, path := range tasks {
		if text, err := os.ReadFile(path); err == nil { // a thread may have gone
			hits = append(hits, look(path, text)...)
		}
	}
	return hits
}

func report(t *testing.T, hits []hit) {
	t.Helper()
	for _, h := range hits {
		t.Errorf("a canary shows in %v", h)
	}
}

// The search must find what it looks for: in each form, wherever it begins.
func TestSearchFindsEveryForm(t *testing.T) {
	value := canary("self")
	for name, show := range map[string]func(string) string{
		"as it is":       func(s string) string { return s },
		"cut":            func(s string) string { return s[:len(marker)+2] },
		"the other half": func(s string) string { return s[strings.Index(s, "\t"):] },
		"quoted":         func(s string) string { return fmt.Sprintf("%q", s) },
		"JSON":           func(s string) string { b, _ := json.Marshal(s); return string(b) },
		"twice JSON":     func(s string) string { b, _ := json.Marshal(s); b, _ = json.Marshal(string(b)); return string(b) },
		"%v of bytes":    func(s string) string { return fmt.Sprintf("%v", []byte(s)) },
		"%#v of bytes":   func(s string) string { return fmt.Sprintf("%#v", []byte(s)) },
		"%x":             func(s string) string { return fmt.Sprintf("%x", s) },
		"%X":             func(s string) string { return fmt.Sprintf("%X", s) },
		"% x":            func(s string) string { return fmt.Sprintf("% x", s) },
		"hex dump":       func(s string) string { return hex.EncodeToString([]byte(s)) },
		"JSON of bytes":  func(s string) string { b, _ := json.Marshal([]byte(s)); return string(b) },
		"JSON of ints":   func(s string) string { return strings.ReplaceAll(fmt.Sprint([]byte(s)), " ", ",") },
		"base64":         func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"base64 URL":     func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) },
		"base64 of JSON": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(`{"k":"` + s + `"}`)) },
		"base64, one on": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(`{"ke":"` + s + `"}`)) },
		"base64, two on": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(`{"key":"` + s + `"}`)) },
		"a URL":          url.QueryEscape,
		"a word":         func(s string) string { return fmt.Sprintf("%#x", binary.LittleEndian.Uint64([]byte(s))) },
		"every escape": func(s string) string {
			var b strings.Builder
			for i := range len(s) {
				fmt.Fprintf(&b, "%%%02X", s[i])
			}
			return b.String()
		},
	} {
		if hits := look(name, []byte("before "+show(value)+" after")); len(hits) == 0 {
			t.Errorf("not found as %s: %s", name, show(value))
		}
	}
	if hits := look("nothing", []byte("before after")); len(hits) != 0 {
		t.Errorf("found in nothing: %v", hits)
	}
}

func TestSearchFindsFilesNamesAndProcesses(t *testing.T) {
	folder := harness.Folder(t)
	if hits, _ := lookInFiles(t, folder); len(hits) != 0 {
		t.Fatalf("found in an empty folder: %v", hits)
	}
	harness.WriteFile(t, filepath.Join(folder, "deep/er/file"), "x"+canary("in a file"))
	if hits, files := lookInFiles(t, folder); len(hits) != 1 || files != 1 {
		t.Errorf("hits in one file: %v", hits)
	}
	harness.WriteFile(t, filepath.Join(folder, half("a name")), "")
	if hits, _ := lookInFiles(t, folder); len(hits) != 2 {
		t.Errorf("hits in a file and a name: %v", hits)
	}
	for name, command := range map[string]*exec.Cmd{
		"an argument":   exec.Command("sh", "-c", "sleep 60; : $0", half("argument")),
		"a variable":    {Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 60; :"}, Env: append(os.Environ(), "X="+half("variable"))},
		"no such thing": exec.Command("sh", "-c", "sleep 60; :"),
	} {
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "the shell runs", func() bool {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", command.Process.Pid))
			return err == nil && strings.HasPrefix(string(text), "sh\x00-c\x00sleep 60; ")
		})
		if hits := lookInProcess(t, command.Process.Pid); (len(hits) > 0) == (name == "no such thing") {
			t.Errorf("%s: %v", name, hits)
		}
		_ = command.Process.Kill()
		_ = command.Wait()
	}
}
