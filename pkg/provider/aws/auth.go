package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/login"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// The audiences of the pod's token, and where the role's ARN stands, as EKS
// documents them (https://docs.aws.amazon.com/eks/latest/userguide/iam-roles-for-service-accounts.html,
// .../pod-identities.html).
const (
	irsaAudience        = "sts.amazonaws.com"
	podIdentityAudience = "pods.eks.amazonaws.com"
	roleAnnotation      = "eks.amazonaws.com/role-arn"
)

// The addresses of the Pod Identity agent on every node of EKS.
const (
	agentIPv4 = "http://169.254.170.23/v1/credentials"
	agentIPv6 = "http://[fd00:ec2::23]/v1/credentials"
	// The agent is on the node: where there is none, an address may not even refuse.
	agentDialTimeout = 2 * time.Second
	// agentTimeout bounds its answer, for which it asks EKS.
	agentTimeout = 10 * time.Second
)

// identity is who a mount is for, and what proves it.
type identity struct {
	regions   []string
	token     secret.Value
	claims    login.Claims
	role      string   // for IRSA
	addresses []string // of the agent, for Pod Identity; nil for IRSA
}

// identify tells who the pod is. Nothing is proven yet.
func identify(ctx context.Context, c *class, req provider.Request) (identity, error) {
	pod := identity{regions: c.regions}
	audience := irsaAudience
	if c.podIdentity {
		audience, pod.addresses = podIdentityAudience, c.addresses
	}
	token, err := login.Token(req, "AWS", audience)
	if err != nil {
		return pod, err
	}
	pod.token = token.Value
	if pod.claims, err = login.Read(token.Value); err != nil {
		return pod, &provider.Error{Kind: provider.Denied, Op: "log in to AWS", Err: fmt.Errorf("the pod's token cannot be read: %w", err)}
	}
	if !c.podIdentity {
		pod.role, err = role(ctx, req)
	}
	return pod, err
}

// role returns the ARN that the service account's annotation has.
func role(ctx context.Context, req provider.Request) (string, error) {
	account := fmt.Sprintf("service account %q of the namespace %q", req.Pod.ServiceAccount, req.Pod.Namespace)
	failure := &provider.Error{Kind: provider.Denied, Object: account, Op: "read its annotation " + roleAnnotation}
	if req.AccountAnnotations == nil {
		failure.Err, failure.Remedy = errors.New("the driver may not read service accounts"), "allow it to (chart: serviceAccountAnnotations), or use EKS Pod Identity ("+podIdentityKey+")"
		return "", failure
	}
	annotations, err := req.AccountAnnotations(ctx)
	if err != nil {
		failure.Kind, failure.Err = provider.KindOf(err), err
		return "", failure
	}
	text := strings.TrimSpace(annotations[roleAnnotation])
	if text == "" {
		failure.Err, failure.Remedy = errors.New("there is none"), "annotate it with the ARN of an IAM role, or use EKS Pod Identity ("+podIdentityKey+")"
		return "", failure
	}
	if parsed, err := arn.Parse(text); err != nil || parsed.Service != "iam" || !strings.HasPrefix(parsed.Resource, "role/") {
		failure.Kind, failure.Err, failure.Remedy = provider.Invalid, fmt.Errorf("%.200q is not the ARN of a role", text), "write it as in arn:aws:iam::123456789012:role/NAME"
		return "", failure
	}
	return text, nil
}

// key tells sessions apart. STS looks at issuer, audience and subject of the
// token alone. Credentials by EKS Pod Identity carry the pod's name and UID as
// tags, which a policy may ask for; they are of use in every region.
func (pod identity) key(region string) string {
	if pod.addresses != nil {
		return login.Key("agent", pod.claims.Identity())
	}
	return login.Key("sts", region, pod.role, pod.claims.Account())
}

// session is what an identity may do, until AWS says otherwise.
type session struct {
	credentials aws.CredentialsProviderFunc // a function, so that nothing prints them
	batches     atomic.Bool                 // it has read secrets in batches
}

// session logs in, or returns what an earlier login brought.
func (p *Provider) session(ctx context.Context, pod identity, region string, services *clients) (*session, error) {
	return p.sessions.Get(ctx, pod.key(region), func(ctx context.Context, _ *login.Session[*session]) (login.Session[*session], error) {
		began := time.Now()
		attempt := func() (aws.Credentials, time.Duration, error) { return pod.assume(ctx, services.tokens, region) }
		if pod.addresses != nil {
			attempt = func() (aws.Credentials, time.Duration, error) { return pod.ask(ctx, p.agent) }
		}
		credentials, life, err := attempt()
		if err != nil {
			return login.Session[*session]{}, err
		}
		s := &session{credentials: func(context.Context) (aws.Credentials, error) { return credentials, nil }}
		return login.Session[*session]{Value: s, Renew: began.Add(life * 8 / 10), Ends: began.Add(life * 95 / 100)}, nil
	})
}

// assume exchanges the pod's token for credentials of its role, at the region's
// STS (AssumeRoleWithWebIdentity). The time that they live is by STS's clock.
func (pod identity) assume(ctx context.Context, client *sts.Client, region string) (aws.Credentials, time.Duration, error) {
	op := fmt.Sprintf("assume the role %q with the pod's token (%s) in %s", pod.role, pod.claims, region)
	out, err := client.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &pod.role, RoleSessionName: aws.String(pod.sessionName()), WebIdentityToken: aws.String(string(pod.token.Reveal())),
	})
	if err != nil {
		return aws.Credentials{}, 0, explain(op, err, stsMeanings)
	}
	if out.Credentials == nil || out.Credentials.Expiration == nil {
		return aws.Credentials{}, 0, &provider.Error{Kind: provider.Internal, Op: op, Err: errors.New("the answer has no credentials")}
	}
	now, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
	if !ok {
		now = time.Now()
	}
	return aws.Credentials{
		AccessKeyID: aws.ToString(out.Credentials.AccessKeyId), SecretAccessKey: aws.ToString(out.Credentials.SecretAccessKey), SessionToken: aws.ToString(out.Credentials.SessionToken),
	}, out.Credentials.Expiration.Sub(now), nil
}

// sessionName is what CloudTrail calls the session: 64 characters at most.
func (pod identity) sessionName() string {
	name := "csi-secrets@" + pod.claims.Namespace + "." + pod.claims.ServiceAccount
	return name[:min(len(name), 64)]
}

// ask exchanges the pod's token for credentials at the node's agent of EKS Pod
// Identity. The second address is for where nobody is at the first.
func (pod identity) ask(ctx context.Context, client *http.Client) (aws.Credentials, time.Duration, error) {
	var failure *provider.Error
	for _, address := range pod.addresses {
		agent := endpointcreds.New(address, func(o *endpointcreds.Options) {
			o.HTTPClient, o.Retryer, o.AuthorizationToken = client, newRetryer(), string(pod.token.Reveal())
		})
		ctx, cancel := context.WithTimeout(ctx, agentTimeout)
		credentials, err := agent.Retrieve(ctx)
		cancel()
		if err == nil {
			return credentials, time.Until(credentials.Expires), nil
		}
		failure = explain(fmt.Sprintf("ask the agent of EKS Pod Identity at %s with the pod's token (%s)", address, pod.claims), err, agentMeanings)
		if failure.Code != "" {
			break
		}
		failure.Remedy = "is the add-on eks-pod-identity-agent on the node, and the driver in the host's network or let there?"
	}
	return aws.Credentials{}, 0, failure
}
