"""PIP, VNP and VNO: each a service with its own state."""
