package vault

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// answer is what a server returned for a request: the fields of api.Secret of
// HashiCorp's client, in its order, with values as they came.
type answer struct {
	RequestID     string          `json:"request_id"`
	LeaseID       string          `json:"lease_id"`
	LeaseDuration int64           `json:"lease_duration"`
	Renewable     bool            `json:"renewable"`
	Data          json.RawMessage `json:"data"`
	Warnings      []string        `json:"warnings"`
	Auth          json.RawMessage `json:"auth,omitempty"`
	WrapInfo      json.RawMessage `json:"wrap_info,omitempty"`
	MountType     string          `json:"mount_type,omitempty"`
}

// parse reads the body of an answer. Its error quotes nothing.
func parse(body []byte) (*answer, error) {
	if body == nil {
		return nil, &provider.Error{Kind: provider.NotFound, Err: errors.New("the server's answer is empty")}
	}
	var a answer
	if err := json.Unmarshal(body, &a); err != nil {
		return nil, &provider.Error{Kind: provider.Internal, Err: errors.New("the server's answer is not the JSON of Vault"), Remedy: "does the address lead to Vault or OpenBao?"}
	}
	for _, raw := range []*json.RawMessage{&a.Auth, &a.WrapInfo} {
		if bytes.Equal(*raw, []byte("null")) {
			*raw = nil
		}
	}
	if a.Data == nil {
		a.Data = json.RawMessage("null")
	}
	return &a, nil
}

// members returns a JSON object's members, nil for anything else.
func members(raw json.RawMessage) map[string]json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return nil
	}
	return m
}

// values returns the secret's keys: those of data.data where that is an object,
// as in KV version 2, and else those of data.
func (a *answer) values() map[string]json.RawMessage {
	data := members(a.Data)
	if inner := members(data["data"]); inner != nil {
		return inner
	}
	return data
}

// value returns the bytes of a key: a string's own, anything else as JSON.
func value(raw json.RawMessage) ([]byte, error) {
	var text string
	if len(raw) > 0 && raw[0] == '"' {
		if err := json.Unmarshal(raw, &text); err != nil {
			return nil, &provider.Error{Kind: provider.Internal, Err: errors.New("a value of the answer is broken")}
		}
		return []byte(text), nil
	}
	// As HashiCorp's provider writes it.
	var out bytes.Buffer
	json.HTMLEscape(&out, raw)
	var compact bytes.Buffer
	if err := json.Compact(&compact, out.Bytes()); err != nil {
		return nil, &provider.Error{Kind: provider.Internal, Err: errors.New("a value of the answer is broken")}
	}
	return compact.Bytes(), nil
}

// whole returns the answer as HashiCorp's provider writes it. The id of the
// request is made of the rest of the answer: a server's own is another each time,
// and would make every refresh a change. html says whether to write <, > and & as
// that provider does, by their numbers.
func (a *answer) whole() ([]byte, error) {
	stable := *a
	stable.RequestID = ""
	text, err := json.Marshal(stable)
	if err != nil {
		return nil, &provider.Error{Kind: provider.Internal, Err: errors.New("the answer cannot be written as JSON")}
	}
	sum := sha256.Sum256(text)
	clear(text)
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // a UUID of version 8, RFC 9562
	id := hex.EncodeToString(sum[:16])
	stable.RequestID = strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:32]}, "-")
	return json.Marshal(stable)
}

// version returns the secret's own version, as KV version 2 has it, or "".
func (a *answer) version() string {
	metadata := members(members(a.Data)["metadata"])
	if n, err := strconv.ParseInt(string(metadata["version"]), 10, 64); err == nil && n > 0 {
		return strconv.FormatInt(n, 10)
	}
	return ""
}

// expires returns when what the answer to a request of that method holds ends by
// itself, without a lease: a certificate, a token of a cloud. Zero where it does not.
// What GET brings is stored there, and may change before its end; but for the tokens
// of the engine gcp, which GET makes.
func (a *answer) expires(method string, now time.Time) time.Time {
	data := members(a.Data)
	if _, made := data["token_ttl"]; method == http.MethodGet && !made {
		return time.Time{}
	}
	var certificate string
	if json.Unmarshal(data["certificate"], &certificate) == nil {
		if block, _ := pem.Decode([]byte(certificate)); block != nil {
			if parsed, err := x509.ParseCertificate(block.Bytes); err == nil {
				return parsed.NotAfter
			}
		}
	}
	for _, key := range []string{"expiration", "expires_at_seconds"} {
		if seconds, ok := integer(data[key]); ok && seconds > now.Unix() {
			return time.Unix(seconds, 0)
		}
	}
	return time.Time{}
}

// rotates returns when the server itself will change what it answers, as for the
// static roles of databases. Zero where it does not say.
func (a *answer) rotates(now time.Time) time.Time {
	data := members(a.Data)
	_, period := data["rotation_period"]
	_, schedule := data["rotation_schedule"]
	if ttl, ok := integer(data["ttl"]); ok && (period || schedule) && ttl >= 0 {
		return now.Add(time.Duration(ttl)*time.Second + time.Second)
	}
	return time.Time{}
}

func integer(raw json.RawMessage) (int64, bool) {
	n, err := strconv.ParseInt(strings.Trim(string(raw), `"`), 10, 64)
	return n, err == nil && n < 1<<40
}

// files returns what an object makes of an answer.
func (o object) files(a *answer, req provider.Request) ([]provider.File, error) {
	if o.all {
		return o.filesOfAll(a, req)
	}
	raw, err := o.raw(a)
	if err != nil {
		return nil, o.Failure(err)
	}
	defer clear(raw)
	f, err := o.File(req, raw)
	if f == nil || err != nil {
		return nil, err
	}
	return []provider.File{*f}, nil
}

// raw returns what the object's options work on.
func (o object) raw(a *answer) ([]byte, error) {
	if o.key == "" {
		return a.whole()
	}
	values := a.values()
	found, ok := values[o.key]
	if !ok {
		err := &provider.Error{Kind: provider.NotFound, Err: fmt.Errorf("{%s}: {key %q does not exist at the secret path}", o.request, o.key), Remedy: "correct secretKey"}
		if len(values) > 0 && len(values) <= 20 {
			err.Remedy = "there are " + strings.Join(slices.Sorted(maps.Keys(values)), ", ") + "; " + err.Remedy
		}
		return nil, err
	}
	return value(found)
}

func (o object) filesOfAll(a *answer, req provider.Request) ([]provider.File, error) {
	values := a.values()
	if len(values) == 0 {
		return nil, o.Failure(&provider.Error{Kind: provider.NotFound, Err: fmt.Errorf("%s has no keys", o.request), Remedy: "put one there"})
	}
	var result provider.Result
	for _, key := range slices.Sorted(maps.Keys(values)) {
		each := o.Object
		each.Path = o.path(key)
		raw, err := value(values[key])
		if err == nil {
			if pathErr := provider.CheckPath(each.Path); pathErr != nil {
				err = &provider.Error{Kind: provider.Invalid, Err: fmt.Errorf("the key %q cannot be a file: %w", key, pathErr), Remedy: "name the keys one by one by secretKey"}
			}
		}
		var f *provider.File
		if err == nil {
			f, err = each.File(req, raw)
			clear(raw)
		}
		if err != nil {
			result.Clear()
			return nil, o.Failure(err)
		}
		if f != nil {
			result.Files = append(result.Files, *f)
		}
	}
	return result.Files, nil
}
