// The command provider is an external provider for whole-system tests: it speaks
// the v1alpha1 protocol of secrets-store-csi-driver on a socket, and is told over
// HTTP what its objects are and which of them to refuse.
//
//	POST /objects/NAME          the body is the object's new value
//	POST /failures/NAME?code=N  the object is refused with gRPC code N; 0 ends that
//	GET  /requests              how many Mount requests there were
//	GET  /audiences             the audiences of the tokens that the last one had
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
	"sigs.k8s.io/yaml"
)

func main() {
	socket := flag.String("socket", "/providers/e2e.sock", "Unix socket to serve on")
	control := flag.String("control", ":8080", "address of the HTTP control")
	flag.Parse()
	if err := run(*socket, *control); err != nil {
		log.Fatal(err)
	}
}

func run(socket, control string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := &store{values: map[string]value{}, failures: map[string]codes.Code{}}
	server := grpc.NewServer()
	v1alpha1.RegisterCSIDriverProviderServer(server, s)
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(listener) }()
	go func() { failed <- http.ListenAndServe(control, s.handler()) }()
	return <-failed
}

// value is an object's value.
type value struct {
	text    string
	version int
}

// store is the provider.
type store struct {
	v1alpha1.UnimplementedCSIDriverProviderServer

	mu        sync.Mutex
	values    map[string]value // others are "value of NAME", version 1
	failures  map[string]codes.Code
	requests  int
	audiences []string
}

func (s *store) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /objects/{name}", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		name := r.PathValue("name")
		s.values[name] = value{string(text), s.values[name].version + 1}
	})
	mux.HandleFunc("POST /failures/{name}", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.ParseUint(r.URL.Query().Get("code"), 10, 32)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failures[r.PathValue("name")] = codes.Code(code)
	})
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		fmt.Fprintln(w, s.requests)
	})
	mux.HandleFunc("GET /audiences", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		fmt.Fprintln(w, strings.Join(s.audiences, "\n"))
	})
	return mux
}

// Version implements v1alpha1.CSIDriverProviderServer.
func (*store) Version(context.Context, *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return &v1alpha1.VersionResponse{Version: "v1alpha1", RuntimeName: "e2e", RuntimeVersion: "0.0.1"}, nil
}

// Mount implements v1alpha1.CSIDriverProviderServer.
func (s *store) Mount(_ context.Context, req *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	var attributes map[string]string
	if err := json.Unmarshal([]byte(req.GetAttributes()), &attributes); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "attributes: %v", err)
	}
	var objects []struct {
		ObjectName string `json:"objectName"`
		Mode       int32  `json:"mode"`
	}
	if err := yaml.Unmarshal([]byte(attributes["objects"]), &objects); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "objects: %v", err)
	}
	var tokens map[string]struct{ Token string }
	if text := attributes["csi.storage.k8s.io/serviceAccount.tokens"]; text != "" {
		if err := json.Unmarshal([]byte(text), &tokens); err != nil {
			return nil, status.Error(codes.InvalidArgument, "the tokens are not JSON")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	s.audiences = slices.Sorted(maps.Keys(tokens))
	if audience := attributes["requireAudience"]; audience != "" && tokens[audience].Token == "" {
		return nil, status.Errorf(codes.Unauthenticated, "there is no token for the audience %q", audience)
	}
	answer := &v1alpha1.MountResponse{}
	for _, o := range objects {
		if code := s.failures[o.ObjectName]; code != codes.OK {
			return nil, status.Errorf(code, "object %q: the store says %v", o.ObjectName, code)
		}
		v, ok := s.values[o.ObjectName]
		if !ok {
			v = value{"value of " + o.ObjectName, 0}
		}
		if o.Mode == 0 {
			o.Mode = 0o644
		}
		answer.Files = append(answer.Files, &v1alpha1.File{Path: o.ObjectName, Mode: o.Mode, Contents: []byte(v.text)})
		answer.ObjectVersion = append(answer.ObjectVersion, &v1alpha1.ObjectVersion{Id: o.ObjectName, Version: strconv.Itoa(v.version + 1)})
	}
	return answer, nil
}
