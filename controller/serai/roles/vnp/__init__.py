"""VNP: assembles the slices of several providers into one topology without seeing their insides."""
