"""The pieces that papers are composed of: one verb, one file."""
