package derive

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template/parse"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// run is one execution of a template. Values are nil, bool, int64, float64 (of
// the template's own constants), decimal, string, []any and map[string]any.
type run struct {
	*compiled
	files *set
	used  []*member // whose contents it asked for
	out   buffer
	vars  []variable
	work  int
}

// decimal is a number of a document that is no int64, as the document writes it:
// as floating point it would be another.
type decimal string

// MarshalJSON writes it as the number that it is.
func (d decimal) MarshalJSON() ([]byte, error) { return []byte(d), nil }

type variable struct {
	name  string
	value any
}

// control tells what becomes of the loop that a node is in.
type control int

const (
	goOn control = iota
	breakLoop
	continueLoop
)

// execute returns what the template makes of files, and which of them it used.
// Its errors quote nothing that the files hold.
func (c *compiled) execute(files *set) (text []byte, used []*member, err error) {
	r := &run{compiled: c, files: files}
	if err := r.template(templateName, nil); err != nil {
		clear(r.out.bytes)
		return nil, nil, err
	}
	return r.out.bytes, r.used, nil
}

// spend counts work.
func (r *run) spend(n int) error {
	if r.work += n; r.work > maxWork || n < 0 {
		return &provider.Error{Kind: provider.TooLarge, Err: errors.New("it does too much"), Remedy: "make it simpler, or what it goes over smaller"}
	}
	return nil
}

// buffer is what is made: bounded, and cleared where it moves.
type buffer struct{ bytes []byte }

func (b *buffer) Write(p []byte) (int, error) {
	need := len(b.bytes) + len(p)
	if need > maxTextBytes {
		return 0, tooLong("what it makes")
	}
	if need > cap(b.bytes) {
		larger := make([]byte, len(b.bytes), max(need, 2*cap(b.bytes), 512))
		copy(larger, b.bytes)
		clear(b.bytes)
		b.bytes = larger
	}
	b.bytes = append(b.bytes, p...)
	return len(p), nil
}

func tooLong(what string) error {
	return &provider.Error{Kind: provider.TooLarge, Err: fmt.Errorf("%s has more than %d bytes", what, maxTextBytes), Remedy: "make it shorter"}
}

// wrong is an error about the template. It quotes no value.
func wrong(what string) error {
	return &provider.Error{Kind: provider.Invalid, Err: errors.New(what), Remedy: "correct the template"}
}

// at says at which node, and in which function, an error came up, unless an inner
// node has said so.
func (r *run) at(node parse.Node, function string, err error) error {
	known, ok := err.(*provider.Error)
	if !ok || known.Op != "" {
		return err
	}
	known.Op = fmt.Sprintf("template, line %d", r.line(node))
	if function != "" {
		known.Op += ", " + function
	}
	return known
}

// template executes the template of that name. It has no variables but its own.
func (r *run) template(name string, dot any) error {
	outer := r.vars
	defer func() { r.vars = outer }()
	r.vars = []variable{{"$", dot}}
	_, err := r.list(r.trees[name].Root, dot)
	return err
}

func (r *run) list(l *parse.ListNode, dot any) (control, error) {
	if l == nil {
		return goOn, nil
	}
	for _, node := range l.Nodes {
		if err := r.spend(nodeWork); err != nil {
			return goOn, r.at(node, "", err)
		}
		if c, err := r.node(node, dot); err != nil || c != goOn {
			return c, err
		}
	}
	return goOn, nil
}

func (r *run) node(node parse.Node, dot any) (control, error) {
	switch n := node.(type) {
	case *parse.TextNode:
		return goOn, r.write(n, string(n.Text))
	case *parse.ActionNode:
		value, err := r.pipe(n.Pipe, dot)
		if err != nil || len(n.Pipe.Decl) > 0 {
			return goOn, err
		}
		if err := r.small(value); err != nil {
			return goOn, r.at(n, "", err)
		}
		return goOn, r.write(n, display(value))
	case *parse.IfNode:
		return r.branch(&n.BranchNode, dot, false)
	case *parse.WithNode:
		return r.branch(&n.BranchNode, dot, true)
	case *parse.RangeNode:
		return goOn, r.loop(n, dot)
	case *parse.TemplateNode:
		value, err := r.pipe(n.Pipe, dot)
		if err != nil {
			return goOn, err
		}
		return goOn, r.template(n.Name, value)
	case *parse.BreakNode:
		return breakLoop, nil
	case *parse.ContinueNode:
		return continueLoop, nil
	}
	return goOn, nil // a comment
}

func (r *run) write(node parse.Node, text string) error {
	if err := r.spend(len(text)); err != nil {
		return r.at(node, "", err)
	}
	_, err := r.out.Write([]byte(text))
	return r.at(node, "", err)
}

// display is how a value reads in the output.
func display(value any) string {
	if value == nil {
		return "<no value>"
	}
	return plain(value)
}

// branch is an if, or a with.
func (r *run) branch(n *parse.BranchNode, dot any, with bool) (control, error) {
	defer r.forget(len(r.vars))
	value, err := r.pipe(n.Pipe, dot)
	if err != nil {
		return goOn, err
	}
	switch {
	case !truth(value):
		return r.list(n.ElseList, dot)
	case with:
		return r.list(n.List, value)
	}
	return r.list(n.List, dot)
}

// forget drops the variables that were declared since there were so many.
func (r *run) forget(n int) { r.vars = r.vars[:n] }

// truth tells whether a value counts as true: whether it is something.
func truth(value any) bool {
	switch v := value.(type) {
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case []any:
		return len(v) > 0
	case map[string]any:
		return len(v) > 0
	}
	return value != nil // a decimal
}

func (r *run) loop(n *parse.RangeNode, dot any) error {
	defer r.forget(len(r.vars))
	over, err := r.pipe(n.Pipe, dot)
	if err != nil {
		return err
	}
	ran := false
	var bodyErr error
	body := func(key, value any) (more bool) {
		ran = true
		defer r.forget(len(r.vars))
		if bodyErr = r.at(n, "", r.spend(nodeWork)); bodyErr != nil {
			return false
		}
		r.assign(n.Pipe, key, value)
		var c control
		c, bodyErr = r.list(n.List, value)
		return bodyErr == nil && c != breakLoop
	}
	if err := iterate(over, len(n.Pipe.Decl), body); err != nil {
		return r.at(n, "", err)
	}
	if bodyErr != nil || ran {
		return bodyErr
	}
	_, err = r.list(n.ElseList, dot)
	return err
}

// assign sets the variables of a range, all of which there are by now: of two the
// first gets the key, and the last the value.
func (r *run) assign(pipe *parse.PipeNode, key, value any) {
	values := []any{value}
	if len(pipe.Decl) == 2 {
		values = []any{key, value}
	}
	for i, v := range pipe.Decl {
		if known, err := r.variable(v, v.Ident[0]); err == nil {
			known.value = values[i]
		}
	}
}

// iterate calls body for each thing in a value, until that returns false.
func iterate(over any, variables int, body func(key, value any) bool) error {
	switch v := over.(type) {
	case nil:
	case int64:
		if variables > 1 {
			return wrong("a range over a number has one variable")
		}
		for i := range v {
			if !body(nil, i) {
				break
			}
		}
	case []any:
		for i, value := range v {
			if !body(int64(i), value) {
				break
			}
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if !body(key, v[key]) {
				break
			}
		}
	default:
		return wrong("what range goes over is no list and no map")
	}
	return nil
}

// variable returns the variable that was declared last under that name.
func (r *run) variable(node parse.Node, name string) (*variable, error) {
	for i := len(r.vars) - 1; i >= 0; i-- {
		if r.vars[i].name == name {
			return &r.vars[i], nil
		}
	}
	// The parser lets pass one that is set, or used in its own declaration.
	return nil, r.at(node, "", wrong("a variable is not declared"))
}

// pipe evaluates commands, each with what the one before it returned, and
// declares or sets the variables of the pipeline.
func (r *run) pipe(p *parse.PipeNode, dot any) (value any, err error) {
	if p == nil {
		return nil, nil
	}
	var final []any // what the last command returned, nothing at first
	for _, command := range p.Cmds {
		value, err := r.command(command, dot, final)
		if err != nil {
			return nil, err
		}
		final = []any{value}
	}
	for _, v := range p.Decl {
		if !p.IsAssign {
			r.vars = append(r.vars, variable{v.Ident[0], final[0]})
			continue
		}
		known, err := r.variable(v, v.Ident[0])
		if err != nil {
			return nil, err
		}
		known.value = final[0]
	}
	return final[0], nil
}

func (r *run) command(c *parse.CommandNode, dot any, final []any) (any, error) {
	if function, ok := c.Args[0].(*parse.IdentifierNode); ok {
		return r.call(function, c.Args[1:], dot, final)
	}
	if len(c.Args) > 1 || len(final) > 0 {
		return nil, r.at(c, "", wrong("it gives an argument to what is no function"))
	}
	if _, isNil := c.Args[0].(*parse.NilNode); isNil {
		return nil, r.at(c, "", wrong("nil is not a command"))
	}
	return r.value(c.Args[0], dot)
}

// value evaluates one operand.
func (r *run) value(node parse.Node, dot any) (any, error) {
	if err := r.spend(nodeWork); err != nil {
		return nil, r.at(node, "", err)
	}
	switch n := node.(type) {
	case *parse.DotNode:
		return dot, nil
	case *parse.NilNode:
		return nil, nil
	case *parse.BoolNode:
		return n.True, nil
	case *parse.StringNode:
		return n.Text, nil
	case *parse.NumberNode:
		value, err := constant(n)
		return value, r.at(n, "", err)
	case *parse.FieldNode:
		return r.fields(n, dot, n.Ident)
	case *parse.VariableNode:
		v, err := r.variable(n, n.Ident[0])
		if err != nil {
			return nil, err
		}
		return r.fields(n, v.value, n.Ident[1:])
	case *parse.PipeNode:
		return r.pipe(n, dot)
	case *parse.IdentifierNode:
		return r.call(n, nil, dot, nil)
	case *parse.ChainNode:
		inner, err := r.value(n.Node, dot)
		if err != nil {
			return nil, err
		}
		return r.fields(n, inner, n.Field)
	}
	return nil, r.at(node, "", wrong("it cannot be evaluated"))
}

// constant returns a number as Go would take it where no type is asked for.
func constant(n *parse.NumberNode) (any, error) {
	text := strings.ToLower(n.Text)
	isHex := strings.HasPrefix(text, "0x") && !strings.Contains(text, "p")
	switch {
	case n.IsComplex:
		return nil, wrong("it has a complex number")
	case n.IsFloat && !isHex && !strings.HasPrefix(text, "'") && strings.ContainsAny(text, ".ep"):
		return n.Float64, nil
	case n.IsInt:
		return n.Int64, nil
	}
	return nil, wrong("it has a number that is too large")
}

// fields goes from a value into maps within maps.
func (r *run) fields(node parse.Node, value any, names []string) (any, error) {
	for _, name := range names {
		m, isMap := value.(map[string]any)
		if !isMap {
			what := "a value has no such field"
			if value == nil {
				what = "there is nothing that has such a field"
			}
			return nil, r.at(node, "", wrong(what))
		}
		inner, ok := m[name]
		if !ok {
			return nil, r.at(node, "", wrong("a map has no such key"))
		}
		value = inner
	}
	return value, nil
}

// call calls a function with its arguments, of which final is the last.
func (r *run) call(name *parse.IdentifierNode, nodes []parse.Node, dot any, final []any) (any, error) {
	f := functions()[name.Ident]
	if n := len(nodes) + len(final); n < f.least || f.most >= 0 && n > f.most {
		return nil, r.at(name, name.Ident, wrong(fmt.Sprintf("it is given %d arguments", n)))
	}
	args := make([]any, 0, len(nodes)+len(final))
	for _, node := range nodes {
		arg, err := r.value(node, dot)
		if err != nil {
			return nil, err
		}
		if args = append(args, arg); f.enough != nil && f.enough(arg) {
			return arg, nil
		}
	}
	args = append(args, final...)
	if err := r.spend(nodeWork); err != nil {
		return nil, r.at(name, name.Ident, err)
	}
	result, err := f.call(r, args)
	if err != nil {
		return nil, r.at(name, name.Ident, err)
	}
	return result, nil
}
