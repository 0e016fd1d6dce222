package main

import (
	"errors"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/sealed"
)

// sealedOptions are the flags of the sealed cache.
type sealedOptions struct {
	dir string
	max time.Duration
	key string
}

// keyInMemory is a key that does not survive the machine.
const keyInMemory = "memory"

func (o *sealedOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.dir, "sealed-cache-dir", "", "folder for encrypted answers of stores, for pods that start while their store is away; empty for none")
	flags.DurationVar(&o.max, "sealed-cache-max", 24*time.Hour, "how old such an answer may become, whatever its class says")
	flags.StringVar(&o.key, "sealed-cache-key", keyInMemory, "file of the key that they are encrypted with; or \"memory\", for one in --state-dir that ends with the machine")
}

// open returns the cache, nil where there is to be none. A key that is not right
// is an error; a folder that cannot be used is not, for no pod depends on it.
func (o *sealedOptions) open(stateDir string) (*sealed.Cache, error) {
	if o.dir == "" {
		return nil, nil
	}
	if o.max <= 0 {
		return nil, usageError{errors.New("--sealed-cache-max must be positive")}
	}
	read, from := sealed.ReadKey, o.key
	if o.key == keyInMemory {
		read, from = sealed.MemoryKey, stateDir
	}
	key, err := read(from)
	if err != nil {
		return nil, err
	}
	defer key.Clear()
	cache, err := sealed.New(sealed.Config{Dir: o.dir, Key: key, Max: o.max})
	if err != nil {
		klog.Background().Error(err, "The sealed cache cannot be used: pods do not start while their store is away")
		return nil, nil
	}
	return cache, nil
}
