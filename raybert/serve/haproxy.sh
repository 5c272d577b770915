#!/bin/sh
# The HAProxy of Ray Serve without splicing, which Ray's configuration asks for beside `abortonclose`. With both,
# HAProxy 2.8.25 spins: of requests whose body comes in pieces some keep a processor busy until they are answered, and
# it goes unnoticed that their client left (tests/test_serve_launch.py).
exec "$RAYBERT_HAPROXY" "$@" -dS
