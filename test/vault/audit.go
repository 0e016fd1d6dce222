package vaulttest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"
)

// Request is a request that the server answered.
type Request struct {
	Time time.Time // when it came
	// Operation is Vault's own word for the method: read, list, delete, and for
	// PUT and POST update, or create where a mount tells them apart.
	Operation string
	// Path is without /v1/, and without the query.
	Path string
	// Accessor is that of the token that asked, Entity who it belongs to. A login
	// has those of the token that it made.
	Accessor, Entity string
	// Root is whether the root token asked, as the set-up of tests does. It has no
	// Entity.
	Root bool
	// Body is what was sent, in clear.
	Body map[string]any
	// Error is why the server refused or failed. It is empty for an answer of 404.
	Error string
}

// Requests are the requests that the server has answered since its audit log
// began, in order of their answers. Neither what it answers while it is sealed is
// there, nor what it does by itself, such as to end a lease.
func (s *Server) Requests() ([]Request, error) {
	data, err := os.ReadFile(s.AuditFile())
	if err != nil {
		return nil, err
	}
	var requests []Request
	came := map[string]time.Time{}
	for line := range bytes.Lines(data) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // It is being written.
		}
		var e auditEntry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("read %s: %w", s.AuditFile(), err)
		}
		if _, ok := came[e.Request.ID]; !ok {
			came[e.Request.ID] = e.Time
		}
		if e.Type == "response" {
			requests = append(requests, e.request(came[e.Request.ID]))
		}
	}
	return requests, nil
}

// auditEntry is a line of the audit log: a request has one before it is handled,
// and one before it is answered.
type auditEntry struct {
	Type  string
	Time  time.Time
	Error string
	Auth  struct {
		Accessor string
		EntityID string `json:"entity_id"`
		Policies []string
	}
	Request struct {
		ID, Operation, Path string
		Data                map[string]any
	}
	Response struct {
		Data struct{ Error any } // a string, unless it is a secret's
	}
}

func (e *auditEntry) request(came time.Time) Request {
	failure, ok := e.Response.Data.Error.(string) // as it was answered
	if !ok {
		failure = e.Error
	}
	return Request{
		Time: came, Operation: e.Request.Operation, Path: e.Request.Path, Body: e.Request.Data,
		Accessor: e.Auth.Accessor, Entity: e.Auth.EntityID, Root: slices.Contains(e.Auth.Policies, "root"),
		Error: failure,
	}
}

// audit has the server write its audit log.
func (s *Server) audit() error {
	return s.put("sys/audit/file", map[string]any{"type": "file", "options": map[string]any{"file_path": s.AuditFile(), "log_raw": "true"}})
}
