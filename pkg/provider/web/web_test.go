package web

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestAClientTrustsItsCAsAndFollowsNobody(t *testing.T) {
	asked := 0
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer other.Close()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) }))
	defer server.Close()
	trusted := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	var clients Clients
	response, err := clients.Get(trusted).Get(server.URL)
	if err != nil || response.StatusCode != http.StatusFound || asked != 0 {
		t.Errorf("got %v, %v, and the other server was asked %d times", response, err, asked)
	}
	for name, ca := range map[string]string{"the system's": "", "no CA at all": "-"} {
		if _, err := clients.Get(ca).Get(server.URL); err == nil {
			t.Errorf("%s: it was trusted", name)
		}
	}
}

func TestClientsAreKeptAndBounded(t *testing.T) {
	var clients Clients
	a, again, b := clients.Get("a"), clients.Get("a"), clients.Get("b")
	if a != again || a == b {
		t.Error("there is not one for each set of CAs")
	}
	for i := range 3 * maxClients {
		clients.Get(fmt.Sprint(i))
	}
	if len(clients.all) > maxClients {
		t.Errorf("%d are kept", len(clients.all))
	}
}

func TestTheWaitThatAStoreAsksForIsBounded(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 0, "3": 3 * time.Second, "0": 0, "-1": 0, "soon": 0, "Wed, 21 Oct 2026 07:28:00 GMT": 0, "86400": time.Hour} {
		if got := RetryAfter(http.Header{"Retry-After": {text}}); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}
