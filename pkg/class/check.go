package class

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/derive"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Mountable returns an *provider.Error of kind Invalid where no provider could
// mount the class, for it names none or has no parameters, and nil otherwise.
func (c *SecretProviderClass) Mountable() error {
	switch {
	case c.Spec.Provider == "":
		return &provider.Error{Kind: provider.Invalid, Err: fmt.Errorf("provider not set in %s", c.Ref()),
			Remedy: "name the store in spec.provider"}
	case len(c.Spec.Parameters) == 0:
		return &provider.Error{Kind: provider.Invalid, Err: fmt.Errorf("parameters not set in %s", c.Ref()),
			Remedy: "tell in spec.parameters what to fetch"}
	}
	return nil
}

// Check returns all that is wrong with the class of a document, in the order of
// its lines: what an API server would refuse, what it would drop, what fails a
// mount or the making of Secrets, and what its provider, looked up with find,
// says about its parameters. Where that cannot be asked, a notice says so.
func Check(d *Document, find func(name string) (provider.Provider, error)) []Problem {
	problems := slices.Concat(d.unreadable, d.mistakes)
	report := func(p Problem) {
		p.File, p.Class = d.File, d.Class.Ref().String()
		if d.Class.Name == "" {
			p.Class = ""
		}
		problems = append(problems, p)
	}
	refused := func(key string) bool {
		return slices.ContainsFunc(d.unreadable, func(p Problem) bool { return p.Key == key })
	}

	spec := d.Class.Spec
	if spec.Provider == "" && !refused("provider") {
		report(Problem{Line: d.line("spec.provider", "spec"), Key: "provider", What: "it is missing", Remedy: "name the store that holds the secrets"})
	}
	if len(spec.Parameters) == 0 && !refused("parameters") {
		report(Problem{Line: d.line("spec.parameters", "spec"), Key: "parameters", What: "there are none", Remedy: "tell the provider what to fetch"})
	}
	if spec.Provider != "" && len(spec.Parameters) > 0 {
		d.checkParameters(find, report)
	}
	slices.SortStableFunc(problems, func(a, b Problem) int { return a.Line - b.Line })
	return problems
}

// checkParameters reports what is wrong with the parameters that every class may
// have, and what the class's provider says about its own.
func (d *Document) checkParameters(find func(name string) (provider.Provider, error), report func(Problem)) {
	spec := d.Class.Spec
	check := func(key, remedy string, parse func(text string) error) {
		if text, ok := spec.Parameters[key]; ok && !d.parameters[key].bad {
			if err := parse(text); err != nil {
				report(Problem{Line: d.parameters[key].line, Key: "parameters." + key, What: err.Error(), Remedy: remedy})
			}
		}
	}
	check(provider.VolumeSizeKey, sizeRemedy, func(text string) error { _, err := parseSize(text); return err })
	check(provider.RotationIntervalKey, provider.IntervalRemedy, func(text string) error { _, err := provider.ParseInterval(text); return err })
	check(provider.ChangeNoticesKey, noticesRemedy, func(text string) error {
		if _, err := strconv.ParseBool(strings.TrimSpace(text)); err != nil {
			return errNotABoolean(text)
		}
		return nil
	})
	check(provider.SealedCacheKey, sealedCacheRemedy, func(text string) error { _, err := parseSealedCache(text); return err })
	reportAll := func(problems []provider.Problem) {
		for _, p := range problems {
			if !d.parameters[p.Key].bad {
				report(Problem{Line: d.parameterLine(p), Key: strings.TrimSuffix("parameters."+p.Key, "."), Item: p.Item, Field: p.Field, What: p.What, Remedy: p.Remedy})
			}
		}
	}
	reportAll(derive.Problems(spec.Parameters))
	onChange, _ := readOnChange(spec.Parameters)
	reportAll(onChange.Problems())
	line := d.line("spec.provider", "spec")
	if err := provider.CheckName(spec.Provider); err != nil {
		report(Problem{Line: line, Key: "provider", What: err.Error()})
		return
	}
	p, err := find(spec.Provider)
	if err != nil {
		report(Problem{Line: line, Key: "provider", What: "its parameters were not checked: " + err.Error(), Notice: true})
		return
	}
	validator, ok := p.(provider.Validator)
	if !ok {
		report(Problem{Line: line, Key: "provider", What: fmt.Sprintf("its parameters were not checked: provider %q cannot check them", spec.Provider), Notice: true})
		return
	}
	reportAll(validator.Validate(spec.Parameters))
}

// parameterLine returns the line of the file in which a parameter has a problem.
func (d *Document) parameterLine(p provider.Problem) int {
	v, ok := d.parameters[p.Key]
	switch {
	case !ok:
		return d.line("spec.parameters", "spec")
	case v.block && p.Line > 0:
		// The value ends with a line break, after which no line of it follows.
		last := strings.Count(strings.TrimRight(d.Class.Spec.Parameters[p.Key], "\n"), "\n") + 1
		return v.line + min(p.Line, last)
	}
	return v.line
}
