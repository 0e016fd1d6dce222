package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/provider/aws"
	"github.com/csi-secrets/csi-secrets/pkg/provider/azure"
	"github.com/csi-secrets/csi-secrets/pkg/provider/gcp"
)

// cloudOptions are the flags of the providers of clouds. What a flag does not
// say, the variable says by which the vendor's own provider is told.
type cloudOptions struct {
	aws        aws.Config
	azure      azure.Config
	gcp        gcp.Config
	gcpCluster string
}

func (o *cloudOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.aws.Region, "aws-region", "", "region of classes that name none (default that of AWS_REGION, then that of the node's label)")
	flags.BoolVar(&o.aws.FIPS, "aws-use-fips-endpoint", false, "ask AWS at its FIPS endpoints")
	flags.BoolVar(&o.aws.DualStack, "aws-use-dualstack-endpoint", false, "ask AWS at endpoints that have IPv6 too")
	flags.StringVar(&o.aws.SecretsManagerURL, "aws-endpoint-url-secrets-manager", "", "URL of Secrets Manager, in place of the region's (default that of AWS_ENDPOINT_URL_SECRETS_MANAGER)")
	flags.StringVar(&o.aws.ParameterStoreURL, "aws-endpoint-url-ssm", "", "URL of Systems Manager, in place of the region's (default that of AWS_ENDPOINT_URL_SSM)")
	flags.StringVar(&o.aws.STSURL, "aws-endpoint-url-sts", "", "URL of the Security Token Service, in place of the region's (default that of AWS_ENDPOINT_URL_STS)")
	flags.BoolVar(&o.azure.ConstructPEMChain, "construct-pem-chain", true, "write the certificates of a PFX of Azure in order: the server's, intermediate ones, the root")
	flags.BoolVar(&o.azure.SeparateFiles, "write-cert-and-key-in-separate-files", false, "write certificate and key of a secret of Azure into files .crt and .key too")
	flags.StringVar(&o.azure.TokenProxy.URL, "azure-token-proxy", "", "URL of AKS's proxy for identity bindings (default that of AZURE_KUBERNETES_TOKEN_PROXY)")
	flags.StringVar(&o.azure.TokenProxy.SNIName, "azure-token-proxy-sni-name", "", "name that its certificate has (default that of AZURE_KUBERNETES_SNI_NAME)")
	flags.StringVar(&o.azure.TokenProxy.CAFile, "azure-token-proxy-ca-file", "", "file of the CA certificates that it is checked with (default that of AZURE_KUBERNETES_CA_FILE)")
	flags.StringVar(&o.gcp.CredentialsFile, "gcp-credentials-file", "", "credentials of the node, or of type external_account for pods outside of GKE (default that of GOOGLE_APPLICATION_CREDENTIALS)")
	flags.StringVar(&o.gcpCluster, "gcp-cluster", "", "PROJECT/LOCATION/NAME of the GKE cluster (default that of PROJECT, CLUSTER_LOCATION and CLUSTER_NAME, then the metadata server's)")
	flags.StringVar(&o.gcp.UniverseDomain, "gcp-universe-domain", "", "what the names of Google's hosts end with (default that of GOOGLE_CLOUD_UNIVERSE_DOMAIN, or googleapis.com)")
	flags.StringToStringVar(&o.gcp.Endpoints, "gcp-endpoints", nil, "HOST=HOST to call in place of a host of Google's, as for Private Service Connect; may be repeated")
}

// stores returns the providers.
func (o cloudOptions) stores() (map[string]provider.Provider, error) {
	for variable, field := range map[string]*string{
		"AWS_REGION":                       &o.aws.Region,
		"AWS_ENDPOINT_URL_SECRETS_MANAGER": &o.aws.SecretsManagerURL,
		"AWS_ENDPOINT_URL_SSM":             &o.aws.ParameterStoreURL,
		"AWS_ENDPOINT_URL_STS":             &o.aws.STSURL,
		"AZURE_KUBERNETES_TOKEN_PROXY":     &o.azure.TokenProxy.URL,
		"AZURE_KUBERNETES_SNI_NAME":        &o.azure.TokenProxy.SNIName,
		"AZURE_KUBERNETES_CA_FILE":         &o.azure.TokenProxy.CAFile,
		"GOOGLE_APPLICATION_CREDENTIALS":   &o.gcp.CredentialsFile,
		"GOOGLE_CLOUD_UNIVERSE_DOMAIN":     &o.gcp.UniverseDomain,
		"PROJECT":                          &o.gcp.Project,
		"CLUSTER_LOCATION":                 &o.gcp.ClusterLocation,
		"CLUSTER_NAME":                     &o.gcp.ClusterName,
		"GCE_METADATA_HOST":                &o.gcp.MetadataHost,
	} {
		*field = cmp.Or(*field, os.Getenv(variable))
	}
	if o.gcpCluster != "" {
		parts := strings.Split(o.gcpCluster, "/")
		if len(parts) != 3 {
			return nil, usageError{fmt.Errorf("--gcp-cluster: %q is not PROJECT/LOCATION/NAME", o.gcpCluster)}
		}
		o.gcp.Project, o.gcp.ClusterLocation, o.gcp.ClusterName = parts[0], parts[1], parts[2]
	}
	amazon, amazonErr := aws.New(o.aws)
	microsoft, microsoftErr := azure.New(o.azure)
	google, googleErr := gcp.New(o.gcp)
	if err := errors.Join(amazonErr, microsoftErr, googleErr); err != nil {
		return nil, usageError{err}
	}
	return map[string]provider.Provider{"aws": amazon, "azure": microsoft, "gcp": google, "gke": google}, nil
}
