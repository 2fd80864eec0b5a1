"""Guests that lie, against the real service: the right error code, the service alive, neighbours unharmed, no leak."""
