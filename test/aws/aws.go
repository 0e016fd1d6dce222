// Package awstest stands in for AWS Secrets Manager, Systems Manager Parameter
// Store, the Security Token Service (AssumeRoleWithWebIdentity) and the agent of
// EKS Pod Identity. It checks every request, and each of its own answers, against
// AWS's service models (testdata), signatures by computing them again, tokens by
// the keys of their issuer, and rights by the policies of roles.
//
// What AWS has beside that it does not do: operations that write (tests call
// methods of Cloud), KMS keys of their own (DecryptionFailure can be had by Fail),
// resource policies and other accounts, replication, rotation, and the delay
// with which ListSecrets and DescribeParameters see a change. Policies know Allow,
// actions, and resources with stars.
package awstest

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/test/cloud"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

// Account is that of everything here.
const Account = "123456789012"

// The stages of versions of a secret.
const (
	current  = "AWSCURRENT"
	previous = "AWSPREVIOUS"
)

// Statement allows actions, such as "secretsmanager:GetSecretValue", on resources
// whose ARN matches; both may have stars.
type Statement struct{ Action, Resource string }

// Everything allows all.
var Everything = []Statement{{"*", "*"}}

// lifetime is that of credentials.
const lifetime = time.Hour

// Role is an IAM role.
type Role struct {
	ARN string
	// Subjects are the service accounts that may assume it with their token.
	Subjects []string
	Allow    []Statement
}

// Cloud is AWS as one account sees it. It is safe for concurrent use.
type Cloud struct {
	verifier *issuer.Verifier
	models   map[string]*model

	mu           sync.Mutex
	regions      map[string]*region
	roles        map[string]Role
	associations map[string]string // role by subject, of EKS Pod Identity
	sessions     map[string]*session
	calls        map[string]int
	failing      map[string][]Failure
	delay        time.Duration
	skew         time.Duration
	page         int
	broken       []string
}

type region struct {
	secrets    map[string]*secret
	parameters map[string]*parameter
}

type secret struct {
	arn      string
	tags     map[string]string
	versions map[string]*version
	deleted  bool
	created  time.Time
}

type version struct {
	text   string
	binary []byte
	stages []string
}

type parameter struct {
	values []string // the first is version 1
	labels map[string]int
	tags   map[string]string
}

// session is what somebody got credentials for.
type session struct {
	role          string
	name          string
	secret, token string
	over          bool
}

// New serves the endpoints of those regions in n, and the agent of EKS Pod
// Identity at both of its addresses. Pods are known by tokens that v takes.
func New(t testing.TB, n *cloud.Net, v *issuer.Verifier, regions ...string) *Cloud {
	t.Helper()
	c := &Cloud{
		verifier: v, models: map[string]*model{}, regions: map[string]*region{}, roles: map[string]Role{}, associations: map[string]string{},
		sessions: map[string]*session{}, calls: map[string]int{}, failing: map[string][]Failure{},
	}
	for _, service := range []string{"secretsmanager", "ssm", "sts"} {
		c.models[service] = loadModel(service)
	}
	for _, name := range regions {
		c.regions[name] = &region{map[string]*secret{}, map[string]*parameter{}}
		for _, domain := range []string{"amazonaws.com", "api.aws"} {
			n.Handle("*."+name+"."+domain, http.HandlerFunc(c.serve))
		}
	}
	for _, address := range []string{"169.254.170.23", "fd00:ec2::23"} {
		n.HandlePlain(address, http.HandlerFunc(c.agent))
	}
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, what := range c.broken {
			t.Errorf("the stand-in for AWS: %s", what)
		}
	})
	return c
}

// broke notes that a request or an answer is none that AWS would see.
func (c *Cloud) broke(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = append(c.broken, fmt.Sprintf(format, args...))
}

// AddRole makes a role, or replaces it.
func (c *Cloud) AddRole(r Role) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roles[r.ARN] = r
}

// Associate gives a service account a role by EKS Pod Identity.
func (c *Cloud) Associate(subject, role string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.associations[subject] = role
}

// random is as long as the identifiers of AWS.
func random() string { return strings.ToUpper(rand.Text()[:16]) }

// PutSecret makes a version of a secret, and the secret if there is none. It
// returns the version's id.
func (c *Cloud) PutSecret(region, name, value string) string {
	return c.put(region, name, random()[:6], &version{text: value})
}

// PutSecretAs is PutSecret with the six characters with which a new secret's ARN
// ends.
func (c *Cloud) PutSecretAs(region, name, suffix, value string) string {
	return c.put(region, name, suffix, &version{text: value})
}

// PutBinary is PutSecret for a value of bytes.
func (c *Cloud) PutBinary(region, name string, value []byte) string {
	return c.put(region, name, random()[:6], &version{binary: value})
}

func (c *Cloud) put(region, name, suffix string, v *version) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.regions[region].secrets[name]
	if s == nil {
		s = &secret{arn: fmt.Sprintf("arn:aws:secretsmanager:%s:%s:secret:%s-%s", region, Account, name, suffix), tags: map[string]string{}, versions: map[string]*version{}, created: time.Now()}
		c.regions[region].secrets[name] = s
	}
	id := strings.ToLower(rand.Text() + rand.Text())[:36]
	s.versions[id] = v
	s.move(previous, s.with(current))
	s.move(current, id)
	return id
}

// with returns the version that has a stage, or nothing.
func (s *secret) with(stage string) string {
	for id, v := range s.versions {
		if slices.Contains(v.stages, stage) {
			return id
		}
	}
	return ""
}

func (s *secret) move(stage, id string) {
	if id == "" {
		return
	}
	for _, v := range s.versions {
		v.stages = slices.DeleteFunc(v.stages, func(s string) bool { return s == stage })
	}
	s.versions[id].stages = append(s.versions[id].stages, stage)
}

// SetStage gives a version of a secret a label, and takes it from others.
func (c *Cloud) SetStage(region, name, version, stage string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.regions[region].secrets[name].move(stage, version)
}

// SecretARN returns that of a secret.
func (c *Cloud) SecretARN(region, name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.regions[region].secrets[name].arn
}

// TagSecret gives a secret a tag.
func (c *Cloud) TagSecret(region, name, key, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.regions[region].secrets[name].tags[key] = value
}

// DeleteSecret marks a secret for deletion.
func (c *Cloud) DeleteSecret(region, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.regions[region].secrets[name].deleted = true
}

// RemoveSecret leaves nothing of a secret.
func (c *Cloud) RemoveSecret(region, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.regions[region].secrets, name)
}

// PutParameter makes a version of a parameter and returns its number.
func (c *Cloud) PutParameter(region, name, value string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.regions[region].parameters[name]
	if p == nil {
		p = &parameter{labels: map[string]int{}, tags: map[string]string{}}
		c.regions[region].parameters[name] = p
	}
	p.values = append(p.values, value)
	return len(p.values)
}

// RemoveParameter leaves nothing of a parameter.
func (c *Cloud) RemoveParameter(region, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.regions[region].parameters, name)
}

// LabelParameter gives a version of a parameter a label.
func (c *Cloud) LabelParameter(region, name string, version int, label string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.regions[region].parameters[name].labels[label] = version
}

// TagParameter gives a parameter a tag.
func (c *Cloud) TagParameter(region, name, key, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.regions[region].parameters[name].tags[key] = value
}

// ParameterARN returns that of a parameter.
func ParameterARN(region, name string) string {
	return fmt.Sprintf("arn:aws:ssm:%s:%s:parameter/%s", region, Account, strings.TrimPrefix(name, "/"))
}

// Calls returns the requests since the last call of it, by operation; those to
// the agent are "Agent".
func (c *Cloud) Calls() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	calls := c.calls
	c.calls = map[string]int{}
	return calls
}

// Delay has every answer take so long.
func (c *Cloud) Delay(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = d
}

// Fail answers the next requests for an operation, in a region or, with "", in any, with
// these failures, one each.
func (c *Cloud) Fail(region, operation string, failures ...Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := path.Join(region, operation)
	c.failing[key] = append(c.failing[key], failures...)
}

// SetSkew has the clock of AWS be so far ahead.
func (c *Cloud) SetSkew(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skew = d
}

// SetPage bounds the entries of one answer.
func (c *Cloud) SetPage(entries int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.page = entries
}

// EndSessions has no credentials be accepted that were given so far.
func (c *Cloud) EndSessions() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		s.over = true
	}
}

// open makes credentials. Callers hold c.mu.
func (c *Cloud) open(role, name string) (id, key, token string) {
	id, key, token = "ASIA"+random(), rand.Text()+rand.Text(), "session-token-"+rand.Text()+rand.Text()
	c.sessions[id] = &session{role: role, name: name, secret: key, token: token}
	return id, key, token
}

// began counts a request, waits, and returns the failure that a test wants, if any.
func (c *Cloud) began(ctx context.Context, region, operation string) (Failure, bool) {
	c.mu.Lock()
	c.calls[operation]++
	delay := c.delay
	var wanted []Failure
	for _, key := range []string{path.Join(region, operation), operation} {
		if all := c.failing[key]; wanted == nil && len(all) > 0 {
			wanted, c.failing[key] = all[:1], all[1:]
		}
	}
	c.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
	if wanted == nil {
		return Failure{}, false
	}
	if wanted[0].Hang {
		<-ctx.Done()
	}
	return wanted[0], true
}

// allowed tells whether a role may do something. Callers hold c.mu.
func (c *Cloud) allowed(role, action, resource string) bool {
	return slices.ContainsFunc(c.roles[role].Allow, func(s Statement) bool { return glob(s.Action, action) && glob(s.Resource, resource) })
}

// glob matches as IAM does: a star is any text.
func glob(pattern, text string) bool {
	first, rest, found := strings.Cut(pattern, "*")
	if !found {
		return pattern == text
	}
	if !strings.HasPrefix(text, first) {
		return false
	}
	for text = text[len(first):]; ; text = text[1:] {
		if glob(rest, text) {
			return true
		}
		if text == "" {
			return false
		}
	}
}

// now is by the clock of AWS. Callers hold c.mu.
func (c *Cloud) now() time.Time { return time.Now().Add(c.skew) }

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
