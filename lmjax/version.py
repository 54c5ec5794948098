"""The version of lmjax."""

__version__ = "0.1.0"
