"""Labs: claims, exercises and their checks, notebooks, and the learner's workspace."""
