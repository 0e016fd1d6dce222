package derive

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/template/parse"
)

// Bounds of a template. A class may be anybody's, and must not hold up the node:
// what a template does is counted, in bytes that it handles, and ends with an
// error where it is too much.
const (
	maxTemplateBytes = 64 << 10
	// maxTextBytes bounds what it makes, and every text on the way there.
	maxTextBytes = 1 << 20
	// maxWork is what it may handle in all: well below a second's work.
	maxWork = 64 << 20
	// nodeWork is what evaluating a part of it counts as, beside what that handles.
	nodeWork = 64
)

// templateName is the template's in the errors of its parser.
const templateName = "derived"

// compiled is a template that is ready to run.
//
// The language is that of package text/template, whose parser reads it. What runs
// it is run.go: text/template itself cannot be interrupted, puts values into its
// errors, and calls methods by name, for which a program keeps every method that
// it has, and grows by a third.
type compiled struct {
	text  string
	trees map[string]*parse.Tree
	// files are those that it names in calls of file, as far as it writes their
	// names out.
	files []string
}

// compile reads a template. An error's line is one of text's, 0 for the whole.
func compile(text string) (c *compiled, line int, err error) {
	if len(text) > maxTemplateBytes {
		return nil, 0, fmt.Errorf("it has %d bytes, more than %d", len(text), maxTemplateBytes)
	}
	trees, err := parse.Parse(templateName, text, "", "", functionNames())
	if err != nil {
		line, what := splitTemplateError(err)
		return nil, line, errors.New(what)
	}
	if root := trees[templateName]; root == nil || parse.IsEmptyTree(root.Root) {
		return nil, 0, errors.New("it makes nothing")
	}
	c = &compiled{text: text, trees: trees}
	calls := map[string][]*parse.TemplateNode{}
	for name, tree := range trees {
		w := walker{files: &c.files}
		w.list(tree.Root)
		calls[name] = w.calls
	}
	if node, what := badCall(calls); node != nil {
		return nil, c.line(node), errors.New(what)
	}
	return c, 0, nil
}

// splitTemplateError takes the line, 0 where there is none, out of an error of
// the parser and returns what is behind it.
func splitTemplateError(err error) (line int, what string) {
	what = strings.TrimPrefix(err.Error(), "template: "+templateName+":")
	number, rest, _ := strings.Cut(what, ":")
	if n, err := strconv.Atoi(number); err == nil {
		line, what = n, strings.TrimSpace(rest)
	}
	if len(what) > 200 {
		what = strings.ToValidUTF8(what[:200], "") + "..."
	}
	return line, what
}

// line returns where a part of the template stands.
func (c *compiled) line(node parse.Node) int {
	return strings.Count(c.text[:min(int(node.Position()), len(c.text))], "\n") + 1
}

// badCall finds a call of a template that is not defined, or that comes back to
// where it was called, which would never end.
func badCall(calls map[string][]*parse.TemplateNode) (*parse.TemplateNode, string) {
	const open, done = 1, 2
	state := map[string]int{}
	var visit func(name string) (*parse.TemplateNode, string)
	visit = func(name string) (*parse.TemplateNode, string) {
		state[name] = open
		for _, call := range calls[name] {
			switch _, defined := calls[call.Name]; {
			case !defined:
				return call, fmt.Sprintf("the template %q is not defined", call.Name)
			case state[call.Name] == open:
				return call, fmt.Sprintf("the template %q calls itself", call.Name)
			case state[call.Name] == done:
				continue
			}
			if node, what := visit(call.Name); node != nil {
				return node, what
			}
		}
		state[name] = done
		return nil, ""
	}
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		if state[name] == 0 {
			if node, what := visit(name); node != nil {
				return node, what
			}
		}
	}
	return nil, ""
}

// walker goes through one template and notes what is called.
type walker struct {
	calls []*parse.TemplateNode
	files *[]string
}

func (w *walker) list(l *parse.ListNode) {
	if l == nil {
		return
	}
	for _, node := range l.Nodes {
		switch n := node.(type) {
		case *parse.ActionNode:
			w.pipe(n.Pipe)
		case *parse.IfNode:
			w.branch(&n.BranchNode)
		case *parse.WithNode:
			w.branch(&n.BranchNode)
		case *parse.RangeNode:
			w.branch(&n.BranchNode)
		case *parse.TemplateNode:
			w.calls = append(w.calls, n)
			w.pipe(n.Pipe)
		}
	}
}

func (w *walker) branch(n *parse.BranchNode) {
	w.pipe(n.Pipe)
	w.list(n.List)
	w.list(n.ElseList)
}

func (w *walker) pipe(p *parse.PipeNode) {
	if p == nil {
		return
	}
	for _, command := range p.Cmds {
		for i, arg := range command.Args {
			switch a := arg.(type) {
			case *parse.PipeNode:
				w.pipe(a)
			case *parse.ChainNode:
				if inner, ok := a.Node.(*parse.PipeNode); ok {
					w.pipe(inner)
				}
			case *parse.StringNode:
				if name, ok := command.Args[0].(*parse.IdentifierNode); ok && i == 1 && name.Ident == "file" {
					*w.files = append(*w.files, a.Text)
				}
			}
		}
	}
}
