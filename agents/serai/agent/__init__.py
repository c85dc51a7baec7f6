"""The agent daemon: one per node; composes hypervisor, network and migration and serves gRPC."""
