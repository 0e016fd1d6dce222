package vaulttest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	authentication "k8s.io/api/authentication/v1"
)

// TokenReviews answers reviews of the signer's tokens as an API server does whose
// tokens they are and whose own audience is the signer's issuer: what
// AuthKubernetes needs of a cluster, where there is none. The real one stands in
// test/cluster.
func (s *Signer) TokenReviews() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", func(w http.ResponseWriter, r *http.Request) {
		var review authentication.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		review.Status = s.review(review.Spec)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(review) // A client that is gone needs no answer.
	})
	return mux
}

func (s *Signer) review(spec authentication.TokenReviewSpec) authentication.TokenReviewStatus {
	wanted := spec.Audiences
	if wanted == nil {
		wanted = []string{s.Issuer}
	}
	c, err := s.verify(spec.Token)
	if err != nil {
		return authentication.TokenReviewStatus{Error: fmt.Sprintf("[invalid bearer token, %v]", err)}
	}
	common := slices.DeleteFunc(slices.Clone(wanted), func(a string) bool { return !slices.Contains(c.Audiences, a) })
	if len(common) == 0 {
		return authentication.TokenReviewStatus{
			Error: fmt.Sprintf("[invalid bearer token, token audiences %q is invalid for the target audiences %q]", c.Audiences, wanted),
		}
	}
	return authentication.TokenReviewStatus{
		Authenticated: true,
		Audiences:     common,
		User: authentication.UserInfo{
			Username: c.Subject,
			UID:      c.Private.ServiceAccount.UID,
			Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + c.Private.Namespace, "system:authenticated"},
			Extra: map[string]authentication.ExtraValue{
				"authentication.kubernetes.io/pod-name": {c.Private.Pod.Name},
				"authentication.kubernetes.io/pod-uid":  {c.Private.Pod.UID},
			},
		},
	}
}
