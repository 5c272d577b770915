"""Runs over a cluster of several nodes that lose each other; each is a set of Linux namespaces on this machine."""
