package aws

import (
	"context"
	"io/fs"
	"slices"
	"strings"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// outcome is what became of a ref in one region: a value with its version, the
// version alone where the volume holds its files already, or why there is neither.
type outcome struct {
	version string
	value   []byte
	held    bool // value was not read
	err     error
}

func clearAll(found []outcome) {
	for _, f := range found {
		clear(f.value)
	}
}

// read returns what became of each object. mounted are the versions that the
// volume holds, by file.
//
// All regions are asked. One that cannot be reached, or fails by itself, is passed
// over if the other answers; one that refuses an object fails the mount, as in
// AWS's provider: so nobody learns on the day when the first region fails that
// the second never worked.
func (p *Provider) read(ctx context.Context, pod identity, objects []object, mounted map[string]string) ([]outcome, error) {
	answers, failures := make([]map[ref]outcome, len(pod.regions)), make([]error, len(pod.regions))
	err := provider.Together(ctx, len(pod.regions), func(ctx context.Context, i int) error {
		if len(pod.regions) > 1 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, p.patience)
			defer cancel()
		}
		answers[i], failures[i] = p.readRegion(ctx, pod, pod.regions[i], wanted(objects, i, mounted))
		return nil
	})
	if err != nil {
		return nil, explain("read from AWS", err, nil)
	}
	defer func() {
		for _, answer := range answers {
			for _, f := range answer {
				clear(f.value)
			}
		}
	}()
	for i, err := range failures {
		others := slices.Concat(failures[:i], failures[i+1:])
		if err != nil && (provider.KindOf(err) != provider.Unavailable || !slices.Contains(others, nil)) {
			return nil, err
		}
	}
	found := make([]outcome, len(objects))
	var refused []error
	for n, o := range objects {
		for i, answer := range slices.Backward(answers) {
			if failures[i] != nil {
				continue
			}
			f := answer[o.refs[i]]
			if err := o.Failure(f.err); err != nil {
				refused = append(refused, err)
			}
			clear(found[n].value)
			found[n] = f
			found[n].value = slices.Clone(f.value)
		}
	}
	if refused != nil {
		clearAll(found)
		return nil, provider.Join(refused)
	}
	return found, nil
}

// wanted returns what is to be asked in a region, each with the version that all
// files have which are made of it, or else none.
func wanted(objects []object, region int, mounted map[string]string) map[ref]string {
	all := map[ref]string{}
	for _, o := range objects {
		version := mounted[o.Path]
		for _, path := range o.paths() {
			if mounted[path] != version {
				version = ""
			}
		}
		if other, ok := all[o.refs[region]]; ok && other != version {
			version = ""
		}
		all[o.refs[region]] = version
	}
	return all
}

// result makes the files of all objects: of values, or of what the volume holds.
func (p *Provider) result(ctx context.Context, pod identity, req provider.Request, objects []object, found []outcome) (provider.Result, error) {
	files := make([][]provider.File, len(objects))
	clearFiles := func() {
		for _, all := range files {
			provider.Result{Files: all}.Clear()
		}
	}
	var versions []provider.ObjectVersion
	for i, o := range objects {
		var err error
		if files[i], err = o.files(req, found[i]); err != nil {
			clearFiles()
			return provider.Result{}, err
		}
		for _, f := range files[i] {
			versions = append(versions, provider.ObjectVersion{ID: f.Path, Version: found[i].version})
		}
	}
	if req.Current != nil && slices.Equal(sorted(versions), sorted(req.Mounted)) && !changed(req, files, found) {
		clearFiles()
		return provider.Result{NotModified: true}, nil
	}
	var lost []int
	for i := range objects {
		if found[i].held && !keep(req, files[i]) {
			lost = append(lost, i)
		}
	}
	if lost != nil {
		clearFiles()
		return p.reread(ctx, pod, req, objects, found, lost)
	}
	return provider.Result{Files: slices.Concat(files...), Versions: versions}, nil
}

// changed reports whether a value that was read is another than the volume holds:
// the versions of a parameter that was deleted and made anew begin at 1 again.
func changed(req provider.Request, files [][]provider.File, found []outcome) bool {
	for i, all := range files {
		for _, f := range all {
			if found[i].held {
				continue
			}
			contents, ok := req.Current(f.Path)
			same := ok && contents.Equal(f.Contents)
			contents.Clear()
			if !same {
				return true
			}
		}
	}
	return false
}

func sorted(all []provider.ObjectVersion) []provider.ObjectVersion {
	return slices.SortedFunc(slices.Values(all), func(a, b provider.ObjectVersion) int {
		return strings.Compare(a.ID+"\x00"+a.Version, b.ID+"\x00"+b.Version)
	})
}

// keep fills the files with what the volume holds, if it holds them all.
func keep(req provider.Request, files []provider.File) bool {
	for i, f := range files {
		contents, ok := req.Current(f.Path)
		if !ok {
			return false
		}
		files[i].Contents = contents
	}
	return true
}

// reread is result with some objects, by their numbers, read after all.
func (p *Provider) reread(ctx context.Context, pod identity, req provider.Request, objects []object, found []outcome, numbers []int) (provider.Result, error) {
	var lost []object
	for _, i := range numbers {
		lost = append(lost, objects[i])
	}
	read, err := p.read(ctx, pod, lost, nil)
	if err != nil {
		return provider.Result{}, err
	}
	for n, i := range numbers {
		found[i] = read[n]
	}
	return p.result(ctx, pod, req, objects, found)
}

// files makes those of one object, without contents where they are held.
func (o object) files(req provider.Request, f outcome) ([]provider.File, error) {
	if f.err != nil {
		return nil, nil // it may be missing
	}
	if f.held {
		var files []provider.File
		for i, path := range o.paths() {
			mode := o.Mode
			if i > 0 {
				mode = o.jmes[i-1].mode
			}
			files = append(files, provider.File{Path: path, Mode: o.mode(req, mode)})
		}
		return files, nil
	}
	files, err := o.extracts(req, f.value)
	if err != nil {
		return nil, err
	}
	whole, err := o.File(req, f.value)
	if err != nil {
		provider.Result{Files: files}.Clear()
		return nil, err
	}
	if whole != nil {
		files = append([]provider.File{*whole}, files...)
	}
	return files, nil
}

// mode is that of a file whose own is given, if it is.
func (o object) mode(req provider.Request, own fs.FileMode) fs.FileMode {
	for _, mode := range []fs.FileMode{own, o.Mode} {
		if mode != provider.UnsetMode {
			return mode
		}
	}
	return req.Mode
}
