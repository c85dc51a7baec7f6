"""The ``serai`` command: thin, whatever is useful lives server-side."""
