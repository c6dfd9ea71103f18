package main

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

const (
	// patience is longer than anything takes that works, on a busy machine.
	patience = 60 * time.Second
	// ttl is what sessions usually have.
	ttl = 1800 * time.Second
	// killMe asks whoever runs this program to kill the server with SIGKILL, and to start it again.
	killMe = "kill the server"
)

// Checks prints what went well and what did not.
type Checks struct{ failed int }

// Run makes a check.
func (c *Checks) Run(name string, check func() error) {
	if err := check(); err != nil {
		c.failed++
		fmt.Printf("FAILED %s: %v\n", name, err)
		return
	}
	fmt.Printf("ok %s\n", name)
}

// ExitCode is 1 when a check has failed.
func (c *Checks) ExitCode() int {
	if c.failed > 0 {
		return 1
	}
	return 0
}

// same compares an answer with what it must be.
func same(what string, got any, err error, want any) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("%s: got %#v, want %#v", what, got, want)
	}
	return nil
}

// within compares a duration with its bounds.
func within(what string, got time.Duration, err error, least, most time.Duration) error {
	if err == nil && (got < least || got > most) {
		err = fmt.Errorf("got %v, want %v to %v", got, least, most)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// all returns the first error.
func all(errors ...error) error {
	for _, err := range errors {
		if err != nil {
			return err
		}
	}
	return nil
}

// eventually calls check until it returns true.
func eventually(what string, check func() (bool, error)) error {
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		done, err := check()
		if done {
			return nil
		}
		last = err
	}
	return fmt.Errorf("%s: not within %v; last error: %v", what, patience, last)
}

// serverProcess is the id of the server's process, in the answer to INFO.
func serverProcess(info string) string {
	for line := range strings.Lines(info) {
		if id, found := strings.CutPrefix(strings.TrimSpace(line), "process_id:"); found {
			return id
		}
	}
	return ""
}
