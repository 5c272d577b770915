"""The online service: the same heads behind HTTP, on Ray Serve."""
