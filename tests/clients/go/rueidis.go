package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"
)

type rueidisChecks struct {
	ctx     context.Context
	options Options
	client  rueidis.Client
	other   rueidis.Client
}

// rueidisClient checks a client that keeps copies in its own memory.
func rueidisClient(options Options, checks *Checks) {
	c := &rueidisChecks{ctx: context.Background(), options: options}
	checks.Run("connect", func() (err error) {
		if c.client, err = c.open(options.Address, nil); err != nil {
			return err
		}
		c.other, err = c.open(options.Other, nil)
		return err
	})
	if checks.failed > 0 {
		return
	}
	checks.Run("life cycle", c.lifeCycle)
	checks.Run("NX and XX", c.nxAndXx)
	checks.Run("timeouts", c.timeouts)
	checks.Run("pipeline", c.pipeline)
	checks.Run("transaction", c.transaction)
	checks.Run("a cached copy is dropped when another client writes", func() error { return c.caching(c.client) })
	checks.Run("a cached copy is dropped when its own client writes", c.cachingOwnWrite)
	checks.Run("a cached copy is dropped when the session is deleted", c.cachingDelete)
	checks.Run("a cached absence is dropped when the session is created", c.cachingAbsence)
	checks.Run("cached hash", c.cachingHash)
	checks.Run("no copy is older than a read elsewhere, 200 writes", c.cachingRounds)
	for _, how := range []struct {
		name     string
		tracking []string
	}{
		{"cached by broadcast", []string{"PREFIX", options.Prefix + "rueidis-", "BCAST"}},
		{"cached by broadcast, without own writes", []string{"BCAST", "NOLOOP"}},
		{"cached but for what is opted out", []string{"OPTOUT"}},
	} {
		checks.Run(how.name, func() error {
			client, err := c.open(options.Address, how.tracking)
			if err != nil {
				return err
			}
			defer client.Close()
			return c.caching(client)
		})
	}
	checks.Run("events", c.events)
	checks.Run("reconnect", c.reconnect)
}

func (c *rueidisChecks) open(address string, tracking []string) (rueidis.Client, error) {
	return rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{address}, Password: c.options.Password, ClientTrackingOptions: tracking,
		ForceSingleClient: true,
		// A write that is to be seen everywhere waits for a pod that has died.
		ConnWriteTimeout: patience,
	})
}

func (c *rueidisChecks) key(name string) string { return c.options.Prefix + "rueidis-" + name }

// fresh is a key that does not exist.
func (c *rueidisChecks) fresh(name string) string {
	c.client.Do(c.ctx, c.client.B().Del().Key(c.key(name)).Build())
	return c.key(name)
}

func (c *rueidisChecks) set(client rueidis.Client, key, value string) error {
	return client.Do(c.ctx, client.B().Set().Key(key).Value(value).Ex(ttl).Build()).Error()
}

// cached reads through the client's own cache; whether it came from there is the second answer.
func (c *rueidisChecks) cached(client rueidis.Client, key string) (string, bool, error) {
	result := client.DoCache(c.ctx, client.B().Get().Key(key).Cache(), time.Minute)
	value, err := result.ToString()
	if rueidis.IsRedisNil(err) {
		return "nil", result.IsCacheHit(), nil
	}
	return value, result.IsCacheHit(), err
}

// keeps reads until the answer comes from the client's own memory.
func (c *rueidisChecks) keeps(client rueidis.Client, key, want string) error {
	return eventually("the client keeps a copy of "+key, func() (bool, error) {
		value, hit, err := c.cached(client, key)
		if err == nil && value != want {
			err = fmt.Errorf("got %s, want %s", value, want)
		}
		return err == nil && hit, err
	})
}

// turns reads through the client's memory until a value comes; a copy that is never dropped is never replaced.
func (c *rueidisChecks) turns(client rueidis.Client, key, want string) error {
	return eventually("the copy is dropped", func() (bool, error) {
		value, _, err := c.cached(client, key)
		return value == want, err
	})
}

func (c *rueidisChecks) lifeCycle() error {
	key, b := c.fresh("life"), c.client.B
	err := c.client.Do(c.ctx, b().Set().Key(key).Value("{}").Nx().Ex(ttl).Build()).Error()
	if err != nil {
		return fmt.Errorf("placeholder: %w", err)
	}
	err = c.client.Do(c.ctx, b().Set().Key(key).Value(`{"a":"b"}`).Xx().Ex(ttl).Build()).Error()
	if err != nil {
		return fmt.Errorf("XX: %w", err)
	}
	value, err := c.other.Do(c.ctx, c.other.B().Getex().Key(key).Ex(ttl).Build()).ToString()
	first := same("GETEX elsewhere", value, err, `{"a":"b"}`)
	deleted, err := c.client.Do(c.ctx, b().Del().Key(key).Build()).AsInt64()
	second := same("DEL", deleted, err, int64(1))
	err = c.other.Do(c.ctx, c.other.B().Get().Key(key).Build()).Error()
	return all(first, second, same("gone", rueidis.IsRedisNil(err), nil, true))
}

func (c *rueidisChecks) nxAndXx() error {
	key, b := c.fresh("nx"), c.client.B
	err := c.client.Do(c.ctx, b().Set().Key(key).Value("{}").Xx().Build()).Error()
	first := same("XX without a session is nil", rueidis.IsRedisNil(err), nil, true)
	err = c.client.Do(c.ctx, b().Set().Key(key).Value("{}").Nx().Build()).Error()
	second := same("NX without a session", err, nil, nil)
	err = c.other.Do(c.ctx, c.other.B().Set().Key(key).Value("{}").Nx().Build()).Error()
	third := same("NX with a session is nil", rueidis.IsRedisNil(err), nil, true)
	return all(first, second, third, c.client.Do(c.ctx, b().Del().Key(key).Build()).Error())
}

func (c *rueidisChecks) timeouts() error {
	key, b := c.fresh("ttl"), c.client.B
	if err := c.set(c.client, key, "{}"); err != nil {
		return err
	}
	left, err := c.client.Do(c.ctx, b().Ttl().Key(key).Build()).AsInt64()
	first := within("TTL", time.Duration(left)*time.Second, err, ttl-patience, ttl)
	set, err := c.client.Do(c.ctx, b().Pexpire().Key(key).Milliseconds(400).Build()).AsInt64()
	second := same("PEXPIRE", set, err, int64(1))
	if err := all(first, second); err != nil {
		return err
	}
	return eventually("it ends, in the client's memory too", func() (bool, error) {
		value, _, err := c.cached(c.client, key)
		return value == "nil", err
	})
}

func (c *rueidisChecks) pipeline() error {
	const sessions = 20
	var commands rueidis.Commands
	for n := range sessions {
		key := c.key(fmt.Sprintf("pipe-%d", n))
		value := fmt.Sprintf(`{"n":"%d"}`, n)
		commands = append(commands, c.client.B().Set().Key(key).Value(value).Ex(ttl).Build(),
			c.client.B().Get().Key(key).Build(), c.client.B().Del().Key(key).Build())
	}
	for n, result := range c.client.DoMulti(c.ctx, commands...) {
		if err := result.Error(); err != nil {
			return fmt.Errorf("answer %d: %w", n, err)
		}
		if value, _ := result.ToString(); n%3 == 1 && value != fmt.Sprintf(`{"n":"%d"}`, n/3) {
			return fmt.Errorf("answer %d is %s", n, value)
		}
	}
	return nil
}

func (c *rueidisChecks) transaction() error {
	key := c.fresh("tx")
	if err := c.set(c.client, key, `{"n":"1"}`); err != nil {
		return err
	}
	attempt := func(client rueidis.DedicatedClient, meanwhile func() error) (bool, error) {
		if err := client.Do(c.ctx, client.B().Watch().Key(key).Build()).Error(); err != nil {
			return false, err
		}
		if err := meanwhile(); err != nil {
			return false, err
		}
		results := client.DoMulti(c.ctx, client.B().Multi().Build(),
			client.B().Set().Key(key).Value(`{"n":"3"}`).Ex(ttl).Build(), client.B().Exec().Build())
		err := results[2].Error()
		if rueidis.IsRedisNil(err) {
			return false, nil
		}
		return err == nil, err
	}
	return c.client.Dedicated(func(client rueidis.DedicatedClient) error {
		done, err := attempt(client, func() error { return c.set(c.other, key, `{"n":"2"}`) })
		first := same("changed meanwhile", done, err, false)
		done, err = attempt(client, func() error { return nil })
		second := same("unchanged", done, err, true)
		return all(first, second, client.Do(c.ctx, client.B().Del().Key(key).Build()).Error())
	})
}

func (c *rueidisChecks) caching(client rueidis.Client) error {
	key := c.fresh("caching")
	if err := c.set(c.client, key, `{"n":"1"}`); err != nil {
		return err
	}
	if err := c.keeps(client, key, `{"n":"1"}`); err != nil {
		return err
	}
	if err := c.set(c.other, key, `{"n":"2"}`); err != nil {
		return err
	}
	if err := c.turns(client, key, `{"n":"2"}`); err != nil {
		return err
	}
	return all(c.keeps(client, key, `{"n":"2"}`), c.client.Do(c.ctx, c.client.B().Del().Key(key).Build()).Error())
}

func (c *rueidisChecks) cachingOwnWrite() error {
	key := c.fresh("own")
	if err := all(c.set(c.client, key, `{"n":"1"}`), c.keeps(c.client, key, `{"n":"1"}`),
		c.set(c.client, key, `{"n":"2"}`)); err != nil {
		return err
	}
	return all(c.turns(c.client, key, `{"n":"2"}`), c.client.Do(c.ctx, c.client.B().Del().Key(key).Build()).Error())
}

func (c *rueidisChecks) cachingDelete() error {
	key := c.fresh("deleted")
	if err := all(c.set(c.client, key, "{}"), c.keeps(c.client, key, "{}")); err != nil {
		return err
	}
	if err := c.other.Do(c.ctx, c.other.B().Del().Key(key).Build()).Error(); err != nil {
		return err
	}
	return c.turns(c.client, key, "nil")
}

// cachingAbsence: a client may keep that there is nothing, so a create must tell it too.
func (c *rueidisChecks) cachingAbsence() error {
	key := c.fresh("absent")
	if _, _, err := c.cached(c.client, key); err != nil {
		return err
	}
	if err := c.set(c.other, key, `{"n":"1"}`); err != nil {
		return err
	}
	return all(c.turns(c.client, key, `{"n":"1"}`), c.client.Do(c.ctx, c.client.B().Del().Key(key).Build()).Error())
}

func (c *rueidisChecks) cachingHash() error {
	key := c.fresh("hash")
	write := func(value string) error {
		command := c.other.B().Hset().Key(key).FieldValue().FieldValue("n", value).FieldValue("m", "0").Build()
		return c.other.Do(c.ctx, command).Error()
	}
	read := func(want string, kept bool) error {
		return eventually("the hash has n="+want, func() (bool, error) {
			result := c.client.DoCache(c.ctx, c.client.B().Hgetall().Key(key).Cache(), time.Minute)
			fields, err := result.AsStrMap()
			return err == nil && fields["n"] == want && (!kept || result.IsCacheHit()), err
		})
	}
	if err := all(write("1"), read("1", true), write("2"), read("2", false)); err != nil {
		return err
	}
	return c.client.Do(c.ctx, c.client.B().Del().Key(key).Build()).Error()
}

// cachingRounds writes through one server and reads from the memory of a client of the other: what it reads only goes
// forward, and comes to the last write.
func (c *rueidisChecks) cachingRounds() error {
	const writes = 200
	key := c.fresh("rounds")
	if err := c.set(c.other, key, `{"n":"0"}`); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		for n := 1; n <= writes; n++ {
			if err := c.set(c.other, key, fmt.Sprintf(`{"n":"%d"}`, n)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	last, hits := 0, 0
	err := eventually("the last write is read", func() (bool, error) {
		for range 100 {
			value, hit, err := c.cached(c.client, key)
			if err != nil {
				return false, err
			}
			var n int
			if _, err := fmt.Sscanf(value, `{"n":"%d"}`, &n); err != nil {
				return false, fmt.Errorf("%s: %w", value, err)
			}
			if n < last {
				return true, fmt.Errorf("read %d after %d", n, last)
			}
			last = n
			if hit {
				hits++
			}
		}
		return last == writes, nil
	})
	if wrote := <-done; wrote != nil {
		return wrote
	}
	if last != writes || hits == 0 {
		return fmt.Errorf("ended at %d with %d answers from memory", last, hits)
	}
	return all(err, c.client.Do(c.ctx, c.client.B().Del().Key(key).Build()).Error())
}

// events: whoever subscribes to keyspace events hears of a change made through another server.
func (c *rueidisChecks) events() error {
	key := c.fresh("events")
	channel := "__keyspace@0__:" + key
	ctx, stop := context.WithCancel(c.ctx)
	defer stop()
	heard, ready, ended := make(chan string, 16), make(chan struct{}, 1), make(chan error, 1)
	subscribed := rueidis.WithOnSubscriptionHook(ctx, func(rueidis.PubSubSubscription) {
		select {
		case ready <- struct{}{}:
		default:
		}
	})
	go func() {
		ended <- c.client.Receive(subscribed, c.client.B().Psubscribe().Pattern(channel+"*").Build(),
			func(message rueidis.PubSubMessage) { heard <- message.Channel + " " + message.Message })
	}()
	wait := func(what, want string) error {
		for {
			select {
			case got := <-heard:
				if got == want {
					return nil
				}
			case err := <-ended:
				return fmt.Errorf("%s: the subscription ended: %w", what, err)
			case <-time.After(patience):
				return fmt.Errorf("%s: not heard", what)
			}
		}
	}
	select {
	case <-ready:
	case err := <-ended:
		return err
	}
	if err := c.set(c.client, key, "{}"); err != nil {
		return err
	}
	if err := wait("SET", channel+" set"); err != nil {
		return err
	}
	if err := c.client.Do(c.ctx, c.client.B().Del().Key(key).Build()).Error(); err != nil {
		return err
	}
	return wait("DEL", channel+" del")
}

// reconnect: a copy in the client's memory does not outlive the connection that it was told over.
func (c *rueidisChecks) reconnect() error {
	key := c.fresh("reconnect")
	if err := all(c.set(c.client, key, `{"n":"1"}`), c.keeps(c.client, key, `{"n":"1"}`)); err != nil {
		return err
	}
	process := func() (string, error) {
		info, err := c.client.Do(c.ctx, c.client.B().Info().Section("server").Build()).ToString()
		return serverProcess(info), err
	}
	before, err := process()
	if err != nil || before == "" {
		return fmt.Errorf("INFO server names no process: %w", err)
	}
	fmt.Println(killMe)
	err = eventually("the connection is lost, or another process answers", func() (bool, error) {
		after, err := process()
		return err != nil || after != before, nil
	})
	if err != nil {
		return err
	}
	if c.options.Other != c.options.Address {
		// The other server is alive. What is in the client's memory is not true any more from here on.
		if err := c.set(c.other, key, `{"n":"2"}`); err != nil {
			return err
		}
	}
	err = eventually("another process answers", func() (bool, error) {
		after, err := process()
		return err == nil && after != "" && after != before, err
	})
	if err != nil {
		return err
	}
	if c.options.Other == c.options.Address {
		err := eventually("it is written to", func() (bool, error) {
			err := c.set(c.client, key, `{"n":"2"}`)
			return err == nil, err
		})
		return all(err, c.turns(c.client, key, `{"n":"2"}`))
	}
	var value string
	err = eventually("the session is answered", func() (bool, error) {
		value, _, err = c.cached(c.client, key)
		return err == nil, err
	})
	if value == "nil" {
		return errors.New("the session is said to be gone")
	}
	return all(err, same("the session", value, nil, `{"n":"2"}`), c.keeps(c.client, key, `{"n":"2"}`),
		c.client.Do(c.ctx, c.client.B().Del().Key(key).Build()).Error())
}
