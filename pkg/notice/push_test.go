package notice

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/test/cloud"
)

const (
	tenant   = "11111111-2222-3333-4444-555555555555"
	audience = "api://notices"
	pusher   = "push@shop.iam.gserviceaccount.com"
	entraV1  = "https://sts.windows.net/" + tenant + "/"
	entraV2  = "https://login.microsoftonline.com/" + tenant + "/v2.0"
)

// authority stands in for Entra ID and Google as issuers of tokens, at their own
// host names and with their own discovery documents.
type authority struct {
	t      *testing.T
	net    *cloud.Net
	key    atomic.Pointer[rsa.PrivateKey]
	asked  atomic.Int32 // for keys
	broken atomic.Bool  // it answers 500
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, net: cloud.New(t)}
	a.rotate()
	keys := map[string]string{
		entraV1:      "https://login.microsoftonline.com/common/discovery/keys",
		entraV2:      "https://login.microsoftonline.com/" + tenant + "/discovery/v2.0/keys",
		googleIssuer: "https://www.googleapis.com/oauth2/v3/certs",
	}
	serve := func(w http.ResponseWriter, r *http.Request) {
		if a.broken.Load() {
			http.Error(w, "try later", http.StatusInternalServerError)
			return
		}
		url := "https://" + r.Host + r.URL.Path
		for issuer, at := range keys {
			var document any
			switch url {
			case strings.TrimSuffix(issuer, "/") + "/.well-known/openid-configuration":
				document = map[string]string{"issuer": issuer, "jwks_uri": at}
			case at:
				a.asked.Add(1)
				document = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &a.key.Load().PublicKey, KeyID: a.keyID(), Algorithm: "RS256", Use: "sig"}}}
			default:
				continue
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(document)
			return
		}
		t.Errorf("an unexpected request for %s", url)
	}
	for _, host := range []string{"sts.windows.net", "login.microsoftonline.com", "accounts.google.com", "www.googleapis.com"} {
		a.net.Handle(host, http.HandlerFunc(serve))
	}
	return a
}

// rotate gives the issuers another key.
func (a *authority) rotate() {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		a.t.Fatal(err)
	}
	a.key.Store(key)
}

func (a *authority) keyID() string { return a.key.Load().N.Text(62)[:8] }

func (a *authority) client() *http.Client {
	transport := &http.Transport{DialContext: a.net.DialContext, TLSClientConfig: &tls.Config{RootCAs: a.net.Pool(), MinVersion: tls.VersionTLS12}}
	a.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// token signs claims, with changes to them: a nil removes one.
func (a *authority) token(claims map[string]any, changes map[string]any) string {
	a.t.Helper()
	all := map[string]any{"iat": time.Now().Unix(), "nbf": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	maps.Copy(all, changes)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: a.key.Load(), KeyID: a.keyID()}}, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(all).Serialize()
	if err != nil {
		a.t.Fatal(err)
	}
	return token
}

// The claims of the tokens of Event Grid and Pub/Sub, as far as they count.
var (
	gridV1 = map[string]any{"iss": entraV1, "aud": audience, "appid": EventGridApp, "ver": "1.0", "roles": []string{"AzureEventGridSecureWebhookSubscriber"}}
	gridV2 = map[string]any{"iss": entraV2, "aud": audience, "azp": EventGridApp, "ver": "2.0"}
	google = map[string]any{"iss": googleIssuer, "aud": audience, "azp": "113774264463038321964", "sub": "113774264463038321964", "email": pusher, "email_verified": true}
)

func (a *authority) eventGrid(h *heard) http.Handler {
	a.t.Helper()
	hook, err := NewEventGrid(EventGridConfig{Tenant: tenant, Audience: audience, Client: a.client(), Sink: h.take, Recorder: h})
	if err != nil {
		a.t.Fatal(err)
	}
	return hook
}

func (a *authority) pubSub(h *heard) http.Handler {
	a.t.Helper()
	hook, err := NewPubSubPush(PubSubPushConfig{Audience: audience, Email: pusher, Client: a.client(), Sink: h.take, Recorder: h})
	if err != nil {
		a.t.Fatal(err)
	}
	return hook
}

func TestEventGridIsTakenWithTokensOfEitherVersion(t *testing.T) {
	a, h := newAuthority(t), &heard{}
	hook := a.eventGrid(h)
	want := []provider.Hint{{Provider: "azure", Store: "sample-kv", Object: "newsecret"}}
	for _, c := range []struct {
		claims     map[string]any
		file, kind string
	}{
		{gridV1, "eventgrid-secret.json", "application/json; charset=utf-8"},
		{gridV2, "cloudevent-secret.json", "application/cloudevents-batch+json; charset=utf-8"},
	} {
		r := post(string(sample(t, c.file)), "Authorization", "Bearer "+a.token(c.claims, nil), "Content-Type", c.kind)
		if code, _ := serve(hook, r); code != http.StatusNoContent {
			t.Errorf("%s: the answer is %d", c.file, code)
		}
		h.want(t, want, "eventgrid")
	}
	r := post("7", "Authorization", "Bearer "+a.token(gridV1, nil))
	if code, body := serve(hook, r); code != http.StatusBadRequest || !strings.Contains(body, "event 1") {
		t.Errorf("the answer to what is no event is %d %q", code, body)
	}
}

func TestEventGridsHandshakesAreAnswered(t *testing.T) {
	a, h := newAuthority(t), &heard{}
	hook := a.eventGrid(h)
	body := string(sample(t, "eventgrid-validation.json"))
	code, answer := serve(hook, post(body, "Authorization", "Bearer "+a.token(gridV1, nil), "aeg-event-type", "SubscriptionValidation"))
	if code != http.StatusOK || answer != `{"validationResponse":"512d38b6-c7b8-40c8-89fe-f46f9e9622b6"}` {
		t.Errorf("the answer is %d %q", code, answer)
	}
	if code, answer := serve(hook, post(body)); code != http.StatusUnauthorized || answer != "" {
		t.Errorf("the answer to a stranger is %d %q", code, answer)
	}

	r := httptest.NewRequest(http.MethodOptions, "/", nil)
	r.Header.Set("WebHook-Request-Origin", "eventgrid.azure.net")
	w := httptest.NewRecorder()
	hook.ServeHTTP(w, r)
	if w.Code != http.StatusOK || w.Header().Get("WebHook-Allowed-Origin") != "eventgrid.azure.net" || w.Header().Get("Allow") != "POST" {
		t.Errorf("the answer to CloudEvents' handshake is %d %v", w.Code, w.Header())
	}
	if code, _ := serve(hook, httptest.NewRequest(http.MethodOptions, "/", nil)); code != http.StatusMethodNotAllowed {
		t.Errorf("the answer to other OPTIONS is %d", code)
	}
}

func TestPubSubIsTaken(t *testing.T) {
	a, h := newAuthority(t), &heard{}
	hook := a.pubSub(h)
	with := func(body string) *http.Request {
		return post(body, "Authorization", "Bearer "+a.token(google, nil))
	}
	if code, _ := serve(hook, with(string(sample(t, "pubsub-push.json")))); code != http.StatusNoContent {
		t.Errorf("the answer is %d", code)
	}
	h.want(t, []provider.Hint{{Provider: "gcp", Store: "827585297303", Object: "projects/827585297303/secrets/test-secret"}}, "pubsubpush")
	// Everything but a success has it sent again, for days.
	if code, _ := serve(hook, with(`{"message": {}}`)); code != http.StatusOK {
		t.Errorf("the answer to what is no message of Secret Manager is %d", code)
	}
	h.want(t, nil, "pubsubpush", "pubsubpush malformed")
	h.fail(errors.New("no classes"))
	if code, _ := serve(hook, with(string(sample(t, "pubsub-push.json")))); code != http.StatusServiceUnavailable {
		t.Errorf("the answer to what was not taken is %d", code)
	}
	h.want(t, nil, "pubsubpush", "pubsubpush sink")
}

func TestATokenOfSomebodyElseIsRefused(t *testing.T) {
	a, h := newAuthority(t), &heard{}
	hooks := map[string]http.Handler{"eventgrid": a.eventGrid(h), "pubsubpush": a.pubSub(h)}
	forged := func(claims map[string]any) string {
		other := newAuthority(t)
		return other.token(claims, nil)
	}
	unsigned := "eyJhbGciOiJub25lIn0." + strings.Split(a.token(gridV1, nil), ".")[1] + "."
	ago := map[string]any{"exp": time.Now().Add(-time.Minute).Unix(), "iat": time.Now().Add(-time.Hour).Unix(), "nbf": time.Now().Add(-time.Hour).Unix()}
	for name, c := range map[string]struct{ hook, header string }{
		"no token at Event Grid's":              {"eventgrid", ""},
		"no token at Pub/Sub's":                 {"pubsubpush", ""},
		"a password":                            {"eventgrid", "Basic dTpw"},
		"no JWT":                                {"pubsubpush", "Bearer x"},
		"an unsigned token":                     {"eventgrid", "Bearer " + unsigned},
		"a forged token at Event Grid's":        {"eventgrid", "Bearer " + forged(gridV1)},
		"a forged token at Pub/Sub's":           {"pubsubpush", "Bearer " + forged(google)},
		"a token of the other cloud":            {"pubsubpush", "Bearer " + a.token(gridV2, nil)},
		"a token of another tenant":             {"eventgrid", "Bearer " + a.token(gridV1, map[string]any{"iss": "https://sts.windows.net/99999999-2222-3333-4444-555555555555/"})},
		"a token for another audience":          {"eventgrid", "Bearer " + a.token(gridV2, map[string]any{"aud": "api://other"})},
		"a token of another application, v1":    {"eventgrid", "Bearer " + a.token(gridV1, map[string]any{"appid": "99999999-9cdb-44cf-a8bf-237846a00ab7"})},
		"a token of another application, v2":    {"eventgrid", "Bearer " + a.token(gridV2, map[string]any{"azp": nil})},
		"a token that has ended":                {"eventgrid", "Bearer " + a.token(gridV1, ago)},
		"a token of Google's for another":       {"pubsubpush", "Bearer " + a.token(google, map[string]any{"aud": "https://other.example.com"})},
		"a token of another service account":    {"pubsubpush", "Bearer " + a.token(google, map[string]any{"email": "other@shop.iam.gserviceaccount.com"})},
		"a token of an email that is not shown": {"pubsubpush", "Bearer " + a.token(google, map[string]any{"email_verified": false})},
		"a token of Google's that has ended":    {"pubsubpush", "Bearer " + a.token(google, ago)},
	} {
		var header []string
		if c.header != "" {
			header = []string{"Authorization", c.header}
		}
		if code, body := serve(hooks[c.hook], post("{}", header...)); code != http.StatusUnauthorized || body != "" {
			t.Errorf("%s: the answer is %d %q", name, code, body)
		}
		h.want(t, nil, c.hook+" token")
	}
}

// Anybody may send tokens of keys that nobody knows.
func TestForgedTokensDoNotHaveTheIssuerAskedAgainAndAgain(t *testing.T) {
	a, h := newAuthority(t), &heard{}
	hook := a.pubSub(h)
	body := string(sample(t, "pubsub-push.json"))
	forged := a.token(google, nil)
	a.rotate()
	for range 50 {
		serve(hook, post(body, "Authorization", "Bearer "+forged))
	}
	if n := a.asked.Load(); n != 1 {
		t.Errorf("the issuer was asked for its keys %d times", n)
	}
	if code, _ := serve(hook, post(body, "Authorization", "Bearer "+a.token(google, nil))); code != http.StatusNoContent {
		t.Errorf("the answer to a good token is %d", code)
	}
}

// A refusal for ever would lose an event for a fault of ours.
func TestWithoutTheIssuersKeysTheSenderIsToComeAgain(t *testing.T) {
	a, h := newAuthority(t), &heard{}
	hook := a.eventGrid(h)
	a.broken.Store(true)
	for range 2 {
		if code, _ := serve(hook, post("[]", "Authorization", "Bearer "+a.token(gridV1, nil))); code != http.StatusServiceUnavailable {
			t.Errorf("the answer is %d", code)
		}
	}
	h.want(t, nil, "eventgrid keys", "eventgrid keys")
	// The other issuer's discovery succeeds, and its keys cannot be had.
	a.broken.Store(false)
	issuer := newTokenIssuer(googleIssuer, audience, a.client())
	if _, err := issuer.keySet(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.broken.Store(true)
	var no *refusal
	if err := issuer.verify(t.Context(), a.token(google, nil), &struct{}{}); !errors.As(err, &no) || no.reason != reasonKeys {
		t.Errorf("without keys: %v", err)
	}
}

func TestAWebhookOfACloudIsChecked(t *testing.T) {
	sink := (&heard{}).take
	for name, make := range map[string]func() (http.Handler, error){
		"a tenant's name": func() (http.Handler, error) {
			return NewEventGrid(EventGridConfig{Tenant: "shop.example.com", Audience: "a", Sink: sink})
		},
		"no audience of Azure":  func() (http.Handler, error) { return NewEventGrid(EventGridConfig{Tenant: tenant, Sink: sink}) },
		"no sink":               func() (http.Handler, error) { return NewEventGrid(EventGridConfig{Tenant: tenant, Audience: "a"}) },
		"no audience of Google": func() (http.Handler, error) { return NewPubSubPush(PubSubPushConfig{Email: pusher, Sink: sink}) },
		"no email":              func() (http.Handler, error) { return NewPubSubPush(PubSubPushConfig{Audience: "a", Sink: sink}) },
	} {
		if _, err := make(); err == nil || !strings.HasPrefix(err.Error(), "notice: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// documents is an issuer that counts, and may fail.
type documents struct {
	asked int
	err   error
}

func (d *documents) RoundTrip(*http.Request) (*http.Response, error) {
	d.asked++
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, d.err
}

func TestAnIssuerIsSpared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &documents{err: errors.New("connection refused")}
		s := &sparing{next: d}
		r := httptest.NewRequest(http.MethodGet, "https://issuer.example.com/keys", nil)
		ask := func(asked int, want error) {
			t.Helper()
			answer, err := s.RoundTrip(r)
			if err == nil {
				answer.Body.Close()
			}
			if !errors.Is(err, want) || d.asked != asked {
				t.Errorf("%v after %d requests, want %v after %d", err, d.asked, want, asked)
			}
		}
		ask(1, errNoAnswer)
		ask(1, errNoAnswer)
		time.Sleep(failPause)
		d.err = nil
		ask(2, nil)
		ask(2, errAskedNow)
		time.Sleep(keysPause)
		ask(3, nil) // perhaps there are others now
	})
}
