package fetch

import (
	"context"
	"encoding/binary"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// Part asks for those objects of req alone that are due, and returns a mark of the
// answer: what has the same is the same. It is empty where they are more than what is
// mounted, or cannot be asked for apart. An answer to a part does not tell which files
// have gone that were of these objects; so nothing has changed only if the mark was the
// same when last all was asked for.
func (f *Fetcher) Part(ctx context.Context, name string, req provider.Request, due provider.Due) (mark string, err error) {
	p, err := f.providers.Get(name)
	if err != nil {
		return "", err
	}
	// An answer that is a part must not be kept in the place of the whole, nor may
	// what only the whole tells be given up.
	if _, lists := p.(provider.Validator); !lists || req.Current == nil || req.Sealable > 0 || !req.State.IsEmpty() {
		return "", nil
	}
	part, ok := provider.Only(req.Parameters, due)
	if !ok {
		return "", nil
	}
	req.Parameters, req.Keep = part, nil
	result, err := f.inTime(ctx, func(ctx context.Context) (provider.Result, error) { return f.answer(ctx, name, p, req) })
	if err != nil {
		return "", named(name, err)
	}
	defer result.Clear()
	if result.NotModified || result.InScratch {
		return "", nil
	}
	var parts [][]byte
	for _, file := range result.Files {
		held, ok := req.Current(file.Path)
		same := ok && held.Equal(file.Contents)
		held.Clear()
		if !same {
			return "", nil
		}
		parts = append(parts, []byte(file.Path), binary.BigEndian.AppendUint32(nil, uint32(file.Mode)))
	}
	for _, v := range result.Versions {
		parts = append(parts, []byte(v.ID), []byte(v.Version))
	}
	return req.Fingerprint(parts...), nil
}
