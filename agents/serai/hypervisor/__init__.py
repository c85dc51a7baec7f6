"""Guests on this node: create, run, resize, snapshot; the driver contract."""
