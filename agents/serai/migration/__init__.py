"""Moving a running guest between two agents."""
