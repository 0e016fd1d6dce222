package awstest

import (
	"embed"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"time"
	"unicode/utf8"
)

//go:embed testdata/*.json
var extracts embed.FS

// model is AWS's description of a service.
type model struct {
	Metadata struct {
		APIVersion   string `json:"apiVersion"`
		TargetPrefix string `json:"targetPrefix"`
		XMLNamespace string `json:"xmlNamespace"`
	}
	Operations map[string]struct {
		Input  struct{ Shape string }
		Output struct{ Shape, ResultWrapper string }
		Errors []struct{ Shape string }
	}
	Shapes   map[string]*shape
	Examples map[string][]example
}

type shape struct {
	Type     string
	Members  map[string]struct{ Shape string }
	Member   struct{ Shape string } // of a list
	Key      struct{ Shape string } // of a map
	Value    struct{ Shape string }
	Required []string
	Min, Max *float64
	Pattern  string
	Enum     []string
	Fault    bool
	Error    struct {
		Code           string
		HTTPStatusCode int `json:"httpStatusCode"`
	}
}

type example struct {
	ID            string
	Input, Output map[string]any
}

func loadModel(service string) *model {
	text, err := extracts.ReadFile("testdata/" + service + ".json")
	if err != nil {
		panic(err)
	}
	m := &model{}
	if err := json.Unmarshal(text, m); err != nil {
		panic(err)
	}
	return m
}

// check tells where a value, as the JSON decoder returns it, breaks the shape of
// that name, or returns nil.
func (m *model) check(name string, value any, at string) error {
	s := m.Shapes[name]
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%s (%s): %s", at, name, fmt.Sprintf(format, args...))
	}
	bounded := func(size float64) error {
		if s.Min != nil && size < *s.Min || s.Max != nil && size > *s.Max {
			return fail("%v is out of bounds", size)
		}
		return nil
	}
	switch s.Type {
	case "structure":
		fields, ok := value.(map[string]any)
		if !ok {
			return fail("it is no structure")
		}
		for _, required := range s.Required {
			if _, ok := fields[required]; !ok {
				return fail("%s is missing", required)
			}
		}
		for field, inner := range fields {
			member, ok := s.Members[field]
			if !ok {
				return fail("there is no member %s", field)
			}
			if err := m.check(member.Shape, inner, at+"."+field); err != nil {
				return err
			}
		}
	case "list":
		list, ok := value.([]any)
		if !ok {
			return fail("it is no list")
		}
		for i, inner := range list {
			if err := m.check(s.Member.Shape, inner, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
		return bounded(float64(len(list)))
	case "map":
		fields, ok := value.(map[string]any)
		if !ok {
			return fail("it is no map")
		}
		for key, inner := range fields {
			if err := m.check(s.Key.Shape, key, at+" key"); err != nil {
				return err
			}
			if err := m.check(s.Value.Shape, inner, at+"."+key); err != nil {
				return err
			}
		}
	case "string":
		text, ok := value.(string)
		if !ok {
			return fail("it is no string")
		}
		if s.Enum != nil && !slices.Contains(s.Enum, text) {
			return fail("it is none of %v", s.Enum)
		}
		if pattern, err := regexp.Compile(`\A(?:` + s.Pattern + `)\z`); s.Pattern != "" && err == nil && !pattern.MatchString(text) {
			return fail("it does not match %s", s.Pattern)
		}
		return bounded(float64(utf8.RuneCountInString(text)))
	case "blob":
		text, ok := value.([]byte)
		if !ok {
			return fail("it is no blob")
		}
		return bounded(float64(len(text)))
	case "boolean":
		if _, ok := value.(bool); !ok {
			return fail("it is no boolean")
		}
	case "integer", "long":
		number, ok := value.(float64)
		if !ok || number != float64(int64(number)) {
			return fail("it is no integer")
		}
		return bounded(number)
	case "timestamp":
		if _, ok := value.(time.Time); !ok {
			return fail("it is no time")
		}
	default:
		return fail("the type %q is unknown", s.Type)
	}
	return nil
}

// Failure is an error that a service answers with.
type Failure struct {
	Code, Message string
	Status        int
	RetryAfter    int  // seconds
	Hang          bool // until the caller gives up
}

// status returns that of an error which the model has, 400 for one that all
// services share.
func (m *model) status(f Failure) int {
	if f.Status != 0 {
		return f.Status
	}
	for name, s := range m.Shapes {
		switch {
		case s.Error.Code == f.Code && s.Error.HTTPStatusCode != 0:
			return s.Error.HTTPStatusCode
		case name == f.Code && s.Fault:
			return 500
		}
	}
	return 400
}
