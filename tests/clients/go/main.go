// Programs that use an agent, or a Redis server, as a vMCP server would: each client library with its own means.
//
//	vmcp-clients go-redis --address 127.0.0.1:6379
//	vmcp-clients rueidis  --address 127.0.0.1:6379
//	vmcp-clients load     --address 127.0.0.1:6379 --command get --connections 50
//	REDIS_URL=redis://127.0.0.1:6379 vmcp-clients snippet
//
// A line is printed for each check: "ok NAME", or "FAILED NAME: why". The exit code is 1 when one has failed.
package main

import (
	"flag"
	"fmt"
	"os"
)

// Options say whom to talk to.
type Options struct {
	// Address of the server.
	Address string
	// Other is a second server of the same sessions; it may be the same one.
	Other string
	// Prefix of the keys.
	Prefix string
	// Password, if one is needed.
	Password string
	// Plain: this is Redis. It takes any value for a string, and forgets all when it is killed.
	Plain bool
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: vmcp-clients go-redis|rueidis|load --address HOST:PORT, or snippet")
		os.Exit(2)
	}
	if os.Args[1] == "load" {
		if err := load(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		return
	}
	if os.Args[1] == "snippet" {
		if err := snippet(); err != nil {
			fmt.Fprintln(os.Stderr, "snippet:", err)
			os.Exit(1)
		}
		return
	}
	var options Options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&options.Address, "address", "127.0.0.1:6379", "the server")
	flags.StringVar(&options.Other, "other", "", "a second server of the same sessions")
	flags.StringVar(&options.Prefix, "prefix", "", "prefix of the keys")
	flags.StringVar(&options.Password, "password", "", "password")
	flags.BoolVar(&options.Plain, "plain", false, "the server is Redis")
	programs := map[string]func(Options, *Checks){"go-redis": goRedis, "rueidis": rueidisClient}
	program, known := programs[os.Args[1]]
	if !known {
		fmt.Fprintf(os.Stderr, "%s: no such program\n", os.Args[1])
		os.Exit(2)
	}
	_ = flags.Parse(os.Args[2:])
	if options.Other == "" {
		options.Other = options.Address
	}
	checks := &Checks{}
	program(options, checks)
	os.Exit(checks.ExitCode())
}
