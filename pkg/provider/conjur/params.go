package conjur

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// maxObjects bounds the objects of one volume.
const maxObjects = 1024

// The parameters of a class, named as CyberArk's own provider names them. The
// annotation of a pod holds the same as the parameter secrets.
const (
	accountKey     = "account"
	urlKey         = "applianceUrl"
	authnKey       = "authnId"
	identityKey    = "identity"
	certificateKey = "sslCertificate"
	versionKey     = "conjur.org/configurationVersion"
	secretsKey     = "secrets"
	annotation     = "conjur.org/secrets"
)

const secretsRemedy = `write a list: - "FILE": "POLICY/PATH/VARIABLE"`

// class is what a SecretProviderClass says.
type class struct {
	address     string // without a slash at its end
	account     string
	service     string // of the authenticator authn-jwt
	identity    string // the host, or empty where the token names it
	certificate string // PEM, or empty for the public CAs
	annotated   bool   // the pod's annotation comes first
	objects     []object
}

// object is a variable, and the file that it becomes.
type object struct {
	variable string
	provider.Object
}

// decode reads the class's parameters and reports to p what is wrong with them.
func decode(p *provider.Params) *class {
	c := &class{identity: p.Optional(identityKey)}
	c.address = decodeAddress(p)
	if c.account = "conjur"; p.Optional(accountKey) != "" || !isCloud(c.address) {
		c.account = p.Required(accountKey, "name Conjur's account, that of its policies")
	}
	c.service = decodeService(p)
	c.certificate = p.Optional(certificateKey)
	checkCertificates(p, c.certificate)
	switch version := p.Optional(versionKey); version {
	case "", "0.2.0":
		c.annotated = true
	case "0.1.0":
		p.Required(secretsKey, secretsRemedy)
	default:
		p.Report(provider.Problem{Key: versionKey, What: fmt.Sprintf("%q is neither 0.1.0 nor 0.2.0", version), Remedy: "correct it, or remove it for 0.2.0"})
	}
	c.objects = decodeObjects(p, secretsKey)
	return c
}

func decodeAddress(p *provider.Params) string {
	const remedy = "write it as in https://conjur.example.com"
	text := p.Required(urlKey, remedy)
	if text == "" {
		return ""
	}
	address, err := url.Parse(text)
	problem := ""
	switch {
	case err != nil:
		problem = "it is not a URL" // the parser's error may show a password
	case address.Scheme != "https" && address.Scheme != "http" || address.Hostname() == "":
		problem = "it is not a URL that begins with https://"
	case address.User != nil, address.RawQuery != "", address.ForceQuery, address.Fragment != "":
		problem = "it has more than a host, a port and a path"
	}
	if problem != "" {
		p.Report(provider.Problem{Key: urlKey, What: problem, Remedy: remedy})
		return ""
	}
	if address.Scheme == "http" {
		// CyberArk's provider takes it, and the classes of its manual have it.
		p.Report(provider.Problem{Key: urlKey, What: "it begins with http://, by which the pod's token and all values travel in the clear", Remedy: remedy, Unknown: true})
	}
	text = strings.TrimRight(address.String(), "/")
	if isCloud(text) && !strings.Contains(address.Path, "/api") {
		text += "/api" // as CyberArk's own client has it
	}
	return text
}

// isCloud tells whether the address is of CyberArk's service.
func isCloud(address string) bool {
	parsed, err := url.Parse(address)
	return err == nil && strings.HasSuffix(strings.ToLower(parsed.Hostname()), ".cyberark.cloud")
}

func decodeService(p *provider.Params) string {
	const prefix, remedy = "authn-jwt/", "write authn-jwt/ and the authenticator's service id"
	id := p.Required(authnKey, remedy)
	service := strings.TrimPrefix(id, prefix)
	if id == prefix || service == id && strings.HasPrefix(id, "authn-") && strings.Contains(id, "/") {
		p.Report(provider.Problem{Key: authnKey, What: fmt.Sprintf("%q is no authn-jwt authenticator, the only kind that takes a pod's token", id), Remedy: remedy})
	}
	// CyberArk's own provider sends it as it is, so that one with a slash is
	// written escaped.
	if plain, err := url.PathUnescape(service); err == nil {
		return plain
	}
	return service
}

func checkCertificates(p *provider.Params, text string) {
	if text != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(text)) {
		p.Report(provider.Problem{Key: certificateKey, What: "it holds no certificate in PEM", Remedy: "write the certificate of Conjur, or of the CA that signed it"})
	}
}

// The fields of an entry in our own form.
const (
	nameField  = "objectName"
	aliasField = "objectAlias"
	modeField  = "filePermission"
)

var fields = []string{nameField, aliasField, modeField, provider.OptionalField, provider.EncodingField, provider.ExtractJSONField, provider.ExtractYAMLField}

// decodeObjects reads a list of entries. As CyberArk's provider has it, each key
// of an entry is a file and its value a variable, also where the file is called
// objectName; an entry with objectName and further fields is in our own form.
func decodeObjects(p *provider.Params, key string) []object {
	var objects []object
	for i, it := range p.Objects(key) {
		keys := it.Keys()
		if len(keys) > 1 && slices.Contains(keys, nameField) {
			objects = append(objects, decodeOwn(it, keys))
			continue
		}
		for _, file := range keys {
			if it.SetName(file); file == "" {
				it.Report(file, "it names no file", "write the file's path before the colon")
			}
			variable := it.Required(file, "name the variable of the file")
			objects = append(objects, newObject(it, file, file, variable))
			if file == nameField {
				p.Report(provider.Problem{Key: key, Item: fmt.Sprintf("entry %d", i+1), Field: file, Unknown: true,
					What: fmt.Sprintf("alone, it is the file %q of the variable %q", file, variable), Remedy: "add " + aliasField + " to name the file, if that is not what you mean"})
			}
		}
	}
	problem := ""
	var paths []string
	for _, o := range objects {
		if provider.CheckPath(o.Path) == nil {
			paths = append(paths, o.Path)
		}
	}
	if err := provider.CheckPaths(paths); err != nil {
		problem = err.Error()
	} else if len(objects) > maxObjects {
		problem = fmt.Sprintf("it lists %d files, more than %d", len(objects), maxObjects)
	} else if len(objects) == 0 && p.Optional(key) != "" && p.Err() == nil {
		problem = "it lists nothing"
	}
	if problem != "" {
		p.Report(provider.Problem{Key: key, What: problem, Remedy: "correct the list"})
	}
	return objects
}

func decodeOwn(it *provider.Item, keys []string) object {
	variable := it.Required(nameField, "name a variable")
	it.SetName(variable)
	file, field := it.Optional(aliasField), aliasField
	if file == "" {
		file, field = variable, nameField
	}
	o := newObject(it, field, file, variable)
	o.Mode, o.Options = it.Mode(modeField, provider.UnsetMode), it.Options()
	for _, key := range keys {
		if !slices.Contains(fields, key) {
			it.Report(key, "an entry with "+nameField+" has no such field", "correct its spelling, or give the file an entry of its own")
		}
	}
	return o
}

// newObject checks the file's path, which field holds. As secrets-store-csi-driver
// has it, that need not be in its shortest form.
func newObject(it *provider.Item, field, file, variable string) object {
	if file != "" && !slices.Contains(strings.Split(file, "/"), "..") {
		file = path.Clean(file)
	}
	it.Path(field, file)
	return object{variable, provider.Object{Name: named(variable), Path: file, Mode: provider.UnsetMode}}
}

// named is what errors call a variable.
func named(variable string) string { return fmt.Sprintf("variable %q", variable) }

// mapping returns what the volume is to hold: from 0.2.0 on that of the pod's
// annotation, and of the class where there is none, or no way to read it.
func (c *class) mapping(ctx context.Context, req provider.Request) ([]object, error) {
	if !c.annotated {
		return c.objects, nil
	}
	failure := &provider.Error{Kind: provider.Denied, Object: fmt.Sprintf("pod %s/%s", req.Pod.Namespace, req.Pod.Name),
		Err:    fmt.Errorf("its annotation %q cannot be read: csi-secrets may not read pods here", annotation),
		Remedy: fmt.Sprintf("give it the right (chart: conjur.podAnnotations=true), or write the list into the class, as its parameter %q", secretsKey)}
	if req.Annotations != nil {
		annotations, err := req.Annotations(ctx)
		text := annotations[annotation]
		switch kind := provider.KindOf(err); {
		case err != nil && (len(c.objects) == 0 || kind != provider.Denied && len(req.Mounted) > 0):
			// The files of the pod must not be exchanged for the class's because the
			// API server is away.
			failure.Kind, failure.Err = kind, fmt.Errorf("its annotation %q cannot be read: %w", annotation, err)
			return nil, failure
		case strings.TrimSpace(text) != "":
			objects, err := decodeAnnotation(text)
			if err != nil {
				failure.Kind, failure.Err, failure.Remedy = provider.Invalid, err, ""
				return nil, failure
			}
			return objects, nil
		}
		failure.Kind, failure.Err, failure.Remedy = provider.Invalid, fmt.Errorf("it has no annotation %q, and its class no parameter %q", annotation, secretsKey), "in one of them, "+secretsRemedy
	}
	if len(c.objects) == 0 {
		return nil, failure
	}
	return c.objects, nil
}

// decodeAnnotation reads the value of the pod's annotation. The error names the
// annotation.
func decodeAnnotation(text string) ([]object, error) {
	reader := provider.NewParams(map[string]string{annotation: text})
	objects := decodeObjects(reader, annotation)
	var errs []error
	for _, problem := range reader.Problems() {
		if !problem.Unknown {
			errs = append(errs, errors.New("annotation"+strings.TrimPrefix(problem.Error(), "parameter")))
		}
	}
	return objects, errors.Join(errs...)
}
