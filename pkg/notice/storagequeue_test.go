package notice

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/azure"
	"github.com/csi-secrets/csi-secrets/pkg/provider/web"
	azuretest "github.com/csi-secrets/csi-secrets/test/azure"
	"github.com/csi-secrets/csi-secrets/test/cloud"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

// storage is an Azure with a queue, and the token of the pod that reads it.
type storage struct {
	*azuretest.Queue
	t      *testing.T
	net    *cloud.Net
	client string
	token  string // its file
}

func newStorage(t *testing.T) *storage {
	t.Helper()
	s := &storage{t: t, net: cloud.New(t), token: filepath.Join(t.TempDir(), "token")}
	pod, signs := issuer.Account{Namespace: "kube-system", Name: "controller", UID: "s1", Pod: "controller-1", PodUID: "p1"}, issuer.New(t)
	a := azuretest.New(t, s.net, signs.Verifier())
	s.client = a.Add(azuretest.Client{Subjects: []string{pod.Subject()}})
	s.Queue = a.Queue(s.net, "notices", "events", s.client)
	s.write(signs.Token(pod, azuretest.Audience))
	return s
}

func (s *storage) write(token string) {
	s.t.Helper()
	if err := os.WriteFile(s.token, []byte(token+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// reader returns a StorageQueue of this client.
func (s *storage) reader(client string, h *heard) *StorageQueue {
	s.t.Helper()
	p, err := azure.New(azure.Config{Transport: func(config *tls.Config) *http.Transport {
		if config != nil {
			config.RootCAs = s.net.Pool()
		}
		made := web.Transport(config)
		made.Proxy, made.DialContext = nil, s.net.DialContext
		s.t.Cleanup(made.CloseIdleConnections)
		return made
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	credential, transport, err := p.Own(azure.OwnIdentity{Tenant: azuretest.Tenant, Client: client, TokenFile: s.token})
	if err != nil {
		s.t.Fatal(err)
	}
	q, err := NewStorageQueue(StorageQueueConfig{QueueURL: s.URL, Credential: credential, Transport: transport, Recorder: h})
	if err != nil {
		s.t.Fatal(err)
	}
	return q
}

func (s *storage) run(h *heard) {
	s.t.Helper()
	q := s.reader(s.client, h)
	runUntilTheEnd(s.t, func(ctx context.Context) { q.Run(ctx, h.take) })
}

// queued returns a sample of a message in a queue: one event, in base64.
func queued(t *testing.T, name string) string {
	t.Helper()
	one := sample(t, name)
	var several []json.RawMessage
	if json.Unmarshal(one, &several) == nil {
		one = several[0]
	}
	return base64.StdEncoding.EncodeToString(one)
}

var newSecret = provider.Hint{Provider: "azure", Store: "sample-kv", Object: "newsecret"}

func TestAStorageQueueIsRead(t *testing.T) {
	s, h := newStorage(t), &heard{}
	s.Send(queued(t, "eventgrid-secret.json"))
	s.run(h)
	eventually(t, "an empty queue", func() bool { return s.Left() == 0 })
	h.want(t, []provider.Hint{newSecret}, "storagequeue")
	s.Send(queued(t, "cloudevent-secret.json"))
	s.Send(string(sample(t, "cloudevent-secret.json"))) // not encoded
	eventually(t, "an empty queue", func() bool { return s.Left() == 0 })
	if h.number() != 2 {
		t.Errorf("%d hints arrived", h.number())
	}
	for range 70 {
		s.Send(queued(t, "eventgrid-secret.json"))
	}
	eventually(t, "an empty queue", func() bool { return s.Left() == 0 })
	if h.number() != 72 {
		t.Errorf("%d hints arrived", h.number())
	}
	if refused := s.net.Refused(); len(refused) > 0 {
		t.Errorf("other hosts were asked for: %s", refused)
	}
}

func TestAQueuedMessageThatNobodyUnderstandsIsDeletedAndCounted(t *testing.T) {
	s, h := newStorage(t), &heard{}
	for _, poison := range []string{"poison", "", base64.StdEncoding.EncodeToString([]byte("poison")), queued(t, "eventgrid-validation.json")} {
		s.Send(poison)
	}
	s.run(h)
	eventually(t, "an empty queue", func() bool { return s.Left() == 0 })
	if h.counted("storagequeue") != 4 || h.counted("storagequeue malformed") != 4 || h.number() != 0 {
		t.Errorf("counted was %q", h.counts)
	}
}

func TestAQueuedMessageThatTheSinkDoesNotTakeStays(t *testing.T) {
	s, h := newStorage(t), &heard{}
	h.fail(errors.New("no classes"))
	s.Send(queued(t, "eventgrid-secret.json"))
	s.run(h)
	eventually(t, "a refusal", func() bool { return h.counted("storagequeue sink") == 1 })
	if s.Left() != 1 {
		t.Error("the message was deleted")
	}
	h.fail(nil)
	s.Reappear()
	eventually(t, "an empty queue", func() bool { return s.Left() == 0 })
	if h.number() != 1 {
		t.Errorf("%d hints arrived", h.number())
	}
}

func TestAStorageQueueThatCannotBeReadSaysWhy(t *testing.T) {
	s, h := newStorage(t), &heard{}
	s.Send(queued(t, "eventgrid-secret.json"))
	receive := func(q *StorageQueue, wants ...string) {
		t.Helper()
		err := q.receive(t.Context(), h.take)
		for _, want := range append(wants, s.URL) {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v\ndoes not say %q", err, want)
			}
		}
		token, _ := os.ReadFile(s.token)
		for _, hidden := range []string{strings.TrimSpace(string(token)), "eyJ", "Bearer"} {
			if err != nil && hidden != "" && strings.Contains(err.Error(), hidden) {
				t.Errorf("%v\nshows %q", err, hidden)
			}
		}
	}
	q := s.reader(s.client, h)
	for code, want := range map[string]string{
		"AuthorizationPermissionMismatch": "Storage Queue Data Message Processor", "QueueNotFound": "create the queue", "AuthorizationFailure": "firewall", "ServerBusy": "503",
	} {
		s.Fail(code)
		receive(q, code, want)
	}
	s.Fail("")
	if err := q.receive(t.Context(), h.take); err != nil || h.number() != 1 {
		t.Errorf("after that: %v, %d hints", err, h.number())
	}
	receive(s.reader("another-client", h), "AADSTS700016")
	s.write("eyJcanary.of.another")
	receive(s.reader(s.client, h), "AADSTS")
	if err := os.Remove(s.token); err != nil {
		t.Fatal(err)
	}
	receive(s.reader(s.client, h), "the token of this pod cannot be read", "is it mounted?")
}

func TestTheURLOfAStorageQueueIsChecked(t *testing.T) {
	for name, url := range map[string]string{
		"a name": "notices", "no queue": "https://notices.queue.core.windows.net/", "not encrypted": "http://notices.queue.core.windows.net/events",
		"a signature": "https://notices.queue.core.windows.net/events?sig=canary", "a password": "https://a:canary@notices.queue.core.windows.net/events",
	} {
		_, err := NewStorageQueue(StorageQueueConfig{QueueURL: url, Credential: static("x")})
		if err == nil || !strings.HasPrefix(err.Error(), "notice: ") || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewStorageQueue(StorageQueueConfig{QueueURL: "https://notices.queue.core.windows.net/events"}); err == nil {
		t.Error("nobody reads it")
	}
}

// static is a token.
type static string

func (s static) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(s), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// Microsoft's own emulator, where it runs: CSI_SECRETS_AZURITE is the URL of an account
// in it, as in https://127.0.0.1:10001/devstoreaccount1, of
//
//	azurite-queue --oauth basic --cert CERTIFICATE --key KEY
func TestAzurite(t *testing.T) {
	account := os.Getenv("CSI_SECRETS_AZURITE")
	if account == "" {
		return // it is no part of the suite: it needs Node.js
	}
	claims, _ := json.Marshal(map[string]any{"aud": azuretest.Storage, "iss": "https://sts.windows.net/" + azuretest.Tenant + "/", "nbf": time.Now().Add(-time.Minute).Unix(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()})
	encode := base64.RawURLEncoding.EncodeToString
	token := static(encode([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + encode(claims) + "." + encode([]byte("signature")))
	transport := &http.Client{Transport: web.Transport(&tls.Config{InsecureSkipVerify: true})} // a certificate of its own
	url := account + "/events"
	client, err := azqueue.NewQueueClient(url, token, &azqueue.ClientOptions{ClientOptions: policy.ClientOptions{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = client.Delete(context.Background(), nil) })
	for range 40 {
		if _, err := client.EnqueueMessage(t.Context(), queued(t, "eventgrid-secret.json"), nil); err != nil {
			t.Fatal(err)
		}
	}
	h := &heard{}
	read := func(url string, token static) error {
		q, err := NewStorageQueue(StorageQueueConfig{QueueURL: url, Credential: token, Transport: transport, Recorder: h})
		if err != nil {
			t.Fatal(err)
		}
		return q.receive(t.Context(), h.take)
	}
	for range 2 {
		if err := read(url, token); err != nil {
			t.Error(err)
		}
	}
	if left, err := client.GetProperties(t.Context(), nil); err != nil || *left.ApproximateMessagesCount != 0 || h.number() != 40 {
		t.Errorf("%d hints arrived; %v, %v", h.number(), left, err)
	}
	for _, err := range []error{read(account+"/none", token), read(url, "eyJ.canary.x")} {
		t.Log(err)
		if err == nil || strings.Contains(err.Error(), "eyJ") {
			t.Error(err)
		}
	}
}
