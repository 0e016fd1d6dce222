package plugin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// maxTextBytes bounds what is passed on of a provider's words.
	maxTextBytes = 4096
	// minHiddenBytes is the shortest value that redact looks for: anything
	// shorter stands in ordinary words too.
	minHiddenBytes = 4
	// windowBytes is the shortest part of a longer value that redact looks for.
	windowBytes = 16
	// maxSearchedBytes bounds the text that it looks through.
	maxSearchedBytes = 64 << 10
	// minHiddenLine is the shortest line of a longer value that it looks for.
	minHiddenLine = 16
	// roughly is how exactly an error tells a duration: the same failure has the
	// same words then, and its event is counted and not repeated.
	roughly = 100 * time.Millisecond
	// deadlineAtHand is how far from the end of a request a provider's
	// DEADLINE_EXCEEDED is still put down to that end.
	deadlineAtHand = 50 * time.Millisecond
)

// The beginnings of what gRPC itself says of an answer that it did not take.
var (
	tooLarge   = []string{"grpc: received message larger than max", "grpc: received message after decompression larger than max", "grpc: message after decompression larger than max"}
	unreadable = []string{"grpc: failed to unmarshal the received message"}
)

// failure turns err, from an RPC to object that took so long, into a
// *provider.Error. It keeps the provider's status, with hide applied to its
// message and without details, which could hold anything.
func (f *Finder) failure(ctx context.Context, object string, after time.Duration, hide func(string) string, err error) error {
	after = after.Round(roughly)
	st := status.Convert(err)
	switch code := st.Code(); {
	case code == codes.DeadlineExceeded && ending(ctx):
		return &provider.Error{Kind: provider.Unavailable, Op: fmt.Sprintf("%s did not answer within %v", object, after), Err: context.DeadlineExceeded,
			Remedy: "the provider's log on this node may say what it waits for"}
	case code == codes.Canceled && ctx.Err() != nil:
		return &provider.Error{Kind: provider.Unavailable, Op: fmt.Sprintf("%s had not answered after %v, when the request was cancelled", object, after), Err: ctx.Err()}
	case code == codes.Canceled && f.isClosed():
		return &provider.Error{Kind: provider.Unavailable, Object: object, Err: errClosed}
	}
	e := &provider.Error{
		Kind:   kindOf(st.Code()),
		Object: object,
		Err:    status.New(st.Code(), shorten(hide(st.Message()), maxTextBytes)).Err(),
		Code:   st.Code().String(),
		Remedy: remedy(st.Code()),
	}
	switch {
	case st.Code() == codes.ResourceExhausted && begins(st.Message(), tooLarge):
		e.Kind = provider.TooLarge
		e.Op = fmt.Sprintf("its answer is larger than %d bytes", f.maxMessageBytes)
		e.Remedy = "mount fewer objects in one volume, or raise --max-call-recv-msg-size"
	case st.Code() == codes.Internal && begins(st.Message(), unreadable):
		e.Op = "its answer could not be read"
		e.Remedy = "the provider breaks the protocol: look for a newer version of it"
	}
	return e
}

// remedy is what a person can do about a provider's answer. What went wrong is
// in the provider's own words.
func remedy(code codes.Code) string {
	switch code {
	case codes.PermissionDenied, codes.Unauthenticated:
		return "does the store let the pod's service account in, and is the audience that it asks for among the CSIDriver's tokenRequests?"
	case codes.NotFound:
		return "create it in the store, or correct its name in the class"
	case codes.InvalidArgument:
		return "correct the class"
	case codes.Unavailable, codes.DeadlineExceeded:
		return "the provider or its store does not answer at the moment, and is asked again; the provider's log on this node may say more"
	}
	return ""
}

// ending tells whether ctx ended, or is about to: gRPC sends the deadline along,
// and a provider's clock may strike first.
func ending(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(deadline) < deadlineAtHand
}

func (f *Finder) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// kindOf says what the code of a provider's status means to us.
func kindOf(code codes.Code) provider.Kind {
	switch code {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange:
		return provider.Invalid
	case codes.NotFound:
		return provider.NotFound
	case codes.PermissionDenied, codes.Unauthenticated:
		return provider.Denied
	case codes.ResourceExhausted:
		return provider.Throttled
	case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted:
		return provider.Unavailable
	}
	return provider.Internal
}

func begins(text string, prefixes []string) bool {
	for _, prefix := range prefixes {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return false
}

// redact returns text with what it shows of a token or secret of req replaced
// by secret.Redacted: whole values of minHiddenBytes and more, and every part of
// windowBytes and more of longer ones, as they are and in the forms of forms. It
// looks at the first maxSearchedBytes of text and drops the rest.
func redact(text string, req provider.Request) string {
	text = text[:min(len(text), maxSearchedBytes)]
	hidden := make([]bool, len(text))
	hide := func(from, n int) {
		for i := range n {
			hidden[from+i] = true
		}
	}
	windows := make(map[string][]int, len(text))
	for i := range len(text) - windowBytes + 1 {
		w := text[i : i+windowBytes]
		windows[w] = append(windows[w], i)
	}
	for _, value := range values(req) {
		for _, form := range forms(value) {
			for i := range len(form) - windowBytes + 1 {
				w := form[i : i+windowBytes]
				for _, at := range windows[w] {
					hide(at, windowBytes)
				}
				delete(windows, w) // they are hidden
			}
			for from := 0; len(form) < windowBytes; from++ {
				i := strings.Index(text[from:], form)
				if i < 0 {
					break
				}
				from += i
				hide(from, len(form))
			}
		}
	}
	var b strings.Builder
	for i := range len(text) {
		switch {
		case !hidden[i]:
			b.WriteByte(text[i])
		case i == 0 || !hidden[i-1]:
			b.WriteString(secret.Redacted)
		}
	}
	return b.String()
}

// values returns the tokens and secrets of req that redact looks for.
func values(req provider.Request) []string {
	all := []secret.Value{req.RawTokens}
	for _, token := range req.Tokens {
		all = append(all, token.Value)
	}
	for _, value := range req.Secrets {
		all = append(all, value)
	}
	var found []string
	for _, v := range all {
		value := string(v.Reveal())
		if len(value) >= minHiddenBytes {
			found = append(found, value)
		}
		if trimmed := strings.TrimSpace(value); trimmed != value && len(trimmed) >= minHiddenBytes {
			found = append(found, trimmed)
		}
		if !strings.Contains(value, "\n") {
			continue
		}
		for line := range strings.Lines(value) {
			if line = strings.TrimSpace(line); len(line) >= minHiddenLine {
				found = append(found, line)
			}
		}
	}
	return found
}

// forms returns the ways in which an error may show value: as it is or as the
// request holds it, and that quoted once more, as part of a URL, or in base64
// from any of its bytes on.
func forms(value string) []string {
	var b strings.Builder
	quote(&b, value)
	plain := unquoted(b.String())
	var all []string
	for _, s := range []string{value, plain, marshalled(value), unquoted(strconv.Quote(value))} {
		all = append(all, s, marshalled(s), unquoted(strconv.Quote(s)), url.QueryEscape(s), url.PathEscape(s))
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			all = append(all, encoding.EncodeToString([]byte(s)))
			// Within a longer text; the characters at both ends depend on that.
			for shift := 1; shift <= 2 && len(s) >= windowBytes; shift++ {
				inner := encoding.EncodeToString(append(make([]byte, shift), s...))
				all = append(all, inner[shift+1:len(inner)-2])
			}
		}
	}
	return all
}

// marshalled is text within a JSON string, with every escape of encoding/json.
func marshalled(text string) string {
	b, err := json.Marshal(text)
	if err != nil {
		return text
	}
	return unquoted(string(b))
}

func unquoted(text string) string { return text[1 : len(text)-1] }

// shorten returns the first n bytes of text, or a little less so as not to cut
// a character, and says where it cut. What is not UTF-8 is replaced.
func shorten(text string, n int) string {
	text = strings.ToValidUTF8(text, string(utf8.RuneError))
	if len(text) <= n {
		return text
	}
	for !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "..."
}
