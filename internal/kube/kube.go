// Package kube reaches the API server of a cluster, with one small client for
// each API group and one watch for each kind. It knows no kind of its own.
package kube

import (
	"context"
	"fmt"
	"net/http"
	"runtime"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// API is an API server. It is safe for concurrent use.
type API struct {
	config *rest.Config
	http   *http.Client
}

// ErrOutside says that this process runs outside of a cluster.
var ErrOutside = rest.ErrNotInCluster

// Connect returns the API server of a kubeconfig file or, where that is empty,
// of the cluster in which this process runs as a pod; outside of one that is
// ErrOutside. It sends no request. The
// version is this program's, for the name that it gives itself.
func Connect(kubeconfig, version string) (*API, error) {
	var config *rest.Config
	var err error
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	} else {
		config, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	config.UserAgent = fmt.Sprintf("csi-secrets/%s (%s/%s)", version, runtime.GOOS, runtime.GOARCH)
	// One connection serves all: limits belong to what is asked, not to this.
	config.QPS = -1
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	return &API{config, client}, nil
}

// Anonymous returns the API server's URL and an HTTP client that trusts it, and
// has no credentials: for requests that somebody else makes through this process.
func (a *API) Anonymous() (server string, client *http.Client, err error) {
	config := rest.AnonymousClientConfig(a.config)
	if client, err = rest.HTTPClientFor(config); err != nil {
		return "", nil, fmt.Errorf("reach the API server: %w", err)
	}
	address, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return "", nil, fmt.Errorf("find the API server: %w", err)
	}
	return address.String(), client, nil
}

// Client returns a client of one version of an API group, whose objects have
// the types that add registers.
func (a *API) Client(version schema.GroupVersion, add func(*apiruntime.Scheme)) (rest.Interface, error) {
	scheme := apiruntime.NewScheme()
	metav1.AddToGroupVersion(scheme, version)
	add(scheme)
	config := rest.CopyConfig(a.config)
	config.GroupVersion, config.APIPath = &version, "/apis"
	if version.Group == "" {
		config.APIPath = "/api"
	}
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientForConfigAndClient(config, a.http)
	if err != nil {
		return nil, fmt.Errorf("make a client of %s: %w", version, err)
	}
	return client, nil
}

// OnlyMetadata has the API server leave out all but an object's metadata.
const (
	OnlyMetadata     = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	onlyMetadataList = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

// AddMetadata registers the types of metadata without objects.
func AddMetadata(s *apiruntime.Scheme) {
	s.AddKnownTypes(metav1.SchemeGroupVersion, &metav1.PartialObjectMetadata{}, &metav1.PartialObjectMetadataList{})
}

// Metadata returns that of an object; namespace is empty for one without. The
// client's types are those of AddMetadata.
func Metadata(ctx context.Context, client rest.Interface, resource, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	var found metav1.PartialObjectMetadata
	err := client.Get().NamespaceIfScoped(namespace, namespace != "").Resource(resource).Name(name).SetHeader("Accept", OnlyMetadata).Do(ctx).Into(&found)
	return &found, err
}

// Watched is a kind of objects that is followed.
type Watched struct {
	Client   rest.Interface
	Resource string // its plural, as in URLs
	Object   apiruntime.Object
	List     func() apiruntime.Object // an empty list of the kind
	// Labels and Fields select objects; empty for all.
	Labels, Fields string
	// Metadata has the API server leave out all else: objects are
	// PartialObjectMetadata, see AddMetadata.
	Metadata bool
	// Failed is told why objects could not be had; it may be nil.
	Failed func(error)
}

// Follow keeps store as the API server has the objects, by one list and one
// watch that it begins anew whenever they break, until ctx ends. The store is
// told of one thing at a time.
func (w Watched) Follow(ctx context.Context, store cache.ReflectorStore) {
	request := func(options metav1.ListOptions) *rest.Request {
		options.LabelSelector, options.FieldSelector = w.Labels, w.Fields
		r := w.Client.Get().Resource(w.Resource).VersionedParams(&options, metav1.ParameterCodec)
		if w.Metadata && options.Watch {
			r.SetHeader("Accept", OnlyMetadata)
		} else if w.Metadata {
			r.SetHeader("Accept", onlyMetadataList)
		}
		return r
	}
	noted := func(err error) error {
		if err != nil && w.Failed != nil {
			w.Failed(err)
		}
		return err
	}
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (apiruntime.Object, error) {
			list := w.List()
			return list, noted(request(options).Do(ctx).Into(list))
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			events, err := request(options).Watch(ctx)
			return events, noted(err)
		},
	}
	cache.NewReflectorWithOptions(source, w.Object, store, cache.ReflectorOptions{Name: w.Resource}).RunWithContext(ctx)
}
