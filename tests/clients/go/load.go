package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// Load says what to send.
type Load struct {
	Address     string
	Command     string
	Key         string
	Keys        int
	Value       string
	Connections int
	Pipeline    int
	Requests    int
	// No value is written twice: what is equal need not be written at all.
	run string
}

// Figures are what came of it. Times are in microseconds; with pipelines that of all requests of one.
type Figures struct {
	Throughput float64 `json:"rps"`
	P50        float64 `json:"p50_us"`
	P99        float64 `json:"p99_us"`
}

// load sends requests with go-redis, or reads from the memory of rueidis ("cached"), and prints the figures as JSON.
func load(args []string) error {
	l := Load{run: fmt.Sprintf("%d-", time.Now().UnixNano())}
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	flags.StringVar(&l.Address, "address", "127.0.0.1:6379", "the server")
	flags.StringVar(&l.Command, "command", "get", "get, getex, set-xx, hgetall, or cached")
	flags.StringVar(&l.Key, "key", "session:", "what keys begin with; a number follows")
	flags.IntVar(&l.Keys, "keys", 1000, "how many keys there are")
	flags.StringVar(&l.Value, "value", "{}", "what to write")
	flags.IntVar(&l.Connections, "connections", 1, "connections, each with one request or pipeline under way")
	flags.IntVar(&l.Pipeline, "pipeline", 1, "requests that are sent together")
	flags.IntVar(&l.Requests, "requests", 10000, "requests in all")
	_ = flags.Parse(args)
	measure := l.overTheWire
	if l.Command == "cached" {
		measure = l.fromMemory
	}
	figures, err := measure(context.Background())
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(figures)
}

func (l Load) key(n int) string { return fmt.Sprintf("%s%012d", l.Key, n%l.Keys) }

func figures(times []time.Duration, requests int, took time.Duration) Figures {
	slices.Sort(times)
	at := func(share float64) float64 {
		return float64(times[min(int(share*float64(len(times))), len(times)-1)].Nanoseconds()) / 1000
	}
	return Figures{float64(requests) / took.Seconds(), at(0.50), at(0.99)}
}

// queue adds a request to a pipeline.
func (l Load) queue(ctx context.Context, pipe redis.Pipeliner, n int) error {
	switch l.Command {
	case "get":
		pipe.Get(ctx, l.key(n))
	case "getex":
		pipe.GetEx(ctx, l.key(n), ttl)
	case "set-xx":
		pipe.SetXX(ctx, l.key(n), strings.ReplaceAll(l.Value, "#", l.run+fmt.Sprint(n)), ttl)
	case "hgetall":
		pipe.HGetAll(ctx, l.key(n))
	default:
		return fmt.Errorf("%s: no such command", l.Command)
	}
	return nil
}

func (l Load) overTheWire(ctx context.Context) (Figures, error) {
	client := redis.NewClient(&redis.Options{
		Addr: l.Address, PoolSize: l.Connections, MinIdleConns: l.Connections, ReadTimeout: patience,
	})
	defer func() { _ = client.Close() }()
	var (
		sent   atomic.Int64
		failed atomic.Pointer[error]
		group  sync.WaitGroup
		times  = make([][]time.Duration, l.Connections)
		start  = make(chan struct{})
	)
	ready := make(chan struct{}, l.Connections)
	for worker := range l.Connections {
		group.Go(func() {
			// A connection of its own, open before the clock starts.
			conn := client.Conn()
			defer func() { _ = conn.Close() }()
			if err := conn.Ping(ctx).Err(); err != nil {
				failed.Store(&err)
			}
			ready <- struct{}{}
			<-start
			for failed.Load() == nil {
				first := int(sent.Add(int64(l.Pipeline))) - l.Pipeline
				if first >= l.Requests {
					return
				}
				pipe := conn.Pipeline()
				for n := range l.Pipeline {
					if err := l.queue(ctx, pipe, first+n); err != nil {
						failed.Store(&err)
						return
					}
				}
				before := time.Now()
				if _, err := pipe.Exec(ctx); err != nil {
					failed.Store(&err)
					return
				}
				times[worker] = append(times[worker], time.Since(before))
			}
		})
	}
	for range l.Connections {
		<-ready
	}
	began := time.Now()
	close(start)
	group.Wait()
	took := time.Since(began)
	if err := failed.Load(); err != nil {
		return Figures{}, *err
	}
	all := slices.Concat(times...)
	return figures(all, len(all)*l.Pipeline, took), nil
}

// fromMemory reads copies that the client keeps in its own memory, in batches: one alone is shorter than the clock is exact.
func (l Load) fromMemory(ctx context.Context) (Figures, error) {
	const batch = 100
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{l.Address}, ForceSingleClient: true})
	if err != nil {
		return Figures{}, err
	}
	defer client.Close()
	get := func(n int) (bool, error) {
		result := client.DoCache(ctx, client.B().Get().Key(l.key(n)).Cache(), time.Hour)
		_, err := result.ToString()
		return result.IsCacheHit(), err
	}
	for n := range l.Keys {
		if _, err := get(n); err != nil {
			return Figures{}, err
		}
	}
	var times []time.Duration
	missed := 0
	began := time.Now()
	for first := 0; first < l.Requests; first += batch {
		before := time.Now()
		for n := range batch {
			hit, err := get(first + n)
			if err != nil {
				return Figures{}, err
			}
			if !hit {
				missed++
			}
		}
		times = append(times, time.Since(before)/batch)
	}
	took := time.Since(began)
	if missed*100 > l.Requests {
		return Figures{}, fmt.Errorf("%d of %d reads were not answered from memory", missed, l.Requests)
	}
	return figures(times, len(times)*batch, took), nil
}
