package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// maxAnswerBytes bounds an answer: an object has 1 MiB at most, which base64
// makes a third larger, and metadata beside it.
const maxAnswerBytes = 4 << 20

// contents is what a Secret or ConfigMap holds.
type contents struct {
	version string
	data    map[string][]byte
}

func (c contents) clear() {
	for _, value := range c.data {
		clear(value)
	}
}

// answer is what is read of a Secret, ConfigMap or Status.
type answer struct {
	Metadata struct {
		UID             string `json:"uid"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Data       map[string]json.RawMessage `json:"data"`
	BinaryData map[string][]byte          `json:"binaryData"`
	Message    string                     `json:"message"`
}

// ask asks the API server, as the pod, for something of its namespace.
func (p *Provider) ask(ctx context.Context, pod provider.Pod, path, accept string, token secret.Value) (*http.Response, error) {
	address := fmt.Sprintf("%s/api/v1/namespaces/%s/%s", p.server, url.PathEscape(pod.Namespace), path)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accept)
	request.Header.Set("Authorization", "Bearer "+string(token.Reveal()))
	response, err := p.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("the API server does not answer: %w", web.Bare(err))
	}
	return response, nil
}

// get reads a Secret or ConfigMap of the pod's namespace.
func (p *Provider) get(ctx context.Context, pod provider.Pod, s source, token secret.Value) (contents, error) {
	failure := func(kind provider.Kind, err error, remedy string) error {
		return &provider.Error{Kind: kind, Object: s.in(pod), Op: "read it as the pod", Err: err, Remedy: remedy}
	}
	response, err := p.ask(ctx, pod, s.resource+"/"+url.PathEscape(s.name), "application/json", token)
	if err != nil {
		return contents{}, failure(provider.Unavailable, err, "it is asked again")
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes+1))
	defer clear(body)
	switch {
	case err != nil:
		return contents{}, failure(provider.Unavailable, fmt.Errorf("the API server's answer ended early: %w", err), "it is asked again")
	case len(body) > maxAnswerBytes:
		return contents{}, failure(provider.TooLarge, fmt.Errorf("the answer has more than %d bytes", maxAnswerBytes), "")
	}
	var a answer
	err = json.Unmarshal(body, &a)
	defer a.clear()
	switch code := response.StatusCode; {
	case code == http.StatusOK && err != nil:
		return contents{}, failure(provider.Internal, errors.New("the API server's answer is not JSON"), "")
	case code == http.StatusOK:
		c, err := a.contents(s)
		if err != nil {
			return contents{}, failure(provider.Internal, err, "")
		}
		return c, nil
	case code == http.StatusUnauthorized:
		return contents{}, failure(provider.Denied, errors.New("the API server does not accept the pod's token"),
			`is the token's audience one of the API server's own? The audience "" always is`)
	case code == http.StatusForbidden:
		return contents{}, failure(provider.Denied, fmt.Errorf("the service account %s/%s may not", pod.Namespace, pod.ServiceAccount),
			fmt.Sprintf("give it a Role with the verb get on %s %q", s.resource, s.name))
	case code == http.StatusNotFound:
		return contents{}, failure(provider.NotFound, errors.New("it does not exist"), "create it, or correct objectName in the class")
	case code == http.StatusTooManyRequests:
		err := &provider.Error{Kind: provider.Throttled, Object: s.in(pod), Op: "read it as the pod", Err: errors.New("the API server asks for patience"), Remedy: "it is asked again"}
		err.RetryAfter = web.RetryAfter(response.Header)
		return contents{}, err
	case code >= http.StatusInternalServerError:
		return contents{}, failure(provider.Unavailable, fmt.Errorf("the API server answers %s", response.Status), "it is asked again")
	default:
		return contents{}, failure(provider.Internal, fmt.Errorf("the API server answers %s", response.Status), "")
	}
}

func (a *answer) clear() {
	for _, raw := range a.Data {
		clear(raw)
	}
	for _, value := range a.BinaryData {
		clear(value)
	}
}

// contents decodes the data: base64 in a Secret, text in a ConfigMap, which has
// base64 in binaryData.
func (a *answer) contents(s source) (contents, error) {
	c := contents{version: a.Metadata.UID + "/" + a.Metadata.ResourceVersion, data: make(map[string][]byte, len(a.Data)+len(a.BinaryData))}
	for key, raw := range a.Data {
		var err error
		if s.resource == secrets {
			var value []byte
			err = json.Unmarshal(raw, &value)
			c.data[key] = value
		} else {
			var value string
			err = json.Unmarshal(raw, &value)
			c.data[key] = []byte(value)
		}
		if err != nil {
			c.clear()
			return contents{}, fmt.Errorf("the value of the key %q cannot be decoded", key)
		}
	}
	for key, value := range a.BinaryData {
		c.data[key] = append([]byte(nil), value...)
	}
	return c, nil
}
