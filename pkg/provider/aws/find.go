package aws

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	smtypes "github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// filterRule is what a filter of ListSecrets may be; with an exclamation mark in
// front it would mean the opposite.
var filterRule = regexp.MustCompile(`^[a-zA-Z0-9 :_@/+=.-][a-zA-Z0-9 :_@/+=.!-]{0,511}$`)

// gather puts what there is in place of each object that the class does not name.
func (p *Provider) gather(ctx context.Context, pod identity, c *class) ([]object, error) {
	var all []object
	for _, o := range c.objects {
		if o.find == nil {
			all = append(all, o)
			continue
		}
		names, err := p.list(ctx, pod, o)
		if err := o.Failure(err); err != nil {
			return nil, err
		}
		for _, name := range names {
			all = append(all, c.named(o, name))
		}
	}
	if len(all) > maxObjects {
		return nil, &provider.Error{Kind: provider.TooLarge, Object: fmt.Sprintf("parameter %q", objectsKey), Err: fmt.Errorf("there are %d objects, more than %d", len(all), maxObjects), Remedy: "split them over several classes"}
	}
	return all, nil
}

// named returns the object of a name that was found.
func (c *class) named(o object, name string) object {
	o.refs = slices.Clone(o.refs)
	for i := range o.refs {
		o.refs[i].name = name
	}
	folder := o.Path
	o.Name, o.Path = o.refs[0].String(), c.fileName(o.find.FileName(name))
	if folder != "" {
		o.Path = folder + "/" + o.Path
	}
	return o
}

// list returns the names that there are, of the first region that answers.
func (p *Provider) list(ctx context.Context, pod identity, o object) (names []string, err error) {
	for _, region := range pod.regions {
		err = p.inRegion(ctx, pod, region, func(c conn) error {
			list := c.listSecrets
			if o.refs[0].service == parameterStore {
				list = c.listParameters
			}
			var err error
			names, err = o.find.Gather(func(offer func(string, map[string]string) error) error { return list(ctx, o.find, offer) })
			return err
		})
		if provider.KindOf(err) != provider.Unavailable {
			break
		}
	}
	return names, err
}

// listSecrets offers the secrets that begin with the prefix and have tags of
// those names; find looks at the rest.
func (c conn) listSecrets(ctx context.Context, find *provider.Find, offer func(string, map[string]string) error) error {
	in := &secretsmanager.ListSecretsInput{MaxResults: aws.Int32(100)}
	filter := func(key smtypes.FilterNameStringType, value string) {
		if filterRule.MatchString(value) && len(in.Filters) < 10 {
			in.Filters = append(in.Filters, smtypes.Filter{Key: key, Values: []string{value}})
		}
	}
	filter(smtypes.FilterNameStringTypeName, find.Prefix)
	for _, tag := range slices.Sorted(maps.Keys(find.Tags)) {
		filter(smtypes.FilterNameStringTypeTagKey, tag)
	}
	pages := secretsmanager.NewListSecretsPaginator(c.secrets, in)
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx, c.as)
		if err != nil {
			return explain("list secrets in "+c.region, err, nil)
		}
		for _, s := range page.SecretList {
			tags := map[string]string{}
			for _, tag := range s.Tags {
				tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
			}
			if err := offer(aws.ToString(s.Name), tags); err != nil {
				return err
			}
		}
	}
	return nil
}

// listParameters offers the parameters that begin with the prefix and have the
// tags, which the answer does not show.
func (c conn) listParameters(ctx context.Context, find *provider.Find, offer func(string, map[string]string) error) error {
	in := &ssm.DescribeParametersInput{MaxResults: aws.Int32(50)}
	if find.Prefix != "" {
		in.ParameterFilters = []ssmtypes.ParameterStringFilter{{Key: aws.String("Name"), Option: aws.String("BeginsWith"), Values: []string{find.Prefix}}}
	}
	for _, tag := range slices.Sorted(maps.Keys(find.Tags)) {
		in.ParameterFilters = append(in.ParameterFilters, ssmtypes.ParameterStringFilter{Key: aws.String("tag:" + tag), Option: aws.String("Equals"), Values: []string{find.Tags[tag]}})
	}
	pages := ssm.NewDescribeParametersPaginator(c.parameters, in)
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx, func(o *ssm.Options) { o.Credentials = c.credentials })
		if err != nil {
			return explain("list parameters in "+c.region, err, nil)
		}
		for _, parameter := range page.Parameters {
			if err := offer(aws.ToString(parameter.Name), find.Tags); err != nil {
				return err
			}
		}
	}
	return nil
}
