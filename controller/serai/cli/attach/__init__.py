"""``serai attach``: a station of an end user, with a small IP stack of its own where nobody is root."""
