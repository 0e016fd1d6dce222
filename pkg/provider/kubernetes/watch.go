package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

var _ provider.IdentityWatcher = (*Provider)(nil)

const (
	// watchSeconds is how long one watch lasts. kubelet brings another token by then.
	watchSeconds = 540
	// watchPause comes between two watches.
	watchPause = time.Second
	// onlyMetadata keeps values out of what a watch brings.
	onlyMetadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
)

// WatchAs watches each Secret and ConfigMap that the class names, as the pod, by
// their metadata. The pod's service account needs the verb watch on them.
func (p *Provider) WatchAs(ctx context.Context, request func() provider.Request, changed func()) error {
	reader := provider.NewParams(request().Parameters)
	d := decode(reader)
	if err := reader.Err(); err != nil {
		return err
	}
	events := make(chan struct{}, 1)
	sources := d.sources()
	opened := make(chan struct{}, len(sources))
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range sources {
		group.Go(func() error {
			open := sync.OnceFunc(func() { opened <- struct{}{} })
			return provider.Guarded(func() error { return p.follow(ctx, s, d, request, open, events) })
		})
	}
	group.Go(func() error {
		for range sources {
			select {
			case <-ctx.Done():
				return nil
			case <-opened:
			}
		}
		changed()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-events:
				changed()
			}
		}
	})
	return group.Wait()
}

// follow calls opened whenever a watch of a source begins, and tells events of each
// change, until ctx ends or the API server refuses.
func (p *Provider) follow(ctx context.Context, s source, d *params, request func() provider.Request, opened func(), events chan<- struct{}) error {
	known := "" // the version that was seen last; empty for none yet
	for {
		err := p.watchOnce(ctx, s, d, request(), opened, func(version string) {
			if known != "" && known != version {
				select {
				case events <- struct{}{}:
				default: // one is told of already
				}
			}
			known = version
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPause):
		}
	}
}

// watchOnce tells the version of a source, and each that follows, until the watch
// ends by itself (https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes).
// One that begins without a version begins with the source as it is.
func (p *Provider) watchOnce(ctx context.Context, s source, d *params, req provider.Request, opened func(), seen func(version string)) error {
	if len(req.Tokens) == 0 {
		return fmt.Errorf("watch %s: %w", s.in(req.Pod), provider.ErrNoCredentials)
	}
	token, err := tokenOf(req, d)
	if err != nil {
		return err
	}
	failure := &provider.Error{Kind: provider.Unavailable, Object: s.in(req.Pod), Op: "watch it as the pod"}
	query := url.Values{"watch": {"1"}, "fieldSelector": {"metadata.name=" + s.name}, "timeoutSeconds": {fmt.Sprint(watchSeconds)}}
	response, err := p.ask(ctx, req.Pod, s.resource+"?"+query.Encode(), onlyMetadata, token)
	if err != nil {
		failure.Err = err
		return failure
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden, http.StatusUnauthorized:
		failure.Kind, failure.Err = provider.Denied, fmt.Errorf("the service account %s/%s may not", req.Pod.Namespace, req.Pod.ServiceAccount)
		failure.Remedy = fmt.Sprintf("give it a Role with the verb watch on %s %q", s.resource, s.name)
		return failure
	default:
		failure.Err = fmt.Errorf("the API server answers %s", response.Status)
		return failure
	}
	opened()
	lines := json.NewDecoder(response.Body)
	for {
		var event struct {
			Type   string `json:"type"`
			Object answer `json:"object"`
		}
		switch err := lines.Decode(&event); {
		case errors.Is(err, io.EOF), ctx.Err() != nil:
			return nil
		case err != nil:
			failure.Err = errors.New("the watch broke off")
			return failure
		}
		version := event.Object.Metadata.UID + "/" + event.Object.Metadata.ResourceVersion
		event.Object.clear()
		switch event.Type {
		case "ADDED", "MODIFIED":
			seen(version)
		case "DELETED":
			seen(version + " deleted")
		case "ERROR": // it is too old, or too much: a new one begins
			return nil
		}
	}
}
