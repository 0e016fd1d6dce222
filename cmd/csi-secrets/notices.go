package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/csi-secrets/csi-secrets/pkg/class"
	"github.com/csi-secrets/csi-secrets/pkg/notice"
	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/azure"
	"github.com/csi-secrets/csi-secrets/pkg/provider/gcp"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// noticeOptions are the flags of notices of changes.
type noticeOptions struct {
	addr         string
	certificate  string
	key          string
	webhookKeys  string
	eventGrid    notice.EventGridConfig
	pubSubPush   notice.PubSubPushConfig
	sqs          notice.SQSConfig
	subscription string
	storageQueue string
}

func (o *noticeOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.addr, "webhook-addr", "", "address to serve webhooks on, as in :8443; empty for none")
	flags.StringVar(&o.certificate, "webhook-tls-cert", "", "file of the certificate to serve them with; HTTP where empty, behind what ends TLS")
	flags.StringVar(&o.key, "webhook-tls-key", "", "file of its key")
	flags.StringVar(&o.webhookKeys, "webhook-keys", "", "file of the keys that sign what is posted to /webhook, one a line")
	flags.StringVar(&o.eventGrid.Tenant, "eventgrid-tenant", "", "tenant of Microsoft Entra ID whose Event Grid may post to /eventgrid")
	flags.StringVar(&o.eventGrid.Audience, "eventgrid-audience", "", "application in that tenant which stands for the webhook, by its id or URI")
	flags.StringVar(&o.pubSubPush.Audience, "pubsub-push-audience", "", "audience of the push subscription of Google's that may post to /pubsub")
	flags.StringVar(&o.pubSubPush.Email, "pubsub-push-email", "", "service account as which it does")
	flags.StringVar(&o.sqs.QueueURL, "sqs-queue-url", "", "queue of Amazon SQS to read")
	flags.StringVar(&o.sqs.Region, "sqs-region", "", "its region (default that of AWS_REGION)")
	flags.StringVar(&o.subscription, "pubsub-subscription", "", "subscription of Google Pub/Sub to pull, projects/PROJECT/subscriptions/NAME")
	flags.StringVar(&o.storageQueue, "azure-queue-url", "", "queue of Azure Storage to read, https://ACCOUNT.queue.core.windows.net/NAME")
}

// wanted reports whether any notices are to be heard of.
func (o *noticeOptions) wanted() bool {
	return o.addr != "" || o.sqs.QueueURL != "" || o.subscription != "" || o.storageQueue != ""
}

// queue brings notices until ctx ends.
type queue interface {
	Run(ctx context.Context, sink notice.Sink)
}

// queues returns those that the flags name. find returns a provider that is built in.
func (o *noticeOptions) queues(find func(name string) (provider.Provider, error), recorder notice.Recorder) (all []queue, err error) {
	if o.sqs.QueueURL != "" {
		c := o.sqs
		c.Recorder, c.Region = recorder, cmp.Or(c.Region, os.Getenv("AWS_REGION"))
		c.RoleARN, c.TokenFile = os.Getenv("AWS_ROLE_ARN"), os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE")
		c.AgentURL, c.AgentTokenFile = os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI"), os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
		q, err := notice.NewSQS(c)
		if err != nil {
			return nil, usageError{err}
		}
		all = append(all, q)
	}
	if o.subscription != "" {
		google, _ := find("gcp")
		known, ok := google.(*gcp.Provider)
		if !ok {
			return nil, usageError{errors.New("--pubsub-subscription: the provider gcp is not built in here (--external-providers)")}
		}
		q, err := notice.NewPubSub(notice.PubSubConfig{Subscription: o.subscription, Conn: known.Own("pubsub"), Recorder: recorder})
		if err != nil {
			return nil, usageError{err}
		}
		all = append(all, q)
	}
	if o.storageQueue != "" {
		microsoft, _ := find("azure")
		known, ok := microsoft.(*azure.Provider)
		if !ok {
			return nil, usageError{errors.New("--azure-queue-url: the provider azure is not built in here (--external-providers)")}
		}
		credential, transport, err := known.Own(azure.OwnIdentity{
			Tenant: os.Getenv("AZURE_TENANT_ID"), Client: os.Getenv("AZURE_CLIENT_ID"), TokenFile: os.Getenv("AZURE_FEDERATED_TOKEN_FILE"), Authority: os.Getenv("AZURE_AUTHORITY_HOST"),
		})
		if err != nil {
			return nil, usageError{fmt.Errorf("--azure-queue-url: %w", err)}
		}
		q, err := notice.NewStorageQueue(notice.StorageQueueConfig{QueueURL: o.storageQueue, Credential: credential, Transport: transport, Recorder: recorder})
		if err != nil {
			return nil, usageError{err}
		}
		all = append(all, q)
	}
	return all, nil
}

// webhooks returns the handler of all webhooks that the flags name.
func (o *noticeOptions) webhooks(sink notice.Sink, recorder notice.Recorder) (http.Handler, error) {
	mux := http.NewServeMux()
	served := 0
	serve := func(path string, handler http.Handler, err error) error {
		if err != nil {
			return usageError{err}
		}
		mux.Handle(path, handler)
		served++
		return nil
	}
	if o.webhookKeys != "" {
		keys, err := readLines(o.webhookKeys)
		if err != nil {
			return nil, err
		}
		handler, err := notice.NewWebhook(notice.WebhookConfig{Keys: keys, Sink: sink, Recorder: recorder})
		if err := serve("/webhook", handler, err); err != nil {
			return nil, err
		}
	}
	if o.eventGrid.Tenant != "" {
		c := o.eventGrid
		c.Sink, c.Recorder = sink, recorder
		handler, err := notice.NewEventGrid(c)
		if err := serve("/eventgrid", handler, err); err != nil {
			return nil, err
		}
	}
	if o.pubSubPush.Audience != "" {
		c := o.pubSubPush
		c.Sink, c.Recorder = sink, recorder
		handler, err := notice.NewPubSubPush(c)
		if err := serve("/pubsub", handler, err); err != nil {
			return nil, err
		}
	}
	if served == 0 {
		return nil, usageError{errors.New("--webhook-addr: nobody may post there; give --webhook-keys, --eventgrid-tenant or --pubsub-push-audience")}
	}
	return mux, nil
}

// readLines returns the lines of a file that are not empty.
func readLines(path string) ([]secret.Value, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the keys of the webhook: %w", err)
	}
	defer clear(text)
	var all []secret.Value
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, secret.FromString(line))
		}
	}
	return all, nil
}

// serveWebhooks serves handler until ctx ends.
func (o *noticeOptions) serveWebhooks(ctx context.Context, handler http.Handler) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.addr)
	if err != nil {
		return fmt.Errorf("serve webhooks: %w", err)
	}
	if o.certificate != "" {
		if _, err := tls.LoadX509KeyPair(o.certificate, o.key); err != nil {
			listener.Close()
			return fmt.Errorf("serve webhooks: %w", err)
		}
		// Read for each connection: whoever renews the certificate replaces its file.
		listener = tls.NewListener(listener, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(o.certificate, o.key)
			return &pair, err
		}})
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve webhooks: %w", err)
	}
	return nil
}

// hear has webhooks served in group.
func (o *noticeOptions) hear(ctx context.Context, group *errgroup.Group, sink notice.Sink, recorder notice.Recorder) error {
	if o.addr == "" {
		return nil
	}
	handler, err := o.webhooks(sink, recorder)
	if err != nil {
		return err
	}
	group.Go(func() error { return o.serveWebhooks(ctx, handler) })
	return nil
}

// refresh has notices heard in group, without a cluster: they refresh the classes
// that finder finds.
func (o *noticeOptions) refresh(ctx context.Context, group *errgroup.Group, finder notice.Finder, refresh func(class.Ref), recorder notice.Recorder) error {
	sink := func(ctx context.Context, hints []provider.Hint) error {
		found, err := finder.Find(ctx, hints)
		for _, c := range found {
			refresh(c.Ref())
		}
		return err
	}
	queues, err := o.queues(finder.Provider, recorder)
	if err != nil {
		return err
	}
	for _, q := range queues {
		group.Go(func() error { q.Run(ctx, sink); return nil })
	}
	return o.hear(ctx, group, sink, recorder)
}
