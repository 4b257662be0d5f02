"""What `sqlmodel-cache follow` imports so that a follower tells the Redis of the soak, whatever its topology.

The URL is in the environment, as `RedisServer.url` and the others have it.
"""

from __future__ import annotations

import os

from soak.clients import client
from sqlmodel_cache import RedisSyncTransport, SQLModelCache

SQLModelCache.configure(RedisSyncTransport(client(os.environ["SOAK_REDIS_URL"])))
