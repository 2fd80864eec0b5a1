"""Coverage-guided fuzzers of everything here that reads what a guest, a client, a worker or a front end wrote.

Targets in C (c/) are built by clang with libFuzzer and sanitizers from the very sources of native/src; those in Python
(python/) run under atheris. Each is a function of one input, and each has seeds in corpus/. See README.md.

    python -m tests.fuzz [TARGET...] [--seconds N | --runs N]
    python -m tests.fuzz.seeds
"""
