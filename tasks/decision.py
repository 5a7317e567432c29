"""Decides what to do with an item: send it, skip it, or leave it."""
