"""``serai demo``: the main job, run and proved in front of a person."""
