"""raybert's own version, also where it runs from a checkout that was never installed."""

VERSION = "0.1.0"
