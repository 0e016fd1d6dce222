package akeyless

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// kind is the type of an item, as the gateway names it.
type kind string

const (
	static      kind = "STATIC_SECRET"
	dynamic     kind = "DYNAMIC_SECRET"
	rotated     kind = "ROTATED_SECRET"
	certificate kind = "CERTIFICATE"
)

// hints are the values of secretType that save a request. Akeyless' provider
// ignores that field, so that classes may have anything there.
var hints = map[string]kind{"static": static, "dynamic": dynamic, "rotated": rotated, "certificate": certificate}

// item is what one or several objects are made of.
type item struct {
	path    string        // as the class has it
	name    string        // as the gateway has it
	kind    kind          // empty where it is not known yet
	version string        // empty where the gateway was not asked
	ttl     time.Duration // of credentials; zero where the gateway was not asked
	missing bool          // and may be
	value   []byte
	issued  *issued // of a dynamic secret
}

// errShape says that an answer is not what it should be, without quoting it.
func errShape(op string) error {
	return &provider.Error{Kind: provider.Internal, Op: op, Err: errors.New("the gateway's answer is not what the API promises"), Remedy: "is the object's secretType right?"}
}

// describe reads what the gateway says of an item.
func (i *item) describe(body []byte) error {
	var answer struct {
		Name    string `json:"item_name"`
		Kind    kind   `json:"item_type"`
		Version int64  `json:"last_version"`
		General struct {
			Producer struct {
				TTL string `json:"user_ttl"`
			} `json:"dynamic_secret_producer_details"`
		} `json:"item_general_info"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return errShape(opDescribe)
	}
	if answer.Name != "" {
		i.name = answer.Name
	}
	if answer.Version > 0 {
		i.version = strconv.FormatInt(answer.Version, 10)
	}
	i.ttl, _ = time.ParseDuration(answer.General.Producer.TTL)
	switch i.kind = answer.Kind; i.kind {
	case static, dynamic, rotated, certificate:
		return nil
	}
	return &provider.Error{Kind: provider.Invalid, Err: fmt.Errorf("its type is %.40q", string(i.kind)), Remedy: "static, dynamic and rotated secrets and certificates can be mounted"}
}

// readStatic takes its value out of an answer for several: a string as it is,
// anything else as JSON.
func (i *item) readStatic(body []byte) error {
	var values map[string]json.RawMessage
	if json.Unmarshal(body, &values) != nil {
		return errShape(opStatic)
	}
	raw := values[i.name]
	if raw == nil {
		raw = values["/"+strings.TrimPrefix(i.name, "/")]
	}
	var text *string
	var compact bytes.Buffer
	switch err := json.Unmarshal(raw, &text); {
	case raw == nil || err == nil && text == nil:
		return &provider.Error{Kind: provider.NotFound, Op: opStatic, Err: errors.New("the gateway's answer has no value for it"), Remedy: "create the item, or correct secretPath"}
	case err == nil:
		i.value = []byte(*text)
	default:
		_ = json.Compact(&compact, raw) // it is JSON
		i.value = compact.Bytes()
	}
	return nil
}

// readRotated takes the value out of an answer, as Akeyless' provider writes it but
// for large numbers, which it rounds.
func (i *item) readRotated(body []byte) (err error) {
	var answer struct {
		Value any `json:"value"`
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	if decoder.Decode(&answer) != nil || answer.Value == nil {
		return errShape(opRotated)
	}
	i.value, err = json.MarshalIndent(answer.Value, "", "  ")
	return err
}

// readCertificate takes a certificate and its key out of an answer, as Akeyless'
// provider writes them.
func (i *item) readCertificate(body []byte) (err error) {
	var answer struct {
		Certificate *string `json:"certificate_pem,omitempty"`
		Key         *string `json:"private_key_pem,omitempty"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Certificate == nil && answer.Key == nil {
		return errShape(opCertificate)
	}
	i.value, err = json.Marshal(answer)
	return err
}
