"""PIP: owns nodes and links and sells slices of them."""
