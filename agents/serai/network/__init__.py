"""Ports, the switch, virtual link segments and the channels between agents."""
