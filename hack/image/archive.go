package main

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// WriteArchive writes an image as the layout that OCI defines, in one file, and returns its size. Whoever reads that file finds
// the old one or the new one.
func WriteArchive(image *Image, to string) (int64, error) {
	folder, err := os.MkdirTemp("", "image-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(folder)
	if _, err := layout.Write(folder, image.Index); err != nil {
		return 0, err
	}
	files, err := readFolder(folder)
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return 0, err
	}
	return replace(to, func(out io.Writer) error { return writeTar(out, files, time.Unix(0, 0)) })
}

func readFolder(folder string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		files = append(files, File{Name: filepath.ToSlash(name), Mode: 0o644, Data: data})
		return err
	})
	return withFolders(files), err
}

func replace(path string, write func(io.Writer) error) (size int64, err error) {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if err := write(file); err != nil {
		return 0, err
	}
	if size, err = file.Seek(0, io.SeekCurrent); err != nil {
		return 0, err
	}
	if err := file.Chmod(0o644); err != nil {
		return 0, err
	}
	return size, os.Rename(file.Name(), path)
}
