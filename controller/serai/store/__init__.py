"""Durable state of the roles."""
