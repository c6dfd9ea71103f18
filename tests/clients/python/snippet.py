"""What docs/agent.md shows: a test runs it, and holds it against the page."""

import json
import os

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

session_id = "from-python"
# snippet:begin
client = redis.Redis.from_url(
    os.environ["REDIS_URL"],  # redis://127.0.0.1:6379
    protocol=3,
    socket_timeout=20,  # longer than a lease: a write may take one
    retry=Retry(NoBackoff(), 0),  # what may have been done is not done again
)
client.set("mcp:" + session_id, json.dumps({"user": "alice"}), nx=True, ex=1800)  # None: somebody has created it
session = client.getex("mcp:" + session_id, ex=1800)  # None: it has ended
# snippet:end
print(session.decode())
client.close()
