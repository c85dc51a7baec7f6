"""The controller daemon: hosts any subset of the roles."""
