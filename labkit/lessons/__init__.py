"""What a lab says and asks: claims, exercises and their checks, notebooks, the workspace."""
