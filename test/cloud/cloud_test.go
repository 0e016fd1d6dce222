package cloud

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
)

func name(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, text+" "+r.Proto) })
}

func TestHostsAreReachedByNameAndNobodyElse(t *testing.T) {
	n := New(t)
	n.Handle("sts.example.com", name("sts"))
	n.Handle("*.vault.example.net", name("vault"))
	n.HandlePlain("169.254.169.254", name("metadata"))
	proxy, err := url.Parse(n.ProxyURL())
	if err != nil {
		t.Fatal(err)
	}
	trust := &tls.Config{RootCAs: n.Pool()}
	for way, transport := range map[string]*http.Transport{
		"dialled": {DialContext: n.DialContext, TLSClientConfig: trust, ForceAttemptHTTP2: true},
		"proxied": {Proxy: http.ProxyURL(proxy), TLSClientConfig: trust, ForceAttemptHTTP2: true},
	} {
		client := &http.Client{Transport: transport}
		for address, want := range map[string]string{
			"https://sts.example.com/x": "sts HTTP/2.0", "https://mine.vault.example.net": "vault HTTP/2.0", "http://169.254.169.254/latest": "metadata HTTP/1.1",
			"https://example.com": "", "https://vault.example.net": "", "https://sts.example.com:444": "",
		} {
			response, err := client.Get(address)
			got := ""
			if err == nil {
				body, _ := io.ReadAll(response.Body)
				response.Body.Close()
				got = string(body)
			}
			if got != want {
				t.Errorf("%s, %s: got %q, %v, want %q", way, address, got, err, want)
			}
		}
		client.CloseIdleConnections()
	}
	if got := strings.Join(n.Refused(), " "); !strings.Contains(got, "example.com:443") {
		t.Errorf("refused were %s", got)
	}
	if pem, err := os.ReadFile(n.CAFile()); err != nil || !strings.HasPrefix(string(pem), "-----BEGIN CERTIFICATE") {
		t.Errorf("the CA's file holds %q, %v", pem, err)
	}
	if _, err := (&http.Client{Transport: &http.Transport{DialContext: n.DialContext}}).Get("https://sts.example.com"); err == nil {
		t.Error("a client without the CA trusts it")
	}
}

func TestAConnectionThatIsCut(t *testing.T) {
	n := New(t)
	n.Handle("a.example.com", name("a"))
	n.Cut("a.example.com", 1)
	client := &http.Client{Transport: &http.Transport{DialContext: n.DialContext, TLSClientConfig: &tls.Config{RootCAs: n.Pool()}}}
	if _, err := client.Get("https://a.example.com"); err == nil {
		t.Error("the first connection was whole")
	}
	response, err := client.Get("https://a.example.com")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	client.CloseIdleConnections()
}
