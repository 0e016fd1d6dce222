package web

import (
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Polite is a transport to a store: each of its calls is a provider.Call. One that
// is not made has the answer that the store would give, 429 with Retry-After.
type Polite struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper. A request that has a body needs GetBody
// to be made again.
func (p Polite) RoundTrip(r *http.Request) (*http.Response, error) {
	var response *http.Response
	var failure error // of the transport
	next := r
	err := provider.Call(r.Context(), func() error {
		if response != nil {
			again, err := rewound(r)
			if err != nil {
				return nil // the refusal stands
			}
			forget(response)
			next = again
		}
		response, failure = p.RoundTripper.RoundTrip(next)
		if failure == nil && response.StatusCode == http.StatusTooManyRequests {
			return &provider.Error{Kind: provider.Throttled, Err: errors.New("the answer is 429 " + http.StatusText(http.StatusTooManyRequests)), RetryAfter: RetryAfter(response.Header)}
		}
		return failure
	})
	if failure != nil {
		return nil, failure
	}
	if response != nil {
		return response, nil
	}
	if r.Body != nil {
		_ = r.Body.Close()
	}
	var refusal *provider.Error
	if errors.As(err, &refusal) && refusal.Kind == provider.Throttled {
		seconds := int(math.Ceil(refusal.RetryAfter.Seconds()))
		return &http.Response{
			Status: "429 " + http.StatusText(http.StatusTooManyRequests), StatusCode: http.StatusTooManyRequests, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Retry-After": {strconv.Itoa(max(1, seconds))}}, Body: http.NoBody, Request: r,
		}, nil
	}
	return nil, err
}

// CloseIdleConnections lets http.Client.CloseIdleConnections through.
func (p Polite) CloseIdleConnections() {
	if closer, ok := p.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}

// rewound returns r with its body from the beginning.
func rewound(r *http.Request) (*http.Request, error) {
	again := r.Clone(r.Context())
	if r.Body == nil || r.Body == http.NoBody {
		return again, nil
	}
	if r.GetBody == nil {
		return nil, errors.New("the request cannot be made again")
	}
	var err error
	again.Body, err = r.GetBody()
	return again, err
}

// forgotten is how much of an answer is read so that its connection can be used
// again.
const forgotten = 64 << 10

func forget(response *http.Response) {
	_, _ = io.CopyN(io.Discard, response.Body, forgotten)
	_ = response.Body.Close()
}
