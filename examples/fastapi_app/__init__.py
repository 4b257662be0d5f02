"""Heroes and teams: a FastAPI application whose reads by primary key are cached, with the dashboard at /cache/.

make example         runs it, on SQLite and a Redis of its own; DATABASE_URL and REDIS_URL name others
make example-load    sends requests, with the cache off and on
"""
