// Package canned is an external provider that always answers the same, at once:
// what benchmarks measure through it is the way to a provider and back.
package canned

import (
	"context"
	"net"
	"path/filepath"

	"google.golang.org/grpc"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

type canned struct {
	v1alpha1.UnimplementedCSIDriverProviderServer
	answer *v1alpha1.MountResponse
}

// Serve serves these files on NAME.sock in a folder, in this process, until stop
// is called.
func Serve(folder, name string, files map[string]string) (stop func(), err error) {
	listener, err := net.Listen("unix", filepath.Join(folder, name+".sock"))
	if err != nil {
		return nil, err
	}
	p := &canned{answer: &v1alpha1.MountResponse{}}
	for path, contents := range files {
		p.answer.Files = append(p.answer.Files, &v1alpha1.File{Path: path, Mode: 0o644, Contents: []byte(contents)})
		p.answer.ObjectVersion = append(p.answer.ObjectVersion, &v1alpha1.ObjectVersion{Id: path, Version: "1"})
	}
	server := grpc.NewServer()
	v1alpha1.RegisterCSIDriverProviderServer(server, p)
	go func() { _ = server.Serve(listener) }() // it fails only by being stopped
	return server.Stop, nil
}

// Version implements v1alpha1.CSIDriverProviderServer.
func (*canned) Version(context.Context, *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return &v1alpha1.VersionResponse{Version: "v1alpha1", RuntimeName: "bench", RuntimeVersion: "1"}, nil
}

// Mount implements v1alpha1.CSIDriverProviderServer.
func (p *canned) Mount(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	return p.answer, nil
}
