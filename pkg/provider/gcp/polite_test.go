package gcp

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/test/gcp"
)

// governed has throttled calls made again, and those that paused says not at all.
func governed(paused *bool) provider.Caller {
	return func(_ context.Context, call func() error) error {
		if *paused {
			return &provider.Error{Kind: provider.Throttled, Err: provider.ErrNotCalled, RetryAfter: 9 * time.Second}
		}
		for {
			if err := call(); provider.KindOf(err) != provider.Throttled {
				return err
			}
		}
	}
}

func TestAThrottledCallIsMadeAgainByItself(t *testing.T) {
	w := withRights(t)
	w.google.Fail(gcptest.Access, 2, codes.ResourceExhausted, "Quota exceeded", 0)
	paused := false
	result, err := w.Fetch(provider.WithCaller(t.Context(), governed(&paused)), w.request(web1, w.many(1)))
	if err != nil || len(result.Files) != 1 {
		t.Fatalf("got %d files, %v", len(result.Files), err)
	}
	w.wantCalls("metadata=3 sts=1 AccessSecretVersion=3")
}

func TestWhatIsNotCalledIsThrottled(t *testing.T) {
	w := withRights(t)
	req := w.request(web1, w.many(2))
	result := w.fetch(req)
	w.google.Calls()
	paused := true
	ctx := provider.WithCaller(t.Context(), governed(&paused))
	_, err := w.Fetch(ctx, refresh(req, result))
	wantError(t, err, provider.Throttled)
	var failure *provider.Error
	if !errors.As(err, &failure) || failure.RetryAfter != 9*time.Second {
		t.Errorf("got %#v", failure)
	}
	w.wantCalls("")
	paused = false
	if _, err := w.Fetch(ctx, refresh(req, result)); err != nil {
		t.Fatal(err)
	}
	w.wantCalls("GetSecretVersion=2") // still
}

// To ask for versions has a quota of its own, and there is another way.
func TestAThrottledVersionIsNotAskedForAgain(t *testing.T) {
	w := withRights(t)
	req := w.request(web1, w.many(1))
	result := w.fetch(req)
	w.google.Calls()
	w.google.Fail(gcptest.Get, 1, codes.ResourceExhausted, "Quota exceeded", 0)
	paused := false
	if _, err := w.Fetch(provider.WithCaller(t.Context(), governed(&paused)), refresh(req, result)); err != nil {
		t.Fatal(err)
	}
	w.wantCalls("GetSecretVersion=1 AccessSecretVersion=1")
}
