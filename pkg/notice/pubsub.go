package notice

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

const (
	// pullWait is how long Pub/Sub is given to wait for a message.
	pullWait = 90 * time.Second
	// pullBatch is how many it may bring.
	pullBatch = 100
	// pullPause comes after an answer without a message, which may have come at once.
	pullPause = time.Second
)

// PubSubConfig is a pull subscription of Google Pub/Sub to the topics of secrets.
type PubSubConfig struct {
	// Subscription is its name: projects/PROJECT/subscriptions/NAME.
	Subscription string
	// Conn makes calls to Pub/Sub with credentials; see gcp.Provider.Own.
	Conn grpc.ClientConnInterface
	// Recorder may be nil.
	Recorder Recorder
}

// PubSub hears of changes at Google Cloud through a subscription.
type PubSub struct {
	subscription string
	client       pubsubpb.SubscriberClient
	recorder     Recorder
}

var subscriptionName = regexp.MustCompile(`^projects/[A-Za-z0-9.:-]+/subscriptions/[A-Za-z0-9_.~+%-]+$`)

// NewPubSub returns a PubSub, or what is wrong with its configuration.
func NewPubSub(c PubSubConfig) (*PubSub, error) {
	if !subscriptionName.MatchString(c.Subscription) {
		return nil, fmt.Errorf("notice: %.200q is not the name of a subscription, as in projects/PROJECT/subscriptions/NAME", c.Subscription)
	}
	if c.Conn == nil {
		return nil, errors.New("notice: there is no connection to Pub/Sub")
	}
	if c.Recorder == nil {
		c.Recorder = noRecorder{}
	}
	return &PubSub{c.Subscription, pubsubpb.NewSubscriberClient(c.Conn), c.Recorder}, nil
}

// Run passes on what arrives until ctx ends. A message is acknowledged once the
// sink took it, or where it cannot be understood. Run is called once.
func (p *PubSub) Run(ctx context.Context, sink Sink) {
	follow(ctx, p.subscription, func(ctx context.Context) error { return p.receive(ctx, sink) })
}

func (p *PubSub) receive(ctx context.Context, sink Sink) error {
	// Google's servers route by it, see https://google.aip.dev/client-libraries/4222.
	ctx = metadata.AppendToOutgoingContext(ctx, "x-goog-request-params", "subscription="+url.QueryEscape(p.subscription))
	pulling, cancel := context.WithTimeout(ctx, pullWait)
	defer cancel()
	out, err := p.client.Pull(pulling, &pubsubpb.PullRequest{Subscription: p.subscription, MaxMessages: pullBatch})
	if err != nil && errors.Is(pulling.Err(), context.DeadlineExceeded) {
		return nil // there was none
	}
	if err != nil {
		return p.explain(err)
	}
	var hints []provider.Hint
	var done []string
	for _, m := range out.GetReceivedMessages() {
		p.recorder.Received("pubsub")
		h, err := secretManagerHint(m.GetMessage().GetAttributes())
		if err != nil {
			p.recorder.Refused("pubsub", reasonMalformed)
		} else if h != nil {
			hints = append(hints, *h)
		}
		done = append(done, m.GetAckId())
	}
	if len(hints) > 0 {
		if err := sink(ctx, hints); err != nil {
			p.recorder.Refused("pubsub", reasonSink)
			return err
		}
	}
	if len(done) == 0 {
		select {
		case <-ctx.Done():
		case <-time.After(pullPause):
		}
		return nil
	}
	acknowledging, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if _, err := p.client.Acknowledge(acknowledging, &pubsubpb.AcknowledgeRequest{Subscription: p.subscription, AckIds: done}); err != nil {
		return p.explain(err)
	}
	return nil
}

func (p *PubSub) explain(err error) error {
	remedy := ""
	switch provider.KindOf(err) {
	case provider.Denied:
		remedy = "; grant the controller's identity roles/pubsub.subscriber on the subscription"
	case provider.NotFound:
		remedy = "; create the subscription, or correct its name"
	}
	return fmt.Errorf("messages of %s: %w%s", p.subscription, err, remedy)
}
