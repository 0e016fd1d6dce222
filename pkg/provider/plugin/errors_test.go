package plugin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/plugin/plugintest"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// canaries is a request full of tokens and secrets, whose every recognisable
// part has "canary" in it.
func canaries() provider.Request {
	const token = "eyJhbGciOiJSUzI1NiJ9.canary-payload.canary-signature_-"
	return provider.Request{
		Parameters: map[string]string{"role": "harmless"},
		Tokens:     map[string]provider.Token{"vault": {Value: secret.FromString(token)}},
		RawTokens:  secret.FromString(`{"vault":{"token":"` + token + `"}}`),
		Secrets: map[string]secret.Value{
			"password": secret.FromString("canary <\"\\&'%/+> é\n"),
			"key":      secret.FromString("-----BEGIN KEY-----\ncanary-first-line-of-the-key\ncanary-second-line-of-the-key\n-----END KEY-----\n"),
		},
	}
}

func TestErrorsDoNotRepeatTokensAndSecrets(t *testing.T) {
	echoes := map[string]func(*v1alpha1.MountRequest) string{
		"the request as text":   func(r *v1alpha1.MountRequest) string { return r.String() },
		"the attributes":        func(r *v1alpha1.MountRequest) string { return r.GetAttributes() },
		"the secrets":           func(r *v1alpha1.MountRequest) string { return r.GetSecrets() },
		"them in quotes":        func(r *v1alpha1.MountRequest) string { return fmt.Sprintf("%q %q", r.GetAttributes(), r.GetSecrets()) },
		"each secret by itself": func(r *v1alpha1.MountRequest) string { return fmt.Sprint(secretsOf(r)) },
		"each secret in quotes": func(r *v1alpha1.MountRequest) string { return fmt.Sprintf("%q", secretsOf(r)) },
		"a secret in a URL": func(r *v1alpha1.MountRequest) string {
			return "https://store/?p=" + url.QueryEscape(secretsOf(r)["password"]) + "/" + url.PathEscape(secretsOf(r)["password"])
		},
		"a secret in base64": func(r *v1alpha1.MountRequest) string {
			return base64.StdEncoding.EncodeToString([]byte(secretsOf(r)["key"])) + " " + base64.URLEncoding.EncodeToString([]byte(secretsOf(r)["key"]))
		},
		"secrets marshalled anew":   func(r *v1alpha1.MountRequest) string { b, _ := json.Marshal(secretsOf(r)); return string(b) },
		"a secret without its ends": func(r *v1alpha1.MountRequest) string { return strings.TrimSpace(secretsOf(r)["password"]) },
		"one line of a key":         func(r *v1alpha1.MountRequest) string { return strings.Split(secretsOf(r)["key"], "\n")[1] },
		"secrets side by side": func(r *v1alpha1.MountRequest) string {
			s := secretsOf(r)
			return s["password"] + s["password"] + s["key"]
		},
	}
	dir := plugintest.Dir(t)
	var echo func(*v1alpha1.MountRequest) string
	var asCode bool
	plugintest.Serve(t, dir, "p", func(_ context.Context, r *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		if asCode {
			return &v1alpha1.MountResponse{Error: &v1alpha1.Error{Code: "before " + echo(r)}}, nil
		}
		return nil, status.Error(codes.PermissionDenied, "before "+echo(r)+" after")
	})
	p := get(t, newFinder(t, dir), "p")
	for name, e := range echoes {
		for _, asCode = range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, as code: %v", name, asCode), func(t *testing.T) {
				echo = e
				_, err := p.Fetch(t.Context(), canaries())
				wantError(t, err, provider.KindOf(err), "before ")
				for _, shown := range []string{"canary", base64.RawStdEncoding.EncodeToString([]byte("\ncanary-first")), "Y2FuYXJ5"} {
					if strings.Contains(err.Error(), shown) {
						t.Errorf("%v shows %s", err, shown)
					}
				}
				if !asCode { // a code is cut, and may end before
					wantError(t, err, provider.Denied, secret.Redacted, " after")
				}
				if st, _ := status.FromError(err); strings.Contains(st.Message()+fmt.Sprint(st.Details()), "canary") {
					t.Errorf("its status %v shows a secret", st)
				}
			})
		}
	}
}

// secretsOf decodes the secrets of r.
func secretsOf(r *v1alpha1.MountRequest) map[string]string {
	var secrets map[string]string
	_ = json.Unmarshal([]byte(r.GetSecrets()), &secrets)
	return secrets
}

func TestRedactLeavesTheRestAlone(t *testing.T) {
	req := provider.Request{Secrets: map[string]secret.Value{"a": secret.FromString("abab"), "b": secret.FromString("key")}}
	for text, want := range map[string]string{
		"":                    "",
		"no such object":      "no such object",
		"the key is short":    "the key is short",
		"x abab y":            "x [redacted] y",
		"abababab":            "[redacted]",
		"xababab":             "x[redacted]",
		"abab, abab and \xff": "[redacted], [redacted] and \xff",
	} {
		if got := redact(text, req); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	if got := redact("as it is", provider.Request{}); got != "as it is" {
		t.Errorf("without secrets the text becomes %q", got)
	}
}

func TestProvidersWordsAreBounded(t *testing.T) {
	dir := plugintest.Dir(t)
	plugintest.Serve(t, dir, "p", func(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
		return nil, status.Error(codes.Internal, strings.Repeat("é", 20000))
	})
	_, err := get(t, newFinder(t, dir), "p").Fetch(t.Context(), provider.Request{})
	wantError(t, err, provider.Internal, "é...")
	if len(err.Error()) > maxTextBytes+500 || !utf8.ValidString(err.Error()) {
		t.Errorf("the text has %d bytes", len(err.Error()))
	}
}
