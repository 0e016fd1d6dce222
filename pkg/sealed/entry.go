package sealed

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// A file is, in this order:
//
//	1 byte    the format, 1
//	8 bytes   entry.at, in nanoseconds since 1970, the highest byte first
//	8 bytes   entry.until, likewise
//	32 bytes  random, for the key of this file alone: HKDF-SHA256 (RFC 5869)
//	12 bytes  the nonce, random
//	the rest  AES-256-GCM of the contents, with its tag of 16 bytes
//
// All before the nonce, and the file's name, are authenticated with the contents.
const (
	format      = 1
	headerBytes = 1 + 8 + 8
	saltBytes   = 32
)

const (
	// suffix ends the names of files, and unfinished those that were not written to
	// their end.
	suffix     = ".sealed"
	unfinished = ".new"
	// macBytes is how much of a MAC is in a name.
	macBytes = 16
)

// file names a file by MACs of the two parts of a Name.
type file struct{ owner, answer string }

func (f file) name() string { return f.owner + "-" + f.answer + suffix }

// file returns the file of a name.
func (c *Cache) file(n Name) file {
	return file{c.mac([]byte("owner " + n.Owner)), c.mac([]byte("answer " + n.Answer))}
}

func (c *Cache) mac(text []byte) string {
	mac := hmac.New(sha256.New, c.names.Reveal())
	mac.Write(text)
	return hex.EncodeToString(mac.Sum(nil)[:macBytes])
}

func parseName(name string) (file, bool) {
	owner, answer, _ := strings.Cut(strings.TrimSuffix(name, suffix), "-")
	f := file{owner, answer}
	for _, part := range []string{owner, answer} {
		if sum, err := hex.DecodeString(part); err != nil || len(sum) != macBytes {
			return file{}, false
		}
	}
	return f, f.name() == name
}

func isUnfinished(name string) bool {
	whole, ok := strings.CutSuffix(name, unfinished)
	_, known := parseName(whole)
	return ok && known
}

// derived returns a key for one purpose.
func derived(key secret.Value, salt []byte, purpose string) (secret.Value, error) {
	made, err := hkdf.Key(sha256.New, key.Reveal(), salt, purpose, KeyBytes)
	return secret.New(made), err
}

func (e entry) header() []byte {
	header := binary.BigEndian.AppendUint64([]byte{format}, uint64(e.at.UnixNano()))
	return binary.BigEndian.AppendUint64(header, uint64(e.until.UnixNano()))
}

// readHeader reads what a file says of itself. Nothing of it is proven.
func readHeader(path string) (entry, error) {
	in, err := os.Open(path)
	if err != nil {
		return entry{}, err
	}
	defer in.Close()
	header := make([]byte, headerBytes)
	if _, err := io.ReadFull(in, header); err != nil {
		return entry{}, err
	}
	info, err := in.Stat()
	if err != nil {
		return entry{}, err
	}
	if header[0] != format {
		return entry{}, errors.New("it has another format")
	}
	moment := func(at int) time.Time { return time.Unix(0, int64(binary.BigEndian.Uint64(header[at:]))) }
	return entry{at: moment(1), until: moment(9), bytes: info.Size()}, nil
}

// aead returns what encrypts the one file with that salt.
func (c *Cache) aead(salt []byte) (cipher.AEAD, error) {
	key, err := derived(c.seals, salt, "csi-secrets sealed cache, file")
	if err != nil {
		return nil, err
	}
	defer key.Clear()
	block, err := aes.NewCipher(key.Reveal())
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// encrypt returns the bytes of a file.
func (c *Cache) encrypt(f file, e entry, plain []byte) ([]byte, error) {
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // it does not fail
	aead, err := c.aead(salt)
	if err != nil {
		return nil, err
	}
	head := append(e.header(), salt...)
	return aead.Seal(head, nil, plain, authenticated(head, f)), nil
}

// decrypt reads the file of e. One that says other times of itself than e was put
// there by somebody else, and may be one that was removed or replaced.
func (c *Cache) decrypt(f file, e entry) (provider.Result, error) {
	data, err := os.ReadFile(filepath.Join(c.dir, f.name()))
	if err != nil {
		return provider.Result{}, err
	}
	if len(data) < headerBytes+saltBytes {
		return provider.Result{}, errors.New("it is cut short")
	}
	if !bytes.Equal(data[:headerBytes], e.header()) {
		return provider.Result{}, errors.New("it is not the one that was written")
	}
	head := data[:headerBytes+saltBytes]
	aead, err := c.aead(head[headerBytes:])
	if err != nil {
		return provider.Result{}, err
	}
	plain, err := aead.Open(nil, nil, data[len(head):], authenticated(head, f))
	if err != nil {
		return provider.Result{}, errors.New("it was changed, or sealed with another key")
	}
	defer clear(plain)
	r, err := decode(plain)
	r.SealedAt = e.at
	return r, err
}

func authenticated(head []byte, f file) []byte {
	return slices.Concat(head, []byte(f.name()))
}

// contents are what a file holds, as one line of JSON. The contents of Files follow
// it, one after another.
type contents struct {
	ValidUntil time.Time                `json:"validUntil,omitzero"`
	Versions   []provider.ObjectVersion `json:"versions,omitempty"`
	Files      []fileInfo               `json:"files,omitempty"`
}

type fileInfo struct {
	Path  string      `json:"path"`
	Mode  fs.FileMode `json:"mode"`
	Bytes int         `json:"bytes"`
}

// encode returns a buffer for the caller to clear.
func encode(r provider.Result) ([]byte, error) {
	c := contents{ValidUntil: r.ValidUntil, Versions: r.Versions}
	size := 1
	for _, f := range r.Files {
		c.Files = append(c.Files, fileInfo{f.Path, f.Mode, f.Contents.Len()})
		size += f.Contents.Len()
	}
	line, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	plain := make([]byte, 0, len(line)+size) // it must not grow: that would leave copies
	plain = append(append(plain, line...), '\n')
	for _, f := range r.Files {
		plain = append(plain, f.Contents.Reveal()...)
	}
	return plain, nil
}

// decode returns a result with contents of its own.
func decode(plain []byte) (provider.Result, error) {
	broken := errors.New("its contents are broken")
	line, rest, _ := bytes.Cut(plain, []byte("\n"))
	var c contents
	if json.Unmarshal(line, &c) != nil {
		return provider.Result{}, broken // the parser's error may quote it
	}
	r := provider.Result{ValidUntil: c.ValidUntil, Versions: c.Versions}
	for _, f := range c.Files {
		if f.Bytes < 0 || f.Bytes > len(rest) {
			r.Clear()
			return provider.Result{}, broken
		}
		r.Files = append(r.Files, provider.File{Path: f.Path, Mode: f.Mode, Contents: secret.New(bytes.Clone(rest[:f.Bytes]))})
		rest = rest[f.Bytes:]
	}
	if len(rest) > 0 {
		r.Clear()
		return provider.Result{}, broken
	}
	return r, nil
}
