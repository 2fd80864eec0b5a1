"""The language between the master and its context workers.

`messages` says what can be said, `channel` carries it over a socket together with file descriptors, `ring` makes the
shared memory that the commands themselves go through; `outbox` and `handles` are the ends of the way that descriptors
of single commands take. Imported by both sides, so it knows neither: it may import native only.
"""
