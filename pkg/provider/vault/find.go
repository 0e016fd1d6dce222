package vault

import (
	"context"
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// findObjects puts what is found in the place of each object that asks to find.
func (f *fetching) findObjects(ctx context.Context) error {
	var all []object
	for _, o := range f.objects {
		if o.find == nil {
			all = append(all, o)
			continue
		}
		found, err := f.below(ctx, o)
		if err = o.Failure(err); err != nil {
			return err
		}
		all = append(all, found...)
	}
	f.objects = all
	return nil
}

// below returns the objects that o asks to find, below the folder of its request.
func (f *fetching) below(ctx context.Context, o object) ([]object, error) {
	names, err := o.find.Gather(func(offer func(string, map[string]string) error) error { return f.walk(ctx, o, offer) })
	if err != nil {
		return nil, err
	}
	objects := make([]object, len(names))
	for i, name := range names {
		each := o
		if each.Path, err = o.find.Path(o.id, name); err != nil {
			return nil, err
		}
		each.find, each.found = nil, true // the list has those too whose last version is deleted
		each.id, each.Name = each.Path, o.Name+": object "+quote(name)
		each.request.path = path.Join(o.request.path, name)
		f.plain.add(f.learnKey(each.request)) // what has a list has no leases
		objects[i] = each
	}
	return objects, nil
}

func quote(name string) string {
	quoted, _ := json.Marshal(name) // a string always can be
	return string(quoted)
}

// walk offers the names below a folder, folder by folder, all of one depth at the
// same time. With KV version 2 the folder is that of the data.
func (f *fetching) walk(ctx context.Context, o object, offer func(string, map[string]string) error) error {
	folder, _ := path.Split(o.find.Prefix)
	for folders := []string{folder}; len(folders) > 0; {
		lists := make([][]string, len(folders))
		err := provider.Together(ctx, len(folders), func(ctx context.Context, i int) (err error) {
			lists[i], err = f.list(ctx, o.request, folders[i])
			return err
		})
		if err != nil {
			return err
		}
		var deeper, names []string
		for i, list := range lists {
			for _, name := range list {
				name = folders[i] + name
				switch {
				case !strings.HasPrefix(name, o.find.Prefix):
				case strings.HasSuffix(name, "/"):
					deeper = append(deeper, name)
				default:
					names = append(names, name)
				}
			}
		}
		if err := f.offer(ctx, o, names, offer); err != nil {
			return err
		}
		folders = deeper
	}
	return nil
}

// offer offers names with their custom metadata, which is read where it counts.
func (f *fetching) offer(ctx context.Context, o object, names []string, offer func(string, map[string]string) error) error {
	tags := make([]map[string]string, len(names))
	if len(o.find.Tags) > 0 {
		untagged := *o.find
		untagged.Tags = nil
		names = slices.DeleteFunc(names, func(name string) bool { return !untagged.Match(name, nil) })
		err := provider.Together(ctx, len(names), func(ctx context.Context, i int) (err error) {
			tags[i], err = f.customMetadata(ctx, o.request, names[i])
			return err
		})
		if err != nil {
			return err
		}
	}
	for i, name := range names {
		if err := offer(name, tags[i]); err != nil {
			return err
		}
	}
	return nil
}

// metadata returns the path of what KV version 2 tells of a path without its
// values, MOUNT/metadata/... for MOUNT/data/...; false for other engines.
func metadata(data string) (string, bool) {
	segments := strings.Split(data, "/")
	i := slices.Index(segments, "data")
	if i < 2 { // v1 and the mount come before it
		return data, false
	}
	segments[i] = "metadata"
	return strings.Join(segments, "/"), true
}

// list returns the entries of a folder, none where there is no such.
func (f *fetching) list(ctx context.Context, below request, folder string) ([]string, error) {
	at, _ := metadata(below.path)
	r := request{method: "LIST", path: path.Join(at, folder)}
	a := f.ask(ctx, r, nil, false)
	if provider.KindOf(a.err) == provider.NotFound {
		return nil, nil
	}
	if a.err != nil {
		return nil, inOp("list "+r.path[len("v1/"):], a.err)
	}
	var body struct {
		Keys []string `json:"keys"`
	}
	if err := json.Unmarshal(a.Data, &body); err != nil {
		return nil, inOp("list "+r.path[len("v1/"):], errors.New("the server's answer is no list"))
	}
	return body.Keys, nil
}

// customMetadata returns that of a secret of KV version 2.
func (f *fetching) customMetadata(ctx context.Context, below request, name string) (map[string]string, error) {
	at, ok := metadata(below.path)
	if !ok {
		return nil, &provider.Error{Kind: provider.Invalid, Err: errors.New("only KV version 2 has tags (custom metadata)"), Remedy: "correct secretPath, MOUNT/data there, or remove the tags"}
	}
	r := request{method: "GET", path: path.Join(at, name)}
	a := f.ask(ctx, r, nil, false)
	if provider.KindOf(a.err) == provider.NotFound {
		return nil, nil // it went meanwhile
	}
	if a.err != nil {
		return nil, inOp("read "+r.path[len("v1/"):], a.err)
	}
	var body struct {
		Tags map[string]string `json:"custom_metadata"`
	}
	if err := json.Unmarshal(a.Data, &body); err != nil {
		return nil, inOp("read "+r.path[len("v1/"):], errors.New("the server's answer is not the metadata of a secret"))
	}
	return body.Tags, nil
}

func inOp(op string, err error) error {
	var known *provider.Error
	if !errors.As(err, &known) {
		return &provider.Error{Op: op, Err: err}
	}
	copied := *known
	copied.Op = op
	return &copied
}
