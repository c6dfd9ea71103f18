// Command image writes an image of one program: an archive in OCI's layout, for each processor that it is given a program
// for. No container engine takes part, and no base image. The same input gives the same bytes, on any machine.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	spec := Spec{Programs: map[string]string{}, Labels: map[string]string{}}
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	out := flags.String("out", "", "the archive to write")
	flags.StringVar(&spec.Name, "name", "", "what the image is called, with its tag")
	flags.Func("program", "ARCH=FILE, a statically linked program for Linux; once for each processor", pair(spec.Programs))
	flags.Func("label", "KEY=VALUE; may be repeated", pair(spec.Labels))
	created := flags.Int64("created", 0, "the image's date, in seconds since 1970")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected: %s", strings.Join(flags.Args(), " "))
	}
	if *out == "" {
		return fmt.Errorf("-out is missing")
	}
	spec.Created = time.Unix(*created, 0).UTC()

	image, err := Build(spec)
	if err != nil {
		return err
	}
	size, err := WriteArchive(image, *out)
	if err != nil {
		return err
	}
	fmt.Printf("%s %s %.1f MB\n", spec.Name, image.Digest, float64(size)/1e6)
	return nil
}

// pair makes a flag of KEY=VALUE, which is given once for each key.
func pair(into map[string]string) func(string) error {
	return func(text string) error {
		key, value, found := strings.Cut(text, "=")
		if !found || key == "" {
			return fmt.Errorf("%q is not KEY=VALUE", text)
		}
		if _, twice := into[key]; twice {
			return fmt.Errorf("%s is given twice", key)
		}
		into[key] = value
		return nil
	}
}
