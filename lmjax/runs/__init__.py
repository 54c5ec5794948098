"""A recipe in a workdir, from beginning to end: what a command or a call of Python does."""
