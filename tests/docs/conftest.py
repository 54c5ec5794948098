"""What pages run compiles its programs once."""

from tests.trained import compiled_once  # noqa: F401
