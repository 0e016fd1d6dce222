package notice

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
)

const (
	// appID is what CloudTrail shows of the caller's program, and the name of its
	// sessions.
	appID = "csi-secrets-notices"
	// sqsWait is how long SQS waits for a message, which is the longest that it
	// does, and sqsBatch the most that it brings.
	sqsWait, sqsBatch = 20 * time.Second, 10
	// callTimeout bounds a call to a queue, beside what it waits there.
	callTimeout = 15 * time.Second
)

// SQSConfig is a queue of Amazon SQS that rules of EventBridge send to, and who
// reads it: a role by IRSA, or by EKS Pod Identity.
type SQSConfig struct {
	// QueueURL and Region are those of the queue.
	QueueURL, Region string
	// RoleARN is the role to assume with the token in TokenFile, as the variables
	// AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE of a pod say.
	RoleARN, TokenFile string
	// AgentURL is where the agent of EKS Pod Identity is, and AgentTokenFile the
	// token for it, as AWS_CONTAINER_CREDENTIALS_FULL_URI and
	// AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE say. They are in place of a role.
	AgentURL, AgentTokenFile string
	// CAs are those that AWS's certificates may be of; nil for the machine's.
	CAs *x509.CertPool
	// Dial connects to AWS; nil for the network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Recorder may be nil.
	Recorder Recorder
}

// SQS hears of changes at AWS through a queue.
type SQS struct {
	queue    string
	client   *sqs.Client
	recorder Recorder
}

// NewSQS returns an SQS, or what is wrong with its configuration.
func NewSQS(c SQSConfig) (*SQS, error) {
	parsed, err := url.Parse(c.QueueURL)
	switch byRole, byAgent := c.RoleARN != "" && c.TokenFile != "", c.AgentURL != "" && c.AgentTokenFile != ""; {
	case err != nil || parsed.Scheme != "https" || parsed.Host == "":
		return nil, fmt.Errorf("notice: %.200q is not the URL of a queue, as in https://sqs.us-west-2.amazonaws.com/123456789012/NAME", c.QueueURL)
	case c.Region == "":
		return nil, errors.New("notice: the queue has no region")
	case byRole == byAgent:
		return nil, errors.New("notice: the queue needs a role with a token file (IRSA) or an agent with a token file (EKS Pod Identity): give the pod's service account a role")
	}
	transport := web.Transport(&tls.Config{RootCAs: c.CAs, MinVersion: tls.VersionTLS12})
	agent := &http.Transport{DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext} // it is on the node
	if c.Dial != nil {
		transport.DialContext, agent.DialContext = c.Dial, c.Dial
	}
	reach := &http.Client{Transport: transport, CheckRedirect: web.StayThere}
	var identity aws.CredentialsProvider
	if c.RoleARN != "" {
		tokens := sts.New(sts.Options{Region: c.Region, AppID: appID, HTTPClient: reach, Retryer: aws.NopRetryer{}})
		identity = stscreds.NewWebIdentityRoleProvider(tokens, c.RoleARN, tokenFile(c.TokenFile), func(o *stscreds.WebIdentityRoleOptions) { o.RoleSessionName = appID })
	} else {
		identity = endpointcreds.New(c.AgentURL, func(o *endpointcreds.Options) {
			o.HTTPClient, o.Retryer = &http.Client{Transport: agent, CheckRedirect: web.StayThere}, aws.NopRetryer{}
			o.AuthorizationTokenProvider = tokenFile(c.AgentTokenFile)
		})
	}
	if c.Recorder == nil {
		c.Recorder = noRecorder{}
	}
	return &SQS{c.QueueURL, sqs.New(sqs.Options{
		Region: c.Region, AppID: appID, HTTPClient: reach, Retryer: aws.NopRetryer{}, Credentials: aws.NewCredentialsCache(identity),
	}), c.Recorder}, nil
}

// tokenFile is a file of a token that kubelet replaces.
type tokenFile string

var (
	_ stscreds.IdentityTokenRetriever = tokenFile("")
	_ endpointcreds.AuthTokenProvider = tokenFile("")
)

func (f tokenFile) GetIdentityToken() ([]byte, error) {
	token, err := os.ReadFile(string(f))
	return bytes.TrimSpace(token), err
}

func (f tokenFile) GetToken() (string, error) {
	token, err := f.GetIdentityToken()
	return string(token), err
}

// Run passes on what arrives until ctx ends. A message is deleted once the sink
// took it, or where it cannot be understood. Run is called once.
func (q *SQS) Run(ctx context.Context, sink Sink) {
	follow(ctx, q.queue, func(ctx context.Context) error { return q.receive(ctx, sink) })
}

func (q *SQS) receive(ctx context.Context, sink Sink) error {
	waiting, cancel := context.WithTimeout(ctx, sqsWait+callTimeout)
	defer cancel()
	out, err := q.client.ReceiveMessage(waiting, &sqs.ReceiveMessageInput{QueueUrl: &q.queue, MaxNumberOfMessages: sqsBatch, WaitTimeSeconds: int32(sqsWait.Seconds())})
	if err != nil {
		return q.explain("receive", err)
	}
	var hints []provider.Hint
	var done []types.DeleteMessageBatchRequestEntry
	for i, m := range out.Messages {
		q.recorder.Received("sqs")
		h, err := parseEventBridge([]byte(aws.ToString(m.Body)))
		if err != nil {
			q.recorder.Refused("sqs", reasonMalformed)
		} else if h != nil {
			hints = append(hints, *h)
		}
		done = append(done, types.DeleteMessageBatchRequestEntry{Id: aws.String(fmt.Sprint(i)), ReceiptHandle: m.ReceiptHandle})
	}
	if len(hints) > 0 {
		if err := sink(ctx, hints); err != nil {
			q.recorder.Refused("sqs", reasonSink)
			return err
		}
	}
	if len(done) == 0 {
		return nil
	}
	deleting, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	// What is not deleted comes again, and does no harm.
	if _, err := q.client.DeleteMessageBatch(deleting, &sqs.DeleteMessageBatchInput{QueueUrl: &q.queue, Entries: done}); err != nil {
		return q.explain("delete", err)
	}
	return nil
}

// queueRemedies are those of the codes of SQS and STS that say what to do.
var queueRemedies = map[string]string{
	"AccessDenied":                            "allow the role sqs:ReceiveMessage and sqs:DeleteMessage on the queue, and its trust policy to be assumed by the pod's service account",
	"AccessDeniedException":                   "allow the role sqs:ReceiveMessage and sqs:DeleteMessage on the queue",
	"AWS.SimpleQueueService.NonExistentQueue": "correct the queue's URL or the region",
	"QueueDoesNotExist":                       "correct the queue's URL or the region",
	"InvalidAddress":                          "correct the queue's URL or the region",
	"InvalidIdentityToken":                    "is the cluster's issuer an identity provider of the account, and the token's audience sts.amazonaws.com?",
	"ExpiredTokenException":                   "is the clock right?",
	"SignatureDoesNotMatch":                   "is the clock right?",
}

// explain makes an error of what the SDK returned: AWS's code and what to do, or
// what is wrong with the connection. Other words may have a token in them.
func (q *SQS) explain(op string, err error) error {
	var answer smithy.APIError
	var located *url.Error
	var file *fs.PathError
	why := errors.New("there is no answer")
	switch {
	case errors.As(err, &answer):
		why = errors.New(answer.ErrorCode())
		if remedy := queueRemedies[answer.ErrorCode()]; remedy != "" {
			why = fmt.Errorf("%s; %s", answer.ErrorCode(), remedy)
		}
	case errors.As(err, &located):
		why = located.Err
	case errors.As(err, &file):
		why = fmt.Errorf("the token of the pod cannot be read: %w; is it mounted?", file)
	}
	return fmt.Errorf("%s messages of the queue %s: %w", op, q.queue, why)
}
