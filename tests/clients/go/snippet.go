package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
)

// snippet is what docs/agent.md shows: a test runs it, and holds it against the page.
func snippet() error {
	ctx, id := context.Background(), "from-go"
	// snippet:begin
	options, err := redis.ParseURL(os.Getenv("REDIS_URL")) // redis://127.0.0.1:6379
	if err != nil {
		return err
	}
	options.ReadTimeout = 20 * time.Second // longer than a lease: a write may take one
	options.MaxRetries = -1                // what may have been done is not done again
	client := redis.NewClient(options)
	created := client.SetArgs(ctx, "mcp:"+id, `{"user":"alice"}`, redis.SetArgs{Mode: "NX", TTL: 30 * time.Minute})
	if err := created.Err(); err != nil && err != redis.Nil { // Nil: somebody has created it
		return err
	}
	session, err := client.GetEx(ctx, "mcp:"+id, 30*time.Minute).Result() // redis.Nil: it has ended
	// snippet:end
	if err != nil {
		return err
	}
	fmt.Println(session)
	return client.Close()
}
