// Package sync keeps Kubernetes Secrets as the files of classes are: what a
// SecretProviderClass lists in secretObjects. Build makes a Secret of one set of
// files, Writer brings it to the API server, and Pods does both for the volumes of
// a node. docs/secrets.md is the manual.
package sync

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/derive"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// authoritiesKey is the key of a TLS Secret that has the certificates of
// authorities. secrets-store-csi-driver does not know it.
const authoritiesKey = "ca.crt"

// Wanted is a Secret as it is to be.
type Wanted struct {
	Namespace, Name, Type string
	Labels, Annotations   map[string]string
	Data                  map[string]secret.Value
	// Owners are added to those that the Secret has.
	Owners []metav1.OwnerReference
	// Source is the class, or whatever else, that wants the Secret, and Generation
	// that of its specification: the Data of a higher one is newer.
	Source     string
	Generation int64
	// Changed is when the Data became what it is, by the writer's clock: of the same
	// Generation, the later is the newer.
	Changed time.Time
}

// Clear overwrites the Data with zeros.
func (w Wanted) Clear() {
	for _, v := range w.Data {
		v.Clear()
	}
}

// Terms are the words of those who ask for a Secret, for errors.
type Terms struct {
	// Asker is what asks for it.
	Asker string
	// Path is what says the path of a file, and Where what has the files.
	Path, Where string
}

// terms are those of classes.
func terms(ref class.Ref, o class.SecretObject) Terms {
	return Terms{fmt.Sprintf("class %s: secretObject %q", ref, strings.TrimSpace(o.SecretName)), "objectName", "the pod's volume"}
}

// Build makes a Secret of the files of one set, whose contents it copies, as the class
// asks for it, or whoever else in those terms. Owners, Generation and Changed are left
// to the caller. Errors are *provider.Error of kind Invalid, NotFound or TooLarge, name
// who asks and the key, and quote no value.
func Build(ref class.Ref, t Terms, o class.SecretObject, files []provider.File) (Wanted, error) {
	b := builder{Terms: t, secret: strings.TrimSpace(o.SecretName), files: make(map[string][]byte, len(files))}
	for _, f := range files {
		b.files[f.Path] = f.Contents.Reveal()
	}
	want := Wanted{
		Namespace: ref.Namespace, Name: b.secret, Type: strings.TrimSpace(o.Type),
		Labels: maps.Clone(o.Labels), Annotations: maps.Clone(o.Annotations), Data: map[string]secret.Value{}, Source: ref.Name,
	}
	if err := b.check(want.Type, o.Data); err != nil {
		return Wanted{}, err
	}
	fill := b.raw
	if want.Type == string(corev1.SecretTypeTLS) {
		fill = b.tls
	}
	if err := fill(&want, o.Data); err != nil {
		want.Clear()
		return Wanted{}, err
	}
	size := 0
	for _, v := range want.Data {
		size += v.Len()
	}
	if size > corev1.MaxSecretSize {
		want.Clear()
		return Wanted{}, b.fail("", &provider.Error{Kind: provider.TooLarge, Err: fmt.Errorf("its data has %d bytes, and a Secret holds %d", size, corev1.MaxSecretSize), Remedy: "have pods read the larger files from the volume"})
	}
	return want, nil
}

// builder makes one Secret.
type builder struct {
	Terms
	secret string
	files  map[string][]byte
}

// fail says where e is: at a key, or at none in particular.
func (b *builder) fail(key string, e *provider.Error) error {
	e.Object = b.Asker
	if key != "" {
		e.Object += fmt.Sprintf(", key %q", key)
	}
	return e
}

func (b *builder) invalid(key, remedy, format string, args ...any) error {
	return b.fail(key, &provider.Error{Kind: provider.Invalid, Err: fmt.Errorf(format, args...), Remedy: remedy})
}

// check tells what is wrong before a file is looked at.
func (b *builder) check(kind string, data []class.SecretObjectData) error {
	switch {
	case b.secret == "":
		return b.invalid("", "write the name of the Secret", "secretName is missing")
	case len(validation.IsDNS1123Subdomain(b.secret)) > 0:
		return b.invalid("", "write lower-case letters, digits, - and .", "secretName is no legal name of a Secret")
	case kind == "":
		return b.invalid("", "write Opaque, or another type of Secret", "type is missing")
	case kind == string(corev1.SecretTypeServiceAccountToken):
		// Whoever can write a class could have Kubernetes put the token of any service
		// account of the namespace into it (see CVE-2026-42876 of External Secrets).
		return b.invalid("", "write Opaque", "Kubernetes fills Secrets of the type %s with tokens of its own, so none is made", kind)
	case len(data) == 0:
		return b.invalid("", "list at least one "+b.Path+" with its key", "data is empty")
	}
	for i, d := range data {
		key := strings.TrimSpace(d.Key)
		switch {
		case key == "":
			return b.invalid("", "write the key that the Secret is to have", "data entry %d has no key", i+1)
		case len(validation.IsConfigMapKey(key)) > 0:
			return b.invalid(key, "write letters, digits, -, _ and .", "it is not a legal key of a Secret")
		case strings.TrimSpace(d.ObjectName) == "":
			return b.invalid(key, "write the path of a file in "+b.Where, "%s is missing", b.Path)
		}
	}
	return nil
}

// file returns the contents of the file for a key.
func (b *builder) file(d class.SecretObjectData) (key string, contents []byte, err error) {
	key, name := strings.TrimSpace(d.Key), strings.TrimSpace(d.ObjectName)
	contents, ok := b.files[name]
	if !ok {
		return "", nil, b.fail(key, &provider.Error{Kind: provider.NotFound, Err: fmt.Errorf("file matching %s %s not found in %s", b.Path, name, b.Where), Remedy: "write the path that the file has there, its objectAlias where it has one, or have the class fetch it"})
	}
	return key, contents, nil
}

func (b *builder) raw(want *Wanted, data []class.SecretObjectData) error {
	for _, d := range data {
		key, contents, err := b.file(d)
		if err != nil {
			return err
		}
		want.set(key, bytes.Clone(contents))
	}
	return nil
}

// set has contents as the data of a key. Of two entries with one key the last
// counts, as with secrets-store-csi-driver.
func (w *Wanted) set(key string, contents []byte) {
	w.Data[key].Clear()
	w.Data[key] = secret.New(contents)
}

// tls makes a TLS Secret, whose certificate and key must belong together.
func (b *builder) tls(want *Wanted, data []class.SecretObjectData) error {
	parts := map[string][]byte{}
	for _, d := range data {
		key, contents, err := b.file(d)
		if err != nil {
			return err
		}
		switch key {
		case corev1.TLSCertKey, corev1.TLSPrivateKeyKey:
			parts[key] = contents
		case authoritiesKey:
			authorities, err := derive.Authorities(contents)
			if err != nil {
				return b.cut(key, err)
			}
			want.set(key, authorities)
		default:
			return b.invalid(key, "write one of these, or another type than "+want.Type, "a TLS Secret has the keys %s, %s and %s only", corev1.TLSCertKey, corev1.TLSPrivateKeyKey, authoritiesKey)
		}
	}
	for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		if _, ok := parts[key]; !ok {
			return b.invalid(key, "add it to data; both may be of one file", "a TLS Secret needs it")
		}
	}
	chain, private, err := derive.TLS(parts[corev1.TLSCertKey], parts[corev1.TLSPrivateKeyKey])
	if err != nil {
		return b.cut(corev1.TLSCertKey+" and "+corev1.TLSPrivateKeyKey, err)
	}
	want.set(corev1.TLSCertKey, chain)
	want.set(corev1.TLSPrivateKeyKey, private)
	return nil
}

// cut places an error of package derive.
func (b *builder) cut(key string, err error) error {
	var known *provider.Error
	if !errors.As(err, &known) {
		return b.invalid(key, "correct what the store holds", "it cannot be read")
	}
	placed := *known
	return b.fail(key, &placed)
}
