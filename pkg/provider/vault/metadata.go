package vault

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// dataPart is in the path of each secret of KV version 2, and metadataPart in that
// of what is known of it
// (https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2#read-secret-metadata).
const dataPart, metadataPart = "/data/", "/metadata/"

// creation names a version of a secret for good: one that was deleted with its
// metadata, and written anew, has the same numbers again.
func (f *fetching) creation(r request, version, created string) string {
	return strings.Join([]string{f.learnKey(r), version, created}, "\x00")
}

// learnCreation takes note of the version that an answer brought.
func (f *fetching) learnCreation(r request, a *answer) {
	var created string
	if json.Unmarshal(members(members(a.Data)["metadata"])["created_time"], &created) == nil && a.version() != "" {
		f.created.add(f.creation(r, a.version(), created))
	}
}

// unmoved reports whether the volume holds what the server has, of which it asks for
// the metadata and no value. It is false where that cannot be known: for paths
// that are not of KV version 2, and for an identity that may not read metadata. An
// error is that of a server which throttles, or does not answer.
func (f *fetching) unmoved(ctx context.Context, requests []request) (bool, error) {
	if f.req.Current == nil || f.identity == nil || len(f.state.Tokens)+len(f.state.Answers) > 0 || len(f.req.Mounted) != len(f.objects) {
		return false, nil
	}
	mounted := map[request]string{}
	for i, o := range f.objects {
		v, r := f.req.Mounted[i], o.request
		if before, twice := mounted[r]; v.ID != o.id || twice && before != v.Version {
			return false, nil
		}
		if r.method != "GET" || r.query != "" || !strings.Contains(r.path, dataPart) || f.refusals.Has(f.metadataKey(r)) {
			return false, nil
		}
		mounted[r] = v.Version
	}
	token, _, err := f.tokenFor(ctx, nil, false)
	if err != nil {
		return false, nil // the read tells why
	}
	var moved atomic.Bool
	ask := func(ctx context.Context, i int) error {
		if moved.Load() {
			return nil
		}
		same, err := f.current(ctx, requests[i], mounted[requests[i]], token)
		if !same {
			moved.Store(true)
		}
		return err
	}
	// The first tells whether the others are worth the while.
	if err := ask(ctx, 0); err != nil || moved.Load() {
		return false, err
	}
	err = provider.Together(ctx, len(requests)-1, func(ctx context.Context, i int) error { return ask(ctx, i+1) })
	return err == nil && !moved.Load(), err
}

// metadataKey names the right of an identity to read the metadata of a secret.
func (f *fetching) metadataKey(r request) string {
	return f.sessionKey(f.identity.claims.Identity()) + r.path
}

// current reports whether a version is the newest of a secret, and can be read.
func (f *fetching) current(ctx context.Context, r request, version string, token secret.Value) (bool, error) {
	body, err := f.client.call(ctx, "GET", strings.Replace(r.path, dataPart, metadataPart, 1), "", nil, token)
	switch kind := provider.KindOf(err); {
	case err == nil:
	case kind == provider.Throttled, kind == provider.Unavailable:
		return false, f.named(r, err)
	default:
		f.refusals.Note(f.metadataKey(r))
		return false, nil
	}
	var known struct {
		Data struct {
			Current  int64 `json:"current_version"`
			Versions map[string]struct {
				Created   string `json:"created_time"`
				Deleted   string `json:"deletion_time"`
				Destroyed bool   `json:"destroyed"`
			} `json:"versions"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &known) != nil || known.Data.Current == 0 {
		f.refusals.Note(f.metadataKey(r)) // it is no metadata
		return false, nil
	}
	newest := strconv.FormatInt(known.Data.Current, 10)
	is := known.Data.Versions[newest]
	if is.Deleted != "" { // which may be a time to come
		deleted, err := time.Parse(time.RFC3339Nano, is.Deleted)
		is.Destroyed = is.Destroyed || err != nil || !time.Now().Before(deleted)
	}
	return newest == version && !is.Destroyed && f.created.has(f.creation(r, version, is.Created)), nil
}
