package akeyless

import (
	"bytes"
	"strings"
	"sync"
	"unicode"

	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

const (
	// maxShownBytes bounds what an error quotes of the gateway's.
	maxShownBytes = 300
	// window is how many bytes in a row give a secret away. A shorter one, of at
	// least minHidden, is hidden where it stands as a word.
	window, minHidden = 8, 4
)

// seen is what a session has sent and received, which a gateway may repeat in its
// errors, whole or in part. It is safe for concurrent use.
type seen struct {
	mu        sync.Mutex
	documents [][]byte // JSON
}

// add notes a JSON document, which it takes over.
func (s *seen) add(document []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.documents = append(s.documents, document)
}

// clear forgets everything.
func (s *seen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.documents {
		clear(d)
	}
	s.documents = nil
}

// count returns how often a text stands in what was seen.
func (s *seen) count(text string) (n int) {
	for _, d := range s.documents {
		n += bytes.Count(d, []byte(text))
	}
	return n
}

// shown returns what an error may show of a text.
func (s *seen) shown(from string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	from = strings.Join(strings.Fields(strings.ToValidUTF8(from, "?")), " ")
	cut := len(from) > maxShownBytes
	from = from[:min(len(from), maxShownBytes)]
	hidden := make([]bool, len(from)+1)
	hide := func(at, end int) {
		for ; at < end; at++ {
			hidden[at] = true
		}
	}
	for at := 0; at+window <= len(from); at++ {
		if s.count(from[at:at+window]) > 0 {
			hide(at, at+window)
		}
	}
	at := 0
	for word := range strings.FieldsFuncSeq(from, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`"'.,:;()[]{}`, r) }) {
		at += strings.Index(from[at:], word)
		if quoted := `"` + word + `"`; len(word) >= minHidden && s.count(quoted) > s.count(quoted+":") { // not only as a key
			hide(at, at+len(word))
		}
		at += len(word)
	}
	var out strings.Builder
	for at := range len(from) {
		switch {
		case !hidden[at]:
			out.WriteByte(from[at])
		case !hidden[at+1]:
			out.WriteString(secret.Redacted)
		}
	}
	if cut {
		out.WriteString("...")
	}
	return strings.ToValidUTF8(out.String(), "")
}
