package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Bounds of the files that hold secrets under age. maxSealedBytes is what
// maxPlainBytes take at most when encrypted and armored, with room for a
// header of many recipients.
const (
	maxPlainBytes    = 16 << 20
	maxSealedBytes   = 32 << 20
	maxIdentityBytes = 1 << 20
)

const identityRemedy = `give "identityFile", the absolute path of a file of age identities as age-keygen writes it`

// ageIntro is how every age file that is not armored begins; age's command
// encrypts identities with a passphrase in the same format.
var ageIntro = []byte("age-encryption.org/")

// readAge makes one attempt to read the objects from an age file.
//
// The errors of the age and YAML packages quote what they read, which is a
// secret or, where path names the wrong file, may be one: their texts go
// nowhere.
func (d *params) readAge(ctx context.Context, mode fs.FileMode) (provider.Result, error) {
	what := fmt.Sprintf("age file %q", d.path)
	sealed, version, err := readWhole(d.path, what, "read it", `create it, or correct the parameter "path"`, maxSealedBytes)
	if err != nil {
		return provider.Result{}, err
	}
	if d.identityFile == "" {
		clear(sealed) // it may be no age file at all
		return provider.Result{}, &provider.Error{Kind: provider.Invalid, Object: `parameter "identityFile"`,
			Err: fmt.Errorf("it is missing, and %q is a file", d.path), Remedy: identityRemedy}
	}
	defer clear(sealed)
	if ctx.Err() != nil {
		return provider.Result{}, d.stopped(ctx)
	}
	identities, err := readIdentities(d.identityFile)
	if err != nil {
		return provider.Result{}, err
	}
	plain, err := decrypt(sealed, identities, what, d.identityFile)
	if err != nil {
		return provider.Result{}, err
	}
	defer clear(plain)
	if ctx.Err() != nil {
		return provider.Result{}, d.stopped(ctx)
	}
	entries, err := parsePlaintext(plain)
	if err != nil {
		return provider.Result{}, &provider.Error{Kind: provider.Invalid, Object: what, Op: "read its plaintext", Err: err,
			Remedy: "decrypt it with age, correct it, and encrypt it again"}
	}
	return d.choose(entries, version, mode)
}

// choose makes the set of what the class names among entries, or of them all.
func (d *params) choose(entries []entry, version string, mode fs.FileMode) (provider.Result, error) {
	objects, lines, err := d.match(entries)
	if err != nil {
		return provider.Result{}, err
	}
	s := newSet(len(objects), mode)
	for i, o := range objects {
		if lines[i] < 0 {
			continue
		}
		e := entries[lines[i]]
		what, op := d.describeKey(e, o)
		contents, err := e.contents()
		switch {
		case err != nil:
			s.Clear()
			return provider.Result{}, &provider.Error{Kind: provider.Invalid, Object: what, Op: op, Err: err,
				Remedy: "write it as one string in quotes, or as several keys"}
		case int64(len(contents)) > s.limit():
			clear(contents)
			s.Clear()
			return provider.Result{}, s.tooLarge(what, op, int64(len(contents)))
		}
		if err := s.add(o, what, contents, version); err != nil {
			s.Clear()
			return provider.Result{}, err
		}
	}
	return s.Result, nil
}

// match returns the objects to mount, and for each the index of its entry, -1 for
// an optional one that has none.
func (d *params) match(entries []entry) ([]object, []int, error) {
	if d.objects == nil {
		return d.matchAll(entries)
	}
	byName := make(map[string]int, len(entries))
	for i, e := range entries {
		byName[e.name] = i
	}
	found := make([]int, len(d.objects))
	for i, o := range d.objects {
		at, ok := byName[o.name]
		if !ok && o.Optional {
			at, ok = -1, true
		}
		if !ok {
			return nil, nil, &provider.Error{Kind: provider.NotFound, Object: fmt.Sprintf("object %q", o.name),
				Op: fmt.Sprintf("find it in age file %q", d.path), Err: errors.New("there is no such key"),
				Remedy: "add the key to the file, or correct objectName"}
		}
		found[i] = at
	}
	return d.objects, found, nil
}

// matchAll makes an object of each entry, sorted by name. Its errors give
// lines and no names: with a quote or an indent missing, what reads as a key
// may be part of a value.
func (d *params) matchAll(entries []entry) ([]object, []int, error) {
	fail := func(kind provider.Kind, remedy, format string, args ...any) error {
		return &provider.Error{Kind: kind, Object: fmt.Sprintf("age file %q", d.path), Op: "mount all of its keys",
			Err: fmt.Errorf(format, args...), Remedy: remedy}
	}
	switch {
	case len(entries) == 0:
		return nil, nil, fail(provider.NotFound, "add a key", "it has none")
	case len(entries) > maxObjects:
		return nil, nil, fail(provider.TooLarge, `name those that the pod needs in "objects"`, "it has more than %d", maxObjects)
	}
	found := make([]int, len(entries))
	paths := make([]string, len(entries))
	for i, e := range entries {
		if provider.CheckPath(e.name) != nil {
			return nil, nil, fail(provider.Invalid, `rename it, or name it in "objects" with an objectAlias`, "the key in line %d cannot be a file path", e.line)
		}
		found[i], paths[i] = i, e.name
	}
	if c := clashes(paths); len(c) > 0 {
		return nil, nil, fail(provider.Invalid, `rename one, or name them in "objects" with an objectAlias`,
			"the keys in lines %d and %d exclude each other as file paths", entries[c[0].first].line, entries[c[0].second].line)
	}
	slices.SortFunc(found, func(a, b int) int { return bytes.Compare([]byte(entries[a].name), []byte(entries[b].name)) })
	objects := make([]object, len(entries))
	for i, at := range found {
		objects[i] = object{name: entries[at].name, file: entries[at].name, mode: provider.UnsetMode}
	}
	return objects, found, nil
}

// describeKey returns the object and op of an *Error about the value of e. The
// key is named only where the class does: see matchAll.
func (d *params) describeKey(e entry, o object) (what, op string) {
	op = fmt.Sprintf("read the key in line %d of the plaintext", e.line)
	if d.objects == nil {
		return fmt.Sprintf("age file %q", d.path), op
	}
	return fmt.Sprintf("object %q", o.name), fmt.Sprintf("%s of age file %q", op, d.path)
}

// decrypt returns the plaintext of an age file, armored or not. Its errors name
// the file as what.
func decrypt(sealed []byte, identities []age.Identity, what, identityFile string) ([]byte, error) {
	fail := func(kind provider.Kind, text, remedy string) error {
		return &provider.Error{Kind: kind, Object: what, Op: fmt.Sprintf("decrypt it with the identities of %q", identityFile), Err: errors.New(text), Remedy: remedy}
	}
	var in io.Reader = bytes.NewReader(sealed)
	if bytes.HasPrefix(bytes.TrimSpace(sealed), []byte(armor.Header)) {
		in = armor.NewReader(in)
	}
	out, err := age.Decrypt(in, identities...)
	var noMatch *age.NoIdentityMatchError
	switch {
	case errors.As(err, &noMatch) && slices.Contains(noMatch.StanzaTypes, "scrypt"):
		return nil, fail(provider.Denied, "it is encrypted with a passphrase", "encrypt it to a recipient instead: age-keygen -y shows that of an identity")
	case errors.As(err, &noMatch):
		return nil, fail(provider.Denied, "none of them fits", "encrypt it to one of their recipients, which age-keygen -y shows, or correct identityFile")
	case err != nil:
		return nil, fail(provider.Invalid, "it is no age file, or damaged", "encrypt it again with age")
	}
	// The plaintext is always shorter than the file, so that one buffer will do.
	plain, err := readAll(out, int64(min(len(sealed), maxPlainBytes)), maxPlainBytes)
	switch {
	case errors.Is(err, errTooLarge):
		return nil, fail(provider.TooLarge, fmt.Sprintf("it holds more than %d bytes", maxPlainBytes), "split it")
	case err != nil:
		return nil, fail(provider.Invalid, "it is damaged or cut short", "encrypt it again with age")
	}
	return plain, nil
}

// readIdentities reads a file of age identities, one per line.
func readIdentities(path string) ([]age.Identity, error) {
	what := fmt.Sprintf("identity file %q", path)
	text, _, err := readWhole(path, what, "read it", `create it with age-keygen, or correct the parameter "identityFile"`, maxIdentityBytes)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	fail := func(reason, remedy string) error {
		return &provider.Error{Kind: provider.Invalid, Object: what, Op: "read its identities", Err: errors.New(reason), Remedy: remedy}
	}
	if start := bytes.TrimSpace(text); bytes.HasPrefix(start, ageIntro) || bytes.HasPrefix(start, []byte(armor.Header)) {
		return nil, fail("it is encrypted with a passphrase, and there is nobody to ask for that",
			"decrypt it with age, and let nobody but csi-secrets read the result")
	}
	identities, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		reason := "it holds no identity"
		var line int
		if n, _ := fmt.Sscanf(err.Error(), "error at line %d:", &line); n == 1 {
			reason = fmt.Sprintf("line %d is no identity that age-keygen writes", line)
		}
		return nil, fail(reason, `a line holds one AGE-SECRET-KEY-..., or a comment after "#"`)
	}
	return identities, nil
}

// readWhole reads the file at path, which may be a link, and returns it with
// its version. A file that changes meanwhile is errChanged. The other
// parameters are those of failure.
func readWhole(path, what, op, missing string, limit int64) ([]byte, string, error) {
	f, err := os.OpenFile(path, openFlags, 0)
	if err != nil {
		return nil, "", failure(what, op, err, missing)
	}
	defer f.Close()
	b, before, err := readRegular(f, limit)
	switch {
	case errors.Is(err, errTooLarge):
		return nil, "", &provider.Error{Kind: provider.TooLarge, Object: what, Op: op, Err: fmt.Errorf("it has more than %d bytes", limit), Remedy: "split it"}
	case err != nil:
		return nil, "", failure(what, op, err, missing)
	}
	if info, err := f.Stat(); err != nil || stampOf(info) != before {
		clear(b)
		return nil, "", failure(what, op, errChanged, missing)
	}
	return b, before.version(), nil
}
