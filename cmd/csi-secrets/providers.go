package main

import (
	"maps"
	"net/http"
	"slices"

	"github.com/spf13/pflag"
	_ "golang.org/x/crypto/x509roots/fallback" // the image has no CA certificates

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/akeyless"
	"github.com/csi-secrets/csi-secrets/pkg/provider/conjur"
	"github.com/csi-secrets/csi-secrets/pkg/provider/kubernetes"
	"github.com/csi-secrets/csi-secrets/pkg/provider/local"
	"github.com/csi-secrets/csi-secrets/pkg/provider/plugin"
	"github.com/csi-secrets/csi-secrets/pkg/provider/vault"
)

// providerOptions are the flags that say which providers there are. Names and
// defaults are those of secrets-store-csi-driver.
type providerOptions struct {
	folder          string
	moreFolders     []string
	maxMessageBytes int
	writers         []string
	outside         []string
	vault           vault.Defaults
	clouds          cloudOptions
}

func (o *providerOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.folder, "provider-volume", "/var/run/secrets-store-csi-providers", "folder with the sockets of external providers, NAME.sock")
	flags.StringSliceVar(&o.moreFolders, "additional-provider-volume-paths", []string{"/etc/kubernetes/secrets-store-csi-providers"}, "further folders with sockets, searched first")
	flags.StringSliceVar(&o.writers, "legacy-providers", []string{"aws"}, "external providers that write their files by themselves in place of returning them")
	flags.StringSliceVar(&o.outside, "external-providers", nil, "providers that are asked through their sockets although they are built in")
	flags.StringVar(&o.vault.Address, "vault-addr", "", "URL of Vault or OpenBao, for classes that name none")
	flags.StringVar(&o.vault.Namespace, "vault-namespace", "", "namespace of Vault or OpenBao, for classes that name none")
	flags.StringVar(&o.vault.Mount, "vault-mount", "kubernetes", "mount of the auth method of Vault or OpenBao, for classes that name none")
	flags.StringVar(&o.vault.CACertPath, "vault-tls-ca-cert", "", "file of the CA certificates that Vault's is checked with, for classes that name none")
	flags.StringVar(&o.vault.CADirectory, "vault-tls-ca-directory", "", "folder of such files")
	flags.StringVar(&o.vault.ServerName, "vault-tls-server-name", "", "name that Vault's certificate has to have, where it is not that of the URL")
	flags.StringVar(&o.vault.ClientCertPath, "vault-tls-client-cert", "", "file of a client certificate for Vault")
	flags.StringVar(&o.vault.ClientKeyPath, "vault-tls-client-key", "", "file of its key")
	flags.BoolVar(&o.vault.SkipVerify, "vault-tls-skip-verify", false, "do not check Vault's certificate")
	o.clouds.addFlags(flags)
	flags.IntVar(&o.maxMessageBytes, "max-call-recv-msg-size", 4<<20, "largest answer of an external provider in bytes")
}

// registry returns the providers that are built in, with the external ones
// behind them. Those that read what the node or its cluster holds are given: who
// may use them, and what they ask, depends on where classes come from.
func (o *providerOptions) registry(here map[string]provider.Provider) (*provider.Registry, *plugin.Finder, error) {
	external, err := plugin.New(plugin.Config{
		Folders: append(slices.Clone(o.moreFolders), o.folder), MaxMessageBytes: o.maxMessageBytes, Writers: o.writers,
	})
	if err != nil {
		return nil, nil, err
	}
	all, err := o.stores()
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(all, here)
	for _, name := range o.outside {
		delete(all, name)
	}
	return provider.NewRegistry(all, external.Get), external, nil
}

// stores returns the providers of stores on the network.
func (o *providerOptions) stores() (map[string]provider.Provider, error) {
	all, err := o.clouds.stores()
	if err != nil {
		return nil, err
	}
	maps.Copy(all, map[string]provider.Provider{
		"akeyless": akeyless.New(),
		"conjur":   conjur.New(),
		"openbao":  vault.New(vault.OpenBao, o.vault),
		"vault":    vault.New(vault.Vault, o.vault),
	})
	return all, nil
}

// atATerminal are the providers of a person who looks at a class: the one of the
// cluster can tell what is wrong with its parameters, and no more.
func atATerminal() map[string]provider.Provider {
	return map[string]provider.Provider{"local": local.New(), "kubernetes": kubernetes.New("", http.DefaultClient)}
}
