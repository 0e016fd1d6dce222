package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Request is a request that the API server answered.
type Request struct {
	Time time.Time // when it came
	User string
	// Impersonated is the user that User asked as, or empty.
	Impersonated string
	UserAgent    string
	Verb         string
	Resource     string // with its subresource, as in "pods/status"; empty for paths that are no resource
	Namespace    string
	Name         string
	URI          string
	Code         int
}

// AuditLog is the path of the API server's audit log: a JSON object a line for
// each request, level Metadata.
func (c *Cluster) AuditLog() string { return filepath.Join(c.LogsDir(), "audit.log") }

// Requests are the requests that the API server has answered since the cluster
// came up, in order of their answers, each once; a watch is there from its start.
// The API server itself asks too (system:apiserver).
func (c *Cluster) Requests() ([]Request, error) {
	data, err := os.ReadFile(c.AuditLog())
	if err != nil {
		return nil, err
	}
	var requests []Request
	seen := map[string]bool{} // The end of a watch is a second line with its ID.
	for line := range bytes.Lines(data) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // It is being written.
		}
		var e struct {
			AuditID                  string
			RequestReceivedTimestamp time.Time
			User                     struct{ Username string }
			ImpersonatedUser         struct{ Username string }
			UserAgent, Verb          string
			RequestURI               string
			ObjectRef                struct{ Resource, Subresource, Namespace, Name string }
			ResponseStatus           struct{ Code int }
		}
		if err := json.Unmarshal(line, &e); err != nil {
			// A killed API server leaves half a line, and goes on in it.
			continue
		}
		if seen[e.AuditID] {
			continue
		}
		seen[e.AuditID] = true
		resource := e.ObjectRef.Resource
		if e.ObjectRef.Subresource != "" {
			resource = fmt.Sprintf("%s/%s", resource, e.ObjectRef.Subresource)
		}
		requests = append(requests, Request{
			Time: e.RequestReceivedTimestamp, User: e.User.Username, Impersonated: e.ImpersonatedUser.Username, UserAgent: e.UserAgent, Verb: e.Verb,
			Resource: resource, Namespace: e.ObjectRef.Namespace, Name: e.ObjectRef.Name, URI: e.RequestURI, Code: e.ResponseStatus.Code,
		})
	}
	return requests, nil
}
