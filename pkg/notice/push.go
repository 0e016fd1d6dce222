package notice

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// EventGridApp is the application of Azure Event Grid, which is the same in every
// tenant.
const EventGridApp = "4962773b-9cdb-44cf-a8bf-237846a00ab7"

// EventGridConfig is for the event subscriptions of Azure whose webhook has
// Microsoft Entra authentication
// (https://learn.microsoft.com/azure/event-grid/secure-webhook-delivery).
type EventGridConfig struct {
	// Tenant is the id of the tenant of the application that stands for the webhook.
	Tenant string
	// Audience is that application's id, or its URI, as in the event subscription.
	Audience string
	// App is the application that sends; EventGridApp where it is empty.
	App string
	// Client reaches the tenant's public keys; nil for one with the machine's CAs.
	Client *http.Client
	Sink   Sink
	// Recorder may be nil.
	Recorder Recorder
}

// eventGrid is Event Grid as the sender. Its tokens are of Entra ID's version 1 or
// 2, as the webhook's application asks
// (https://learn.microsoft.com/entra/identity-platform/access-tokens#token-formats).
type eventGrid struct {
	app     string
	issuers map[string]*tokenIssuer // by name
}

// A tenant's id is part of URLs.
var tenantID = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// NewEventGrid returns a handler for events of Key Vault, in Event Grid's own
// format or as CloudEvents 1.0, and for the handshakes that subscribe it.
func NewEventGrid(c EventGridConfig) (http.Handler, error) {
	if !tenantID.MatchString(c.Tenant) {
		return nil, fmt.Errorf("notice: the tenant %.80q of Event Grid's webhook is not an id, as in 00000000-0000-0000-0000-000000000000", c.Tenant)
	}
	if c.Audience == "" {
		return nil, errors.New("notice: Event Grid's webhook has no audience; name its application's id or URI")
	}
	g := &eventGrid{app: cmp.Or(c.App, EventGridApp), issuers: map[string]*tokenIssuer{}}
	for _, name := range []string{"https://sts.windows.net/" + c.Tenant + "/", "https://login.microsoftonline.com/" + c.Tenant + "/v2.0"} {
		g.issuers[name] = newTokenIssuer(name, c.Audience, c.Client)
	}
	events, err := newDoor("eventgrid", g, http.StatusBadRequest, c.Sink, c.Recorder)
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if origin := r.Header.Get("WebHook-Request-Origin"); r.Method == http.MethodOptions && origin != "" {
			allow(w, origin)
			return
		}
		events.ServeHTTP(w, r)
	}), nil
}

// allow agrees to be sent CloudEvents by an origin
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection).
// That gives it no right: each event needs a token.
func allow(w http.ResponseWriter, origin string) {
	w.Header().Set("Allow", http.MethodPost)
	w.Header().Set("WebHook-Allowed-Origin", origin)
	w.Header().Set("WebHook-Allowed-Rate", "*")
	w.WriteHeader(http.StatusOK)
}

func (g *eventGrid) admit(r *http.Request, _ []byte) (again func(), err error) {
	token := bearer(r)
	var claims struct {
		AppID string `json:"appid"` // of version 1
		Azp   string `json:"azp"`   // of version 2
	}
	of := g.issuers[issuerOf(token)]
	if of == nil {
		return nil, &refusal{http.StatusUnauthorized, reasonToken}
	}
	if err := of.verify(r.Context(), token, &claims); err != nil {
		return nil, err
	}
	if cmp.Or(claims.AppID, claims.Azp) != g.app {
		return nil, &refusal{http.StatusUnauthorized, reasonToken}
	}
	return nil, nil
}

// issuerOf returns who is said to have issued a token, which is not checked here.
func issuerOf(token string) string {
	var claims jwt.Claims
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil || parsed.UnsafeClaimsWithoutVerification(&claims) != nil {
		return ""
	}
	return claims.Issuer
}

func (g *eventGrid) read(body []byte) ([]provider.Hint, []byte, error) {
	hints, code, err := parseEventGrid(body)
	if err != nil || code == "" {
		return hints, nil, err
	}
	answer, err := json.Marshal(map[string]string{"validationResponse": code})
	return nil, answer, err
}

// googleIssuer issues the tokens of Google's service accounts.
const googleIssuer = "https://accounts.google.com"

// PubSubPushConfig is for push subscriptions of Google Pub/Sub with
// authentication (https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions).
type PubSubPushConfig struct {
	// Audience is that of the push subscription; where it names none, its endpoint.
	Audience string
	// Email is that of the service account that the subscription pushes as.
	Email string
	// Client reaches Google's public keys; nil for one with the machine's CAs.
	Client *http.Client
	Sink   Sink
	// Recorder may be nil.
	Recorder Recorder
}

type pubSubPush struct {
	email  string
	issuer *tokenIssuer
}

// NewPubSubPush returns a handler for messages of Secret Manager. What cannot be
// understood is answered like the rest: else Pub/Sub would send it for days.
func NewPubSubPush(c PubSubPushConfig) (http.Handler, error) {
	if c.Audience == "" || c.Email == "" {
		return nil, errors.New("notice: Pub/Sub's webhook needs the audience and the service account's email of the push subscription")
	}
	return newDoor("pubsubpush", &pubSubPush{c.Email, newTokenIssuer(googleIssuer, c.Audience, c.Client)}, http.StatusOK, c.Sink, c.Recorder)
}

func (p *pubSubPush) admit(r *http.Request, _ []byte) (again func(), err error) {
	var claims struct {
		Email    string `json:"email"`
		Verified bool   `json:"email_verified"`
	}
	if err := p.issuer.verify(r.Context(), bearer(r), &claims); err != nil {
		return nil, err
	}
	if claims.Email != p.email || !claims.Verified {
		return nil, &refusal{http.StatusUnauthorized, reasonToken}
	}
	return nil, nil
}

func (p *pubSubPush) read(body []byte) ([]provider.Hint, []byte, error) {
	h, err := parsePushed(body)
	if err != nil || h == nil {
		return nil, nil, err
	}
	return []provider.Hint{*h}, nil, nil
}
