"""Speaking the contracts: channels, servers, identities, error mapping, events."""
