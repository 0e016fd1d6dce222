package vaulttest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/csi-secrets/csi-secrets/test/issuer"
	"github.com/csi-secrets/csi-secrets/test/postgres"
)

// Every method here sets the server up with the token of its client. Several calls
// that are the arguments of one errors.Join are made in order and checked at once.

// EnableKV1 mounts a key-value engine without versions.
func (c *Client) EnableKV1(mount string) error {
	return c.enable("sys/mounts/", mount, "kv", map[string]any{"options": map[string]any{"version": "1"}})
}

// EnableKV2 mounts a key-value engine with versions, and waits until it serves.
func (c *Client) EnableKV2(mount string) error {
	if err := c.enable("sys/mounts/", mount, "kv", map[string]any{"options": map[string]any{"version": "2"}}); err != nil {
		return err
	}
	// It makes itself ready in the background, and answers 400 until then.
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		_, err := c.do(ctx, http.MethodGet, mount+"/config", nil)
		if !IsStatus(err, http.StatusBadRequest) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// EnableTransit mounts an engine that encrypts, with these keys.
func (c *Client) EnableTransit(mount string, keys ...string) error {
	err := c.enable("sys/mounts/", mount, "transit", nil)
	for _, key := range keys {
		err = errors.Join(err, c.put(mount+"/keys/"+key, nil))
	}
	return err
}

// EnablePKI mounts an engine that issues certificates, with a root of its own and a
// role that may issue any name, with an elliptic key, for up to a day. The root is
// at MOUNT/cert/ca.
func (c *Client) EnablePKI(mount, role string) error {
	const years = "87600h"
	return errors.Join(
		c.enable("sys/mounts/", mount, "pki", map[string]any{"config": map[string]any{"max_lease_ttl": years}}),
		c.put(mount+"/root/generate/internal", map[string]any{"common_name": "root of " + mount, "ttl": years, "key_type": "ec"}),
		c.put(mount+"/roles/"+role, map[string]any{
			"allow_any_name": true, "enforce_hostnames": false, "require_cn": false, "allowed_uri_sans": "*",
			"key_type": "ec", "max_ttl": "24h",
		}),
	)
}

// databaseName is what a mount for databases calls the one that it has.
const databaseName = "postgres"

// EnableDatabase mounts an engine that makes users in a PostgreSQL. DatabaseRole
// gives it roles.
func (c *Client) EnableDatabase(mount string, pg *postgres.Server) error {
	return errors.Join(
		c.enable("sys/mounts/", mount, "database", nil),
		c.put(mount+"/config/"+databaseName, map[string]any{
			"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "password_authentication": "scram-sha-256",
			"connection_url": pg.URL("{{username}}", "{{password}}"), "username": postgres.Superuser, "password": pg.Password,
		}),
	)
}

// DatabaseRole adds a role of users who may log in, and nothing else, until their
// lease ends.
func (c *Client) DatabaseRole(mount, role string, defaultTTL, maxTTL time.Duration) error {
	return c.put(mount+"/roles/"+role, map[string]any{
		"db_name": databaseName, "default_ttl": defaultTTL.String(), "max_ttl": maxTTL.String(),
		"creation_statements": []string{`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`},
	})
}

// Policy makes a policy what this HCL says.
func (c *Client) Policy(name, hcl string) error {
	return c.put("sys/policies/acl/"+name, map[string]any{"policy": hcl})
}

// AuthKubernetes mounts a login with ServiceAccount tokens, which the server has an
// API server review, with the reviewer's token, or else with the very token that
// is reviewed.
func (c *Client) AuthKubernetes(mount, apiServer string, ca []byte, reviewer string) error {
	return errors.Join(
		c.enable("sys/auth/", mount, "kubernetes", nil),
		c.put("auth/"+mount+"/config", map[string]any{
			"kubernetes_host": apiServer, "kubernetes_ca_cert": string(ca), "token_reviewer_jwt": reviewer, "disable_local_ca_jwt": true,
		}),
	)
}

// AuthJWT mounts a login with tokens of the issuer.
func (c *Client) AuthJWT(mount string, i *issuer.Issuer) error {
	return errors.Join(
		c.enable("sys/auth/", mount, "jwt", nil),
		c.put("auth/"+mount+"/config", map[string]any{"jwt_validation_pubkeys": []string{string(i.PublicKey())}, "bound_issuer": i.Name}),
	)
}

// Role says who may log in, and what tokens they get.
type Role struct {
	// Namespace and ServiceAccount are who may log in; all may where both are empty.
	Namespace, ServiceAccount string
	// Audience is the one that a login's token must be for; empty for any.
	Audience string
	Policies []string
	// Token has more of what both kinds of role know, as in token_ttl.
	Token map[string]any
}

// KubernetesRole adds a role to a mount of AuthKubernetes.
func (c *Client) KubernetesRole(mount, name string, r Role) error {
	return c.role(mount, name, r, map[string]any{
		"bound_service_account_namespaces": cmp.Or(r.Namespace, "*"),
		"bound_service_account_names":      cmp.Or(r.ServiceAccount, "*"),
		"audience":                         r.Audience,
	})
}

// JWTRole adds a role to a mount of AuthJWT. Namespace and ServiceAccount are both
// given, or neither; then there must be an audience.
func (c *Client) JWTRole(mount, name string, r Role) error {
	body := map[string]any{"role_type": "jwt", "user_claim": "sub"}
	if r.ServiceAccount != "" {
		body["bound_subject"] = issuer.Account{Namespace: r.Namespace, Name: r.ServiceAccount}.Subject()
	}
	if r.Audience != "" {
		body["bound_audiences"] = []string{r.Audience}
	}
	return c.role(mount, name, r, body)
}

func (c *Client) role(mount, name string, r Role, body map[string]any) error {
	body["token_policies"] = r.Policies
	for key, value := range r.Token {
		body[key] = value
	}
	return c.put("auth/"+mount+"/role/"+name, body)
}

func (c *Client) enable(kind, mount, engine string, more map[string]any) error {
	body := map[string]any{"type": engine}
	for key, value := range more {
		body[key] = value
	}
	if err := c.put(kind+mount, body); err != nil {
		return fmt.Errorf("mount %s at %s: %w", engine, mount, err)
	}
	return nil
}

func (c *Client) put(path string, body any) error {
	_, err := c.Do(http.MethodPut, path, body)
	return err
}
