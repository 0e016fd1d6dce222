package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/csi-secrets/csi-secrets/internal/kube"
)

// establishedWait is how often a definition is looked at until it is served.
const establishedWait = 250 * time.Millisecond

// definition is what is read of a CustomResourceDefinition.
type definition struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Versions []version `json:"versions"`
	} `json:"spec"`
	Status struct {
		Conditions []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Message string `json:"message"`
		} `json:"conditions"`
	} `json:"status"`
}

type version struct {
	Name string `json:"name"`
}

// InstallDefinitions makes the CustomResourceDefinitions of the cluster those of
// the documents, whoever made them before, and returns when all are served. No
// object of theirs is lost. One that has a version which its document lacks is
// newer, and stays as it is. tell is called with the name of each that was
// installed.
func InstallDefinitions(ctx context.Context, api *kube.API, documents [][]byte, tell func(name string)) error {
	client, err := api.Client(schema.GroupVersion{Group: "apiextensions.k8s.io", Version: "v1"}, func(*runtime.Scheme) {})
	if err != nil {
		return err
	}
	const resource = "customresourcedefinitions"
	for _, document := range documents {
		var d definition
		if err := yaml.Unmarshal(document, &d); err != nil || d.Kind != "CustomResourceDefinition" || d.Name == "" {
			return fmt.Errorf("a document is no CustomResourceDefinition: %w", errors.Join(err, fmt.Errorf("kind %q, name %q", d.Kind, d.Name)))
		}
		newer, err := d.newer(ctx, client.Get().Resource(resource).Name(d.Name))
		if err != nil {
			return fmt.Errorf("look for the CustomResourceDefinition %s: %w", d.Name, err)
		}
		if newer {
			continue
		}
		request := client.Patch(types.ApplyPatchType).Resource(resource).Name(d.Name).
			Param("fieldManager", "csi-secrets").Param("force", "true").Body(document)
		for !d.established() {
			body, err := request.Do(ctx).Raw()
			if err != nil {
				return fmt.Errorf("install the CustomResourceDefinition %s: %w", d.Name, err)
			}
			if err := json.Unmarshal(body, &d); err != nil {
				return fmt.Errorf("read the CustomResourceDefinition %s: %w", d.Name, err)
			}
			if why := d.refused(); why != "" {
				return fmt.Errorf("the API server refuses the CustomResourceDefinition %s: %s", d.Name, why)
			}
			if d.established() {
				break
			}
			request = client.Get().Resource(resource).Name(d.Name)
			select {
			case <-time.After(establishedWait):
			case <-ctx.Done():
				return fmt.Errorf("the CustomResourceDefinition %s is not served yet: %w", d.Name, ctx.Err())
			}
		}
		tell(d.Name)
	}
	return nil
}

// newer reports whether the cluster has a definition with a version that d lacks.
func (d *definition) newer(ctx context.Context, get *rest.Request) (bool, error) {
	body, err := get.Do(ctx).Raw()
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	var has definition
	if err == nil {
		err = json.Unmarshal(body, &has)
	}
	return slices.ContainsFunc(has.Spec.Versions, func(v version) bool { return !slices.Contains(d.Spec.Versions, v) }), err
}

func (d *definition) condition(name string) (status, message string) {
	for _, c := range d.Status.Conditions {
		if c.Type == name {
			return c.Status, c.Message
		}
	}
	return "", ""
}

func (d *definition) established() bool {
	status, _ := d.condition("Established")
	return status == "True"
}

func (d *definition) refused() string {
	if status, message := d.condition("NamesAccepted"); status == "False" {
		return message
	}
	return ""
}
