// Package gcptest is a part of Google Cloud for tests: Secret Manager, behind
// Google's own service description by gRPC; Parameter Manager, the Security
// Token Service, the IAM Service Account Credentials API and the metadata
// server, by their documented REST contracts; all at their own host names.
//
// It checks what the real services check of a caller: pods' tokens against their
// issuer's keys, access tokens for their holder and their end, self-signed
// tokens against the service account's key, and the rights of the holder at the
// resource.
//
// It does not have: writing by the API, IAM conditions, groups and roles
// (permissions are granted one by one), attribute mappings and conditions (a
// pod's subject is that of its token), organisations, CMEK, quotas other than
// those that a test asks for, and filters other than names' parts and labels'
// values joined with AND.
package gcptest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/csi-secrets/csi-secrets/test/cloud"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

// The kinds of calls.
const (
	Access      = "AccessSecretVersion"
	Get         = "GetSecretVersion"
	List        = "ListSecrets"
	Render      = "render"
	Exchange    = "sts"
	Impersonate = "generateAccessToken"
	Metadata    = "metadata"
)

// Project is the project of the GKE cluster, ProjectNumber the number of every
// project: answers name resources by it, as Google's do.
const (
	Project       = "shop"
	ProjectNumber = "123456789012"
)

// Pool and ClusterAudience are the workload identity pool of the cluster, and the
// audience of token exchanges in it.
const (
	Pool            = Project + ".svc.id.goog"
	ClusterAudience = "identitynamespace:" + Pool + ":https://container.googleapis.com/v1/projects/" + Project + "/locations/europe-west1/clusters/main"
)

// NodeAccount is the service account of the node.
const NodeAccount = "node@shop.iam.gserviceaccount.com"

// Google is the stand-in. It is safe for concurrent use.
type Google struct {
	secretmanagerpb.UnimplementedSecretManagerServiceServer
	t testing.TB

	mu         sync.Mutex
	secrets    map[string]*held  // by name, such as projects/shop/secrets/db
	parameters map[string]string // payloads by the names of versions
	pools      map[string]pool   // by the audience of the exchange
	accounts   map[string]*account
	grants     map[grant]bool
	holders    map[string]holder // of access tokens
	calls      map[string]int
	faults     map[string]*fault
	delay      time.Duration
	life       time.Duration // of access tokens
	pageSize   int
	damaged    int
	noChecksum bool
}

// held is a secret: its versions are numbered from 1.
type held struct {
	versions []version
	labels   map[string]string
	aliases  map[string]int
}

type version struct {
	value string
	state secretmanagerpb.SecretVersion_State
}

// pool is a provider of a workload identity pool.
type pool struct {
	tokens    *issuer.Verifier
	audiences []string
	principal func(subject string) string
}

type account struct {
	members  map[string]bool // who may act as it
	key      *rsa.PrivateKey
	disabled bool
}

type grant struct{ principal, permission, resource string }

type holder struct {
	principal string
	ends      time.Time
}

type fault struct {
	left   int
	status *status.Status
}

// New returns a Google at its hosts in n. The pods of a GKE cluster, whose
// tokens the verifier checks, have identities there.
func New(t testing.TB, n *cloud.Net, pods *issuer.Verifier) *Google {
	t.Helper()
	g := &Google{
		t: t, secrets: map[string]*held{}, parameters: map[string]string{}, accounts: map[string]*account{}, grants: map[grant]bool{}, holders: map[string]holder{},
		calls: map[string]int{}, faults: map[string]*fault{}, life: time.Hour, pageSize: 25000,
		pools: map[string]pool{ClusterAudience: {pods, []string{Pool}, func(subject string) string {
			parts := strings.Split(subject, ":") // system:serviceaccount:NAMESPACE:NAME
			return PodPrincipal(parts[len(parts)-2], parts[len(parts)-1])
		}}},
	}
	g.AddAccount(NodeAccount)
	server := grpc.NewServer(grpc.UnaryInterceptor(g.intercept))
	secretmanagerpb.RegisterSecretManagerServiceServer(server, g)
	t.Cleanup(server.Stop)
	n.Handle("secretmanager.googleapis.com", server)
	n.Handle("parametermanager.googleapis.com", g.rest(Render, g.render))
	for _, location := range []string{"europe-west1", "us-central1"} {
		n.Handle("secretmanager."+location+".rep.googleapis.com", server)
		n.Handle("parametermanager."+location+".rep.googleapis.com", g.rest(Render, g.render))
	}
	n.Handle("sts.googleapis.com", g.rest(Exchange, g.exchange))
	n.Handle("iamcredentials.googleapis.com", g.rest(Impersonate, g.impersonate))
	n.HandlePlain("169.254.169.254", g.rest(Metadata, g.metadata))
	return g
}

// PodPrincipal is the principal of a pod of the cluster.
func PodPrincipal(namespace, name string) string {
	return "principal://iam.googleapis.com/projects/" + ProjectNumber + "/locations/global/workloadIdentityPools/" + Pool + "/subject/ns/" + namespace + "/sa/" + name
}

// AddPool makes a provider of a workload identity pool for the tokens of another
// cluster, and returns the audience of its exchanges.
func (g *Google) AddPool(pods *issuer.Verifier, name string, audiences ...string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	of := "//iam.googleapis.com/projects/" + ProjectNumber + "/locations/global/workloadIdentityPools/" + name
	audience := of + "/providers/kubernetes"
	if len(audiences) == 0 {
		audiences = []string{audience, "https:" + audience}
	}
	g.pools[audience] = pool{pods, audiences, func(subject string) string { return "principal:" + of + "/subject/" + subject }}
	return audience
}

// RemovePool disables the provider of an audience.
func (g *Google) RemovePool(audience string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.pools, audience)
}

// Put adds a version to a secret, such as projects/shop/secrets/db, which it makes
// if need be, and returns the version's number.
func (g *Google) Put(secret, value string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.secrets[secret]
	if s == nil {
		s = &held{labels: map[string]string{}, aliases: map[string]int{}}
		g.secrets[secret] = s
	}
	s.versions = append(s.versions, version{value, secretmanagerpb.SecretVersion_ENABLED})
	return len(s.versions)
}

// Label gives a secret labels.
func (g *Google) Label(secret string, labels map[string]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.Copy(g.secrets[secret].labels, labels)
}

// Alias has a secret call a version by a name.
func (g *Google) Alias(secret, alias string, version int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.secrets[secret].aliases[alias] = version
}

// SetState disables, enables or destroys a version.
func (g *Google) SetState(secret string, version int, state secretmanagerpb.SecretVersion_State) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.secrets[secret].versions[version-1].state = state
}

// Remove removes a secret.
func (g *Google) Remove(secret string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.secrets, secret)
}

// PutParameter makes a version of a parameter, such as
// projects/shop/locations/global/parameters/app/versions/v1. Its payload may
// refer to secrets: __REF__(//secretmanager.googleapis.com/NAME).
func (g *Google) PutParameter(version, payload string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parameters[version] = payload
}

// Grant gives a principal permissions at a resource and all below it.
func (g *Google) Grant(principal, resource string, permissions ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, permission := range permissions {
		g.grants[grant{principal, permission, resource}] = true
	}
}

// Revoke takes permissions back.
func (g *Google) Revoke(principal, resource string, permissions ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, permission := range permissions {
		delete(g.grants, grant{principal, permission, resource})
	}
}

// allowed is called with g.mu held.
func (g *Google) allowed(principal, permission, resource string) bool {
	for at := resource; at != ""; at = at[:max(strings.LastIndexByte(at, '/'), 0)] {
		if g.grants[grant{principal, permission, at}] {
			return true
		}
	}
	return false
}

// AddAccount makes a service account as which members may act.
func (g *Google) AddAccount(email string, members ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := &account{members: map[string]bool{}}
	for _, member := range members {
		a.members[member] = true
	}
	g.accounts[email] = a
}

// Key makes a key of a service account, and returns its JSON file. The token URI
// in it leads nowhere.
func (g *Google) Key(email string) []byte {
	g.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		g.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		g.t.Fatal(err)
	}
	file, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": Project, "client_email": email, "private_key_id": "k1", "token_uri": "https://attacker.example.com/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.accounts[email].key = key
	return file
}

// Disable disables a service account, and with it what its key signs.
func (g *Google) Disable(email string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.accounts[email].disabled = true
}

// RevokeTokens has no access token be known any more.
func (g *Google) RevokeTokens() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.holders)
}

// SetTokenLife sets how long access tokens are valid from now on.
func (g *Google) SetTokenLife(life time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.life = life
}

// SetDelay has every call take that long.
func (g *Google) SetDelay(delay time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.delay = delay
}

// SetPageSize bounds the pages of lists.
func (g *Google) SetPageSize(size int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pageSize = size
}

// Damage has the values of the next count accesses not fit their checksums.
func (g *Google) Damage(count int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.damaged = count
}

// WithoutChecksums has values come without.
func (g *Google) WithoutChecksums() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.noChecksum = true
}

// Fail has the next count calls of a kind fail. A wait, which may be zero, is
// asked for as Google does it.
func (g *Google) Fail(kind string, count int, code codes.Code, message string, wait time.Duration) {
	s := status.New(code, message)
	if wait > 0 {
		s, _ = s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.faults[kind] = &fault{count, s}
}

// Calls returns how many calls of each kind there were, as in
// "AccessSecretVersion=20 sts=1", and counts from zero again.
func (g *Google) Calls() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var parts []string
	for _, kind := range []string{Metadata, Exchange, Impersonate, List, Get, Access, Render} {
		if n := g.calls[kind]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", kind, n))
		}
	}
	clear(g.calls)
	return strings.Join(parts, " ")
}

// begin counts a call, lets it take its time, and returns how it is to fail.
func (g *Google) begin(kind string) *status.Status {
	g.mu.Lock()
	g.calls[kind]++
	delay := g.delay
	var fails *status.Status
	if f := g.faults[kind]; f != nil && f.left > 0 {
		f.left--
		fails = f.status
	}
	g.mu.Unlock()
	time.Sleep(delay)
	return fails
}

// issue makes an access token. Callers hold g.mu.
func (g *Google) issue(principal string) string {
	random := make([]byte, 24)
	_, _ = rand.Read(random)
	token := "ya29.canary-" + hex.EncodeToString(random)
	g.holders[token] = holder{principal, time.Now().Add(g.life)}
	return token
}
