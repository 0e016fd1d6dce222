// Package login is what providers share that log in to a store with the pod's
// service-account token: what the token says, and a cache of logins by identity.
package login

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// Claims is what a service-account token says of itself
// (https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#schema-for-service-account-private-claims).
// The signature is not checked: kubelet brought the token, and the store checks
// it.
type Claims struct {
	Issuer    string
	Subject   string
	Audiences []string
	Expires   time.Time // zero where it does not say

	Namespace, ServiceAccount, ServiceAccountUID string
	Pod, PodUID                                  string
}

// Read returns what a token says. The error quotes nothing of it.
func Read(token secret.Value) (Claims, error) {
	parts := strings.Split(string(token.Reveal()), ".")
	if len(parts) != 3 {
		return Claims{}, errors.New("it is not a JSON Web Token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return Claims{}, errors.New("it is not a JSON Web Token")
	}
	type named struct {
		Name string `json:"name"`
		UID  string `json:"uid"`
	}
	var body struct {
		Issuer     string          `json:"iss"`
		Subject    string          `json:"sub"`
		Audience   json.RawMessage `json:"aud"`
		Expires    float64         `json:"exp"`
		Kubernetes struct {
			Namespace      string `json:"namespace"`
			ServiceAccount named  `json:"serviceaccount"`
			Pod            named  `json:"pod"`
		} `json:"kubernetes.io"`
	}
	if json.Unmarshal(payload, &body) != nil {
		return Claims{}, errors.New("the payload of the JSON Web Token is not JSON")
	}
	c := Claims{
		Issuer: body.Issuer, Subject: body.Subject,
		Namespace: body.Kubernetes.Namespace, ServiceAccount: body.Kubernetes.ServiceAccount.Name, ServiceAccountUID: body.Kubernetes.ServiceAccount.UID,
		Pod: body.Kubernetes.Pod.Name, PodUID: body.Kubernetes.Pod.UID,
	}
	if body.Expires > 0 {
		c.Expires = time.Unix(int64(body.Expires), 0)
	}
	var one string
	if json.Unmarshal(body.Audience, &one) == nil {
		c.Audiences = []string{one}
	} else {
		_ = json.Unmarshal(body.Audience, &c.Audiences)
	}
	return c, nil
}

// Account is what names the service account for as long as it exists, in this
// cluster and in all others.
func (c Claims) Account() string {
	return strings.Join([]string{c.Issuer, c.Subject, c.ServiceAccountUID, strings.Join(c.Audiences, "\x01")}, "\x00")
}

// Identity is all that stays the same in the tokens of one pod for one audience.
func (c Claims) Identity() string {
	return strings.Join([]string{c.Account(), c.Namespace, c.Pod, c.PodUID}, "\x00")
}

// String tells, for an error, what a store may object to.
func (c Claims) String() string {
	text := fmt.Sprintf("issuer %q, subject %q, audience %s", c.Issuer, c.Subject, quoted(c.Audiences))
	if !c.Expires.IsZero() {
		text += ", valid until " + c.Expires.UTC().Format(time.RFC3339)
	}
	return text
}

// APIServerAudiences are those that an API server takes for its own, as clusters
// are usually set up.
var APIServerAudiences = []string{"", "https://kubernetes.default.svc", "https://kubernetes.default.svc.cluster.local", "kubernetes", "api"}

// Token returns the first of the pod's tokens for one of the audiences, which is
// not over. store names it that the token is for.
func Token(req provider.Request, store string, audiences ...string) (provider.Token, error) {
	for _, audience := range audiences {
		token, ok := req.Tokens[audience]
		if !ok {
			continue
		}
		if !token.Expires.IsZero() && time.Now().After(token.Expires) {
			return provider.Token{}, &provider.Error{Kind: provider.Unavailable, Op: "log in to " + store,
				Err: fmt.Errorf("the pod's token for the audience %q ended at %s", audience, token.Expires.UTC().Format(time.RFC3339)), Remedy: "kubelet's next call for the volume brings another"}
		}
		return token, nil
	}
	if len(req.Tokens) == 0 {
		return provider.Token{}, &provider.Error{Kind: provider.Denied, Op: "log in to " + store, Err: provider.ErrNoCredentials,
			Remedy: fmt.Sprintf("list the audience %q in the CSIDriver's tokenRequests (chart: tokenRequests)", audiences[0])}
	}
	err := &provider.Error{Kind: provider.Denied, Op: "log in to " + store,
		Err:    fmt.Errorf("kubelet sent no token of the pod for the audience %s", quoted(audiences[:1])),
		Remedy: fmt.Sprintf("list the audience %q in the CSIDriver's tokenRequests (chart: tokenRequests)", audiences[0])}
	err.Err = fmt.Errorf("%w; those that there are have the audiences %s", err.Err, quoted(slices.Sorted(maps.Keys(req.Tokens))))
	return provider.Token{}, err
}

func quoted(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = fmt.Sprintf("%.200q", s)
	}
	if len(quoted) == 0 {
		return "none"
	}
	return strings.Join(quoted, ", ")
}
