"""The loop, what learns in it, and what survives it."""
