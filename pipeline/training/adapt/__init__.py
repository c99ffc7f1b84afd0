"""A universal network fitted to one scene."""
