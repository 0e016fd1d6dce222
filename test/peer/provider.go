package main

import (
	"context"
	"net"
	"path/filepath"

	"google.golang.org/grpc"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

// files is what every volume holds.
var files = map[string]string{
	"username": "app",
	"password": "hunter2-hunter2-hunter2-hunter2-",
}

const providerName = "peer"

// externalProvider answers both drivers at once, in this process.
type externalProvider struct {
	v1alpha1.UnimplementedCSIDriverProviderServer
	answer *v1alpha1.MountResponse
}

// serveProvider serves the provider in a folder until stop is called.
func serveProvider(folder string) (stop func(), err error) {
	listener, err := net.Listen("unix", filepath.Join(folder, providerName+".sock"))
	if err != nil {
		return nil, err
	}
	p := &externalProvider{answer: &v1alpha1.MountResponse{}}
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
func (*externalProvider) Version(context.Context, *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return &v1alpha1.VersionResponse{Version: "v1alpha1", RuntimeName: providerName, RuntimeVersion: "1"}, nil
}

// Mount implements v1alpha1.CSIDriverProviderServer.
func (p *externalProvider) Mount(context.Context, *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	return p.answer, nil
}
