package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/fetch"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// renderOptions are the flags of render.
type renderOptions struct {
	pick       class.Ref
	pod        provider.Pod
	tokens     map[string]string // files by audience
	account    map[string]string // annotations of the service account
	showValues bool
	form       outputForm
}

func renderCommand() *cobra.Command {
	var files classFiles
	var providers providerOptions
	var o renderOptions
	command := &cobra.Command{
		Use:   "render -f FILE...",
		Short: "Show what the classes of files would mount",
		Long: `Render fetches the objects of SecretProviderClasses from their stores, as the
person at the terminal, and shows the files that a pod would find in its volume.
Their contents are not shown unless asked for with --show-values.

The exit status is 0 where every class could be fetched, 1 where one could not,
and 2 for a command line or a file that cannot be read.`,
		Example: "  csi-secrets render -f class.yaml\n  csi-secrets render -f classes/ --name db --namespace shop --show-values",
		RunE: func(cmd *cobra.Command, _ []string) error {
			registry, _, err := providers.registry(atATerminal())
			if err != nil {
				return err
			}
			set, err := files.read(cmd.InOrStdin())
			if err != nil {
				return err
			}
			return o.render(cmd.Context(), fetch.New(registry, 0), set, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := command.Flags()
	files.addFlags(flags)
	flags.StringVar(&o.pick.Name, "name", "", "render the classes of this name only")
	flags.StringVar(&o.pick.Namespace, "namespace", "", "render the classes of this namespace only")
	flags.StringVar(&o.pod.Namespace, "pod-namespace", "", "namespace of the pod that mounts the volume (default that of the class)")
	flags.StringVar(&o.pod.Name, "pod-name", "render", "name of the pod that mounts the volume")
	flags.StringVar(&o.pod.ServiceAccount, "service-account", "default", "service account of the pod that mounts the volume")
	flags.StringToStringVar(&o.tokens, "token-file", nil, "AUDIENCE=FILE with a service account token for that audience, as kubectl create token --audience makes it; may be repeated")
	flags.StringToStringVar(&o.account, "service-account-annotation", nil, "NAME=VALUE of the service account's annotations, which name its identity at AWS or Google; may be repeated")
	flags.BoolVar(&o.showValues, "show-values", false, "show the contents of files")
	o.form.addFlags(flags)
	providers.addFlags(flags)
	return command
}

// rendering is what one class would mount, or why it cannot.
type rendering struct {
	Class      string                   `json:"class"`
	Provider   string                   `json:"provider,omitempty"`
	Files      []renderedFile           `json:"files,omitempty"`
	Objects    []provider.ObjectVersion `json:"objects,omitempty"`
	ValidUntil *time.Time               `json:"validUntil,omitempty"`
	Error      string                   `json:"error,omitempty"`
}

type renderedFile struct {
	Path string `json:"path"`
	Mode string `json:"mode"` // octal
	Size int    `json:"size"` // bytes
	// One of these holds the contents where they are to be shown: as they are if
	// they are UTF-8, in base64 otherwise.
	Contents *string `json:"contents,omitempty"`
	Base64   string  `json:"contentsBase64,omitempty"`
}

// render fetches and writes the classes that were picked, one after another.
// What fails goes to failures as well, and makes the exit status 1.
func (o renderOptions) render(ctx context.Context, fetcher *fetch.Fetcher, set classSet, out, failures io.Writer) error {
	failed := false
	fail := func(err error) {
		failed = true
		_, _ = fmt.Fprintln(failures, err)
	}
	for _, p := range set.problems {
		fail(p)
	}
	var picked []*class.Document
	for _, d := range set.documents {
		if ref := d.Class.Ref(); (o.pick.Name == "" || o.pick.Name == ref.Name) && (o.pick.Namespace == "" || o.pick.Namespace == ref.Namespace) {
			picked = append(picked, d)
		}
	}
	if len(picked) == 0 && !failed {
		return fmt.Errorf("no class to render; %s in the files: %s", class.Kind, refs(set.documents))
	}
	all := []rendering{}
	for i, d := range picked {
		result, err := o.fetch(ctx, fetcher, d)
		r := rendering{Class: d.Class.Ref().String(), Provider: d.Class.Spec.Provider}
		if err != nil {
			r.Error = err.Error()
			if d.Err() == nil { // which names file and class itself
				err = fmt.Errorf("class %s: %w", r.Class, err)
			}
			fail(err)
		} else {
			r.add(result, o.showValues && o.form == formJSON)
		}
		if o.form == formJSON {
			all = append(all, r)
		} else if err == nil {
			if i > 0 {
				_, _ = io.WriteString(out, "\n")
			}
			if err := o.writeText(out, r, result.Files); err != nil {
				result.Clear()
				return err
			}
		}
		result.Clear()
	}
	if o.form == formJSON {
		if err := writeJSON(out, map[string]any{"classes": all}); err != nil {
			return err
		}
	}
	if failed {
		return exitStatus(1)
	}
	return nil
}

// fetch asks the class's provider as a publish would.
func (o renderOptions) fetch(ctx context.Context, fetcher *fetch.Fetcher, d *class.Document) (provider.Result, error) {
	if err := d.Err(); err != nil {
		return provider.Result{}, err
	}
	if err := d.Class.Mountable(); err != nil {
		return provider.Result{}, err
	}
	pod := o.pod
	if pod.Namespace == "" {
		pod.Namespace = d.Class.Namespace
	}
	tokens := map[string]provider.Token{}
	for audience, file := range o.tokens {
		text, err := os.ReadFile(file)
		if err != nil {
			return provider.Result{}, fmt.Errorf("read the token for the audience %q: %w", audience, err)
		}
		tokens[audience] = provider.Token{Value: secret.New(bytes.TrimSpace(text))}
	}
	// Nothing is kept: a provider gives back at once what it has to.
	return fetcher.Fetch(ctx, d.Class.Spec.Provider, provider.Request{
		Tokens:     tokens,
		Parameters: d.Class.Spec.Parameters,
		Attributes: map[string]string{
			"secretProviderClass":                    d.Class.Name,
			"csi.storage.k8s.io/pod.namespace":       pod.Namespace,
			"csi.storage.k8s.io/pod.name":            pod.Name,
			"csi.storage.k8s.io/pod.uid":             pod.UID,
			"csi.storage.k8s.io/serviceAccount.name": pod.ServiceAccount,
			"csi.storage.k8s.io/ephemeral":           "true",
		},
		Pod:                pod,
		AccountAnnotations: func(context.Context) (map[string]string, error) { return o.account, nil },
		Mode:               provider.DefaultMode,
	})
}

// add describes a result, with the contents of its files where they are asked for.
func (r *rendering) add(result provider.Result, contents bool) {
	for _, f := range result.Files {
		file := renderedFile{Path: f.Path, Mode: fmt.Sprintf("%04o", f.Mode), Size: f.Contents.Len()}
		if b := f.Contents.Reveal(); contents && utf8.Valid(b) {
			text := string(b)
			file.Contents = &text
		} else if contents {
			file.Base64 = base64.StdEncoding.EncodeToString(b)
		}
		r.Files = append(r.Files, file)
	}
	r.Objects = result.Versions
	if !result.ValidUntil.IsZero() {
		r.ValidUntil = &result.ValidUntil
	}
}

// writeText writes a table of files and one of objects, then, where they are
// asked for, the contents.
func (o renderOptions) writeText(w io.Writer, r rendering, files []provider.File) error {
	paint := paintFor(w)
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", paint.bold(fmt.Sprintf("class %s, provider %s", r.Class, r.Provider)))
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PATH\tMODE\tSIZE\tCONTENTS")
	for _, f := range r.Files {
		contents := secret.Redacted
		if o.showValues {
			contents = "below"
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", plain(f.Path), f.Mode, f.Size, contents)
	}
	_ = table.Flush()
	table = tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nOBJECT\tVERSION")
	for _, v := range r.Objects {
		fmt.Fprintf(table, "%s\t%s\n", plain(v.ID), plain(v.Version))
	}
	_ = table.Flush()
	if r.ValidUntil != nil {
		fmt.Fprintf(&b, "\nvalid until %s\n", r.ValidUntil.Format(time.RFC3339))
	}
	if _, err := io.WriteString(w, b.String()); err != nil || !o.showValues {
		return err
	}
	for _, f := range files {
		if err := writeContents(w, paint, f); err != nil {
			return err
		}
	}
	return nil
}

// writeContents writes a file's contents below a heading: as they are, or in
// base64 where they are no text.
func writeContents(w io.Writer, paint paint, f provider.File) error {
	contents := f.Contents.Reveal()
	heading := plain(f.Path)
	if !isText(contents) {
		heading += ", in base64"
		contents = []byte(base64.StdEncoding.EncodeToString(contents))
	}
	if _, err := fmt.Fprintf(w, "\n%s\n", paint.bold("==> "+heading+" <==")); err != nil {
		return err
	}
	if _, err := w.Write(contents); err != nil {
		return err
	}
	if n := len(contents); n > 0 && contents[n-1] != '\n' {
		_, err := io.WriteString(w, "\n")
		return err
	}
	return nil
}

// isText reports whether b is UTF-8 without anything that controls a terminal.
func isText(b []byte) bool {
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 || unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r' {
			return false
		}
		i += n
	}
	return true
}

// plain quotes a text that would not print as it is.
func plain(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
