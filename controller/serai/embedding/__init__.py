"""Embedding virtual networks onto substrates: pure functions on graphs, no I/O."""
