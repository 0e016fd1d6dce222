package gcp

import (
	"context"
	"errors"
	"path"
	"regexp"
	"strings"

	"golang.org/x/oauth2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/oauth"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

var _ provider.Concerned = (*Provider)(nil)

var (
	// secretName is the name of a secret, of a version of it, or of what secrets
	// are below: project, location and id.
	secretName = regexp.MustCompile(`^projects/([^/]+)(?:/locations/([^/]+))?(?:/secrets/([^/]+)(?:/versions/[^/]+)?)?$`)
	number     = regexp.MustCompile(`^[0-9]+$`)
)

// Concerns reports whether a hint names a secret of the class. A project's name
// and another's number are taken for the same. A parameter is concerned by every
// secret: it may refer to any.
func (p *Provider) Concerns(parameters map[string]string, hints []provider.Hint) bool {
	c := decode(provider.NewParams(parameters))
	for _, h := range hints {
		project, location, id := h.Store, "", h.Object
		m := secretName.FindStringSubmatch(h.Object)
		if m != nil {
			project, location, id = m[1], m[2], m[3]
		}
		for _, o := range c.objects {
			named := secretName.FindStringSubmatch(o.name)
			switch {
			case o.parameter:
				return true
			case named == nil, !sameProject(project, named[1]), m != nil && location != named[2]:
			case id == "",
				o.find != nil && o.find.MayMatch(id, false),
				o.find == nil && id == named[3]:
				return true
			}
		}
	}
	return false
}

// sameProject reports whether two projects, of which an empty one is any, may be
// the same: one by its name and the other by its number.
func sameProject(a, b string) bool {
	return a == "" || b == "" || a == b || number.MatchString(a) != number.MatchString(b)
}

// Own returns calls to a service of Google's, such as "pubsub", with the driver's
// own identity: that of its credentials file or, without one, the metadata
// server's. Errors are of type *provider.Error. It may be used by several
// goroutines.
func (p *Provider) Own(service string) grpc.ClientConnInterface { return own{p, service} }

type own struct {
	*Provider
	service string
}

func (o own) Invoke(ctx context.Context, method string, request, reply any, options ...grpc.CallOption) error {
	who := o.nodeIdentity()
	token, err := o.sessions.Get(ctx, who.key, who.login)
	if err != nil {
		return err
	}
	conn, err := o.network.conn(o.network.host(o.service, ""))
	if err != nil {
		return err
	}
	bearer := oauth.TokenSource{TokenSource: oauth2.StaticTokenSource(&oauth2.Token{AccessToken: string(token.Reveal())})}
	if err := conn.Invoke(ctx, method, request, reply, append(options, grpc.PerRPCCredentials(bearer))...); err != nil {
		e := failure(strings.ToLower(path.Base(method)), err)
		if e.Code == "UNAUTHENTICATED" {
			o.sessions.Forget(who.key, token.Equal)
		}
		return e
	}
	return nil
}

// NewStream is for calls that this package's users do not make.
func (own) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.ErrUnsupported
}
