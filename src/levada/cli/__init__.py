"""The `levada` command: one file a command group, no logic of its own."""
