package notice

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// sample returns a file of testdata.
func sample(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// list is one hint or none.
func list(h *provider.Hint, err error) ([]provider.Hint, error) {
	if h == nil {
		return nil, err
	}
	return []provider.Hint{*h}, err
}

// formats are the parsers of what is sent, by the beginning of the samples' names.
var formats = map[string]func([]byte) ([]provider.Hint, error){
	"webhook":    parseWebhook,
	"cloudevent": parseWebhook,
	"eventgrid": func(body []byte) ([]provider.Hint, error) {
		hints, _, err := parseEventGrid(body)
		return hints, err
	},
	"pubsub":      func(body []byte) ([]provider.Hint, error) { return list(parsePushed(body)) },
	"eventbridge": func(body []byte) ([]provider.Hint, error) { return list(parseEventBridge(body)) },
}

func TestWhatCloudsSendIsUnderstood(t *testing.T) {
	secret := []provider.Hint{{Provider: "azure", Store: "sample-kv", Object: "newsecret"}}
	for name, want := range map[string][]provider.Hint{
		"eventgrid-secret.json":      secret,
		"cloudevent-secret.json":     secret,
		"eventgrid-certificate.json": {{Provider: "azure", Store: "sample-kv", Object: "site"}}, // and not that it will end
		"eventgrid-access.json":      {{Provider: "azure", Store: "sample-kv"}},
		"pubsub-push.json":           {{Provider: "gcp", Store: "827585297303", Object: "projects/827585297303/secrets/test-secret"}},
		"eventbridge-label.json":     {{Provider: "aws", Store: "012345678901/us-west-2", Object: "arn:aws:secretsmanager:us-west-2:012345678901:secret:mySecret-a1b2c3"}},
		"eventbridge-put.json":       {{Provider: "aws", Store: "123456789012/eu-west-1", Object: "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/test-secret-123456"}},
		"eventbridge-put-name.json":  {{Provider: "aws", Store: "123456789012/eu-west-1", Object: "prod/test-secret"}},
		"eventbridge-rotation.json":  {{Provider: "aws", Store: "123456789012/us-west-2", Object: "arn:aws:secretsmanager:us-west-2:123456789012:secret:Appuser-pyodbc-WoDpmU"}},
		"eventbridge-parameter.json": {{Provider: "aws", Store: "123456789012/us-east-1", Object: "arn:aws:ssm:us-east-1:123456789012:parameter/prod/db"}},
		"eventbridge-read.json":      nil, // else each refresh would cause another
		"eventgrid-validation.json":  nil,
	} {
		t.Run(name, func(t *testing.T) {
			format, _, _ := strings.Cut(name, "-")
			got, err := formats[format](sample(t, name))
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

func TestEventsThatTellOfNoChangeAreNone(t *testing.T) {
	put := string(sample(t, "eventbridge-put.json"))
	for name, c := range map[string]struct{ format, body string }{
		"a call that failed":          {"eventbridge", strings.Replace(put, `"readOnly": false`, `"readOnly": false, "errorCode": "AccessDenied"`, 1)},
		"a call that read, unmarked":  {"eventbridge", strings.Replace(put, "PutSecretValue", "BatchGetSecretValue", 1)},
		"a call that only reads":      {"eventbridge", strings.NewReplacer("PutSecretValue", "PreviewSecret", `"readOnly": false`, `"readOnly": true`).Replace(put)},
		"a topic of a secret":         {"pubsub", `{"message": {"attributes": {"eventType": "TOPIC_CONFIGURED"}}}`},
		"a reminder to rotate":        {"pubsub", `{"message": {"attributes": {"eventType": "SECRET_ROTATE", "secretId": "projects/1/secrets/a"}}}`},
		"an event of another service": {"eventgrid", `[{"eventType": "Microsoft.Storage.BlobCreated", "data": {}}]`},
		"no event":                    {"eventgrid", `[]`},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := formats[c.format]([]byte(c.body)); err != nil || len(got) > 0 {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestANoticeOfOurOwn(t *testing.T) {
	db := provider.Hint{Provider: "vault", Store: "s", Object: "secret/data/db"}
	for body, want := range map[string][]provider.Hint{
		`{"provider": "vault", "store": "s", "object": "secret/data/db"}`:                       {db},
		` [{"provider": "vault", "store": "s", "object": "secret/data/db"}, {"provider": "*"}]`: {db, {Provider: "*"}},
		`[]`: nil,
		`{"specversion": "1.0", "type": "google.cloud.pubsub.topic.v1.messagePublished", "data": ` + string(sample(t, "pubsub-push.json")) + `}`: {{Provider: "gcp", Store: "827585297303", Object: "projects/827585297303/secrets/test-secret"}},
	} {
		if got, err := parseWebhook([]byte(body)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", body, got, err, want)
		}
	}
}

func TestWhatIsNoNoticeIsExplained(t *testing.T) {
	for name, c := range map[string]struct{ format, body, want string }{
		"a notice without a provider":        {"webhook", `{"object": "db"}`, "it has no provider"},
		"a notice with another field":        {"webhook", `{"provider": "aws", "name": "db"}`, `notice 1: it is not {"provider"`},
		"the second of two":                  {"webhook", `[{"provider": "aws"}, 7]`, "notice 2"},
		"two that are no list":               {"webhook", `{"provider": "aws"} {"provider": "aws"}`, "as a list"},
		"no JSON":                            {"webhook", `provider: aws`, "it is not"},
		"half a list":                        {"webhook", `[{"provider": "aws"}`, "not a list"},
		"too many":                           {"webhook", "[" + strings.Repeat(`{"provider":"*"},`, maxHints) + `{"provider":"*"}]`, "it has 1001 notices"},
		"a CloudEvent that nobody knows":     {"webhook", `{"specversion": "1.0", "type": "com.example.x"}`, `"com.example.x"`},
		"an event of Event Grid, untyped":    {"eventgrid", `[{"subject": "a"}]`, "event 1 has no type"},
		"an event that is a number":          {"eventgrid", `7`, "event 1"},
		"a validation without a code":        {"eventgrid", `[{"eventType": "Microsoft.EventGrid.SubscriptionValidationEvent", "data": {}}]`, "no validationCode"},
		"a secret without a name":            {"eventgrid", `[{"eventType": "Microsoft.KeyVault.SecretNewVersionCreated", "data": {"VaultName": "a"}}]`, "names no object"},
		"a secret whose data is a text":      {"eventgrid", `[{"eventType": "Microsoft.KeyVault.SecretNewVersionCreated", "data": "a"}]`, "not that of an event of Key Vault"},
		"a message of somebody else":         {"pubsub", `{"message": {"attributes": {"eventType": "OBJECT_FINALIZE"}}}`, `"OBJECT_FINALIZE"`},
		"a message without attributes":       {"pubsub", `{"message": {"data": "aGVsbG8="}}`, `eventType is ""`},
		"a message about no secret":          {"pubsub", `{"message": {"attributes": {"eventType": "SECRET_UPDATE", "secretId": "db"}}}`, `secretId is "db"`},
		"an event of another service":        {"eventbridge", `{"source": "aws.s3", "detail-type": "Object Created", "detail": {}}`, `"aws.s3/Object Created"`},
		"a label of no secret":               {"eventbridge", `{"source": "aws.secretsmanager", "detail-type": "Secret Label Updated", "detail": {}}`, "names no secret"},
		"a change whose detail is no object": {"eventbridge", `{"source": "aws.ssm", "detail-type": "Parameter Store Change", "detail": 7}`, "its detail"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := formats[c.format]([]byte(c.body))
			if err == nil || len(got) > 0 || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %+v, %v, want %q", got, err, c.want)
			}
		})
	}
}

// FuzzParsers looks for texts that bring a parser down, or hints that it must not
// return.
func FuzzParsers(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		f.Add(sample(f, filepath.Base(file)))
	}
	f.Add([]byte(`[{"provider": "vault", "store": "s", "object": "secret/data/db"}, {"provider": "*"}]`))
	names := map[string]string{"eventgrid": "azure", "pubsub": "gcp", "eventbridge": "aws"}
	f.Fuzz(func(t *testing.T, body []byte) {
		for format, parse := range formats {
			hints, err := parse(body)
			if err != nil && len(hints) > 0 {
				t.Errorf("%s: hints beside the error %v", format, err)
			}
			if len(hints) > maxHints {
				t.Errorf("%s: %d hints", format, len(hints))
			}
			for _, h := range hints {
				if h.Provider == "" || names[format] != "" && h.Provider != names[format] {
					t.Errorf("%s: the hint %+v", format, h)
				}
			}
		}
	})
}
