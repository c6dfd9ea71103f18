"""Uses an agent, or a Redis server, as a vMCP server written in Python would, with redis-py.

A line is printed for each check: "ok NAME", or "FAILED NAME: why". The exit code is 1 when one has failed.
"""

import argparse
import asyncio
import sys
import time

import redis
import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.cache import CacheConfig
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError, WatchError
from redis.retry import Retry

# Longer than anything takes that works, on a busy machine.
PATIENCE = 60
TTL = 1800
# Asks whoever runs this program to kill the server with SIGKILL, and to start it again.
KILL_ME = "kill the server"


class Failed(Exception):
    """A check that failed."""


def same(what, got, want):
    if got != want:
        raise Failed(f"{what}: got {got!r}, want {want!r}")


def eventually(what, check):
    last = None
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if check():
                return
        except RedisError as error:
            last = error
        time.sleep(0.005)
    raise Failed(f"{what}: not within {PATIENCE} s; last error: {last!r}")


class Checks:
    """One method for each check; `run` finds them by their prefix, in order."""

    def __init__(self, options):
        self.options = options
        self.client = self.open(options.address)
        self.other = self.open(options.other or options.address)

    def open(self, address, **more):
        host, port = address.rsplit(":", 1)
        return redis.Redis(host=host, port=int(port), password=self.options.password, decode_responses=True, **more)

    def key(self, name):
        return f"{self.options.prefix}redis-py-{name}"

    def fresh(self, name):
        """A key that does not exist."""
        self.client.delete(self.key(name))
        return self.key(name)

    def run(self):
        failed = False
        for name in [name for name in vars(Checks) if name.startswith("check_")]:
            title = name.removeprefix("check_").replace("_", " ")
            try:
                getattr(self, name)()
                print(f"ok {title}", flush=True)
            except (Failed, RedisError) as error:
                failed = True
                print(f"FAILED {title}: {type(error).__name__}: {error}", flush=True)
        return 1 if failed else 0

    def check_life_cycle(self):
        key = self.fresh("life")
        same("placeholder", self.client.set(key, "{}", ex=TTL, nx=True), True)
        same("placeholder again", self.client.set(key, "{}", ex=TTL, nx=True), None)
        same("stored", self.client.set(key, '{"a":"b"}', ex=TTL, xx=True), True)
        same("read and renewed", self.client.getex(key, ex=TTL), '{"a":"b"}')
        same("read elsewhere", self.other.getex(key, ex=TTL), '{"a":"b"}')
        same("deleted", self.other.delete(key), 1)
        same("gone", self.client.get(key), None)
        same("XX without a session", self.client.set(key, "{}", xx=True), None)

    def check_options_of_SET(self):
        key = self.fresh("set")
        same("GET of nothing", self.client.set(key, '{"n":"1"}', get=True), None)
        same("GET", self.client.set(key, '{"n":"2"}', px=90_000, get=True), '{"n":"1"}')
        same("KEEPTTL", self.client.set(key, '{"n":"3"}', keepttl=True), True)
        same("the timeout is kept", 30 < self.client.ttl(key) <= 90, True)
        same("GETDEL", self.client.getdel(key), '{"n":"3"}')
        same("SETNX", self.client.setnx(key, "{}"), True)
        same("SETEX", self.client.execute_command("SETEX", key, 100, '{"n":"4"}'), True)
        same("MGET", self.client.mget(key, self.key("nothing")), ['{"n":"4"}', None])
        same("STRLEN", self.client.strlen(key), 9)
        same("UNLINK", self.client.unlink(key), 1)

    def check_timeouts(self):
        key = self.fresh("ttl")
        same("TTL of nothing", self.client.ttl(key), -2)
        self.client.set(key, "{}")
        same("TTL of a session without", self.client.ttl(key), -1)
        same("EXPIRE XX without a timeout", self.client.expire(key, 100, xx=True), False)
        same("EXPIRE NX", self.client.expire(key, 100, nx=True), True)
        same("EXPIRE NX again", self.client.expire(key, 100, nx=True), False)
        same("EXPIRE LT", self.client.expire(key, 90, lt=True), True)
        same("PTTL", 30_000 < self.client.pttl(key) <= 90_000, True)
        at = int(time.time()) + 1000
        same("PEXPIREAT", self.client.pexpireat(key, at * 1000 + 123), True)
        same("PEXPIRETIME", self.client.expiretime(key), at)
        same("GETEX PERSIST", self.client.getex(key, persist=True), "{}")
        same("TTL after PERSIST", self.client.ttl(key), -1)
        same("EXPIRE in the past", self.client.expire(key, -1), True)
        same("gone", self.client.exists(key), 0)

    def check_short_timeout(self):
        key = self.fresh("short")
        before = time.monotonic()
        same("PX NX", self.client.set(key, "{}", px=400, nx=True), True)
        for client in (self.client, self.other):
            eventually("it ends", lambda: client.get(key) is None)
            same("it did not end early", time.monotonic() - before >= 0.4, True)

    def check_hash(self):
        key = self.fresh("hash")
        same("HSET", self.client.hset(key, mapping={"b": "2", "a": "1"}), 2)
        same("HGETALL elsewhere", self.other.hgetall(key), {"a": "1", "b": "2"})
        same("HINCRBY", self.other.hincrby(key, "a", 9), 10)
        same("HGET", self.client.hget(key, "a"), "10")
        same("HKEYS", sorted(self.client.hkeys(key)), ["a", "b"])
        same("HVALS", sorted(self.client.hvals(key)), ["10", "2"])
        same("HLEN", self.client.hlen(key), 2)
        same("HEXISTS", self.client.hexists(key, "c"), False)
        same("HSTRLEN", self.client.hstrlen(key, "a"), 2)
        same("HSETNX", self.client.hsetnx(key, "c", "3"), True)
        same("HDEL", self.client.hdel(key, "a", "b", "c"), 3)
        same("gone", self.client.type(key), "none")

    def check_pipeline(self):
        keys = [self.key(f"pipe-{n}") for n in range(20)]
        pipe = self.client.pipeline(transaction=False)
        for n, key in enumerate(keys):
            pipe.set(key, f'{{"n":"{n}"}}', ex=TTL)
        for key in keys:
            pipe.get(key)
        pipe.delete(*keys)
        answers = pipe.execute()
        same("answers", answers, [True] * 20 + [f'{{"n":"{n}"}}' for n in range(20)] + [20])

    def check_transaction(self):
        key = self.fresh("tx")
        self.client.set(key, '{"n":"1"}')
        with self.client.pipeline() as pipe:
            pipe.watch(key)
            same("read", pipe.get(key), '{"n":"1"}')
            self.other.set(key, '{"n":"2"}')
            pipe.multi()
            pipe.set(key, '{"n":"3"}')
            try:
                pipe.execute()
                raise Failed("a conflict went unseen")
            except WatchError:
                pass
        with self.client.pipeline() as pipe:
            pipe.watch(key)
            pipe.multi()
            pipe.hset(key, "m", "4") if not self.options.plain else pipe.set(key, '{"m":"4","n":"2"}')
            pipe.get(key)
            same("done", pipe.execute()[-1], '{"m":"4","n":"2"}')
        self.client.delete(key)

    def check_errors(self):
        try:
            self.client.execute_command("NOSUCH", "a")
            raise Failed("an unknown command was taken")
        except ResponseError as error:
            same("text", str(error), "unknown command 'NOSUCH', with args beginning with: 'a' ")
        if not self.options.plain:
            key = self.fresh("errors")
            for value in ("text", '{"n":1}', "[]", '{"a":{}}'):
                try:
                    self.client.set(key, value)
                    raise Failed(f"{value} was taken")
                except ResponseError:
                    same("nothing has changed", self.client.exists(key), 0)

    def check_tracking(self):
        """A copy in the client's memory is dropped when another client writes."""
        version = self.client.info("server")["redis_version"]
        if self.options.plain and [int(part) for part in version.split(".")[:2]] < [7, 4]:
            # redis-py refuses to keep copies of what such a server answers; an agent must not be taken for one.
            return
        key = self.fresh("tracking")
        client = self.open(self.options.address, protocol=3, cache_config=CacheConfig())
        self.client.set(key, '{"n":"1"}', ex=TTL)
        same("read", client.get(key), '{"n":"1"}')
        same("it is kept", client.get_cache().size, 1)
        self.other.set(key, '{"n":"2"}', ex=TTL)
        eventually("the copy is dropped", lambda: client.get(key) == '{"n":"2"}')
        self.other.delete(key)
        eventually("the copy is dropped", lambda: client.get(key) is None)
        client.close()

    def check_invalidations_over_another_connection(self):
        """What clients do that speak RESP2: the messages are redirected to a connection that has subscribed to them."""
        key = self.fresh("redirect")
        self.client.set(key, '{"n":"1"}')
        listener = self.open(self.options.address, protocol=2)
        connection = listener.connection_pool.get_connection()
        connection.send_command("CLIENT", "ID")
        number = connection.read_response()
        connection.send_command("SUBSCRIBE", "__redis__:invalidate")
        same("subscribed", connection.read_response(), ["subscribe", "__redis__:invalidate", 1])
        reader = self.open(self.options.address, protocol=2, single_connection_client=True)
        reader.execute_command("CLIENT", "TRACKING", "ON", "REDIRECT", number)
        same("read", reader.get(key), '{"n":"1"}')
        self.other.set(key, '{"n":"2"}')
        same("told", connection.read_response(), ["message", "__redis__:invalidate", [key]])
        reader.close()
        connection.disconnect()
        self.client.delete(key)

    def check_events(self):
        key = self.fresh("events")
        channel = f"__keyspace@0__:{key}"
        events = self.client.pubsub()
        events.subscribe(channel)
        same("subscribed", events.get_message(timeout=PATIENCE)["type"], "subscribe")
        self.client.set(key, "{}")
        self.client.delete(key)
        # There may be others between, as of the session's timeout.
        for event in ("set", "del"):
            while (message := events.get_message(timeout=PATIENCE))["data"] != event:
                same("the channel", message["channel"], channel)
        events.close()

    def check_asyncio(self):
        async def many():
            host, port = self.options.address.rsplit(":", 1)
            client = redis.asyncio.Redis(host=host, port=int(port), password=self.options.password)
            keys = [self.key(f"async-{n}") for n in range(20)]
            await asyncio.gather(*(client.set(key, f'{{"n":"{n}"}}', ex=TTL) for n, key in enumerate(keys)))
            values = await asyncio.gather(*(client.getex(key, ex=TTL) for key in keys))
            same("values", values, [f'{{"n":"{n}"}}'.encode() for n in range(20)])
            await client.delete(*keys)
            await client.aclose()

        asyncio.run(many())

    def check_reconnect(self):
        key = self.fresh("reconnect")
        retry = Retry(ExponentialBackoff(), 3)
        client = self.open(self.options.address, retry=retry, retry_on_error=[ConnectionError, TimeoutError])
        client.set(key, '{"n":"1"}')
        before = client.info("server")["process_id"]
        print(KILL_ME, flush=True)
        eventually("another process answers", lambda: client.info("server")["process_id"] != before)
        if self.options.plain:
            same("it works", client.set(key, "{}"), True)
            return
        answers = []

        def answered():
            answers.append(client.getex(key, ex=TTL))
            return True

        eventually("the session is answered", answered)
        same("the session", answers, ['{"n":"1"}'])
        client.delete(key)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT of the server")
    parser.add_argument("--other", help="a second server of the same sessions")
    parser.add_argument("--prefix", default="", help="prefix of the keys")
    parser.add_argument("--password", help="password, if one is needed")
    parser.add_argument("--plain", action="store_true", help="the server is Redis")
    return Checks(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
