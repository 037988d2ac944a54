"""Modules that several programs import."""
