"""Workdirs on buckets, against a server of their own."""
