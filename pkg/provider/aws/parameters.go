package aws

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// parametersAtOnce is how many one GetParameters may ask for.
const parametersAtOnce = 10

// selected is the parameter's name with its version or label, as SSM takes it.
func (r ref) selected() string {
	if selector := r.version + r.label; selector != "" {
		return r.name + ":" + selector
	}
	return r.name
}

// readParameters reads parameters in batches. Their versions alone would be had
// for no fewer calls, and do not tell one that was made anew.
func (c conn) readParameters(ctx context.Context, wanted map[ref]string, found *results) error {
	var named, byARN []ref
	resources := map[string]bool{}
	for r := range wanted {
		switch {
		case r.service != parameterStore:
		case strings.HasPrefix(r.name, "arn:"):
			byARN = append(byARN, r)
		default:
			named = append(named, r)
			resources["parameter/"+strings.TrimPrefix(r.name, "/")] = true
		}
	}
	batches := slices.Collect(slices.Chunk(ordered(slices.Concat(named, byARN)), parametersAtOnce))
	// An answer would not tell the parameter of another account from one's own of
	// the same name.
	if slices.ContainsFunc(byARN, func(r ref) bool { return resources[r.name[strings.LastIndexByte(r.name, ':')+1:]] }) {
		batches = slices.Concat(slices.Collect(slices.Chunk(ordered(named), parametersAtOnce)), slices.Collect(slices.Chunk(ordered(byARN), parametersAtOnce)))
	}
	return provider.Together(ctx, len(batches), func(ctx context.Context, i int) error { return c.readBatch(ctx, batches[i], found) })
}

func (c conn) readBatch(ctx context.Context, refs []ref, found *results) error {
	names := make([]string, len(refs))
	for i, r := range refs {
		names[i] = r.selected()
	}
	out, err := c.parameters.GetParameters(ctx, &ssm.GetParametersInput{Names: names, WithDecryption: aws.Bool(true)}, func(o *ssm.Options) { o.Credentials = c.credentials })
	if err != nil {
		failure := explain(fmt.Sprintf("read %d parameters in %s", len(refs), c.region), err, nil)
		if len(refs) == 1 {
			failure.Object = refs[0].String()
		}
		return failure
	}
	values := map[string]ssmtypes.Parameter{}
	for _, parameter := range out.Parameters {
		selector := aws.ToString(parameter.Selector)
		if selector != "" {
			selector = ":" + strings.TrimPrefix(selector, ":")
		}
		values[aws.ToString(parameter.Name)+selector] = parameter
		values[aws.ToString(parameter.ARN)+selector] = parameter
	}
	for i, r := range refs {
		parameter, ok := values[names[i]]
		switch {
		case ok:
			found.put(r, outcome{version: strconv.FormatInt(parameter.Version, 10), value: []byte(aws.ToString(parameter.Value))})
		case r.version+r.label != "":
			found.put(r, outcome{err: notFound(c.region, "ParameterVersionNotFound", fmt.Sprintf("there is no such parameter, or it has no version %q", r.version+r.label))})
		default:
			found.put(r, outcome{err: notFound(c.region, "ParameterNotFound", "there is no such parameter")})
		}
	}
	return nil
}

// notFound is what GetParameters means by InvalidParameters.
func notFound(region, code, what string) error {
	return &provider.Error{Kind: provider.NotFound, Op: "read it in " + region, Err: errors.New(what), Remedy: meanings[code].remedy, Code: code}
}
