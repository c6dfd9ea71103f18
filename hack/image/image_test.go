package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"debug/elf"
	"encoding/binary"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// program writes a file that says of itself what an ELF program says, and no more.
func program(t *testing.T, machine elf.Machine, parts ...elf.ProgType) string {
	t.Helper()
	var out bytes.Buffer
	header := elf.Header64{
		Ident:   [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:    uint16(elf.ET_DYN),
		Machine: uint16(machine),
		Version: uint32(elf.EV_CURRENT),
		Ehsize:  64, Phoff: 64, Phentsize: 56, Phnum: uint16(len(parts)),
	}
	must(t, binary.Write(&out, binary.LittleEndian, header))
	for _, part := range parts {
		must(t, binary.Write(&out, binary.LittleEndian, elf.Prog64{Type: uint32(part)}))
	}
	path := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(path, out.Bytes(), 0o600))
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func spec(programs map[string]string) Spec {
	return Spec{
		Name:     "localhost:5000/program:1.2.3",
		Programs: programs,
		Labels:   map[string]string{"org.opencontainers.image.version": "1.2.3", "b": "1", "a": "2"},
		Created:  time.Unix(1_700_000_000, 0).UTC(),
	}
}

// write builds and writes, and gives back what is in the archive, as others read it.
func write(t *testing.T, spec Spec) (archive []byte, index v1.ImageIndex) {
	t.Helper()
	image, err := Build(spec)
	must(t, err)
	path := filepath.Join(t.TempDir(), "new", "image.tar")
	size, err := WriteArchive(image, path)
	must(t, err)
	archive, err = os.ReadFile(path)
	must(t, err)
	if size != int64(len(archive)) {
		t.Errorf("%d bytes are %d", len(archive), size)
	}
	folder := t.TempDir()
	for _, entry := range untar(t, archive) {
		path := filepath.Join(folder, entry.Name)
		if strings.HasSuffix(entry.Name, "/") {
			must(t, os.MkdirAll(path, 0o755))
			continue
		}
		must(t, os.WriteFile(path, entry.Data, 0o600))
	}
	index, err = layout.ImageIndexFromPath(folder)
	must(t, err)
	must(t, validate.Index(index))
	return archive, index
}

func untar(t *testing.T, archive []byte) []File {
	t.Helper()
	var files []File
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return files
		}
		must(t, err)
		if header.Uid != 0 || header.Gid != 0 || header.Uname != "" {
			t.Errorf("%s belongs to somebody", header.Name)
		}
		data, err := io.ReadAll(reader)
		must(t, err)
		files = append(files, File{header.Name, header.Mode, data})
	}
}

// only is the manifest of the only entry of an index.
func only(t *testing.T, index v1.ImageIndex) v1.Descriptor {
	t.Helper()
	manifest, err := index.IndexManifest()
	must(t, err)
	if len(manifest.Manifests) != 1 {
		t.Fatalf("%d entries", len(manifest.Manifests))
	}
	return manifest.Manifests[0]
}

func TestTheSameInputGivesTheSameBytes(t *testing.T) {
	programs := map[string]string{"amd64": program(t, elf.EM_X86_64), "arm64": program(t, elf.EM_AARCH64)}
	first, _ := write(t, spec(programs))
	// Elsewhere, later, and with another mode.
	for arch, path := range programs {
		data, err := os.ReadFile(path)
		must(t, err)
		programs[arch] = filepath.Join(t.TempDir(), "program")
		must(t, os.WriteFile(programs[arch], data, 0o755))
		must(t, os.Chtimes(programs[arch], time.Now(), time.Unix(1, 0)))
	}
	second, _ := write(t, spec(programs))
	if !bytes.Equal(first, second) {
		t.Error("they differ")
	}
	changed := spec(programs)
	changed.Created = changed.Created.Add(time.Second)
	third, _ := write(t, changed)
	if bytes.Equal(first, third) {
		t.Error("another date gives the same bytes, so the comparison says nothing")
	}
}

func TestAnImageOfOneProgram(t *testing.T) {
	path := program(t, elf.EM_X86_64, elf.PT_LOAD)
	_, index := write(t, spec(map[string]string{"amd64": path}))

	entry := only(t, index)
	if entry.MediaType != types.OCIManifestSchema1 {
		t.Errorf("it is a %s", entry.MediaType)
	}
	for key, want := range map[string]string{
		"io.containerd.image.name":          "localhost:5000/program:1.2.3",
		"org.opencontainers.image.ref.name": "1.2.3",
	} {
		if got := entry.Annotations[key]; got != want {
			t.Errorf("%s is %q", key, got)
		}
	}
	image, err := index.Image(entry.Digest)
	must(t, err)
	config, err := image.ConfigFile()
	must(t, err)
	if config.Config.User != "65534:65534" {
		t.Errorf("it runs as %q", config.Config.User)
	}
	if want := []string{"/usr/local/bin/program"}; !slices.Equal(config.Config.Entrypoint, want) {
		t.Errorf("it starts %q", config.Config.Entrypoint)
	}
	if config.Config.Labels["org.opencontainers.image.version"] != "1.2.3" || config.Created.Unix() != 1_700_000_000 {
		t.Errorf("labels %v, date %s", config.Config.Labels, config.Created)
	}

	layers, err := image.Layers()
	must(t, err)
	if len(layers) != 1 {
		t.Fatalf("%d layers", len(layers))
	}
	layer, err := layers[0].Uncompressed()
	must(t, err)
	content, err := io.ReadAll(layer)
	must(t, err)
	files := untar(t, content)
	want, err := os.ReadFile(path)
	must(t, err)
	last := files[len(files)-1]
	if last.Name != "usr/local/bin/program" || last.Mode != 0o755 || !bytes.Equal(last.Data, want) {
		t.Errorf("%s with mode %o and %d bytes", last.Name, last.Mode, len(last.Data))
	}
	seen := map[string]bool{"": true}
	for _, file := range files {
		parent := strings.TrimSuffix(file.Name, "/")
		parent = parent[:strings.LastIndex(parent, "/")+1]
		if !seen[parent] {
			t.Errorf("%s comes before its folder", file.Name)
		}
		seen[file.Name] = true
	}
	if !seen["etc/passwd"] || !seen["etc/ssl/certs/ca-certificates.crt"] {
		t.Errorf("not all is there: %v", seen)
	}
}

func TestAnImageForTwoProcessors(t *testing.T) {
	_, index := write(t, spec(map[string]string{"arm64": program(t, elf.EM_AARCH64), "amd64": program(t, elf.EM_X86_64)}))
	entry := only(t, index)
	if entry.MediaType != types.OCIImageIndex || entry.Annotations["io.containerd.image.name"] == "" {
		t.Errorf("%s, %v", entry.MediaType, entry.Annotations)
	}
	inner, err := index.ImageIndex(entry.Digest)
	must(t, err)
	manifest, err := inner.IndexManifest()
	must(t, err)
	var platforms []string
	for _, entry := range manifest.Manifests {
		image, err := inner.Image(entry.Digest)
		must(t, err)
		config, err := image.ConfigFile()
		must(t, err)
		if config.Architecture != entry.Platform.Architecture {
			t.Errorf("%s is called %s", config.Architecture, entry.Platform)
		}
		platforms = append(platforms, entry.Platform.String())
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
		t.Errorf("it is for %v", platforms)
	}
}

func TestAuthoritiesAreCertificates(t *testing.T) {
	rest, count, names := authorities(), 0, map[string]bool{}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		must(t, err)
		names[certificate.Subject.CommonName] = true
		count++
	}
	if len(rest) > 0 || count < 100 || !names["ISRG Root X1"] {
		t.Errorf("%d certificates, %d bytes after them", count, len(rest))
	}
}

func TestWhatCanNotStartIsRefused(t *testing.T) {
	text := filepath.Join(t.TempDir(), "script")
	must(t, os.WriteFile(text, []byte("#!/bin/sh\n"+strings.Repeat("#", 64)), 0o600))
	static := program(t, elf.EM_X86_64)
	for name, test := range map[string]struct {
		spec Spec
		want string
	}{
		"needs a loader":  {spec(map[string]string{"amd64": program(t, elf.EM_X86_64, elf.PT_INTERP)}), "not linked statically"},
		"wrong processor": {spec(map[string]string{"amd64": program(t, elf.EM_AARCH64)}), "EM_AARCH64"},
		"no program":      {spec(map[string]string{"amd64": text}), "bad magic"},
		"no file":         {spec(map[string]string{"amd64": text + "s"}), "no such file"},
		"no processor":    {spec(map[string]string{"s390x": static}), "known are amd64 and arm64"},
		"nothing":         {spec(nil), "no program"},
		"no tag":          {Spec{Name: "localhost:5000/program", Programs: map[string]string{"amd64": static}}, "no name with a tag"},
		"empty tag":       {Spec{Name: "program:", Programs: map[string]string{"amd64": static}}, "no name with a tag"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Build(test.spec)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestArguments(t *testing.T) {
	static := program(t, elf.EM_X86_64)
	out := filepath.Join(t.TempDir(), "image.tar")
	good := []string{"-out", out, "-name", "program:1", "-program", "amd64=" + static, "-label", "a=b=c"}
	must(t, run(good))
	for want, more := range map[string][]string{
		"not KEY=VALUE": {"-label", "a"},
		"given twice":   {"-program", "amd64=" + static},
		"unexpected":    {"rest"},
		"-out":          {"-out", ""},
	} {
		if err := run(append(slices.Clone(good), more...)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", more, err)
		}
	}
}
