package vault

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
)

// maxObjects bounds the objects of one class.
const maxObjects = 512

// defaultOverlap is how long a credential that was replaced stays valid, where
// its own end does not come first.
const defaultOverlap = 5 * time.Minute

// params is what a class asks for.
type params struct {
	conn  connection
	mount string // of the auth method
	role  string
	// audiences are those of the tokens that will do, the best first.
	audiences []string
	overlap   time.Duration
	objects   []object
}

// object is one entry of the class.
type object struct {
	provider.Object
	id      string // objectName
	request request
	key     string // secretKey; empty for the whole answer
	all     bool   // a file for each key
	// find is set where the request names a folder, and the objects below it are
	// meant; found, of such an object once it is known.
	find  *provider.Find
	found bool
}

// request is what is asked of the server for an object. Objects with the same
// one share its answer.
type request struct {
	method string
	path   string // with v1/
	query  string // encoded, in order
	body   string // JSON; empty for none
}

func (r request) String() string {
	path := strings.TrimPrefix(r.path, "v1/")
	if r.query != "" {
		path += "?" + r.query
	}
	if r.method == "GET" {
		return path
	}
	return r.method + " " + path
}

// spelling is how a class may write a parameter.
type spelling struct {
	p *provider.Params
	// prefixes are those of a parameter that is named vault… here, in the order in
	// which they count.
	prefixes []string
}

// optional returns the parameter vaultNAME, and the key that gives it.
func (s spelling) optional(name string) (value, key string) {
	for _, prefix := range s.prefixes {
		if v := s.p.Optional(prefix + name); v != "" && value == "" {
			value, key = v, prefix+name
		}
	}
	if key == "" {
		key = s.prefixes[len(s.prefixes)-1] + name
	}
	return value, key
}

func (s spelling) bool(name string) bool {
	set := false
	for _, prefix := range s.prefixes {
		set = s.p.Bool(prefix+name) || set
	}
	return set
}

// decode reads the class's parameters and reports to p what is wrong with them.
func (v *Provider) decode(p *provider.Params) *params {
	s := spelling{p, v.flavour.prefixes}
	d := &params{conn: v.defaults, mount: v.mount, overlap: defaultOverlap}
	if audience := p.Optional("audience"); audience != "" {
		d.audiences = []string{audience}
	} else {
		// Roles of old have no audience: their tokens are the API server's own.
		d.audiences = append([]string{v.flavour.name}, login.APIServerAudiences...)
	}
	if d.role = p.Optional("roleName"); v.flavour.name != Vault.name {
		if role, _ := s.optional("RoleName"); role != "" {
			d.role = role
		}
	}
	if d.role == "" {
		p.Required("roleName", "name the role of the auth method that is bound to the pod's service account")
	}
	for name, field := range map[string]*string{
		"Address": &d.conn.Address, "Namespace": &d.conn.Namespace, "CACertPath": &d.conn.CACertPath, "CADirectory": &d.conn.CADirectory,
		"CAPem": &d.conn.CAPem, "TLSServerName": &d.conn.ServerName, "TLSClientCertPath": &d.conn.ClientCertPath, "TLSClientKeyPath": &d.conn.ClientKeyPath,
	} {
		if value, _ := s.optional(name); value != "" {
			*field = value
		}
	}
	if _, key := s.optional("Address"); d.conn.Address == "" {
		p.Report(provider.Problem{Key: key, What: "it is missing", Remedy: "write the server's URL, as in https://vault.example.com:8200, or give the driver one for all classes"})
	} else if err := checkAddress(d.conn.Address); err != nil {
		p.Report(provider.Problem{Key: key, What: err.Error(), Remedy: "write a URL, as in https://vault.example.com:8200"})
	}
	if s.bool("SkipTLSVerify") {
		d.conn.SkipVerify = true
	}
	if (d.conn.ClientCertPath == "") != (d.conn.ClientKeyPath == "") {
		_, key := s.optional("TLSClientKeyPath")
		p.Report(provider.Problem{Key: key, What: "the client's certificate and its key go together, and one is missing", Remedy: "give both, or neither"})
	}
	mount, _ := s.optional("AuthMountPath")
	older, key := s.optional("KubernetesMountPath")
	switch {
	case mount != "" && older != "":
		p.Report(provider.Problem{Key: key, What: "cannot set both vaultKubernetesMountPath and vaultAuthMountPath", Remedy: "remove vaultKubernetesMountPath"})
	case mount+older != "":
		d.mount = mount + older
	}
	d.mount = strings.Trim(d.mount, "/")
	if text := p.Optional("leaseOverlap"); text != "" {
		var err error
		if d.overlap, err = time.ParseDuration(text); err != nil || d.overlap < 0 || d.overlap > 24*time.Hour {
			p.Report(provider.Problem{Key: "leaseOverlap", What: fmt.Sprintf("%.40q is not a duration from 0s to 24h", text), Remedy: "write it as in 5m"})
		}
	}
	d.decodeObjects(p)
	return d
}

func checkAddress(address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return fmt.Errorf("it is not a URL")
	case u.User != nil:
		return fmt.Errorf("it has a user name or password in it")
	case u.Scheme == "unix" && strings.HasPrefix(u.Path, "/"):
		return nil
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return fmt.Errorf("%.200q is not the URL of a server", address)
	}
	return nil
}

func (d *params) decodeObjects(p *provider.Params) {
	const key = "objects"
	p.Required(key, `write a list: "- objectName: FILE" with secretPath and secretKey`)
	items := p.Objects(key)
	if len(items) > maxObjects {
		p.Report(provider.Problem{Key: key, What: fmt.Sprintf("it lists %d objects, more than %d", len(items), maxObjects), Remedy: "split them over several classes"})
		return
	}
	names := map[string]int{}
	for i, it := range items {
		o := object{find: it.Find(), id: it.Optional("objectName"), key: it.Optional("secretKey"), all: it.Bool("allKeys")}
		if o.find == nil {
			it.SetName(it.Required("objectName", "name the file in the volume"))
		}
		o.Object = provider.Object{Name: fmt.Sprintf("object %q", o.id), Path: o.id, Mode: it.YAMLMode("filePermission"), Options: it.Options()}
		it.Path("objectName", o.id)
		if other, taken := names[o.id]; taken && o.id != "" {
			it.Report("objectName", fmt.Sprintf("entry %d has the same", other+1), "each objectName within a SecretProviderClass must be unique")
		}
		names[o.id] = i
		if o.all && o.key != "" {
			it.Report("allKeys", "it excludes secretKey", "remove one of them")
		}
		if o.key == "" && o.JSONKey == "" && o.YAMLKey == "" && !o.all {
			o.Encoding = provider.EncodingNone // of an answer's JSON it never meant anything
		}
		o.request = decodeRequest(it)
		if o.find != nil {
			o.Name = o.find.String()
			if r := o.request; r.method != "GET" || r.query != "" {
				it.Report(provider.FindField, "what is found is read as it is", "remove method, and the query of secretPath")
			}
		}
		d.objects = append(d.objects, o)
	}
}

// methods are those that a class may ask with: it is to read, or to have
// something made, and not to remove.
var methods = []string{"GET", "PUT", "POST", "LIST"}

func decodeRequest(it *provider.Item) request {
	r := request{method: strings.ToUpper(it.Optional("method"))}
	if r.method == "" {
		r.method = "GET"
	}
	if !slices.Contains(methods, r.method) {
		it.Report("method", fmt.Sprintf("%.20q is none of %s", r.method, strings.Join(methods, ", ")), "correct it")
	}
	path, query, _ := strings.Cut(it.Required("secretPath", "write the path of the secret, as in secret/data/db"), "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		it.Report("secretPath", "what follows the question mark is not a query", "write it as in ?version=2")
	}
	r.query = values.Encode()
	if path = strings.Trim(path, "/"); path != "v1" && !strings.HasPrefix(path, "v1/") {
		path = "v1/" + path
	}
	r.path = path
	args := it.Value("secretArgs")
	if _, isMap := args.(map[string]any); args != nil && !isMap {
		it.Report("secretArgs", "it is not a map", "write the arguments' names and values below each other")
	} else if args != nil && r.method != "GET" && r.method != "LIST" { // no server reads a body there
		body, err := json.Marshal(args)
		if err != nil {
			it.Report("secretArgs", "it cannot be written as JSON", "correct it")
		}
		r.body = string(body)
	}
	return r
}

// path returns the file of a key of the object's secret.
func (o object) path(key string) string { return o.id + "/" + key }
