// The command provider stands in for the mock provider of
// secrets-store-csi-driver's end-to-end suite, which is a module that not every
// module proxy has. It answers what the suite expects of it:
//
//	GET /rotation?rotated=true|false               "foo" is "rotated", version v2
//	GET /validate-token-requests?audience=A,B,...  refuse requests without these tokens
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
	"sigs.k8s.io/yaml"
)

func main() {
	socket := flag.String("socket", "/providers/e2e-provider.sock", "Unix socket to serve on")
	control := flag.String("control", ":8080", "address of the HTTP control")
	flag.Parse()
	if err := os.Remove(*socket); err != nil && !os.IsNotExist(err) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", *socket)
	if err != nil {
		log.Fatal(err)
	}
	m := &mock{}
	server := grpc.NewServer()
	v1alpha1.RegisterCSIDriverProviderServer(server, m)
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(listener) }()
	go func() { failed <- http.ListenAndServe(*control, m.handler()) }()
	log.Fatal(<-failed)
}

type mock struct {
	v1alpha1.UnimplementedCSIDriverProviderServer

	mu        sync.Mutex
	rotated   bool
	audiences []string
}

func (m *mock) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /rotation", func(_ http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.rotated = r.URL.Query().Get("rotated") == "true"
	})
	mux.HandleFunc("GET /validate-token-requests", func(_ http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.audiences = strings.Split(r.URL.Query().Get("audience"), ",")
		log.Printf("from now on, tokens for %s are required", m.audiences)
	})
	return mux
}

// Version implements v1alpha1.CSIDriverProviderServer.
func (*mock) Version(context.Context, *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return &v1alpha1.VersionResponse{Version: "v1alpha1", RuntimeName: "E2EMockProvider", RuntimeVersion: "v0.0.10"}, nil
}

// Mount implements v1alpha1.CSIDriverProviderServer.
func (m *mock) Mount(ctx context.Context, r *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if authority := md.Get(":authority"); !slices.Equal(authority, []string{"localhost"}) {
		return nil, status.Errorf(codes.InvalidArgument, "the authority is %q and not localhost", authority)
	}
	var attributes map[string]string
	if err := json.Unmarshal([]byte(r.GetAttributes()), &attributes); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "attributes: %v", err)
	}
	var permission int32
	if err := json.Unmarshal([]byte(r.GetPermission()), &permission); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "permission: %v", err)
	}
	var secrets map[string]string
	if err := json.Unmarshal([]byte(r.GetSecrets()), &secrets); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "secrets: %v", err)
	}
	if r.GetTargetPath() == "" {
		return nil, status.Error(codes.InvalidArgument, "there is no target path")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkTokens(attributes["csi.storage.k8s.io/serviceAccount.tokens"]); err != nil {
		return nil, err
	}
	return m.answer(attributes["objects"])
}

func (m *mock) checkTokens(text string) error {
	if len(m.audiences) == 0 {
		return nil
	}
	var tokens map[string]struct{ Token, ExpirationTimestamp string }
	if err := json.Unmarshal([]byte(text), &tokens); err != nil {
		return status.Errorf(codes.InvalidArgument, "the tokens are no JSON: %v", err)
	}
	for _, audience := range m.audiences {
		if tokens[audience].Token == "" {
			return status.Errorf(codes.Unauthenticated, "there is no token for %q", audience)
		}
	}
	return nil
}

func (m *mock) answer(objects string) (*v1alpha1.MountResponse, error) {
	var list struct{ Array []string }
	if err := yaml.Unmarshal([]byte(objects), &list); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "objects: %v", err)
	}
	answer := &v1alpha1.MountResponse{}
	for _, text := range list.Array {
		var object struct{ ObjectName, ObjectVersion string }
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "an object: %v", err)
		}
		value, version := "", "v1"
		switch object.ObjectName {
		case "foo":
			value = "secret"
			if m.rotated {
				value, version = "rotated", "v2"
			}
		case "fookey":
			value = "-----BEGIN PUBLIC KEY-----\nThis is mock key\n-----END PUBLIC KEY-----\n"
		default:
			return nil, status.Errorf(codes.NotFound, "there is no object %q", object.ObjectName)
		}
		answer.Files = append(answer.Files, &v1alpha1.File{Path: object.ObjectName, Contents: []byte(value)}) // mode 0, as upstream's
		answer.ObjectVersion = append(answer.ObjectVersion, &v1alpha1.ObjectVersion{Id: "secret/" + object.ObjectName, Version: version})
	}
	return answer, nil
}
