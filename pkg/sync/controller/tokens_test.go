package controller

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// maker makes tokens without leaving the process, so that time stands still
// meanwhile. A token is the number of its request.
type maker struct {
	expiry time.Duration

	mu   sync.Mutex
	made int
	away bool
}

func (m *maker) RoundTrip(r *http.Request) (*http.Response, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return nil, errors.New("the API server is away")
	}
	var sent authenticationv1.TokenRequest
	if err := json.NewDecoder(r.Body).Decode(&sent); err != nil {
		return nil, err
	}
	m.made++
	sent.APIVersion, sent.Kind = "authentication.k8s.io/v1", "TokenRequest"
	sent.Status = authenticationv1.TokenRequestStatus{Token: fmt.Sprint(m.made), ExpirationTimestamp: metav1.NewTime(time.Now().Add(m.expiry))}
	body, err := json.Marshal(sent)
	return &http.Response{StatusCode: http.StatusCreated, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, err
}

func (m *maker) tokens(t *testing.T, requests ...TokenRequest) *tokens {
	t.Helper()
	scheme, version := runtime.NewScheme(), authenticationv1.SchemeGroupVersion
	metav1.AddToGroupVersion(scheme, version)
	scheme.AddKnownTypes(version, &authenticationv1.TokenRequest{})
	client, err := rest.RESTClientForConfigAndClient(&rest.Config{
		Host: "http://api.test", APIPath: "/api", QPS: -1,
		ContentConfig: rest.ContentConfig{GroupVersion: &version, NegotiatedSerializer: serializer.NewCodecFactory(scheme).WithoutConversion()},
	}, &http.Client{Transport: m})
	if err != nil {
		t.Fatal(err)
	}
	return &tokens{client: client, requests: requests, accounts: map[types.NamespacedName]*account{}}
}

func TestATokenIsMadeAnewWhenItNearsItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{expiry: 10 * time.Minute}
		all := m.tokens(t, TokenRequest{Audience: "vault"})
		web, api := types.NamespacedName{Namespace: "shop", Name: "web"}, types.NamespacedName{Namespace: "shop", Name: "api"}
		expect := func(name types.NamespacedName, want string) {
			t.Helper()
			got, err := all.of(t.Context(), name)
			if err != nil || string(got["vault"].Value.Reveal()) != want {
				t.Errorf("%s has the token %q, %v; want %s", name, got["vault"].Value.Reveal(), err, want)
			}
		}
		expect(web, "1")
		expect(api, "2")
		time.Sleep(7*time.Minute + 59*time.Second)
		expect(web, "1")
		time.Sleep(time.Second)
		expect(web, "3")

		// While the API server is away a token is used to its end, but not longer.
		time.Sleep(8 * time.Minute)
		m.away = true
		expect(web, "3")
		time.Sleep(59 * time.Second)
		expect(web, "3")
		time.Sleep(2 * time.Second)
		if _, err := all.of(t.Context(), web); err == nil {
			t.Error("a token was used that ends at once")
		}
		m.away = false
		expect(web, "4")
		all.forget(web)
		expect(web, "5")
	})
}

func TestATokenIsMadeOnceForAllWhoWait(t *testing.T) {
	m := &maker{expiry: time.Hour}
	all := m.tokens(t, TokenRequest{Audience: "vault"}, TokenRequest{})
	var running sync.WaitGroup
	for range 20 {
		running.Go(func() {
			got, err := all.of(t.Context(), types.NamespacedName{Namespace: "shop", Name: "web"})
			if err != nil || len(got) != 2 {
				t.Errorf("%d tokens, %v", len(got), err)
			}
		})
	}
	running.Wait()
	if m.made != 2 {
		t.Errorf("%d tokens were made, want 2", m.made)
	}
}
