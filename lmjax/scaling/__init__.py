"""Scaling laws: a table of finished runs is read, fitted by several published methods, drawn and extrapolated."""
