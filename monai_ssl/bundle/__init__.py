"""The bundle library."""
