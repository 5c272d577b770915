#!/bin/sh
# The HAProxy of Ray Serve without splicing, which Ray's configuration asks for beside `abortonclose`. With both, HAProxy
# 2.8.25 does not notice that a client left whose body came in pieces, and keeps a processor busy until the answer is
# there (tests/test_serve_launch.py).
exec "$RAYBERT_HAPROXY" "$@" -dS
