package notice

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/test/cloud"
)

const (
	queueURL  = "https://sqs.us-west-2.amazonaws.com/123456789012/notices"
	queueRole = "arn:aws:iam::123456789012:role/notices"
	agentURL  = "http://169.254.170.23/v1/credentials"
	podToken  = "token-of-the-pod"
)

// queue stands in for SQS, for the STS and for the agent of EKS Pod Identity, as
// far as one queue is read. It checks each request, its signature included.
type queue struct {
	t   *testing.T
	net *cloud.Net
	dir string // with the pod's token

	mu       sync.Mutex
	messages map[string]string // by receipt handle
	hidden   map[string]bool   // those that were received
	sent     int
	refuse   string        // the code with which ReceiveMessage fails
	logins   []string      // of "sts" and "agent"
	news     chan struct{} // closed when there is something to receive
}

var queueCredentials = aws.Credentials{AccessKeyID: "ASIAQUEUE", SecretAccessKey: "canary-secret-key", SessionToken: "canary-session-token"}

func newQueue(t *testing.T) *queue {
	t.Helper()
	q := &queue{t: t, net: cloud.New(t), dir: t.TempDir(), messages: map[string]string{}, hidden: map[string]bool{}, news: make(chan struct{})}
	q.net.Handle("sqs.us-west-2.amazonaws.com", http.HandlerFunc(q.serve))
	q.net.Handle("sts.us-west-2.amazonaws.com", http.HandlerFunc(q.assumeRole))
	q.net.HandlePlain("169.254.170.23", http.HandlerFunc(q.agent))
	if err := os.WriteFile(q.tokenFile(), []byte(podToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return q
}

func (q *queue) tokenFile() string { return filepath.Join(q.dir, "token") }

// run follows the queue until the test ends.
func (q *queue) run(h *heard, change func(*SQSConfig)) {
	q.t.Helper()
	config := SQSConfig{QueueURL: queueURL, Region: "us-west-2", RoleARN: queueRole, TokenFile: q.tokenFile(), CAs: q.net.Pool(), Dial: q.net.DialContext, Recorder: h}
	if change != nil {
		change(&config)
	}
	s, err := NewSQS(config)
	if err != nil {
		q.t.Fatal(err)
	}
	runUntilTheEnd(q.t, func(ctx context.Context) { s.Run(ctx, h.take) })
}

// runUntilTheEnd runs something until the test ends, and waits for it.
func runUntilTheEnd(t *testing.T, run func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
}

func (q *queue) send(body string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sent++
	q.messages[fmt.Sprint("receipt-", q.sent)] = body
	q.tell()
}

// tell wakes who waits for messages. Callers hold q.mu.
func (q *queue) tell() {
	close(q.news)
	q.news = make(chan struct{})
}

// reappear shows messages that were received and not deleted.
func (q *queue) reappear() {
	q.mu.Lock()
	defer q.mu.Unlock()
	clear(q.hidden)
	q.tell()
}

func (q *queue) left() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.messages)
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("there never was %s", what)
}

// assumeRole is https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html.
func (q *queue) assumeRole(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || r.PostForm.Get("Action") != "AssumeRoleWithWebIdentity" || r.PostForm.Get("RoleArn") != queueRole || r.PostForm.Get("RoleSessionName") == "" {
		q.t.Errorf("a request to STS: %v, %v", err, r.PostForm)
	}
	w.Header().Set("Content-Type", "text/xml")
	if r.PostForm.Get("WebIdentityToken") != podToken {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code><Message>Nobody signed the token %s</Message></Error></ErrorResponse>`, r.PostForm.Get("WebIdentityToken"))
		return
	}
	q.login("sts")
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
		queueCredentials.AccessKeyID, queueCredentials.SecretAccessKey, queueCredentials.SessionToken, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
}

func (q *queue) login(by string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.logins = append(q.logins, by)
}

func (q *queue) agent(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/v1/credentials" || r.Header.Get("Authorization") != podToken {
		q.t.Errorf("a request %s to the agent, with the token %q", r.URL.Path, r.Header.Get("Authorization"))
	}
	q.login("agent")
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"AccessKeyId": queueCredentials.AccessKeyID, "SecretAccessKey": queueCredentials.SecretAccessKey, "Token": queueCredentials.SessionToken, "Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)})
}

// authentic computes the signature of a request again.
func (q *queue) authentic(r *http.Request, body []byte) error {
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return err
	}
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "https://"+r.Host+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	_, signed, _ := strings.Cut(r.Header.Get("Authorization"), "SignedHeaders=")
	signed, _, _ = strings.Cut(signed, ",")
	for name := range strings.SplitSeq(signed, ";") {
		if name != "host" && name != "content-length" {
			again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(r.Context(), queueCredentials, again, hex.EncodeToString(sum[:]), "sqs", "us-west-2", at); err != nil {
		return err
	}
	if again.Header.Get("Authorization") != r.Header.Get("Authorization") {
		return errors.New("the signature does not match")
	}
	return nil
}

// serve is SQS in its JSON protocol
// (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html,
// API_DeleteMessageBatch.html).
func (q *queue) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller has gone
	}
	if err := q.authentic(r, body); err != nil || r.Header.Get("Content-Type") != "application/x-amz-json-1.0" {
		q.t.Errorf("a request in %q: %v", r.Header.Get("Content-Type"), err)
	}
	var in struct {
		QueueURL            string `json:"QueueUrl"`
		MaxNumberOfMessages int
		WaitTimeSeconds     int
		Entries             []struct{ Id, ReceiptHandle string }
	}
	if err := json.Unmarshal(body, &in); err != nil || in.QueueURL != queueURL {
		q.t.Errorf("a request %s: %v", body, err)
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	switch operation := r.Header.Get("X-Amz-Target"); operation {
	case "AmazonSQS.ReceiveMessage":
		if in.MaxNumberOfMessages != 10 || in.WaitTimeSeconds != 20 {
			q.t.Errorf("it is asked for %d messages within %d seconds", in.MaxNumberOfMessages, in.WaitTimeSeconds)
		}
		q.receive(w, r)
	case "AmazonSQS.DeleteMessageBatch":
		q.delete(w, in.Entries)
	default:
		q.t.Errorf("an operation %q", operation)
	}
}

func (q *queue) receive(w http.ResponseWriter, r *http.Request) {
	for {
		q.mu.Lock()
		news, refuse := q.news, q.refuse
		type message struct{ MessageId, ReceiptHandle, Body, MD5OfBody string }
		var out []message
		for receipt, body := range q.messages {
			if !q.hidden[receipt] && len(out) < 10 && refuse == "" {
				q.hidden[receipt] = true
				sum := md5.Sum([]byte(body))
				out = append(out, message{receipt, receipt, body, hex.EncodeToString(sum[:])})
			}
		}
		q.mu.Unlock()
		if refuse != "" {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws.sqs#" + refuse, "message": "no, " + queueCredentials.SessionToken})
			return
		}
		if len(out) > 0 {
			_ = json.NewEncoder(w).Encode(map[string]any{"Messages": out})
			return
		}
		select {
		case <-news:
		case <-r.Context().Done():
			return
		}
	}
}

func (q *queue) delete(w http.ResponseWriter, entries []struct{ Id, ReceiptHandle string }) {
	q.mu.Lock()
	defer q.mu.Unlock()
	ids, successful := map[string]bool{}, []map[string]string{}
	if len(entries) == 0 || len(entries) > 10 {
		q.t.Errorf("%d messages are deleted at once", len(entries))
	}
	for _, e := range entries {
		if _, ok := q.messages[e.ReceiptHandle]; !ok || ids[e.Id] {
			q.t.Errorf("the deletion %+v", e)
		}
		ids[e.Id] = true
		delete(q.messages, e.ReceiptHandle)
		successful = append(successful, map[string]string{"Id": e.Id})
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"Successful": successful, "Failed": []any{}})
}

func (h *heard) number() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.hints)
}

func (h *heard) counted(what string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, c := range h.counts {
		if c == what {
			n++
		}
	}
	return n
}

func TestAMessageOfTheQueueReachesTheSinkAndIsDeleted(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*SQSConfig)
		login  string
	}{
		"a role by IRSA": {nil, "sts"},
		"EKS Pod Identity": {func(c *SQSConfig) {
			c.RoleARN, c.AgentURL, c.AgentTokenFile, c.TokenFile = "", agentURL, c.TokenFile, ""
		}, "agent"},
	} {
		t.Run(name, func(t *testing.T) {
			q, h := newQueue(t), &heard{}
			q.send(string(sample(t, "eventbridge-label.json")))
			q.run(h, c.change)
			eventually(t, "an empty queue", func() bool { return q.left() == 0 })
			h.want(t, []provider.Hint{{Provider: "aws", Store: "012345678901/us-west-2", Object: "arn:aws:secretsmanager:us-west-2:012345678901:secret:mySecret-a1b2c3"}}, "sqs")
			for range 25 {
				q.send(string(sample(t, "eventbridge-put.json")))
			}
			eventually(t, "an empty queue", func() bool { return q.left() == 0 })
			if n := h.number(); n != 25 {
				t.Errorf("%d hints arrived", n)
			}
			q.mu.Lock()
			defer q.mu.Unlock()
			if fmt.Sprint(q.logins) != "["+c.login+"]" {
				t.Errorf("the logins are %v", q.logins)
			}
		})
	}
}

func TestAMessageThatNobodyUnderstandsIsDeletedAndCounted(t *testing.T) {
	q, h := newQueue(t), &heard{}
	q.send("poison")
	q.run(h, nil)
	eventually(t, "an empty queue", func() bool { return q.left() == 0 })
	h.want(t, nil, "sqs", "sqs malformed")
	q.send(string(sample(t, "eventbridge-read.json")))
	eventually(t, "an empty queue", func() bool { return q.left() == 0 })
	h.want(t, nil, "sqs")
}

func TestAMessageThatTheSinkDoesNotTakeStays(t *testing.T) {
	q, h := newQueue(t), &heard{}
	h.fail(errors.New("no classes"))
	q.send(string(sample(t, "eventbridge-label.json")))
	q.run(h, nil)
	eventually(t, "a refusal", func() bool { return h.counted("sqs sink") == 1 })
	if q.left() != 1 {
		t.Error("the message was deleted")
	}
	h.fail(nil)
	q.reappear()
	eventually(t, "an empty queue", func() bool { return q.left() == 0 })
	if h.number() != 1 {
		t.Errorf("%d hints arrived", h.number())
	}
}

func TestAQueueThatRefusesIsAskedAgain(t *testing.T) {
	q, h := newQueue(t), &heard{}
	q.refuse = "QueueDoesNotExist"
	q.send(string(sample(t, "eventbridge-label.json")))
	s, err := NewSQS(SQSConfig{QueueURL: queueURL, Region: "us-west-2", RoleARN: queueRole, TokenFile: q.tokenFile(), CAs: q.net.Pool(), Dial: q.net.DialContext})
	if err != nil {
		t.Fatal(err)
	}
	receive := func(wants ...string) {
		t.Helper()
		err := s.receive(t.Context(), h.take)
		for _, want := range append(wants, queueURL) {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v\ndoes not say %q", err, want)
			}
		}
		for _, hidden := range []string{podToken, "canary"} {
			if err != nil && strings.Contains(err.Error(), hidden) {
				t.Errorf("%v\nshows %q", err, hidden)
			}
		}
	}
	receive("QueueDoesNotExist", "correct the queue's URL or the region")
	q.mu.Lock()
	q.refuse = ""
	q.mu.Unlock()
	if err := s.receive(t.Context(), h.take); err != nil || h.number() != 1 {
		t.Errorf("after that: %v, %d hints", err, h.number())
	}

	// A pod whose token is missing, or none that AWS takes.
	fresh := func() {
		if s, err = NewSQS(SQSConfig{QueueURL: queueURL, Region: "us-west-2", RoleARN: queueRole, TokenFile: q.tokenFile(), CAs: q.net.Pool(), Dial: q.net.DialContext}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(q.tokenFile(), []byte("canary-of-another-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh()
	receive("InvalidIdentityToken", "identity provider of the account")
	if err := os.Remove(q.tokenFile()); err != nil {
		t.Fatal(err)
	}
	fresh()
	receive("the token of the pod cannot be read", "is it mounted?")
}

func TestAQueueIsChecked(t *testing.T) {
	for name, c := range map[string]SQSConfig{
		"a name":        {QueueURL: "notices", Region: "us-west-2", RoleARN: queueRole, TokenFile: "t"},
		"no region":     {QueueURL: queueURL, RoleARN: queueRole, TokenFile: "t"},
		"no identity":   {QueueURL: queueURL, Region: "us-west-2"},
		"no token":      {QueueURL: queueURL, Region: "us-west-2", RoleARN: queueRole},
		"two of them":   {QueueURL: queueURL, Region: "us-west-2", RoleARN: queueRole, TokenFile: "t", AgentURL: agentURL, AgentTokenFile: "t"},
		"not encrypted": {QueueURL: "http://sqs.us-west-2.amazonaws.com/1/a", Region: "us-west-2", RoleARN: queueRole, TokenFile: "t"},
	} {
		if _, err := NewSQS(c); err == nil || !strings.HasPrefix(err.Error(), "notice: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
