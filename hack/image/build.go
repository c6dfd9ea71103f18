package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// The user whom the chart names too: nobody, in all distributions that have one. A number, since `runAsNonRoot` can't look up names.
const user = "65534:65534"

// Where the program is; PATH says so, so that an exec probe needs the name only.
const folder = "/usr/local/bin"

// Spec is what an image is made from.
type Spec struct {
	// Name with tag.
	Name string
	// Programs by processor, as Go and OCI name them.
	Programs map[string]string
	Labels   map[string]string
	Created  time.Time
}

// Image is what a layout of OCI holds.
type Image struct {
	// Index has one entry, with the image's name.
	Index v1.ImageIndex
	// Digest of that entry: what a registry calls it too.
	Digest v1.Hash
}

// Build makes the image: one manifest for one processor, an index of manifests for several.
func Build(spec Spec) (*Image, error) {
	repository, tag, found := cutTag(spec.Name)
	if !found || repository == "" || tag == "" {
		return nil, fmt.Errorf("%q is no name with a tag", spec.Name)
	}
	if len(spec.Programs) == 0 {
		return nil, fmt.Errorf("no program is given")
	}
	var entries []mutate.IndexAddendum
	for _, arch := range slices.Sorted(maps.Keys(spec.Programs)) {
		image, err := forOne(spec, arch)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", arch, err)
		}
		platform := &v1.Platform{OS: "linux", Architecture: arch}
		entries = append(entries, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform}})
	}
	top := entries[0]
	if len(entries) > 1 {
		top = mutate.IndexAddendum{Add: index(entries...)}
	}
	// containerd reads the first one, other tools the second one.
	top.Annotations = map[string]string{
		"io.containerd.image.name":          spec.Name,
		"org.opencontainers.image.ref.name": tag,
	}
	digest, err := top.Add.Digest()
	if err != nil {
		return nil, err
	}
	return &Image{Index: index(top), Digest: digest}, nil
}

func index(entries ...mutate.IndexAddendum) v1.ImageIndex {
	return mutate.IndexMediaType(mutate.AppendManifests(empty.Index, entries...), types.OCIImageIndex)
}

// A colon before the last slash belongs to a port.
func cutTag(name string) (repository, tag string, found bool) {
	colon := strings.LastIndex(name, ":")
	if colon < strings.LastIndex(name, "/") {
		return "", "", false
	}
	if colon < 0 {
		return "", "", false
	}
	return name[:colon], name[colon+1:], true
}

func forOne(spec Spec, arch string) (v1.Image, error) {
	program := spec.Programs[arch]
	if err := checkStatic(program, arch); err != nil {
		return nil, err
	}
	entryPoint := path.Join(folder, path.Base(program))
	files, err := rootFiles(entryPoint, program)
	if err != nil {
		return nil, err
	}
	layer, err := layerOf(files, spec.Created)
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: arch,
		OS:           "linux",
		Created:      v1.Time{Time: spec.Created},
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User:       user,
			Entrypoint: []string{entryPoint},
			Env:        []string{"PATH=" + folder},
			WorkingDir: "/",
			Labels:     spec.Labels,
		},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: spec.Created}, CreatedBy: "hack/image.sh"},
	})
}

// layerOf compresses with a module of a fixed version: Go's own compressor may give other bytes with each version of Go.
func layerOf(files []File, when time.Time) (v1.Layer, error) {
	var compressed bytes.Buffer
	compressor, err := gzip.NewWriterLevel(&compressed, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if err := writeTar(compressor, files, when); err != nil {
		return nil, err
	}
	if err := compressor.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(compressed.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
}
