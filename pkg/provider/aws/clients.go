package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// polite are the options of every client.
var polite = []func(*middleware.Stack) error{politely}

// appID is what CloudTrail shows of the caller's program.
const appID = "csi-secrets"

// maxRegions bounds the regions for which clients are kept.
const maxRegions = 64

// regions are the clients of the services, for each region. They hold no
// credentials; each knows by how much the clocks differ.
type regions struct {
	config *Config
	http   *http.Client

	mu  sync.Mutex
	all map[string]*clients
}

type clients struct {
	secrets    *secretsmanager.Client
	parameters *ssm.Client
	tokens     *sts.Client
}

func (r *regions) get(region string) *clients {
	r.mu.Lock()
	defer r.mu.Unlock()
	if found := r.all[region]; found != nil {
		return found
	}
	if r.all == nil || len(r.all) >= maxRegions {
		r.all = map[string]*clients{}
	}
	secretsFIPS, secretsDual := r.variants(r.config.SecretsManagerURL)
	parametersFIPS, parametersDual := r.variants(r.config.ParameterStoreURL)
	tokensFIPS, tokensDual := r.variants(r.config.STSURL)
	made := &clients{
		secrets: secretsmanager.New(secretsmanager.Options{
			Region: region, AppID: appID, HTTPClient: r.http, Retryer: newRetryer(), APIOptions: polite, BaseEndpoint: optional(r.config.SecretsManagerURL),
			EndpointOptions: secretsmanager.EndpointResolverOptions{UseFIPSEndpoint: secretsFIPS, UseDualStackEndpoint: secretsDual},
		}),
		parameters: ssm.New(ssm.Options{
			Region: region, AppID: appID, HTTPClient: r.http, Retryer: newRetryer(), APIOptions: polite, BaseEndpoint: optional(r.config.ParameterStoreURL),
			EndpointOptions: ssm.EndpointResolverOptions{UseFIPSEndpoint: parametersFIPS, UseDualStackEndpoint: parametersDual},
		}),
		tokens: sts.New(sts.Options{
			Region: region, AppID: appID, HTTPClient: r.http, Retryer: newRetryer(), APIOptions: polite, BaseEndpoint: optional(r.config.STSURL),
			EndpointOptions: sts.EndpointResolverOptions{UseFIPSEndpoint: tokensFIPS, UseDualStackEndpoint: tokensDual},
		}),
	}
	r.all[region] = made
	return made
}

// variants tells which of AWS's own endpoints to use; url is taken as it is.
func (r *regions) variants(url string) (fips aws.FIPSEndpointState, dual aws.DualStackEndpointState) {
	if url == "" && r.config.FIPS {
		fips = aws.FIPSEndpointStateEnabled
	}
	if url == "" && r.config.DualStack {
		dual = aws.DualStackEndpointStateEnabled
	}
	return fips, dual
}

func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// throttles tells answers that refuse a call for being one too many.
var throttles = retry.ThrottleErrorCode{Codes: retry.DefaultThrottleErrorCodes}

// batchOperation reads secrets in batches.
const batchOperation = "BatchGetSecretValue"

// politely has each attempt of a client's calls be a provider.Call.
func politely(stack *middleware.Stack) error {
	const name = "politely"
	return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc(name, func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (out middleware.FinalizeOutput, metadata middleware.Metadata, err error) {
		request, ok := in.Request.(*smithyhttp.Request)
		if !ok {
			return out, metadata, fmt.Errorf("unknown type of request %T", in.Request)
		}
		made := false
		callErr := provider.Call(ctx, func() error {
			attempt := in
			if made {
				if err := request.RewindStream(); err != nil {
					return nil // the refusal stands
				}
			}
			attempt.Request, made = request.Clone(), true
			out, metadata, err = next.HandleFinalize(ctx, attempt)
			switch answer := new(smithy.APIError); {
			case err == nil:
			case throttles.IsErrorThrottle(err) == aws.TrueTernary && middleware.GetOperationName(ctx) != batchOperation:
				refusal := explain("", err, nil)
				refusal.Kind = provider.Throttled
				return refusal
			case !errors.As(err, answer):
				return err
			}
			return nil // who reads in batches has another way, with a quota of its own
		})
		if !made {
			err = callErr
		}
		return out, metadata, err
	}), (&retry.Attempt{}).ID(), middleware.After)
}

// newRetryer returns one that tries once more, soon, after a broken connection or
// a status of 5xx, and where a clock was corrected. It never repeats what was
// throttled.
func newRetryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts, o.RateLimiter = 2, ratelimit.None
		o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 50 * time.Millisecond, nil })
		o.Retryables = []retry.IsErrorRetryable{
			retry.NoRetryCanceledError{},
			never(throttles),
			retry.RetryableError{}, retry.RetryableConnectionError{},
			retry.RetryableHTTPStatusCode{Codes: retry.DefaultRetryableHTTPStatusCodes},
		}
	})
}

// never does not repeat what is throttled.
func never(throttled retry.IsErrorThrottle) retry.IsErrorRetryable {
	return retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
		if throttled.IsErrorThrottle(err) == aws.TrueTernary {
			return aws.FalseTernary
		}
		return aws.UnknownTernary
	})
}
