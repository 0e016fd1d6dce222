package kube

import (
	"fmt"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// Mirror tells whoever keeps something of the objects of a kind what Watched.Follow
// finds. Its functions are called while Lock is held.
type Mirror[T metav1.Object] struct {
	Lock sync.Locker
	// Set is told of an object as it is now, and of the zero T for one that is gone.
	// It may keep the object.
	Set func(at types.NamespacedName, object T)
	// Known returns the objects of which something is kept: after a list, Set is told
	// that those are gone which are not in it.
	Known func() []types.NamespacedName
	// Listed is called after each list; it may be nil.
	Listed func()
}

var _ cache.ReflectorStore = Mirror[*metav1.PartialObjectMetadata]{}

// object returns what the API server has sent.
func (m Mirror[T]) object(obj any) (types.NamespacedName, T, error) {
	object, ok := obj.(T)
	if !ok {
		return types.NamespacedName{}, object, fmt.Errorf("the API server sent a %T for a %T", obj, object)
	}
	return types.NamespacedName{Namespace: object.GetNamespace(), Name: object.GetName()}, object, nil
}

// Add implements cache.ReflectorStore.
func (m Mirror[T]) Add(obj any) error { return m.Update(obj) }

// Update implements cache.ReflectorStore.
func (m Mirror[T]) Update(obj any) error {
	at, object, err := m.object(obj)
	if err != nil {
		return err
	}
	m.Lock.Lock()
	defer m.Lock.Unlock()
	m.Set(at, object)
	return nil
}

// Delete implements cache.ReflectorStore.
func (m Mirror[T]) Delete(obj any) error {
	at, _, err := m.object(obj)
	if err != nil {
		return err
	}
	m.Lock.Lock()
	defer m.Lock.Unlock()
	var gone T
	m.Set(at, gone)
	return nil
}

// Replace implements cache.ReflectorStore: it takes over what a list has brought.
func (m Mirror[T]) Replace(list []any, _ string) error {
	now := make(map[types.NamespacedName]T, len(list))
	for _, obj := range list {
		at, object, err := m.object(obj)
		if err != nil {
			return err
		}
		now[at] = object
	}
	m.Lock.Lock()
	defer m.Lock.Unlock()
	for _, at := range m.Known() {
		if _, still := now[at]; !still {
			var gone T
			m.Set(at, gone)
		}
	}
	for at, object := range now {
		m.Set(at, object)
	}
	if m.Listed != nil {
		m.Listed()
	}
	return nil
}

// Resync implements cache.ReflectorStore.
func (m Mirror[T]) Resync() error { return nil }
