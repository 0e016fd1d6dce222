package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/csi-secrets/csi-secrets/pkg/class"
)

func validateCommand() *cobra.Command {
	var files classFiles
	var providers providerOptions
	var form outputForm
	command := &cobra.Command{
		Use:   "validate -f FILE...",
		Short: "Tell every mistake in files of classes",
		Long: `Validate reads files of SecretProviderClasses and tells every mistake in them,
with its line and a remedy. It asks no store and no cluster. The parameters of
an external provider cannot be checked, which a notice says.

The exit status is 0 where there is no mistake, 1 where there is one, and 2 for
a command line or a file that cannot be read.`,
		Example: "  csi-secrets validate -f class.yaml\n  helm template . | csi-secrets validate -f -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			registry, _, err := providers.registry(atATerminal())
			if err != nil {
				return err
			}
			set, err := files.read(cmd.InOrStdin())
			if err != nil {
				return err
			}
			report := newReport(set, strings.Join(files.paths, ", "))
			for _, d := range set.documents {
				report.add(class.Check(d, registry.Get)...)
			}
			if err := report.write(cmd.OutOrStdout(), form); err != nil {
				return err
			}
			if report.Mistakes > 0 {
				return exitStatus(1)
			}
			return nil
		},
	}
	files.addFlags(command.Flags())
	form.addFlags(command.Flags())
	providers.addFlags(command.Flags())
	return command
}

// report is what validate found.
type report struct {
	Files    int             `json:"files"`
	Classes  int             `json:"classes"`
	Mistakes int             `json:"mistakes"`
	Problems []class.Problem `json:"problems"`
}

// newReport begins a report with what is wrong with the files as such: their
// own problems, classes defined twice, and that there are none at all.
func newReport(set classSet, paths string) *report {
	r := &report{Files: set.files, Classes: len(set.documents), Problems: []class.Problem{}}
	r.add(set.problems...)
	if len(set.documents)+len(set.problems) == 0 {
		r.add(class.Problem{File: paths, What: "there is no " + class.Kind + " in it", Remedy: fmt.Sprintf("give a file with a class, of apiVersion %s/%s", class.Group, class.Version)})
	}
	first := map[class.Ref]*class.Document{}
	for _, d := range set.documents {
		ref := d.Class.Ref()
		if ref.Name == "" {
			continue
		}
		if other := first[ref]; other != nil {
			r.add(class.Problem{File: d.File, Line: d.Line, Class: ref.String(), What: fmt.Sprintf("it is defined already, at %s:%d", other.File, other.Line), Remedy: "keep one of them"})
			continue
		}
		first[ref] = d
	}
	return r
}

func (r *report) add(problems ...class.Problem) {
	r.Problems = append(r.Problems, problems...)
	for _, p := range problems {
		if !p.Notice {
			r.Mistakes++
		}
	}
}

func (r *report) write(w io.Writer, form outputForm) error {
	if form == formJSON {
		return writeJSON(w, r)
	}
	paint := paintFor(w)
	var b strings.Builder
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "%s %s\n", paint.bold(p.Place()+":"), p.Text())
	}
	where := count(r.Classes, "class", "classes") + " in " + count(r.Files, "file", "files")
	if r.Mistakes == 0 {
		fmt.Fprintf(&b, "%s: %s\n", where, paint.green("no mistakes"))
	} else {
		fmt.Fprintf(&b, "%s: %s\n", where, paint.red(count(r.Mistakes, "mistake", "mistakes")))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
