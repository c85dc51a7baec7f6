"""The runtime of the native code, in the restricted language."""
