package secret

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const canary = "canary-3f1c9b"

// shows tells whether text lets a reader see the canary, in any form in which
// fmt could print its bytes.
func shows(text string) bool {
	for _, form := range []string{
		canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), fmt.Sprint([]byte(canary)),
		fmt.Sprintf("%#v", []byte(canary)), strings.Trim(fmt.Sprint([]byte(canary)), "[]"), "Y2FuYXJ5LTNmMWM5Yg",
	} {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}

func TestNoPathPrintsAValue(t *testing.T) {
	v := FromString(canary)
	nested := struct {
		hidden Value
		list   []Value
		byName map[string]Value
		Open   *Value
	}{v, []Value{v}, map[string]Value{"a": v}, &v}
	for _, verb := range strings.Split("v +v #v s q x X d t T p b o O c U e E f g", " ") {
		for _, arg := range []any{v, &v, nested, &nested, []Value{v}} {
			if text := fmt.Sprintf("%"+verb, arg); shows(text) {
				t.Errorf("%%%s of %T shows the value: %s", verb, arg, text)
			}
		}
	}
	if text := fmt.Sprint(fmt.Errorf("wrapped: %w", errors.New(fmt.Sprint(v)))); shows(text) {
		t.Error("an error shows the value")
	}
	for name, marshal := range map[string]func(any) ([]byte, error){
		"json": json.Marshal, "yaml": yaml.Marshal,
		"gob": func(x any) ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(x)
			return b.Bytes(), err
		},
	} {
		for _, arg := range []any{v, &v, map[string]Value{"a": v}} {
			if out, _ := marshal(arg); shows(string(out)) {
				t.Errorf("%s of %T shows the value: %q", name, arg, out)
			}
		}
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v, "n", nested)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v, "n", nested)
	if shows(log.String()) {
		t.Errorf("slog shows the value: %s", log.String())
	}
}

func TestClearEmptiesEveryCopy(t *testing.T) {
	b := []byte(canary)
	v := New(b)
	copied := v
	v.Clear()
	if !copied.IsEmpty() || bytes.Contains(b, []byte("c")) {
		t.Errorf("%d bytes are left, %d of them not zero", copied.Len(), len(bytes.Trim(b, "\x00")))
	}
	Value{}.Clear()
}

func TestEqual(t *testing.T) {
	if !FromString("a").Equal(FromString("a")) || FromString("a").Equal(FromString("b")) || !FromString("").Equal(Value{}) {
		t.Error("Equal does not compare the bytes")
	}
}
