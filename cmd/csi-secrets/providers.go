package main

import (
	"net/http"
	"slices"

	"github.com/spf13/pflag"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/kubernetes"
	"github.com/csi-secrets/csi-secrets/pkg/provider/local"
	"github.com/csi-secrets/csi-secrets/pkg/provider/plugin"
)

// providerOptions are the flags that say which providers there are. Names and
// defaults are those of secrets-store-csi-driver.
type providerOptions struct {
	folder          string
	moreFolders     []string
	maxMessageBytes int
	writers         []string
}

func (o *providerOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.folder, "provider-volume", "/var/run/secrets-store-csi-providers", "folder with the sockets of external providers, NAME.sock")
	flags.StringSliceVar(&o.moreFolders, "additional-provider-volume-paths", []string{"/etc/kubernetes/secrets-store-csi-providers"}, "further folders with sockets, searched first")
	flags.StringSliceVar(&o.writers, "legacy-providers", []string{"aws"}, "external providers that write their files by themselves in place of returning them")
	flags.IntVar(&o.maxMessageBytes, "max-call-recv-msg-size", 4<<20, "largest answer of an external provider in bytes")
}

// registry returns the providers that are built in, with the external ones
// behind them. The built-in ones are given: who may use them, and what they ask,
// depends on where classes come from.
func (o *providerOptions) registry(embedded map[string]provider.Provider) (*provider.Registry, *plugin.Finder, error) {
	external, err := plugin.New(plugin.Config{
		Folders: append(slices.Clone(o.moreFolders), o.folder), MaxMessageBytes: o.maxMessageBytes, Writers: o.writers,
	})
	if err != nil {
		return nil, nil, err
	}
	return provider.NewRegistry(embedded, external.Get), external, nil
}

// atATerminal are the built-in providers of a person who looks at a class: the
// one of the cluster can tell what is wrong with its parameters, and no more.
func atATerminal() map[string]provider.Provider {
	return map[string]provider.Provider{"local": local.New(), "kubernetes": kubernetes.New("", http.DefaultClient)}
}
