package aws

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jmespath/go-jmespath"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// maxExpression bounds an expression, in bytes: it is parsed by recursion.
	maxExpression = 4 << 10
	// maxGrowth bounds by how much what an expression makes may exceed what the store
	// holds. Without it, a line of doubled lists would take all memory.
	maxGrowth = 256
)

// compile reads an expression. The library panics on some of those that are none.
func compile(expression string) (search *jmespath.JMESPath, err error) {
	if len(expression) > maxExpression {
		return nil, fmt.Errorf("has more than %d bytes", maxExpression)
	}
	err = provider.Guarded(func() error {
		tree, err := jmespath.NewParser().Parse(expression)
		if err != nil {
			return err
		}
		if growth(tree.PrettyPrint(0)) > maxGrowth {
			return errTooLarge
		}
		search, err = jmespath.Compile(expression)
		return err
	})
	switch {
	case err == errTooLarge:
		return nil, fmt.Errorf("has lists within lists that would multiply a document by more than %d", maxGrowth)
	case err != nil:
		return nil, errors.New("is not a JMESPath expression")
	}
	return search, nil
}

var errTooLarge = errors.New("it grows too much")

// growth is the product of the lengths of all lists and maps that an expression
// makes. Its syntax tree comes as the library prints it: a node's children are
// indented by four more than itself.
func growth(tree string) int {
	lines := strings.Split(tree, "\n")
	indent := func(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }
	product := 1
	for i, line := range lines {
		if node := strings.TrimSpace(line); node != "ASTMultiSelectList {" && node != "ASTMultiSelectHash {" {
			continue
		}
		children := 0
		for _, below := range lines[i+1:] {
			if indent(below) == indent(line) {
				break
			}
			if indent(below) == indent(line)+4 && strings.HasSuffix(below, " {") {
				children++
			}
		}
		if product *= max(children, 1); product > maxGrowth {
			break
		}
	}
	return product
}

// extracts makes the files of the entries of jmesPath.
func (o object) extracts(req provider.Request, raw []byte) ([]provider.File, error) {
	if len(o.jmes) == 0 {
		return nil, nil
	}
	var document any
	if json.Unmarshal(raw, &document) != nil { // its error may quote the value
		return nil, &provider.Error{Kind: provider.Invalid, Object: o.Name, Err: errors.New("it is not JSON"), Remedy: "remove " + jmesField + ", or correct what the store holds"}
	}
	var files []provider.File
	for _, e := range o.jmes {
		value, err := e.find(document)
		if err := o.Failure(err); err != nil {
			provider.Result{Files: files}.Clear()
			return nil, err
		}
		if err == nil {
			files = append(files, provider.File{Path: e.path, Mode: o.mode(req, e.mode), Contents: value})
		}
	}
	return files, nil
}

// find returns the text that the expression leads to. The error quotes nothing of
// the document.
func (e extract) find(document any) (secret.Value, error) {
	failure := &provider.Error{Kind: provider.Invalid, Remedy: "correct the expression, or what the store holds"}
	var found any
	err := provider.Guarded(func() (err error) {
		found, err = e.search.Search(document)
		return err
	})
	text, isText := found.(string)
	switch {
	case err != nil:
		failure.Err = fmt.Errorf("the expression %.80q cannot be applied to it", e.expression)
	case found == nil:
		failure.Kind, failure.Err = provider.NotFound, fmt.Errorf("it has nothing at %.80q", e.expression)
	case !isText:
		failure.Err = fmt.Errorf("what it has at %.80q is not a text", e.expression)
		failure.Remedy = "lead the expression to a text; to_string(...) makes one of other values"
	case strings.ContainsRune(text, utf8.RuneError):
		// The parser puts it in the place of what is not Unicode.
		failure.Err = fmt.Errorf("what it has at %.80q is not Unicode text", e.expression)
	default:
		return secret.FromString(text), nil
	}
	return secret.Value{}, failure
}
