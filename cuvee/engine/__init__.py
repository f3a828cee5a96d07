"""The engine: matching, plan, rounds, run. It knows no method by name."""
