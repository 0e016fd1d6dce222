package notice

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// maxHints bounds the hints of one message.
const maxHints = 1000

// cloudEvent is an event in one of two formats of Azure Event Grid: CloudEvents
// 1.0 (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md),
// which others use too, and its own
// (https://learn.microsoft.com/azure/event-grid/event-schema).
type cloudEvent struct {
	SpecVersion string          `json:"specversion"` // of CloudEvents alone
	Type        string          `json:"type"`
	EventType   string          `json:"eventType"` // of Event Grid's own alone
	Subject     string          `json:"subject"`
	Data        json.RawMessage `json:"data"`
}

// pubSubPushed is the type of a CloudEvent that carries a message of Pub/Sub, and
// the body of a push (https://cloud.google.com/pubsub/docs/push#receive_push).
const pubSubPushed = "google.cloud.pubsub.topic.v1.messagePublished"

type pushed struct {
	Message struct {
		Attributes map[string]string `json:"attributes"`
	} `json:"message"`
}

// elements returns the elements of a list in JSON, or the one object that there
// is.
func elements(body []byte) ([]json.RawMessage, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(body), []byte("[")) {
		return []json.RawMessage{body}, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("it is not a list in JSON: %w", err)
	}
	if len(list) > maxHints {
		return nil, fmt.Errorf("it has %d notices, more than %d", len(list), maxHints)
	}
	return list, nil
}

// parseWebhook reads a body of our own, or CloudEvents.
func parseWebhook(body []byte) ([]provider.Hint, error) {
	list, err := elements(body)
	if err != nil {
		return nil, err
	}
	var hints []provider.Hint
	for i, element := range list {
		var e cloudEvent
		_ = json.Unmarshal(element, &e) // one of our own has no such fields
		var found *provider.Hint
		if e.SpecVersion != "" {
			found, err = e.hint()
		} else {
			found, err = parseOwn(element)
		}
		if err != nil {
			return nil, fmt.Errorf("notice %d: %w", i+1, err)
		}
		if found != nil {
			hints = append(hints, *found)
		}
	}
	return hints, nil
}

func parseOwn(element []byte) (*provider.Hint, error) {
	decoder := json.NewDecoder(bytes.NewReader(element))
	decoder.DisallowUnknownFields()
	var h provider.Hint
	if err := decoder.Decode(&h); err != nil {
		return nil, fmt.Errorf(`it is not {"provider": "...", "store": "...", "object": "..."}: %w`, err)
	}
	if decoder.More() {
		return nil, errors.New("something follows it; write several as a list")
	}
	if h.Provider == "" {
		return nil, fmt.Errorf("it has no provider; write its name as classes do, or %q for all", provider.AnyProvider)
	}
	return &h, nil
}

// hint returns what a CloudEvent says, nil where that is no change.
func (e cloudEvent) hint() (*provider.Hint, error) {
	switch {
	case strings.HasPrefix(e.Type, keyVaultEvent):
		return e.keyVaultHint()
	case e.Type == pubSubPushed:
		return parsePushed(e.Data)
	}
	return nil, fmt.Errorf("nothing is known of CloudEvents of the type %.100q", e.Type)
}

const (
	// keyVaultEvent begins the types of events of Key Vault
	// (https://learn.microsoft.com/azure/event-grid/event-schema-key-vault).
	keyVaultEvent = "Microsoft.KeyVault."
	// validationEvent asks whether this is meant to be subscribed
	// (https://learn.microsoft.com/azure/event-grid/end-point-validation-event-grid-events-schema).
	validationEvent = "Microsoft.EventGrid.SubscriptionValidationEvent"
)

// keyVaultHint returns what has changed at a key vault. Nothing has where an object
// only ends, or soon will.
func (e cloudEvent) keyVaultHint() (*provider.Hint, error) {
	event := strings.TrimPrefix(cmp.Or(e.Type, e.EventType), keyVaultEvent)
	access := event == "VaultAccessPolicyChanged"
	if !access && !strings.HasSuffix(event, "NewVersionCreated") {
		return nil, nil
	}
	var data struct{ VaultName, ObjectName string }
	if err := json.Unmarshal(e.Data, &data); err != nil {
		return nil, fmt.Errorf("its data is not that of an event of Key Vault: %w", err)
	}
	h := &provider.Hint{Provider: "azure", Store: data.VaultName, Object: cmp.Or(data.ObjectName, e.Subject)}
	if access {
		h.Object = ""
	} else if h.Object == "" {
		return nil, errors.New("it names no object")
	}
	return h, nil
}

// parseEventGrid reads what Event Grid posts: events in either format, or the
// code of a validation, to be sent back.
func parseEventGrid(body []byte) (hints []provider.Hint, code string, err error) {
	list, err := elements(body)
	if err != nil {
		return nil, "", err
	}
	for i, element := range list {
		var e cloudEvent
		if err := json.Unmarshal(element, &e); err != nil {
			return nil, "", fmt.Errorf("event %d is not one of Event Grid: %w", i+1, err)
		}
		switch name := cmp.Or(e.Type, e.EventType); {
		case name == validationEvent:
			var data struct{ ValidationCode string }
			if err := json.Unmarshal(e.Data, &data); err != nil || data.ValidationCode == "" {
				return nil, "", errors.New("the validation event has no validationCode")
			}
			return nil, data.ValidationCode, nil
		case strings.HasPrefix(name, keyVaultEvent):
			h, err := e.keyVaultHint()
			if err != nil {
				return nil, "", fmt.Errorf("event %d: %w", i+1, err)
			}
			if h != nil {
				hints = append(hints, *h)
			}
		case name == "":
			return nil, "", fmt.Errorf("event %d has no type", i+1)
		}
	}
	return hints, "", nil
}

func parsePushed(body []byte) (*provider.Hint, error) {
	var p pushed
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, fmt.Errorf("it is not a message of Pub/Sub: %w", err)
	}
	return secretManagerHint(p.Message.Attributes)
}

// secretManagerHint returns what has changed at Google's Secret Manager, by the
// attributes of its message
// (https://cloud.google.com/secret-manager/docs/event-notifications).
func secretManagerHint(attributes map[string]string) (*provider.Hint, error) {
	switch event := attributes["eventType"]; {
	case event == "TOPIC_CONFIGURED", event == "SECRET_ROTATE": // a test, and a reminder
		return nil, nil
	case !strings.HasPrefix(event, "SECRET_"):
		return nil, fmt.Errorf("its eventType is %.40q, none of Secret Manager", event)
	}
	name := attributes["secretId"]
	parts := strings.Split(name, "/")
	if len(parts) < 4 || parts[0] != "projects" || parts[len(parts)-2] != "secrets" {
		return nil, fmt.Errorf("its secretId is %.200q, not projects/PROJECT/secrets/SECRET", name)
	}
	return &provider.Hint{Provider: "gcp", Store: parts[1], Object: name}, nil
}

// parseEventBridge reads an event of EventBridge
// (https://docs.aws.amazon.com/eventbridge/latest/ref/overview-event-structure.html).
// It returns nil for one that tells of no change.
func parseEventBridge(body []byte) (*provider.Hint, error) {
	var event struct {
		DetailType string          `json:"detail-type"`
		Source     string          `json:"source"`
		Account    string          `json:"account"`
		Region     string          `json:"region"`
		Resources  []string        `json:"resources"`
		Detail     json.RawMessage `json:"detail"`
	}
	if err := json.Unmarshal(body, &event); err != nil {
		return nil, fmt.Errorf("it is not an event of EventBridge: %w", err)
	}
	resource := ""
	if len(event.Resources) > 0 {
		resource = event.Resources[0]
	}
	var name string
	var err error
	switch kind := event.Source + "/" + event.DetailType; kind {
	case "aws.ssm/Parameter Store Change", "aws.secretsmanager/Secret Label Updated":
		var detail struct {
			Name string `json:"name"`
		}
		err = json.Unmarshal(event.Detail, &detail)
		name = cmp.Or(resource, detail.Name)
	case "aws.secretsmanager/AWS API Call via CloudTrail", "aws.secretsmanager/AWS Service Event via CloudTrail":
		var changed bool
		if name, changed, err = secretOfTrail(event.Detail); err == nil && !changed {
			return nil, nil
		}
	default:
		return nil, fmt.Errorf("nothing is known of events %.100q", kind)
	}
	if err != nil {
		return nil, fmt.Errorf("its detail is none of that kind: %w", err)
	}
	if name == "" {
		return nil, errors.New("it names no secret or parameter")
	}
	return &provider.Hint{Provider: "aws", Store: event.Account + "/" + event.Region, Object: name}, nil
}

// secretOfTrail returns the secret of an entry of CloudTrail, and whether it may
// have changed
// (https://docs.aws.amazon.com/secretsmanager/latest/userguide/cloudtrail_log_entries.html).
// A call that read it has not: else each refresh would cause another.
func secretOfTrail(detail []byte) (name string, changed bool, err error) {
	var entry struct {
		EventName         string `json:"eventName"`
		ErrorCode         string `json:"errorCode"`
		ReadOnly          bool   `json:"readOnly"`
		RequestParameters struct {
			SecretID string `json:"secretId"`
			Name     string `json:"name"`
		} `json:"requestParameters"`
		ResponseElements struct {
			ARN string `json:"arn"` // or aRN
		} `json:"responseElements"`
		AdditionalEventData struct {
			SecretID string `json:"SecretId"`
		} `json:"additionalEventData"`
	}
	if err := json.Unmarshal(detail, &entry); err != nil {
		return "", false, err
	}
	if entry.ReadOnly || entry.ErrorCode != "" {
		return "", false, nil
	}
	for _, reading := range []string{"Get", "BatchGet", "Describe", "List", "Validate"} {
		if strings.HasPrefix(entry.EventName, reading) {
			return "", false, nil
		}
	}
	return cmp.Or(entry.ResponseElements.ARN, entry.AdditionalEventData.SecretID, entry.RequestParameters.SecretID, entry.RequestParameters.Name), true, nil
}
