"""Modules that several of the programs import."""
