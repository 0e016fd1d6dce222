package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

const (
	// maxText bounds what is said to the API server in bytes: that of events is
	// bounded by it.
	maxText = 1024
	// eventTimeout bounds the request that sends an event.
	eventTimeout = 10 * time.Second
)

// Cut shortens the text of an event or of a condition to what the API server takes,
// 1024 bytes.
func Cut(text string) string {
	const more = "…"
	if len(text) <= maxText {
		return text
	}
	return strings.ToValidUTF8(text[:maxText-len(more)], "") + more
}

// AddEvents tells a scheme of events.
func AddEvents(s *runtime.Scheme) {
	s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Event{})
}

// Event is what a component has to say of an object.
type Event struct {
	Component             string
	About                 corev1.ObjectReference
	Type, Reason, Message string
	// Once says that the same is said once only, also by other processes, for as
	// long as the API server remembers it.
	Once bool
}

// Send sends the event by a client of the core group that knows of events. An event
// that cannot be sent is lost.
func (e Event) Send(ctx context.Context, client rest.Interface) {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	named := metav1.ObjectMeta{Namespace: e.About.Namespace, GenerateName: e.About.Name + "."}
	if e.Once {
		sum := sha256.Sum256([]byte(string(e.About.UID) + "\x00" + e.Reason + "\x00" + e.Message))
		named = metav1.ObjectMeta{Namespace: e.About.Namespace, Name: "csi-secrets." + hex.EncodeToString(sum[:10])}
	}
	now := metav1.Now()
	err := client.Post().Namespace(e.About.Namespace).Resource("events").Body(&corev1.Event{
		ObjectMeta: named, InvolvedObject: e.About, Type: e.Type, Reason: e.Reason, Message: Cut(e.Message),
		Source: corev1.EventSource{Component: e.Component}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}).Do(ctx).Error()
	if err != nil && !(e.Once && apierrors.IsAlreadyExists(err)) {
		klog.FromContext(ctx).V(4).Info("Cannot send an event", "reason", err.Error())
	}
}
