"""Reports: what was measured, as tables and as one page that needs no network."""
