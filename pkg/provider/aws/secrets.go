package aws

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	smtypes "github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

const (
	// secretsAtOnce is how many one BatchGetSecretValue may ask for.
	secretsAtOnce = 20
	// currentStage is the label of the version that is meant where none is named.
	currentStage = "AWSCURRENT"
)

// as has a call made with the credentials of the session.
func (c conn) as(o *secretsmanager.Options) { o.Credentials = c.credentials }

// readSecrets reads secrets in batches, as far as these can: they bring current
// versions only, and need a right of their own. A batch brings twenty secrets
// for one call, where each version without its value would be a call. Other
// secrets that the volume holds are asked for their version first.
func (c conn) readSecrets(ctx context.Context, wanted map[ref]string, found *results) error {
	var current, others []ref
	for r, version := range wanted {
		switch {
		case r.service != secretsManager:
		case r.version != "" && r.version == version: // a version never changes
			found.put(r, outcome{version: version, held: true})
		case r.version == "" && r.label == "":
			current = append(current, r)
		default:
			others = append(others, r)
		}
	}
	if len(current) > 1 {
		left, err := c.batches(ctx, ordered(current), found)
		if err != nil {
			return err
		}
		current = left
	}
	others = append(others, current...)
	return provider.Together(ctx, len(others), func(ctx context.Context, i int) error { return c.readSecret(ctx, others[i], wanted[others[i]], found) })
}

// batches reads current versions, and returns what has to be read one by one.
func (c conn) batches(ctx context.Context, refs []ref, found *results) (_ []ref, err error) {
	if c.refusals.Has(c.key) {
		return refs, nil
	}
	all := slices.Collect(slices.Chunk(refs, secretsAtOnce))
	read := func(ctx context.Context, i int) error {
		err := c.batch(ctx, all[i], found)
		var failure *provider.Error
		if errors.As(err, &failure) && (failure.Code == deniedCode || failure.Kind == provider.Throttled && !errors.Is(err, provider.ErrNotCalled)) {
			// The calls one by one tell what is denied. They have a quota of their own,
			// which is a hundred times as high.
			c.refusals.Note(c.key)
			return nil
		}
		return err
	}
	first := 0
	if len(all) > 1 && !c.session.batches.Load() { // one call finds out whether it has the right
		if err := read(ctx, 0); err != nil {
			return nil, err
		}
		first = 1
	}
	if !c.refusals.Has(c.key) {
		err = provider.Together(ctx, len(all)-first, func(ctx context.Context, i int) error { return read(ctx, first+i) })
	}
	return slices.DeleteFunc(refs, found.has), err
}

// batch makes one call, and those for the further pages of its answer. It leaves
// out secrets of which the answer does not tell for certain.
func (c conn) batch(ctx context.Context, refs []ref, found *results) error {
	ids := make([]string, len(refs))
	for i, r := range refs {
		ids[i] = r.name
	}
	var values []smtypes.SecretValueEntry
	failures := map[string]smtypes.APIErrorType{}
	pages := secretsmanager.NewBatchGetSecretValuePaginator(c.secrets, &secretsmanager.BatchGetSecretValueInput{SecretIdList: ids},
		func(o *secretsmanager.BatchGetSecretValuePaginatorOptions) { o.StopOnDuplicateToken = true })
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx, c.as)
		if err != nil {
			return explain(fmt.Sprintf("read %d secrets in %s", len(refs), c.region), err, nil)
		}
		c.session.batches.Store(true)
		values = append(values, page.SecretValues...)
		for _, e := range page.Errors {
			failures[aws.ToString(e.SecretId)] = e
		}
	}
	for _, r := range refs {
		if e, ok := failures[r.name]; ok {
			failure := &provider.Error{Op: "read it in " + c.region}
			explainCode(failure, aws.ToString(e.ErrorCode), aws.ToString(e.Message), nil, nil)
			if err := found.fail(r, failure); err != nil {
				return err
			}
		} else if v := r.among(values, refs); v != nil {
			found.put(r, outcome{version: aws.ToString(v.VersionId), value: secretValue(v.SecretString, v.SecretBinary)})
		}
	}
	return nil
}

// among returns the value of r. A name is of the role's own account: what was
// asked for by its ARN, and has the same name, may be another account's.
func (r ref) among(values []smtypes.SecretValueEntry, asked []ref) *smtypes.SecretValueEntry {
	for i, v := range values {
		byARN := func(r ref) bool { return r.isARN(aws.ToString(v.ARN)) }
		if byARN(r) || r.name == aws.ToString(v.Name) && !slices.ContainsFunc(asked, byARN) {
			return &values[i]
		}
	}
	return nil
}

// isARN reports whether r is named by that ARN, or by it without the six
// characters that Secrets Manager adds.
func (r ref) isARN(arn string) bool {
	return r.name == arn || strings.HasPrefix(arn, r.name+"-") && len(arn) == len(r.name)+len("-ABCdef")
}

func secretValue(text *string, binary []byte) []byte {
	if text != nil {
		return []byte(*text)
	}
	return binary
}

// readSecret reads one secret, unless the volume holds the version that is meant.
func (c conn) readSecret(ctx context.Context, r ref, version string, found *results) error {
	if version != "" && r.version == "" {
		out, err := c.secrets.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: &r.name}, c.as)
		if err != nil {
			return found.fail(r, explain("ask for its version in "+c.region, err, nil))
		}
		stage := r.label
		if stage == "" {
			stage = currentStage
		}
		if slices.Contains(out.VersionIdsToStages[version], stage) {
			found.put(r, outcome{version: version, held: true})
			return nil
		}
	}
	out, err := c.secrets.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &r.name, VersionId: optional(r.version), VersionStage: optional(r.label)}, c.as)
	if err != nil {
		return found.fail(r, explain("read it in "+c.region, err, nil))
	}
	found.put(r, outcome{version: aws.ToString(out.VersionId), value: secretValue(out.SecretString, out.SecretBinary)})
	return nil
}
