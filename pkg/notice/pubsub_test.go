package notice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/gcp"
	"github.com/csi-secrets/csi-secrets/test/cloud"
	gcptest "github.com/csi-secrets/csi-secrets/test/gcp"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

const subscription = "projects/shop/subscriptions/notices"

// topic stands in for Pub/Sub behind Google's own description of the service, as
// far as one subscription is read.
type topic struct {
	pubsubpb.UnimplementedSubscriberServer
	t *testing.T

	mu        sync.Mutex
	published int
	messages  map[string]map[string]string // attributes by ack id
	out       map[string]bool              // those that were pulled
	refuse    error
	news      chan struct{}
}

// newTopic returns a stand-in, and a PubSub that has the identity of the node, as
// the metadata server tells it.
func newTopic(t *testing.T, recorder Recorder) (*topic, *PubSub) {
	t.Helper()
	n := cloud.New(t)
	gcptest.New(t, n, issuer.New(t).Verifier()) // for its metadata server
	s := &topic{t: t, messages: map[string]map[string]string{}, out: map[string]bool{}, news: make(chan struct{})}
	server := grpc.NewServer()
	pubsubpb.RegisterSubscriberServer(server, s)
	t.Cleanup(server.Stop)
	n.Handle("pubsub.googleapis.com", server)
	google, err := gcp.New(gcp.Config{Roots: n.Pool(), DialContext: n.DialContext})
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPubSub(PubSubConfig{Subscription: subscription, Conn: google.Own("pubsub"), Recorder: recorder})
	if err != nil {
		t.Fatal(err)
	}
	return s, p
}

func (s *topic) publish(attributes map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.published++
	s.messages[fmt.Sprint("ack-", s.published)] = attributes
	close(s.news)
	s.news = make(chan struct{})
}

func (s *topic) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
	clear(s.out)
}

func (s *topic) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.messages)
}

// check tells what is wrong with a call.
func (s *topic) check(ctx context.Context, name string) error {
	header, _ := metadata.FromIncomingContext(ctx)
	if got := strings.Join(header.Get("authorization"), ","); !strings.HasPrefix(got, "Bearer ya29.") {
		return status.Errorf(codes.Unauthenticated, "a call with the authorization %q", got)
	}
	if got := header.Get("x-goog-request-params"); !slices.Equal(got, []string{"subscription=projects%2Fshop%2Fsubscriptions%2Fnotices"}) {
		return status.Errorf(codes.InvalidArgument, "the routing header is %q", got)
	}
	if name != subscription {
		return status.Errorf(codes.NotFound, "Resource not found (resource=%s).", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refuse
}

func (s *topic) Pull(ctx context.Context, r *pubsubpb.PullRequest) (*pubsubpb.PullResponse, error) {
	if err := s.check(ctx, r.GetSubscription()); err != nil {
		return nil, err
	}
	if r.GetMaxMessages() < 1 {
		return nil, status.Error(codes.InvalidArgument, "You have passed an invalid argument to the service (argument=max_messages).")
	}
	for {
		s.mu.Lock()
		news, answer := s.news, &pubsubpb.PullResponse{}
		for id, attributes := range s.messages {
			if !s.out[id] {
				s.out[id] = true
				answer.ReceivedMessages = append(answer.ReceivedMessages, &pubsubpb.ReceivedMessage{AckId: id, Message: &pubsubpb.PubsubMessage{MessageId: id, Attributes: attributes, Data: []byte("{}")}})
			}
		}
		s.mu.Unlock()
		if len(answer.ReceivedMessages) > 0 {
			return answer, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (s *topic) Acknowledge(ctx context.Context, r *pubsubpb.AcknowledgeRequest) (*emptypb.Empty, error) {
	if err := s.check(ctx, r.GetSubscription()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range r.GetAckIds() {
		if s.messages[id] == nil {
			s.t.Errorf("%s is acknowledged", id)
		}
		delete(s.messages, id)
	}
	return &emptypb.Empty{}, nil
}

var added = map[string]string{"dataFormat": "JSON_API_V1", "eventType": "SECRET_VERSION_ADD", "secretId": "projects/827585297303/secrets/db", "versionId": "projects/827585297303/secrets/db/versions/2"}

func TestAMessageOfTheSubscriptionReachesTheSinkAndIsAcknowledged(t *testing.T) {
	h := &heard{}
	s, p := newTopic(t, h)
	runUntilTheEnd(t, func(ctx context.Context) { p.Run(ctx, h.take) })
	s.publish(added)
	eventually(t, "an empty subscription", func() bool { return s.left() == 0 })
	h.want(t, []provider.Hint{{Provider: "gcp", Store: "827585297303", Object: "projects/827585297303/secrets/db"}}, "pubsub")
	s.publish(map[string]string{"eventType": "TOPIC_CONFIGURED"})
	eventually(t, "an empty subscription", func() bool { return s.left() == 0 })
	h.want(t, nil, "pubsub")
	s.publish(map[string]string{"eventType": "OBJECT_FINALIZE"})
	eventually(t, "an empty subscription", func() bool { return s.left() == 0 })
	h.want(t, nil, "pubsub", "pubsub malformed")
}

func TestAMessageThatTheSinkDoesNotTakeIsNotAcknowledged(t *testing.T) {
	h := &heard{}
	s, p := newTopic(t, h)
	s.publish(added)
	h.fail(errors.New("no classes"))
	if err := p.receive(t.Context(), h.take); err == nil || s.left() != 1 {
		t.Errorf("%v, and %d messages are left", err, s.left())
	}
	h.fail(nil)
	s.fail(nil) // and its time is over
	if err := p.receive(t.Context(), h.take); err != nil || s.left() != 0 || h.number() != 1 {
		t.Errorf("%v, %d messages are left, %d hints arrived", err, s.left(), h.number())
	}
}

func TestASubscriptionThatRefusesIsExplained(t *testing.T) {
	h := &heard{}
	s, p := newTopic(t, h)
	for code, want := range map[codes.Code]string{
		codes.PermissionDenied: "grant the controller's identity roles/pubsub.subscriber",
		codes.NotFound:         "create the subscription, or correct its name",
		codes.Internal:         "something else",
	} {
		s.fail(status.Error(code, "something else"))
		if err := p.receive(t.Context(), h.take); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), subscription) {
			t.Errorf("of %v: %v", code, err)
		}
	}
	if _, err := NewPubSub(PubSubConfig{Subscription: "notices"}); err == nil || !strings.Contains(err.Error(), "projects/PROJECT/subscriptions/NAME") {
		t.Errorf("of a short name: %v", err)
	}
	if _, err := NewPubSub(PubSubConfig{Subscription: subscription}); err == nil {
		t.Error("a PubSub without a connection is no error")
	}
}
