package aws

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	awstest "github.com/csi-secrets/csi-secrets/test/aws"
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
	w := newWorld(t)
	w.PutSecret(west, "db", "x")
	w.PutParameter(west, "p", "y")
	throttled := awstest.Failure{Code: "ThrottlingException", Message: "Rate exceeded"}
	w.Fail(west, "GetSecretValue", throttled, throttled)
	w.Fail(west, "GetParameters", throttled)
	w.Fail(west, "AssumeRoleWithWebIdentity", awstest.Failure{Code: "Throttling", Message: "Rate exceeded"})
	v := w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}\n- {objectName: p, objectType: ssmparameter}")
	paused := false
	r, err := v.Fetch(provider.WithCaller(t.Context(), governed(&paused)), v.request)
	if err != nil || len(r.Files) != 2 {
		t.Fatalf("got %d files, %v", len(r.Files), err)
	}
	w.wantCalls("it", "2 AssumeRoleWithWebIdentity, 2 GetParameters, 3 GetSecretValue")
}

func TestWhatIsNotCalledIsThrottled(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"db", "other"} {
		w.PutSecret(west, name, "x")
	}
	v := w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}\n- {objectName: other, objectType: secretsmanager}")
	if _, err := v.fetch(); err != nil {
		t.Fatal(err)
	}
	w.wantCalls("the mount", "1 AssumeRoleWithWebIdentity, 1 BatchGetSecretValue")
	paused := true
	_, err := v.Fetch(provider.WithCaller(t.Context(), governed(&paused)), v.request)
	wantError(t, err, provider.Throttled)
	var failure *provider.Error
	if !errors.As(err, &failure) || failure.RetryAfter != 9*time.Second {
		t.Errorf("got %#v", failure)
	}
	w.wantCalls("a pause", "")
	if got := v.fetched(); got != "not modified" {
		t.Errorf("a refresh: %s", got)
	}
	w.wantCalls("a refresh", "1 BatchGetSecretValue") // still
}

// Batches have another way, so that nobody waits for their quota.
func TestAThrottledBatchIsNotMadeAgain(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"db", "other"} {
		w.PutSecret(west, name, "x")
	}
	w.Fail(west, "BatchGetSecretValue", awstest.Failure{Code: "ThrottlingException", Message: "Rate exceeded"})
	v := w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}\n- {objectName: other, objectType: secretsmanager}")
	paused := false
	if _, err := v.Fetch(provider.WithCaller(t.Context(), governed(&paused)), v.request); err != nil {
		t.Fatal(err)
	}
	w.wantCalls("it", "1 AssumeRoleWithWebIdentity, 1 BatchGetSecretValue, 2 GetSecretValue")
}
