"""Testing against a real Triton: the pytest plugin, loaded by pytest itself where installed."""
