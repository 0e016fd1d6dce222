package awstest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// may returns why the caller may not do something, or nil.
func (c *Cloud) may(q *request, action, resource string) *Failure {
	action = q.service + ":" + action
	if c.allowed(q.caller.role, action, resource) {
		return nil
	}
	return &Failure{Code: "AccessDeniedException", Message: fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %s because no identity-based policy allows the %s action",
		assumed(q.caller.role, q.caller.name), action, resource, action)}
}

// find returns a secret by its name, its ARN, or its ARN without the suffix.
func (c *Cloud) find(q *request, id string) (string, *secret) {
	for name, s := range c.regions[q.region].secrets {
		if id == name || id == s.arn || id+s.arn[len(s.arn)-len("-ABCDEF"):] == s.arn {
			return name, s
		}
	}
	return "", nil
}

// secret returns the one that a request names, if the caller may do that with it.
func (c *Cloud) secret(q *request, action, id string) (string, *secret, *Failure) {
	name, s := c.find(q, id)
	resource := id
	if s != nil {
		resource = s.arn
	}
	if failed := c.may(q, action, resource); failed != nil {
		return "", nil, failed
	}
	if s == nil {
		return "", nil, &Failure{Code: "ResourceNotFoundException", Message: "Secrets Manager can't find the specified secret."}
	}
	return name, s, nil
}

// value returns a version of a secret as an answer has it.
func (c *Cloud) value(q *request, id, version, stage string) (map[string]any, *Failure) {
	name, s, failed := c.secret(q, "GetSecretValue", id)
	if failed != nil {
		return nil, failed
	}
	if s.deleted {
		return nil, &Failure{Code: "InvalidRequestException", Message: "You can't perform this operation on the secret because it was marked for deletion."}
	}
	if stage == "" && version == "" {
		stage = current
	}
	if version == "" {
		version = s.with(stage)
	}
	v := s.versions[version]
	if v == nil || stage != "" && !slices.Contains(v.stages, stage) {
		return nil, &Failure{Code: "ResourceNotFoundException", Message: "Secrets Manager can't find the specified secret value for staging label: " + stage}
	}
	out := map[string]any{"ARN": s.arn, "Name": name, "VersionId": version, "CreatedDate": s.created}
	if len(v.stages) > 0 {
		out["VersionStages"] = list(v.stages)
	}
	if v.binary != nil {
		out["SecretBinary"] = v.binary
	} else {
		out["SecretString"] = v.text
	}
	return out, nil
}

func list(texts []string) []any {
	all := []any{}
	for _, text := range texts {
		all = append(all, text)
	}
	return all
}

func text(in map[string]any, key string) string {
	s, _ := in[key].(string)
	return s
}

func (c *Cloud) getSecretValue(q *request) (map[string]any, *Failure) {
	return c.value(q, text(q.in, "SecretId"), text(q.in, "VersionId"), text(q.in, "VersionStage"))
}

func (c *Cloud) batchGetSecretValue(q *request) (map[string]any, *Failure) {
	if failed := c.may(q, "BatchGetSecretValue", "*"); failed != nil {
		return nil, failed
	}
	ids, ok := q.in["SecretIdList"].([]any)
	if !ok {
		return nil, &Failure{Code: "InvalidParameterException", Message: "Either 'SecretIdList' or 'Filters' must be provided, but not both."}
	}
	if q.in["MaxResults"] != nil {
		return nil, &Failure{Code: "InvalidParameterException", Message: "'Filters' must be provided if 'MaxResults' is provided."}
	}
	values, errs := []any{}, []any{}
	out := map[string]any{}
	for _, id := range c.paged(q, out, ids) {
		v, failed := c.value(q, id.(string), "", "")
		if failed != nil {
			errs = append(errs, map[string]any{"SecretId": id, "ErrorCode": failed.Code, "Message": failed.Message})
			continue
		}
		values = append(values, v)
	}
	out["SecretValues"], out["Errors"] = values, errs
	return out, nil
}

// paged returns the part of all that the request's token stands for, of as many
// as it or the test asks for, and puts the next token into the answer.
func (c *Cloud) paged(q *request, out map[string]any, all []any) []any {
	start, _ := strconv.Atoi(strings.TrimPrefix(text(q.in, "NextToken"), "page-"))
	size := len(all)
	if asked, ok := q.in["MaxResults"].(float64); ok {
		size = min(size, int(asked))
	}
	if c.page > 0 {
		size = min(size, c.page)
	}
	end := min(start+size, len(all))
	if end < len(all) {
		out["NextToken"] = fmt.Sprintf("page-%d", end)
	}
	return all[min(start, end):end]
}

func (c *Cloud) describeSecret(q *request) (map[string]any, *Failure) {
	name, s, failed := c.secret(q, "DescribeSecret", text(q.in, "SecretId"))
	if failed != nil {
		return nil, failed
	}
	return c.description(name, s, "VersionIdsToStages"), nil
}

func (c *Cloud) description(name string, s *secret, stagesKey string) map[string]any {
	stages := map[string]any{}
	for id, v := range s.versions {
		if len(v.stages) > 0 {
			stages[id] = list(v.stages)
		}
	}
	out := map[string]any{"ARN": s.arn, "Name": name, stagesKey: stages, "CreatedDate": s.created}
	if len(s.tags) > 0 {
		out["Tags"] = tags(s.tags)
	}
	if s.deleted {
		out["DeletedDate"] = s.created
	}
	return out
}

func tags(m map[string]string) []any {
	all := []any{}
	for _, key := range keys(m) {
		all = append(all, map[string]any{"Key": key, "Value": m[key]})
	}
	return all
}

func (c *Cloud) listSecrets(q *request) (map[string]any, *Failure) {
	if failed := c.may(q, "ListSecrets", "*"); failed != nil {
		return nil, failed
	}
	all := []any{}
	secrets := c.regions[q.region].secrets
	for _, name := range keys(secrets) {
		if s := secrets[name]; !s.deleted && filtered(q, name, s) {
			all = append(all, c.description(name, s, "SecretVersionsToStages"))
		}
	}
	out := map[string]any{}
	out["SecretList"] = c.paged(q, out, all)
	return out, nil
}

// filtered applies the filters of ListSecrets: all must match, by prefix.
func filtered(q *request, name string, s *secret) bool {
	filters, _ := q.in["Filters"].([]any)
	for _, f := range filters {
		filter := f.(map[string]any)
		var candidates []string
		switch filter["Key"] {
		case "name":
			candidates = []string{name}
		case "tag-key":
			candidates = keys(s.tags)
		case "tag-value":
			for _, value := range s.tags {
				candidates = append(candidates, value)
			}
		}
		if !slices.ContainsFunc(filter["Values"].([]any), func(value any) bool {
			return slices.ContainsFunc(candidates, func(text string) bool { return strings.HasPrefix(text, value.(string)) })
		}) {
			return false
		}
	}
	return true
}

func (c *Cloud) getParameters(q *request) (map[string]any, *Failure) {
	found, invalid := []any{}, []any{}
	for _, n := range q.in["Names"].([]any) {
		asked := n.(string)
		name, selector, isARN := asked, "", strings.HasPrefix(asked, "arn:")
		if i := strings.LastIndexByte(asked, ':'); i >= 0 && (!isARN || i > strings.LastIndexByte(asked, '/')) {
			name, selector = asked[:i], asked[i+1:]
		}
		stored := name
		for other := range c.regions[q.region].parameters {
			if isARN && ParameterARN(q.region, other) == name {
				stored = other
			}
		}
		if failed := c.may(q, "GetParameters", ParameterARN(q.region, stored)); failed != nil {
			return nil, failed
		}
		p := c.regions[q.region].parameters[stored]
		version := 0
		if p != nil {
			version = len(p.values)
		}
		if p != nil && selector != "" {
			if version = p.labels[selector]; version == 0 {
				version, _ = strconv.Atoi(selector)
			}
		}
		if p == nil || version < 1 || version > len(p.values) {
			invalid = append(invalid, asked)
			continue
		}
		out := map[string]any{"Name": stored, "ARN": ParameterARN(q.region, stored), "Type": "SecureString", "Value": p.values[version-1], "Version": float64(version), "DataType": "text"}
		if selector != "" {
			out["Selector"] = ":" + selector
		}
		found = append(found, out)
	}
	out := map[string]any{"Parameters": found}
	if len(invalid) > 0 {
		out["InvalidParameters"] = invalid
	}
	return out, nil
}

func (c *Cloud) describeParameters(q *request) (map[string]any, *Failure) {
	if failed := c.may(q, "DescribeParameters", "*"); failed != nil {
		return nil, failed
	}
	all := []any{}
	parameters := c.regions[q.region].parameters
	for _, name := range keys(parameters) {
		if p := parameters[name]; parameterMatches(q, name, p) {
			all = append(all, map[string]any{"Name": name, "ARN": ParameterARN(q.region, name), "Type": "SecureString", "Version": float64(len(p.values))})
		}
	}
	out := map[string]any{}
	out["Parameters"] = c.paged(q, out, all)
	return out, nil
}

func parameterMatches(q *request, name string, p *parameter) bool {
	filters, _ := q.in["ParameterFilters"].([]any)
	for _, f := range filters {
		filter := f.(map[string]any)
		match := func(value any) bool { return name == value }
		if tag, ok := strings.CutPrefix(text(filter, "Key"), "tag:"); ok {
			match = func(value any) bool { return p.tags[tag] == value }
		} else if filter["Option"] == "BeginsWith" {
			match = func(value any) bool { return strings.HasPrefix(name, value.(string)) }
		}
		if !slices.ContainsFunc(filter["Values"].([]any), match) {
			return false
		}
	}
	return true
}
