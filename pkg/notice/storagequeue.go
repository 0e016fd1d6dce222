package notice

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/queueerror"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

const (
	// storageBatch is the most messages that a queue brings at a time, and
	// storageHidden how many seconds nobody else gets those.
	storageBatch, storageHidden int32 = 32, 60
	// storagePause comes after an answer without a message: the queue waits for none.
	storagePause = 2 * time.Second
)

// StorageQueueConfig is a queue of Azure Storage that subscriptions of Event Grid send
// to.
type StorageQueueConfig struct {
	// QueueURL is the queue's, as in https://ACCOUNT.queue.core.windows.net/NAME.
	QueueURL string
	// Credential is who reads it, and Transport how it is reached; see
	// azure.Provider.Own.
	Credential azcore.TokenCredential
	Transport  policy.Transporter
	// Recorder may be nil.
	Recorder Recorder
}

// StorageQueue hears of changes at Azure through a queue.
type StorageQueue struct {
	url      string
	client   *azqueue.QueueClient
	recorder Recorder
}

// NewStorageQueue returns a StorageQueue, or what is wrong with its configuration.
func NewStorageQueue(c StorageQueueConfig) (*StorageQueue, error) {
	parsed, err := url.Parse(c.QueueURL)
	switch {
	case err != nil || parsed.Scheme != "https" || parsed.Host == "" || strings.Trim(parsed.Path, "/") == "" || parsed.User != nil || parsed.RawQuery != "":
		return nil, errors.New("notice: that is not the URL of a queue, as in https://ACCOUNT.queue.core.windows.net/NAME") // it may have a signature in it
	case c.Credential == nil:
		return nil, errors.New("notice: nobody is to read the queue")
	}
	if c.Recorder == nil {
		c.Recorder = noRecorder{}
	}
	client, err := azqueue.NewQueueClient(c.QueueURL, c.Credential, &azqueue.ClientOptions{ClientOptions: policy.ClientOptions{
		Transport: c.Transport, Retry: policy.RetryOptions{MaxRetries: -1}, Telemetry: policy.TelemetryOptions{ApplicationID: appID},
	}})
	if err != nil {
		return nil, fmt.Errorf("notice: %w", err)
	}
	return &StorageQueue{c.QueueURL, client, c.Recorder}, nil
}

// Run passes on what arrives until ctx ends. A message is deleted once the sink
// took it, or where it cannot be understood. Run is called once.
func (q *StorageQueue) Run(ctx context.Context, sink Sink) {
	follow(ctx, q.url, func(ctx context.Context) error { return q.receive(ctx, sink) })
}

func (q *StorageQueue) receive(ctx context.Context, sink Sink) error {
	receiving, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	number, hidden := storageBatch, storageHidden
	out, err := q.client.DequeueMessages(receiving, &azqueue.DequeueMessagesOptions{NumberOfMessages: &number, VisibilityTimeout: &hidden})
	if err != nil {
		return q.explain("receive", err)
	}
	if len(out.Messages) == 0 {
		select {
		case <-ctx.Done():
		case <-time.After(storagePause):
		}
		return nil
	}
	var hints []provider.Hint
	for _, m := range out.Messages {
		q.recorder.Received("storagequeue")
		if found, err := parseQueued(text(m.MessageText)); err != nil {
			q.recorder.Refused("storagequeue", reasonMalformed)
		} else {
			hints = append(hints, found...)
		}
	}
	if len(hints) > 0 {
		if err := sink(ctx, hints); err != nil {
			q.recorder.Refused("storagequeue", reasonSink)
			return err
		}
	}
	deleting, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	for _, m := range out.Messages {
		// What is not deleted comes again, and does no harm.
		_, err := q.client.DeleteMessage(deleting, text(m.MessageID), text(m.PopReceipt), nil)
		if err != nil && !queueerror.HasCode(err, queueerror.MessageNotFound, queueerror.PopReceiptMismatch) {
			return q.explain("delete", err)
		}
	}
	return nil
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// parseQueued reads a message of Event Grid in a queue, which is base64 of JSON, and
// JSON itself, as others may put it there.
func parseQueued(message string) ([]provider.Hint, error) {
	body, err := base64.StdEncoding.DecodeString(message)
	if err != nil {
		body = []byte(message)
	}
	hints, code, err := parseEventGrid(body)
	if err == nil && code != "" {
		err = errors.New("a queue validates no subscription")
	}
	return hints, err
}

// storageRemedies are those of the codes of Azure Storage that say what to do.
var storageRemedies = map[string]string{
	"AuthorizationPermissionMismatch": `assign the controller's identity the role "Storage Queue Data Message Processor" on the queue; a new assignment counts after some minutes`,
	"AuthorizationFailure":            "let the controller's network through the storage account's firewall",
	"AuthenticationFailed":            "is the storage account of the identity's tenant, and the clock right?",
	"InvalidAuthenticationInfo":       "is the storage account of the identity's tenant, and the clock right?",
	"QueueNotFound":                   "create the queue, or correct its URL",
	"ResourceNotFound":                "correct the queue's URL",
	"AccountIsDisabled":               "enable the storage account",
}

// explain makes an error of what the SDK returned: Azure's code and what to do, or
// what is wrong with the login or the connection. Other words may have a token in
// them.
func (q *StorageQueue) explain(op string, err error) error {
	var answer *azcore.ResponseError
	var login *provider.Error
	var located *url.Error
	why := errors.New("there is no answer")
	switch {
	case errors.As(err, &login):
		why = login
	case errors.As(err, &answer):
		why = fmt.Errorf("the answer is %d", answer.StatusCode)
		if answer.ErrorCode != "" {
			why = fmt.Errorf("%w (%s)", why, answer.ErrorCode)
		}
		if remedy := storageRemedies[answer.ErrorCode]; remedy != "" {
			why = fmt.Errorf("%w; %s", why, remedy)
		}
	case errors.As(err, &located):
		why = located.Err
	}
	return fmt.Errorf("%s messages of the queue %s: %w", op, q.url, why)
}
