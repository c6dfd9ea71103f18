package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/push"
)

type goRedisChecks struct {
	ctx     context.Context
	options Options
	client  *redis.Client
	other   *redis.Client
}

// goRedis checks what vMCP servers written in Go do.
func goRedis(options Options, checks *Checks) {
	open := func(address string) *redis.Client {
		// A write that is to be seen everywhere waits for a pod that has died.
		return redis.NewClient(&redis.Options{Addr: address, Password: options.Password, ReadTimeout: patience})
	}
	c := &goRedisChecks{context.Background(), options, open(options.Address), open(options.Other)}
	checks.Run("life cycle", c.lifeCycle)
	checks.Run("NX and XX", c.nxAndXx)
	checks.Run("timeouts", c.timeouts)
	checks.Run("short timeout", c.shortTimeout)
	checks.Run("hash", c.hash)
	checks.Run("pipeline", c.pipeline)
	checks.Run("transaction", c.transaction)
	checks.Run("optimistic lock", c.optimisticLock)
	checks.Run("errors", c.errors)
	checks.Run("scan", c.scan)
	checks.Run("tracking", c.tracking)
	checks.Run("RESP2", c.resp2)
	if options.Password != "" {
		checks.Run("wrong password", c.wrongPassword)
	}
	checks.Run("reconnect", c.reconnect)
}

func (c *goRedisChecks) key(name string) string { return c.options.Prefix + "go-redis-" + name }

// fresh is a key that does not exist.
func (c *goRedisChecks) fresh(name string) string {
	c.client.Del(c.ctx, c.key(name))
	return c.key(name)
}

// isNil turns "no such key" into true.
func isNil(err error) (bool, error) {
	if errors.Is(err, redis.Nil) {
		return true, nil
	}
	return false, err
}

// lifeCycle does what a server does with a session from its beginning to its end.
func (c *goRedisChecks) lifeCycle() error {
	key := c.fresh("life")
	placed, err := c.client.SetNX(c.ctx, key, "{}", ttl).Result()
	if err := same("placeholder", placed, err, true); err != nil {
		return err
	}
	value, err := c.client.Get(c.ctx, key).Result()
	if err := same("placeholder read", value, err, "{}"); err != nil {
		return err
	}
	session := `{"backend":"one","user":"someone"}`
	stored, err := c.client.SetXX(c.ctx, key, session, ttl).Result()
	if err := same("stored", stored, err, true); err != nil {
		return err
	}
	value, err = c.client.GetEx(c.ctx, key, ttl).Result()
	if err := same("read and renewed", value, err, session); err != nil {
		return err
	}
	// Round-robin: the next request may come to another server.
	value, err = c.other.GetEx(c.ctx, key, ttl).Result()
	if err := same("read elsewhere", value, err, session); err != nil {
		return err
	}
	exists, err := c.client.Exists(c.ctx, key).Result()
	if err := same("exists", exists, err, int64(1)); err != nil {
		return err
	}
	deleted, err := c.client.Del(c.ctx, key).Result()
	if err := same("deleted", deleted, err, int64(1)); err != nil {
		return err
	}
	_, err = c.client.Get(c.ctx, key).Result()
	gone, err := isNil(err)
	if err := same("gone", gone, err, true); err != nil {
		return err
	}
	_, err = c.other.GetEx(c.ctx, key, ttl).Result()
	gone, err = isNil(err)
	if err := same("gone elsewhere", gone, err, true); err != nil {
		return err
	}
	deleted, err = c.client.Del(c.ctx, key).Result()
	return same("deleted again", deleted, err, int64(0))
}

func (c *goRedisChecks) nxAndXx() error {
	key := c.fresh("nx")
	updated, err := c.client.SetXX(c.ctx, key, `{"n":"0"}`, ttl).Result()
	first := same("XX without a session", updated, err, false)
	created, err := c.client.SetNX(c.ctx, key, `{"n":"1"}`, ttl).Result()
	second := same("NX without a session", created, err, true)
	created, err = c.client.SetNX(c.ctx, key, `{"n":"2"}`, ttl).Result()
	third := same("NX with a session", created, err, false)
	created, err = c.other.SetNX(c.ctx, key, `{"n":"3"}`, ttl).Result()
	fourth := same("NX elsewhere", created, err, false)
	value, err := c.other.Get(c.ctx, key).Result()
	fifth := same("value", value, err, `{"n":"1"}`)
	updated, err = c.other.SetXX(c.ctx, key, `{"n":"4"}`, ttl).Result()
	sixth := same("XX elsewhere", updated, err, true)
	value, err = c.client.Get(c.ctx, key).Result()
	seventh := same("value", value, err, `{"n":"4"}`)
	stored, err := c.client.Set(c.ctx, key, `{"n":"5"}`, ttl).Result()
	eighth := same("SET", stored, err, "OK")
	old, err := c.client.SetArgs(c.ctx, key, `{"n":"6"}`, redis.SetArgs{Get: true, KeepTTL: true}).Result()
	ninth := same("SET GET KEEPTTL", old, err, `{"n":"5"}`)
	deleted, err := c.client.GetDel(c.ctx, key).Result()
	return all(first, second, third, fourth, fifth, sixth, seventh, eighth, ninth,
		same("GETDEL", deleted, err, `{"n":"6"}`))
}

func (c *goRedisChecks) timeouts() error {
	key := c.fresh("ttl")
	left, err := c.client.TTL(c.ctx, key).Result()
	absent := same("TTL of nothing", left, err, time.Duration(-2))
	if err := c.client.Set(c.ctx, key, "{}", 0).Err(); err != nil {
		return err
	}
	left, err = c.client.TTL(c.ctx, key).Result()
	none := same("TTL of a session without", left, err, time.Duration(-1))
	set, err := c.client.Expire(c.ctx, key, 100*time.Second).Result()
	given := same("EXPIRE", set, err, true)
	left, err = c.client.TTL(c.ctx, key).Result()
	running := within("TTL", left, err, 30*time.Second, 100*time.Second)
	set, err = c.client.ExpireGT(c.ctx, key, 50*time.Second).Result()
	shorter := same("EXPIRE GT with less", set, err, false)
	set, err = c.client.ExpireGT(c.ctx, key, 200*time.Second).Result()
	longer := same("EXPIRE GT with more", set, err, true)
	left, err = c.client.PTTL(c.ctx, key).Result()
	raised := within("PTTL", left, err, 130*time.Second, 200*time.Second)
	at := time.Now().Add(1000 * time.Second).Truncate(time.Second)
	set, err = c.client.ExpireAt(c.ctx, key, at).Result()
	pinned := same("EXPIREAT", set, err, true)
	end, err := c.client.ExpireTime(c.ctx, key).Result()
	exact := within("EXPIRETIME", end, err, time.Duration(at.Unix())*time.Second, time.Duration(at.Unix())*time.Second)
	set, err = c.client.Persist(c.ctx, key).Result()
	persisted := same("PERSIST", set, err, true)
	left, err = c.client.TTL(c.ctx, key).Result()
	unlimited := same("TTL after PERSIST", left, err, time.Duration(-1))
	return all(absent, none, given, running, shorter, longer, raised, pinned, exact, persisted, unlimited,
		c.client.Del(c.ctx, key).Err())
}

// shortTimeout sees a session end by itself, on both servers, after a fraction of a second and never before.
func (c *goRedisChecks) shortTimeout() error {
	key := c.fresh("short")
	const short = 400 * time.Millisecond
	before := time.Now()
	created, err := c.client.SetNX(c.ctx, key, `{"short":"yes"}`, short).Result()
	if err := same("SET PX NX", created, err, true); err != nil {
		return err
	}
	for _, client := range []*redis.Client{c.client, c.other} {
		err := eventually("it ends", func() (bool, error) {
			// What is lost by then was lost before, whatever the answer took.
			value, err := client.Get(c.ctx, key).Result()
			if err == nil && value != `{"short":"yes"}` {
				return false, fmt.Errorf("value %q", value)
			}
			return isNil(err)
		})
		if err != nil {
			return err
		}
		if lived := time.Since(before); lived < short {
			return fmt.Errorf("it ended after %v, too early", lived)
		}
	}
	created, err = c.other.SetNX(c.ctx, key, "{}", ttl).Result()
	return all(same("NX after it has ended", created, err, true), c.client.Del(c.ctx, key).Err())
}

func (c *goRedisChecks) hash() error {
	key := c.fresh("hash")
	added, err := c.client.HSet(c.ctx, key, "backend", "one", "count", "1").Result()
	first := same("HSET", added, err, int64(2))
	kind, err := c.client.Type(c.ctx, key).Result()
	second := same("TYPE", kind, err, "hash")
	count, err := c.client.HIncrBy(c.ctx, key, "count", 41).Result()
	third := same("HINCRBY", count, err, int64(42))
	fields, err := c.other.HGetAll(c.ctx, key).Result()
	fourth := same("HGETALL elsewhere", fields, err, map[string]string{"backend": "one", "count": "42"})
	set, err := c.client.HSetNX(c.ctx, key, "backend", "two").Result()
	fifth := same("HSETNX", set, err, false)
	values, err := c.client.HMGet(c.ctx, key, "backend", "nothing").Result()
	sixth := same("HMGET", values, err, []any{"one", nil})
	removed, err := c.client.HDel(c.ctx, key, "count", "nothing").Result()
	seventh := same("HDEL", removed, err, int64(1))
	removed, err = c.client.HDel(c.ctx, key, "backend").Result()
	eighth := same("HDEL of the last", removed, err, int64(1))
	exists, err := c.client.Exists(c.ctx, key).Result()
	return all(first, second, third, fourth, fifth, sixth, seventh, eighth, same("EXISTS", exists, err, int64(0)))
}

func (c *goRedisChecks) pipeline() error {
	const sessions = 20
	pipe := c.client.Pipeline()
	for n := range sessions {
		pipe.Set(c.ctx, c.key(fmt.Sprintf("pipe-%d", n)), fmt.Sprintf(`{"n":"%d"}`, n), ttl)
	}
	for n := range sessions {
		pipe.Get(c.ctx, c.key(fmt.Sprintf("pipe-%d", n)))
	}
	for n := range sessions {
		pipe.Del(c.ctx, c.key(fmt.Sprintf("pipe-%d", n)))
	}
	results, err := pipe.Exec(c.ctx)
	if err != nil {
		return err
	}
	for n, result := range results[sessions : 2*sessions] {
		if got := result.(*redis.StringCmd).Val(); got != fmt.Sprintf(`{"n":"%d"}`, n) {
			return fmt.Errorf("answer %d is %s", n, got)
		}
	}
	for n, result := range results[2*sessions:] {
		if got := result.(*redis.IntCmd).Val(); got != 1 {
			return fmt.Errorf("delete %d is %d", n, got)
		}
	}
	return nil
}

func (c *goRedisChecks) transaction() error {
	one, two := c.fresh("tx-1"), c.fresh("tx-2")
	var read *redis.StringCmd
	_, err := c.client.TxPipelined(c.ctx, func(pipe redis.Pipeliner) error {
		pipe.Set(c.ctx, one, `{"n":"1"}`, ttl)
		pipe.HSet(c.ctx, two, "n", "2")
		read = pipe.Get(c.ctx, one)
		return nil
	})
	if err != nil {
		return err
	}
	field, err := c.other.HGet(c.ctx, two, "n").Result()
	return all(same("its own write", read.Val(), nil, `{"n":"1"}`), same("seen elsewhere", field, err, "2"),
		c.client.Del(c.ctx, one, two).Err())
}

func (c *goRedisChecks) optimisticLock() error {
	key := c.fresh("watch")
	if err := c.client.Set(c.ctx, key, `{"n":"1"}`, ttl).Err(); err != nil {
		return err
	}
	attempt := func(meanwhile func()) error {
		return c.client.Watch(c.ctx, func(tx *redis.Tx) error {
			if err := tx.Get(c.ctx, key).Err(); err != nil {
				return err
			}
			meanwhile()
			_, err := tx.TxPipelined(c.ctx, func(pipe redis.Pipeliner) error {
				pipe.Set(c.ctx, key, `{"n":"2"}`, ttl)
				return nil
			})
			return err
		}, key)
	}
	err := attempt(func() { c.other.Set(c.ctx, key, `{"n":"other"}`, ttl) })
	if !errors.Is(err, redis.TxFailedErr) {
		return fmt.Errorf("changed meanwhile: %v", err)
	}
	value, err := c.client.Get(c.ctx, key).Result()
	if err := same("after the conflict", value, err, `{"n":"other"}`); err != nil {
		return err
	}
	if err := attempt(func() {}); err != nil {
		return fmt.Errorf("unchanged: %w", err)
	}
	value, err = c.other.Get(c.ctx, key).Result()
	return all(same("after success", value, err, `{"n":"2"}`), c.client.Del(c.ctx, key).Err())
}

func (c *goRedisChecks) errors() error {
	key := c.fresh("errors")
	err := c.client.Do(c.ctx, "nosuch", "a", "b").Err()
	if want := "ERR unknown command 'nosuch', with args beginning with: 'a' 'b' "; err == nil || err.Error() != want {
		return fmt.Errorf("unknown command: %v", err)
	}
	err = c.client.Do(c.ctx, "get").Err()
	if want := "ERR wrong number of arguments for 'get' command"; err == nil || err.Error() != want {
		return fmt.Errorf("arity: %v", err)
	}
	if c.options.Plain {
		return nil
	}
	for _, value := range []string{"text", `{"n":1}`, `{"n":null}`, `["a"]`, `{"a":{"b":"c"}}`, `{"a":"b"} x`, ""} {
		err := c.client.Set(c.ctx, key, value, ttl).Err()
		if err == nil || !strings.HasPrefix(err.Error(), "ERR ") {
			return fmt.Errorf("the value %q: %v", value, err)
		}
		exists, err := c.client.Exists(c.ctx, key).Result()
		if err := same("a refused value changes nothing", exists, err, int64(0)); err != nil {
			return err
		}
	}
	// As Redis would put the keys, only sorted.
	if err := c.client.Set(c.ctx, key, ` { "b" : "2", "a" : "1" } `, ttl).Err(); err != nil {
		return err
	}
	value, err := c.client.Get(c.ctx, key).Result()
	return all(same("sorted", value, err, `{"a":"1","b":"2"}`), c.client.Del(c.ctx, key).Err())
}

func (c *goRedisChecks) scan() error {
	var want []string
	for n := range 5 {
		key := c.fresh(fmt.Sprintf("scan-%d", n))
		want = append(want, key)
		if err := c.client.Set(c.ctx, key, "{}", ttl).Err(); err != nil {
			return err
		}
	}
	var got []string
	found := c.client.Scan(c.ctx, 0, c.key("scan-*"), 2).Iterator()
	for found.Next(c.ctx) {
		got = append(got, found.Val())
	}
	slices.Sort(got)
	return all(same("SCAN", slices.Compact(got), found.Err(), want), c.client.Del(c.ctx, want...).Err())
}

// invalidated remembers whether it was told of a key.
type invalidated struct{ times atomic.Int64 }

func (i *invalidated) HandlePushNotification(context.Context, push.NotificationHandlerContext, []any) error {
	i.times.Add(1)
	return nil
}

// tracking: go-redis has no cache of its own, but passes on what is pushed.
func (c *goRedisChecks) tracking() error {
	key := c.fresh("tracking")
	if err := c.client.Set(c.ctx, key, `{"n":"1"}`, ttl).Err(); err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: c.options.Address, Password: c.options.Password, PoolSize: 1})
	defer func() { _ = client.Close() }()
	told := &invalidated{}
	if err := client.RegisterPushNotificationHandler("invalidate", told, false); err != nil {
		return err
	}
	conn := client.Conn()
	defer func() { _ = conn.Close() }()
	if err := conn.Do(c.ctx, "client", "tracking", "on").Err(); err != nil {
		return fmt.Errorf("CLIENT TRACKING ON: %w", err)
	}
	value, err := conn.Get(c.ctx, key).Result()
	if err := same("read", value, err, `{"n":"1"}`); err != nil {
		return err
	}
	if err := c.other.Set(c.ctx, key, `{"n":"2"}`, ttl).Err(); err != nil {
		return err
	}
	err = eventually("the invalidation comes", func() (bool, error) {
		err := conn.Ping(c.ctx).Err()
		return told.times.Load() > 0, err
	})
	value, read := conn.Get(c.ctx, key).Result()
	return all(err, same("read again", value, read, `{"n":"2"}`), c.client.Del(c.ctx, key).Err())
}

func (c *goRedisChecks) resp2() error {
	client := redis.NewClient(&redis.Options{Addr: c.options.Address, Password: c.options.Password, Protocol: 2})
	defer func() { _ = client.Close() }()
	key := c.fresh("resp2")
	created, err := client.SetNX(c.ctx, key, `{"a":"b"}`, ttl).Result()
	first := same("SET NX", created, err, true)
	created, err = client.SetNX(c.ctx, key, `{"a":"b"}`, ttl).Result()
	second := same("SET NX again", created, err, false)
	value, err := client.GetEx(c.ctx, key, ttl).Result()
	third := same("GETEX", value, err, `{"a":"b"}`)
	deleted, err := client.Del(c.ctx, key).Result()
	return all(first, second, third, same("DEL", deleted, err, int64(1)))
}

func (c *goRedisChecks) wrongPassword() error {
	for _, password := range []string{"", c.options.Password + "x"} {
		client := redis.NewClient(&redis.Options{Addr: c.options.Address, Password: password, MaxRetries: -1})
		err := client.Get(c.ctx, c.key("secret")).Err()
		_ = client.Close()
		if err == nil || !(strings.HasPrefix(err.Error(), "NOAUTH") || strings.HasPrefix(err.Error(), "WRONGPASS")) {
			return fmt.Errorf("password %q: %v", password, err)
		}
	}
	return nil
}

// reconnect goes on with the same client after the server was killed.
func (c *goRedisChecks) reconnect() error {
	key := c.fresh("reconnect")
	if err := c.client.Set(c.ctx, key, `{"n":"1"}`, ttl).Err(); err != nil {
		return err
	}
	info, err := c.client.Info(c.ctx, "server").Result()
	before := serverProcess(info)
	if err != nil || before == "" {
		return fmt.Errorf("INFO server names no process: %q, %v", info, err)
	}
	fmt.Println(killMe)
	err = eventually("another process answers", func() (bool, error) {
		info, err := c.client.Info(c.ctx, "server").Result()
		after := serverProcess(info)
		return err == nil && after != "" && after != before, err
	})
	if err != nil {
		return err
	}
	if c.options.Plain {
		return c.client.Set(c.ctx, key, "{}", ttl).Err()
	}
	// Nothing was lost. Right after its start an agent may have to ask for patience, but it never says that a session is
	// gone because it cannot know.
	var value string
	err = eventually("the session is answered", func() (bool, error) {
		value, err = c.client.GetEx(c.ctx, key, ttl).Result()
		return err == nil || errors.Is(err, redis.Nil), err
	})
	return all(err, same("the session", value, nil, `{"n":"1"}`), c.client.Del(c.ctx, key).Err())
}
