"""Parity: requests replayed offline, each difference named with its likeliest cause, before a Bento is released."""
