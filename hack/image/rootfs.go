package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"debug/elf"
	_ "embed"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// File is a file of an archive; one whose name ends with a slash is a folder.
type File struct {
	Name string
	Mode int64
	Data []byte
}

// What a program without a C library looks for in /etc. There is no /tmp: nothing uses one, and the chart makes the root file
// system read-only.
var (
	//go:embed passwd
	passwd []byte
	//go:embed group
	group []byte
)

func rootFiles(entryPoint, program string) ([]File, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	certificates := authorities()
	files := []File{
		{"etc/passwd", 0o644, passwd},
		{"etc/group", 0o644, group},
		{"etc/ssl/certs/ca-certificates.crt", 0o644, certificates},
		{strings.TrimPrefix(entryPoint, "/"), 0o755, data},
	}
	return withFolders(files), nil
}

// authorities are those of Mozilla, for API servers whose certificate is of a public authority (a kubeconfig without one of its
// own). A module of Go has them: so a version and a checksum are known, and updates come as for any other.
func authorities() []byte {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		// What Mozilla believes only up to a date can't be said in a file.
		if root.Constraint == nil {
			out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return out.Bytes()
}

// withFolders adds the folders that files are in, and sorts all by name: a folder comes before what is in it.
func withFolders(files []File) []File {
	folders := map[string]bool{}
	for _, file := range files {
		for at, letter := range file.Name {
			if letter == '/' {
				folders[file.Name[:at+1]] = true
			}
		}
	}
	for name := range folders {
		files = append(files, File{Name: name, Mode: 0o755})
	}
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	return files
}

// writeTar writes what the files say and nothing else: root owns all, and all are of one time.
func writeTar(out io.Writer, files []File, when time.Time) error {
	archive := tar.NewWriter(out)
	for _, file := range files {
		header := &tar.Header{
			Format:   tar.FormatUSTAR,
			Typeflag: tar.TypeReg,
			Name:     file.Name,
			Mode:     file.Mode,
			Size:     int64(len(file.Data)),
			ModTime:  when,
		}
		if strings.HasSuffix(file.Name, "/") {
			header.Typeflag = tar.TypeDir
		}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := archive.Write(file.Data); err != nil {
			return err
		}
	}
	return archive.Close()
}

// checkStatic refuses what could not start: there is no loader and no library in the image.
func checkStatic(program, arch string) error {
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	machine, known := machines[arch]
	if !known {
		return fmt.Errorf("no such processor; known are amd64 and arm64")
	}
	file, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	defer file.Close()
	if file.Machine != machine {
		return fmt.Errorf("%s is for %s", program, file.Machine)
	}
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not linked statically", program)
		}
	}
	return nil
}
