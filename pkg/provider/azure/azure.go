// Package azure is the provider of Azure Key Vault: secrets, keys and
// certificates, read with the pod's own identity, or one of the node or of a
// service principal. It takes the classes of Microsoft's own provider as they are.
// README.md is its manual.
//
// The protocol is the work of Microsoft's SDK and of MSAL, its library for logins.
// What they would ask for anew each time is answered here where it is known: the
// challenge of a vault (transport) and the endpoints of Entra ID (directory).
package azure

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/log"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// Config is what the whole driver does alike.
type Config struct {
	// ConstructPEMChain orders the certificates of a PFX from leaf to root.
	ConstructPEMChain bool
	// SeparateFiles writes the secret of a certificate also as FILE.crt and
	// FILE.key.
	SeparateFiles bool
	// TokenProxy is that of AKS, for identity bindings; zero for none.
	TokenProxy TokenProxy
	// Transport makes the transports; nil for web.Transport.
	Transport func(*tls.Config) *http.Transport
}

// Provider reads key vaults. Between two calls it holds tokens, each for those
// alone who can log in alike, and no value. It is safe for concurrent use.
type Provider struct {
	config       Config
	sessions     login.Cache[*session]
	refusals     login.Refusals
	transport    http.RoundTripper // of vaults
	entra        *http.Client
	metadata     *http.Client // of the node's managed identities
	proxy        *url.URL     // that of AKS; nil for none
	proxyClients web.Clients  // by the proxy's CA
}

var (
	_ provider.Provider  = (*Provider)(nil)
	_ provider.Validator = (*Provider)(nil)
	_ provider.Sharer    = (*Provider)(nil)
	_ provider.Located   = (*Provider)(nil)
)

// New returns a Provider. The SDK's log, which is of the process and shows the
// answers to failed requests, is switched off.
func New(config Config) (*Provider, error) {
	log.SetListener(nil)
	if config.Transport == nil {
		config.Transport = web.Transport
	}
	p := &Provider{config: config}
	var err error
	if p.proxy, err = config.TokenProxy.parse(); err != nil {
		return nil, err
	}
	p.transport = link{web.Polite{RoundTripper: config.Transport(&tls.Config{MinVersion: tls.VersionTLS12})}}
	p.entra = &http.Client{Transport: directory{p.transport}, CheckRedirect: web.StayThere}
	direct := config.Transport(nil)
	direct.Proxy = nil // the address is the machine's own
	p.metadata = &http.Client{Transport: link{direct}, CheckRedirect: web.StayThere}
	p.proxyClients.Dial = p.dialProxy
	return p, nil
}

// Validate tells what is wrong with a class's parameters.
func (p *Provider) Validate(parameters map[string]string) []provider.Problem {
	reader := provider.NewParams(parameters)
	decode(reader)
	return reader.Problems()
}

// Fetch reads each object that the class names once, all at the same time. On a
// refresh it asks which versions are the newest, and reads what has changed.
func (p *Provider) Fetch(ctx context.Context, req provider.Request) (provider.Result, error) {
	c, who, err := p.understand(ctx, req)
	if err != nil {
		return provider.Result{}, err
	}
	f := &fetch{conn: conn{p, c, who}, req: req}
	if err := f.plan(ctx); err != nil {
		return provider.Result{}, err
	}
	defer f.clear()
	if err := f.readVersions(ctx); err != nil {
		return provider.Result{}, err
	}
	result := provider.Result{Versions: f.versions()}
	if req.Current != nil && len(req.Mounted) > 0 && slices.Equal(result.Versions, req.Mounted) {
		return provider.Result{NotModified: true}, nil
	}
	if err := f.readMissing(ctx); err != nil {
		return provider.Result{}, err
	}
	result.Versions = f.versions() // one that may be missing may have turned out to be
	if result.Files, err = f.files(); err != nil {
		return provider.Result{}, err
	}
	return result, nil
}

// understand returns what a request's class says, and who asks.
func (p *Provider) understand(ctx context.Context, req provider.Request) (*class, *identity, error) {
	reader := provider.NewParams(req.Parameters)
	c := decode(reader)
	err := reader.Err()
	if err == nil && c.cloudFile != "" {
		c.cloud, err = readCloud(c.cloudFile)
	}
	if err != nil {
		return nil, nil, err
	}
	who, err := p.identity(ctx, c, req)
	return c, who, err
}

// Store names the key vault, which has its own limits.
func (p *Provider) Store(parameters map[string]string) (string, bool) {
	reader := provider.NewParams(parameters)
	decode(reader)
	return strings.ToLower(parameters[cloudKey] + " " + strings.TrimSpace(parameters[vaultKey])), reader.Err() == nil
}

// Identity returns the key of the identity's token.
func (p *Provider) Identity(ctx context.Context, req provider.Request) (string, bool) {
	_, who, err := p.understand(ctx, req)
	if err != nil {
		return "", false
	}
	return who.key, true
}

// fetch is one call of Fetch.
type fetch struct {
	conn
	req   provider.Request
	items []item
	reads []*read
}

// item is an object of a volume: one file, or three of a certificate.
type item struct {
	object
	read *read
	kept []provider.File // those that the volume holds of this version
}

// read is a version of an object, which several items may need.
type read struct {
	object         // the first that needs it
	current string // the version, once it is known
	answer  *answer
	err     error // why there is none
}

// plan finds out which objects and versions the class means.
func (f *fetch) plan(ctx context.Context) error {
	found := make([][]object, len(f.objects))
	err := provider.Together(ctx, len(f.objects), func(ctx context.Context, i int) error {
		named, err := f.named(ctx, f.objects[i])
		if err == nil {
			found[i], err = f.historyOf(ctx, named)
		}
		return f.objects[i].Failure(err)
	})
	if err != nil {
		return err
	}
	var paths []string
	known := map[[4]string]*read{}
	for _, o := range slices.Concat(found...) {
		key := [4]string{o.vault, o.kind, o.name, o.version}
		if known[key] == nil {
			known[key] = &read{object: o}
			f.reads = append(f.reads, known[key])
		}
		f.items = append(f.items, item{object: o, read: known[key]})
		paths = append(paths, o.Path)
	}
	if err := provider.CheckPaths(paths); err != nil {
		return &provider.Error{Kind: provider.Invalid, Object: fmt.Sprintf("parameter %q", objectsKey), Err: err, Remedy: "correct what it finds"}
	}
	if len(f.items) > maxObjects {
		return &provider.Error{Kind: provider.TooLarge, Object: fmt.Sprintf("parameter %q", objectsKey), Err: fmt.Errorf("it stands for %d files, more than %d", len(f.items), maxObjects), Remedy: "split them over several classes"}
	}
	return nil
}

// named returns the objects that an entry finds, or the one that it names.
func (f *fetch) named(ctx context.Context, o object) ([]object, error) {
	if o.find == nil {
		return []object{o}, nil
	}
	names, err := o.find.Gather(func(offer func(string, map[string]string) error) error {
		return f.call(ctx, o.vault, "list the "+noun(o.kind)+"s", func(ctx context.Context, c *client) error {
			return c.list(ctx, o.kind, "", func(all []properties, _ bool) error {
				for _, each := range all {
					if !each.enabled {
						continue
					}
					if err := offer(each.name, each.tags); err != nil {
						return err
					}
				}
				return nil
			})
		})
	})
	var found []object
	for _, name := range names {
		each := o
		each.name, each.id, each.Object.Name = name, o.id+name, fmt.Sprintf("%s %q", noun(o.kind), name)
		if each.Path, err = o.find.Path(o.Path, name); err != nil {
			return nil, err
		}
		found = append(found, each)
	}
	return found, err
}

// historyOf returns the versions that objects of an entry stand for, where those
// are several or of a time past. A history has one more than the class says, as
// Microsoft's provider has it.
func (f *fetch) historyOf(ctx context.Context, all []object) ([]object, error) {
	if len(all) == 0 || !all[0].historical() && all[0].notAfter.IsZero() {
		return all, nil
	}
	found := make([][]object, len(all))
	err := provider.Together(ctx, len(all), func(ctx context.Context, i int) error {
		o := all[i]
		var versions []properties
		err := f.call(ctx, o.vault, "list its versions", func(ctx context.Context, c *client) error {
			versions = nil
			return c.list(ctx, o.kind, o.name, func(page []properties, _ bool) error {
				versions = append(versions, page...)
				return nil
			})
		})
		for number, version := range latest(versions, o) {
			each := o
			each.version = version
			if o.historical() {
				each.Path, each.id = path.Join(o.Path, strconv.Itoa(number)), fmt.Sprintf("%s/%d", o.id, number)
			}
			found[i] = append(found[i], each)
		}
		if err == nil && len(found[i]) == 0 {
			err = &provider.Error{Kind: provider.NotFound, Op: "list its versions", Err: fmt.Errorf("the vault %q has none that is enabled and fits", o.vault), Remedy: statusRemedies[http.StatusNotFound]}
		}
		return o.Failure(err)
	})
	return slices.Concat(found...), err
}

// latest returns those of versions that o stands for, from the newest on.
func latest(versions []properties, o object) []string {
	count := 1
	if o.historical() {
		count = o.history + 1
	}
	slices.SortStableFunc(versions, func(a, b properties) int { return b.created.Compare(a.created) })
	var ids []string
	for _, v := range versions {
		if !v.enabled || len(ids) == count || !o.notAfter.IsZero() && v.created.After(o.notAfter) {
			continue
		}
		if len(ids) > 0 || o.version == "" || v.version == o.version {
			ids = append(ids, v.version)
		}
	}
	return ids
}

// mounted returns the version of an id that the volume holds. It is empty where
// there is none, where two objects share the id, and on a first publish.
func (f *fetch) mounted(id string) string {
	version := ""
	if f.req.Current == nil {
		return ""
	}
	for _, m := range f.req.Mounted {
		if m.ID == id && version != "" && m.Version != version {
			return ""
		}
		if m.ID == id {
			version = m.Version
		}
	}
	return version
}

// readVersions finds the version of each object. On a first publish that is to
// read it; later, a version that the class names is known, the newest version of
// a secret can be asked for without its value, and what else there is is public.
func (f *fetch) readVersions(ctx context.Context) error {
	var asked, others []*read
	for _, r := range f.reads {
		_, held := f.held(r.object, r.version)
		switch {
		case held:
			r.current = r.version
		case r.kind == secretKind && r.version == "" && f.mounted(r.id) != "":
			asked = append(asked, r)
		default:
			others = append(others, r)
		}
	}
	if len(asked) > 1 { // the first tells whether the identity may ask at all
		if err := f.readVersion(ctx, asked[0]); err != nil {
			return err
		}
		asked = asked[1:]
	}
	err := provider.Together(ctx, len(asked), func(ctx context.Context, i int) error { return f.readVersion(ctx, asked[i]) })
	if err != nil {
		return err
	}
	return f.readAll(ctx, others)
}

// readVersion finds the newest version of a secret, without its value if that can be.
func (f *fetch) readVersion(ctx context.Context, r *read) (err error) {
	if r.current, err = f.newest(ctx, r); err != nil {
		return r.Failure(err)
	}
	if r.current == "" {
		return f.readOne(ctx, r)
	}
	return nil
}

var errEnough = errors.New("no more pages are needed")

// newest returns the newest version of a secret by the list of its versions, which
// costs as much as to read it. It is empty where that does not tell: without the
// right to list, with more than one page of versions, with two of one second or
// with one that is disabled.
func (f *fetch) newest(ctx context.Context, r *read) (string, error) {
	right := login.Key(f.key, r.vault)
	short := login.Key(f.key, r.vault, r.name)
	if f.refusals.Has(right) || f.refusals.Has(short) {
		return "", nil
	}
	var versions []properties
	whole := false
	err := f.call(ctx, r.vault, "list its versions", func(ctx context.Context, c *client) error {
		err := c.list(ctx, r.kind, r.name, func(page []properties, last bool) error {
			versions, whole = page, last
			return errEnough
		})
		if errors.Is(err, errEnough) {
			err = nil
		}
		return err
	})
	switch kind := provider.KindOf(err); {
	case err != nil && kind == provider.Denied:
		f.refusals.Note(right)
		return "", nil
	case err != nil && kind != provider.NotFound:
		return "", err
	case err == nil && !whole:
		f.refusals.Note(short)
		return "", nil
	}
	var newest properties
	once := false
	for _, v := range versions {
		switch v.created.Compare(newest.created) {
		case 1:
			newest, once = v, true
		case 0:
			once = false
		}
	}
	if !once || !newest.enabled {
		return "", nil
	}
	return newest.version, nil
}

// readMissing reads what the volume does not hold.
func (f *fetch) readMissing(ctx context.Context) error {
	var missing []*read
	for i := range f.items {
		it := &f.items[i]
		if it.read.answer == nil && it.read.err == nil && !f.keep(it) && !slices.Contains(missing, it.read) {
			missing = append(missing, it.read)
		}
	}
	return f.readAll(ctx, missing)
}

// readAll reads objects. Which are missing or refused is told when all were asked
// for; any other error concerns all, and ends it.
func (f *fetch) readAll(ctx context.Context, all []*read) error {
	err := provider.Together(ctx, len(all), func(ctx context.Context, i int) error { return f.readOne(ctx, all[i]) })
	if err != nil {
		return err
	}
	var errs []error
	for _, it := range f.items {
		errs = append(errs, it.Failure(it.read.err))
	}
	return provider.Join(errs)
}

// readOne reads an object, in the version that is known.
func (f *fetch) readOne(ctx context.Context, r *read) error {
	const op = "read it"
	version := r.version
	if version == "" {
		version = r.current
	}
	var found answer
	err := f.call(ctx, r.vault, op, func(ctx context.Context, c *client) (err error) {
		found, err = c.get(ctx, r.kind, r.name, version)
		return err
	})
	if err == nil {
		r.answer, r.current = &found, found.version
		return nil
	}
	var failure *provider.Error
	if errors.As(err, &failure) && failure.Op == op {
		switch failure.Kind {
		case provider.NotFound, provider.Denied, provider.Invalid:
			r.err = err
			return nil
		}
	}
	return r.Failure(err)
}

// versions returns the versions of all objects, in the order of the class.
func (f *fetch) versions() []provider.ObjectVersion {
	var all []provider.ObjectVersion
	for _, it := range f.items {
		if v := (provider.ObjectVersion{ID: it.id, Version: it.read.current}); it.read.err == nil && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

// held returns the path at which the volume holds a version of an object. Those of
// a history may lie under another number.
func (f *fetch) held(o object, version string) (string, bool) {
	if version == "" {
		return "", false
	}
	if !o.historical() {
		return o.Path, f.mounted(o.id) == version
	}
	for i := range o.history + 1 {
		number := strconv.Itoa(i)
		if f.mounted(path.Join(path.Dir(o.id), number)) == version {
			return path.Join(path.Dir(o.Path), number), true
		}
	}
	return "", false
}

// The ends of the further files of a certificate.
const (
	certEnd = ".crt"
	keyEnd  = ".key"
)

// keep takes the files of an item from the volume, if it holds them in this
// version.
func (f *fetch) keep(it *item) bool {
	at, ok := f.held(it.object, it.read.current)
	if !ok {
		return false
	}
	contents, ok := f.req.Current(at)
	if !ok {
		return false
	}
	it.kept = append(it.kept, f.keptFile(it, "", contents))
	for _, end := range []string{certEnd, keyEnd} {
		if !f.config.SeparateFiles {
			break
		}
		if contents, ok := f.req.Current(at + end); ok {
			it.kept = append(it.kept, f.keptFile(it, end, contents))
		}
	}
	return true
}

func (f *fetch) keptFile(it *item, end string, contents secret.Value) provider.File {
	mode := it.Mode
	if mode == provider.UnsetMode {
		mode = f.req.Mode
	}
	return provider.File{Path: it.Path + end, Mode: mode, Contents: contents}
}

// files makes the files of all objects.
func (f *fetch) files() ([]provider.File, error) {
	var all []provider.File
	for i := range f.items {
		it := &f.items[i]
		made, err := it.kept, error(nil)
		if it.read.answer != nil {
			made, err = f.filesOf(it)
		}
		it.kept = nil
		all = append(all, made...)
		if err != nil {
			provider.Result{Files: all}.Clear()
			return nil, err
		}
	}
	return all, nil
}

// filesOf makes the files of an object that was read. It may return some beside an
// error.
func (f *fetch) filesOf(it *item) ([]provider.File, error) {
	a := it.read.answer
	text, err := f.text(it.object, *a)
	if err != nil {
		return nil, it.Failure(err)
	}
	if a.form == pfxForm && it.format != pfx {
		defer clear(text)
	}
	var all []provider.File
	add := func(end string, part []byte) error {
		named := it.Object
		named.Path += end
		file, err := named.File(f.req, part)
		if file != nil {
			all = append(all, *file)
		}
		return err
	}
	if f.config.SeparateFiles && a.form != "" {
		certificates, keys := split(text)
		defer clear(keys)
		if err := errors.Join(add(certEnd, certificates), add(keyEnd, keys)); err != nil {
			return all, err
		}
	}
	return all, add("", text)
}

// clear overwrites what was read.
func (f *fetch) clear() {
	for _, r := range f.reads {
		if r.answer != nil {
			clear(r.answer.value)
		}
	}
	for _, it := range f.items {
		provider.Result{Files: it.kept}.Clear()
	}
}
