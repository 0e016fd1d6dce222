package vaulttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// requestTimeout bounds a request whose caller gave no time.
const requestTimeout = 30 * time.Second

// Client asks a server in the name of one token. It is safe for concurrent use.
type Client struct {
	Address string // as in https://127.0.0.1:8200
	Token   string // empty for none
	// Accessor names the token without giving it away; empty for that of root.
	Accessor string

	http *http.Client
}

func newClient(address string, a *authority) *Client {
	return &Client{Address: address, http: &http.Client{Transport: a.transport()}}
}

// As is a client of the same server with another token.
func (c *Client) As(token string) *Client {
	return &Client{Address: c.Address, Token: token, http: c.http}
}

// Login logs in at an auth mount for Kubernetes or JWT, and returns a client with
// the token that it got.
func (c *Client) Login(mount, role, jwt string) (*Client, error) {
	answer, err := c.As("").Do(http.MethodPost, "auth/"+mount+"/login", map[string]any{"role": role, "jwt": jwt})
	if err != nil {
		return nil, err
	}
	user := c.As(answer.Text("auth", "client_token"))
	user.Accessor = answer.Text("auth", "accessor")
	return user, nil
}

// Answer is the body of an answer, empty where there was none.
type Answer map[string]any

// Text is the string that these keys lead to, or empty.
func (a Answer) Text(keys ...string) string {
	text, _ := a.find(keys).(string)
	return text
}

// Seconds is the number of seconds that these keys lead to, as of a lease_duration.
func (a Answer) Seconds(keys ...string) time.Duration {
	seconds, _ := a.find(keys).(float64)
	return time.Duration(seconds * float64(time.Second))
}

func (a Answer) find(keys []string) any {
	var value any = map[string]any(a)
	for _, key := range keys {
		inner, _ := value.(map[string]any)
		value = inner[key]
	}
	return value
}

// Error is an answer that is not a success.
type Error struct {
	Method, Path string
	Status       int
	Errors       []string // what the body has under "errors"
	Body         string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s %s: %d %s: %s", e.Method, e.Path, e.Status, http.StatusText(e.Status), strings.TrimSpace(e.Body))
}

// IsStatus reports whether err is an answer with this status.
func IsStatus(err error, status int) bool {
	answer, ok := errors.AsType[*Error](err)
	return ok && answer.Status == status
}

// Do asks for a path, without its /v1/. The method is an HTTP method or LIST. The
// body, if not nil, is sent as JSON. The error is an *Error where there was an
// answer.
func (c *Client) Do(method, path string, body any) (Answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	return c.do(ctx, method, path, body)
}

// Must is Do for requests that must succeed for the test to go on.
func (c *Client) Must(t testing.TB, method, path string, body any) Answer {
	t.Helper()
	answer, err := c.Do(method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func (c *Client) do(ctx context.Context, method, path string, body any) (Answer, error) {
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.Address+"/v1/"+path, content)
	if err != nil {
		return nil, err
	}
	request.Header.Set("X-Vault-Request", "true")
	if c.Token != "" {
		request.Header.Set("X-Vault-Token", c.Token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode/100 != 2 {
		failure := &Error{Method: method, Path: path, Status: response.StatusCode, Body: string(data)}
		var fields struct{ Errors []string }
		if json.Unmarshal(data, &fields) == nil { // else the body tells
			failure.Errors = fields.Errors
		}
		return nil, failure
	}
	answer := Answer{}
	if len(data) == 0 {
		return answer, nil
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return answer, nil
}
