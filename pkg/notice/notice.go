// Package notice hears from clouds that objects have changed, so that volumes
// are refreshed at once and not only after their interval. What is heard is a
// provider.Hint: it carries no value, and has a store asked once more, as the
// pods that read it, and nothing else.
//
// Webhooks (NewWebhook, NewEventGrid, NewPubSubPush) and queues (SQS, PubSub,
// StorageQueue) bring hints to a Sink. In a cluster that is Annotator.Take: it annotates the
// classes that are concerned, which every node's driver watches.
package notice

import (
	"context"
	"math/rand/v2"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Sink takes hints over. After an error their sender is to send them again. It
// is safe for concurrent use.
type Sink func(ctx context.Context, hints []provider.Hint) error

// Recorder counts messages by where they come from: "webhook", "eventgrid",
// "pubsubpush", "sqs", "pubsub" and "storagequeue". Received is for those whose sender is known,
// Refused for those that had no effect, and why. It is safe for concurrent use.
type Recorder interface {
	Received(source string)
	Refused(source, reason string)
}

// The reasons for which a message is refused.
const (
	reasonRequest   = "request"   // it is no POST of JSON
	reasonSize      = "size"      // it is too large
	reasonSignature = "signature" // nobody who is known has signed it
	reasonExpired   = "expired"   // it was signed too long ago, or in the future
	reasonReplayed  = "replayed"  // it was taken before
	reasonToken     = "token"     // the sender's token is none, or is not for here
	reasonKeys      = "keys"      // the keys of the tokens' issuer cannot be had
	reasonMalformed = "malformed" // it is authentic, and cannot be understood
	reasonSink      = "sink"      // the sink did not take it
)

const (
	// maxBytes bounds a message.
	maxBytes = 256 << 10
	// A queue that fails is asked again after firstRetry, and then after twice as
	// long each time, up to lastRetry, give or take a tenth.
	firstRetry, lastRetry = time.Second, time.Minute
)

type noRecorder struct{}

func (noRecorder) Received(string)        {}
func (noRecorder) Refused(string, string) {}

// follow calls receive until ctx ends, and tells of its first failure and of the
// end of it.
func follow(ctx context.Context, queue string, receive func(ctx context.Context) error) {
	logger, failing, wait := klog.FromContext(ctx), false, firstRetry
	for ctx.Err() == nil {
		err := receive(ctx)
		if err == nil {
			if failing {
				logger.Info("Notices of changes arrive again", "queue", queue)
			}
			failing, wait = false, firstRetry
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if !failing {
			logger.Error(err, "Notices of changes do not arrive; it is tried again", "queue", queue)
		}
		failing = true
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(float64(wait) * (0.9 + 0.2*rand.Float64()))):
		}
		wait = min(2*wait, lastRetry)
	}
}
