package vaulttest

import (
	"net/http"
	"strings"
)

// Leases are the IDs of the leases below a path, as in database/creds/; of all for
// an empty one, those of logins among them.
func (c *Client) Leases(prefix string) ([]string, error) {
	names, err := c.list("sys/leases/lookup/" + prefix)
	if err != nil {
		return nil, err
	}
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	var leases []string
	for _, name := range names {
		if !strings.HasSuffix(name, "/") {
			leases = append(leases, prefix+name)
			continue
		}
		below, err := c.Leases(prefix + name)
		if err != nil {
			return nil, err
		}
		leases = append(leases, below...)
	}
	return leases, nil
}

// Accessors are those of all live tokens, root's among them.
func (c *Client) Accessors() ([]string, error) {
	return c.list("auth/token/accessors")
}

// list returns nothing where there is nothing.
func (c *Client) list(path string) ([]string, error) {
	answer, err := c.Do("LIST", path, nil)
	if IsStatus(err, http.StatusNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keys, _ := answer.find([]string{"data", "keys"}).([]any)
	names := make([]string, len(keys))
	for i := range keys {
		names[i], _ = keys[i].(string)
	}
	return names, nil
}
