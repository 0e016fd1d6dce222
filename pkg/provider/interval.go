package provider

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// The bounds of an interval of refreshes.
const (
	MinRotationInterval = 5 * time.Second
	MaxRotationInterval = 30 * 24 * time.Hour
)

// never is how an interval of none is written; ParseInterval returns -1 for it.
const never = "never"

// IntervalRemedy says what ParseInterval reads.
const IntervalRemedy = `write a duration from 5s to 720h, as in "10m", or "never"`

// ParseInterval reads how often something is refreshed; -1 stands for never.
func ParseInterval(text string) (time.Duration, error) {
	text = strings.TrimSpace(text)
	if text == never {
		return -1, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%.40q is not a duration", text)
	}
	if d < MinRotationInterval || d > MaxRotationInterval {
		return 0, fmt.Errorf("%q is not from 5s to 720h", text)
	}
	return d, nil
}

// listKeys are the parameters in which classes list objects, one for each provider.
var listKeys = []string{"objects", "secrets"}

// ObjectIntervals returns the intervals that the objects of a class have of their
// own, and how many objects have none. It leaves it to the provider to tell what
// is wrong with them.
func ObjectIntervals(parameters map[string]string) (own []time.Duration, others int) {
	for _, key := range listKeys {
		if !strings.Contains(parameters[key], RotationIntervalKey) {
			continue
		}
		for _, it := range NewParams(parameters).Objects(key) {
			if interval := it.interval(); interval != 0 {
				own = append(own, interval)
			} else {
				others++
			}
		}
	}
	return own, others
}

// Due names objects by the interval that they have of their own, 0 for those which
// leave it to their class; nil stands for all objects.
type Due []time.Duration

// Only returns parameters by which no objects are asked for but those that are due,
// and nothing is derived of them; false where these are none, or all, or cannot be
// asked for apart. It does so for classes whose objects are a list as Params.Objects
// reads it.
func Only(parameters map[string]string, due Due) (part map[string]string, ok bool) {
	if due == nil {
		return nil, false
	}
	part = maps.Clone(parameters)
	delete(part, DerivedFilesKey)
	some, others := false, false
	for _, key := range listKeys {
		p := NewParams(parameters)
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for _, it := range p.Objects(key) {
			if slices.Contains(due, it.interval()) {
				list.Content = append(list.Content, it.node)
			} else {
				others = true
			}
		}
		delete(part, key)
		if p.Err() != nil {
			return nil, false
		}
		if len(list.Content) == 0 {
			continue
		}
		some = true
		text, err := yaml.Marshal(unstyled(list))
		if err != nil {
			return nil, false
		}
		part[key] = string(text)
		p = NewParams(part)
		left := p.Objects(key)
		if len(left) != len(list.Content) || p.Err() != nil {
			return nil, false
		}
		for i, it := range left {
			if !sameNode(it.node, list.Content[i]) {
				return nil, false
			}
		}
	}
	return part, some && others
}

// unstyled returns a copy of a node that is written in quotes and brackets, without
// comments: the writer does not keep the indentation of block scalars.
func unstyled(n *yaml.Node) *yaml.Node {
	plain := &yaml.Node{Kind: n.Kind, Style: n.Style & yaml.TaggedStyle, Tag: n.Tag, Value: n.Value, Anchor: n.Anchor, Alias: n.Alias}
	switch n.Kind {
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!str":
			plain.Style |= yaml.DoubleQuotedStyle
		case "!!null":
			plain.Value = "null" // else it is written as an empty text
		}
	case yaml.MappingNode, yaml.SequenceNode:
		plain.Style |= yaml.FlowStyle
	}
	for _, inner := range n.Content {
		plain.Content = append(plain.Content, unstyled(inner))
	}
	return plain
}

// sameNode reports whether nodes say the same. An alias says what is not there.
func sameNode(a, b *yaml.Node) bool {
	tag := a.ShortTag()
	return a.Kind == b.Kind && a.Kind != yaml.AliasNode && tag == b.ShortTag() && (tag == "!!null" || a.Value == b.Value) &&
		slices.EqualFunc(a.Content, b.Content, sameNode)
}

// interval returns how often the object is refreshed, 0 where the field is absent.
func (it *Item) interval() time.Duration {
	text := it.Optional(RotationIntervalKey)
	if text == "" {
		return 0
	}
	interval, err := ParseInterval(text)
	if err != nil {
		it.Report(RotationIntervalKey, err.Error(), IntervalRemedy)
	}
	return interval
}
