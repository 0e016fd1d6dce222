package class

import (
	"fmt"
	"strings"
	"unicode"
)

// Problem is one mistake in a file of classes, with its place and its remedy.
type Problem struct {
	File string `json:"file"`
	// Line is where in the file, from 1; 0 where it is the whole.
	Line int `json:"line,omitempty"`
	// Class is the "namespace/name" of the class that it is in; empty for a
	// mistake of the file itself.
	Class string `json:"class,omitempty"`
	// Key is the key in the class, such as "metadata.name", "provider" or
	// "parameters.objects".
	Key string `json:"key,omitempty"`
	// Item names the entry of a list below Key, such as `entry 2 ("db")`.
	Item string `json:"item,omitempty"`
	// Field is the field of that entry.
	Field string `json:"field,omitempty"`
	// What is wrong, and what to do about it.
	What   string `json:"what"`
	Remedy string `json:"remedy,omitempty"`
	// Notice marks what a person should know and is no mistake.
	Notice bool `json:"notice,omitempty"`
}

// Place returns `FILE:LINE`, or the file alone where there is no line.
func (p Problem) Place() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Text returns the problem without its place.
func (p Problem) Text() string {
	var parts []string
	if p.Notice {
		parts = append(parts, "notice")
	}
	if p.Class != "" {
		parts = append(parts, "class "+p.Class)
	}
	// A key is any text that stands in a file, even what controls a terminal.
	key := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, p.Key)
	where := strings.TrimSpace(key + " " + p.Item)
	if p.Field != "" {
		where += fmt.Sprintf(", %q", p.Field)
	}
	if where != "" {
		parts = append(parts, where)
	}
	text := strings.Join(append(parts, p.What), ": ")
	if p.Remedy != "" {
		text += "; " + p.Remedy
	}
	return text
}

// Error returns `FILE:LINE: class NAMESPACE/NAME: KEY ITEM, "FIELD": WHAT; REMEDY`,
// each part left out where it is empty.
func (p Problem) Error() string { return p.Place() + ": " + p.Text() }
