package azuretest

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	azfake "github.com/Azure/azure-sdk-for-go/sdk/azcore/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azcertificates"
	fakecerts "github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azcertificates/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	fakekeys "github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	fakesecrets "github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets/fake"
)

// The collections of a vault, as its URLs name them.
const (
	Secrets      = "secrets"
	Keys         = "keys"
	Certificates = "certificates"
)

// PageSize is how many entries a page of a list has.
const PageSize = 25

// Vault is a key vault. It is guarded by its Azure.
type Vault struct {
	azure   *Azure
	name    string
	clock   time.Time // of the last version
	objects map[string]map[string]*object
	rights  map[string]bool
	closed  string // the inner code with which all is refused
	astray  bool   // links to the next page lead elsewhere
}

// object has its versions from the oldest to the newest.
type object struct {
	name     string
	versions []*version
	tags     map[string]string
	managed  bool
}

type version struct {
	id       string
	created  time.Time
	disabled bool
	value    string // of a secret
	form     string // its content type
	backs    bool   // it is the secret of a certificate
	key      *azkeys.JSONWebKey
	cer      []byte
}

// Grant gives a client rights to a collection: "get", "list".
func (v *Vault) Grant(client, collection string, rights ...string) {
	v.azure.mu.Lock()
	defer v.azure.mu.Unlock()
	for _, right := range rights {
		v.rights[client+"/"+collection+"/"+right] = true
	}
}

// GrantAll gives a client all rights.
func (v *Vault) GrantAll(client string) {
	for _, collection := range []string{Secrets, Keys, Certificates} {
		v.Grant(client, collection, "get", "list")
	}
}

// Revoke takes a right.
func (v *Vault) Revoke(client, collection, right string) {
	v.azure.mu.Lock()
	defer v.azure.mu.Unlock()
	delete(v.rights, client+"/"+collection+"/"+right)
}

// Close has every call refused with an inner code, such as ForbiddenByFirewall.
func (v *Vault) Close(code string) {
	v.azure.mu.Lock()
	defer v.azure.mu.Unlock()
	v.closed = code
}

// LeadAstray has links to the next page name another host.
func (v *Vault) LeadAstray() {
	v.azure.mu.Lock()
	defer v.azure.mu.Unlock()
	v.astray = true
}

// SetSecret makes a version and returns its id.
func (v *Vault) SetSecret(name, value string) string {
	return v.add(Secrets, name, &version{value: value})
}

// SetSecretAt is SetSecret for a time.
func (v *Vault) SetSecretAt(created time.Time, name, value string) string {
	return v.add(Secrets, name, &version{value: value, created: created.Truncate(time.Second)})
}

// SetRSA makes a version of a key.
func (v *Vault) SetRSA(name string, kind azkeys.KeyType, public *rsa.PublicKey) string {
	return v.SetKey(name, &azkeys.JSONWebKey{Kty: &kind, N: public.N.Bytes(), E: big.NewInt(int64(public.E)).Bytes()})
}

// SetEC makes a version of a key. The coordinates are without leading zeros.
func (v *Vault) SetEC(name string, kind azkeys.KeyType, curve azkeys.CurveName, public *ecdsa.PublicKey) string {
	point, err := public.Bytes()
	if err != nil {
		v.azure.t.Fatal(err)
	}
	half := (len(point) - 1) / 2
	return v.SetKey(name, &azkeys.JSONWebKey{Kty: &kind, Crv: &curve, X: trimmed(point[1 : 1+half]), Y: trimmed(point[1+half:])})
}

func trimmed(b []byte) []byte { return new(big.Int).SetBytes(b).Bytes() }

// SetKey makes a version of any key.
func (v *Vault) SetKey(name string, key *azkeys.JSONWebKey) string {
	return v.add(Keys, name, &version{key: key})
}

// SetCertificate makes a version of a certificate: with its secret of a content
// type, its key and itself.
func (v *Vault) SetCertificate(name string, cer []byte, form, value string, key *azkeys.JSONWebKey) string {
	id := v.add(Certificates, name, &version{cer: cer})
	v.add(Secrets, name, &version{id: id, value: value, form: form, backs: true})
	v.add(Keys, name, &version{id: id, key: key})
	return id
}

func (v *Vault) add(collection, name string, made *version) string {
	v.azure.mu.Lock()
	defer v.azure.mu.Unlock()
	if made.id == "" {
		made.id = random(16)
	}
	if v.clock = v.clock.Add(time.Second); made.created.IsZero() {
		made.created = v.clock
	}
	if v.objects[collection] == nil {
		v.objects[collection] = map[string]*object{}
	}
	o := v.objects[collection][name]
	if o == nil {
		o = &object{name: name, managed: made.backs}
		v.objects[collection][name] = o
	}
	o.versions = append(o.versions, made)
	return made.id
}

// Tag tags an object.
func (v *Vault) Tag(collection, name string, tags map[string]string) {
	v.azure.mu.Lock()
	defer v.azure.mu.Unlock()
	v.objects[collection][name].tags = tags
}

// Disable disables a version.
func (v *Vault) Disable(collection, name, id string) {
	v.azure.mu.Lock()
	defer v.azure.mu.Unlock()
	for _, each := range v.objects[collection][name].versions {
		if each.id == id {
			each.disabled = true
		}
	}
}

// Delete deletes an object.
func (v *Vault) Delete(collection, name string) {
	v.azure.mu.Lock()
	defer v.azure.mu.Unlock()
	delete(v.objects[collection], name)
}

// failure answers as Key Vault does
// (https://learn.microsoft.com/azure/key-vault/general/rest-error-codes).
func failure(w http.ResponseWriter, status int, code, inner, text string) {
	body := map[string]any{"code": code, "message": text}
	if inner != "" {
		body["innererror"] = map[string]string{"code": inner}
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": body})
}

// request is one to a vault.
type request struct {
	*http.Request
	vault                     *Vault
	collection, name, version string
	kind                      string // of the call
}

func (a *Azure) serveVault(w http.ResponseWriter, r *http.Request) {
	q := request{Request: r}
	host := strings.TrimSuffix(r.Host, ":443")
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	a.mu.Lock()
	q.vault = a.vaults[strings.TrimSuffix(host, "."+a.suffix)]
	a.mu.Unlock()
	q.collection, q.kind = parts[0], Get
	switch {
	case q.vault == nil:
		http.NotFound(w, r)
		return
	case len(parts) == 1:
		q.kind = List
	case len(parts) == 3 && parts[2] == "versions":
		q.kind, q.name = Versions, parts[1]
	case len(parts) == 2:
		q.name = parts[1]
	case len(parts) == 3:
		q.name, q.version = parts[1], parts[2]
	default:
		failure(w, http.StatusBadRequest, "BadParameter", "", "The request URI contains an invalid name.")
		return
	}
	given, authorized := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !authorized {
		_, _ = a.begin(Challenge, &[]fault{})
		a.challenge(w, "AKV10000: Request is missing a Bearer or PoP token.", "")
		return
	}
	if f, failing := a.begin(q.kind, &a.faults); failing {
		f.answer(w, `{"error":{"code":"Throttled","message":"Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached"}}`)
		return
	}
	a.mu.Lock()
	t := a.tokens[given]
	valid := t != nil && t.resource == "https://"+a.suffix && time.Now().Before(t.ends)
	expected := a.claims
	a.mu.Unlock()
	switch {
	case !valid:
		a.challenge(w, "AKV10022: Invalid token.", `error="invalid_token"`)
	case t.tenant != Tenant:
		a.challenge(w, fmt.Sprintf("AKV10032: Invalid issuer. Expected one of https://sts.windows.net/%s/, found https://sts.windows.net/%s/.", Tenant, t.tenant), `error="invalid_token"`)
	case expected != "" && !fulfils(t.claims, expected):
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="", authorization_uri="https://%s/common/oauth2/authorize", error="insufficient_claims", claims="%s"`, a.login, base64.StdEncoding.EncodeToString([]byte(expected))))
		failure(w, http.StatusUnauthorized, "Unauthorized", "", "AKV10145: Continuous access evaluation resulted in challenge.")
	case r.Method != http.MethodGet || r.URL.Query().Get("api-version") == "":
		failure(w, http.StatusBadRequest, "BadParameter", "", "api-version must be specified")
	default:
		q.answer(w, t.client)
	}
}

// fulfils tells whether a token was asked for with the claims that are expected;
// a client adds its capabilities to them.
func fulfils(given, expected string) bool {
	type request struct {
		AccessToken map[string]any `json:"access_token"`
	}
	var has, wants request
	if json.Unmarshal([]byte(given), &has) != nil || json.Unmarshal([]byte(expected), &wants) != nil {
		return false
	}
	for claim, value := range wants.AccessToken {
		if !reflect.DeepEqual(has.AccessToken[claim], value) {
			return false
		}
	}
	return true
}

// challenge is that of a vault
// (https://learn.microsoft.com/azure/key-vault/general/authentication-requests-and-responses).
func (a *Azure) challenge(w http.ResponseWriter, text, why string) {
	header := fmt.Sprintf(`Bearer authorization="https://%s/%s", resource="https://%s"`, a.login, Tenant, a.suffix)
	if why != "" {
		header += ", " + why
	}
	w.Header().Set("WWW-Authenticate", header)
	failure(w, http.StatusUnauthorized, "Unauthorized", "", text)
}

// named are the codes of collections.
var named = map[string]string{Secrets: "Secret", Keys: "Key", Certificates: "Certificate"}

func (q request) answer(w http.ResponseWriter, client *Client) {
	q.vault.azure.mu.Lock()
	defer q.vault.azure.mu.Unlock()
	right := "list"
	if q.kind == Get {
		right = "get"
	}
	caller := fmt.Sprintf("appid=%s;oid=%s;iss=https://sts.windows.net/%s/", client.ID, client.Object, Tenant)
	switch {
	case q.vault.closed != "":
		failure(w, http.StatusForbidden, "Forbidden", q.vault.closed, "Client address is not authorized and caller is not a trusted service. Client address: 203.0.113.7 Caller: "+caller+" Vault: "+q.vault.name+";location=westeurope")
		return
	case !q.vault.rights[client.ID+"/"+q.collection+"/"+right]:
		failure(w, http.StatusForbidden, "Forbidden", "ForbiddenByPolicy", fmt.Sprintf("The user, group or application '%s' does not have %s %s permission on key vault '%s;location=westeurope'. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125287", caller, q.collection, right, q.vault.name))
		return
	}
	switch q.kind {
	case List:
		names := slices.Sorted(maps.Keys(q.vault.objects[q.collection]))
		items, next := page(q, names)
		q.list(w, next, func(name string) (*object, *version) {
			o := q.vault.objects[q.collection][name]
			return o, o.versions[len(o.versions)-1]
		}, items)
	case Versions:
		o := q.vault.objects[q.collection][q.name]
		var ids []string
		byID := map[string]*version{}
		if o != nil {
			for _, each := range o.versions {
				ids, byID[each.id] = append(ids, each.id), each
			}
		}
		slices.Sort(ids) // in no order of time, as at the service
		items, next := page(q, ids)
		q.list(w, next, func(id string) (*object, *version) { return o, byID[id] }, items)
	default:
		q.one(w)
	}
}

// page returns the entries of the page that is asked for, and where the next is.
func page(q request, all []string) (items []string, next *string) {
	first, _ := strconv.Atoi(q.URL.Query().Get("$skiptoken"))
	first = min(first, len(all))
	end := min(first+PageSize, len(all))
	if end < len(all) {
		host := q.Host
		if q.vault.astray {
			host = "elsewhere.example.com"
		}
		next = to.Ptr(fmt.Sprintf("https://%s:443%s?api-version=%s&$skiptoken=%d", strings.TrimSuffix(host, ":443"), q.URL.Path, q.URL.Query().Get("api-version"), end))
	}
	return all[first:end], next
}

func (q request) id(o *object, each *version) string {
	id := fmt.Sprintf("https://%s/%s/%s", strings.TrimSuffix(q.Host, ":443"), q.collection, o.name)
	if each != nil {
		id += "/" + each.id
	}
	return id
}

func pointers(tags map[string]string) map[string]*string {
	made := map[string]*string{}
	for tag, value := range tags {
		made[tag] = &value
	}
	return made
}

// list answers with entries, one page by one server of Microsoft's: those keep
// pages by path, and two clients would share them.
func (q request) list(w http.ResponseWriter, next *string, find func(string) (*object, *version), items []string) {
	id := func(o *object, each *version) string {
		if q.kind == List {
			return q.id(o, nil)
		}
		return q.id(o, each)
	}
	switch q.collection {
	case Secrets:
		r := azsecrets.SecretPropertiesListResult{NextLink: next, Value: []*azsecrets.SecretProperties{}}
		for _, item := range items {
			o, each := find(item)
			p := &azsecrets.SecretProperties{ID: to.Ptr(azsecrets.ID(id(o, each))), Tags: pointers(o.tags), Attributes: &azsecrets.SecretAttributes{Enabled: to.Ptr(!each.disabled), Created: &each.created, Updated: &each.created}}
			if each.form != "" {
				p.ContentType = &each.form
			}
			if o.managed {
				p.Managed = to.Ptr(true)
			}
			r.Value = append(r.Value, p)
		}
		server := &fakesecrets.Server{
			NewListSecretPropertiesPager: func(*azsecrets.ListSecretPropertiesOptions) (p azfake.PagerResponder[azsecrets.ListSecretPropertiesResponse]) {
				p.AddPage(http.StatusOK, azsecrets.ListSecretPropertiesResponse{SecretPropertiesListResult: r}, nil)
				return p
			},
			NewListSecretPropertiesVersionsPager: func(string, *azsecrets.ListSecretPropertiesVersionsOptions) (p azfake.PagerResponder[azsecrets.ListSecretPropertiesVersionsResponse]) {
				p.AddPage(http.StatusOK, azsecrets.ListSecretPropertiesVersionsResponse{SecretPropertiesListResult: r}, nil)
				return p
			},
		}
		q.dispatch(w, fakesecrets.NewServerTransport(server), "SecretProperties")
	case Keys:
		r := azkeys.KeyPropertiesListResult{NextLink: next, Value: []*azkeys.KeyProperties{}}
		for _, item := range items {
			o, each := find(item)
			r.Value = append(r.Value, &azkeys.KeyProperties{KID: to.Ptr(azkeys.ID(id(o, each))), Tags: pointers(o.tags), Attributes: &azkeys.KeyAttributes{Enabled: to.Ptr(!each.disabled), Created: &each.created, Updated: &each.created}})
		}
		server := &fakekeys.Server{
			NewListKeyPropertiesPager: func(*azkeys.ListKeyPropertiesOptions) (p azfake.PagerResponder[azkeys.ListKeyPropertiesResponse]) {
				p.AddPage(http.StatusOK, azkeys.ListKeyPropertiesResponse{KeyPropertiesListResult: r}, nil)
				return p
			},
			NewListKeyPropertiesVersionsPager: func(string, *azkeys.ListKeyPropertiesVersionsOptions) (p azfake.PagerResponder[azkeys.ListKeyPropertiesVersionsResponse]) {
				p.AddPage(http.StatusOK, azkeys.ListKeyPropertiesVersionsResponse{KeyPropertiesListResult: r}, nil)
				return p
			},
		}
		q.dispatch(w, fakekeys.NewServerTransport(server), "KeyProperties")
	default:
		r := azcertificates.CertificatePropertiesListResult{NextLink: next, Value: []*azcertificates.CertificateProperties{}}
		for _, item := range items {
			o, each := find(item)
			r.Value = append(r.Value, &azcertificates.CertificateProperties{ID: to.Ptr(azcertificates.ID(id(o, each))), Tags: pointers(o.tags), Attributes: &azcertificates.CertificateAttributes{Enabled: to.Ptr(!each.disabled), Created: &each.created, Updated: &each.created}})
		}
		server := &fakecerts.Server{
			NewListCertificatePropertiesPager: func(*azcertificates.ListCertificatePropertiesOptions) (p azfake.PagerResponder[azcertificates.ListCertificatePropertiesResponse]) {
				p.AddPage(http.StatusOK, azcertificates.ListCertificatePropertiesResponse{CertificatePropertiesListResult: r}, nil)
				return p
			},
			NewListCertificatePropertiesVersionsPager: func(string, *azcertificates.ListCertificatePropertiesVersionsOptions) (p azfake.PagerResponder[azcertificates.ListCertificatePropertiesVersionsResponse]) {
				p.AddPage(http.StatusOK, azcertificates.ListCertificatePropertiesVersionsResponse{CertificatePropertiesListResult: r}, nil)
				return p
			},
		}
		q.dispatch(w, fakecerts.NewServerTransport(server), "CertificateProperties")
	}
}

// one answers with an object.
func (q request) one(w http.ResponseWriter) {
	o := q.vault.objects[q.collection][q.name]
	var found *version
	if o != nil {
		found = o.versions[0]
		for _, each := range o.versions {
			if each.id == q.version || q.version == "" && !each.created.Before(found.created) {
				found = each
			}
		}
		if q.version != "" && found.id != q.version {
			found = nil
		}
	}
	kind := named[q.collection]
	switch {
	case found == nil:
		failure(w, http.StatusNotFound, kind+"NotFound", "", fmt.Sprintf("A %s with (name/id) %s was not found in this key vault. If you recently deleted this %s you may be able to recover it using the correct recovery command. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182", strings.ToLower(kind), q.name, strings.ToLower(kind)))
		return
	case found.disabled && q.collection == Secrets:
		failure(w, http.StatusForbidden, "Forbidden", kind+"Disabled", "Operation get is not allowed on a disabled secret.")
		return
	}
	switch q.collection {
	case Secrets:
		s := azsecrets.Secret{ID: to.Ptr(azsecrets.ID(q.id(o, found))), Value: &found.value, Tags: pointers(o.tags), Attributes: &azsecrets.SecretAttributes{Enabled: to.Ptr(!found.disabled), Created: &found.created}}
		if found.form != "" {
			s.ContentType = &found.form
		}
		if found.backs {
			s.KID, s.Managed = to.Ptr(azsecrets.ID(strings.Replace(q.id(o, found), "/secrets/", "/keys/", 1))), to.Ptr(true)
		}
		q.dispatch(w, fakesecrets.NewServerTransport(&fakesecrets.Server{GetSecret: func(context.Context, string, string, *azsecrets.GetSecretOptions) (r azfake.Responder[azsecrets.GetSecretResponse], e azfake.ErrorResponder) {
			r.SetResponse(http.StatusOK, azsecrets.GetSecretResponse{Secret: s}, nil)
			return r, e
		}}), "GetSecret")
	case Keys:
		key := *found.key
		key.KID = to.Ptr(azkeys.ID(q.id(o, found)))
		q.dispatch(w, fakekeys.NewServerTransport(&fakekeys.Server{GetKey: func(context.Context, string, string, *azkeys.GetKeyOptions) (r azfake.Responder[azkeys.GetKeyResponse], e azfake.ErrorResponder) {
			r.SetResponse(http.StatusOK, azkeys.GetKeyResponse{KeyBundle: azkeys.KeyBundle{Key: &key, Tags: pointers(o.tags), Attributes: &azkeys.KeyAttributes{Enabled: to.Ptr(!found.disabled), Created: &found.created}}}, nil)
			return r, e
		}}), "GetKey")
	default:
		q.dispatch(w, fakecerts.NewServerTransport(&fakecerts.Server{GetCertificate: func(context.Context, string, string, *azcertificates.GetCertificateOptions) (r azfake.Responder[azcertificates.GetCertificateResponse], e azfake.ErrorResponder) {
			r.SetResponse(http.StatusOK, azcertificates.GetCertificateResponse{Certificate: azcertificates.Certificate{ID: to.Ptr(azcertificates.ID(q.id(o, found))), CER: found.cer, Attributes: &azcertificates.CertificateAttributes{Enabled: to.Ptr(!found.disabled), Created: &found.created}}}, nil)
			return r, e
		}}), "GetCertificate")
	}
}

// dispatch has Microsoft's fake read the request and write the answer.
func (q request) dispatch(w http.ResponseWriter, server policy.Transporter, method string) {
	switch q.kind {
	case List:
		method = "NewList" + method + "Pager"
	case Versions:
		method = "NewList" + method + "VersionsPager"
	}
	sent := q.Clone(context.WithValue(q.Context(), runtime.CtxAPINameKey{}, "Client."+method))
	sent.URL.Scheme, sent.URL.Host = "https", q.Host
	response, err := server.Do(sent)
	if err != nil {
		failure(w, http.StatusBadRequest, "BadParameter", "", err.Error())
		return
	}
	defer response.Body.Close()
	maps.Copy(w.Header(), response.Header)
	w.WriteHeader(response.StatusCode)
	_, _ = io.Copy(w, response.Body)
}
