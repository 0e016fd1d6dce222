package controller

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/csi-secrets/csi-secrets/internal/kube"
)

// The types and reasons of conditions are those of secrets-store-sync-controller.
const (
	conditionCreated = "SecretCreated"
	conditionUpdated = "SecretUpdated"

	reasonCreated  = "CreateSuccessful"
	reasonUpToDate = "SecretUpToDate"
	reasonNoUpdate = "NoUpdatesAttemptedYet"

	reasonClass    = "SecretProviderClassMisconfigured"
	reasonProvider = "ProviderError"
	reasonContents = "RemoteSecretStoreFetchFailed" // files that make no such Secret
	reasonWrite    = "ControllerPatchError"
	reasonInternal = "ControllerSyncError"
)

const (
	resource     = "secretsyncs"
	fieldManager = "csi-secrets-sync"
	// reword is how long a status stays where only the words of a failure differ.
	reword = 10 * time.Minute
)

// failure is why a Secret could not be synchronized, with the reason of its
// condition.
type failure struct {
	reason string
	err    error
}

func (f *failure) Error() string { return f.err.Error() }

func (f *failure) Unwrap() error { return f.err }

// outcome returns the status after a synchronization that failed with err, or
// succeeded, and then wrote the Secret or found it as it should be. writtenAt is when
// the Secret became what it is, zero where that is not known.
func (s *SecretSync) outcome(wrote bool, writtenAt time.Time, err error) Status {
	before, next := s.Status, Status{SyncHash: s.Status.SyncHash, LastSuccessfulSyncTime: s.Status.LastSuccessfulSyncTime}
	set := func(kind string, status metav1.ConditionStatus, reason, message string) {
		if known := meta.FindStatusCondition(before.Conditions, kind); known != nil {
			next.Conditions = append(next.Conditions, *known)
		}
		meta.SetStatusCondition(&next.Conditions, metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: s.Generation})
	}
	if err == nil {
		if writtenAt.IsZero() && (wrote || next.LastSuccessfulSyncTime == nil) {
			writtenAt = time.Now()
		}
		if !writtenAt.IsZero() {
			at := metav1.NewTime(writtenAt)
			next.LastSuccessfulSyncTime = &at
		}
		if wrote || next.SyncHash == "" {
			next.SyncHash = rand.Text()
		}
		set(conditionCreated, metav1.ConditionTrue, reasonCreated, "the Secret was made")
		set(conditionUpdated, metav1.ConditionTrue, reasonUpToDate, "the Secret holds what the store has")
		return next
	}
	reason := reasonInternal
	var known *failure
	if errors.As(err, &known) {
		reason = known.reason
	}
	switch {
	case before.SyncHash == "":
		set(conditionCreated, metav1.ConditionFalse, reason, kube.Cut(err.Error()))
		set(conditionUpdated, metav1.ConditionUnknown, reasonNoUpdate, "")
	case before.LastSuccessfulSyncTime == nil:
		set(conditionCreated, metav1.ConditionTrue, reasonCreated, "the Secret was made")
		set(conditionUpdated, metav1.ConditionFalse, reason, kube.Cut("the Secret stays as it is: "+err.Error()))
	default:
		set(conditionCreated, metav1.ConditionTrue, reasonCreated, "the Secret was made")
		set(conditionUpdated, metav1.ConditionFalse, reason, kube.Cut(fmt.Sprintf("the Secret stays as it has been since %s: %v", before.LastSuccessfulSyncTime.UTC().Format(time.RFC3339), err)))
	}
	return next
}

// failed returns the condition of a status that tells of a failure, an empty one
// where none does.
func (s Status) failed() metav1.Condition {
	for _, c := range s.Conditions {
		if c.Status == metav1.ConditionFalse {
			return c
		}
	}
	return metav1.Condition{}
}

// same compares statuses as the API server would show them.
func same(a, b Status) bool {
	first, err := json.Marshal(a)
	second, otherErr := json.Marshal(b)
	return err == nil && otherErr == nil && bytes.Equal(first, second)
}

// worded returns the status with the messages of another.
func (s Status) worded(other Status) Status {
	s = s.deepCopy()
	for i := range s.Conditions {
		if c := meta.FindStatusCondition(other.Conditions, s.Conditions[i].Type); c != nil {
			s.Conditions[i].Message = c.Message
		}
	}
	return s
}

// report writes the status of s, where it is another, and sends an event where a
// failure is new, or the Secret was changed.
func (c *Controller) report(ctx context.Context, o *object, s *SecretSync, wrote bool, err error) error {
	before, next := s.Status, s.outcome(wrote, o.writtenAt, err)
	if same(before, next) || time.Since(o.told) < reword && same(before, next.worded(before)) {
		return nil
	}
	// The UID keeps the status from another object of the same name.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": s.UID}, "status": next})
	if err != nil {
		return err
	}
	patching, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var written SecretSync
	err = c.client.Patch(types.MergePatchType).Namespace(s.Namespace).Resource(resource).Name(s.Name).SubResource("status").
		Param("fieldManager", fieldManager).Body(patch).Do(patching).Into(&written)
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil // it is gone, or another by now
	case err != nil:
		return fmt.Errorf("write the status of %s %s/%s: %w", Kind, s.Namespace, s.Name, err)
	}
	o.told = time.Now()
	c.keepStatus(s, written.Status)
	switch was, is := before.failed(), next.failed(); {
	case is.Reason != "" && is.Reason != was.Reason:
		c.event(ctx, s, corev1.EventTypeWarning, is.Reason, is.Message)
	case wrote && before.SyncHash != "":
		c.event(ctx, s, corev1.EventTypeNormal, conditionUpdated, fmt.Sprintf("wrote the Secret: it has what provider %s has now", o.provider))
	}
	return nil
}

func (c *Controller) event(ctx context.Context, s *SecretSync, kind, reason, message string) {
	about := corev1.ObjectReference{APIVersion: GroupVersion.String(), Kind: Kind, Namespace: s.Namespace, Name: s.Name, UID: s.UID}
	kube.Event{Component: fieldManager, About: about, Type: kind, Reason: reason, Message: message}.Send(ctx, c.core)
}
