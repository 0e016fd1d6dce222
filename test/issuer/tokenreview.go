package issuer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/coreos/go-oidc/v3/oidc"
	authentication "k8s.io/api/authentication/v1"
)

// TokenReviews answers reviews of the issuer's tokens as an API server does whose
// tokens they are and whose own audience is the issuer's name, for a store that
// asks one where there is none. The real one stands in test/cluster.
func (i *Issuer) TokenReviews() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", func(w http.ResponseWriter, r *http.Request) {
		var review authentication.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		review.Status = i.review(r.Context(), review.Spec)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(review) // a client that is gone needs no answer
	})
	return mux
}

func (i *Issuer) review(ctx context.Context, spec authentication.TokenReviewSpec) (status authentication.TokenReviewStatus) {
	wanted := spec.Audiences
	if wanted == nil {
		wanted = []string{i.Name}
	}
	var private struct {
		Kubernetes struct {
			Namespace      string                     `json:"namespace"`
			Pod            struct{ Name, UID string } `json:"pod"`
			ServiceAccount struct{ Name, UID string } `json:"serviceaccount"`
		} `json:"kubernetes.io"`
	}
	// An API server asks who signed a token, and not which issuer that was.
	verifier := i.Verifier()
	for _, audience := range wanted {
		claims, err := verifier.check(ctx, spec.Token, oidc.Config{ClientID: audience, SkipIssuerCheck: true})
		if err == nil {
			err = claims.Claims(&private)
		}
		if err != nil {
			status.Error = fmt.Sprintf("[invalid bearer token, %v]", err)
			continue
		}
		status.Audiences = append(status.Audiences, audience)
		status.User.Username = claims.Subject
	}
	if len(status.Audiences) == 0 {
		return status
	}
	k := private.Kubernetes
	status.Authenticated, status.Error = true, ""
	status.User.UID = k.ServiceAccount.UID
	status.User.Groups = []string{"system:serviceaccounts", "system:serviceaccounts:" + k.Namespace, "system:authenticated"}
	status.User.Extra = map[string]authentication.ExtraValue{
		"authentication.kubernetes.io/pod-name": {k.Pod.Name}, "authentication.kubernetes.io/pod-uid": {k.Pod.UID},
	}
	return status
}
