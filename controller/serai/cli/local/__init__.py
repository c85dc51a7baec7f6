"""The local cluster: agents, controller and broker as processes of this machine."""
