package issuer

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	authentication "k8s.io/api/authentication/v1"
)

func TestOnlyWhatTheIssuerSignedForTheAudienceIsTaken(t *testing.T) {
	i, other := New(t), New(t)
	server := httptest.NewServer(i.JWKS())
	defer server.Close()
	web := Account{Namespace: "shop", Name: "web", UID: "s1", Pod: "web-1", PodUID: "p1"}
	good := i.Token(web, "sts.amazonaws.com", "other")
	head, payload, _ := strings.Cut(good, ".")
	payload, _, _ = strings.Cut(payload, ".")
	for verifier, v := range map[string]*Verifier{"of the issuer": i.Verifier(), "of its document": NewVerifier(t.Context(), URL, server.URL, server.Client())} {
		if subject, err := v.Verify(t.Context(), good, "sts.amazonaws.com"); err != nil || subject != "system:serviceaccount:shop:web" {
			t.Errorf("%s: got %q, %v", verifier, subject, err)
		}
		for name, token := range map[string]string{
			"for another audience":         i.Token(web, "vault"),
			"ended":                        i.TokenAt(time.Now().Add(-2*Lifetime), web, "sts.amazonaws.com"),
			"signed by another issuer":     other.Token(web, "sts.amazonaws.com"),
			"without a signature":          head + "." + payload + ".",
			"signed by nobody, as it says": "eyJhbGciOiJub25lIn0." + payload + ".",
			"nothing":                      "",
		} {
			if _, err := v.Verify(t.Context(), token, "sts.amazonaws.com"); err == nil {
				t.Errorf("%s: a token %s was taken", verifier, name)
			}
		}
		if _, err := (&Verifier{"https://elsewhere", v.keys}).Verify(t.Context(), good, "sts.amazonaws.com"); err == nil {
			t.Errorf("%s: a token of another issuer was taken", verifier)
		}
	}
}

func TestTokenReviews(t *testing.T) {
	signer := New(t)
	pod := Account{Namespace: "shop", Name: "app", Pod: "app-0"}
	for _, c := range []struct {
		name, token   string
		wanted, found []string
	}{
		{"the audience", signer.Token(pod, "vault"), []string{"vault"}, []string{"vault"}},
		{"one audience of several", signer.Token(pod, "conjur", "vault"), []string{"vault", "other"}, []string{"vault"}},
		{"another audience", signer.Token(pod, "conjur"), []string{"vault"}, nil},
		{"no audience, for the API server", signer.Token(pod, URL), nil, []string{URL}},
		{"no audience, for another", signer.Token(pod, "vault"), nil, nil},
		{"a token that has expired", signer.TokenAt(time.Now().Add(-2*Lifetime), pod, "vault"), []string{"vault"}, nil},
		{"no token", "a.b.c", []string{"vault"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			status := signer.review(t.Context(), authentication.TokenReviewSpec{Token: c.token, Audiences: c.wanted})
			known := c.found != nil
			user := map[bool]string{true: "system:serviceaccount:shop:app"}[known]
			if status.Authenticated != known || !slices.Equal(status.Audiences, c.found) || status.User.Username != user || known != (status.Error == "") {
				t.Errorf("the review is %+v", status)
			}
		})
	}
}
