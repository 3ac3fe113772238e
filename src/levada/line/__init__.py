"""The line as a whole, from outside: install it, look at it, send events through it, ask it for predictions."""
